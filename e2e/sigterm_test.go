package e2e

import (
	"fmt"
	"math/rand/v2"
	"testing"
)

// The receiver is stopped by SIGTERM again and again under load: it ends in time with exit
// code 0, and every accepted line arrives once, in order.
func TestStoppingTheReceiverLosesAndDoublesNothing(t *testing.T) {
	for name, job := range loads {
		t.Run(name, func(t *testing.T) {
			p := startPair(t)
			l := startLoad(t, p, "load.log", 3, job)
			for range kills() {
				grows(t, p.Out("load.log"), rand.Int64N(100_000))
				must(t, p.ReceiveRole.Stop(patience))
				startReceive(t, p)
			}
			plan, results := l.finish(t)
			drained(t, l, results)
			stop(t, p)
			t.Log(l.count(t, plan, results))
		})
	}
}

// The mount is stopped by SIGTERM under load: writers get an error, none of whose bytes may
// arrive, and what was accepted arrives once, before or after the next start.
func TestStoppingTheMountLosesAndDoublesNothing(t *testing.T) {
	for name, job := range loads {
		t.Run(name, func(t *testing.T) {
			job.StopOnError = true
			p := startPair(t)
			for i := range kills() {
				file := fmt.Sprintf("load-%d.log", i)
				l := startLoad(t, p, file, 3, job)
				grows(t, p.Out(file), rand.Int64N(100_000))
				must(t, p.MountRole.Stop(patience))
				plan, results := l.finish(t)
				startMount(t, p)
				drained(t, l, results)
				c := l.count(t, plan, results)
				if c.Lines != accepted(results) {
					t.Errorf("%v: %d lines were accepted", c, accepted(results))
				}
			}
			stop(t, p)
		})
	}
}
