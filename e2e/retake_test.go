package e2e

import (
	"math/rand/v2"
	"testing"
	"time"

	"ftfuse/bench/rig"
)

// takeoverTakes is about as long as a worker needs until it serves.
const takeoverTakes = 120 * time.Millisecond

// Workers are killed in their takeover, or soon after it, one after another, under full
// load. No program sees an error, none hangs, and every line arrives once, in order.
func TestKillingTheWorkerInItsTakeoverIsNotNoticed(t *testing.T) {
	blocks := fullLoad
	blocks.Chunk, blocks.Rate = 64<<10, 500_000
	rounds, chain := 3, 3 // after the third in a row the holder waits for longer and longer
	if soak {
		rounds, chain = 40, 4
	}
	eachCapture(t, func(t *testing.T, c capture, p *rig.Pair) {
		c.start(t, p)
		looping, names := beside(t, p, "appending", appending), beside(t, p, "naming", naming)
		lines, large := startLoad(t, p, "lines.log", 2, fullLoad), startLoad(t, p, "large.log", 2, blocks)
		kills, early := 0, 0
		for range rounds {
			grows(t, p.Out("lines.log"), rand.Int64N(2<<20))
			n, pid := p.MountRole.Readies(), p.MountRole.Worker()
			must(t, p.MountRole.KillWorker())
			for range chain {
				var err error
				pid, err = p.MountRole.KillNext(pid, rand.N(takeoverTakes))
				must(t, err)
			}
			served := p.MountRole.Readies() - n
			kills, early = kills+1+chain, early+max(chain-served, 0)
			must(t, p.MountRole.ReadyAgain(t.Context(), n+served+1))
		}
		t.Logf("%d workers were killed, %d of them before they served", kills, early)
		if early == 0 {
			t.Error("no worker was killed in its takeover")
		}
		grows(t, p.Out("lines.log"), 1)
		for _, l := range []*load{lines, large} {
			plan, results := l.finish(t)
			logWrites(t, results)
			for i, r := range results {
				if r.Longest > float64((patience / 2).Milliseconds()) {
					t.Errorf("writer %d waited %.0f ms in one write(2)", i, r.Longest)
				}
			}
			drained(t, l, results)
			t.Log(l.count(t, plan, results))
		}
		looping.end(t)
		names.end(t)
		stop(t, p)
		wholeLoop(t, p.Out("appending/loop.log"))
	}, "open", "write")
}
