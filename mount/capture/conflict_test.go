package capture

import (
	"context"
	"errors"
	"testing"
	"time"
)

// An overwrite that the queue did not take was undone together with the epoch that its
// batch had begun: the next batch had a number of the old epoch, and the new epoch was
// never stored.
func TestAConflictSurvivesAnOverwriteThatIsUndone(t *testing.T) {
	r := newRig(t, Options{})
	r.start()
	h := r.writer("a")
	r.write(h, "one\n")
	r.drain()
	r.q.set(func() { r.q.full = true })
	r.c.Conflict(r.c.Lane())
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Millisecond)
	defer cancel()
	if err := r.c.Overwrite(ctx, h.Number(), r.entry(h, "a"), []byte("never\n"), 4); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Overwrite: %v", err)
	}
	r.q.set(func() { r.q.full = false })
	r.write(h, "two\n")
	r.drain() // the queue of the test checks that numbers are dense in each lane
	counter := r.c.Lane().Epoch.Counter
	r.restart()
	if got := r.c.Lane().Epoch.Counter; got != counter+1 {
		t.Errorf("after a restart the epoch is %d, the one before was %d", got, counter)
	}
	r.want("a", "one\ntwo\n")
}

// TestAConflictOfAnOldEpochHidesNone: a queue that is full of old batches has conflicts of many
// epochs, and one of them is the current one.
func TestAConflictOfAnOldEpochHidesNone(t *testing.T) {
	r := newRig(t, Options{})
	r.start()
	h := r.writer("a")
	r.write(h, "one\n")
	r.drain()
	now := r.c.Lane()
	old := now
	old.Epoch.Counter, old.Epoch.Random = old.Epoch.Counter-1, 99
	now.Bucket = 3
	r.c.Conflict(now)
	r.c.Conflict(old)
	r.write(h, "two\n")
	r.drain()
	if got := r.c.Lane().Epoch.Counter; got != now.Epoch.Counter+1 {
		t.Errorf("the epoch is %d, was %d", got, now.Epoch.Counter)
	}
	r.c.Conflict(old)
	r.c.Conflict(now)
	r.write(h, "three\n")
	r.drain()
	if got := r.c.Lane().Epoch.Counter; got != now.Epoch.Counter+1 {
		t.Errorf("conflicts of old epochs began epoch %d", got)
	}
	r.want("a", "one\ntwo\nthree\n")
}
