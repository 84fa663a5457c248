package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"ftfuse/bench/rig"
	"ftfuse/bench/tally"
)

// spooled waits until the files of a mount's spool have grown.
func spooled(t *testing.T, p *rig.Pair) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(p.MountState, "mount", "spool", "*"))
	must(t, err)
	if len(files) == 0 {
		t.Fatal("the spool has no files")
	}
	biggest, size := "", int64(-1)
	for _, f := range files {
		if st, err := os.Stat(f); err == nil && st.Mode().IsRegular() && st.Size() > size {
			biggest, size = f, st.Size()
		}
	}
	grows(t, biggest, 64<<10)
}

// The mount is given up: after a fail-stop, or since no worker came to serve. Whoever the
// daemon serves gets ENOTCONN. Who appends through the kernel goes on into the spool, as
// after a kill of everything: no write(2) fails, it can be killed, and the next start takes
// each line once.
func TestAppendersOutliveAMountThatIsGivenUp(t *testing.T) {
	needRoot(t)
	for name, points := range map[string]string{
		"fail-stop": "queue/commit-before=error@40", "holder_timeout": "mount/takeover=pause",
	} {
		t.Run(name, func(t *testing.T) {
			c := captures[0]
			p := c.pair(t)
			p.Mount = "holder_timeout = \"1s\""
			startReceive(t, p)
			startMount(t, p, "FTFUSE_FAILPOINTS="+points)
			c.check(t, p)
			job := rig.Job{Size: 64, Lines: tally.MaxLines, Rate: 50_000, IgnoreClose: true}
			l, victim := startLoad(t, p, "load.log", 2, job), startLoad(t, p, "victim.log", 1, job)
			failed := writesUntilError(t, p.In("a.log"))
			if name == "holder_timeout" {
				grows(t, p.Out("load.log"), 1)
				must(t, p.MountRole.KillWorker())
			}
			gaveUp(t, failed)
			code(t, p.MountRole, 1)
			unmounted(t, p)
			spooled(t, p)
			victim.writers[0].Kill() // and waits for its end

			c.startMount(t, p)
			grows(t, p.Out("load.log"), 1<<20) // it is followed
			plan, results := l.finish(t)
			if n := accepted(results); n != written(results) {
				t.Errorf("%d of %d lines were accepted: %v", n, written(results), results[0].Errors)
			}
			drained(t, l, results)
			stop(t, p)
			t.Log(l.count(t, plan, results))
			eachLineOnce(t, string(read(t, p.Out("victim.log"))), job.Size)
		})
	}
}

// eachLineOnce checks that the whole lines of a text differ from each other.
func eachLineOnce(t *testing.T, text string, size int) {
	t.Helper()
	seen := map[string]bool{}
	for line := range strings.Lines(text) {
		if seen[line] || len(line) != size {
			t.Fatalf("line %d, %q: it was there before, or is cut", len(seen)+1, line)
		}
		seen[line] = true
	}
	if len(seen) == 0 {
		t.Error("no line of a program that was killed")
	}
}

// The worker dies while its throttle holds an appender, which waits for the reply of a
// request until the connection is dropped. Then it goes on and can be killed.
func TestAnAppenderThatIsHeldIsFreedWhenTheMountIsGivenUp(t *testing.T) {
	needRoot(t)
	c := captures[0]
	p := c.pair(t)
	p.Mount, p.Queue = "holder_timeout = \"1s\"", "max_bytes = \"8MiB\""
	startMount(t, p, "FTFUSE_FAILPOINTS=mount/takeover=pause") // and no receiver: it fills up
	c.check(t, p)
	l := startLoad(t, p, "load.log", 1, rig.Job{Size: 64, Lines: tally.MaxLines, IgnoreClose: true})
	if _, err := p.MountRole.WaitLog(t.Context(), "programs that append are slowed down"); err != nil {
		t.Fatal(err)
	}
	must(t, p.MountRole.KillWorker())
	code(t, p.MountRole, 1)
	unmounted(t, p)
	spooled(t, p)
	l.writers[0].Kill() // and waits for its end
}
