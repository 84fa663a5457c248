package queue

import (
	"errors"
	"testing"
)

// TestALaneKeepsTheHostOfItsFirstBatch: over a restart, whatever is merged or comes later.
func TestALaneKeepsTheHostOfItsFirstBatch(t *testing.T) {
	dir := t.TempDir()
	o := Options{Cursors: []string{"a"}, Dedupe: true, OneHost: true}
	q := mustOpen(t, dir, o)
	lane := testLane(1)
	q.Merge(lane, 5)
	if h := q.Host(lane); h != "" {
		t.Errorf("a lane of which nothing was taken is of host %q", h)
	}
	take := func(n uint64, host string) error {
		e := testEntry(1, n, 10)
		e.Batch.Host = host
		_, err := q.Submit(t.Context(), &Txn{Entries: []Entry{e}})
		return err
	}
	if err := take(7, "h"); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if h := q.Host(lane); h != "h" {
			t.Errorf("the lane is of host %q", h)
		}
		if err := take(8, "other"); !errors.Is(err, ErrConflict) {
			t.Errorf("a batch of another host: %v, want ErrConflict", err)
		}
		if err := take(3, "other"); !errors.Is(err, ErrConflict) {
			t.Errorf("a batch of another host below the horizon: %v, want ErrConflict", err)
		}
		mustClose(t, q)
		q = mustOpen(t, dir, o)
	}
	if err := take(8, "h"); err != nil {
		t.Error(err)
	}
	mustClose(t, q)
}
