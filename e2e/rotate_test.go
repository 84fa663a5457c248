package e2e

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"ftfuse/bench/rig"
	"ftfuse/bench/tally"
)

// keepRotated excludes what logrotate leaves, which was sent when it was written.
const keepRotated = "[[mount.rule]]\npath = \"**/*.[0-9]*\"\ntransfer = false\n"

func rotations() int {
	if soak {
		return 60
	}
	return 6
}

// The real logrotate works on a file while programs write to it: with
// copytruncate they keep their descriptor, with create, as fast as they can, they open the path again now and
// then, as after a signal. No program sees an error, and every line arrives once, in order.
func TestLogrotateUnderFullLoad(t *testing.T) {
	need(t, "logrotate")
	for _, way := range []string{"create", "copytruncate"} {
		t.Run(way, func(t *testing.T) {
			eachCapture(t, func(t *testing.T, c capture, p *rig.Pair) {
				p.Rules = keepRotated
				c.start(t, p)
				job := fullLoad
				if way == "create" {
					job.ReopenEvery = 20_000
				} else {
					job.Rate = 20_000 // a copy through the mount never catches up with programs at full speed
				}
				l := startLoad(t, p, "app.log", 2, job)
				config := filepath.Join(p.Dir, "logrotate.conf")
				text := fmt.Sprintf("su root root\n%q {\n rotate 2\n %s\n}\n", p.In("app.log"), way)
				must(t, os.WriteFile(config, []byte(text), 0o644))
				for i := range rotations() {
					grows(t, p.Out("app.log"), 1<<20)
					out, err := exec.CommandContext(t.Context(), "logrotate", "-f", "-s", filepath.Join(p.Dir, "state"), config).CombinedOutput()
					if err != nil {
						t.Fatalf("rotation %d: %v\n%s", i, err, out)
					}
				}
				plan, results := l.finish(t)
				logWrites(t, results)
				drained(t, l, results)
				stop(t, p)
				t.Log(l.count(t, plan, results))
			})
		})
	}
}

// A program opens a file in the moment in which it is renamed: the OPEN of FUSE names the file
// only, which was another's by then, and a rule for rotated files kept what was written.
func TestAFileThatIsRenamedWhileItIsOpenedKeepsThePathItWasOpenedBy(t *testing.T) {
	eachCapture(t, func(t *testing.T, c capture, p *rig.Pair) {
		p.Rules = keepRotated
		c.start(t, p)
		over := make(chan struct{})
		var renames sync.WaitGroup
		renames.Go(func() {
			for {
				select {
				case <-over:
					return
				default:
					_ = os.Rename(p.In("app.log"), p.In("app.log.1")) // where it is not there yet, the next time
				}
			}
		})
		want := make([]string, 3000)
		for i := range want {
			f, err := os.OpenFile(p.In("app.log"), os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o644)
			must(t, err)
			want[i] = fmt.Sprintf("line %05d", i)
			_, err = fmt.Fprintln(f, want[i])
			must(t, errors.Join(err, f.Close()))
		}
		close(over)
		renames.Wait()
		arrives(t, p.Out("app.log"), []byte(strings.Join(want, "\n")+"\n"))
		stop(t, p)
	})
}

// Truncation by every means, under programs that append as fast as they can.
func TestTruncationUnderFullLoad(t *testing.T) {
	eachCapture(t, func(t *testing.T, c capture, p *rig.Pair) {
		c.start(t, p)
		l := startLoad(t, p, "app.log", 2, fullLoad)
		for i := range rotations() * 3 {
			grows(t, p.Out("app.log"), 200_000)
			sh(t, []string{`: >"$1"`, `truncate -s 0 "$1"`, `dd if=/dev/null of="$1" status=none`}[i%3], p.In("app.log"))
		}
		plan, results := l.finish(t)
		drained(t, l, results)
		stop(t, p)
		t.Log(l.count(t, plan, results))
	})
}

// A file is renamed and then truncated by its new name, under a program that goes on
// appending to it: lines were lost in between (issue 3).
func TestRenamedThenTruncatedUnderFullLoad(t *testing.T) {
	eachCapture(t, func(t *testing.T, c capture, p *rig.Pair) {
		c.start(t, p)
		for i := range rotations() {
			file := fmt.Sprintf("app-%d.log", i)
			l := startLoad(t, p, file, 1, fullLoad)
			grows(t, p.Out(file), 200_000)
			sh(t, `mv "$1" "$1.1"; : >"$1.1"`, p.In(file))
			plan, results := l.finish(t)
			if _, err := rig.WaitSize(t.Context(), p.Out(file), accepted(results)*64, patienceLook, patience/6); err != nil {
				t.Error(err) // what is missing is said below
			}
			l.count(t, plan, results)
		}
		stop(t, p)
	})
}

// Another program appends to a file by its new name while the one that opened it by its old
// name still writes: a rule keeps what is written under the new name, and must not take the
// lines of the program that knows nothing of it.
func TestAppendedToUnderAnotherNameUnderFullLoad(t *testing.T) {
	eachCapture(t, func(t *testing.T, c capture, p *rig.Pair) {
		p.Rules = keepRotated
		c.start(t, p)
		l := startLoad(t, p, "app.log", 1, fullLoad)
		grows(t, p.Out("app.log"), 200_000)
		sh(t, `mv "$1" "$1.1"; for i in 1 2 3; do echo "another program" >>"$1.1"; sleep 0.1; done`, p.In("app.log"))
		_, results := l.finish(t)
		want := tally.Plan{Writers: 1, Lines: results[0].Lines, Size: fullLoad.Size}
		_, err := rig.WaitSize(t.Context(), p.Out("app.log"), want.Bytes(), patienceLook, patience/3)
		if err != nil {
			t.Error(err) // what is missing is said below
		}
		stop(t, p)
		// The other's lines may be here, too: the kernel does not tell who wrote what.
		mine := filepath.Join(p.Dir, "mine.log")
		sh(t, `sed '/another program$/d' "$1" >"$2"`, p.Out("app.log"), mine)
		countFile(t, mine, want)
	})
}

// Files are removed and replaced under programs that append to them: what those wrote
// before and after arrives, though the name is gone or another's.
func TestUnlinkAndReplaceUnderLoad(t *testing.T) {
	eachCapture(t, func(t *testing.T, c capture, p *rig.Pair) {
		p.Rules = "[[mount.rule]]\npath = \"*.new\"\ntransfer = false\n"
		c.start(t, p)
		for _, way := range []string{`rm "$1"`, `: >"$1.new"; mv "$1.new" "$1"`, `mv "$1" "$1.new"; rm "$1.new"`} {
			job := rig.Job{Size: 64, Lines: tally.MaxLines}
			l := startLoad(t, p, "app.log", 2, job)
			grows(t, p.Out("app.log"), 500_000)
			sh(t, way, p.In("app.log"))
			grows(t, p.Out("app.log"), 500_000)
			plan, results := l.finish(t)
			drained(t, l, results)
			// The last line of a file that is gone is out once its last descriptor is closed.
			l.count(t, plan, results)
			must(t, os.Remove(p.Out("app.log")))
		}
		stop(t, p)
	})
}
