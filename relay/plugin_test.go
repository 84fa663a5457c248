package relay

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"ftfuse/config"
)

// withPlugin adds an output whose plugin copies lines to the file plugin beside the state.
func (s setup) withPlugin(argv ...string) setup {
	s.Outputs = append(s.Outputs, config.Output{
		Hosts: "*", Path: "**", Dir: filepath.Dir(s.State), File: "plugin", Format: "%L", Time: "%s",
		Plugin: argv, PluginAck: config.PluginAckPipe,
	})
	return s
}

// TestAPluginOfARelayGetsEachLineThoughTheRelayIsKilled: and the next node, too.
func TestAPluginOfARelayGetsEachLineThoughTheRelayIsKilled(t *testing.T) {
	a := newAggregator(t, 9)
	s := newSetup(t, a).withPlugin("/bin/cat")
	f := newFeeder(1)
	f.connect(t, s.Listen)
	n := 0
	for range 8 {
		p := spawn(t, s, "")
		for until := time.Now().Add(time.Duration(20+rand.IntN(150)) * time.Millisecond); time.Now().Before(until); n++ {
			f.add("f", fmt.Sprintf("line %d", n))
			if n%50 == 0 {
				f.expect(t, "some acks", func() bool { return len(f.acked) > n-100 })
			}
		}
		p.kill()
	}
	x := start(t, s)
	f.expect(t, "acks and finals", func() bool { return f.allAcked() && f.allFinal() })
	x.end()
	a.check(f)
	data, err := os.ReadFile(filepath.Join(filepath.Dir(s.State), "plugin"))
	must(t, err)
	seen := map[string]int{}
	for line := range strings.SplitSeq(strings.TrimSuffix(string(data), "\n"), "\n") {
		seen[line]++
	}
	twice := 0
	for i := range n {
		if seen[fmt.Sprintf("line %d", i)] == 0 {
			t.Errorf("the plugin did not get line %d", i)
		}
		twice += max(0, seen[fmt.Sprintf("line %d", i)]-1)
	}
	if len(seen) != n {
		t.Errorf("the plugin got %d different lines, %d were sent", len(seen), n)
	}
	t.Logf("%d of %d lines more than once", twice, n)
}

// TestAStuckPluginOfARelayHoldsNothingUp: neither forwarding nor acks nor finals.
func TestAStuckPluginOfARelayHoldsNothingUp(t *testing.T) {
	a := newAggregator(t, 9)
	s := newSetup(t, a).withPlugin("/bin/sleep", "1000")
	x := start(t, s)
	f := newFeeder(1)
	f.connect(t, x.r.Addr().String())
	for i := range 200 {
		f.add("f", fmt.Sprintf("line %d", i))
	}
	f.expect(t, "acks and finals", func() bool { return f.allAcked() && f.allFinal() })
	a.check(f)
	if n := x.r.plugins.Stats()[0].TakenBatches; n != 0 {
		t.Errorf("%d batches count as taken", n)
	}
	x.r.c.ShutdownTimeout = 100 * time.Millisecond // it does not end by itself
	x.end()
}
