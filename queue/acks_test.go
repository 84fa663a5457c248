package queue

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

// TestATxnWithAcksHasThemAllOnDisk though acks go along seldom, as with many ranges: a start
// from what the disk has when Done is called gives nothing of them again.
func TestATxnWithAcksHasThemAllOnDisk(t *testing.T) {
	dir, image := t.TempDir(), filepath.Join(t.TempDir(), "image")
	o := Options{Dedupe: true, cheapRanges: -1}
	q := mustOpen(t, dir, o)
	for n := uint64(1); n <= 5; n++ {
		mustSubmit(t, q, &Txn{Entries: []Entry{testEntry(1, n, 900)}})
	}
	mustFlush(t, q)
	c := mustCursor(t, q, "out")
	for n := uint64(1); n <= 4; n++ {
		if seq := mustNext(t, c).Seq; n != 2 {
			c.Ack(seq)
		}
	}
	copied := make(chan error, 1)
	mustSubmit(t, q, &Txn{Set: []KV{{Key: "k", Value: []byte("v")}}, Sync: true, Acks: true, Done: func(err error) {
		copied <- errors.Join(err, os.CopyFS(image, os.DirFS(dir)))
	}})
	if err := <-copied; err != nil {
		t.Fatal(err)
	}
	mustClose(t, q)
	q = mustOpen(t, image, o)
	left := []uint64{2, 5}
	c = mustCursor(t, q, "out")
	for _, n := range left {
		if got := mustNext(t, c).Batch.ID.N; got != n {
			t.Errorf("given is %d, want %d", got, n)
		}
	}
	mustClose(t, q)
}
