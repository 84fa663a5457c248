package e2e

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"ftfuse/bench/rig"
	"ftfuse/bench/tally"
)

// gap is the longest time in which no byte came to any aggregator, until so many have come.
func (f *flow) gap(by int64) time.Duration {
	f.s.t.Helper()
	from := f.bytes()
	last, at, longest := from, time.Now(), time.Duration(0)
	eventually(f.s.t, patience, func() error {
		now := f.bytes()
		longest = max(longest, time.Since(at))
		if now != last {
			last, at = now, time.Now()
		}
		if now < from+by {
			return fmt.Errorf("%d bytes came, want %d", now-from, by)
		}
		return nil
	})
	return longest
}

// A destination that dies or goes silent is left in time, comes back, and the writers notice
// nothing of either.
func TestFailoverIsInTimeAndUnnoticedByWriters(t *testing.T) {
	strikes := []struct {
		name   string
		within time.Duration // as the issue has it
		strike func(h *rig.Host) error
		heal   func(h *rig.Host) error
	}{
		{"killed", time.Second, (*rig.Host).Kill, func(h *rig.Host) error { return h.Start(t.Context()) }},
		{"frozen", 5 * time.Second, (*rig.Host).Freeze, (*rig.Host).Thaw},
		{"deaf", 5 * time.Second, func(h *rig.Host) error { return h.Cut(rig.In) }, (*rig.Host).Heal},
		{"dumb", 5 * time.Second, func(h *rig.Host) error { return h.Cut(rig.Out) }, (*rig.Host).Heal},
		{"pulled", 5 * time.Second, func(h *rig.Host) error { return errors.Join(h.Cut(rig.In), h.Cut(rig.Out)) }, (*rig.Host).Heal},
	}
	for i, c := range strikes {
		if i >= 3 && !soak {
			break
		}
		t.Run(c.name, func(t *testing.T) {
			s, a1, _, _ := oneRelayAndItsStandIn(t, "")
			s.start()
			f := s.startFlow(2, rig.Job{Size: 128, Lines: tally.MaxLines, Rate: 4000})
			f.moves(100_000)
			eventually(t, patience, func() error { return usedNow(t, s.sources[0], a1) })
			must(t, c.strike(a1))
			gap := f.gap(500_000)
			if gap > c.within+busy {
				t.Errorf("the next lines came after %v, want %v", gap, c.within)
			}
			must(t, c.heal(a1))
			eventually(t, patience, func() error { return usedNow(t, s.sources[0], a1) }) // failback
			f.finish()
			f.settle(true)
			s.stop()
			v, err := f.count()
			must(t, err)
			f.exact(v, true)
			t.Logf("the next lines came after %v, the longest write(2) took %.1f ms (the issue's figures: %v, 100 ms, on a machine that does nothing else)",
				gap.Round(time.Millisecond), f.longest(), c.within)
			if f.longest() > 1000 {
				t.Errorf("a write(2) took %.1f ms: it waited for the failover", f.longest())
			}
		})
	}
}

// busy is what a machine with other things to do may add to a time that the design promises.
const busy = 1500 * time.Millisecond

// usedNow says whether a source's destination carries its lanes.
func usedNow(t *testing.T, src, dst *rig.Host) error {
	for _, g := range statusOf(t, src).Forward {
		for _, d := range g.Destinations {
			if d.Address != dst.Addr(port) {
				continue
			}
			if d.State == "connected" && d.Flows > 0 {
				return nil
			}
			return fmt.Errorf("%s is %s for %s with %d flows", dst.Name, d.State, src.Name, d.Flows)
		}
	}
	return fmt.Errorf("%s does not know %s", src.Name, dst.Name)
}

// A primary that flaps is used again only after it has been healthy for longer each time:
// status shows it held down, and the load stays where it is.
func TestFlappingPrimaryIsHeldDown(t *testing.T) {
	s, a1, a2, _ := oneRelayAndItsStandIn(t, "")
	s.start()
	src := s.sources[0]
	f := s.startFlow(1, rig.Job{Size: 64, Lines: tally.MaxLines, Rate: 2000})
	f.moves(10_000)
	var held []time.Duration
	for range 3 {
		eventually(t, patience, func() error { return usedNow(t, src, a1) })
		must(t, a1.Kill())
		eventually(t, patience, func() error { return usedNow(t, src, a2) })
		must(t, a1.Start(t.Context()))
		began := time.Now()
		eventually(t, patience, func() error {
			for _, d := range statusOf(t, src).Forward[0].Destinations {
				if d.Address == a1.Addr(port) && d.State == "hold-down" {
					return nil
				}
			}
			return errors.New("a1 is not held down")
		})
		eventually(t, patience, func() error { return usedNow(t, src, a1) })
		held = append(held, time.Since(began).Round(time.Millisecond))
	}
	if held[2] < held[0]*3/2 {
		t.Errorf("the primary was used again after %v: not longer each time", held)
	}
	t.Logf("used again after %v", held)
	f.finish()
	f.settle(true)
	s.stop()
	v, err := f.count()
	must(t, err)
	f.exact(v, true)
}
