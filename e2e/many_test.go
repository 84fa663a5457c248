package e2e

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"ftfuse/bench/rig"
	"ftfuse/bench/tally"
)

// manyDirs is how many folders of a hundred files the tests of many files use: ten thousand
// files in the long form (issue 3).
func manyDirs() int {
	if soak {
		return 100
	}
	return 25
}

func manyFiles() int { return 100 * manyDirs() }

// allOfMany waits until every one of the files has arrived, and compares each.
func allOfMany(t *testing.T, p *rig.Pair, path func(int) string, want func(int) string) {
	t.Helper()
	n := 0
	eventually(t, 4*patience, func() error {
		for ; n < manyFiles(); n++ {
			if got := read(t, p.Out(path(n))); len(got) < len(want(n)) {
				return fmt.Errorf("file %d, %s: %q has arrived", n, path(n), got)
			}
		}
		return nil
	})
	for n := range manyFiles() {
		if got := read(t, p.Out(path(n))); string(got) != want(n) {
			t.Fatalf("file %d, %s: %q arrived, want %q", n, path(n), got, want(n))
		}
	}
}

// A shell opens ten thousand files (fewer in the short form), writes to each and closes it.
func TestTenThousandFiles(t *testing.T) {
	eachCapture(t, func(t *testing.T, c capture, p *rig.Pair) {
		c.start(t, p)
		began := time.Now()
		sh(t, `cd "$1"; i=0; while [ $i -lt "$2" ]; do mkdir d$i; j=0; while [ $j -lt 100 ]; do echo "file $i $j" >>d$i/f$j.log; echo "more of it" >>d$i/f$j.log; j=$((j+1)); done; i=$((i+1)); done`, p.Point(), fmt.Sprint(manyDirs()))
		t.Logf("%d files written after %v", manyFiles(), time.Since(began).Round(time.Millisecond))
		allOfMany(t, p, func(n int) string { return fmt.Sprintf("d%d/f%d.log", n/100, n%100) },
			func(n int) string { return fmt.Sprintf("file %d %d\nmore of it\n", n/100, n%100) })
		t.Logf("all arrived after %v", time.Since(began).Round(time.Millisecond))
		if names := strings.Count(sh(t, `find "$1" -type f`, p.Point()), "\n"); names != manyFiles() {
			t.Errorf("%d files on the mount, want %d", names, manyFiles())
		}
		stop(t, p)
	}, "open", "write")
}

// cpuOf is the CPU time that the processes of the mount have used, in seconds.
func cpuOf(t *testing.T, p *rig.Pair) (sum float64) {
	t.Helper()
	for _, pid := range p.MountRole.Family() {
		one, err := rig.CPU(pid)
		must(t, err)
		sum += one
	}
	return sum
}

// cpuAtRest is what the mount takes of a CPU for so many seconds, in percent.
func cpuAtRest(t *testing.T, p *rig.Pair, seconds string) float64 {
	before, began := cpuOf(t, p), time.Now()
	sh(t, `sleep "$1"`, seconds) // a rate needs time to pass
	return (cpuOf(t, p) - before) / time.Since(began).Seconds() * 100
}

// closesAll lets the writer that holds files open end.
func closesAll(t *testing.T, w *rig.Writer) {
	must(t, w.Go())
	w.Finish()
	if _, err := w.Wait(); err != nil {
		t.Error(err)
	}
}

// A thousand open files at rest take less than a hundredth of a CPU (issue 3). That
// nobody polls them is shown in mount/spool, without a clock.
func TestAThousandOpenFilesAtRest(t *testing.T) {
	if !soak {
		t.Skip("FTFUSE_SOAK is not set: it needs the machine for itself")
	}
	eachCapture(t, func(t *testing.T, c capture, p *rig.Pair) {
		c.start(t, p)
		const n = 1000
		w, err := rig.StartWriter(bin, rig.Job{Path: p.In("many"), Files: n, Size: 64, IgnoreClose: true})
		must(t, err)
		t.Cleanup(w.Kill)
		for i := range n {
			arrives(t, p.Out(rig.ManyPath("many", i)), tally.Append(nil, 0, i, 64))
		}
		used := cpuAtRest(t, p, "10")
		t.Logf("%d open files at rest: %.2f %% of a CPU", n, used)
		if used > 1 {
			t.Errorf("%d open files at rest take %.2f %% of a CPU, want at most 1", n, used)
		}
		closesAll(t, w)
		stop(t, p)
	}, "open", "write")
}

