package kernel

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// What the kernel does and does not, as DESIGN.md section 4 tells it, one test each. A
// kernel that does otherwise breaks what is built on this package.

// TestOnlyAppendWritersGoThrough: readers and other writers have passthrough and direct
// I/O, and the server answers each of their reads and writes, beside a kernel writer and
// in either order of the opens.
func TestOnlyAppendWritersGoThrough(t *testing.T) {
	for _, first := range []string{"append", "others"} {
		t.Run(first, func(t *testing.T) {
			r := newRig(t)
			p := r.program()
			var app, rd, wr int
			if first == "append" {
				app = p.open("a", appending)
			}
			rd = p.open("a", unix.O_CREAT|unix.O_RDONLY)
			wr = p.open("a", unix.O_RDWR)
			if first != "append" {
				app = p.open("a", appending)
			}
			p.want("ok 4", "write", app, "app")
			p.want("ok 4", "read", rd, 100)
			p.want("ok 3", "write", wr, "rw")
			p.want("ok 7", "read", wr, 100)
			p.want("ok 4", "write", app, "end")
			r.settle()
			if n, m := r.heard("WRITE a 3"), r.heard("WRITE a"); n != 1 || m != 1 {
				t.Errorf("the server had %d writes, %d of them the right one", m, n)
			}
			if n := r.heard("READ a"); n < 2 {
				t.Errorf("the server had %d reads", n)
			}
			if got := r.behind("a"); got != "app\nrw\nend\n" {
				t.Errorf("behind: %q", got)
			}
		})
	}
}

// TestAPlainOpenBesidePassthroughIsEIO: the file must be answered with passthrough for
// everybody while a kernel handle of it is open, cached or not.
func TestAPlainOpenBesidePassthroughIsEIO(t *testing.T) {
	r := newRig(t)
	p := r.program()
	fd := p.open("mix", appending)
	p.want("EIO", "open", "mix", unix.O_RDONLY|unix.O_NOATIME)
	p.want("ok 0", "close", fd)
	r.settle()
	fd = p.open("mix", unix.O_RDONLY|unix.O_NOATIME) // alone it is as good as any
	p.want("ok 0", "close", fd)
}

// TestOneBackingIDForAnInode: a second one, also of the same file, is refused while the
// first is in use.
func TestOneBackingIDForAnInode(t *testing.T) {
	r := newRig(t)
	p := r.program()
	fd := p.open("two", appending)
	if got := p.do("open", "two", unix.O_WRONLY|unix.O_APPEND); strings.HasPrefix(got, "ok") {
		t.Error("a second backing id of one inode was taken")
	}
	p.want("ok 2", "write", fd, "x")
}

// TestAppendCannotBeUndone: the kernel's own descriptor of the backing file has O_APPEND
// whatever F_SETFL does to the program's, so no byte that was captured is written over.
func TestAppendCannotBeUndone(t *testing.T) {
	r := newRig(t)
	p := r.program()
	fd := p.open("a", appending)
	p.want("ok 6", "write", fd, "first")
	p.do("setfl", fd, 0)
	p.want("ok 7", "write", fd, "second")
	p.want("ok 6", "pwrite", fd, "third", 0)
	if got := r.behind("a"); got != "first\nsecond\nthird\n" {
		t.Errorf("behind: %q", got)
	}
}

// TestTruncationIsSetattrAndHoldsTheWriters: ftruncate(2) and O_TRUNC come as SETATTR
// before they take effect, and no kernel write of the file happens until it is answered.
// The same holds for a SETATTR of times: with it writers are slowed down.
func TestTruncationIsSetattrAndHoldsTheWriters(t *testing.T) {
	for _, by := range []string{"ftruncate", "O_TRUNC", "utimes"} {
		t.Run(by, func(t *testing.T) {
			r := newRig(t)
			app, other := r.program(), r.program()
			fd := app.open("hang-a", appending)
			app.want("ok 4", "write", fd, "one")
			switch by {
			case "ftruncate":
				other.start("truncate", other.open("hang-a", unix.O_RDWR), 0)
			case "O_TRUNC":
				other.start("open", "hang-a", unix.O_RDWR|unix.O_TRUNC)
			case "utimes":
				other.start("touch", "hang-a")
			}
			line := r.await("SETATTR hang-a")
			if want := by != "utimes"; strings.Contains(line, "size=true") != want {
				t.Errorf("%s is %q", by, line)
			}
			app.start("write", fd, "two")
			app.waits(50 * time.Millisecond)
			if got := r.behind("hang-a"); got != "one\n" {
				t.Errorf("behind the held file: %q", got)
			}
			// Another file is not held.
			free := r.program()
			free.want("ok 2", "write", free.open("b", appending), "b")
			r.kill() // the next server gets the SETATTR again, and answers
			r.serve()
			r.await(strings.TrimSuffix(line, "\n") + " resent")
			other.result()
			if got := app.result(); got != "ok 4" {
				t.Errorf("the held write: %s", got)
			}
			want := "two\n"
			if by == "utimes" {
				want = "one\ntwo\n"
			}
			if got := r.behind("hang-a"); got != want {
				t.Errorf("behind: %q, want %q", got, want)
			}
			for _, line := range r.all {
				if strings.Contains(line, "trunc=true") {
					t.Error("O_TRUNC came with the OPEN: ATOMIC_O_TRUNC was agreed on")
				}
			}
		})
	}
}

