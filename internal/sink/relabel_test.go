package sink

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"ftfuse/internal/batch"
	"ftfuse/internal/failpoint"
	"ftfuse/internal/record"
	"ftfuse/queue"
)

// sealAgain returns b under a new id, and what tells its former one.
func sealAgain(t *testing.T, b batch.Sealed) (again batch.Sealed, former func(batch.ID) (batch.ID, bool)) {
	t.Helper()
	id := b.ID
	id.Lane.Epoch.Random++
	again, err := record.Relabel(b, id)
	must(t, err)
	return again, func(id batch.ID) (batch.ID, bool) { return b.ID, id == again.ID }
}

// one gives the sink the next batch of the queue, and what is there behind it.
func (r *lateRig) one(t *testing.T) {
	t.Helper()
	must(t, r.applyLate(t.Context(), r.next(t)))
}

func (r *lateRig) next(t *testing.T) queue.Item {
	t.Helper()
	item, err := r.applier.cur.Next(t.Context())
	must(t, err)
	return item
}

func (r *lateRig) checkpoint(t *testing.T) {
	t.Helper()
	must(t, r.applier.checkpoint(func(...batch.ID) {}))
}

func (r *lateRig) pending() (n int) {
	r.table.mu.Lock()
	defer r.table.mu.Unlock()
	for _, g := range r.table.eras {
		n += g.pending
	}
	return n
}

// TestABatchThatWasSealedAgainIsSettledOnce: it comes twice, and was given its places once.
// Were they settled twice, the file would be forgotten while a batch waits to be written to it.
func TestABatchThatWasSealedAgainIsSettledOnce(t *testing.T) {
	for name, come := range map[string]func(t *testing.T, r *lateRig, old queue.Item, replace func()){
		"while the old one waits for its checkpoint": func(t *testing.T, r *lateRig, old queue.Item, replace func()) {
			must(t, r.applyLate(t.Context(), old))
			replace()
			r.one(t)
		},
		"with the old one": func(t *testing.T, r *lateRig, old queue.Item, replace func()) {
			replace()
			must(t, r.applyLate(t.Context(), old))
		},
		"while the old one is acked": func(t *testing.T, r *lateRig, old queue.Item, replace func()) {
			must(t, r.applyLate(t.Context(), old))
			replace()
			again := r.next(t)
			must(t, failpoint.Set("sink/trimmed", "pause"))
			defer failpoint.Clear("sink/trimmed")
			done := make(chan error, 1)
			go func() { done <- r.applier.checkpoint(func(...batch.ID) {}) }()
			waitFor(t, "the ack", func() bool { return fpTrimmed.Hits() > 0 })
			must(t, r.applyLate(t.Context(), again))
			failpoint.Clear("sink/trimmed")
			must(t, <-done)
		},
		"after the old one was acked": func(t *testing.T, r *lateRig, old queue.Item, replace func()) {
			must(t, r.applyLate(t.Context(), old))
			replace()
			again := r.next(t)
			r.checkpoint(t)
			must(t, r.applyLate(t.Context(), again))
		},
		"after the old one was held": func(t *testing.T, r *lateRig, old queue.Item, replace func()) {
			items := []queue.Item{old}
			must(t, r.placeLate(t.Context(), items))
			for _, g := range r.table.eras {
				r.applier.hold(g, errors.New("a test"), 0, nil)
			}
			must(t, r.applier.apply(t.Context(), items[0]))
			replace()
			r.one(t)
			for g := range r.applier.held {
				g.hold.due = g.hold.since
			}
			must(t, r.applier.retry(t.Context())) // which reads the queue again
			r.one(t)
		},
	} {
		t.Run(name, func(t *testing.T) {
			from := newSealer(1)
			from.lane.Route = 1
			b := from.seal(rec{host: "h", path: "f", data: "line\n"})
			again, former := sealAgain(t, b)
			r := openLate(t, t.TempDir(), former)
			defer r.close(t)
			submit := func(b batch.Sealed) { r.submit(t, b); must(t, r.q.Flush(t.Context())) }
			submit(b)
			old := r.next(t)
			come(t, r, old, func() {
				_, err := r.q.Submit(t.Context(), &queue.Txn{Entries: []queue.Entry{{Batch: again}}, Replace: []uint64{old.Seq}})
				must(t, err)
				must(t, r.q.Flush(t.Context()))
			})
			r.checkpoint(t)
			if n := r.pending(); n != 0 {
				t.Errorf("%d extents are pending when all is on disk", n)
			}

			submit(from.seal(rec{host: "h", path: "f", data: "to the old file\n"}))
			items := []queue.Item{r.next(t)}
			must(t, r.placeLate(t.Context(), items))
			must(t, os.Rename(filepath.Join(r.dir, "out/a/f"), filepath.Join(r.dir, "out/a/f.old")))
			must(t, r.Reopen()) // so that the name is looked at
			submit(from.seal(rec{host: "h", path: "f", data: "to the new one\n"}))
			items = append(items, r.next(t))
			must(t, r.placeLate(t.Context(), items[1:]))
			for _, item := range items {
				must(t, r.applier.apply(t.Context(), item))
			}
			r.checkpoint(t)
			r.want(t, "a/f.old", "line\nto the old file\n")
			r.want(t, "a/f", "to the new one\n")
			must(t, r.q.Flush(t.Context()))
			if n := places(r.q); n != 0 || r.pending() != 0 {
				t.Errorf("%d places and %d pending extents are left", n, r.pending())
			}
		})
	}
}
