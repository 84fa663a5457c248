package mount

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ftfuse/internal/failpoint"
	"ftfuse/mount/spool"
)

// What was written before a name changed is delivered once, under the path by which it was
// opened, whether it was in the queue by then or not.

// nameChanges are what can happen to the name DIR/a.
var nameChanges = map[string]func(r *rig, dir string) error{
	"rename":  func(r *rig, dir string) error { return os.Rename(r.path(dir+"/a"), r.path(dir+"/a.1")) },
	"unlink":  func(r *rig, dir string) error { return os.Remove(r.path(dir + "/a")) },
	"replace": func(r *rig, dir string) error { return os.Rename(r.path(dir+"/new"), r.path(dir+"/a")) },
	"folder":  func(r *rig, dir string) error { return os.Rename(r.path(dir), r.path(dir+"-1")) },
}

// newBehindRig is a rig with a holder whose first worker's capture stops before it gives
// anything to the queue. It has a ring of so many notes, and a directory for each change of
// names for files of both attributions.
func newBehindRig(t *testing.T, ring uint64) (r *rig, dirs map[string]func(r *rig, dir string) error) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	r = newRigStopped(t, "[[mount.rule]]\npath = \"write-*/**\"\nattribution = \"write\"\n")
	r.held, r.env = true, []string{failpoint.Env + "=capture/seal=pause@2"}
	s, err := spool.Open(filepath.Join(r.dir, "state", "mount"), spool.Options{Entries: ring})
	must(t, err)
	must(t, s.Close())
	r.start()
	must(t, os.Mkdir(r.path("write-fill"), 0o755))
	dirs = map[string]func(r *rig, dir string) error{}
	for what, change := range nameChanges {
		for _, attribution := range []string{"open", "write"} {
			dir := attribution + "-" + what
			dirs[dir] = change
			must(t, os.Mkdir(r.path(dir), 0o755))
			for _, name := range []string{"/a", "/new"} {
				must(t, unix.Mknod(r.path(dir+name), unix.S_IFREG|0o644, 0)) // without a note
			}
		}
	}
	return r, dirs
}

// change does all changes of names at the same time, and returns which were refused.
func (r *rig) change(dirs map[string]func(r *rig, dir string) error) (busy map[string]bool) {
	r.t.Helper()
	busy = map[string]bool{}
	var mu sync.Mutex
	var wg sync.WaitGroup
	for dir, change := range dirs {
		wg.Go(func() {
			err := change(r, dir)
			if err != nil && !isErrno(err, unix.EBUSY) {
				r.t.Errorf("%s: %v", dir, err)
			}
			mu.Lock()
			defer mu.Unlock()
			busy[dir] = err != nil
		})
	}
	wg.Wait()
	return busy
}

func (r *rig) wantAll(want map[string]string) {
	r.t.Helper()
	if got := r.delivered(); !maps.Equal(got, want) {
		r.t.Errorf("captured %q, want %q", got, want)
	}
}

// TestBytesKeepTheirPathThoughTheNameChangesBeforeTheyAreCaptured: a change of names waits for
// a second at most, and not at all for a file that was closed, or whose folder it is. Then
// the worker is killed with nothing in the queue.
func TestBytesKeepTheirPathThoughTheNameChangesBeforeTheyAreCaptured(t *testing.T) {
	for _, open := range []bool{false, true} {
		t.Run(fmt.Sprintf("open=%t", open), func(t *testing.T) {
			t.Parallel()
			r, dirs := newBehindRig(t, 1024)
			want := map[string]string{}
			files := map[string]*os.File{}
			for dir := range dirs {
				f := openFlags(t, r.path(dir+"/a"), os.O_WRONLY|os.O_APPEND)
				put(t, f, "one of "+dir+"\n")
				put(t, f, "two\n")
				want[dir+"/a"] = "one of " + dir + "\ntwo\n"
				if files[dir] = f; !open {
					must(t, f.Close())
				}
			}
			begun := time.Now()
			for dir, busy := range r.change(dirs) {
				if busy {
					t.Errorf("%s: EBUSY", dir)
				}
			}
			if took := time.Since(begun); took > 20*time.Second { // about a second on an idle machine
				t.Errorf("the names changed after %v", took)
			}
			if waits := open && os.Getenv(envCapture) != "daemon"; r.logged("not all that was written") != waits {
				t.Errorf("a wait in vain is logged: %t", !waits)
			}
			r.killWorker()
			for dir, f := range files {
				if open {
					put(t, f, "three\n")
					want[dir+"/a"] += "three\n"
				}
			}
			closeOpen(t)
			r.stop()
			r.wantAll(want)
		})
	}
}

// TestAFileThatWasOpenedAtAFullRingWasTakenByItsNewName: who opens a file is noted when the
// ring has a place again. What was written to one that was closed before, and then got another
// name or none, was taken by that at the next start.
func TestAFileThatWasOpenedAtAFullRingWasTakenByItsNewName(t *testing.T) {
	needPassthrough(t)
	r, dirs := newBehindRig(t, 16)
	want := map[string]string{"write-fill/a": fillRing(t, r.path("write-fill/a"))}
	for dir := range dirs {
		if dir[:4] != "open" {
			delete(dirs, dir) // has to wait for the ring
			continue
		}
		f := appender(t, r.path(dir+"/a"))
		put(t, f, "one\n")
		must(t, f.Close())
		want[dir+"/a"] = "one\n"
	}
	for dir, busy := range r.change(dirs) {
		if !busy {
			t.Errorf("%s was done", dir)
		}
	}
	r.killWorker()
	r.stop()
	r.wantAll(want)
}

// fillRing appends to a file that the daemon serves until the journal has no place, and
// returns what was taken.
func fillRing(t *testing.T, path string) (taken string) {
	t.Helper()
	fd, err := unix.Open(path, unix.O_WRONLY|unix.O_CREAT|unix.O_APPEND|unix.O_NONBLOCK|unix.O_CLOEXEC, 0o644)
	must(t, err)
	defer unix.Close(fd)
	for {
		switch n, err := unix.Write(fd, []byte("fill\n")); {
		case err == unix.EAGAIN:
			return taken
		case err == nil:
			taken += "fill\n"[:n]
		case err != unix.EINTR:
			t.Fatal(err)
		}
	}
}
