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
	return queue.Entry{Batch: again}
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
