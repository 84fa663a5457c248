package e2e

import (
	"fmt"
	"math/rand/v2"
	"os"
	"testing"
	"time"

	"ftfuse/bench/rig"
	"ftfuse/bench/tally"
)

// load is writer processes that append numbered lines to one file of the mount.
type load struct {
	p       *rig.Pair
	file    string
	size    int
	writers []*rig.Writer
}

// startLoad starts count writers; lines is the most each may write.
func startLoad(t *testing.T, p *rig.Pair, file string, count int, job rig.Job) *load {
	t.Helper()
	l, err := tryLoad(t, p, file, count, job)
	must(t, err)
	return l
}

// tryLoad is startLoad for a mount that may die meanwhile.
func tryLoad(t *testing.T, p *rig.Pair, file string, count int, job rig.Job) (*load, error) {
	t.Helper()
	l := &load{p: p, file: file, size: job.Size}
	for i := range count {
		job.Path, job.Writer = p.In(file), i
		w, err := rig.StartWriter(bin, job)
		if err != nil {
			return nil, err
		}
		t.Cleanup(w.Kill)
		l.writers = append(l.writers, w)
	}
	for _, w := range l.writers {
		if err := w.Go(); err != nil {
			return nil, err
		}
	}
	return l, nil
}

// finish stops the writers and returns what must come out.
func (l *load) finish(t *testing.T) (tally.Plan, []rig.Result) {
	t.Helper()
	plan := tally.Plan{Writers: len(l.writers), Size: l.size, Lines: 1}
	var results []rig.Result
	for _, w := range l.writers {
		w.Finish()
	}
	for _, w := range l.writers {
		r, err := w.Wait()
		if err != nil {
			t.Fatal(err)
		}
		results = append(results, r)
		plan.Lines = max(plan.Lines, r.Lines)
		plan.Maybe = append(plan.Maybe, r.Maybe...)
	}
	// The writers were stopped at different numbers: what one never wrote may be missing
	// and must not be there, which the check of its bytes below would show.
	for i, r := range results {
		for n := r.Lines; n < plan.Lines; n++ {
			plan.Maybe = append(plan.Maybe, tally.Name{Writer: i, N: n})
		}
	}
	return plan, results
}

// accepted is the number of lines whose write(2) was answered without an error.
func accepted(results []rig.Result) int64 {
	var sum int64
	for _, r := range results {
		sum += int64(r.Lines - len(r.Maybe))
	}
	return sum
}

// count checks the output of a load after everything has stopped.
func (l *load) count(t *testing.T, plan tally.Plan, results []rig.Result) tally.Count {
	t.Helper()
	f, err := os.Open(l.p.Out(l.file))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	c, err := tally.Check(f, plan)
	if err != nil {
		t.Fatal(err)
	}
	var maybe int64
	for _, r := range results {
		maybe += int64(len(r.Maybe))
	}
	if least := accepted(results); !c.OK() || c.Lines < least || c.Lines > least+maybe {
		t.Errorf("%v; %d lines were accepted, %d more were in flight when the daemon was killed", c, least, maybe)
	}
	return c
}

// grows waits until a file has grown by some bytes: the event that load is running.
func grows(t *testing.T, path string, by int64) {
	t.Helper()
	size := func() int64 {
		st, err := os.Stat(path)
		if err != nil {
			return 0
		}
		return st.Size()
	}
	from := size()
	eventually(t, patience, func() error {
		if now := size(); now < from+by {
			return fmt.Errorf("%s grew by %d bytes, want %d", path, now-from, by)
		}
		return nil
	})
}

func kills() int {
	if soak {
		return 100
	}
	return 6
}

// loads are the two ways to write, at rates that leave the machine some room.
var loads = map[string]rig.Job{
	"lines":  {Size: 64, Lines: tally.MaxLines, Rate: 4000},
	"blocks": {Size: 64, Lines: tally.MaxLines, Chunk: 64 << 10, Rate: 100_000},
}

// The receiver is killed again and again under load; every line arrives once, in order.
func TestKillingTheReceiverLosesAndDoublesNothing(t *testing.T) {
	for name, job := range loads {
		t.Run(name, func(t *testing.T) {
			p := startPair(t)
			l := startLoad(t, p, "load.log", 3, job)
			for i := range kills() {
				grows(t, p.Out("load.log"), rand.Int64N(100_000)) // a random moment, by what has arrived
				if err := p.ReceiveRole.Kill(); err != nil {
					t.Fatal(err)
				}
				startReceive(t, p)
				t.Logf("kill %d", i+1)
			}
			plan, results := l.finish(t)
			drained(t, l, results)
			stop(t, p)
			t.Log(l.count(t, plan, results))
		})
	}
}

// drained waits until the accepted bytes have arrived.
func drained(t *testing.T, l *load, results []rig.Result) {
	t.Helper()
	want := accepted(results) * int64(l.size)
	if _, err := rig.WaitSize(t.Context(), l.p.Out(l.file), want, 2*time.Millisecond, patience); err != nil {
		t.Fatal(err)
	}
}

