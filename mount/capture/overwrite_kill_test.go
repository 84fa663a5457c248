package capture

import (
	"errors"
	"strings"
	"testing"

	"ftfuse/internal/failpoint"
	"ftfuse/mount/spool"
)

// takeover is a kill of the worker and another one with the same connection: the handles
// go on, by the pointers that the test has.
func (r *rig) takeover(handles ...*spool.Handle) {
	r.Helper()
	r.down()
	r.open()
	live := map[uint64]bool{}
	for _, h := range handles {
		f, err := r.s.Acquire(h.Number())
		r.must(err)
		n, err := r.s.RestoreHandle(f, h.Path, h.Mode(), h.Writer, r.meta())
		r.must(err)
		h.File, h.PathID = n.File, n.PathID
		live[h.Writer] = true
	}
	r.must(r.c.Recover(r.ctx(), func(w uint64) bool { return live[w] }))
	r.run()
}

// newCaptured is a rig that runs, with a file f of one line, which is captured, and its writer.
func newCaptured(t *testing.T) (*rig, *spool.Handle) {
	t.Helper()
	r := newRig(t, Options{})
	r.start()
	h := r.writer("f")
	r.write(h, "0123456789\n")
	r.drain()
	return r, h
}

// resent does what is left of a request that comes again after killedOver: the pwrite.
func (r *rig) resent(h *spool.Handle, data string, off int64) {
	r.Helper()
	if n, err := h.Overwrite([]byte(data), off); n != len(data) || err != nil {
		r.Fatal(n, err)
	}
}

// killedOver commits data over file h from off on and is killed before the pwrite.
func (r *rig) killedOver(h *spool.Handle, data string, off int64) {
	r.Helper()
	r.must(failpoint.Set("capture/overwrite", "error"))
	err := r.c.Overwrite(r.ctx(), h.Number(), r.entry(h, h.Path), []byte(data), off+int64(len(data)))
	failpoint.Clear("capture/overwrite")
	if !errors.Is(err, failpoint.ErrInjected) {
		r.Fatalf("overwrite: %v, want an injected error", err)
	}
}

// TestAKilledOverwritePastTheEndKeepsItsPlace: its worker was killed between commit and
// pwrite. The next one took the file's end for the position, another handle wrote there,
// and the resent request wrote over those bytes before they were captured.
func TestAKilledOverwritePastTheEndKeepsItsPlace(t *testing.T) {
	r, a := newCaptured(t)
	b := r.writer("f")
	r.killedOver(a, "over\nand past the end\n", 6)
	r.takeover(a, b)
	r.holdBack()
	r.write(b, "of another\n")
	r.resent(a, "over\nand past the end\n", 6)
	r.q.set(func() { r.q.held = false })
	r.drain()
	r.want("f", "0123456789\nover\nand past the end\nof another\n")
}

// TestAKilledOverwritePastTheEndIsDeliveredOnce: what the resent request wrote behind the
// position was taken, at the start after that, for bytes whose notes are lost.
func TestAKilledOverwritePastTheEndIsDeliveredOnce(t *testing.T) {
	r, a := newCaptured(t)
	r.killedOver(a, "over\nand past the end\n", 6)
	r.takeover(a)
	r.resent(a, "over\nand past the end\n", 6)
	r.restart()
	r.want("f", "0123456789\nover\nand past the end\n")
}

// TestAnOverwriteThatFailsPastTheEndLosesNoLaterWrite: the disk was full at the pwrite, so
// that the file was shorter than its position, and what was appended next counted as
// captured.
func TestAnOverwriteThatFailsPastTheEndLosesNoLaterWrite(t *testing.T) {
	r, a := newCaptured(t)
	data := "over\nand past the end\n"
	r.must(r.c.Overwrite(r.ctx(), a.Number(), r.entry(a, "f"), []byte(data), 6+int64(len(data))))
	r.must(failpoint.Set("spool/overwrite", "error"))
	n, err := a.Overwrite([]byte(data), 6)
	failpoint.Clear("spool/overwrite")
	if n != 0 || err == nil {
		t.Fatalf("overwrite: %d, %v; want an error", n, err)
	}
	r.write(a, "later\n")
	r.drain()
	r.want("f", "0123456789\n"+data+"later\n")
	r.restart()
	r.want("f", "0123456789\n"+data+"later\n")
}

// TestAnOverwriteOnItsWayIsNotDeniedWhenCaptureStops: the capture ended for another reason
// while the transaction was on its way to the disk. The program got an error, its bytes
// were delivered.
func TestAnOverwriteOnItsWayIsNotDeniedWhenCaptureStops(t *testing.T) {
	r, a := newCaptured(t)
	r.holdBack()
	done := make(chan error, 1)
	go func() {
		done <- r.c.Overwrite(r.ctx(), a.Number(), r.entry(a, "f"), []byte("over\n"), 11)
	}()
	r.waitFor("submit", func() bool { r.q.mu.Lock(); defer r.q.mu.Unlock(); return len(r.q.pending) > 0 })
	drained := make(chan error, 1)
	go func() { drained <- r.c.Drain(r.ctx(), a.Number()) }()
	r.c.fail(errors.New("something else is broken"))
	err := <-r.ran
	r.ran <- err
	if err == nil || !strings.Contains(err.Error(), "something else") {
		t.Fatalf("Run: %v", err)
	}
	if err := <-drained; !errors.Is(err, ErrStopped) {
		t.Errorf("Drain: %v, want %v", err, ErrStopped)
	}
	select {
	case err := <-done:
		t.Fatalf("Overwrite returned %v before its transaction was on disk or lost", err)
	default:
	}
	r.q.set(func() { r.q.held = false })
	r.must(<-done)
	r.want("f", "0123456789\nover\n")
}
