package receive

import (
	"fmt"
	"os"
	"testing"
	"time"

	"ftfuse/config"
	"ftfuse/internal/roletest"
)

// TestPowerLossOfTheFileSystem takes the power from queue and output files while batches
// come, again and again. What was acked must stand once.
func TestPowerLossOfTheFileSystem(t *testing.T) {
	rounds := 5
	if os.Getenv("FTFUSE_SOAK") != "" {
		rounds = 60
	}
	d := roletest.NewDisk(t, 512<<20)
	s := newSetup(t, output1(d.Dir+"/out", func(o *config.Output) {}))
	s.State, s.CheckpointEvery, s.SegmentBytes = d.Dir+"/state", 20*time.Millisecond, 8<<20
	f := newFeeder(1)
	f.connect(t, s.Listen)
	l := newLoad(t, f, "a", "b/c", "d")
	for range rounds {
		p := spawn(t, s, "")
		for until := time.Now().Add(time.Duration(100+l.rnd.IntN(200)) * time.Millisecond); time.Now().Before(until); {
			l.batch()
			n := len(f.queue)
			f.until(t, "some acks", func() bool { return len(f.acked) > n-20 })
		}
		d.LosePower()
		for ended := false; !ended; { // a write or a sync fails: the role must stop by itself
			l.batch()
			select {
			case <-p.done:
				ended = true
			case <-time.After(5 * time.Millisecond):
			}
		}
		if p.cmd.ProcessState.Success() {
			t.Errorf("the receiver ended as if nothing had happened:\n%s", p.log)
		}
		d.Restore()
	}
	x := start(t, s)
	f.until(t, "final acks", f.allFinal)
	l.check(t, s.out())
	st := x.r.Stats()
	t.Logf("%d batches in %d power losses; last run: %s", len(f.queue), rounds, fmt.Sprintf("%+v", st))
	if st.Generations != 0 {
		t.Errorf("%d generations were counted", st.Generations)
	}
	x.end()
}
