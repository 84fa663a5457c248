package capture

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"ftfuse/internal/failpoint"
	"ftfuse/internal/record"
	"ftfuse/mount/spool"
	"ftfuse/queue"
)

func (r *rig) entry(h *spool.Handle, path string) spool.Entry {
	m := r.meta()
	return spool.Entry{File: h.Number(), Writer: h.Writer, Path: path, PathID: h.PathID, PID: m.PID, UID: m.UID, GID: m.GID, Time: m.Time}
}

// pending waits until the capture has asked the queue for something that it does not
// get.
func (r *rig) waitFor(what string, ok func() bool) {
	r.Helper()
	for end := time.Now().Add(20 * time.Second); !ok(); {
		if time.Now().After(end) {
			r.Fatalf("no %s in 20 seconds", what)
		}
		<-time.After(200 * time.Microsecond)
	}
}

func TestDrainWaitsForTheDisk(t *testing.T) {
	r := newRig(t, Options{})
	r.start()
	h := r.writer("a")
	r.holdBack()
	r.write(h, "one\n")
	done := make(chan error, 1)
	go func() { done <- r.c.Drain(r.ctx(), h.Number()) }()
	r.waitFor("submit", func() bool { r.q.mu.Lock(); defer r.q.mu.Unlock(); return len(r.q.pending) > 0 })
	select {
	case err := <-done:
		t.Fatalf("Drain returned %v before the commit", err)
	default:
	}
	r.q.set(func() { r.q.held = false })
	r.must(<-done)
	r.want("a", "one\n")
}

func TestDrainStoresTheUnfinishedLine(t *testing.T) {
	r := newRig(t, Options{})
	r.start()
	h := r.writer("a")
	r.write(h, "half")
	r.must(r.c.Drain(r.ctx(), h.Number()))
	r.q.mu.Lock()
	_, ok := r.q.disk[pendKey(h.Number(), h.Writer)+"h"]
	r.q.mu.Unlock()
	if !ok {
		t.Error("the unfinished line is not on disk")
	}
}

// TestFullQueue: while Submit blocks, callers leave with their contexts, and nothing of
// an overwrite whose caller left is delivered.
func TestFullQueue(t *testing.T) {
	r := newRig(t, Options{})
	r.start()
	h := r.writer("a")
	r.write(h, "one\n")
	r.drain()
	r.q.set(func() { r.q.full = true })
	r.write(h, "two\n")
	for name, call := range map[string]func(context.Context) error{
		"Drain":         func(ctx context.Context) error { return r.c.Drain(ctx, h.Number()) },
		"DrainAll":      func(ctx context.Context) error { return r.c.DrainAll(ctx) },
		"BeginTruncate": func(ctx context.Context) error { return r.c.BeginTruncate(ctx, h.Number(), 0) },
		"Overwrite": func(ctx context.Context) error {
			return r.c.Overwrite(ctx, h.Number(), r.entry(h, "a"), []byte("never\n"), 6)
		},
	} {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Millisecond)
		if err := call(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s: %v", name, err)
		}
		cancel()
	}
	r.q.set(func() { r.q.full = false })
	r.drain()
	r.want("a", "one\ntwo\n")
}

// TestOverwriteLeavesAFullQueue: nothing else waits, the overwrite itself does not fit.
func TestOverwriteLeavesAFullQueue(t *testing.T) {
	r := newRig(t, Options{})
	r.start()
	h := r.writer("a")
	r.write(h, "one\nhalf")
	r.drain()
	r.q.set(func() { r.q.full = true })
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Millisecond)
	defer cancel()
	if err := r.c.Overwrite(ctx, h.Number(), r.entry(h, "a"), []byte("never\nnever"), 1000); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Overwrite: %v", err)
	}
	r.q.set(func() { r.q.full = false })
	r.write(h, "way\n")
	r.drain()
	r.want("a", "one\nhalfway\n")
	if n := r.c.Stats(); n.Overwrites != 0 || n.Pending != 0 || n.PendingBytes != 0 {
		t.Errorf("%+v", n)
	}
	r.restart()
	r.want("a", "one\nhalfway\n")
}

