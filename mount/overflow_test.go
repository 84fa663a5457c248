package mount

import (
	"fmt"
	"strings"
	"testing"

	"ftfuse/internal/status"
)

// TestWhatAFullQueueDropsOfKernelWritersIsCounted, by reason, in bytes and records: with what
// is kept that makes up what was written. What is kept is whole lines in order, the newest
// or the oldest of them.
func TestWhatAFullQueueDropsOfKernelWritersIsCounted(t *testing.T) {
	needPassthrough(t)
	const lines, size = 4000, 1000
	line := func(i int) string { return fmt.Sprintf("%-*d\n", size-1, i) }
	for _, policy := range []string{"drop_oldest", "drop_newest"} {
		t.Run(policy, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, fmt.Sprintf("[mount.queue]\nmax_bytes = \"1MiB\"\non_full = %q\n", policy))
			f := appender(t, r.path("a"))
			for i := range lines {
				put(t, f, line(i))
				if i%100 == 0 {
					must(t, f.Sync()) // a batch of its own
				}
			}
			var kept, lost, taken status.Tally
			eventually(t, "all is kept or dropped", func() bool {
				s, err := r.status()
				must(t, err)
				kept, taken = s.Queue.Cursors[0].Backlog, s.Accepted
				if len(s.Dropped) != 1 || s.Dropped[0].Reason != policy {
					return false
				}
				lost = s.Dropped[0].Tally
				return kept.Bytes+lost.Bytes == lines*size
			})
			must(t, f.Close())
			r.stop()
			var got []string
			for _, one := range r.records() {
				for l := range strings.Lines(one.data) {
					got = append(got, l)
				}
			}
			if uint64(len(got))*size != kept.Bytes || len(got) == 0 || lost.Bytes == 0 || lost.Batches == 0 {
				t.Errorf("%d lines are in the queue; kept %+v, lost %+v", len(got), kept, lost)
			}
			if kept.Records != uint64(len(r.records())) || kept.Records+lost.Records != taken.Records || kept.Batches+lost.Batches != taken.Batches {
				t.Errorf("%d records are in the queue; kept %+v, lost %+v, taken in %+v", len(r.records()), kept, lost, taken)
			}
			last := -1
			for _, l := range got {
				var n int
				fmt.Sscanf(l, "%d", &n)
				if l != line(n) || n <= last {
					t.Fatalf("line %s behind number %d", brief(l), last)
				}
				last = n
			}
			if first := got[0]; (policy == "drop_newest") != (first == line(0)) || policy == "drop_oldest" && last != lines-1 {
				t.Errorf("kept from %s to number %d", brief(first), last)
			}
		})
	}
}