// A program holds ten thousand files open: they cost next to nothing while it does not
// write, and a line to any of them arrives, after a kill of the worker too.
func TestTenThousandOpenFiles(t *testing.T) {
	eachCapture(t, func(t *testing.T, c capture, p *rig.Pair) {
		c.start(t, p)
		w, err := rig.StartWriter(bin, rig.Job{Path: p.In("many"), Files: manyFiles(), Size: 64, IgnoreClose: true})
		must(t, err)
		t.Cleanup(w.Kill)
		path := func(n int) string { return rig.ManyPath("many", n) }
		want := func(n int) string { return string(tally.Append(nil, 0, n, 64)) }
		allOfMany(t, p, path, want)
		used := cpuAtRest(t, p, "3")
		m, err := rig.MemoryOf(p.MountRole.Worker())
		must(t, err)
		t.Logf("%d idle open files: %.2f %% CPU, worker RssAnon %d MB", manyFiles(), used, m.Anon>>20)
		if used > 10 {
			t.Errorf("idle files take %.1f %% of a CPU", used)
		}
		killWorker(t, p)
		more := func(n int) string {
			if n%100 == 7 {
				return want(n) + "after the kill\n"
			}
			return want(n)
		}
		for n := 7; n < manyFiles(); n += 100 {
			sh(t, `echo "after the kill" >>"$1"`, p.In(path(n)))
		}
		allOfMany(t, p, path, more)
		closesAll(t, w)
		stop(t, p)
	}, "open", "write")
}

// Programs of every kind append to one file at once: each line comes out whole, once, and
// those of each program in their order.
func TestSeveralProgramsOnOneFile(t *testing.T) {
	need(t, "python3", "logger")
	eachCapture(t, func(t *testing.T, c capture, p *rig.Pair) {
		c.start(t, p)
		const n = 20_000
		file := p.In("shared.log")
		scripts := map[string]string{
			"sh": `i=0; while [ $i -lt $2 ]; do i=$((i+1)); echo "sh $i"; done >>"$1"`,
			"dd": `i=0; while [ $i -lt 500 ]; do i=$((i+1)); echo "dd $i" | dd of="$1" oflag=append conv=notrunc status=none; done`,
			"py": `python3 -c '
import sys
f = open(sys.argv[1], "a", buffering=1)
for i in range(int(sys.argv[2])): f.write("py %d\n" % (i + 1))' "$1" "$2"`,
			"awk": `awk -v n="$2" 'BEGIN { for (i = 1; i <= n; i++) { print "awk", i; fflush() } }' >>"$1"`,
		}
		count := map[string]int{"sh": n, "dd": 500, "py": n, "awk": n, "logger": 2000}
		var cmds []*exec.Cmd
		for _, script := range scripts {
			cmds = append(cmds, exec.CommandContext(t.Context(), "sh", "-euc", script, "sh", file, fmt.Sprint(n)))
		}
		// logger -s writes "<13>… tag: logger N" to its stderr, which is the file.
		cmds = append(cmds, exec.CommandContext(t.Context(), "sh", "-euc",
			`seq -f 'logger %.0f' 2000 | logger --no-act --socket-errors=off -s 2>>"$1"`, "sh", file))
		for _, cmd := range cmds {
			cmd.Stderr = os.Stderr
			must(t, cmd.Start())
		}
		for _, cmd := range cmds {
			if err := cmd.Wait(); err != nil {
				t.Errorf("%s: %v", cmd.Args[2], err)
			}
		}
		total := 0
		for _, c := range count {
			total += c
		}
		eventually(t, patience, func() error {
			if got := bytes.Count(read(t, p.Out("shared.log")), []byte("\n")); got < total {
				return fmt.Errorf("%d of %d lines arrived", got, total)
			}
			return nil
		})
		stop(t, p)
		next := map[string]int{}
		for line := range strings.Lines(string(read(t, p.Out("shared.log")))) {
			f := strings.Fields(line)
			who, number := f[len(f)-2], f[len(f)-1]
			if next[who]++; number != fmt.Sprint(next[who]) || (who != "logger" && len(f) != 2) {
				t.Fatalf("line %q, want number %d", line, next[who])
			}
		}
		for who, want := range count {
			if next[who] != want {
				t.Errorf("%d lines of %s, want %d", next[who], who, want)
			}
		}
	})
}

// A rule chooses the attribution of a path, and the records tell both apart: every line
// carries its writer where the rule says write, its opener where it says open.
func TestAttributionByRule(t *testing.T) {
	p := newPair(t)
	p.Rules = "[[mount.rule]]\npath = \"exact/**\"\nattribution = \"write\"\n"
	p.Outputs = fmt.Sprintf("[[receive.output]]\ndir = %q\nformat = \"%%P %%L\"\n", p.OutDir())
	start(t, p)
	captures[0].check(t, p)
	for _, dir := range []string{"exact", "quick"} {
		must(t, os.Mkdir(p.In(dir), 0o755))
		// The shell opens, and a child of it writes to the descriptor it inherits.
		said := sh(t, `exec 3>>"$1"; echo opened >&3; sh -c 'echo child >&3; echo $$'; echo $$`, filepath.Join(p.In(dir), "a.log"))
		pids := strings.Fields(said)
		writer := pids[0] // of the second line
		if dir == "quick" {
			writer = pids[1]
		}
		arrives(t, p.Out(dir+"/a.log"), []byte(fmt.Sprintf("%s opened\n%s child\n", pids[1], writer)))
	}
	stop(t, p)
}
