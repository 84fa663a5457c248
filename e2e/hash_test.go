package e2e

import (
	"fmt"
	"os"
	"slices"
	"testing"

	"ftfuse/bench/rig"
	"ftfuse/bench/tally"
)

// With hash, a file of a host is at one aggregator, in order, and stays there when every
// role has been started again.
func TestHashKeepsAFileAtOneAggregator(t *testing.T) {
	s := newSite(t)
	twoStages(s, "hash")
	s.files = []string{"1.log", "2.log", "3.log", "4.log", "5.log", "6.log", "7.log", "8.log"}
	s.start()
	f := s.startFlow(1, rig.Job{Size: 64, Lines: tally.MaxLines, Rate: 300})
	f.moves(100_000)
	at := map[stream]string{}
	for range 2 {
		for from := range f.writers {
			was, again := at[from]
			eventually(t, patience, func() error { // after a restart: once it is back from where it went meanwhile
				if at[from] = growing(t, f, from); again && at[from] != was {
					return fmt.Errorf("%s of %s goes to %s, and went to %s before the restart", from.file, from.src.Name, at[from], was)
				}
				return nil
			})
		}
		for _, h := range slices.Concat(s.aggs, s.relays) {
			must(t, h.Stop())
			must(t, h.Start(t.Context()))
		}
		for _, h := range s.sources {
			must(t, h.Role.KillWorker())
		}
		f.moves(100_000)
	}
	f.finish()
	f.settle(false)
	s.stop()
	v, err := f.count()
	must(t, err)
	f.exact(v, false)
	places := map[string]int{}
	for _, g := range at {
		places[g]++
	}
	if len(places) != 2 {
		t.Errorf("%d files are spread so: %v", len(at), places)
	}
	t.Logf("%d files are spread so: %v", len(at), places)
}

// growing waits until a stream has grown at an aggregator and names it.
func growing(t *testing.T, f *flow, from stream) string {
	t.Helper()
	size := func(g *rig.Host) int64 {
		if st, err := os.Stat(from.out(g)); err == nil {
			return st.Size()
		}
		return 0
	}
	before := map[*rig.Host]int64{}
	for _, g := range f.s.aggs {
		before[g] = size(g)
	}
	var name string
	eventually(t, patience, func() error {
		for _, g := range f.s.aggs {
			if size(g) > before[g] {
				name = g.Name
				return nil
			}
		}
		return os.ErrNotExist
	})
	return name
}
