package queue

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"testing"

	"ftfuse/internal/failpoint"
)

// relabelled is added to the numbers of lane 2, which take the places of those of lane 1.
const relabelled = 1_000_000

// replaceQueue has three batches of lane 1 for two cursors; a has acked the first.
func replaceQueue(t *testing.T, dir string) (q *Queue, a, b *Cursor) {
	t.Helper()
	q = mustOpen(t, dir, replaceOptions())
	for n := uint64(1); n <= 3; n++ {
		mustSubmit(t, q, &Txn{Entries: []Entry{testEntry(1, n, 1000)}})
	}
	mustFlush(t, q)
	a, b = mustCursor(t, q, "a"), mustCursor(t, q, "b")
	a.Ack(mustNext(t, a).Seq)
	return q, a, b
}

func replaceOptions() Options { return Options{Dedupe: true, Cursors: []string{"a", "b"}} }

// left returns the numbers that the cursor gives, those of lane 2 plus relabelled, without
// acking them.
func left(t *testing.T, q *Queue, name string) (ns []uint64) {
	t.Helper()
	mustFlush(t, q)
	err := q.List(t.Context(), name, func(l Listed) error {
		n := l.ID.N
		if l.ID.Lane == testLane(2) {
			n += relabelled
		}
		ns = append(ns, n)
		return l.Err
	})
	if err != nil {
		t.Fatal(err)
	}
	return ns
}

func wantLeft(t *testing.T, q *Queue, a, b []uint64) {
	t.Helper()
	if got := left(t, q, "a"); !slices.Equal(got, a) {
		t.Errorf("cursor a needs %v, want %v", got, a)
	}
	if got := left(t, q, "b"); !slices.Equal(got, b) {
		t.Errorf("cursor b needs %v, want %v", got, b)
	}
}

func TestAReplacedEntryIsNeededByWhoNeededTheOldOne(t *testing.T) {
	dir := t.TempDir()
	q, _, _ := replaceQueue(t, dir)
	mustSubmit(t, q, &Txn{Entries: []Entry{testEntry(2, 1, 900), testEntry(2, 2, 800)}, Replace: []uint64{1, 3}, Set: []KV{{"k", []byte("v")}}})
	wantLeft(t, q, []uint64{2, relabelled + 2}, []uint64{2, relabelled + 1, relabelled + 2})
	mustClose(t, q)
	q = mustOpen(t, dir, replaceOptions())
	wantLeft(t, q, []uint64{2, relabelled + 2}, []uint64{2, relabelled + 1, relabelled + 2})
	if s := q.Stats(); s.Live.Batches != 3 || len(s.Losses) != 0 || s.Cursors[0].Waiting.Batches != 2 || s.Cursors[1].Waiting.Records != 3+2+3 {
		t.Errorf("stats %+v", s)
	}
	for _, name := range []string{"a", "b"} {
		c := mustCursor(t, q, name)
		for !c.atEnd() {
			c.Ack(mustNext(t, c).Seq)
		}
	}
	if s := q.Stats(); s.Live != (Tally{}) {
		t.Errorf("all is acked: %+v", s)
	}
}

// TestACopyKeepsWhatIsReplaced, in its order, and never gets what took its place: whenever it acks,
// and after a restart. What only a copy needs is not replaced.
func TestACopyKeepsWhatIsReplaced(t *testing.T) {
	dir := t.TempDir()
	o := replaceOptions()
	o.Cursors, o.Copies = []string{"a", "b", "copy"}, []string{"copy"}
	q := mustOpen(t, dir, o)
	for n := uint64(1); n <= 4; n++ {
		mustSubmit(t, q, &Txn{Entries: []Entry{testEntry(1, n, 1000)}})
	}
	mustFlush(t, q)
	a, b, c := mustCursor(t, q, "a"), mustCursor(t, q, "b"), mustCursor(t, q, "copy")
	a.Ack(mustNext(t, a).Seq)
	b.Ack(mustNext(t, b).Seq)
	mustNext(t, c)
	two := mustNext(t, c).Seq
	if _, err := q.Submit(t.Context(), &Txn{Entries: []Entry{testEntry(2, 1, 10)}, Replace: []uint64{1}}); !errors.Is(err, ErrGone) {
		t.Errorf("only a copy needs it: %v", err)
	}
	mustSubmit(t, q, &Txn{Entries: []Entry{testEntry(2, 2, 10), testEntry(2, 4, 10)}, Replace: []uint64{2, 4}})
	for range 2 {
		wantLeft(t, q, []uint64{3, relabelled + 2, relabelled + 4}, []uint64{3, relabelled + 2, relabelled + 4})
		if got := left(t, q, "copy"); !slices.Equal(got, []uint64{1, 2, 3, 4}) {
			t.Errorf("the copy needs %v", got)
		}
		mustClose(t, q)
		q = mustOpen(t, dir, o)
	}
	c = mustCursor(t, q, "copy")
	mustNext(t, c)
	c.Ack(mustNext(t, c).Seq)
	c.Ack(two)
	if got := left(t, q, "copy"); !slices.Equal(got, []uint64{1, 3, 4}) {
		t.Errorf("the copy needs %v", got)
	}
	for _, name := range o.Cursors {
		c := mustCursor(t, q, name)
		c.Rewind()
		for !c.atEnd() {
			c.Ack(mustNext(t, c).Seq)
		}
	}
	if s := q.Stats(); s.Live != (Tally{}) || len(s.Losses) != 0 {
		t.Errorf("all is acked: %+v", s)
	}
}

