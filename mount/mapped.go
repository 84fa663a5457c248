package mount

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"ftfuse/internal/mountinfo"
	"ftfuse/mount/kernel"
)

// mappable reports whether h can be mapped shared and writable. The kernel refuses that of no
// descriptor that reads and writes beside those for which it has the spool file, with whatever
// flags OPEN is answered (fs/fuse/file.c, fuse_file_mmap).
func (h *handle) mappable() bool {
	return h.write != nil && h.reply&kernel.OpenPassthrough != 0 && h.flags.IsReadWrite()
}

// guard has stores through a mapping of h looked for, before its opener has a descriptor.
func (s *server) guard(h *handle) {
	if h.mappable() {
		s.unnoticed(h, h.write.Guard())
	}
}

// unguard says what was stored. A mapping outlives the descriptor (the kernel has it hold the
// spool file instead): see lookForMapping.
func (s *server) unguard(h *handle) {
	if h.mappable() {
		s.unnoticed(h, h.write.Unguard())
	}
}

func (s *server) unnoticed(h *handle, err error) {
	if err != nil {
		s.log.Warn("what is stored through a shared mapping of this file is not transferred, and not noticed", "path", h.path, "pid", h.pid, "err", err)
	}
}

// lookForMapping says when the process that waits for its close(2) of h keeps the file mapped.
// It may be called from any goroutine but the loop's: reading the list can wait for a page fault
// of that process, which waits for the loop.
func (s *server) lookForMapping(h *handle, pid uint32) {
	n, err := s.mappedShared(h, pid)
	if n > 0 {
		h.write.Stored(pid, n)
	}
	s.unnoticed(h, err)
}

// mappedShared returns how many bytes of h's file the process has mapped shared.
func (s *server) mappedShared(h *handle, pid uint32) (n int64, err error) {
	st, err := h.write.Stat()
	if err != nil {
		return 0, err
	}
	files := []string{inodeIn(unix.Major(st.Dev), unix.Minor(st.Dev), st.Ino)} // what a kernel may show instead
	mounts, err := mountinfo.On(s.point)
	if err != nil {
		return 0, err
	}
	for _, m := range mounts {
		var major, minor uint32
		if _, err := fmt.Sscanf(m.Dev, "%d:%d", &major, &minor); err == nil {
			files = append(files, inodeIn(major, minor, fileInode(h.write.Number())))
		}
	}
	list, err := os.Open(fmt.Sprintf("/proc/%d/maps", pid))
	if err == nil {
		defer list.Close()
		lines := bufio.NewScanner(list)
		for lines.Scan() {
			n += sharedBytes(lines.Text(), files)
		}
		err = lines.Err()
	}
	if pid != 0 && (errors.Is(err, syscall.ESRCH) || errors.Is(err, os.ErrNotExist)) {
		return n, nil // it ends, and its mappings have
	}
	return n, err
}

// inodeIn is how a line of maps (proc_pid_maps(5)) names an inode.
func inodeIn(major, minor uint32, inode uint64) string {
	return fmt.Sprintf("%02x:%02x %d", major, minor, inode)
}

// sharedBytes is the length of the mapping that a line of maps tells of, if it is shared and one
// of those files.
func sharedBytes(line string, files []string) int64 {
	f := strings.Fields(line) // FROM-TO rwxs OFFSET MAJOR:MINOR INODE PATH
	if len(f) < 5 || !strings.HasSuffix(f[1], "s") {
		return 0
	}
	for _, name := range files {
		if f[3]+" "+f[4] == name {
			from, to, _ := strings.Cut(f[0], "-")
			a, _ := strconv.ParseUint(from, 16, 64) // the kernel writes numbers
			b, _ := strconv.ParseUint(to, 16, 64)
			return int64(b - a)
		}
	}
	return 0
}
