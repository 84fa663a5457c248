package sink

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"ftfuse/internal/batch"
	"ftfuse/internal/failpoint"
	"ftfuse/internal/record"
	"ftfuse/queue"
)

// sealAgain returns what is to come in the place of e, under a new id.
func sealAgain(t *testing.T, e queue.Entry) queue.Entry {
	t.Helper()
	id := e.Batch.ID
	id.Lane.Epoch.Random++
	again, err := record.Relabel(e.Batch, id)
	must(t, err)
	note, err := Renote(e.Note, e.Batch.ID)
	must(t, err)
	return queue.Entry{Batch: again, Note: note}
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
			again := sealAgain(t, queue.Entry{Batch: b})
			r := openLate(t, t.TempDir())
			defer r.close(t)
			submit := func(b batch.Sealed) { r.submit(t, b); must(t, r.q.Flush(t.Context())) }
			submit(b)
			old := r.next(t)
			come(t, r, old, func() {
				_, err := r.q.Submit(t.Context(), &queue.Txn{Entries: []queue.Entry{again}, Replace: []uint64{old.Seq}})
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

// TestABatchThatIsSealedAgainStandsOnceWhereverItIsKilled: at each step of the output, and of who
// seals it again, once or twice. The queue and the file are as they were at that moment, and
// nothing is left of what the forwarder knows of the ids.
func TestABatchThatIsSealedAgainStandsOnceWhereverItIsKilled(t *testing.T) {
	place := func(t *testing.T, r *lateRig, item queue.Item) queue.Item {
		items := []queue.Item{item}
		must(t, r.placeLate(t.Context(), items))
		return items[0]
	}
	write := func(t *testing.T, r *lateRig, item queue.Item) {
		must(t, r.applier.apply(t.Context(), place(t, r, item)))
	}
	part := func(t *testing.T, r *lateRig, item queue.Item) {
		place(t, r, item)
		must(t, os.WriteFile(filepath.Join(r.dir, "out/a/f"), []byte("before\nli"), 0o644))
	}
	for name, steps := range map[string][]func(t *testing.T, r *lateRig, item queue.Item){
		"before it is given":             {nil, nil},
		"placed":                         {func(t *testing.T, r *lateRig, item queue.Item) { place(t, r, item) }, nil},
		"placed when it had another id":  {nil, func(t *testing.T, r *lateRig, item queue.Item) { place(t, r, item) }},
		"written in part":                {part, nil},
		"written":                        {write, nil},
		"written when it had another id": {nil, write},
		"synced": {write, func(t *testing.T, r *lateRig, _ queue.Item) {
			must(t, failpoint.Set("sink/synced", "error"))
			defer failpoint.Clear("sink/synced")
			if err := r.applier.checkpoint(func(...batch.ID) {}); !errors.Is(err, failpoint.ErrInjected) {
				t.Errorf("the checkpoint: %v", err)
			}
		}},
		"acked, which is not on disk": {write, func(t *testing.T, r *lateRig, _ queue.Item) {
			must(t, failpoint.Set("sink/trimmed", "error"))
			defer failpoint.Clear("sink/trimmed")
			if err := r.applier.checkpoint(func(...batch.ID) {}); !errors.Is(err, failpoint.ErrInjected) {
				t.Errorf("the checkpoint: %v", err)
			}
		}},
		"acked":              {write, func(t *testing.T, r *lateRig, _ queue.Item) { r.checkpoint(t); must(t, r.q.Flush(t.Context())) }},
		"acked under its id": {func(t *testing.T, r *lateRig, item queue.Item) { write(t, r, item); r.checkpoint(t) }, nil},
	} {
		for _, times := range []int{1, 2} {
			t.Run(fmt.Sprintf("%s, %d times", name, times), func(t *testing.T) {
				r, from := openLate(t, t.TempDir()), newSealer(1)
				from.lane.Route = 1
				r.submit(t, from.seal(rec{host: "h", path: "f", data: "before\n"}))
				must(t, r.q.Flush(t.Context()))
				r.one(t)
				r.checkpoint(t)
				r.submit(t, from.seal(rec{host: "h", path: "f", data: "line\n"}))
				must(t, r.q.Flush(t.Context()))
				item := r.next(t)
				do := func(step func(*testing.T, *lateRig, queue.Item)) {
					if step != nil {
						step(t, r, item)
					}
				}
				do(steps[0])
				e, seq := item.Entry, item.Seq
				for range times {
					e = sealAgain(t, e)
					r.replace(t, seq, e)
					seq = r.q.Stats().Committed
				}
				do(steps[1])
				r.kill(t)
				r.submit(t, from.seal(rec{host: "h", path: "f", data: "after\n"}))
				stop := (&rig{Sink: r.Sink}).runs(t)
				must(t, r.q.Flush(t.Context()))
				must(t, r.Drain(t.Context()))
				stop()
				r.want(t, "a/f", "before\nline\nafter\n")
				must(t, r.q.Flush(t.Context()))
				if n, st := places(r.q), r.Stats(); n != 0 || st.PossibleDoubles != 0 || r.pending() != 0 {
					t.Errorf("%d places and %d pending extents are left, %d possible doubles", n, r.pending(), st.PossibleDoubles)
				}
				r.close(t)
			})
		}
	}
}

// replace commits e in the place of seq.
func (r *lateRig) replace(t *testing.T, seq uint64, e queue.Entry) {
	t.Helper()
	_, err := r.q.Submit(t.Context(), &queue.Txn{Entries: []queue.Entry{e}, Replace: []uint64{seq}})
	must(t, err)
	must(t, r.q.Flush(t.Context()))
}

// kill opens queue and sink as they are on disk now, whatever they have in memory.
func (r *lateRig) kill(t *testing.T) {
	t.Helper()
	at := filepath.Join(t.TempDir(), "queue")
	must(t, os.CopyFS(at, os.DirFS(filepath.Join(r.dir, "queue"))))
	r.close(t)
	must(t, os.RemoveAll(filepath.Join(r.dir, "queue")))
	must(t, os.Rename(at, filepath.Join(r.dir, "queue")))
	*r = *openLate(t, r.dir)
}

// TestPlacedWaitsForWhatIsSealedAgainMeanwhile: it is behind what was asked for then, and had
// no places yet: the output that a reload takes away after that did not get it.
func TestPlacedWaitsForWhatIsSealedAgainMeanwhile(t *testing.T) {
	r, from := openLate(t, t.TempDir()), newSealer(1)
	defer r.close(t)
	from.lane.Route = 1
	for i := range 2 {
		r.submit(t, from.seal(rec{host: "h", path: "f", data: fmt.Sprintf("line %d\n", i)}))
	}
	must(t, r.q.Flush(t.Context()))
	cur, err := r.q.Cursor("forward")
	must(t, err)
	first, err := cur.Next(t.Context())
	must(t, err)
	asked := func(upTo uint64) func() bool {
		return func() bool {
			r.applier.mu.Lock()
			defer r.applier.mu.Unlock()
			return len(r.applier.late.asks) == 1 && r.applier.late.asks[0].upTo == upTo
		}
	}
	done := make(chan error, 1)
	go func() { done <- r.Placed(t.Context()) }()
	waitFor(t, "the call", asked(2))
	r.replace(t, first.Seq, sealAgain(t, first.Entry))
	item, err := r.applier.nextLate(t.Context())
	must(t, err)
	must(t, r.placeLate(t.Context(), []queue.Item{item}))
	r.applier.late.placed = item.Seq
	if item, err = r.applier.nextLate(t.Context()); err != nil || item.Seq != 3 {
		t.Fatalf("the queue gave %d, %v, want what is sealed again", item.Seq, err)
	}
	waitFor(t, "another question", func() bool { return asked(3)() || len(done) > 0 })
	if len(done) > 0 {
		t.Fatal("a batch that was asked for has no places")
	}
	must(t, r.placeLate(t.Context(), []queue.Item{item}))
	r.applier.mu.Lock()
	r.applier.late.placed = item.Seq
	r.applier.answer()
	r.applier.mu.Unlock()
	must(t, <-done)
}

// TestSealingAgainBesideTheOutputDoublesNothing: who fills the queue, who seals its batches again
// and who writes them are at it at once, and killed again and again.
func TestSealingAgainBesideTheOutputDoublesNothing(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 1))
	r, from := openLate(t, t.TempDir()), newSealer(1)
	from.lane.Route = 1
	want, again := 0, 0
	for range 12 {
		stop := (&rig{Sink: r.Sink}).runs(t)
		cur, err := r.q.Cursor("forward")
		must(t, err)
		for range 60 {
			r.submit(t, from.seal(rec{host: "h", path: "f", data: fmt.Sprintf("line %d\n", want)}))
			if want++; rnd.IntN(4) == 0 {
				must(t, r.q.Flush(t.Context()))
			}
			if rnd.IntN(3) == 0 {
				continue
			}
			item, err := cur.Next(t.Context())
			must(t, err)
			if rnd.IntN(2) == 0 {
				cur.Ack(item.Seq)
				continue
			}
			again++
			_, err = r.q.Submit(t.Context(), &queue.Txn{Entries: []queue.Entry{sealAgain(t, item.Entry)}, Replace: []uint64{item.Seq}})
			must(t, err)
		}
		stop()
		must(t, r.q.Flush(t.Context()))
		r.kill(t)
	}
	stop := (&rig{Sink: r.Sink}).runs(t)
	must(t, r.Placed(t.Context()))
	must(t, r.Drain(t.Context()))
	stop()
	raw, err := os.ReadFile(filepath.Join(r.dir, "out/a/f"))
	must(t, err)
	seen := map[string]int{}
	for line := range strings.Lines(string(raw)) {
		seen[line]++
	}
	for i := range want {
		if line := fmt.Sprintf("line %d\n", i); seen[line] != 1 {
			t.Errorf("%q stands %d times", line, seen[line])
		}
	}
	must(t, r.q.Flush(t.Context()))
	if n := places(r.q); len(seen) != want || again == 0 || n != 0 {
		t.Errorf("%d lines of %d, %d sealed again, %d places are left", len(seen), want, again, n)
	}
	r.close(t)
}
