package capture

import (
	"testing"

	"ftfuse/internal/batch"
)

func TestLinesOfOneWriter(t *testing.T) {
	r := newRig(t, Options{})
	r.start()
	h := r.writer("a.log")
	r.write(h, "one\n")
	r.write(h, "two\nthr")
	r.write(h, "ee\nfour\n")
	r.drain()
	r.want("a.log", "one\ntwo\nthree\nfour\n")
	r.restart()
	r.want("a.log", "one\ntwo\nthree\nfour\n")
}

// TestAConflictBeginsANewEpoch: batches sealed after it have ids that nobody took.
func TestAConflictBeginsANewEpoch(t *testing.T) {
	r := newRig(t, Options{})
	r.start()
	h := r.writer("a")
	r.write(h, "one\n")
	r.drain()
	first := r.c.Lane()
	for range 2 { // told twice, for two batches
		r.c.Conflict(first)
		r.write(h, "two\n")
		r.drain()
	}
	r.q.mu.Lock()
	lanes := map[batch.Lane]uint64{}
	for _, b := range r.q.batches {
		lanes[b.ID.Lane]++
	}
	r.q.mu.Unlock()
	second := r.c.Lane()
	if len(lanes) != 2 || lanes[first] != 1 || lanes[second] != 2 || second.Epoch.Counter != first.Epoch.Counter+1 {
		t.Errorf("batches by lane: %v", lanes)
	}
	r.restart()
	if third := r.c.Lane(); third.Epoch.Counter != second.Epoch.Counter+1 {
		t.Errorf("after a restart the epoch is %d, the one before %d", third.Epoch.Counter, second.Epoch.Counter)
	}
	r.want("a", "one\ntwo\ntwo\n")
}
