package sink

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"ftfuse/queue"
)

// TestPlacedAnswersASinkWithNothingToDo: what is committed is acked, and nothing comes.
func TestPlacedAnswersASinkWithNothingToDo(t *testing.T) {
	dir := t.TempDir()
	r := openLate(t, dir)
	must(t, (&rig{Sink: r.Sink}).placedRunning(t))
	from := newSealer(1)
	from.lane.Route = 1
	r.submit(t, from.seal(rec{host: "h", path: "f", data: "line\n"}))
	must(t, r.q.Flush(t.Context()))
	must(t, (&rig{Sink: r.Sink}).placedRunning(t)) // the checkpoint at its end acks it
	r.close(t)
	r = openLate(t, dir)
	must(t, (&rig{Sink: r.Sink}).placedRunning(t))
	r.want(t, "a/f", "line\n")
	r.close(t)
}

// placedRunning is Placed of a sink that works meanwhile.
func (r *rig) placedRunning(t *testing.T) error {
	defer r.runs(t)()
	return r.Placed(t.Context())
}

// TestPlacedWaitsForWhatTheStartLeft: the cursor has given it, and gives it again.
func TestPlacedWaitsForWhatTheStartLeft(t *testing.T) {
	dir := t.TempDir()
	r := openLate(t, dir)
	from := newSealer(1)
	from.lane.Route = 1
	for i := range 3 {
		r.submit(t, from.seal(rec{host: "h", path: "f", data: fmt.Sprintf("line %d\n", i)}))
	}
	must(t, r.q.Flush(t.Context()))
	items := []queue.Item{r.next(t), r.next(t), r.next(t)}
	must(t, r.placeLate(t.Context(), items[2:])) // the others are damaged in the state, say
	r.close(t)
	r = openLate(t, dir)
	q := &ask{upTo: 3, yes: make(chan struct{})}
	r.applier.late.asks = []*ask{q}
	for i := range 3 {
		item, err := r.applier.nextLate(t.Context())
		must(t, err)
		select {
		case <-q.yes:
			if i < 2 {
				t.Fatalf("the answer came with %d of 2 batches placed", i)
			}
		default:
			if i == 2 {
				t.Error("no answer when all is placed")
			}
		}
		must(t, r.applyLate(t.Context(), item))
	}
	r.close(t)
}

// TestPlacedIsGivenUp with its context, and is not asked any more.
func TestPlacedIsGivenUp(t *testing.T) {
	r := openLate(t, t.TempDir())
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := r.Placed(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("%v, want the context's error: nobody applies", err)
	}
	if n := len(r.applier.late.asks); n != 0 {
		t.Errorf("%d calls are kept", n)
	}
	r.close(t)
}
