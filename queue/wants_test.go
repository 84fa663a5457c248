package queue

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"ftfuse/internal/batch"
	"ftfuse/internal/failpoint"
)

func ackSome(t *testing.T, q *Queue, name string, ns ...uint64) {
	t.Helper()
	c := mustCursor(t, q, name)
	for last := slices.Max(ns); ; {
		it := mustNext(t, c)
		if slices.Contains(ns, it.Batch.ID.N) {
			c.Ack(it.Seq)
		}
		if it.Batch.ID.N == last {
			return
		}
	}
}

// twoCursors has five batches; a has acked 1 and 2, b has acked 2 and 4.
func twoCursors(t *testing.T, dir string) {
	t.Helper()
	q := mustOpen(t, dir, Options{Cursors: []string{"a", "b"}})
	for n := uint64(1); n <= 5; n++ {
		mustSubmit(t, q, &Txn{Entries: []Entry{testEntry(1, n, 100)}})
	}
	mustFlush(t, q)
	ackSome(t, q, "a", 1, 2)
	ackSome(t, q, "b", 2, 4)
	mustClose(t, q)
}

func TestWhatOnlyAGoneCursorNeededIsCounted(t *testing.T) {
	dir := t.TempDir()
	twoCursors(t, dir)
	var told []Loss
	q := mustOpen(t, dir, Options{Cursors: []string{"a"}, OnLoss: func(l Loss) { told = append(told, l) }})
	if got := left(t, q, "a"); !slices.Equal(got, []uint64{3, 4, 5}) {
		t.Errorf("a needs %v", got)
	}
	if got := lostText(q, 1); !slices.Equal(got, []string{"no_cursor 1"}) {
		t.Errorf("lost is %v", got)
	}
	mustClose(t, q)
	if len(told) != 1 || told[0].ID.N != 1 || told[0].Reason != LostNoCursor {
		t.Errorf("told of %+v", told)
	}
	q = mustOpen(t, dir, Options{Cursors: []string{"a", "b"}}) // it is new again
	if got := left(t, q, "b"); !slices.Equal(got, []uint64{3, 4, 5}) {
		t.Errorf("b, new, needs %v", got)
	}
	if s := q.Stats(); s.Losses[LostNoCursor].Batches != 1 || s.Live.Batches != 3 {
		t.Errorf("stats %+v", s)
	}
}

// TestARenamedCursorLosesNothing: also where it is the only one, and where others stay.
func TestARenamedCursorLosesNothing(t *testing.T) {
	for names, want := range map[[2]string][]uint64{{"x", "b"}: {1, 3, 4, 5}, {"a", "x"}: {1, 3, 4, 5}, {"x", "y"}: {1, 3, 4, 5}} {
		dir := t.TempDir()
		twoCursors(t, dir)
		q := mustOpen(t, dir, Options{Cursors: names[:]})
		for _, n := range names {
			if n == "x" || n == "y" {
				if got := left(t, q, n); !slices.Equal(got, want) {
					t.Errorf("%v: %s needs %v, want %v", names, n, got, want)
				}
			}
		}
		if s := q.Stats(); len(s.Losses) != 0 {
			t.Errorf("%v: losses %+v", names, s.Losses)
		}
		mustClose(t, q)
	}
}

// TestACursorThatIsGoneStaysUntilItsLossIsOnDisk: a kill in between repeats the start, and
// counts once.
func TestACursorThatIsGoneStaysUntilItsLossIsOnDisk(t *testing.T) {
	for _, point := range []string{"queue/commit-before", "queue/commit-after", "queue/roll-copied", "queue/roll-named"} {
		t.Run(filepath.Base(point), func(t *testing.T) {
			dir := t.TempDir()
			twoCursors(t, dir)
			if err := failpoint.Set(point, map[bool]string{true: "error", false: "error@2"}[filepath.Base(point)[0] == 'r']); err != nil {
				t.Fatal(err)
			}
			if q, err := Open(dir, Options{Cursors: []string{"a"}}); err == nil {
				_ = q.Close()
			}
			failpoint.Clear(point)
			q := mustOpen(t, dir, Options{Cursors: []string{"a"}})
			if got := left(t, q, "a"); !slices.Equal(got, []uint64{3, 4, 5}) {
				t.Errorf("a needs %v", got)
			}
			if got := q.Stats().Losses[LostNoCursor].Batches; got != 1 {
				t.Errorf("%d losses, want 1", got)
			}
			if got := lostText(q, 1); !slices.Equal(got, []string{"no_cursor 1"}) {
				t.Errorf("lost is %v", got)
			}
			mustClose(t, q)
		})
	}
}

// TestDamageInWhatAGoneCursorNeededIsCountedAsSuch: what cannot be read is corrupt.
func TestDamageInWhatAGoneCursorNeededIsCountedAsSuch(t *testing.T) {
	dir := t.TempDir()
	o := Options{Cursors: []string{"a", "b"}, SegmentBytes: 100 << 10}
	q := mustOpen(t, dir, o)
	a := mustCursor(t, q, "a")
	for n := uint64(1); n <= 60; n++ {
		mustSubmit(t, q, &Txn{Entries: []Entry{testEntry(1, n, 9000)}})
		mustFlush(t, q)
		a.Ack(mustNext(t, a).Seq)
	}
	mustClose(t, q)
	if err := os.Remove(filepath.Join(dir, segmentName(2))); err != nil {
		t.Fatal(err)
	}
	o.Cursors = []string{"a"}
	q = mustOpen(t, dir, o)
	got := q.Stats().Losses
	if got[LostCorrupt].Batches == 0 || got[LostNoCursor].Batches == 0 || got[LostCorrupt].Batches+got[LostNoCursor].Batches != 60 {
		t.Errorf("losses %+v", got)
	}
	if names := lostText(q, 1); len(names) != 2 {
		t.Errorf("named are %v", names)
	}
	mustClose(t, q)
}