// TestAcksBeforeTheCommitOfAReplacementCount: a cursor that acks the old entry between
// Submit and the commit does not get the new one, or its next node had both.
func TestAcksBeforeTheCommitOfAReplacementCount(t *testing.T) {
	q, a, b := replaceQueue(t, t.TempDir())
	two := mustNext(t, a).Seq
	mustNext(t, b)
	mustNext(t, b)
	if err := failpoint.Set("queue/commit-before", "pause"); err != nil {
		t.Fatal(err)
	}
	defer failpoint.Clear("queue/commit-before")
	mustSubmit(t, q, &Txn{Entries: []Entry{testEntry(3, 1, 10)}, Sync: true})
	for fpCommitBefore.Hits() == 0 { // its commit is held
		runtime.Gosched()
	}
	mustSubmit(t, q, &Txn{Entries: []Entry{testEntry(2, 2, 900)}, Replace: []uint64{two}})
	a.Ack(two)
	failpoint.Clear("queue/commit-before")
	mustFlush(t, q)
	wantLeft(t, q, []uint64{3, 1}, []uint64{1, 3, 1, relabelled + 2})
	b.Ack(two) // late: it was given before
	wantLeft(t, q, []uint64{3, 1}, []uint64{1, 3, 1})
	b.Ack(two)
	b.Ack(1)
	wantLeft(t, q, []uint64{3, 1}, []uint64{3, 1})
}

func TestWhatIsGoneIsNotReplaced(t *testing.T) {
	q, a, b := replaceQueue(t, t.TempDir())
	b.Ack(mustNext(t, b).Seq)
	mustNext(t, a)
	try := func(want error, seqs ...uint64) {
		t.Helper()
		x := &Txn{Replace: seqs}
		for i := range seqs {
			x.Entries = append(x.Entries, testEntry(2, uint64(i+1), 10))
		}
		x.Prepare = func(*Txn) error { t.Error("Prepare is called"); return nil }
		if _, err := q.Submit(t.Context(), x); !errors.Is(err, want) {
			t.Errorf("in the place of %v: %v, want %v", seqs, err, want)
		}
	}
	try(ErrGone, 1)    // acked by both
	try(ErrGone, 0)    // never was
	try(ErrGone, 4)    // not yet
	try(ErrGone, 2, 1) // one of them
	try(ErrGone, 2, 2) // twice
	if _, err := q.Submit(t.Context(), &Txn{Entries: []Entry{testEntry(2, 1, 10)}, Replace: []uint64{2, 3}}); !errors.Is(err, ErrOptions) {
		t.Errorf("two places for one entry: %v", err)
	}
	if _, err := q.Submit(t.Context(), &Txn{Entries: []Entry{testEntry(1, 1, 1000)}, Replace: []uint64{2}}); !errors.Is(err, ErrOptions) {
		t.Errorf("an id that was taken: %v", err)
	}
	if d := q.Delivered(testLane(2)); d.Len() != 0 {
		t.Errorf("what was refused is in the delivered set: %v", &d)
	}
	wantLeft(t, q, []uint64{2, 3}, []uint64{2, 3})
}

// TestAReplacementDoesNotWaitForRoom: it makes the room that it needs, but for what a copy keeps.
func TestAReplacementDoesNotWaitForRoom(t *testing.T) {
	for _, p := range []Policy{Block, Error, DropNewest, DropOldest} {
		q := policyQueue(t, t.TempDir(), p)
		if st := mustSubmit(t, q, &Txn{Entries: []Entry{testEntry(2, 1, 10000)}, Replace: []uint64{4}}); st != Fresh {
			t.Errorf("policy %v: %v", p, st)
		}
		if s := q.Stats(); len(s.Losses) != 0 {
			t.Errorf("policy %v: %+v", p, s.Losses)
		}
		mustClose(t, q)
	}
}

