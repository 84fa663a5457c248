package e2e

import (
	"fmt"
	"math/rand/v2"
	"os"
	"testing"

	"ftfuse/bench/rig"
	"ftfuse/bench/tally"
)

func holderKills() int {
	if soak {
		return 50
	}
	return 4
}

// Holder and worker are killed together, again and again, under full load. A program that
// appends sees no error of write(2), while nothing serves as after the next start, and all
// it wrote arrives once, in order: what it wrote before, between, and as an orphan, whose
// writes no mount sees any more, however many starts come and go.
func TestKillingTheHolderTooIsNotNoticedByAppenders(t *testing.T) {
	eachCapture(t, func(t *testing.T, c capture, p *rig.Pair) {
		c.start(t, p)
		job := fullLoad
		job.IgnoreClose = true
		through := job
		through.Rate = 50_000
		all := startLoad(t, p, "through.log", 2, through)
		for i := range holderKills() {
			file := fmt.Sprintf("load-%d.log", i)
			l := startLoad(t, p, file, 1, job)
			grows(t, p.Out(file), rand.Int64N(5<<20))
			grows(t, p.Out("through.log"), 1)
			must(t, p.MountRole.Kill())
			c.startMount(t, p)
			grows(t, p.Out(file), rand.Int64N(5<<20)) // the orphan is followed
			grows(t, p.Out("through.log"), 1)
			plan, results := l.finish(t)
			logWrites(t, results)
			drained(t, l, results)
			t.Log(l.count(t, plan, results))
			must(t, os.Remove(p.Out(file)))
		}
		plan, results := all.finish(t)
		logWrites(t, results)
		drained(t, all, results)
		stop(t, p)
		t.Log(all.count(t, plan, results))
	}, "open")
}

// Others open the file of an orphan by its name after the next start: both write on, and
// each line of both arrives once.
func TestOrphanAndNewWriterOfOnePath(t *testing.T) {
	eachCapture(t, func(t *testing.T, c capture, p *rig.Pair) {
		c.start(t, p)
		job := rig.Job{Size: 64, Lines: 200_000, Rate: 50_000, IgnoreClose: true, Path: p.In("app.log")}
		var ws []*rig.Writer
		for i := range 3 { // the first two become orphans, of one start and of two
			job.Writer = i
			w, err := rig.StartWriter(bin, job)
			must(t, err)
			t.Cleanup(w.Kill)
			must(t, w.Go())
			grows(t, p.Out("app.log"), 10_000)
			ws = append(ws, w)
			if i < 2 {
				must(t, p.MountRole.Kill())
				c.startMount(t, p)
			}
		}
		sh(t, `stat "$1" >/dev/null; tail -n 1 "$1" | wc -l >/dev/null; mv "$1" "$1.1"; : >"$1.1"; rm "$1.1"`, p.In("app.log"))
		plan := tally.Plan{Writers: 3, Lines: job.Lines, Size: job.Size}
		for _, w := range ws {
			if _, err := w.Wait(); err != nil {
				t.Error(err)
			}
		}
		if _, err := rig.WaitSize(t.Context(), p.Out("app.log"), plan.Bytes(), patienceLook, patience/3); err != nil {
			t.Error(err) // what is missing is said below
		}
		stop(t, p)
		countFile(t, p.Out("app.log"), plan)
	}, "open")
}

// A program goes on appending across a clean stop: the mount is gone, its descriptor is
// not. The next start takes what it wrote meanwhile, and follows it.
func TestAppenderOutlivesACleanStop(t *testing.T) {
	eachCapture(t, func(t *testing.T, c capture, p *rig.Pair) {
		c.start(t, p)
		f, err := os.OpenFile(p.In("app.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
		must(t, err)
		defer f.Close() // of a mount that has gone: its error says nothing
		want := ""
		for i, serving := range []bool{true, false, true, false, true} {
			switch {
			case i == 0:
			case serving:
				c.startMount(t, p)
			default:
				must(t, p.MountRole.Stop(patience))
			}
			line := fmt.Sprintf("line %d, served %v\n", i, serving)
			_, err := f.WriteString(line)
			must(t, err)
			want += line
			if serving {
				arrives(t, p.Out("app.log"), []byte(want))
			}
		}
		stop(t, p)
		same(t, p.Out("app.log"), []byte(want))
	}, "open")
}

// countFile checks an output file against a plan of which every line must be there.
func countFile(t *testing.T, path string, plan tally.Plan) {
	t.Helper()
	f, err := os.Open(path)
	must(t, err)
	defer f.Close()
	count, err := tally.Check(f, plan)
	must(t, err)
	if !count.OK() {
		t.Errorf("%s: %v", path, count)
	}
	t.Log(count)
}
