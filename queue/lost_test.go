package queue

import (
	"slices"
	"testing"

	"ftfuse/internal/batch"
)

// lostText is what LostRanges says, for comparing.
func lostText(q *Queue, lane byte) (text []string) {
	for _, l := range q.LostRanges(testLane(lane)) {
		text = append(text, l.Reason+" "+l.Ranges.String())
	}
	return text
}

func TestLossesAreToldInOrderOnceTheyAreOnDisk(t *testing.T) {
	dir := t.TempDir()
	var told []uint64
	o := Options{MaxBytes: 102 << 10, OnFull: DropOldest, Dedupe: true}
	var q *Queue
	o.OnLoss = func(l Loss) {
		if l.Reason != LostDropOldest || l.ID.Lane != testLane(1) || l.Records != uint32(l.ID.N%7+1) || l.Payload != 10000 || l.Seq != l.ID.N || l.Copy {
			t.Errorf("told of %+v", l)
		}
		told = append(told, l.ID.N)
		_ = q.Stats() // no lock is held
	}
	q = mustOpen(t, dir, o)
	for n := uint64(1); n <= 40; n++ {
		mustSubmit(t, q, &Txn{Entries: []Entry{testEntry(1, n, 10000)}})
	}
	mustClose(t, q)
	if len(told) != 30 || !slices.IsSorted(told) || told[0] != 1 {
		t.Fatalf("told of %v", told)
	}
	o.OnLoss = func(l Loss) { t.Errorf("told again of %+v", l) }
	q = mustOpen(t, dir, o)
	got := q.LostRanges(testLane(1))
	if len(got) != 1 || got[0].Ranges.String() != "1-30" || got[0].Batches != 30 || got[0].Payload != 300000 || !slices.Equal(q.LostLanes(), []batch.Lane{testLane(1)}) {
		t.Fatalf("after a restart: %+v", got)
	}
	mustClose(t, q)
}

func TestMergeForgetsLossesBelowTheHorizon(t *testing.T) {
	dir := t.TempDir()
	q := mustOpen(t, dir, Options{MaxBytes: 1000, OnFull: DropNewest, Dedupe: true})
	mustSubmit(t, q, &Txn{Entries: []Entry{testEntry(1, 1, 2000)}})
	for _, n := range []uint64{2, 3, 5, 8} {
		if st := mustSubmit(t, q, &Txn{Entries: []Entry{testEntry(1, n, 100)}}); st != Dropped {
			t.Fatal(st)
		}
	}
	mustSubmit(t, q, &Txn{Entries: []Entry{testEntry(2, 1, 100)}})
	q.Merge(testLane(1), 6)
	q.Merge(testLane(2), 2)
	for range 2 {
		if got := lostText(q, 1); !slices.Equal(got, []string{"drop_newest 8"}) {
			t.Errorf("lane 1 lost %v", got)
		}
		if got := lostText(q, 2); got != nil || len(q.LostLanes()) != 1 {
			t.Errorf("lane 2 lost %v, lanes %v", got, q.LostLanes())
		}
		mustClose(t, q)
		q = mustOpen(t, dir, Options{Dedupe: true})
	}
	if got := q.Stats().Losses[LostDropNewest].Batches; got != 5 {
		t.Errorf("%d losses are counted, want 5", got)
	}
}

// TestWhatIsForgottenOfLossesIsNotCounted: the counts go out with the numbers, in a skip, and
// a node that hears it counts them as those of these batches.
func TestWhatIsForgottenOfLossesIsNotCounted(t *testing.T) {
	l := newLostLanes()
	for n := uint64(1); n <= 1000; n++ {
		l.add(batch.ID{Lane: testLane(1), N: n}, LostExpired, tally{1, 10, 1 << 40, 0})
	}
	l.merge(testLane(1), 998)
	if x := l.lanes[testLane(1)].by[0]; x.Ranges.String() != "998-1000" || x.Batches != 3 || x.Records != 30 || x.Payload != 3<<40 {
		t.Errorf("%+v", x)
	}
}

func TestNamedLossesAreBounded(t *testing.T) {
	l := newLostLanes()
	for n := range uint64(2 * maxLostRanges) {
		l.add(batch.ID{Lane: testLane(1), N: 2*n + 1}, LostExpired, tally{1, 2, 3, 4})
	}
	x := l.lanes[testLane(1)].by[0]
	if x.Ranges.Len() != maxLostRanges || !x.Ranges.Contains(4*maxLostRanges-1) || x.Batches != maxLostRanges || x.Records != 2*maxLostRanges || x.Payload != 3*maxLostRanges {
		t.Errorf("%d ranges, %d batches", x.Ranges.Len(), x.Batches)
	}
	for i := range uint64(maxLostLanes + 10) {
		lane := testLane(2)
		lane.Epoch.Random = i
		l.add(batch.ID{Lane: lane, N: 1}, LostExpired, tally{})
	}
	if len(l.lanes) != maxLostLanes || l.lanes[testLane(1)] != nil {
		t.Errorf("%d lanes, the oldest is there: %v", len(l.lanes), l.lanes[testLane(1)] != nil)
	}
}

// TestACopyThatIsDroppedIsNotTheBatch: what only a cursor of Copies had not passed.
func TestACopyThatIsDroppedIsNotTheBatch(t *testing.T) {
	var told []Loss
	q := mustOpen(t, t.TempDir(), Options{
		MaxBytes: 42 << 10, OnFull: DropOldest, MemoryBytes: 1, Cursors: []string{"out", "apply"}, Copies: []string{"apply"},
		OnLoss: func(l Loss) { told = append(told, l) },
	})
	for n := uint64(1); n <= 4; n++ {
		mustSubmit(t, q, &Txn{Entries: []Entry{testEntry(1, n, 10000)}})
	}
	mustFlush(t, q)
	c := mustCursor(t, q, "out")
	c.Ack(mustNext(t, c).Seq)
	for n := uint64(5); n <= 6; n++ {
		mustSubmit(t, q, &Txn{Entries: []Entry{testEntry(1, n, 10000)}})
	}
	if got := lostText(q, 1); !slices.Equal(got, []string{"drop_oldest 2"}) {
		t.Errorf("named are %v, want batch 2 alone", got)
	}
	mustClose(t, q)
	if len(told) != 2 || !told[0].Copy || told[0].ID.N != 1 || told[1].Copy || told[1].ID.N != 2 {
		t.Errorf("told of %+v", told)
	}
}
