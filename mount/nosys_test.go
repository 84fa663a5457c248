package mount

import (
	"fmt"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// reads returns how many read(2)s the daemon has done: each of its requests comes with one.
func (r *rig) reads() (n int) {
	r.t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/io", r.cmd.Process.Pid))
	must(r.t, err)
	var chars int64
	_, err = fmt.Sscanf(string(text), "rchar: %d\nwchar: %d\nsyscr: %d", &chars, &chars, &n)
	must(r.t, err)
	return n
}

// TestWhatTheKernelDoesWithoutIsAskedForOnce: only ENOSYS makes it do without. With ENOTSUP,
// which programs see then, each call would be a request, and without direct I/O each write(2)
// one more (security.capability). The names need no look at the file's permissions.
func TestWhatTheKernelDoesWithoutIsAskedForOnce(t *testing.T) {
	r := newRig(t, "")
	put(t, appender(t, r.path("a")), "line\n")
	f, err := os.Open(r.path("a"))
	must(t, err)
	defer f.Close()
	fd := int(f.Fd())
	const name, times = "security.none", 1000
	for what, call := range map[string]func() error{
		"getxattr":    func() error { _, err := unix.Fgetxattr(fd, name, nil); return err },
		"setxattr":    func() error { return unix.Fsetxattr(fd, name, []byte("x"), 0) },
		"listxattr":   func() error { _, err := unix.Flistxattr(fd, nil); return err },
		"removexattr": func() error { return unix.Fremovexattr(fd, name) },
	} {
		before := r.reads()
		for range times {
			if err := call(); err != unix.ENOTSUP {
				t.Fatalf("%s: %v, want ENOTSUP", what, err)
			}
		}
		if n := r.reads() - before; n >= times {
			t.Errorf("%d calls of %s made the daemon read %d times", times, what, n)
		}
	}
	r.stop()
}

// TestWhatTheDaemonDoesNotKnowIsAsElsewhere: where a request is answered ENOSYS programs get what
// a file system without it gives. Any other error would reach them as it is.
func TestWhatTheDaemonDoesNotKnowIsAsElsewhere(t *testing.T) {
	r := newRig(t, "")
	put(t, appender(t, r.path("a")), "line\n")
	f, err := os.Open(r.path("a"))
	must(t, err)
	defer f.Close()
	if err := unix.Renameat2(unix.AT_FDCWD, r.path("a"), unix.AT_FDCWD, r.path("b"), unix.RENAME_NOREPLACE); err != unix.EINVAL {
		t.Errorf("rename with flags: %v, want EINVAL", err)
	}
	if _, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS); err != unix.ENOTTY {
		t.Errorf("ioctl: %v, want ENOTTY", err)
	}
	if off, err := unix.Seek(int(f.Fd()), 0, unix.SEEK_DATA); off != 0 || err != nil {
		t.Errorf("the first data is at %d, %v", off, err)
	}
	if off, err := unix.Seek(int(f.Fd()), 0, unix.SEEK_HOLE); off != 5 || err != nil {
		t.Errorf("the first hole is at %d, %v; want the end", off, err)
	}
	out, err := os.OpenFile(r.path("copy"), os.O_RDWR|os.O_CREATE, 0o644)
	must(t, err)
	defer out.Close()
	var from int64
	if n, err := unix.CopyFileRange(int(f.Fd()), &from, int(out.Fd()), nil, 5, 0); n != 5 || err != nil {
		t.Errorf("copy_file_range: %d, %v", n, err)
	}
	content(t, r.path("copy"), "line\n")
	r.stop()
}
