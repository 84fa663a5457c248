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

// TestPoliciesTakeWhatWasReturned: what nobody takes is held by nobody, or a full queue would
// block for it for ever, whatever its policy says, and nothing of it would expire.
func TestPoliciesTakeWhatWasReturned(t *testing.T) {
	for name, o := range map[string]Options{
		LostDropOldest: {MaxBytes: 42 << 10, OnFull: DropOldest},
		LostExpired:    {MaxAge: time.Hour},
	} {
		t.Run(name, func(t *testing.T) {
			told := make(chan Loss, 4)
			o.OnLoss = func(l Loss) { told <- l }
			q := mustOpen(t, t.TempDir(), o)
			for n := uint64(1); n <= 4; n++ {
				e := testEntry(1, n, 10000)
				e.Batch.Time = time.Now().Add(-30 * time.Minute).UnixNano()
				mustSubmit(t, q, &Txn{Entries: []Entry{e}})
			}
			mustFlush(t, q)
			c := mustCursor(t, q, "out")
			for range 4 {
				if _, ok, err := c.Fetch(t.Context(), mustNext(t, c).Seq); !ok || err != nil {
					t.Fatal(ok, err)
				}
			}
			if name == LostExpired { // all of them are too old now
				if err := q.SetLimits(Limits{OnFull: Block, MaxBytes: DefaultMaxBytes, MaxAge: time.Minute}); err != nil {
					t.Fatal(err)
				}
			} else {
				go func() { _, _ = q.Submit(context.Background(), &Txn{Entries: []Entry{testEntry(1, 5, 10000)}}) }()
				for len(q.submit) == 0 {
					runtime.Gosched()
				}
			}
			c.Return(2)
			select {
			case l := <-told:
				if l.ID.N != 2 || l.Reason != name || l.Copy {
					t.Errorf("told of %+v", l)
				}
			case <-time.After(10 * time.Second):
				t.Fatal("what was returned is not taken")
			}
			if c.Needs(2) || !c.Needs(1) {
				t.Error("what was taken is needed, or what is held is not")
			}
			if _, ok, err := c.Fetch(t.Context(), 2); ok || err != nil {
				t.Errorf("what was dropped is there: %v, %v", ok, err)
			}
		})
	}
}