// TestWhatIsNotAskedFor: what loses data or goes wrong beside passthrough.
func TestWhatIsNotAskedFor(t *testing.T) {
	r := newRig(t)
	text, err := os.ReadFile(filepath.Join(r.dir, ".state"))
	if err != nil {
		t.Fatal(err)
	}
	_, reply, err := decodeState(text)
	if err != nil {
		t.Fatal(err)
	}
	for name, bit := range map[string]uint32{"ATOMIC_O_TRUNC": 1 << 3, "WRITEBACK_CACHE": 1 << 16} {
		if ne.Uint32(reply[outFlags:])&bit != 0 {
			t.Error(name + " was agreed on")
		}
	}
	if ne.Uint32(reply[outFlags2:])&(1<<4) != 0 {
		t.Error("DIRECT_IO_ALLOW_MMAP was agreed on")
	}
}

// TestAppendersOutliveServerAndHolder: nobody holds /dev/fuse any more. Descriptors that
// are open go on writing to the backing file; all else fails. A lease tells whether there
// is such an orphan.
func TestAppendersOutliveServerAndHolder(t *testing.T) {
	r := newRig(t)
	p := r.program()
	fd := p.open("a", appending)
	p.want("ok 7", "write", fd, "before")
	r.kill()
	r.drop()
	p.want("ok 1000", "many", fd, "orphan", 1000)
	p.want("ENOTCONN", "fsync", fd)
	p.want("ENOTCONN", "open", "a", unix.O_WRONLY|unix.O_APPEND)
	if got, want := r.behind("a"), "before\n"+strings.Repeat("orphan\n", 1000); got != want {
		t.Errorf("%d bytes behind, want %d", len(got), len(want))
	}
	if err := lease(filepath.Join(r.dir, "a")); err != unix.EAGAIN {
		t.Errorf("a lease beside an orphan: %v, want EAGAIN", err)
	}
	p.do("close", fd) // says that the FLUSH failed, and closes
	if err := lease(filepath.Join(r.dir, "a")); err != nil {
		t.Errorf("a lease after it: %v", err)
	}
}

// TestABackingFileIsNoWriter: a registered backing file, opened for reading only, does
// not look like an orphan. One opened for writing would, for as long as the connection.
func TestABackingFileIsNoWriter(t *testing.T) {
	r := newRig(t)
	p := r.program()
	fd := p.open("a", appending)
	if err := lease(filepath.Join(r.dir, "a")); err != unix.EAGAIN {
		t.Errorf("a lease beside a kernel writer: %v, want EAGAIN", err)
	}
	p.want("ok 0", "close", fd)
	r.settle() // RELEASE comes first
	if err := lease(filepath.Join(r.dir, "a")); err != nil {
		t.Errorf("a lease while the backing id is open: %v", err)
	}
}

// lease takes a read lease on a file and gives it up.
func lease(name string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = unix.FcntlInt(f.Fd(), unix.F_SETLEASE, unix.F_RDLCK)
	return err
}

// TestTheHolderMustHaveNoFileOfItsMount: whoever has a file of the mount open cannot start
// a child while nobody serves: the child closes its copies at its exec, each close sends
// a FLUSH, and the parent waits for the exec.
func TestTheHolderMustHaveNoFileOfItsMount(t *testing.T) {
	r := newRig(t)
	p := r.program()
	p.open("a", appending)
	p.want("ok 0", "exec")
	r.kill()
	p.start("exec")
	p.waits(50 * time.Millisecond)
	r.serve()
	if got := p.result(); got != "ok 0" {
		t.Error(got)
	}
}

// TestTheStickyBitIsShown: the library alone drops it.
func TestTheStickyBitIsShown(t *testing.T) {
	r := newRig(t)
	p := r.program()
	p.want("ok 17407", "stat", ".") // 041777
}

// TestAStackedFileSystemIsRefused, by the kernel and so by Probe: the spool on overlayfs,
// as in a container.
func TestAStackedFileSystemIsRefused(t *testing.T) {
	r := newRig(t)
	_ = r
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	for _, sub := range []string{"lower", "upper", "work", "merged"} {
		if err := os.Mkdir(filepath.Join(dir, sub), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	merged := filepath.Join(dir, "merged")
	opts := "lowerdir=" + filepath.Join(dir, "lower") + ",upperdir=" + filepath.Join(dir, "upper") + ",workdir=" + filepath.Join(dir, "work")
	if err := unix.Mount("overlay", merged, "overlay", 0, opts); err != nil {
		t.Skip("no overlayfs here: ", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(merged, unix.MNT_DETACH) })
	if err := try(merged); err == nil {
		t.Error("the kernel takes a backing file on overlayfs")
	}
	if s := Probe(merged); s.Passthrough || !strings.Contains(s.Why, "overlayfs") {
		t.Errorf("Probe: %+v", s)
	}
	if s := Probe(filepath.Join(dir, "upper")); !s.Passthrough {
		t.Errorf("Probe of the tmpfs below: %+v", s)
	}
}
