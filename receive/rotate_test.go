package receive

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strings"
	"testing"
	"time"

	"ftfuse/internal/failpoint"
)

// countLinesIn counts every line of all files below dir that match, by its text.
func countLinesIn(t *testing.T, pattern string) map[string]int {
	t.Helper()
	paths, err := filepath.Glob(pattern)
	must(t, err)
	got := map[string]int{}
	for _, path := range paths {
		raw, err := os.ReadFile(path)
		must(t, err)
		if strings.HasSuffix(path, ".gz") {
			raw, err = exec.Command("zcat", path).Output()
			must(t, err)
		}
		for line := range strings.Lines(string(raw)) {
			got[line]++
		}
	}
	return got
}

// wantOnce checks that lines 0 to n-1 stand once each, and nothing else.
func wantOnce(t *testing.T, got map[string]int, n int) {
	t.Helper()
	var wrong []string
	for i := range n {
		line := fmt.Sprintf("line %08d\n", i)
		if got[line] != 1 {
			wrong = append(wrong, fmt.Sprintf("%q %d times", line, got[line]))
		}
		delete(got, line)
	}
	for line, k := range got {
		wrong = append(wrong, fmt.Sprintf("foreign %.80q %d times", line, k))
	}
	if len(wrong) > 0 {
		sort.Strings(wrong)
		t.Errorf("%d lines are wrong, as %s", len(wrong), strings.Join(wrong[:min(5, len(wrong))], "; "))
	}
}

// rotation is a receiver that gets numbered lines, one a batch.
type rotation struct {
	t *testing.T
	s setup
	x *running
	f *feeder
	n int
}

func newRotation(t *testing.T) *rotation {
	r := &rotation{t: t, s: newSetup(t), f: newFeeder(1)}
	r.x = start(t, r.s)
	r.f.connect(t, r.s.Listen)
	return r
}

// lines sends k lines and, if asked to, waits until they are in the file and synced.
func (r *rotation) lines(k int, wait bool) {
	for range k {
		r.f.add(rec{host: "h", path: "app.log", data: fmt.Sprintf("line %08d\n", r.n)})
		r.n++
	}
	if wait {
		r.f.until(r.t, "final acks", r.f.allFinal)
	}
}

func (r *rotation) path() string { return r.s.out("h", "app.log") }

func (r *rotation) read() string {
	raw, err := os.ReadFile(r.path())
	must(r.t, err)
	return string(raw)
}

// TestRotations moves the output file away in every way, at rest and under load, and
// counts the lines in all that is left.
func TestRotations(t *testing.T) {
	for name, rotate := range map[string]func(path string, i int) error{
		"rename": func(path string, i int) error { return os.Rename(path, fmt.Sprintf("%s.%d", path, i)) },
		"rename-create": func(path string, i int) error {
			if err := os.Rename(path, fmt.Sprintf("%s.%d", path, i)); err != nil {
				return err
			}
			return os.WriteFile(path, nil, 0o644)
		},
		"rename-over": func(path string, i int) error { // a new file takes the name at once
			if err := os.Link(path, fmt.Sprintf("%s.%d", path, i)); err != nil {
				return err
			}
			if err := os.WriteFile(path+".new", nil, 0o644); err != nil {
				return err
			}
			return os.Rename(path+".new", path)
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRotation(t)
			r.lines(100, true)
			for i := range 8 {
				must(t, rotate(r.path(), i))
				r.lines(200, i%2 == 0)
				// The next rotation needs the name, which comes back with a record.
				for _, err := os.Stat(r.path()); err != nil; _, err = os.Stat(r.path()) {
					r.lines(1, true)
				}
			}
			r.f.until(t, "final acks", r.f.allFinal)
			wantOnce(t, countLinesIn(t, r.path()+"*"), r.n)
			if d := r.x.r.Stats().PossibleDoubles; d != 0 {
				t.Errorf("%d possible doubles were counted", d)
			}
			r.x.end()
		})
	}
}

// TestRemovedFileBeginsAgain: what was in it when it was removed is gone by that hand;
// what comes later is in the new one.
func TestRemovedFileBeginsAgain(t *testing.T) {
	r := newRotation(t)
	for range 3 {
		r.lines(50, true)
		must(t, os.Remove(r.path()))
		from := r.n
		r.lines(50, true)
		var want strings.Builder
		for i := from; i < r.n; i++ {
			fmt.Fprintf(&want, "line %08d\n", i)
		}
		wantFile(t, r.path(), want.String())
		must(t, os.Remove(r.path()))
	}
	r.x.end()
}

// TestTruncatedFileHasNoHole: copytruncate, while nothing is under way, loses nothing;
// the file goes on at its real end.
func TestTruncatedFileHasNoHole(t *testing.T) {
	r := newRotation(t)
	for i := range 5 {
		r.lines(50, true)
		must(t, os.WriteFile(fmt.Sprintf("%s.%d", r.path(), i), []byte(r.read()), 0o644))
		must(t, os.Truncate(r.path(), 0))
	}
	r.lines(50, true)
	wantOnce(t, countLinesIn(t, r.path()+"*"), r.n)
	st := r.x.r.Stats()
	if st.PossibleDoubles != 0 || st.Generations != 5 {
		t.Errorf("%d possible doubles and %d generations were counted, want 0 and 5", st.PossibleDoubles, st.Generations)
	}
	r.x.end()
}

