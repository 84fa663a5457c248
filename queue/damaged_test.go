package queue

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"ftfuse/internal/batch"
	"ftfuse/internal/roletest"
)

// withLoss returns a queue that was given batches 1 to 3 of lane 1, and found the second one
// damaged, with that on disk.
func withLoss(t *testing.T, dir string, o Options) *Queue {
	t.Helper()
	q := mustOpen(t, dir, o)
	for n := uint64(1); n <= 3; n++ {
		mustSubmit(t, q, &Txn{Entries: []Entry{testEntry(1, n, 900)}})
	}
	mustClose(t, q)
	e := testEntry(1, 2, 900)
	roletest.Spoil(t, dir, e.Batch.Data)
	told := make(chan Loss, 1)
	o.OnLoss = func(l Loss) { told <- l }
	q = mustOpen(t, dir, o)
	c := mustCursor(t, q, "out")
	for _, n := range []uint64{1, 3} {
		if it := mustNext(t, c); it.Batch.ID.N != n {
			t.Fatalf("given is %v, want batch %d", it.Batch.ID, n)
		}
	}
	select {
	case l := <-told:
		if l.Reason != LostCorrupt || l.ID.N != 2 {
			t.Fatalf("told of %+v", l)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("the loss is not told")
	}
	return q
}

// TestWhatWasDamagedIsTakenAgainOnce: the copy that another node kept is no duplicate of a
// batch that this disk lost; over a restart, too. Another content under the id still is one.
func TestWhatWasDamagedIsTakenAgainOnce(t *testing.T) {
	for _, restart := range []bool{false, true} {
		dir := t.TempDir()
		o := Options{Dedupe: true, MemoryBytes: 1}
		q := withLoss(t, dir, o)
		if restart {
			mustClose(t, q)
			q = mustOpen(t, dir, o)
		}
		other := testEntry(1, 2, 901)
		if _, err := q.Submit(t.Context(), &Txn{Entries: []Entry{other}}); !errors.Is(err, ErrConflict) {
			t.Errorf("another content: %v", err)
		}
		for _, n := range []uint64{1, 3} {
			x := Txn{Entries: []Entry{testEntry(1, n, 900)}}
			if st := mustSubmit(t, q, &x); st != Duplicate || x.Healed {
				t.Errorf("batch %d, which is whole: %v", n, st)
			}
		}
		x := Txn{Entries: []Entry{testEntry(1, 2, 900), testEntry(1, 2, 900)}}
		if st := mustSubmit(t, q, &x); st != Fresh || !x.Healed || len(x.Entries) != 1 {
			t.Errorf("the damaged one: %v, %d entries", st, len(x.Entries))
		}
		for range 2 {
			if st := mustSubmit(t, q, &Txn{Entries: []Entry{testEntry(1, 2, 900)}}); st != Duplicate {
				t.Errorf("the damaged one once more: %v", st)
			}
			mustFlush(t, q)
			if got := lostText(q, 1); got != nil {
				t.Errorf("named as lost are %v", got)
			}
		}
		if st := q.Stats(); st.Losses[LostCorrupt].Batches != 1 || st.Healed.Batches != 1 || st.Healed.Payload != 900 {
			t.Errorf("counted are %+v, healed %+v", st.Losses, st.Healed)
		}
		c := mustCursor(t, q, "out")
		var got []uint64
		c.Rewind()
		for range 3 {
			got = append(got, mustNext(t, c).Batch.ID.N)
		}
		if !slices.Equal(got, []uint64{1, 3, 2}) {
			t.Errorf("given are %v", got)
		}
		mustClose(t, q)
	}
}

// TestADamagedBatchThatCameAgainIsKnownAfterAKill: that it is welcome ends with the commit
// that holds it, or it would be taken, and written, twice.
func TestADamagedBatchThatCameAgainIsKnownAfterAKill(t *testing.T) {
	dir, image := t.TempDir(), filepath.Join(t.TempDir(), "image")
	o := Options{Dedupe: true, MemoryBytes: 1, cheapRanges: -1} // acks, and losses, go along seldom
	q := withLoss(t, dir, o)
	mustFlush(t, q)
	copied := make(chan error, 1)
	mustSubmit(t, q, &Txn{Entries: []Entry{testEntry(1, 2, 900)}, Sync: true, Done: func(err error) {
		copied <- errors.Join(err, os.CopyFS(image, os.DirFS(dir)))
	}})
	if err := <-copied; err != nil {
		t.Fatal(err)
	}
	mustClose(t, q)
	q = mustOpen(t, image, o)
	if st := mustSubmit(t, q, &Txn{Entries: []Entry{testEntry(1, 2, 900)}}); st != Duplicate {
		t.Errorf("after a kill it is %v", st)
	}
	mustClose(t, q)
}

// TestWhatWasLostBehindIsTakenAgainOnce, unless it is final.
func TestWhatWasLostBehindIsTakenAgainOnce(t *testing.T) {
	q := mustOpen(t, t.TempDir(), Options{Dedupe: true})
	for n := uint64(1); n <= 6; n++ {
		mustSubmit(t, q, &Txn{Entries: []Entry{testEntry(1, n, 100)}})
	}
	q.TakeAgain(testLane(1), batch.Range{First: 2, Last: 4}, batch.Range{First: 6, Last: 1 << 63})
	q.TakeAgain(testLane(2), batch.Range{First: 1, Last: 1 << 63})
	q.Merge(testLane(1), 3)
	want := map[uint64]Status{1: Duplicate, 2: Duplicate, 3: Fresh, 4: Fresh, 5: Duplicate, 6: Fresh}
	for range 2 {
		for n := uint64(1); n <= 6; n++ {
			if st := mustSubmit(t, q, &Txn{Entries: []Entry{testEntry(1, n, 100)}}); st != want[n] {
				t.Errorf("batch %d is %v, want %v", n, st, want[n])
			}
			want[n] = Duplicate
		}
	}
	if len(q.damaged.behind) != 0 || len(q.damaged.coming) != 0 {
		t.Errorf("kept are %v, %v", q.damaged.behind, q.damaged.coming)
	}
	mustClose(t, q)
}

// TestVerifyNamesWhatIsSetAside, of an open and of a closed queue; it is no damage any more.
func TestVerifyNamesWhatIsSetAside(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "[a]") // no pattern
	q := mustOpen(t, dir, Options{})
	want := filepath.Join(dir, "0000000000000001.seg"+corruptExt)
	if err := os.WriteFile(want, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	check := func(r Report, err error) {
		t.Helper()
		if err != nil || r.Damaged() || !slices.Equal(r.Aside, []string{want}) {
			t.Errorf("%+v, %v", r, err)
		}
	}
	check(q.Verify(t.Context()))
	mustClose(t, q)
	check(Verify(dir))
}
