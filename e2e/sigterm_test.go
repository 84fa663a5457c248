package e2e

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"ftfuse/bench/rig"
)

// The receiver is stopped by SIGTERM again and again under load: it ends in time with exit
// code 0, and every accepted line arrives once, in order.
func TestStoppingTheReceiverLosesAndDoublesNothing(t *testing.T) {
	for name, job := range loads {
		t.Run(name, func(t *testing.T) {
			p := slowToStop(t, "open")
			l := startLoad(t, p, "load.log", 3, job)
			for range kills() {
				grows(t, p.Out("load.log"), rand.Int64N(100_000))
				must(t, p.ReceiveRole.Stop(4*patience))
				startReceive(t, p)
			}
			plan, results := l.finish(t)
			drained(t, l, results)
			stop(t, p)
			t.Log(l.count(t, plan, results))
		})
	}
}

// The mount is stopped by SIGTERM under load: writers that the daemon serves get an error
// (those that the kernel serves go on, TestAppenderOutlivesACleanStop), none of whose bytes may
// arrive, and what was accepted arrives once, before or after the next start.
func TestStoppingTheMountLosesAndDoublesNothing(t *testing.T) {
	for name, job := range loads {
		t.Run(name, func(t *testing.T) {
			job.StopOnError = true
			p := slowToStop(t, "write")
			for i := range kills() {
				file := fmt.Sprintf("load-%d.log", i)
				l := startLoad(t, p, file, 3, job)
				grows(t, p.Out(file), rand.Int64N(100_000))
				must(t, p.MountRole.Stop(4*patience))
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

// slowToStop is a started pair that may take its time: a disk that others keep busy takes
// seconds for each flush.
func slowToStop(t *testing.T, attribution string) *rig.Pair {
	t.Helper()
	p := newPair(t)
	p.Attribution = attribution
	p.Top = "shutdown_timeout = \"60s\""
	start(t, p)
	return p
}
