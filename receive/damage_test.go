package receive

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"ftfuse/config"
	"ftfuse/internal/batch"
	"ftfuse/internal/roletest"
)

// TestWhatTheDiskDamagedIsTakenAgain: batches wait in the queue of a receiver that is killed,
// and the disk damages one of them. It is not final, and whoever keeps it may send it again. If
// it was in its file already it stands twice, and that is counted.
func TestWhatTheDiskDamagedIsTakenAgain(t *testing.T) {
	for _, applied := range []bool{false, true} {
		t.Run(fmt.Sprintf("applied=%v", applied), func(t *testing.T) {
			s := newSetup(t)
			every := s.CheckpointEvery
			s.CheckpointEvery = 1 << 40 // nothing is acked to the queue
			points := ""
			if !applied {
				points = "output/append=pause@1"
			}
			p := spawn(t, s, points)
			f := newFeeder(1)
			f.connect(t, s.Listen)
			lines := make([]string, 3)
			for i := range lines {
				lines[i] = fmt.Sprintf("%d %x\n", i, rand.Uint64())
				f.add(rec{host: "h", path: "app.log", data: lines[i]})
				f.until(t, "an ack", f.allAcked)
			}
			if applied {
				waitFor(t, "the lines", func() bool { return len(countLinesIn(t, s.out("h", "app.log"))) == 3 })
			}
			p.kill()
			roletest.Spoil(t, s.config().QueueDir(config.RoleReceive), f.queue[1].Data)

			s.CheckpointEvery = every
			x := start(t, s)
			f.until(t, "final acks of what is whole", func() bool { return f.final.Contains(1) && f.final.Contains(3) })
			again := f.queue[1]
			again.Flags |= batch.FlagResent
			f.send(again)
			f.until(t, "its final ack", func() bool { return f.final.Contains(2) })
			for range 2 {
				f.send(again)
				f.until(t, "its answer", f.allAcked)
			}
			if st := x.r.Stats(); st.PossibleDoubles != 1 || st.Duplicates != 2 {
				t.Errorf("%d possible doubles, %d duplicates are counted", st.PossibleDoubles, st.Duplicates)
			}
			x.end()
			got := countLinesIn(t, s.out("h", "app.log"))
			for i, l := range lines {
				want := 1
				if i == 1 && applied {
					want = 2
				}
				if got[l] != want {
					t.Errorf("line %d stands %d times, want %d", i, got[l], want)
				}
			}
		})
	}
}

// TestNothingThatWasLostIsFinal, to whoever asks by sending it again.
func TestNothingThatWasLostIsFinal(t *testing.T) {
	s := newSetup(t)
	s.CheckpointEvery = 1 << 40
	p := spawn(t, s, "output/append=pause@1")
	f := newFeeder(1)
	f.connect(t, s.Listen)
	for i := range 3 {
		f.add(rec{host: "h", path: "app.log", data: fmt.Sprintf("%d %x\n", i, rand.Uint64())})
		f.until(t, "an ack", f.allAcked)
	}
	p.kill()
	s.MaxAge = 1 // all of it expires
	x := start(t, s)
	for i := range 3 {
		f.send(f.queue[i])
		f.until(t, "its answer", f.allAcked)
	}
	if n := f.final.Count(); n != 0 {
		t.Errorf("%v are final", f.final.String())
	}
	if st := x.r.Stats(); st.Duplicates != 3 {
		t.Errorf("%d duplicates", st.Duplicates)
	}
	x.end()
}
