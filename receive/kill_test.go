package receive

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// load is numbered lines for several files, and what the files must hold in the end.
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

// batch sends one batch of records of random lengths.
func (l *load) batch() {
	recs := make([]rec, 1+l.rnd.IntN(20))
	for i := range recs {
		name := l.files[l.rnd.IntN(len(l.files))]
		l.n++
		data := fmt.Sprintf("%08d %s\n", l.n, strings.Repeat("x", l.rnd.IntN(3000)))
		recs[i] = rec{host: "h", path: name, data: data}
		l.want[name].WriteString(data)
	}
	l.f.add(recs...)
}

// untilKilled sends batches until p has ended by itself.
func (l *load) untilKilled(p *proc) {
	for {
		if l.f.behind() < 200 { // else a start that takes its time has all the more to do
			l.batch()
		}
		select {
		case <-p.done:
			return
		case <-time.After(2 * time.Millisecond):
		}
	}
}

// during sends batches for some time, and now and then waits for acks.
func (l *load) during(t *testing.T, d time.Duration) {
	t.Helper()
	for until := time.Now().Add(d); time.Now().Before(until); {
		l.batch()
		if l.rnd.IntN(4) == 0 {
			n := len(l.f.queue)
			l.f.until(t, "some acks", func() bool { return len(l.f.acked) > n-50 })
		}
	}
}

func (l *load) check(t *testing.T, dir string) {
	t.Helper()
	for _, name := range l.files {
		wantFile(t, filepath.Join(dir, "h", name), l.want[name].String())
	}
}

// TestKillAtEveryFailpoint kills the receiver the Nth time it passes a step, for several
// N, and looks whether every line stands once after the next start.
func TestKillAtEveryFailpoint(t *testing.T) {
	for _, point := range []string{"receive/assigned", "sink/applied", "sink/synced", "sink/trimmed"} {
		t.Run(filepath.Base(point), func(t *testing.T) {
			s := newSetup(t)
			s.CheckpointEvery, s.CheckpointBytes = 5*time.Millisecond, 200<<10
			f := newFeeder(1)
			f.connect(t, s.Listen)
			l := newLoad(t, f, "a", "b", "c")
			for _, nth := range []int{1, 2, 5} {
				p := spawn(t, s, fmt.Sprintf("%s=kill@%d", point, nth))
				l.untilKilled(p)
			}
			x := start(t, s)
			f.until(t, "final acks", f.allFinal)
			l.check(t, s.out())
			if n := x.r.Stats().PossibleDoubles; n != 0 {
				t.Errorf("%d possible doubles were counted", n)
			}
			x.end()
		})
	}
}

// TestKillUnderLoad kills the receiver at random moments while batches come.
func TestKillUnderLoad(t *testing.T) {
	rounds := 12
	if os.Getenv("FTFUSE_SOAK") != "" {
		rounds = 200
	}
	s := newSetup(t)
	s.CheckpointEvery, s.CheckpointBytes, s.SegmentBytes = 10*time.Millisecond, 1<<20, 4<<20
	f := newFeeder(1)
	f.connect(t, s.Listen)
	l := newLoad(t, f, "a", "b/c", "b/d", "e")
	for range rounds {
		p := spawn(t, s, "")
		l.during(t, time.Duration(20+l.rnd.IntN(150))*time.Millisecond)
		p.kill()
	}
	x := start(t, s)
	f.until(t, "final acks", f.allFinal)
	l.check(t, s.out())
	st := x.r.Stats()
	t.Logf("%d batches in %d kills; last run: %+v", len(f.queue), rounds, st)
	if st.PossibleDoubles != 0 || st.Generations != 0 {
		t.Errorf("%d possible doubles, %d generations were counted", st.PossibleDoubles, st.Generations)
	}
	x.end()
}
