package mount

import (
	"errors"
	"fmt"
	"os"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// removedNode makes a file, finds it by its name as the first half of an open(2) does, and removes
// it once nothing of it is left. It returns the way to what was found.
func removedNode(t *testing.T, r *rig, name string) string {
	t.Helper()
	must(t, unix.Mknod(r.path(name), unix.S_IFREG|0o644, 0)) // without a note, which would keep it
	fd, err := unix.Open(r.path(name), unix.O_PATH, 0)
	must(t, err)
	t.Cleanup(func() { unix.Close(fd) })
	must(t, os.Remove(r.path(name)))
	return fmt.Sprintf("/proc/self/fd/%d", fd)
}

// TestAFileThatIsRemovedWhileItIsOpenedWasAnIOError: what comes for a node whose file is gone is
// answered ESTALE, for which the kernel looks the name up again. EIO was told to programs that opened a
// log while it was rotated away, and ENOENT to those that were to make it (O_CREAT).
func TestAFileThatIsRemovedWhileItIsOpenedWasAnIOError(t *testing.T) {
	for _, attribution := range []string{"open", "write"} {
		t.Run(attribution, func(t *testing.T) {
			r := newRig(t, fmt.Sprintf("[[mount.rule]]\npath = \"**\"\nattribution = %q\n", attribution))
			found := removedNode(t, r, "gone")
			for what, do := range map[string]func() error{
				"open": func() error {
					fd, err := unix.Open(found, unix.O_WRONLY|unix.O_APPEND, 0)
					if err == nil {
						unix.Close(fd)
					}
					return err
				},
				"stat":     func() error { return unix.Stat(found, new(unix.Stat_t)) },
				"truncate": func() error { return unix.Truncate(found, 0) },
				"chmod":    func() error { return unix.Chmod(found, 0o600) },
				"chown":    func() error { return unix.Chown(found, 1, 1) },
				"times":    func() error { return unix.UtimesNanoAt(unix.AT_FDCWD, found, nil, 0) },
			} {
				if err := do(); !errors.Is(err, unix.ESTALE) {
					t.Errorf("%s: %v, want ESTALE", what, err)
				}
			}
			if r.logged("level=ERROR") {
				t.Error("an error is logged")
			}
		})
	}
}

// TestADirectoryThatWasRemovedIsNotTheNextOfItsName: who had a removed directory open changed and saw
// the mode of the one that got its name since, and an fsync(2) of the removed one failed.
func TestADirectoryThatWasRemovedIsNotTheNextOfItsName(t *testing.T) {
	r := newRig(t, "")
	must(t, os.Mkdir(r.path("d"), 0o755))
	old, err := os.Open(r.path("d"))
	must(t, err)
	defer old.Close()
	must(t, os.Remove(r.path("d")))
	if err := old.Sync(); err != nil {
		t.Errorf("sync of a removed directory: %v", err)
	}
	must(t, os.Mkdir(r.path("d"), 0o755))
	if err := old.Chmod(0o700); err == nil {
		t.Error("the mode of a removed directory was changed")
	}
	now, err := os.Stat(r.path("d"))
	must(t, err)
	if now.Mode().Perm() != 0o755 {
		t.Errorf("the new directory has mode %v", now.Mode())
	}
	if st, err := old.Stat(); err == nil && os.SameFile(st, now) {
		t.Error("the removed directory is the new one")
	}
}

// TestADirectoryWasTakenForOneThatIsGone: where a program still was in a directory that had been
// removed before the worker changed, a new one that got its inode number had its node, too: the kernel
// let nobody make anything in it.
func TestADirectoryWasTakenForOneThatIsGone(t *testing.T) {
	r := newHeldRig(t, "", "")
	gone := map[uint64]int{} // descriptors by inode number
	for i := range 50 {
		name := r.path(fmt.Sprint("old", i))
		must(t, os.Mkdir(name, 0o755))
		fd, err := unix.Open(name, unix.O_PATH, 0)
		must(t, err)
		defer unix.Close(fd)
		var st unix.Stat_t
		must(t, unix.Fstat(fd, &st))
		gone[st.Ino] = fd
	}
	for i := range 50 {
		must(t, os.Remove(r.path(fmt.Sprint("old", i))))
	}
	must(t, syscall.Kill(r.awaitReadies(1), syscall.SIGKILL))
	r.awaitReadies(2)
	for i := range 200 {
		name := r.path(fmt.Sprint("new", i))
		must(t, os.Mkdir(name, 0o755))
		must(t, os.WriteFile(name+"/file", nil, 0o644))
		var now, was unix.Stat_t
		must(t, unix.Stat(name, &now))
		if old, met := gone[now.Ino]; met {
			if err := unix.Fstat(old, &was); err == nil && was.Nlink > 0 {
				t.Error("the directory that is gone is the new one")
			}
			return
		}
	}
	t.Skip("the file system gave none of the inode numbers again")
}

// TestADaemonWithoutDescriptorsWasAnIOError: programs that opened a file got EIO, and those that were
// to make one EMFILE, of which they looked for the reason in themselves.
func TestADaemonWithoutDescriptorsWasAnIOError(t *testing.T) {
	r := newRig(t, "")
	must(t, unix.Mknod(r.path("there"), unix.S_IFREG|0o644, 0)) // without a note, which would keep it open
	pid := r.awaitReadies(1)
	open, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	must(t, err)
	var was unix.Rlimit
	must(t, unix.Prlimit(pid, unix.RLIMIT_NOFILE, nil, &was))
	must(t, unix.Prlimit(pid, unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: uint64(len(open)), Max: was.Max}, nil))
	t.Cleanup(func() { _ = unix.Prlimit(pid, unix.RLIMIT_NOFILE, &was, nil) })
	made := error(nil)
	for i := 0; made == nil && i < 1000; i++ { // numbers below the limit may be free
		var f *os.File
		if f, made = os.OpenFile(r.path(fmt.Sprint("new", i)), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644); made == nil {
			t.Cleanup(func() { f.Close() })
		}
	}
	_, opened := os.ReadFile(r.path("there"))
	_, listed := os.ReadDir(r.point)
	for what, err := range map[string]error{"make": made, "open": opened, "list": listed} {
		if err == nil && what != "make" {
			continue // a descriptor came free in between
		}
		if !errors.Is(err, unix.ENFILE) {
			t.Errorf("%s: %v, want ENFILE", what, err)
		}
	}
}
