package e2e

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"ftfuse/bench/rig"
	"ftfuse/bench/tally"
)

// pieces checks a load whose output was rotated: the files, in the order given, hold every
// line of the plan once.
func pieces(t *testing.T, plan tally.Plan, paths ...string) {
	t.Helper()
	var all bytes.Buffer
	for _, path := range paths {
		all.Write(read(t, path))
	}
	c, err := tally.Check(&all, plan)
	must(t, err)
	if !c.OK() {
		t.Errorf("over %d files: %v", len(paths), c)
	}
	t.Log(c)
}

// The aggregator's own logrotate renames the output files under load: no line is lost or
// doubled over the rotated files and the new one.
func TestLogrotateOfOutputFiles(t *testing.T) {
	need(t, "logrotate")
	p := startPair(t)
	l := startLoad(t, p, "load.log", 2, rig.Job{Size: 64, Lines: tally.MaxLines, Rate: 5000})
	out := p.Out("load.log")
	config := filepath.Join(p.Dir, "logrotate.conf")
	must(t, os.WriteFile(config, fmt.Appendf(nil, "%q {\n su root root\n rotate 20\n nocreate\n missingok\n}\n", out), 0o644))
	const rounds = 5
	for range rounds {
		grows(t, out, 20_000)
		if said, err := exec.CommandContext(t.Context(), "logrotate", "-f", "-s", filepath.Join(p.Dir, "state"), config).CombinedOutput(); err != nil {
			t.Fatalf("logrotate: %v\n%s", err, said)
		}
	}
	grows(t, out, 20_000)
	plan, results := l.finish(t)
	var paths []string
	for i := rounds; i > 0; i-- {
		paths = append(paths, fmt.Sprintf("%s.%d", out, i))
	}
	paths = append(paths, out)
	sum := func() (n int64) {
		for _, path := range paths {
			if st, err := os.Stat(path); err == nil {
				n += st.Size()
			}
		}
		return n
	}
	want := accepted(results) * 64
	eventually(t, patience, func() error {
		if n := sum(); n < want {
			return fmt.Errorf("%d of %d bytes arrived", n, want)
		}
		return nil
	})
	stop(t, p)
	if n := sum(); n != want {
		t.Errorf("%d bytes over all files, want %d", n, want)
	}
	pieces(t, plan, paths...)
}

// An output file that is removed or truncated at rest is begun again; later lines come.
func TestRemovedAndTruncatedOutputFiles(t *testing.T) {
	p := startPair(t)
	put := func(line string) { sh(t, `echo "$2" >>"$1"`, p.In("app.log"), line) }
	put("one")
	arrives(t, p.Out("app.log"), []byte("one\n"))
	atRest(t, p)
	must(t, os.Remove(p.Out("app.log")))
	put("two")
	arrives(t, p.Out("app.log"), []byte("two\n"))
	atRest(t, p)
	must(t, os.Truncate(p.Out("app.log"), 0))
	put("three")
	arrives(t, p.Out("app.log"), []byte("three\n"))
	atRest(t, p)
	must(t, os.RemoveAll(filepath.Join(p.OutDir(), p.Host)))
	put("four")
	arrives(t, p.Out("app.log"), []byte("four\n"))
	stop(t, p)
	same(t, p.Out("app.log"), []byte("four\n"))
}

// Many files, more than descriptors are kept for, each with its lines.
func TestManyFiles(t *testing.T) {
	p := startPair(t)
	sh(t, `cd "$1"; for d in $(seq 20); do mkdir d$d; for f in $(seq 100); do echo "$d $f" >d$d/f$f.log; done; done
		for d in $(seq 20); do for f in $(seq 100); do echo again >>d$d/f$f.log; done; done`, p.Point())
	for d := 1; d <= 20; d++ {
		for f := 1; f <= 100; f++ {
			arrives(t, p.Out(fmt.Sprintf("d%d/f%d.log", d, f)), fmt.Appendf(nil, "%d %d\nagain\n", d, f))
		}
	}
	stop(t, p)
}

// What can never be written is set aside and blocks nothing: here a folder stands where
// an output file has to be.
func TestDeadLetterBlocksNothing(t *testing.T) {
	p := newPair(t)
	must(t, os.MkdirAll(p.Out("blocked.log"), 0o755))
	start(t, p)
	sh(t, `echo lost soul >>"$1"`, p.In("blocked.log"))
	sh(t, `echo fine >>"$1"`, p.In("fine.log"))
	arrives(t, p.Out("fine.log"), []byte("fine\n"))
	dead := filepath.Join(p.ReceiveState, "receive", "dead")
	eventually(t, patience, func() error {
		entries, err := os.ReadDir(dead)
		if err == nil && len(entries) == 0 {
			err = fmt.Errorf("%s is empty", dead)
		}
		return err
	})
	stop(t, p)
	said := strings.Join(p.ReceiveRole.Log(), "\n")
	if !strings.Contains(said, "blocked.log") {
		t.Errorf("the receiver's log does not name the path:\n%s", said)
	}
}

// A name cannot lead out of the output's folder, and a link in it is not followed.
func TestOutputStaysBelowItsFolder(t *testing.T) {
	p := newPair(t)
	outside := filepath.Join(p.Dir, "outside")
	must(t, os.MkdirAll(filepath.Join(p.OutDir(), p.Host), 0o755))
	must(t, os.Mkdir(outside, 0o755))
	must(t, os.Symlink(outside, filepath.Join(p.OutDir(), p.Host, "link")))
	start(t, p)
	sh(t, `cd "$1"; mkdir link; echo no >>link/escaped.log; echo fine >>fine.log`, p.Point())
	arrives(t, p.Out("fine.log"), []byte("fine\n"))
	stop(t, p)
	if entries, err := os.ReadDir(outside); err != nil || len(entries) > 0 {
		t.Errorf("outside the output's folder there are %v (%v)", entries, err)
	}
}

// Two outputs that mix hosts and format lines give each line an end of its own.
func TestUnifiedFileEndsUnfinishedLines(t *testing.T) {
	p := newPair(t)
	p.Outputs = fmt.Sprintf("[[receive.output]]\ndir = %q\nfile = \"all.log\"\nformat = \"%%f: %%L\"\n", p.OutDir())
	start(t, p)
	sh(t, `cd "$1"; printf 'no end' >>a.log; printf 'crlf\r\nlast' >>b.log`, p.Point())
	all := filepath.Join(p.OutDir(), "all.log")
	eventually(t, patience, func() error {
		if n := bytes.Count(read(t, all), []byte("\n")); n < 3 {
			return fmt.Errorf("the unified file has %q", read(t, all))
		}
		return nil
	})
	stop(t, p)
	lines := map[string]bool{}
	for line := range strings.Lines(string(read(t, all))) {
		lines[line] = true
	}
	if len(lines) != 3 || !lines["a.log: no end\n"] || !lines["b.log: crlf\r\n"] || !lines["b.log: last\n"] {
		t.Errorf("the unified file has %q", read(t, all))
	}
}
