package output

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// eachRoot runs a test with openat2 and with the walk for old kernels.
func eachRoot(t *testing.T, run func(t *testing.T, r *Root)) {
	for name, o := range map[string]Options{"openat2": {}, "walk": {NoOpenat2: true}} {
		t.Run(name, func(t *testing.T) {
			r, err := OpenRoot(filepath.Join(t.TempDir(), "a", "root"), o)
			must(t, err)
			defer r.Close()
			if name == "openat2" && r.o.NoOpenat2 {
				t.Skip("this kernel has no openat2")
			}
			run(t, r)
		})
	}
}

func write(t testing.TB, r *Root, name, data string) *File {
	t.Helper()
	f, err := r.Open(name)
	must(t, err)
	_, n, err := f.Append([][]byte{[]byte(data)})
	if err != nil || int(n) != len(data) {
		t.Fatalf("append: %d, %v", n, err)
	}
	return f
}

func TestOpenMakesDirectories(t *testing.T) {
	eachRoot(t, func(t *testing.T, r *Root) {
		old := unix.Umask(0o022)
		defer unix.Umask(old)
		write(t, r, "x/y/z/file", "one").Close()
		write(t, r, "x/y/z/file", "two").Close()
		got, err := os.ReadFile(r.Path("x/y/z/file"))
		if err != nil || string(got) != "onetwo" {
			t.Errorf("file has %q, %v", got, err)
		}
		for name, mode := range map[string]os.FileMode{"x": 0o755, "x/y/z/file": 0o644} {
			if i, err := os.Stat(r.Path(name)); err != nil || i.Mode().Perm() != mode {
				t.Errorf("%s: %v, %v, want mode %o", name, i.Mode(), err, mode)
			}
		}
		must(t, r.SyncDirs())
	})
}

