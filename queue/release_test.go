package queue

import (
	"context"
	"runtime"
	"testing"
	"time"
)

// TestDropOldestTakesWhatWasReleased: with keep_until = "final" a cursor has everything that
// the next node has. Were that held, a full queue would block as long as the last node is away.
func TestDropOldestTakesWhatWasReleased(t *testing.T) {
	var told []Loss
	q := mustOpen(t, t.TempDir(), Options{MaxBytes: 42 << 10, OnFull: DropOldest, OnLoss: func(l Loss) { told = append(told, l) }})
	put := func(from, to uint64) {
		for n := from; n <= to; n++ {
			mustSubmit(t, q, &Txn{Entries: []Entry{testEntry(1, n, 10000)}})
		}
		mustFlush(t, q)
	}
	put(1, 4)
	c := mustCursor(t, q, "out")
	for range 4 {
		if _, ok, err := c.Fetch(t.Context(), mustNext(t, c).Seq); !ok || err != nil {
			t.Fatal(ok, err)
		}
	}
	full := make(chan error, 1) // it waits: all is held
	go func() {
		_, err := q.Submit(context.Background(), &Txn{Entries: []Entry{testEntry(1, 5, 10000)}})
		full <- err
	}()
	for len(q.submit) == 0 {
		runtime.Gosched()
	}
	c.Release(1)
	select {
	case err := <-full:
		if err != nil {
			t.Fatal(err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("a full queue does not take what was released")
	}
	if _, ok, err := c.Fetch(t.Context(), 1); ok || err != nil {
		t.Errorf("what was dropped is there: %v, %v", ok, err)
	}
	c.Release(2)
	c.Release(3)
	if _, ok, err := c.Fetch(t.Context(), 2); !ok || err != nil { // to be sent again: held
		t.Errorf("what was released is gone: %v, %v", ok, err)
	}
	put(6, 6)
	if got := lostText(q, 1); got != nil {
		t.Errorf("copies are named as lost: %v", got)
	}
	if got := q.Stats().Losses[LostDropOldest].Batches; got != 2 {
		t.Errorf("%d losses are counted, want 2", got)
	}
	mustClose(t, q)
	if len(told) != 2 || !told[0].Copy || told[0].ID.N != 1 || !told[1].Copy || told[1].ID.N != 3 {
		t.Errorf("told of %+v", told)
	}
}