// TestAReplacementPassesWhoWaitsForRoom: all that is queued may have been refused, so that
// nothing makes room but this.
func TestAReplacementPassesWhoWaitsForRoom(t *testing.T) {
	q := policyQueue(t, t.TempDir(), Block)
	ended := make(chan error, 1)
	go func() {
		_, err := q.Submit(t.Context(), &Txn{Entries: []Entry{testEntry(1, 11, 10000)}})
		ended <- err
	}()
	for len(q.submit) == 0 { // it waits
		runtime.Gosched()
	}
	mustSubmit(t, q, &Txn{Entries: []Entry{testEntry(2, 1, 10000)}, Replace: []uint64{1}, Sync: true})
	mustFlush(t, q)
	c := mustCursor(t, q, "out")
	it := mustNext(t, c)
	if it.Batch.ID.N != 2 {
		t.Errorf("got %v first", it.Batch.ID)
	}
	c.Ack(it.Seq)
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// TestKilledReplacementIsDoneOrNot: whatever the moment, of each batch the old entry is
// in the queue or the new one, for the same cursors.
func TestKilledReplacementIsDoneOrNot(t *testing.T) {
	for _, point := range []string{"queue/commit-before", "queue/commit-after", "queue/roll-copied", "queue/roll-named"} {
		t.Run(point, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			for _, hit := range []int{2, 5, 9, 4} {
				killedChild(t, dir, fmt.Sprintf("%s=kill@%d", point, hit), replaceChildEnv+"=1")
				checkReplaced(t, dir)
			}
		})
	}
}

// replaceChild submits batches of lane 1 and relabels every third one to lane 2, with the
// same number, until it is killed. Cursor a acks odd numbers, b none.
func replaceChild(dir string) error {
	o := crashOptions()
	o.Cursors = []string{"a", "b"}
	q, err := Open(dir, o)
	if err != nil {
		return err
	}
	errs := make(chan error, 3)
	read := func(name string, f func(*Cursor, Item) error) {
		c, err := q.Cursor(name)
		for err == nil {
			var it Item
			if it, err = c.Next(context.Background()); err == nil {
				err = f(c, it)
			}
		}
		errs <- err
	}
	go read("a", func(c *Cursor, it Item) error {
		if it.Batch.ID.N%2 == 1 {
			c.Ack(it.Seq)
		}
		return nil
	})
	go read("b", func(_ *Cursor, it Item) error {
		if n := it.Batch.ID.N; it.Batch.ID.Lane == testLane(1) && n%3 == 0 {
			_, err := q.Submit(context.Background(), &Txn{Entries: []Entry{testEntry(2, n, 50)}, Replace: []uint64{it.Seq}})
			return err
		}
		return nil
	})
	go func() {
		d := q.Delivered(testLane(1))
		for n := d.Next(); ; n++ {
			if _, err := q.Submit(context.Background(), &Txn{Entries: []Entry{testEntry(1, n, int(n%50)*400)}}); err != nil {
				errs <- err
				return
			}
		}
	}()
	return <-errs
}

// checkReplaced looks for both or neither of a pair.
func checkReplaced(t *testing.T, dir string) {
	t.Helper()
	o := crashOptions()
	o.Cursors = []string{"a", "b"}
	q, err := Open(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	done := q.Delivered(testLane(2))
	for _, name := range o.Cursors {
		seen := map[uint64]int{}
		for _, n := range left(t, q, name) {
			seen[n%relabelled]++
			if n >= relabelled != done.Contains(n%relabelled) {
				t.Errorf("%s: batch %d is there, relabelled are %v", name, n, &done)
			}
		}
		for n, times := range seen {
			if times != 1 {
				t.Errorf("%s needs batch %d %d times", name, n, times)
			}
		}
		if all := q.Delivered(testLane(1)); name == "b" && uint64(len(seen)) != all.Count() {
			t.Errorf("b needs %d batches, %d were submitted", len(seen), all.Count())
		}
	}
	if s := q.Stats(); len(s.Losses) != 0 {
		t.Errorf("losses %+v", s.Losses)
	}
	mustClose(t, q)
	checkBolt(t, dir)
}

// TestALateAckCountsForWhatWasReplacedTwice: the entry that it is for took the place of the one
// in the place of the one that was given; it was given a second time.
func TestALateAckCountsForWhatWasReplacedTwice(t *testing.T) {
	q, _, b := replaceQueue(t, t.TempDir())
	one := mustNext(t, b).Seq
	two := mustNext(t, b).Seq
	mustSubmit(t, q, &Txn{Entries: []Entry{testEntry(2, 1, 900)}, Replace: []uint64{two}})
	mustFlush(t, q)
	mustSubmit(t, q, &Txn{Entries: []Entry{testEntry(2, 2, 900)}, Replace: []uint64{4}})
	mustFlush(t, q)
	wantLeft(t, q, []uint64{3, relabelled + 2}, []uint64{1, 3, relabelled + 2})
	b.Ack(two)
	b.Ack(one)
	wantLeft(t, q, []uint64{3, relabelled + 2}, []uint64{3})
}
