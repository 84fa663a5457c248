package kernel

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Support says whether the kernel can write to spool files by itself.
type Support struct {
	Passthrough bool
	Why         string // why not, for operators; empty if it can
}

// noSupport makes a Support that says why not.
func noSupport(format string, args ...any) Support {
	return Support{Why: fmt.Sprintf(format, args...)}
}

// Probe finds out whether a mount by this process with its spool files below spoolDir
// (or, where that is missing, below its nearest parent) can have passthrough, by trying
// it: on a FUSE file system of its own that is mounted nowhere.
func Probe(spoolDir string) Support {
	if os.Geteuid() != 0 || !capable(unix.CAP_SYS_ADMIN) {
		return noSupport("FUSE passthrough needs root (CAP_SYS_ADMIN)")
	}
	if n := sysctl("max_request_timeout"); n != 0 {
		return noSupport("the sysctl fs.fuse.max_request_timeout is %d: the kernel would drop the connection when a request waits for so many seconds; set it to 0", n)
	}
	dir := existing(spoolDir)
	if s := probeFS(dir); s.Why != "" {
		return s
	}
	err := try(dir)
	switch {
	case err == nil:
		return Support{Passthrough: true}
	case errors.Is(err, errNoPassthrough):
		return noSupport("the kernel %s has no FUSE passthrough (Linux 6.9 or later with CONFIG_FUSE_PASSTHROUGH)", release())
	}
	return noSupport("%v", err)
}

// errNoPassthrough is returned by try where the kernel does not offer it.
var errNoPassthrough = errors.New("the kernel does not offer FUSE passthrough")

// try negotiates passthrough on a file system that is mounted nowhere and registers a
// file without a name in dir as a backing file.
func try(dir string) error {
	if fpNoPass.Inject() != nil {
		return errNoPassthrough
	}
	dev, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open /dev/fuse: %w", err)
	}
	fs, err := unmounted(dev)
	if err != nil {
		_ = unix.Close(dev)
		return err
	}
	defer unix.Close(fs)
	defer unix.Close(dev) // first, so that nothing waits for an answer
	b := make([]byte, 64<<10)
	n, err := readRetry(dev, b)
	if err == nil {
		err = checkInit(b[:n])
	}
	if err != nil {
		return fmt.Errorf("read the kernel's INIT: %w", err)
	}
	if offered(b[:n])&flag2Pass == 0 {
		return errNoPassthrough
	}
	reply := make([]byte, initOutSize)
	ne.PutUint64(reply[outUnique:], ne.Uint64(b[inUnique:]))
	ne.PutUint32(reply[outHeaderSize:], 7)
	ne.PutUint32(reply[outMinor:], 33)
	if _, err := unix.Write(dev, rewrite(b[:n], reply, true)); err != nil {
		return fmt.Errorf("answer INIT: %w", err)
	}
	_, err = (&Device{fd: dev}).TryBacking(dir)
	return err
}

// TryBacking registers a new file without a name in dir as a backing file and gives it
// up again: whether files there can be. It returns the id that it had: the kernel gives the
// next higher one next.
func (d *Device) TryBacking(dir string) (id int32, err error) {
	f, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return 0, fmt.Errorf("make a file without a name in %s: %w", dir, err)
	}
	defer unix.Close(f)
	ro, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", f), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("open a file without a name in %s again: %w", dir, err)
	}
	defer unix.Close(ro)
	if id, err = d.OpenBacking(ro); err != nil {
		return 0, fmt.Errorf("files in %s cannot stand behind files of a mount: %w", dir, err)
	}
	return id, d.CloseBacking(id)
}

// unmounted makes a FUSE file system on dev without mounting it.
func unmounted(dev int) (int, error) {
	fs, err := unix.Fsopen("fuse", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("make a FUSE file system: %w", err)
	}
	for _, kv := range [][2]string{
		{"fd", strconv.Itoa(dev)}, {"rootmode", "40000"}, {"user_id", "0"}, {"group_id", "0"},
	} {
		if err = unix.FsconfigSetString(fs, kv[0], kv[1]); err != nil {
			break
		}
	}
	if err == nil {
		err = unix.FsconfigCreate(fs)
	}
	if err != nil {
		_ = unix.Close(fs)
		return -1, fmt.Errorf("make a FUSE file system: %w", err)
	}
	return fs, nil
}

// unfit are file systems that spool files may lie on but no backing files: those that
// are stacked themselves are refused by the kernel, and on those of a network or another
// daemon a write of the kernel's is neither seen nor kept as on a local disk.
var unfit = map[int64]string{
	unix.FUSE_SUPER_MAGIC: "FUSE", unix.OVERLAYFS_SUPER_MAGIC: "overlayfs", unix.ECRYPTFS_SUPER_MAGIC: "eCryptfs",
	unix.NFS_SUPER_MAGIC: "NFS", unix.SMB_SUPER_MAGIC: "SMB", unix.SMB2_SUPER_MAGIC: "SMB", unix.CIFS_SUPER_MAGIC: "CIFS",
	unix.V9FS_MAGIC: "9p", unix.CEPH_SUPER_MAGIC: "Ceph", unix.AFS_SUPER_MAGIC: "AFS", unix.CODA_SUPER_MAGIC: "Coda",
}

// probeFS looks at the file system of dir.
func probeFS(dir string) Support {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return noSupport("look at the file system of %s: %v", dir, err)
	}
	if name := unfit[int64(st.Type)]; name != "" {
		return noSupport("the spool in %s lies on a file system of type %s, which cannot be written to by passthrough; put state_dir on a local disk", dir, name)
	}
	return Support{}
}

// existing is dir or the nearest directory above it that is there.
func existing(dir string) string {
	for {
		if st, err := os.Stat(dir); err == nil && st.IsDir() || dir == filepath.Dir(dir) {
			return dir
		}
		dir = filepath.Dir(dir)
	}
}

// sysctls is where fs.fuse is. Tests put a directory of their own in its place.
var sysctls = "/proc/sys/fs/fuse"

// sysctl returns fs.fuse.NAME; 0 where the kernel has none.
func sysctl(name string) int {
	text, err := os.ReadFile(filepath.Join(sysctls, name))
	if err != nil {
		return 0
	}
	n, _ := strconv.Atoi(strings.TrimSpace(string(text)))
	return n
}

// capable reports whether this process has capability bit in the initial user namespace,
// which is the one that BACKING_OPEN asks for.
func capable(bit uint) bool {
	ids, err := os.ReadFile("/proc/self/uid_map")
	if err != nil || strings.Join(strings.Fields(string(ids)), " ") != "0 0 4294967295" {
		return err != nil // without /proc the attempt decides
	}
	text, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return true
	}
	for line := range strings.Lines(string(text)) {
		if hex, ok := strings.CutPrefix(line, "CapEff:"); ok {
			set, err := strconv.ParseUint(strings.TrimSpace(hex), 16, 64)
			return err != nil || set&(1<<bit) != 0
		}
	}
	return true
}

func release() string {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return "?"
	}
	return unix.ByteSliceToString(u.Release[:])
}
