package queue

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"time"

	"ftfuse/internal/batch"
	"ftfuse/internal/failpoint"
)

// TestAFullQueueDropsNothingThatIsNeededWhileAGoneCursorMakesRoom, nor does it refuse anything.
func TestAFullQueueDropsNothingThatIsNeededWhileAGoneCursorMakesRoom(t *testing.T) {
	for _, policy := range []Policy{Error, DropOldest, DropNewest} {
		q := mustOpen(t, t.TempDir(), Options{Cursors: []string{"a", "b"}, OnFull: policy, MaxBytes: 6000, MemoryBytes: 1})
		for n := uint64(1); n <= 5; n++ {
			mustSubmit(t, q, &Txn{Entries: []Entry{testEntry(1, n, 1000)}})
		}
		mustFlush(t, q)
		ackSome(t, q, "a", 4, 5)
		held, release := hold(t, 1)
		done := begunChange(t, q, CursorSet{Cursors: []string{"a"}})
		if !held(done) {
			t.Fatal("it was not held")
		}
		submitted := make(chan error, 1)
		go func() {
			st, err := q.Submit(t.Context(), &Txn{Entries: []Entry{testEntry(1, 6, 1000)}})
			if err == nil && st != Fresh {
				t.Errorf("policy %d: it is %v", policy, st)
			}
			submitted <- err
		}()
		select { // it must wait; that it does not yet is no failure
		case err := <-submitted:
			t.Fatalf("policy %d: a full queue took more, or refused it: %v", policy, err)
		case <-time.After(20 * time.Millisecond):
		}
		release()
		<-done
		if err := <-submitted; err != nil {
			t.Errorf("policy %d: %v", policy, err)
		}
		if got := left(t, q, "a"); !slices.Equal(got, []uint64{1, 2, 3, 6}) {
			t.Errorf("policy %d: a needs %v", policy, got)
		}
		if got := lostText(q, 1); !slices.Equal(got, []string{"no_cursor 4-5"}) {
			t.Errorf("policy %d: lost is %v", policy, got)
		}
		mustClose(t, q)
	}
}

// TestWhatANewCursorDoesNotWantIsNoLoss where a full queue drops it before it was compared.
func TestWhatANewCursorDoesNotWantIsNoLoss(t *testing.T) {
	wants := func(name string, lane batch.Lane) bool { return name != "odd" || lane == testLane(1) }
	q := mustOpen(t, t.TempDir(), Options{Cursors: []string{"a"}, Wants: wants, OnFull: DropOldest, MaxBytes: 6000, MemoryBytes: 1})
	for n := uint64(1); n <= 5; n++ {
		mustSubmit(t, q, &Txn{Entries: []Entry{testEntry(byte(n%2), n, 1000)}})
	}
	mustFlush(t, q)
	held, release := hold(t, 1)
	done := begunChange(t, q, CursorSet{Cursors: []string{"a", "odd"}, Wants: wants})
	if !held(done) {
		t.Fatal("it was not held")
	}
	ackSome(t, q, "a", 1, 2) // odd needs 1, and not 2
	mustCommit(t, q, testEntry(1, 6, 1000), testEntry(1, 7, 1000))
	release()
	<-done
	if got := append(lostText(q, 0), lostText(q, 1)...); !slices.Equal(got, []string{"drop_oldest 1"}) {
		t.Errorf("lost is %v", got)
	}
	if got := left(t, q, "odd"); !slices.Equal(got, []uint64{3, 5, 6, 7}) {
		t.Errorf("odd needs %v", got)
	}
	if s := q.Stats(); s.Live.Batches != 5 || s.Losses[LostDropOldest].Batches != 1 {
		t.Errorf("stats %+v", s)
	}
	checkParts(t, q)
}

