package queue

import (
	"bytes"
	"testing"

	"ftfuse/internal/batch"
)

// TestAListOfABusyQueueEnds: what comes while it is made is not in it, or it would have no end
// on a host that is always busy; nor would an export.
func TestAListOfABusyQueueEnds(t *testing.T) {
	q := mustOpen(t, t.TempDir(), Options{})
	n := uint64(0)
	put := func() {
		n++
		mustSubmit(t, q, &Txn{Entries: []Entry{testEntry(1, n, 40)}})
		mustFlush(t, q)
	}
	put()
	put()
	seen := 0
	more := func() {
		if seen++; seen < 100 {
			put()
		}
	}
	if err := q.List(t.Context(), "", func(Listed) error { more(); return nil }); err != nil || seen != 2 {
		t.Errorf("a list of 2 batches gave %d, %v", seen, err)
	}
	have := n
	seen = 0
	if err := q.Cat(t.Context(), "out", func(Listed, batch.Sealed) error { more(); return nil }); err != nil || seen != int(have) {
		t.Errorf("%d batches gave %d, %v", have, seen, err)
	}
	have = n
	var out busyWriter
	out.put = put
	if sum, err := q.Export(t.Context(), &out, ""); err != nil || sum.Batches != have {
		t.Errorf("an export of %d batches has %d, %v", have, sum.Batches, err)
	}
}

// busyWriter is a place for an export that is slower than what comes in.
type busyWriter struct {
	bytes.Buffer
	put func()
}

func (w *busyWriter) Write(p []byte) (int, error) {
	if w.Len() < 4<<20 {
		w.put()
	}
	return w.Buffer.Write(p)
}