// TestForeignAppendIsKept: somebody else writes at the end of an output file.
func TestForeignAppendIsKept(t *testing.T) {
	r := newRotation(t)
	for i := range 5 {
		r.lines(20, true)
		f, err := os.OpenFile(r.path(), os.O_APPEND|os.O_WRONLY, 0)
		must(t, err)
		fmt.Fprintf(f, "foreign %d\n", i)
		must(t, f.Close())
		r.lines(20, true)
	}
	got := countLinesIn(t, r.path())
	for i := range 5 {
		line := fmt.Sprintf("foreign %d\n", i)
		if got[line] != 1 {
			t.Errorf("%q stands %d times", line, got[line])
		}
		delete(got, line)
	}
	wantOnce(t, got, r.n)
	r.x.end()
}

// TestLogrotate runs the real one, both ways, between bursts.
func TestLogrotate(t *testing.T) {
	logrotate, err := exec.LookPath("logrotate")
	if err != nil {
		t.Skip("logrotate is not installed")
	}
	for _, how := range []string{"create 0644", "copytruncate", "nocreate", "create 0644\ncompress\ndelaycompress"} {
		t.Run(strings.Fields(how)[0], func(t *testing.T) {
			r := newRotation(t)
			conf := filepath.Join(t.TempDir(), "conf")
			must(t, os.WriteFile(conf, fmt.Appendf(nil, "%s {\nrotate 20\nmissingok\n%s\n}\n", r.path(), how), 0o644))
			for range 6 {
				r.lines(100, true)
				if how != "copytruncate" {
					r.lines(100, false) // and while lines are on their way
				}
				out, err := exec.Command(logrotate, "-f", "-s", conf+".state", conf).CombinedOutput()
				if err != nil {
					t.Fatalf("logrotate: %v\n%s", err, out)
				}
			}
			r.lines(100, true)
			wantOnce(t, countLinesIn(t, r.path()+"*"), r.n)
			r.x.end()
		})
	}
}

// TestRotatedWhileDown: the receiver is killed with bytes assigned and not synced, the
// file is rotated, and a new receiver finds the old file by its inode.
func TestRotatedWhileDown(t *testing.T) {
	for name, rotate := range map[string]func(path string) error{
		"rename": func(path string) error { return os.Rename(path, path+".1") },
		"rename-create": func(path string) error {
			if err := os.Rename(path, path+".1"); err != nil {
				return err
			}
			return os.WriteFile(path, nil, 0o644)
		},
		"foreign": func(path string) error {
			f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
			if err != nil {
				return err
			}
			defer f.Close()
			_, err = f.WriteString("foreign\n")
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSetup(t)
			s.CheckpointEvery = time.Hour // nothing is acked to the queue
			f := newFeeder(1)
			f.connect(t, s.Listen)
			r := &rotation{t: t, s: s, f: f}
			p := spawn(t, s, "sink/applied=kill@30")
			r.lines(60, false)
			p.gone()
			must(t, rotate(r.path()))
			s.CheckpointEvery = 10 * time.Millisecond
			r.x = start(t, s)
			r.lines(10, true)
			got := countLinesIn(t, r.path()+"*")
			if n := got["foreign\n"]; name == "foreign" && n != 1 {
				t.Errorf("the foreign line stands %d times", n)
			}
			delete(got, "foreign\n")
			wantOnce(t, got, r.n)
			if d := r.x.r.Stats().PossibleDoubles; d != 0 {
				t.Errorf("%d possible doubles were counted", d)
			}
			r.x.end()
		})
	}
}

// TestRemovedBetweenAssignAndWrite: the file has a place for the bytes, and no name any
// more when they are written: they are written again to the file that has the name.
func TestRemovedBetweenAssignAndWrite(t *testing.T) {
	r := newRotation(t)
	r.lines(10, true)
	must(t, failpoint.Set("output/append", "pause"))
	defer failpoint.Clear("output/append")
	r.lines(5, false)
	r.f.until(t, "acks", r.f.allAcked)
	must(t, os.Remove(r.path()))
	failpoint.Clear("output/append")
	r.f.until(t, "final acks", r.f.allFinal)
	var want strings.Builder
	for i := 10; i < 15; i++ {
		fmt.Fprintf(&want, "line %08d\n", i)
	}
	wantFile(t, r.path(), want.String())
	if d := r.x.r.Stats().PossibleDoubles; d == 0 {
		t.Error("no possible double was counted")
	}
	r.x.end()
}

// TestOutputDirectoryMovedAway: the whole directory is renamed or removed under way; what
// comes later is below the one that has the name.
func TestOutputDirectoryMovedAway(t *testing.T) {
	r := newRotation(t)
	r.lines(20, true)
	must(t, os.Rename(r.s.out(), r.s.out()+".old"))
	for _, err := os.Stat(r.path()); err != nil; _, err = os.Stat(r.path()) {
		r.lines(1, true) // the next checkpoint notices
	}
	r.lines(20, true)
	old := countLinesIn(t, r.s.out()+".old/h/*")
	for line, n := range countLinesIn(t, r.path()) {
		old[line] += n
	}
	wantOnce(t, old, r.n)
	must(t, os.RemoveAll(r.s.out()))
	r.lines(20, true)
	r.lines(20, true)
	got := countLinesIn(t, r.path())
	for i := r.n - 20; i < r.n; i++ {
		if line := fmt.Sprintf("line %08d\n", i); got[line] != 1 {
			t.Errorf("%q stands %d times", line, got[line])
		}
	}
	r.x.end()
}
