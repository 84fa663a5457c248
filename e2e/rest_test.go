package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"ftfuse/bench"
	"ftfuse/bench/rig"
	"ftfuse/bench/tally"
)

// How long a line takes at rest, as a figure in the test's output; ftfuse bench measures.
func TestLatencyAtRest(t *testing.T) {
	p := startPair(t)
	f, err := os.OpenFile(p.In("app.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	must(t, err)
	defer f.Close()
	var took []time.Duration
	for n := range 100 {
		began := time.Now()
		_, err := f.WriteString("0123456789abcde\n")
		must(t, err)
		_, err = rig.WaitSize(t.Context(), p.Out("app.log"), int64(n+1)*16, 200*time.Microsecond, patience)
		must(t, err)
		took = append(took, time.Since(began))
	}
	slices.Sort(took)
	t.Logf("write(2) to the aggregator's file: p50 %v, p99 %v, worst %v", took[50], took[98], took[99])
}

// The limits of memory that issue 2 sets.
func TestMemoryIsBounded(t *testing.T) {
	p := startPair(t)
	sh(t, `echo hello >>"$1"`, p.In("app.log"))
	arrives(t, p.Out("app.log"), []byte("hello\n"))
	rest, err := rig.MemoryOf(p.MountRole.Worker())
	must(t, err)
	t.Logf("mount at rest: RssAnon %d MB, RSS %d MB", rest.Anon>>20, rest.RSS>>20)
	if rest.RSS > 64<<20 {
		t.Errorf("a mount with an empty queue takes %d MiB, want less than 64", rest.RSS>>20)
	}
	watch := rig.StartWatch(p.MountRole.Worker(), p.ReceiveRole.PID())
	l := startLoad(t, p, "load.log", 4, rig.Job{Size: 128, Lines: 400_000, Chunk: 64 << 10})
	var results []rig.Result
	for _, w := range l.writers {
		r, err := w.Wait()
		must(t, err)
		results = append(results, r)
	}
	drained(t, l, results)
	for i, m := range watch.Stop() {
		name := []string{"mount", "receive"}[i]
		t.Logf("%s under load: RssAnon %d MB at most, RSS %d MB", name, m.Anon>>20, m.Peak>>20)
		if m.Anon > 256<<20 {
			t.Errorf("%s takes %d MiB of anonymous memory under load, want less than 256", name, m.Anon>>20)
		}
	}
	stop(t, p)
	l.count(t, tally.Plan{Writers: 4, Lines: 400_000, Size: 128}, results)
}

// `ftfuse bench` runs, counts and says so in JSON; the figures of so small a run mean nothing.
func TestBenchRunsAndCounts(t *testing.T) {
	needRoot(t)
	out, complaint, code := ftfuse(t, "bench", "--quick", "--sizes", "128", "--writers", "2", "--bytes", "40MB", "--json", "-")
	var r bench.Report
	if err := json.Unmarshal([]byte(out), &r); err != nil || code != 0 {
		t.Fatalf("exit %d, %v\n%s%s", code, err, out, complaint)
	}
	if len(r.Cases) != 2 || !r.OK() || len(r.Idle) != 2 || len(r.Paced) != 4 {
		t.Fatalf("%d cases, %d at rest, %d paced: %s", len(r.Cases), len(r.Idle), len(r.Paced), out)
	}
	for _, c := range r.Cases {
		for _, f := range []*bench.Rate{c.Open, c.Write} {
			if f.LineS <= 0 || f.Accepted <= 0 || c.Ext4.LineS <= 0 || c.Null.LineS <= 0 || f.Count.Lines != f.Lines || f.Latency.P50 <= 0 || f.Fair.Lines <= 0 || f.Mount.Anon <= 0 {
				t.Errorf("a figure is missing: %+v of %+v", f, c)
			}
		}
	}
	for _, p := range r.Paced {
		if p.Lines == 0 || p.P50 <= 0 || p.P99 < p.P50 || p.WriteP99 <= 0 {
			t.Errorf("a figure is missing: %+v", p)
		}
	}
}

// `ftfuse demo` proves its point, and cleans up when it is interrupted as when it ends.
func TestDemo(t *testing.T) {
	needRoot(t)
	mounts := func() string { return sh(t, `grep -c ftfuse-demo /proc/mounts || :`) }
	for _, interrupt := range []bool{false, true} {
		dir := t.TempDir()
		cmd := exec.CommandContext(t.Context(), bin, "demo", "--dir", dir)
		said := &lockedBuffer{}
		cmd.Stdout, cmd.Stderr = said, said
		must(t, cmd.Start())
		if interrupt {
			eventually(t, patience, func() error {
				if !strings.Contains(said.String(), "kill -9") {
					return fmt.Errorf("the demo has not come to its kill -9:\n%s", said)
				}
				return nil
			})
			must(t, cmd.Process.Signal(syscall.SIGINT))
		}
		err := cmd.Wait()
		if code := cmd.ProcessState.ExitCode(); (code != 0) != interrupt {
			t.Errorf("interrupted %v: exit %d, %v\n%s", interrupt, code, err, said)
		}
		if !interrupt && !strings.Contains(said.String(), "Nothing lost, nothing doubled") {
			t.Errorf("the demo proved nothing:\n%s", said)
		}
		if entries, err := os.ReadDir(dir); err != nil || len(entries) > 0 || mounts() != "0\n" {
			t.Errorf("interrupted %v: left behind %v (%v), %s mounts", interrupt, entries, err, strings.TrimSpace(mounts()))
		}
	}
}
