package mount

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"ftfuse/internal/failpoint"
)

// newHeldRig is a rig with a holder, whose first worker is killed at a failpoint.
func newHeldRig(t testing.TB, extra, points string) *rig {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	r := newRigStopped(t, extra)
	r.held = true
	if points != "" {
		r.env = []string{failpoint.Env + "=" + points}
	}
	r.start()
	return r
}

// resendCase is something that a program does while the worker is killed in the middle of
// it. It must not notice, and everything is delivered once.
type resendCase struct {
	name   string
	points string // where the worker dies
	once   bool   // the next one finds it done and does not come there
	extra  string
	prep   func(t *testing.T, r *rig)
	do     func(t *testing.T, r *rig)
	want   map[string]string // delivered
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// openFlags opens a file of the mount and closes it at the end of the test.
func openFlags(t testing.TB, path string, flags int) *os.File {
	t.Helper()
	f, err := os.OpenFile(path, flags, 0o644)
	must(t, err)
	openedMu.Lock()
	defer openedMu.Unlock()
	if opened[t] == nil {
		t.Cleanup(func() { closeOpen(t) })
	}
	opened[t] = append(opened[t], f)
	return f
}

func doLines(flags int) func(t *testing.T, r *rig) {
	return func(t *testing.T, r *rig) {
		f := openFlags(t, r.path("a"), flags|os.O_CREATE)
		for i := range 6 {
			put(t, f, fmt.Sprintf("line %d\n", i))
		}
		must(t, f.Close())
		content(t, r.path("a"), sixLines)
	}
}

const sixLines = "line 0\nline 1\nline 2\nline 3\nline 4\nline 5\n"

func doOver(t *testing.T, r *rig) {
	f := openFlags(t, r.path("a"), os.O_RDWR|os.O_CREATE)
	put(t, f, "aaaa\nbbbb\n")
	n, err := f.WriteAt([]byte("XXXX\n"), 0)
	if n != 5 || err != nil {
		t.Fatal(n, err)
	}
	n, err = f.WriteAt([]byte("YYYY\nlonger\n"), 5)
	if n != 12 || err != nil {
		t.Fatal(n, err)
	}
	content(t, r.path("a"), "XXXX\nYYYY\nlonger\n")
}

// doTruncate truncates twice. What is below the first cut can be read back whatever is killed.
func doTruncate(t *testing.T, r *rig) {
	f := openFlags(t, r.path("a"), os.O_WRONLY|os.O_CREATE|os.O_APPEND)
	put(t, f, "one\ntwo\n")
	must(t, os.Truncate(r.path("a"), 4))
	content(t, r.path("a"), "one\n")
	put(t, f, "three\n")
	content(t, r.path("a"), "one\nthree\n")
	must(t, f.Truncate(0))
	put(t, f, "four\n")
	content(t, r.path("a"), "four\n")
}

func prepFiles(t *testing.T, r *rig) {
	must(t, os.WriteFile(r.path("a"), []byte("a\n"), 0o644))
	must(t, os.WriteFile(r.path("b"), []byte("b\n"), 0o644))
	must(t, os.Mkdir(r.path("d"), 0o755))
}

func resendCases() []resendCase {
	a, ab := map[string]string{"a": sixLines}, map[string]string{"a": "a\n", "b": "b\n"}
	over := map[string]string{"a": "aaaa\nbbbb\nXXXX\nYYYY\nlonger\n"}
	cut := map[string]string{"a": "one\ntwo\nthree\nfour\n"}
	appends, rdwr := os.O_WRONLY|os.O_APPEND, os.O_RDWR
	all := []resendCase{
		{name: "write answered by nobody", points: "mount/done-write=kill@3", extra: perWrite, do: doLines(appends), want: a},
		{name: "write noted", points: "spool/noted=kill@3", extra: perWrite, do: doLines(appends), want: a},
		{name: "write written", points: "spool/written=kill@3", extra: perWrite, do: doLines(appends), want: a},
		{name: "write, committed meanwhile", points: "capture/committed=kill@2", extra: perWrite, do: doLines(appends), want: a},
		{name: "synchronous write", points: "mount/done-write=kill@3", extra: perWrite, do: doLines(appends | os.O_SYNC), want: a},
		{name: "write to a file that the kernel may write", points: "mount/done-write=kill@3", do: doLines(rdwr), want: a},
		{name: "synchronous write to such a file", points: "spool/written=kill@3", do: doLines(appends | os.O_SYNC), want: a},
		{name: "open", points: "mount/done-open=kill@2", prep: prepFiles, do: func(t *testing.T, r *rig) {
			content(t, r.path("a"), "a\n")
			put(t, openFlags(t, r.path("a"), appends), "more\n")
			content(t, r.path("a"), "a\nmore\n")
		}, want: map[string]string{"a": "a\nmore\n", "b": "b\n"}},
		{name: "open stored", once: true, points: "session/stored=kill@4", prep: prepFiles, do: func(t *testing.T, r *rig) {
			content(t, r.path("a"), "a\n")
			put(t, openFlags(t, r.path("a"), appends), "more\n")
		}, want: map[string]string{"a": "a\nmore\n", "b": "b\n"}},
		{name: "open of a directory", points: "mount/done-open=kill@1", prep: prepFiles, do: func(t *testing.T, r *rig) {
			if names, err := os.ReadDir(r.point); len(names) != 3 || err != nil {
				t.Fatal(names, err)
			}
		}, want: ab},
		{name: "mkdir", points: "mount/done-mkdir=kill@2", prep: prepFiles, do: func(t *testing.T, r *rig) {
			must(t, os.Mkdir(r.path("e"), 0o750))
			must(t, os.WriteFile(r.path("e/f"), []byte("f\n"), 0o600))
		}, want: map[string]string{"a": "a\n", "b": "b\n", "e/f": "f\n"}},
		{name: "mknod", points: "mount/done-mknod=kill", do: func(t *testing.T, r *rig) {
			must(t, syscall.Mknod(r.path("a"), syscall.S_IFREG|0o600, 0))
		}},
		{name: "unlink", once: true, points: "mount/done-unlink=kill", prep: prepFiles, do: func(t *testing.T, r *rig) {
			must(t, syscall.Unlink(r.path("a")))
		}, want: ab},
		{name: "rmdir", once: true, points: "mount/done-rmdir=kill", prep: prepFiles, do: func(t *testing.T, r *rig) {
			must(t, syscall.Rmdir(r.path("d")))
		}, want: ab},
		{name: "rename over", once: true, points: "mount/done-rename=kill", prep: prepFiles, do: func(t *testing.T, r *rig) {
			must(t, os.Rename(r.path("a"), r.path("b")))
			content(t, r.path("b"), "a\n")
		}, want: ab},
		{name: "rename of a directory", once: true, points: "mount/done-rename=kill", prep: prepFiles, do: func(t *testing.T, r *rig) {
			must(t, os.WriteFile(r.path("d/x"), []byte("x\n"), 0o644))
			must(t, os.Rename(r.path("d"), r.path("e")))
			content(t, r.path("e/x"), "x\n")
		}, want: map[string]string{"a": "a\n", "b": "b\n", "d/x": "x\n"}},
		{name: "chmod", points: "mount/done-setattr=kill", prep: prepFiles, do: func(t *testing.T, r *rig) {
			must(t, os.Chmod(r.path("a"), 0o600))
		}, want: ab},
		{name: "fallocate", points: "mount/done-allocate=kill", do: func(t *testing.T, r *rig) {
			f := openFlags(t, r.path("a"), rdwr|os.O_CREATE)
			must(t, syscall.Fallocate(int(f.Fd()), 0, 0, 10))
			put(t, openFlags(t, r.path("a"), appends), "x\n")
			content(t, r.path("a"), string(make([]byte, 10))+"x\n")
		}, want: map[string]string{"a": "x\n"}},
		{name: "fsync", points: "mount/done-fsync=kill", do: func(t *testing.T, r *rig) {
			f := openFlags(t, r.path("a"), appends|os.O_CREATE)
			put(t, f, "x\n")
			must(t, f.Sync())
		}, want: map[string]string{"a": "x\n"}},
		{name: "flush", points: "mount/done-flush=kill@2", do: doLines(appends), want: a},
		{name: "lock", points: "mount/done-lock=kill", prep: prepFiles, do: func(t *testing.T, r *rig) {
			f, g := openFlags(t, r.path("a"), rdwr), openFlags(t, r.path("a"), rdwr)
			must(t, syscall.Flock(int(f.Fd()), syscall.LOCK_EX))
			if err := syscall.Flock(int(g.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != syscall.EWOULDBLOCK {
				t.Fatal(err)
			}
			must(t, syscall.Flock(int(f.Fd()), syscall.LOCK_UN))
			must(t, syscall.Flock(int(g.Fd()), syscall.LOCK_EX))
		}, want: ab},
	}
	for _, extra := range []string{"", perWrite} {
		mode := "open"
		if extra != "" {
			mode = "write"
		}
		for _, one := range []resendCase{
			{name: "create", points: "mount/done-create=kill", do: doLines(appends | os.O_EXCL), want: a},
			{name: "create stored", points: "session/stored=kill", do: doLines(appends | os.O_EXCL), want: a},
			{name: "release", points: "mount/done-release=kill@2", prep: prepFiles, do: doLines(appends | os.O_TRUNC), want: map[string]string{"a": "a\n" + sixLines, "b": "b\n"}},
			{name: "release noted", points: "mount/released=kill@3", prep: prepFiles, do: doLines(appends | os.O_TRUNC), want: map[string]string{"a": "a\n" + sixLines, "b": "b\n"}},
			{name: "overwrite committed", points: "capture/overwrite=kill", do: doOver, want: over},
			{name: "overwrite done", points: "mount/done-write=kill@2", do: doOver, want: over},
			{name: "overwrite over the end committed", once: true, points: "capture/overwrite=kill@2", do: doOver, want: over},
			{name: "overwrite over the end done", points: "mount/done-write=kill@3", do: doOver, want: over},
			{name: "truncation intended", points: "capture/intent=kill", do: doTruncate, want: cut},
			{name: "truncation cut", points: "spool/truncated=kill", do: doTruncate, want: cut},
			{name: "truncation done", points: "mount/done-truncate=kill", do: doTruncate, want: cut},
			{name: "second truncation done", points: "mount/done-truncate=kill@2", do: doTruncate, want: cut},
		} {
			one.name, one.extra = one.name+", "+mode, extra
			all = append(all, one)
		}
	}
	return all
}

// TestResent: the worker is killed between an effect and its reply, or in the middle of an
// operation, while a holder keeps the connection. The next worker is asked again.
func TestResent(t *testing.T) {
	t.Parallel()
	for _, c := range resendCases() {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			r := newHeldRig(t, c.extra, c.points)
			c.run(t, r, 1)
		})
	}
}

// run does what the case is of, in which so many workers are killed, and checks what comes
// of it.
func (c *resendCase) run(t *testing.T, r *rig, kills int) {
	t.Helper()
	if c.prep != nil {
		c.prep(t, r)
	}
	c.do(t, r)
	r.awaitKilled(kills)
	closeOpen(t)
	nothingOpen(t, r)
	r.stop()
	if n, _ := r.killed(); n != kills {
		t.Errorf("%d workers were killed, want %d", n, kills)
	}
	got := r.delivered()
	for path, want := range c.want {
		if got[path] != want {
			t.Errorf("captured of %q: %s, want %s", path, brief(got[path]), brief(want))
		}
	}
	if len(got) != len(c.want) {
		t.Errorf("captured: %q", got)
	}
}

// TestAnOverwritePastTheEndOutlivesTwoKills: the first between its commit and its pwrite. What
// the second worker wrote behind the position counted as bytes without notes for the third,
// and was delivered again.
func TestAnOverwritePastTheEndOutlivesTwoKills(t *testing.T) {
	r := newHeldRig(t, perWrite, "capture/overwrite=kill@2")
	doOver(t, r)
	r.awaitReadies(2)
	r.killWorker()
	put(t, openFlags(t, r.path("a"), os.O_WRONLY|os.O_APPEND), "end\n")
	closeOpen(t)
	r.stop()
	r.wantDelivered("a", "aaaa\nbbbb\nXXXX\nYYYY\nlonger\nend\n")
}

// opened are the files that openFlags opened, by test.
var (
	openedMu sync.Mutex
	opened   = map[testing.TB][]*os.File{}
)

// closeOpen closes what the test has opened.
func closeOpen(t testing.TB) {
	openedMu.Lock()
	files := opened[t]
	delete(opened, t)
	openedMu.Unlock()
	for _, f := range files {
		f.Close()
	}
}

// nothingOpen waits until the worker has no spool file open: no handle was forgotten.
func nothingOpen(t *testing.T, r *rig) {
	t.Helper()
	pids := r.readies()
	dir := fmt.Sprintf("/proc/%d/fd", pids[len(pids)-1])
	for limit := time.Now().Add(10 * time.Second); ; time.Sleep(2 * time.Millisecond) { // there is no event for it
		var open []string
		list, err := os.ReadDir(dir)
		must(t, err)
		for _, e := range list {
			if to, err := os.Readlink(filepath.Join(dir, e.Name())); err == nil && strings.Contains(to, "/mount/spool/") {
				open = append(open, to)
			}
		}
		if len(open) == 0 {
			return
		}
		if time.Now().After(limit) {
			t.Fatalf("the worker still has open: %v", open)
		}
	}
}
