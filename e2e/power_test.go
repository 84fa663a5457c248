package e2e

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"ftfuse/bench/rig"
	"ftfuse/bench/tally"
)

func cuts() int {
	if soak {
		return 25
	}
	return 3
}

// The source loses power under load, again and again. What fsync(2) had covered, and with
// durability = "sync" what write(2) had, arrives once and in order; of the rest, each line
// at most once. The daemon on the dead disk must stop by itself, with exit code 1.
func TestPowerLossOfTheSource(t *testing.T) {
	for _, durability := range []string{"journal", "sync"} {
		t.Run(durability, func(t *testing.T) {
			d := newDisk(t, 256)
			p := newPair(t)
			p.MountState = filepath.Join(d.dir, "state")
			p.Queue = fmt.Sprintf("durability = %q", durability)
			t.Cleanup(p.Close)
			start(t, p)
			job := rig.Job{Size: 64, Lines: tally.MaxLines, Rate: 3000, StopOnError: true}
			if durability == "journal" {
				job.SyncEvery = 50
			}
			plan := tally.Plan{Writers: 3, Size: 64}
			next := make([]int, plan.Writers)
			for range cuts() {
				var ws []*rig.Writer
				for i := range plan.Writers {
					job.Path, job.Writer, job.First = p.In("load.log"), i, next[i]
					w, err := rig.StartWriter(bin, job)
					must(t, err)
					t.Cleanup(w.Kill)
					must(t, w.Go())
					ws = append(ws, w)
				}
				grows(t, p.Out("load.log"), 50_000+rand.Int64N(100_000))
				d.cut(t)
				for i, w := range ws {
					r, err := w.Wait()
					must(t, err)
					kept := r.Synced
					if durability == "sync" {
						kept = r.Lines - len(r.Maybe)
					}
					for n := kept; n < r.Lines; n++ {
						plan.Maybe = append(plan.Maybe, tally.Name{Writer: i, N: next[i] + n})
					}
					next[i] += r.Lines
				}
				if code := exitOf(t, p.MountRole); code != 1 {
					t.Errorf("the mount on a dead disk ended with code %d, want 1 (fail-stop)", code)
				}
				p.Close()
				d.again(t)
				start(t, p)
			}
			finishPower(t, p, &plan, next)
		})
	}
}

