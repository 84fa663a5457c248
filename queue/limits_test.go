package queue

import (
	"context"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"ftfuse/internal/batch"
)

// copyDir is a copy of a queue that is closed.
func copyDir(t *testing.T, dir string) string {
	t.Helper()
	to := t.TempDir()
	if err := os.CopyFS(to, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	return to
}

// TestCursorsChangedWhileItRunsAreThoseOfARestart: each needs what it would need if the queue
// had been closed and opened with them, what is lost is the same, and a restart finds it so.
func TestCursorsChangedWhileItRunsAreThoseOfARestart(t *testing.T) {
	odd := func(name string, lane batch.Lane) bool { return name != "odd" || lane.Epoch.Counter%2 == 1 }
	for _, names := range [][]string{{"a"}, {"b"}, {"x", "b"}, {"a", "x"}, {"x", "y"}, {"a", "b", "x"}, {"odd", "a"}, {"odd"}} {
		dir := t.TempDir()
		twoCursors(t, dir)
		other := copyDir(t, dir)
		live := mustOpen(t, dir, Options{Cursors: []string{"a", "b"}})
		mustSetCursors(t, live, CursorSet{Cursors: names, Wants: odd})
		restarted := mustOpen(t, other, Options{Cursors: names, Wants: odd})
		same := func(when string, q *Queue) {
			t.Helper()
			for _, n := range names {
				if got, want := left(t, q, n), left(t, restarted, n); !slices.Equal(got, want) {
					t.Errorf("%v, %s: %s needs %v, want %v", names, when, n, got, want)
				}
			}
			got, want := q.Stats(), restarted.Stats()
			if got.Live != want.Live || got.Losses[LostNoCursor] != want.Losses[LostNoCursor] {
				t.Errorf("%v, %s: live %+v, lost %+v; want %+v, %+v", names, when, got.Live, got.Losses, want.Live, want.Losses)
			}
			for i := range want.Cursors {
				if got.Cursors[i].Waiting != want.Cursors[i].Waiting {
					t.Errorf("%v, %s: %s waits for %+v, want %+v", names, when, want.Cursors[i].Name, got.Cursors[i].Waiting, want.Cursors[i].Waiting)
				}
			}
			if got, want := lostText(q, 1), lostText(restarted, 1); !slices.Equal(got, want) {
				t.Errorf("%v, %s: named as lost %v, want %v", names, when, got, want)
			}
		}
		same("at once", live)
		mustClose(t, live)
		live = mustOpen(t, dir, Options{Cursors: names, Wants: odd})
		same("after a restart", live)
		mustClose(t, live)
		mustClose(t, restarted)
	}
}

// TestACursorThatWasRemovedAndComesBackAtOnce is on disk.
func TestACursorThatWasRemovedAndComesBackAtOnce(t *testing.T) {
	dir := t.TempDir()
	twoCursors(t, dir)
	q := mustOpen(t, dir, Options{Cursors: []string{"a", "b"}})
	for _, names := range [][]string{{"a"}, {"a", "b"}} {
		if err := q.SetCursors(CursorSet{Cursors: names}); err != nil {
			t.Fatal(err)
		}
	}
	mustClose(t, q)
	q = mustOpen(t, dir, Options{Cursors: []string{"b"}})
	if got := left(t, q, "b"); !slices.Equal(got, []uint64{3, 4, 5}) {
		t.Errorf("b needs %v", got)
	}
	if got := q.Stats().Losses[LostNoCursor].Batches; got != 1 {
		t.Errorf("%d losses, want 1", got)
	}
}

// TestARemovedCursorSaysSo to a consumer that did not end, and its acks do nothing.
func TestARemovedCursorSaysSo(t *testing.T) {
	dir := t.TempDir()
	twoCursors(t, dir)
	q := mustOpen(t, dir, Options{Cursors: []string{"a", "b"}})
	b := mustCursor(t, q, "b")
	first := mustNext(t, b)
	ended := make(chan error, 1)
	mustSetCursors(t, q, CursorSet{Cursors: []string{"a"}})
	before := q.Stats().Live
	b.Ack(first.Seq)
	go func() {
		_, err := b.Next(t.Context())
		ended <- err
	}()
	if err := <-ended; !errors.Is(err, ErrNoCursor) {
		t.Errorf("Next of a removed cursor: %v", err)
	}
	if got := q.Stats().Live; got != before {
		t.Errorf("an ack of a removed cursor made %+v of %+v", got, before)
	}
	if err := q.SetCursors(CursorSet{}); !errors.Is(err, ErrOptions) {
		t.Errorf("a queue without cursors: %v", err)
	}
}

// TestABeginningCursorPassesWhatAllOthersPassedMeanwhile, and nothing that came after it.
func TestABeginningCursorPassesWhatAllOthersPassedMeanwhile(t *testing.T) {
	dir := t.TempDir()
	twoCursors(t, dir) // a needs 3, 4, 5, b needs 1, 3, 5
	wants := func(name string, lane batch.Lane) bool { return lane != testLane(2) || name == "x" }
	q := mustOpen(t, dir, Options{Cursors: []string{"a", "b"}, Wants: wants})
	if err := q.SetCursors(CursorSet{Cursors: []string{"a", "b", "x"}, Wants: wants}); err != nil {
		t.Fatal(err)
	}
	mustSubmit(t, q, &Txn{Entries: []Entry{testEntry(2, 6, 100)}}) // for x alone
	mustFlush(t, q)
	ackSome(t, q, "a", 3, 4)
	ackSome(t, q, "b", 3, 5)
	mustSetCursors(t, q, CursorSet{Cursors: []string{"a", "x"}, Wants: wants, Again: []string{"x"}})
	if got := left(t, q, "x"); !slices.Equal(got, []uint64{1, 5, 6 + relabelled}) {
		t.Errorf("x needs %v, want what b or a still needed, and its own", got)
	}
	if got := q.Stats().Losses; len(got) != 0 {
		t.Errorf("lost %+v", got)
	}
	mustClose(t, q)
}

// TestTwoBeginningCursorsPassWhatTheOthersPassedMeanwhile: each took the other one, which had
// no consumer yet either, for somebody who needs it still, and destinations that took the place
// of one got again what that one had got while they were made ready.
func TestTwoBeginningCursorsPassWhatTheOthersPassedMeanwhile(t *testing.T) {
	dir := t.TempDir()
	twoCursors(t, dir) // a needs 3, 4, 5, b needs 1, 3, 5
	q := mustOpen(t, dir, Options{Cursors: []string{"a", "b"}})
	mustSetCursors(t, q, CursorSet{Cursors: []string{"a", "b", "x", "y"}})
	ackSome(t, q, "a", 3, 4)
	ackSome(t, q, "b", 3, 5)
	mustSubmit(t, q, &Txn{Entries: []Entry{testEntry(1, 6, 100)}})
	mustFlush(t, q)
	ackSome(t, q, "a", 6)
	ackSome(t, q, "b", 6)
	mustSetCursors(t, q, CursorSet{Cursors: []string{"x", "y"}, Again: []string{"x", "y"}})
	for _, name := range []string{"x", "y"} {
		if got := left(t, q, name); !slices.Equal(got, []uint64{1, 5, 6}) {
			t.Errorf("%s needs %v, want what b or a still needed, and what came since", name, got)
		}
	}
	if got := q.Stats().Losses; len(got) != 0 {
		t.Errorf("lost %+v", got)
	}
	for _, name := range []string{"x", "y"} {
		ackSome(t, q, name, 1, 5, 6)
	}
	mustFlush(t, q)
	if got := q.Stats().Live; got != (Tally{}) {
		t.Errorf("all is acked, %+v is left", got)
	}
	mustClose(t, q)
}

// TestWhatAGoneCursorNeededIsPassedOnce: a second change that came before the commit of the
// first passed it again, and what others had acked meanwhile: a segment went that was needed.
func TestWhatAGoneCursorNeededIsPassedOnce(t *testing.T) {
	dir := t.TempDir()
	q := mustOpen(t, dir, Options{Cursors: []string{"a", "b", "x"}})
	for n := uint64(1); n <= 10; n++ {
		mustSubmit(t, q, &Txn{Entries: []Entry{testEntry(1, n, 300)}})
	}
	mustFlush(t, q) // Live has batches that are committed only
	take := func(name string, count int) {
		c := mustCursor(t, q, name)
		for range count {
			it, err := c.Next(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			c.Ack(it.Seq)
		}
	}
	take("a", 6)
	take("b", 4) // 1 to 4 are x's alone
	set := CursorSet{Cursors: []string{"a", "b"}}
	mustSetCursors(t, q, set)
	take("b", 2) // 5 and 6, which x never acked either
	first := q.Stats()
	mustSetCursors(t, q, set)
	if s := q.Stats(); s.Live != first.Live || s.Live.Batches != 4 || !maps.Equal(s.Losses, first.Losses) {
		t.Errorf("%+v lost %+v, and after the same once more %+v lost %+v; want 4 batches", first.Live, first.Losses, s.Live, s.Losses)
	}
	take("a", 4)
	take("b", 4)
	mustFlush(t, q)
	if s := q.Stats(); s.Live != (Tally{}) {
		t.Errorf("left: %+v", s.Live)
	}
	mustClose(t, q)
}

// TestCursorsComeAndGoUnderLoad: who stays gets each batch once and in order, who comes gets
// all from then on, and in the end nothing is left.
func TestCursorsComeAndGoUnderLoad(t *testing.T) {
	dir := t.TempDir()
	o := Options{Cursors: []string{"stays", "guest"}, SegmentBytes: 64 << 10, MemoryBytes: 8 << 10, portion: 3}
	q := mustOpen(t, dir, o)
	const count = 4000
	var wg sync.WaitGroup
	wg.Go(func() {
		for n := uint64(1); n <= count; n++ {
			if _, err := q.Submit(t.Context(), &Txn{Entries: []Entry{testEntry(1, n, 300)}}); err != nil {
				t.Error(err)
				return
			}
		}
	})
	consume := func(ctx context.Context, c *Cursor, got *[]uint64) {
		for len(*got) == 0 || (*got)[len(*got)-1] < count {
			it, err := c.Next(ctx)
			if err != nil {
				return
			}
			*got = append(*got, it.Batch.ID.N)
			c.Ack(it.Seq)
		}
	}
	var stays []uint64
	done := make(chan struct{})
	go func() {
		defer close(done)
		consume(t.Context(), mustCursor(t, q, "stays"), &stays)
	}()
	for round := 0; ; round++ {
		ctx, cancel := context.WithCancel(t.Context())
		guest, err := q.Cursor("guest")
		if err != nil {
			t.Fatal(err)
		}
		var got []uint64
		var ended sync.WaitGroup
		ended.Go(func() { consume(ctx, guest, &got) })
		over := false
		select {
		case <-done: // perhaps nothing at all is left for this guest
			over = true
		case <-time.After(5 * time.Millisecond): // how long it is there is chance
		}
		cancel()
		ended.Wait()
		if over {
			for range left(t, q, "guest") {
				it := mustNext(t, guest)
				got = append(got, it.Batch.ID.N)
				guest.Ack(it.Seq)
			}
		}
		for i, n := range got {
			if i > 0 && n != got[i-1]+1 {
				t.Fatalf("guest %d got %d after %d", round, n, got[i-1])
			}
		}
		if over {
			break
		}
		for _, names := range [][]string{{"stays"}, {"guest", "stays"}} {
			if err := q.SetCursors(CursorSet{Cursors: names}); err != nil {
				t.Fatal(err)
			}
		}
	}
	wg.Wait()
	settled(q)
	if !slices.IsSorted(stays) || len(stays) != count {
		t.Errorf("who stayed got %d batches, sorted %v; want %d once each", len(stays), slices.IsSorted(stays), count)
	}
	mustFlush(t, q)
	if s := q.Stats(); s.Live != (Tally{}) {
		t.Errorf("left: %+v; lost %+v", s.Live, s.Losses)
	}
	mustClose(t, q)
}

// TestChangedLimitsHoldForWhoWaits in Submit, and a queue opened again is as the options say.
func TestChangedLimitsHoldForWhoWaits(t *testing.T) {
	for _, c := range []struct {
		name string
		l    Limits
		err  error
	}{
		{"more room", Limits{MaxBytes: 1 << 20}, nil},
		{"drop the oldest", Limits{MaxBytes: 1000, OnFull: DropOldest}, nil},
		{"drop the newest", Limits{MaxBytes: 1000, OnFull: DropNewest}, nil},
		{"an error", Limits{MaxBytes: 1000, OnFull: Error}, ErrFull},
	} {
		t.Run(c.name, func(t *testing.T) {
			q := mustOpen(t, filepath.Join(t.TempDir(), "q"), Options{MaxBytes: 1000})
			mustSubmit(t, q, &Txn{Entries: []Entry{testEntry(1, 1, 900)}})
			mustFlush(t, q)
			got := make(chan error, 1)
			waits, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
			defer cancel()
			if _, err := q.Submit(waits, &Txn{Entries: []Entry{testEntry(1, 2, 900)}}); !errors.Is(err, context.DeadlineExceeded) {
				t.Fatalf("a full queue took more: %v", err)
			}
			go func() {
				_, err := q.Submit(t.Context(), &Txn{Entries: []Entry{testEntry(1, 2, 900)}})
				got <- err
			}()
			if err := q.SetLimits(c.l); err != nil {
				t.Fatal(err)
			}
			if err := <-got; !errors.Is(err, c.err) {
				t.Errorf("Submit: %v, want %v", err, c.err)
			}
			if err := q.SetLimits(Limits{MaxBytes: -1}); !errors.Is(err, ErrOptions) {
				t.Errorf("max_bytes below zero: %v", err)
			}
			if got := q.Stats().MaxBytes; got != c.l.MaxBytes {
				t.Errorf("max_bytes is %d, want %d", got, c.l.MaxBytes)
			}
			mustClose(t, q)
		})
	}
}

// TestAnUndoneCursorLosesNothing: one that was added, never had a consumer and goes again was
// owed nothing that another cursor wanted and has passed. It was counted as lost.
func TestAnUndoneCursorLosesNothing(t *testing.T) {
	dir := t.TempDir()
	twoCursors(t, dir) // a needs 3, 4, 5, b needs 1, 3, 5
	wants := func(name string, lane batch.Lane) bool { return lane != testLane(2) || name == "x" }
	var told []Loss
	q := mustOpen(t, dir, Options{Cursors: []string{"a", "b"}, Wants: wants, OnLoss: func(l Loss) { told = append(told, l) }})
	if err := q.SetCursors(CursorSet{Cursors: []string{"a", "b", "x"}, Wants: wants}); err != nil {
		t.Fatal(err)
	}
	mustSubmit(t, q, &Txn{Entries: []Entry{testEntry(1, 6, 100), testEntry(2, 7, 100)}}) // the second for x alone
	mustFlush(t, q)
	ackSome(t, q, "a", 3, 4, 6)
	ackSome(t, q, "b", 1, 3, 6)
	undo := CursorSet{Cursors: []string{"a", "b"}, Wants: wants, Unbegun: true}
	for range 2 {
		mustSetCursors(t, q, undo)
	}
	wantLeft(t, q, []uint64{5}, []uint64{5})
	if got := lostText(q, 1); len(got) != 0 {
		t.Errorf("named as lost: %v", got)
	}
	if got := lostText(q, 2); !slices.Equal(got, []string{"no_cursor 7"}) {
		t.Errorf("of what was for x alone %v is named as lost", got)
	}
	if s := q.Stats(); s.Losses[LostNoCursor].Batches != 1 || s.Live.Batches != 1 {
		t.Errorf("stats %+v", s)
	}
	mustClose(t, q)
	if len(told) != 1 || told[0].ID.N != 7 {
		t.Errorf("told of %+v", told)
	}
	q = mustOpen(t, dir, Options{Cursors: []string{"a", "b"}, Wants: wants})
	wantLeft(t, q, []uint64{5}, []uint64{5})
	ackSome(t, q, "a", 5)
	ackSome(t, q, "b", 5)
	mustFlush(t, q)
	if s := q.Stats(); s.Live != (Tally{}) || s.Losses[LostNoCursor].Batches != 1 {
		t.Errorf("after a restart: stats %+v", s)
	}
	mustClose(t, q)
}