func TestErrFullIsToldAndRetried(t *testing.T) {
	r := newRig(t, Options{FullRetry: time.Millisecond})
	r.start()
	h := r.writer("a")
	r.q.set(func() { r.q.refuse = queue.ErrFull })
	r.write(h, "one\n")
	if err := r.c.Drain(r.ctx(), h.Number()); !errors.Is(err, queue.ErrFull) {
		t.Errorf("Drain: %v", err)
	}
	if err := r.c.DrainAll(r.ctx()); !errors.Is(err, queue.ErrFull) {
		t.Errorf("DrainAll: %v", err)
	}
	if err := r.c.Overwrite(r.ctx(), h.Number(), r.entry(h, "a"), []byte("never\n"), 6); !errors.Is(err, queue.ErrFull) {
		t.Errorf("Overwrite: %v", err)
	}
	r.q.set(func() { r.q.refuse = nil })
	r.drain()
	r.want("a", "one\n")
}

func TestOverwrite(t *testing.T) {
	r := newRig(t, Options{})
	r.start()
	h := r.writer("a")
	r.write(h, "one\ntwo\n")
	over := func(data string, off int64) {
		t.Helper()
		r.must(r.c.Overwrite(r.ctx(), h.Number(), r.entry(h, "a"), []byte(data), off+int64(len(data))))
		if _, err := h.Overwrite([]byte(data), off); err != nil {
			t.Fatal(err)
		}
	}
	over("ONE\n", 0)
	over("TWO\nthr", 4) // past the end
	r.write(h, "ee\n")
	r.drain()
	o := record.Overwrite
	r.wantRecords("a", "one\ntwo\n|0", flag("ONE\n", o), flag("TWO\n", o), flag("three\n", o))
	if n := r.c.Stats(); n.Overwrites != 2 || n.OverwriteBytes != 11 {
		t.Errorf("%+v", n)
	}
	big := strings.Repeat("0123456789abcde\n", 3<<16) // 3 MiB, several batches
	over(big, 1)
	r.restart()
	r.want("a", "one\ntwo\nONE\nTWO\nthree\n"+big)
}

// TestKillBetweenOverwriteAndItsPwrite: the position is behind the file's end and
// follows it.
func TestKillBetweenOverwriteAndItsPwrite(t *testing.T) {
	r := newRig(t, Options{})
	r.start()
	h := r.writer("a")
	r.write(h, "one\n")
	r.must(r.c.Overwrite(r.ctx(), h.Number(), r.entry(h, "a"), []byte("ONE\nTWO\n"), 8))
	r.restart()
	h = r.writer("a")
	r.write(h, "new\n")
	r.drain()
	r.want("a", "one\nONE\nTWO\nnew\n")
}

// TestWritesWaitForFinishTruncate: a truncation whose caller gave up goes on, and what
// is written behind it is neither lost nor doubled.
func TestWritesWaitForFinishTruncate(t *testing.T) {
	r := newRig(t, Options{})
	r.start()
	h, other := r.writer("a"), r.writer("b")
	r.write(h, "one\ntwo\n")
	r.must(r.c.BeginTruncate(r.ctx(), h.Number(), 0))
	r.must(h.Truncate(0))
	r.q.set(func() { r.q.full = true })
	r.write(other, "other\n")
	r.waitFor("blocked capture", func() bool { return r.c.Stats().InFlight > 0 })
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	if err := r.c.FinishTruncate(ctx, h.Number(), 0, 0); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("FinishTruncate: %v", err)
	}
	r.write(h, "3\n")
	r.q.set(func() { r.q.full = false })
	r.drain()
	r.want("a", "one\ntwo\n3\n")
	r.want("b", "other\n")
}

func TestFrozenFileHoldsTheJournalBack(t *testing.T) {
	r := newRig(t, Options{})
	r.start()
	h, other := r.writer("a"), r.writer("b")
	r.write(h, "one\n")
	r.must(r.c.BeginTruncate(r.ctx(), h.Number(), 0))
	r.must(h.Truncate(0))
	r.write(h, "two\n") // by a caller who does not keep to the rules
	r.write(other, "other\n")
	r.must(r.c.Drain(r.ctx(), other.Number()))
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	if err := r.c.Drain(ctx, h.Number()); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Drain of a file that is being truncated: %v", err)
	}
	if seq := r.s.CommittedSeq(); seq != 1 {
		t.Errorf("journal committed up to %d, want 1", seq)
	}
	r.must(r.c.FinishTruncate(r.ctx(), h.Number(), 0, 0))
	r.drain()
	r.want("a", "one\ntwo\n")
}