// TestAChangeOfCursorsThatFailsChangesNothing, and what fails behind its back is tried again.
func TestAChangeOfCursorsThatFailsChangesNothing(t *testing.T) {
	dir := t.TempDir()
	twoCursors(t, dir)
	q := mustOpen(t, dir, Options{Cursors: []string{"a", "b"}, portion: 1})
	fail := func(set CursorSet) error {
		if err := failpoint.Set(fpPortionName, "error@1"); err != nil {
			t.Fatal(err)
		}
		defer failpoint.Clear(fpPortionName)
		err := q.SetCursors(set)
		settled(q)
		return err
	}
	wants := func(name string, lane batch.Lane) bool { return name != "x" }
	if err := fail(CursorSet{Cursors: []string{"x"}, Wants: wants}); !errors.Is(err, failpoint.ErrInjected) {
		t.Errorf("it failed with %v", err)
	}
	if _, err := q.Cursor("x"); !errors.Is(err, ErrNoCursor) {
		t.Errorf("x: %v", err)
	}
	if a, b := left(t, q, "a"), left(t, q, "b"); !slices.Equal(a, []uint64{3, 4, 5}) || !slices.Equal(b, []uint64{1, 3, 5}) {
		t.Errorf("a needs %v, b %v", a, b)
	}
	if s := q.Stats(); len(s.Losses) != 0 || s.Live.Batches != 4 {
		t.Errorf("stats %+v", s)
	}
	checkParts(t, q)
	if err := fail(CursorSet{Cursors: []string{"a"}}); err != nil {
		t.Fatal(err)
	}
	if got := lostText(q, 1); !slices.Equal(got, []string{"no_cursor 1"}) {
		t.Errorf("lost is %v", got)
	}
	checkParts(t, q)
}

// TestCursorsComeAndGoWhileAFullQueueDrops: who stays gets each batch once, or it is named as
// lost, and the accounts are right.
func TestCursorsComeAndGoWhileAFullQueueDrops(t *testing.T) {
	const count = 3000
	q := mustOpen(t, t.TempDir(), Options{
		Cursors: []string{"stays"}, SegmentBytes: 64 << 10, MemoryBytes: 4 << 10, CommitEvery: time.Millisecond,
		OnFull: DropOldest, MaxBytes: 60 << 10, MaxAge: 200 * time.Millisecond, portion: 3,
	})
	ctx, cancel := context.WithCancel(t.Context())
	var all sync.WaitGroup
	got := map[uint64]int{}
	c := mustCursor(t, q, "stays")
	all.Go(func() {
		for {
			h, err := c.NextHead(ctx)
			if err != nil {
				return
			}
			it, ok, err := c.Fetch(ctx, h.Seq)
			if !ok || err != nil {
				continue
			}
			if it.Seq%3 == 0 { // another node has it, and keeps it
				c.Release(it.Seq)
			}
			got[it.Batch.ID.N]++
			c.Ack(it.Seq)
		}
	})
	changed := make(chan struct{})
	all.Go(func() {
		defer close(changed)
		for range 60 {
			for _, names := range [][]string{{"stays", "guest"}, {"stays"}} {
				if err := q.SetCursors(CursorSet{Cursors: names}); err != nil {
					t.Error(err)
				}
			}
		}
	})
	for n := uint64(1); n <= count; n++ {
		mustSubmit(t, q, &Txn{Entries: []Entry{testEntry(1, n, 300)}})
	}
	mustFlush(t, q)
	<-changed
	settled(q)
	cancel()
	all.Wait()
	if err := q.SetLimits(Limits{}); err != nil { // nothing is dropped any more
		t.Fatal(err)
	}
	lost := lostNumbers(q)
	c.Rewind()
	for range left(t, q, "stays") {
		it := mustNext(t, c)
		got[it.Batch.ID.N]++
		c.Ack(it.Seq)
	}
	for n := uint64(1); n <= count; n++ {
		if got[n] > 1 || got[n] == 0 && !lost.Contains(n) {
			t.Errorf("batch %d came %d times; lost: %v", n, got[n], lost.Contains(n))
		}
	}
	checkParts(t, q)
	if s := q.Stats(); s.Live != (Tally{}) {
		t.Errorf("left: %+v", s.Live)
	}
}