// A queue that is full takes nothing of what fsync(2) is called for; a kernel-served handle's
// write with RWF_DSYNC tells the daemon nothing. What both said is on the disk survives the
// power loss in the spool, with the queue as full as it was.
func TestPowerLossAfterAnFsyncAtAFullQueue(t *testing.T) {
	eachCapture(t, func(t *testing.T, c capture, p *rig.Pair) {
		d := newDisk(t, 256)
		p.MountState = filepath.Join(d.dir, "state")
		p.Queue = "max_bytes = \"1MiB\""
		t.Cleanup(p.Close)
		c.startMount(t, p)
		f, err := os.OpenFile(p.In("app.log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
		must(t, err)
		defer f.Close()
		block := strings.Repeat(yesLine, 1<<20/len(yesLine))
		want := ""
		put := func(text string) {
			_, err := f.WriteString(text)
			must(t, err)
			must(t, f.Sync())
			want += text
		}
		if c.passthrough {
			for range 3 { // beyond max_bytes: what comes behind does not get into the queue
				put(block)
			}
		}
		put("first\n")
		n, err := unix.Pwritev2(int(f.Fd()), [][]byte{[]byte("second\n")}, 0, unix.RWF_DSYNC)
		if err != nil || n != len("second\n") {
			t.Fatalf("a write with RWF_DSYNC: %d, %v", n, err)
		}
		want += "second\n"
		d.cut(t)
		must(t, p.MountRole.Kill())
		_ = f.Close() // ENOTCONN
		p.Close()
		d.again(t)
		start(t, p)
		arrives(t, p.Out("app.log"), []byte(want))
		stop(t, p)
		same(t, p.Out("app.log"), []byte(want))
	})
}

// The new position of a file that was cut was on the disk before its new length: after power loss
// what had been cut off was there again, behind the position, and was delivered a second time.
func TestPowerLossAfterATruncation(t *testing.T) {
	eachCapture(t, func(t *testing.T, c capture, p *rig.Pair) {
		d := newDisk(t, 256)
		p.MountState = filepath.Join(d.dir, "state")
		t.Cleanup(p.Close)
		c.start(t, p)
		want := strings.Repeat(yesLine, 200_000/len(yesLine))
		for _, size := range []int64{0, int64(len(yesLine)) * 100} {
			name := fmt.Sprintf("to%d.log", size)
			must(t, os.WriteFile(p.In(name), []byte(want), 0o644))
			arrives(t, p.Out(name), []byte(want))
			must(t, os.Truncate(p.In(name), size))
		}
		d.cut(t)
		must(t, p.MountRole.Kill())
		p.Close()
		d.again(t)
		start(t, p)
		for _, size := range []int64{0, int64(len(yesLine)) * 100} {
			name := fmt.Sprintf("to%d.log", size)
			sh(t, `echo more >>"$1"`, p.In(name))
			arrives(t, p.Out(name), []byte(want+"more\n"))
		}
		stop(t, p)
		for _, size := range []int64{0, int64(len(yesLine)) * 100} {
			same(t, p.Out(fmt.Sprintf("to%d.log", size)), []byte(want+"more\n"))
		}
	})
}

// exitOf waits for a role that must stop by itself.
func exitOf(t *testing.T, r *rig.Role) int {
	t.Helper()
	eventually(t, patience, func() error {
		if !r.Gone() {
			return fmt.Errorf("%s still runs on a dead disk", r.Name)
		}
		return nil
	})
	return r.ExitCode()
}

// finishPower lets one last line through behind everything, stops both roles and counts.
func finishPower(t *testing.T, p *rig.Pair, plan *tally.Plan, next []int) {
	t.Helper()
	sh(t, `echo last >>"$1"`, p.In("last.log"))
	arrives(t, p.Out("last.log"), []byte("last\n"))
	stop(t, p)
	for _, n := range next {
		plan.Lines = max(plan.Lines, n)
	}
	for i, n := range next {
		for ; n < plan.Lines; n++ {
			plan.Maybe = append(plan.Maybe, tally.Name{Writer: i, N: n})
		}
	}
	f, err := os.Open(p.Out("load.log"))
	must(t, err)
	defer f.Close()
	c, err := tally.Check(f, *plan)
	must(t, err)
	if !c.OK() {
		t.Errorf("%v", c)
	}
	t.Log(c)
}

// The receiver loses power under load, its queue and its output files with it. The source
// sends again what was not acked; every line is there once, in order.
func TestPowerLossOfTheReceiver(t *testing.T) {
	d := newDisk(t, 512)
	p := newPair(t)
	p.ReceiveState = filepath.Join(d.dir, "state")
	out := filepath.Join(d.dir, "out")
	p.Outputs = fmt.Sprintf("[[receive.output]]\ndir = %q\n", out)
	must(t, os.Mkdir(out, 0o755))
	sh(t, `sync -f "$1"`, out)
	t.Cleanup(p.Close)
	start(t, p)
	l := startLoad(t, p, "load.log", 3, rig.Job{Size: 64, Lines: tally.MaxLines, Chunk: 4096, Rate: 20_000})
	path := filepath.Join(out, p.Host, "load.log")
	for range cuts() {
		grows(t, path, 100_000+rand.Int64N(500_000))
		d.cut(t)
		// With nothing to write it may not notice; the load sees to that.
		if code := exitOf(t, p.ReceiveRole); code != 1 {
			t.Errorf("the receiver on a dead disk ended with code %d, want 1 (fail-stop)", code)
		}
		d.again(t)
		startReceive(t, p)
	}
	plan, results := l.finish(t)
	want := accepted(results) * 64
	eventually(t, patience, func() error {
		st, err := os.Stat(path)
		if err != nil || st.Size() < want {
			return fmt.Errorf("%v of %d bytes arrived (%v)", st, want, err)
		}
		return nil
	})
	stop(t, p)
	f, err := os.Open(path)
	must(t, err)
	defer f.Close()
	c, err := tally.Check(f, plan)
	must(t, err)
	if !c.OK() || c.Lines != accepted(results) {
		t.Errorf("%v, %d were accepted", c, accepted(results))
	}
	t.Log(c)
}

// The instrument itself: a power cut keeps what was synced and takes the rest.
func TestPowerCutTakesWhatWasNotSynced(t *testing.T) {
	d := newDisk(t, 32)
	put := func(name string, sync bool) {
		f, err := os.Create(filepath.Join(d.dir, name))
		must(t, err)
		defer f.Close()
		_, err = f.WriteString(name)
		must(t, err)
		if sync {
			must(t, f.Sync())
		}
	}
	put("kept", true)
	put("lost", false)
	d.cut(t)
	d.again(t)
	if got := string(read(t, filepath.Join(d.dir, "kept"))); got != "kept" {
		t.Errorf("what was synced is %q", got)
	}
	if got := string(read(t, filepath.Join(d.dir, "lost"))); got == "lost" {
		t.Error("what was not synced is still there: the power was not cut")
	}
}