func TestFailedCommitStopsEverything(t *testing.T) {
	for _, point := range []string{"capture/seal", "capture/committed", "capture/freed"} {
		r := newRig(t, Options{})
		r.start()
		h := r.writer("a")
		r.must(failpoint.Set(point, "error"))
		r.write(h, "one\n")
		err := <-r.ran
		r.ran <- err
		failpoint.Clear(point)
		if !errors.Is(err, failpoint.ErrInjected) {
			t.Errorf("%s: Run: %v", point, err)
		}
		if err := r.c.Drain(r.ctx(), h.Number()); !errors.Is(err, ErrStopped) {
			t.Errorf("%s: Drain after that: %v", point, err)
		}
		r.restart()
		r.want("a", "one\n")
		r.crash()
	}
}

// TestOneBusyFileDoesNotHoldUpAnother: with 30 MB of one file before it in the journal, a
// line of another is among the first batches.
func TestOneBusyFileDoesNotHoldUpAnother(t *testing.T) {
	r := newRig(t, Options{InFlight: 2 << 20})
	r.start()
	r.holdBack()
	busy, quiet := r.writer("busy"), r.writer("quiet")
	block := strings.Repeat("0123456789abcde\n", 1<<12)
	r.write(busy, block)
	r.waitFor("first batch", func() bool { return r.c.Stats().Commits > 1 })
	for range 500 {
		r.write(busy, block)
	}
	r.write(quiet, "line\n")
	r.q.set(func() { r.q.held = false })
	r.drain()
	notHeldUp(t, r, "quiet")
	r.want("busy", strings.Repeat(block, 501))
}

// notHeldUp fails where more than 15 MiB of other files, half of what is there, came before the first
// record of path: some go before it is seen, more on a machine that is busy.
func notHeldUp(t *testing.T, r *rig, path string) {
	t.Helper()
	before := 0
	for _, x := range r.records() {
		if x.path == path {
			break
		}
		before += len(x.data)
	}
	if before > 15<<20 {
		t.Errorf("%d bytes of the busy file came first", before)
	}
}

// TestOneFileTheKernelWritesDoesNotHoldUpAnother: what the kernel wrote is one item of 30 MB.
func TestOneFileTheKernelWritesDoesNotHoldUpAnother(t *testing.T) {
	r := newRig(t, Options{InFlight: 2 << 20})
	r.start()
	r.holdBack()
	busy, quiet := r.kernel("busy", 1), r.kernel("quiet", 2)
	block := strings.Repeat("0123456789abcde\n", 1<<16)
	busy.write(r, block)
	r.waitFor("first batch", func() bool { return r.c.Stats().Commits > 1 })
	for range 30 {
		busy.write(r, block)
	}
	quiet.write(r, "line\n")
	r.q.set(func() { r.q.held = false })
	r.drain()
	notHeldUp(t, r, "quiet")
	r.want("busy", strings.Repeat(block, 31))
}

// TestFirstLineGoesAtOnce: at rest a line is submitted without waiting for company.
func TestFirstLineGoesAtOnce(t *testing.T) {
	r := newRig(t, Options{LazyCommit: time.Hour})
	r.start()
	r.write(r.writer("a"), "one\n")
	r.waitFor("line in the queue", func() bool { r.q.mu.Lock(); defer r.q.mu.Unlock(); return len(r.q.batches) == 1 })
}

// TestBatchFillsWhileACommitIsUnderWay: what is written meanwhile goes in one batch.
func TestBatchFillsWhileACommitIsUnderWay(t *testing.T) {
	r := newRig(t, Options{})
	r.start()
	r.holdBack()
	h := r.writer("a")
	r.write(h, "first\n")
	r.waitFor("first batch", func() bool { return r.c.Stats().Batches == 1 })
	for range 1000 {
		r.write(h, "more\n")
	}
	r.waitFor("all cut", func() bool { return r.c.Stats().Batches == 1 })
	r.q.set(func() { r.q.held = false })
	r.drain()
	if n := r.c.Stats().Batches; n > 3 {
		t.Errorf("%d batches for 1,001 lines", n)
	}
}

func TestStopAnswersEverybody(t *testing.T) {
	r := newRig(t, Options{})
	r.start()
	r.holdBack()
	h := r.writer("a")
	r.write(h, "one\n")
	done := make(chan error, 1)
	go func() { done <- r.c.DrainAll(context.Background()) }()
	r.waitFor("submit", func() bool { r.q.mu.Lock(); defer r.q.mu.Unlock(); return len(r.q.pending) > 0 })
	r.cancel()
	if err := <-done; !errors.Is(err, ErrStopped) {
		t.Errorf("%v", err)
	}
	if err := <-r.ran; err != nil {
		t.Errorf("Run: %v", err)
	}
	r.ran <- nil
	if err := r.c.DrainAll(context.Background()); !errors.Is(err, ErrStopped) {
		t.Errorf("%v", err)
	}
}
