package sink

import (
	"errors"
	"fmt"
	"testing"

	"ftfuse/queue"
)

// TestWhatIsSealedAgainIsWrittenThoughWhatFollowsItComesFirst: it stands behind others in the
// queue now, and before them in the file. What is there of them at a kill, or while the file is
// held, is the beginning, and no more is taken for written.
func TestWhatIsSealedAgainIsWrittenThoughWhatFollowsItComesFirst(t *testing.T) {
	const batches = 4
	for written := range batches + 1 {
		for again := range 1 << batches {
			for _, held := range []bool{false, true} {
				t.Run(fmt.Sprintf("%d written, %04b sealed again, held %v", written, again, held), func(t *testing.T) {
					r, from := openLate(t, t.TempDir()), newSealer(1)
					from.lane.Route = 1
					want := ""
					for i := range batches {
						line := fmt.Sprintf("line %d\n", i)
						want += line
						r.submit(t, from.seal(rec{host: "h", path: "f", data: line}))
					}
					must(t, r.q.Flush(t.Context()))
					items := make([]queue.Item, batches)
					for i := range items {
						items[i] = r.next(t)
					}
					must(t, r.placeLate(t.Context(), items))
					for i := range items {
						if i == written && held {
							for _, g := range r.table.eras {
								r.applier.hold(g, errors.New("a test"), 0, nil)
							}
						}
						if i < written || held {
							must(t, r.applier.apply(t.Context(), items[i]))
						}
					}
					for i := range items {
						if again>>i&1 == 1 {
							r.replace(t, items[i].Seq, sealAgain(t, items[i].Entry))
						}
					}
					if held {
						for g := range r.applier.held {
							g.hold.due = g.hold.since
						}
						must(t, r.applier.retry(t.Context()))
					} else {
						r.kill(t)
					}
					r.submit(t, from.seal(rec{host: "h", path: "f", data: "after\n"}))
					must(t, r.q.Flush(t.Context()))
					stop := (&rig{Sink: r.Sink}).runs(t)
					must(t, r.Drain(t.Context()))
					stop()
					r.want(t, "a/f", want+"after\n")
					must(t, r.q.Flush(t.Context()))
					if n, st := places(r.q), r.Stats(); n != 0 || st.PossibleDoubles != 0 || r.pending() != 0 {
						t.Errorf("%d places and %d pending extents are left, %d possible doubles", n, r.pending(), st.PossibleDoubles)
					}
					r.close(t)
				})
			}
		}
	}
}