// TestLanesThatACursorDoesNotWant count as acked by it with the commit that stores them.
func TestLanesThatACursorDoesNotWant(t *testing.T) {
	dir := t.TempDir()
	o := Options{Cursors: []string{"odd", "all"}, Wants: func(name string, lane batch.Lane) bool {
		return name == "all" || lane.Epoch.Counter%2 == 1 && name == "odd"
	}}
	q := mustOpen(t, dir, o)
	for n := uint64(1); n <= 6; n++ {
		mustSubmit(t, q, &Txn{Entries: []Entry{testEntry(byte(n%2), n, 100)}}) // lane 0 is epoch 1
	}
	check := func(name string, want ...uint64) {
		t.Helper()
		if got := left(t, q, name); !slices.Equal(got, want) {
			t.Errorf("%s needs %v, want %v", name, got, want)
		}
	}
	check("odd", 2, 4, 6)
	check("all", 1, 2, 3, 4, 5, 6)
	c := mustCursor(t, q, "odd")
	for _, n := range []uint64{2, 4, 6} {
		if it := mustNext(t, c); it.Batch.ID.N != n {
			t.Errorf("odd is given %d, want %d", it.Batch.ID.N, n)
		}
	}
	mustClose(t, q)

	// The only one who wanted lane 1 goes, and a new one does not want it either.
	o.Cursors = []string{"odd", "none"}
	q = mustOpen(t, dir, o)
	check("odd", 2, 4, 6)
	check("none")
	if got := lostText(q, 1); !slices.Equal(got, []string{"no_cursor 1,3,5"}) {
		t.Errorf("lost is %v", got)
	}
	mustSubmit(t, q, &Txn{Entries: []Entry{testEntry(1, 7, 100), testEntry(0, 8, 100)}})
	check("odd", 2, 4, 6, 8)
	if got := lostText(q, 1); !slices.Equal(got, []string{"no_cursor 1,3,5,7"}) {
		t.Errorf("lost is %v", got)
	}
	if s := q.Stats(); s.Live.Batches != 4 || s.Losses[LostNoCursor].Batches != 4 {
		t.Errorf("stats %+v", s)
	}
	mustClose(t, q)
	q = mustOpen(t, dir, o)
	check("odd", 2, 4, 6, 8)
	if s := q.Stats(); s.Live.Batches != 4 || s.Losses[LostNoCursor].Batches != 4 {
		t.Errorf("after a restart: stats %+v", s)
	}
	mustClose(t, q)
}

// TestCursorsOverManySegments: what is lost and kept does not hang on the segment.
func TestCursorsOverManySegments(t *testing.T) {
	dir := t.TempDir()
	o := Options{Cursors: []string{"a", "b"}, SegmentBytes: 100 << 10, MemoryBytes: 1}
	q := mustOpen(t, dir, o)
	for n := uint64(1); n <= 60; n++ {
		mustSubmit(t, q, &Txn{Entries: []Entry{testEntry(1, n, 9000)}})
		mustFlush(t, q)
	}
	var odd, even []uint64
	for n := uint64(1); n <= 60; n++ {
		if n%2 == 1 {
			odd = append(odd, n)
		} else {
			even = append(even, n)
		}
	}
	ackSome(t, q, "a", odd...)
	mustFlush(t, q)
	if q.Stats().Segments < 4 {
		t.Fatal("too few segments")
	}
	mustClose(t, q)
	o.Cursors = []string{"a"}
	q = mustOpen(t, dir, o)
	if got := left(t, q, "a"); !slices.Equal(got, even) {
		t.Errorf("a needs %v", got)
	}
	if got := q.LostRanges(testLane(1))[0]; got.Ranges.Count() != 30 || got.Ranges.Len() != 30 || got.Payload != 30*9000 {
		t.Errorf("lost %v, %d bytes", fmt.Sprint(got.Ranges.String()), got.Payload)
	}
	mustClose(t, q)
}

// TestANewCursorDoesNotGetOtherLanesOfALongSegment: the list of a segment's ids ends after
// 16,384 runs of one lane. A cursor that was new with a start got all that came behind that, so
// that a plugin or an output got what the rules of others had matched.
func TestANewCursorDoesNotGetOtherLanesOfALongSegment(t *testing.T) {
	const n = maxRuns/2 + 108 // of each lane
	dir := t.TempDir()
	q := mustOpen(t, dir, Options{Cursors: []string{"a"}})
	for i := uint64(1); i <= n; i += 100 {
		var x Txn
		for k := range uint64(100) {
			x.Entries = append(x.Entries, testEntry(1, i+k, 10), testEntry(2, i+k, 10))
		}
		mustSubmit(t, q, &x)
	}
	mustFlush(t, q)
	mustClose(t, q)
	q = mustOpen(t, dir, Options{Cursors: []string{"a", "b"}, Wants: func(cursor string, lane batch.Lane) bool {
		return cursor != "b" || lane == testLane(2)
	}})
	a, b := mustCursor(t, q, "a"), mustCursor(t, q, "b")
	for range 2 * n {
		a.Ack(mustNext(t, a).Seq)
	}
	for i := uint64(1); i <= n; i++ {
		it := mustNext(t, b)
		if want := testEntry(2, i, 10).Batch.ID; it.Batch.ID != want {
			t.Fatalf("b got %v, want %v", it.Batch.ID, want)
		}
		b.Ack(it.Seq)
	}
	if s := q.Stats(); s.Live.Batches != 0 || len(s.Losses) != 0 {
		t.Errorf("%d batches are left, losses %+v", s.Live.Batches, s.Losses)
	}
}