// The mount is killed again and again under load, holder and worker at once. Programs that
// the daemon serves see an error, open their file again once the mount is back, and go on;
// what had been accepted arrives once, in order, and of a write that was in flight at most
// a prefix, at most once.
func TestKillingTheMountLosesAndDoublesNothing(t *testing.T) {
	for name, job := range loads {
		t.Run(name, func(t *testing.T) {
			eachCapture(t, func(t *testing.T, c capture, p *rig.Pair) {
				job.Survive = true
				c.start(t, p)
				l := startLoad(t, p, "load.log", 3, job)
				for range kills() {
					grows(t, p.Out("load.log"), rand.Int64N(100_000))
					must(t, p.MountRole.Kill())
					c.startMount(t, p)
				}
				grows(t, p.Out("load.log"), 1)
				plan, results := l.finish(t)
				if c.passthrough && accepted(results) != written(results) {
					t.Errorf("programs that append through the kernel saw errors: %v", results[0].Errors)
				}
				drained(t, l, results)
				stop(t, p)
				t.Log(l.count(t, plan, results))
				if entries, err := os.ReadDir(p.Point()); err != nil || len(entries) > 0 {
					t.Errorf("below the mount point, unmounted, there are %v (%v): something was written beside the mount", entries, err)
				}
			})
		})
	}
}

// written is the number of lines that were given to write(2).
func written(results []rig.Result) (sum int64) {
	for _, r := range results {
		sum += int64(r.Lines)
	}
	return sum
}

// Both, in a random order.
func TestKillingBothInTurnLosesAndDoublesNothing(t *testing.T) {
	job := loads["blocks"]
	job.Survive = true
	p := startPair(t)
	l := startLoad(t, p, "load.log", 4, job)
	for range kills() {
		grows(t, p.Out("load.log"), rand.Int64N(300_000))
		switch rand.IntN(3) {
		case 0:
			must(t, p.MountRole.Kill())
			startMount(t, p)
		case 1:
			must(t, p.ReceiveRole.Kill())
			startReceive(t, p)
		default:
			must(t, p.MountRole.Kill())
			must(t, p.ReceiveRole.Kill())
			startReceive(t, p)
			startMount(t, p)
		}
	}
	plan, results := l.finish(t)
	drained(t, l, results)
	stop(t, p)
	t.Log(l.count(t, plan, results))
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// A write that was accepted an instant before the kill, with the receiver away, arrives.
func TestAcceptedBeforeTheKillArrivesAfterIt(t *testing.T) {
	p := newPair(t)
	startMount(t, p) // no receiver yet
	var want []byte
	for round := range 5 {
		f, err := os.OpenFile(p.In("app.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
		must(t, err)
		for i := range 50 {
			line := fmt.Sprintf("round %d line %d\n", round, i)
			if _, err := f.WriteString(line); err != nil {
				t.Fatal(err)
			}
			want = append(want, line...)
		}
		must(t, p.MountRole.Kill()) // at once: nothing may have been captured yet
		f.Close()                   // of a dead mount: its error says nothing
		startMount(t, p)
	}
	startReceive(t, p)
	arrives(t, p.Out("app.log"), want)
	stop(t, p)
	same(t, p.Out("app.log"), want)
}

// A line that was begun before the kill is ended by it: it arrives as far as it was
// written, and the next writer's line stands on its own as on any file system.
func TestUnfinishedLineAtTheKill(t *testing.T) {
	p := startPair(t)
	f, err := os.OpenFile(p.In("app.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	must(t, err)
	_, err = f.WriteString("whole\nunfinished")
	must(t, err)
	arrives(t, p.Out("app.log"), []byte("whole\n"))
	must(t, p.MountRole.Kill())
	f.Close()
	startMount(t, p)
	arrives(t, p.Out("app.log"), []byte("whole\nunfinished"))
	stop(t, p)
	same(t, p.Out("app.log"), []byte("whole\nunfinished"))
}

// The mount that a killed daemon leaves is taken away by the next start, even while
// programs hold files open on it, and names, sizes, modes and owners are there again. What
// a program writes to a handle of the dead mount is refused, or, where the kernel writes,
// taken and sent.
func TestStaleMountIsCleanedUpAndTheNamespaceSurvives(t *testing.T) {
	eachCapture(t, func(t *testing.T, c capture, p *rig.Pair) {
		c.start(t, p)
		sh(t, `cd "$1"; mkdir -p a/b; echo 1234567 >>a/b/c.log; chmod 600 a/b/c.log; chown 33:34 a/b/c.log; chmod 750 a; echo x >gone; rm gone; echo y >old; mv old new`, p.Point())
		look := func() string {
			return sh(t, `cd "$1"; find . -printf '%p %y %m %U %G %s\n' | sed '/^\. /d; s/ d \(.*\) [0-9]*$/ d \1/' | sort`, p.Point())
		}
		before := look()
		held, err := os.OpenFile(p.In("a/b/c.log"), os.O_APPEND|os.O_WRONLY, 0)
		must(t, err)
		defer held.Close()
		for range 3 {
			must(t, p.MountRole.Kill())
			c.startMount(t, p)
			if after := look(); !c.passthrough && after != before {
				t.Fatalf("after a kill:\n%swant:\n%s", after, before)
			}
		}
		want := "1234567\n"
		_, err = held.WriteString("to a dead mount\n")
		switch {
		case !c.passthrough && err == nil:
			t.Error("a write to a handle of the killed daemon was accepted")
		case c.passthrough:
			must(t, err)
			want += "to a dead mount\n"
			arrives(t, p.Out("a/b/c.log"), []byte(want))
		}
		sh(t, `echo more >>"$1"`, p.In("a/b/c.log"))
		want += "more\n"
		arrives(t, p.Out("a/b/c.log"), []byte(want))
		stop(t, p)
		c.startMount(t, p)
		if after := look(); after == before { // one line longer
			t.Error("the size did not follow")
		}
	})
}
