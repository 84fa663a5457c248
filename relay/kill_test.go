package relay

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"ftfuse/config"
)

// load is numbered lines for several files, each a batch.
type load struct {
	f     *feeder
	rnd   *rand.Rand
	files []string
	want  map[string]*strings.Builder
	n     int
}

func newLoad(t *testing.T, f *feeder, files ...string) *load {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	l := &load{f: f, rnd: rand.New(rand.NewPCG(seed, 1)), files: files, want: map[string]*strings.Builder{}}
	for _, name := range files {
		l.want[name] = &strings.Builder{}
	}
	return l
}

func (l *load) batch() {
	name := l.files[l.rnd.IntN(len(l.files))]
	l.n++
	line := fmt.Sprintf("%08d %s", l.n, strings.Repeat("x", l.rnd.IntN(20000)))
	l.f.add(name, line)
	l.want[name].WriteString(line + "\n")
}

// copies compares the relay's own output with what was sent.
func (l *load) copies(t *testing.T, s setup) {
	t.Helper()
	for _, name := range l.files {
		wantFile(t, s.out("h", name), l.want[name].String())
	}
}

// points are the steps of a batch through a relay, in their order.
var points = []string{
	"relay/taken", "queue/commit-before", "queue/commit-after", "relay/committed", "relay/final",
	"sink/applied", "sink/synced", "sink/trimmed",
}

// TestKillAtEveryFailpoint kills the relay the Nth time it passes a step, for several N,
// and looks whether every batch stands once at the aggregator, and every line once in the
// relay's copy, after the next start.
func TestKillAtEveryFailpoint(t *testing.T) {
	for _, point := range points {
		t.Run(strings.ReplaceAll(point, "/", "-"), func(t *testing.T) {
			t.Parallel()
			a := newAggregator(t, 9)
			s := newSetup(t, a).withCopy()
			s.CheckpointEvery = 5 * time.Millisecond
			f := newFeeder(1)
			f.connect(t, s.Listen)
			l := newLoad(t, f, "a", "b")
			for _, nth := range []int{1, 2, 5} {
				p := spawn(t, s, fmt.Sprintf("%s=kill@%d", point, nth))
				limit := time.After(testLimit)
				for dead := false; !dead; {
					l.batch()
					select {
					case <-p.done:
						dead = true
					case <-limit:
						t.Fatalf("the relay does not pass %s; its log:\n%s", point, p.log)
					case <-time.After(2 * time.Millisecond):
					}
				}
			}
			x := start(t, s)
			f.expect(t, "acks and finals", func() bool { return f.allAcked() && f.allFinal() })
			a.check(f)
			x.end()
			l.copies(t, s)
		})
	}
}

// TestKillUnderLoad kills the relay at random moments while batches come, in each mode,
// with the source keeping what is not final and without.
func TestKillUnderLoad(t *testing.T) {
	rounds := 8
	if os.Getenv("FTFUSE_SOAK") != "" {
		rounds = 150
	}
	for _, mode := range []config.ForwardMode{config.ForwardAny, config.ForwardHash, config.ForwardBroadcast} {
		for _, keep := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s-final=%v", mode, keep), func(t *testing.T) {
				a, b := newAggregator(t, 8), newAggregator(t, 9)
				s := newSetup(t, a).withCopy()
				s.KeepFinal, s.FinalTimeout = keep, time.Second
				s.CheckpointEvery, s.SegmentBytes = 10*time.Millisecond, 4<<20
				s.Forwards[0].Mode, s.Forwards[0].Primary = mode, []string{a.addr, b.addr}
				f := newFeeder(1)
				f.connect(t, s.Listen)
				l := newLoad(t, f, "a", "b/c", "b/d", "e")
				for range rounds {
					p := spawn(t, s, "")
					until := time.Now().Add(time.Duration(20+l.rnd.IntN(200)) * time.Millisecond)
					for time.Now().Before(until) {
						l.batch()
						if l.rnd.IntN(4) == 0 {
							n := l.n
							f.expect(t, "some acks", func() bool { return len(f.acked) > n-50 })
						}
					}
					if flaps := []*aggregator{a, b}[l.rnd.IntN(2)]; l.rnd.IntN(2) == 0 {
						flaps.stop()
						for range 20 {
							l.batch()
						}
						p.kill()
						flaps.start()
						continue
					}
					p.kill()
				}
				x := start(t, s)
				f.expect(t, "acks and finals", func() bool { return f.allAcked() && f.allFinal() })
				if mode == config.ForwardBroadcast {
					a.check(f)
					b.check(f)
				} else {
					checkBoth(t, f, a, b)
				}
				x.end()
				l.copies(t, s)
				t.Logf("%d batches in %d kills; last run: %+v", len(f.queue), rounds, x.r.Stats().Taken)
			})
		}
	}
}

// checkBoth looks at two aggregators that share the batches: nothing is missing, and at
// both stand no others than those that say so.
func checkBoth(t *testing.T, f *feeder, all ...*aggregator) {
	t.Helper()
	f.Lock()
	defer f.Unlock()
	twice := 0
	for _, b := range f.queue {
		n, marked := 0, 0
		for _, a := range all {
			a.Lock()
			for _, got := range a.taken {
				if got.ID != b.ID {
					continue
				}
				n++
				if string(got.Data) != string(b.Data) {
					t.Errorf("batch %v came with another content", b.ID)
				}
				marked += int(got.Flags & 1)
			}
			a.Unlock()
		}
		switch {
		case n == 0:
			t.Errorf("batch %v is lost", b.ID)
		case n > 1 && marked < n-1:
			t.Errorf("batch %v stands at %d aggregators and is marked at %d", b.ID, n, marked)
		case n > 1:
			twice++
		}
	}
	t.Logf("%d of %d batches stand at both, marked", twice, len(f.queue))
}

// TestAKilledRelayLeavesNothingBehind: of locks, sockets and directories that would stop
// the next start.
func TestAKilledRelayLeavesNothingBehind(t *testing.T) {
	a := newAggregator(t, 9)
	s := newSetup(t, a).withCopy()
	for range 3 {
		p := spawn(t, s, "")
		waitFor(t, "the socket", func() bool {
			_, err := os.Stat(filepath.Join(s.State, "relay", "ftfuse.sock"))
			return err == nil
		})
		p.kill()
	}
	start(t, s).end()
}