// TestNothingLeavesTheRoot tries every way out, and every kind of thing that is no file.
func TestNothingLeavesTheRoot(t *testing.T) {
	eachRoot(t, func(t *testing.T, r *Root) {
		outside := t.TempDir()
		must(t, os.WriteFile(outside+"/secret", []byte("secret"), 0o600))
		must(t, os.Symlink(outside, r.Path("out")))
		must(t, os.Symlink(outside+"/secret", r.Path("link")))
		must(t, os.Symlink("file", r.Path("inner")))
		must(t, os.Symlink("nowhere", r.Path("dangling")))
		must(t, os.Mkdir(r.Path("dir"), 0o755))
		must(t, os.Symlink("dir", r.Path("dirlink")))
		must(t, os.WriteFile(r.Path("file"), nil, 0o644))
		must(t, unix.Mkfifo(r.Path("fifo"), 0o644))
		must(t, unix.Mknod(r.Path("null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
		for name, reason := range map[string]string{
			"": ReasonName, ".": ReasonName, "..": ReasonName, "../x": ReasonName, "dir/../../x": ReasonName,
			"/etc/passwd": ReasonName, "dir//x": ReasonName, "dir/": ReasonName, "a\x00b": ReasonName,
			"out/secret": ReasonLink, "out/new": ReasonLink, "link": ReasonLink, "inner": ReasonLink, "dangling": ReasonLink, "dirlink/x": ReasonLink,
			"dir": ReasonIsDir, "file/x": ReasonNotDir, "fifo": ReasonSpecial, "null": ReasonSpecial, "fifo/x": ReasonNotDir,
			strings.Repeat("x", 256): ReasonTooLong, strings.Repeat("x/", 2048): ReasonTooLong,
		} {
			for verb, try := range map[string]func() error{
				"open": func() error { _, err := r.Open(name); return err },
				"stat": func() error { _, err := r.Stat(name); return err },
			} {
				err := try()
				var refused *RefusedError
				if !errors.As(err, &refused) || refused.Reason != reason {
					t.Errorf("%s %.40q: %v, want it refused as %s", verb, name, err, reason)
				}
			}
		}
		if left, _ := os.ReadDir(outside); len(left) != 1 {
			t.Errorf("outside has %v", left)
		}
	})
}

func TestMissingFileIsNotRefused(t *testing.T) {
	eachRoot(t, func(t *testing.T, r *Root) {
		if _, err := r.Stat("no/such/file"); !errors.Is(err, unix.ENOENT) || errors.Is(err, ErrRefused) {
			t.Errorf("stat of a missing file: %v", err)
		}
	})
}

func TestOpenIDFindsARenamedFile(t *testing.T) {
	eachRoot(t, func(t *testing.T, r *Root) {
		for _, dir := range []string{"", "d/"} {
			f := write(t, r, dir+"log", "one")
			f.Close()
			for i := range 500 { // more than one getdents
				must(t, os.WriteFile(r.Path(fmt.Sprintf("%sother-file-%d", dir, i)), nil, 0o644))
			}
			must(t, os.Rename(r.Path(dir+"log"), r.Path(dir+"log.1")))
			write(t, r, dir+"log", "new").Close()
			found, err := r.OpenID(dir+"log", f.ID())
			must(t, err)
			if found.ID() != f.ID() {
				t.Errorf("found %v, want %v", found.ID(), f.ID())
			}
			found.Close()
			must(t, os.Remove(r.Path(dir+"log.1")))
			if _, err := r.OpenID(dir+"log", f.ID()); !errors.Is(err, ErrGone) {
				t.Errorf("a removed file: %v, want ErrGone", err)
			}
		}
		if _, err := r.OpenID("no/dir/log", ID{Ino: 1}); !errors.Is(err, ErrGone) {
			t.Errorf("in a directory that is gone: %v, want ErrGone", err)
		}
	})
}

// TestReusedInodeIsAnotherFile: ext4 gives the number of a removed file to the next one.
func TestReusedInodeIsAnotherFile(t *testing.T) {
	r, err := OpenRoot(t.TempDir(), Options{})
	must(t, err)
	defer r.Close()
	seen := map[uint64]ID{}
	reused := 0
	for range 200 {
		f := write(t, r, "f", "x")
		if old, ok := seen[f.ID().Ino]; ok {
			if reused++; old == f.ID() {
				t.Fatalf("two files are %v", old)
			}
		}
		seen[f.ID().Ino] = f.ID()
		f.Close()
		must(t, os.Remove(r.Path("f")))
	}
	t.Logf("%d inode numbers were reused", reused)
}

// TestAppendTellsWhereItLanded, also while others append and truncate.
func TestAppendTellsWhereItLanded(t *testing.T) {
	r, err := OpenRoot(t.TempDir(), Options{})
	must(t, err)
	defer r.Close()
	var wg sync.WaitGroup
	type piece struct {
		at   int64
		text string
	}
	pieces := make(chan piece, 4000)
	for w := range 4 {
		wg.Go(func() {
			f, err := r.Open("f")
			if err != nil {
				t.Error(err)
				return
			}
			defer f.Close()
			for i := range 1000 {
				text := fmt.Sprintf("<%d:%d>", w, i)
				at, n, err := f.Append([][]byte{[]byte(text[:2]), []byte(text[2:])})
				if err != nil || n != int64(len(text)) {
					t.Errorf("append: %d, %v", n, err)
				}
				pieces <- piece{at, text}
			}
		})
	}
	wg.Wait()
	close(pieces)
	raw, err := os.ReadFile(r.Path("f"))
	must(t, err)
	for p := range pieces {
		if got := string(raw[p.at : p.at+int64(len(p.text))]); got != p.text {
			t.Fatalf("at %d stands %q, want %q", p.at, got, p.text)
		}
	}
	f := write(t, r, "f", "x")
	defer f.Close()
	must(t, os.Truncate(r.Path("f"), 3))
	if at, _, err := f.Append([][]byte{[]byte("y")}); err != nil || at != 3 {
		t.Errorf("after a truncation it landed at %d, %v, want 3", at, err)
	}
}

func TestAppendTakesAnyNumberOfPieces(t *testing.T) {
	r, err := OpenRoot(t.TempDir(), Options{})
	must(t, err)
	defer r.Close()
	f, err := r.Open("f")
	must(t, err)
	defer f.Close()
	var vecs [][]byte
	var want strings.Builder
	for i := range 5000 {
		vecs = append(vecs, fmt.Appendf(nil, "%d,", i))
		fmt.Fprintf(&want, "%d,", i)
	}
	for len(vecs) > 0 {
		_, n, err := f.Append(vecs)
		must(t, err)
		vecs = Skip(vecs, n)
	}
	if got, _ := os.ReadFile(r.Path("f")); string(got) != want.String() {
		t.Error("the pieces are not in their order")
	}
}

func TestSkip(t *testing.T) {
	vecs := [][]byte{[]byte("abc"), []byte("de"), []byte("f")}
	for n, want := range []string{"abcdef", "bcdef", "cdef", "def", "ef", "f", ""} {
		got := ""
		for _, v := range Skip(vecs, int64(n)) {
			got += string(v)
		}
		if got != want {
			t.Errorf("without %d bytes: %q, want %q", n, got, want)
		}
	}
}

func TestSecondOwnerOfADirectory(t *testing.T) {
	dir := t.TempDir()
	r, err := OpenRoot(dir, Options{})
	must(t, err)
	if _, err := OpenRoot(dir, Options{}); !errors.Is(err, ErrLocked) {
		t.Errorf("a second owner: %v, want ErrLocked", err)
	}
	must(t, r.Close())
	r, err = OpenRoot(dir, Options{})
	must(t, err)
	r.Close()
}

// TestAProcessThatWasBeingStartedKeptTheDirectory: it has all that is open for a moment, also what
// is closed meanwhile.
func TestAProcessThatWasBeingStartedKeptTheDirectory(t *testing.T) {
	dir := t.TempDir()
	r, err := OpenRoot(dir, Options{})
	must(t, err)
	child, err := unix.FcntlInt(uintptr(r.fd), unix.F_DUPFD_CLOEXEC, 0)
	must(t, err)
	defer unix.Close(child)
	must(t, r.Close())
	r, err = OpenRoot(dir, Options{})
	must(t, err)
	must(t, r.Close())
}

// TestRootThatWasMovedAway: the operator moved the directory, or removed it: the next
// file is below the directory that has the name.
func TestRootThatWasMovedAway(t *testing.T) {
	eachRoot(t, func(t *testing.T, r *Root) {
		write(t, r, "d/f", "one").Close()
		must(t, os.Rename(r.Dir(), r.Dir()+".old"))
		must(t, r.Revive())
		write(t, r, "d/f", "two").Close()
		must(t, os.RemoveAll(r.Dir()))
		must(t, r.Revive())
		write(t, r, "d/f", "three").Close()
		if got, _ := os.ReadFile(r.Path("d/f")); string(got) != "three" {
			t.Errorf("file has %q", got)
		}
		if got, _ := os.ReadFile(r.Dir() + ".old/d/f"); string(got) != "one" {
			t.Errorf("the old file has %q", got)
		}
		if _, err := OpenRoot(r.Dir(), Options{}); !errors.Is(err, ErrLocked) {
			t.Errorf("a second owner of the new directory: %v, want ErrLocked", err)
		}
		must(t, r.Revive())
	})
}

func TestCacheKeepsItsLimit(t *testing.T) {
	r, err := OpenRoot(t.TempDir(), Options{})
	must(t, err)
	defer r.Close()
	evicted := 0
	c := NewCache(4, func(*Slot, *File) error { evicted++; return nil })
	slots := make([]Slot, 10)
	for round := range 3 {
		for i := range slots {
			f, err := c.Pin(&slots[i], func() (*File, error) { return r.Open(fmt.Sprint(i)) })
			must(t, err)
			if _, _, err := f.Append([][]byte{[]byte("x")}); err != nil {
				t.Fatal(err)
			}
			if i%2 == 0 { // pinned twice is open until both are gone
				if c.PinOpen(&slots[i]) == nil {
					t.Fatal("a pinned file is closed")
				}
				must(t, c.Unpin(f))
			}
			must(t, c.Unpin(f))
			if c.Len() > 4 {
				t.Fatalf("%d files are open", c.Len())
			}
		}
		for i := range slots {
			if got, _ := os.ReadFile(r.Path(fmt.Sprint(i))); len(got) != round+1 {
				t.Errorf("file %d has %d bytes", i, len(got))
			}
		}
	}
	if evicted != 26 {
		t.Errorf("%d files were closed to make room, want 26", evicted)
	}
	must(t, c.Close())
	if c.Len() != 0 {
		t.Errorf("%d files are open after Close", c.Len())
	}
}

// TestDropWhilePinned: the slot takes another file at once, and the first is closed by
// the last who has it.
func TestDropWhilePinned(t *testing.T) {
	r, err := OpenRoot(t.TempDir(), Options{})
	must(t, err)
	defer r.Close()
	c := NewCache(4, nil)
	var s Slot
	one, err := c.Pin(&s, func() (*File, error) { return r.Open("one") })
	must(t, err)
	must(t, c.Drop(&s))
	two, err := c.Pin(&s, func() (*File, error) { return r.Open("two") })
	must(t, err)
	if two == one || two.Path() != r.Path("two") || c.Len() != 2 {
		t.Errorf("after Drop the slot has %q, %d files are open", two.Path(), c.Len())
	}
	if _, err := one.Stat(); err != nil {
		t.Errorf("the pinned file: %v", err)
	}
	must(t, c.Unpin(one))
	must(t, c.Unpin(two))
	if c.Len() != 1 {
		t.Errorf("%d files are open, want 1", c.Len())
	}
	must(t, c.Close())
}
