package e2e

import (
	"errors"
	"testing"
	"time"

	"ftfuse/bench/rig"
	"ftfuse/bench/tally"
)

// brokenFor is how long a fault of a link stands in the short tests.
const brokenFor = time.Second

// Two sources and an aggregator, each a host: its links are broken one way after the other,
// and every line stands once, in order.
func TestBrokenLinksLoseAndDoubleNothing(t *testing.T) {
	s := newSite(t)
	s.needLinks()
	g := s.agg("g1")
	for _, name := range []string{"s1", "s2"} {
		s.source(name, "", group{mode: "any", primary: []*rig.Host{g}})
	}
	s.start()
	f := s.startFlow(2, rig.Job{Size: 64, Lines: tally.MaxLines, Rate: 3000})
	for _, breaks := range []func() error{
		func() error { return g.Cut(rig.In) },
		func() error { return g.Cut(rig.Out) },
		func() error { return g.Reset(60) },
		func() error { return g.Lose(rig.In, 30) },
		func() error { return errors.Join(g.Cut(rig.In), g.Cut(rig.Out)) },
	} {
		f.moves(10_000)
		must(t, breaks())
		must(t, rig.Wait(t.Context(), brokenFor))
		must(t, g.Heal())
	}
	f.moves(10_000)
	f.finish()
	f.settle(true)
	s.stop()
	v, err := f.count()
	must(t, err)
	f.exact(v, true)
	if v.disorder != 0 {
		t.Errorf("%d lines are out of order on a way that never changed", v.disorder)
	}
}
