package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"ftfuse/bench/rig"
	"ftfuse/bench/tally"
)

// oneRelayAndItsStandIn is a source, a relay, another that is used while the first is away,
// and an aggregator.
//
//	     ┌─ a1 (primary) ───┐
//	s1 ──┤                  ├── g1
//	     └─ a2 (secondary) ─┘
func oneRelayAndItsStandIn(t *testing.T, queue string) (s *site, a1, a2, g *rig.Host) {
	t.Helper()
	s = newSite(t)
	s.needLinks()
	g = s.agg("g1")
	to := group{mode: "any", primary: []*rig.Host{g}}
	a1, a2 = s.relay("a1", "", to), s.relay("a2", "", to)
	s.source("s1", queue, group{mode: "any", primary: []*rig.Host{a1}, secondary: []*rig.Host{a2}})
	return s, a1, a2, g
}

// holds waits until the relay has taken data that it cannot pass on: its queue has grown by
// so much.
func holds(t *testing.T, h *rig.Host, more int64) {
	t.Helper()
	from := statusOf(t, h).backlog()
	eventually(t, patience, func() error {
		if now := statusOf(t, h).backlog(); now < from+more {
			return fmt.Errorf("%s holds %d bytes that it cannot pass on, want %d", h.Name, now-from, more)
		}
		return nil
	})
}

// lateOldData is the scenario: the primary relay takes data, acks it, cannot pass it on and
// dies; the other carries on for long; the first comes back.
func lateOldData(t *testing.T, wait bool) (*flow, *site) {
	t.Helper()
	s, a1, _, g := oneRelayAndItsStandIn(t, "")
	s.start()
	f := s.startFlow(2, rig.Job{Size: 64, Lines: tally.MaxLines, Rate: 3000})
	f.moves(50_000)
	must(t, errors.Join(a1.Cut(rig.Out, g), a1.Cut(rig.In, g)))
	holds(t, a1, 100_000)
	must(t, a1.Kill())
	must(t, a1.Heal())
	f.moves(1_000_000)
	must(t, a1.Start(t.Context()))
	f.moves(100_000)
	f.finish()
	if wait {
		f.settle(true)
	}
	s.stop()
	return f, s
}

func TestLateOldDataOfADeadRelayStandsOnce(t *testing.T) {
	f, _ := lateOldData(t, true)
	v, err := f.count()
	must(t, err)
	f.exact(v, true)
	if v.disorder == 0 {
		t.Error("nothing came late: the test did not test anything")
	}
}

// The same with a receiver that remembers the highest number of each lane instead of the set
// of them: it must lose lines, or the test above would not notice such a mistake.
func TestLateOldDataWithAHighWaterMarkIsLost(t *testing.T) {
	good := bin
	bin = mutant(t, "queue/delivered.go",
		"if l == nil || !l.ids.Contains(id.N) {", "if l == nil || id.N > l.newest {")
	t.Cleanup(func() { bin = good })
	f, s := lateOldData(t, false)
	v, err := f.count()
	must(t, err)
	if v.lost == 0 {
		t.Errorf("a receiver with a high-water mark lost nothing of %d lines", v.accepted)
	}
	t.Logf("%d of %d lines lost, as they must be", v.lost, v.accepted)
	s.Close() // before the binary goes
}

// mutant builds the binary with one line of its source changed.
func mutant(t *testing.T, file, line, changed string) string {
	t.Helper()
	root, err := filepath.Abs("..")
	must(t, err)
	path := filepath.Join(root, file)
	text := string(read(t, path))
	if strings.Count(text, line) != 1 {
		t.Fatalf("%s has the line %q %d times, want once: follow the code", file, line, strings.Count(text, line))
	}
	dir := t.TempDir()
	other, list, out := filepath.Join(dir, "changed.go"), filepath.Join(dir, "overlay.json"), filepath.Join(dir, "ftfuse")
	must(t, os.WriteFile(other, []byte(strings.Replace(text, line, changed, 1)), 0o644))
	overlay, err := json.Marshal(map[string]any{"Replace": map[string]string{path: other}})
	must(t, err)
	must(t, os.WriteFile(list, overlay, 0o644))
	build := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-overlay", list, "-o", out, "ftfuse")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if text, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the mutant: %v\n%s", err, text)
	}
	return out
}

// The relay's disk is lost, with data on it that it had acked and not passed on. With
// keep_until = "final" the source still has all of it.
func TestWipedRelayLosesNothingWithKeepUntilFinal(t *testing.T) {
	s, a1, _, g := oneRelayAndItsStandIn(t, "keep_until = \"final\"\nfinal_timeout = \"2s\"")
	s.start()
	f := s.startFlow(2, rig.Job{Size: 64, Lines: tally.MaxLines, Rate: 3000})
	f.moves(50_000)
	must(t, errors.Join(a1.Cut(rig.Out, g), a1.Cut(rig.In, g)))
	holds(t, a1, 100_000)
	must(t, a1.Kill())
	must(t, a1.Heal())
	must(t, os.RemoveAll(a1.State()))
	must(t, os.MkdirAll(a1.State(), 0o755))
	f.moves(100_000)
	must(t, a1.Start(t.Context()))
	f.moves(100_000)
	f.finish()
	f.settle(true)
	s.stop()
	v, err := f.count()
	must(t, err)
	f.exact(v, true)
}

// The aggregator goes away for long while everything is on its way; each copy is kept until
// then, and only then goes: after it no queue has anything left.
func TestNothingIsKeptAfterTheFinalAck(t *testing.T) {
	s, _, _, g := oneRelayAndItsStandIn(t, "keep_until = \"final\"\nfinal_timeout = \"60s\"")
	s.start()
	f := s.startFlow(1, rig.Job{Size: 64, Lines: tally.MaxLines, Rate: 2000})
	f.moves(10_000)
	must(t, g.Kill())
	src := s.sources[0]
	holds(t, src, 50_000)
	must(t, g.Start(t.Context()))
	f.finish()
	f.settle(true)
	for _, h := range append(s.sources, s.relays...) {
		eventually(t, patience, func() error {
			if left := statusOf(t, h).backlog(); left != 0 {
				return fmt.Errorf("%s still has %d bytes although all is at its end", h.Name, left)
			}
			return nil
		})
	}
	s.stop()
	v, err := f.count()
	must(t, err)
	f.exact(v, true)
}
