package queue

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"
)

func mustHead(t testing.TB, c *Cursor) Head {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	h, err := c.NextHead(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// fetches fails unless Fetch gives the entry, or says that it is gone.
func fetches(t testing.TB, c *Cursor, seq uint64, want bool) Item {
	t.Helper()
	it, ok, err := c.Fetch(t.Context(), seq)
	if err != nil || ok != want {
		t.Fatalf("fetch entry %d: %v, %v, want %v", seq, ok, err, want)
	}
	return it
}

func TestHeadsAheadAndBytesLater(t *testing.T) {
	for name, memory := range map[string]int64{"memory": 0, "disk": 1} {
		t.Run(name, func(t *testing.T) {
			q := mustOpen(t, t.TempDir(), Options{MemoryBytes: memory, SegmentBytes: 300 << 10})
			c := mustCursor(t, q, "out")
			for n := uint64(1); n <= 60; n++ {
				mustSubmit(t, q, &Txn{Entries: []Entry{testEntry(1, n, int(n)*300)}})
				if n%7 == 0 {
					mustFlush(t, q)
				}
			}
			mustFlush(t, q)
			for n := uint64(1); n <= 60; n++ {
				if h := mustHead(t, c); h.Seq != n || h.ID.N != n || h.Size != int64(n)*300 || h.Payload != n*300 || h.Host != "host-1" {
					t.Fatalf("head %d is %+v", n, h)
				}
			}
			var wg sync.WaitGroup
			for i := range uint64(4) { // of several destinations
				wg.Go(func() {
					for n := i + 1; n <= 60; n += 4 {
						for range 2 { // sent again
							if it := fetches(t, c, n, true); it.Batch.ID.N != n || len(it.Batch.Data) != int(n)*300 {
								t.Errorf("entry %d came as %v", n, it.Batch.ID)
							}
						}
						c.Ack(n)
						fetches(t, c, n, false)
					}
				})
			}
			wg.Wait()
			if w := q.Stats().Cursors[0].Waiting; w != (Tally{}) {
				t.Errorf("all is acked, %+v waits", w)
			}
		})
	}
}

func TestFetchOfWhatWasNeverGiven(t *testing.T) {
	q := mustOpen(t, t.TempDir(), Options{})
	mustSubmit(t, q, &Txn{Entries: []Entry{testEntry(1, 1, 10)}})
	mustFlush(t, q)
	c := mustCursor(t, q, "out")
	fetches(t, c, 1, false)
	fetches(t, c, 2, false)
	mustClose(t, q)
	if _, _, err := c.Fetch(t.Context(), 1); !errors.Is(err, ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
}

// TestOnlyWhatWasFetchedIsSparedByDropOldest: heads that a group read ahead are no reason
// to keep a full queue full.
func TestOnlyWhatWasFetchedIsSparedByDropOldest(t *testing.T) {
	q := policyQueue(t, t.TempDir(), DropOldest)
	c := mustCursor(t, q, "out")
	for range 10 {
		mustHead(t, c)
	}
	fetches(t, c, 1, true)
	for n := uint64(11); n <= 13; n++ {
		mustSubmit(t, q, &Txn{Entries: []Entry{testEntry(1, n, 10000)}})
	}
	for n, want := range map[uint64]bool{1: true, 2: false, 3: false, 4: false, 5: true} {
		fetches(t, c, n, want)
	}
	c.Ack(2) // who is told late that it is gone
	if got := q.Stats().Losses[LostDropOldest].Batches; got != 3 {
		t.Errorf("%d batches were dropped, want 3", got)
	}
	if h := mustHead(t, c); h.Seq != 11 {
		t.Errorf("the next head is %d", h.Seq)
	}
}

// TestAHeadThatIsTooOldIsNotFetched: max_age holds for what was only looked at.
func TestAHeadThatIsTooOldIsNotFetched(t *testing.T) {
	lost := make(chan Loss, 2)
	q := mustOpen(t, t.TempDir(), Options{MaxAge: time.Hour, OnLoss: func(l Loss) { lost <- l }})
	for n := uint64(1); n <= 2; n++ {
		e := testEntry(1, n, 10)
		e.Batch.Time = time.Now().Add(-time.Hour + 200*time.Millisecond).UnixNano()
		mustSubmit(t, q, &Txn{Entries: []Entry{e}})
	}
	c := mustCursor(t, q, "out")
	mustHead(t, c)
	mustHead(t, c)
	fetches(t, c, 2, true)
	if l := <-lost; l.ID.N != 1 || l.Reason != LostExpired {
		t.Fatalf("told of %+v", l)
	}
	fetches(t, c, 1, false)
	fetches(t, c, 2, true)
}

// TestDamageThatFetchMeetsIsCounted: the head is good, the bytes are not.
func TestDamageThatFetchMeetsIsCounted(t *testing.T) {
	dir := t.TempDir()
	q := mustOpen(t, dir, Options{})
	var entries []Entry
	for n := uint64(1); n <= 3; n++ {
		entries = append(entries, testEntry(1, n, 3000))
	}
	mustSubmit(t, q, &Txn{Entries: entries})
	mustClose(t, q)
	spoilData(t, newestSegment(t, dir), entries[1].Batch.Data)
	var lost []Loss
	q = mustOpen(t, dir, Options{OnLoss: func(l Loss) { lost = append(lost, l) }})
	c := mustCursor(t, q, "out")
	for range 3 {
		mustHead(t, c)
	}
	fetches(t, c, 3, true)
	fetches(t, c, 2, false)
	fetches(t, c, 1, true)
	mustClose(t, q)
	if len(lost) != 1 || lost[0].ID != entries[1].Batch.ID || lost[0].Reason != LostCorrupt || lost[0].Payload != 3000 || lost[0].Seq != 2 {
		t.Errorf("told of %+v", lost)
	}
}
