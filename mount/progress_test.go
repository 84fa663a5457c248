package mount

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"ftfuse/internal/failpoint"
)

// TestAHangingRequestLoopIsReplaced: the worker's process ran, and answered its holder, while
// its request loop was in one request for ever, and with it every program on the mount.
func TestAHangingRequestLoopIsReplaced(t *testing.T) {
	r := newRigStopped(t, "holder_timeout = \"10s\"\n")
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	r.held = true
	r.env = []string{failpoint.Env + "=mount/done-mkdir=pause@2", envHang + "=500ms"}
	r.start()
	must(t, os.Mkdir(r.path("a"), 0o755))
	must(t, os.Mkdir(r.path("b"), 0o755)) // answered by the second worker, where it is the first
	must(t, os.WriteFile(r.path("b/c"), []byte("line\n"), 0o644))
	if n := len(r.readies()); n != 2 {
		t.Errorf("%d workers, want 2", n)
	}
	if !r.logged("the request loop hangs") || !r.logged("it has not answered") {
		t.Error("nobody says why")
	}
	r.stop()
	r.wantDelivered("b/c", "line\n")
}

func TestProgressTellsIdleFromStuck(t *testing.T) {
	var p progress
	now := time.Now()
	look := func(want time.Duration) {
		t.Helper()
		now = now.Add(time.Second)
		if got := p.inOne(now); got != want {
			t.Errorf("in one request for %v, want %v", got, want)
		}
	}
	for range 3 { // idle
		look(0)
	}
	for range 3 { // busy: another request at each look
		p.turn()
		look(0)
		p.turn()
		look(0)
		p.turn()
		p.turn()
	}
	p.turn()
	look(0)
	look(time.Second)
	look(2 * time.Second)
	p.turn()
	look(0)
	p.turn()
	look(0)
}

func TestWaitingForTheDiskIsSeenInAnyThread(t *testing.T) {
	dir := t.TempDir()
	thread := func(tid, stat string) {
		must(t, os.MkdirAll(filepath.Join(dir, tid), 0o755))
		must(t, os.WriteFile(filepath.Join(dir, tid, "stat"), []byte(stat), 0o644))
	}
	thread("1", "1 (ftfuse) S 0 1 1")
	thread("2", "2 (a) D) R 0 1 1")
	if waitsForDisk(dir) {
		t.Error("threads that run and sleep wait for a disk")
	}
	thread("3", "3 (a) S) D 0 1 1")
	if !waitsForDisk(dir) {
		t.Error("a thread that waits for a disk is not seen")
	}
	if !waitsForDisk(filepath.Join(dir, "none")) { // without /proc nobody is killed
		t.Error("what cannot be read counts as stuck")
	}
}
