package receive

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"ftfuse/config"
)

// withPlugin adds an output whose plugin copies lines to dir/plugin; with line it says so.
func withPlugin(t *testing.T, s setup, ack config.PluginAck) setup {
	t.Helper()
	argv := []string{"/bin/cat"}
	if ack == config.PluginAckLine {
		script, err := filepath.Abs("../testdata/plugins/batch.sh")
		must(t, err)
		argv = []string{script}
	}
	s.Outputs = append(s.Outputs, output1(filepath.Dir(s.State), func(o *config.Output) {
		o.Plugin, o.PluginAck, o.File = argv, ack, "plugin"
	}))
	return s
}

func linesOf(t *testing.T, path string) []string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	return strings.Split(strings.TrimSuffix(string(data), "\n"), "\n")
}

// TestAPluginGetsEachLineThoughTheReceiverIsKilled at each step between the queue and the
// plugin: once or more, whole, and the files get each once all the same.
func TestAPluginGetsEachLineThoughTheReceiverIsKilled(t *testing.T) {
	for _, ack := range []config.PluginAck{config.PluginAckPipe, config.PluginAckLine} {
		for _, point := range []string{"plugin/given", "plugin/taken", "plugin/acked"} {
			t.Run(string(ack)+" "+filepath.Base(point), func(t *testing.T) {
				s := withPlugin(t, newSetup(t), ack)
				f := newFeeder(1)
				f.connect(t, s.Listen)
				l := newLoad(t, f, "a", "b")
				for _, nth := range []int{1, 3, 6} {
					p := spawn(t, s, fmt.Sprintf("%s=kill@%d", point, nth))
					l.untilKilled(p)
				}
				x := start(t, s)
				f.until(t, "final acks", f.allFinal)
				x.end() // drains the plugin
				l.check(t, s.out())
				seen := map[string]int{}
				for _, line := range linesOf(t, filepath.Join(filepath.Dir(s.State), "plugin")) {
					seen[line]++
				}
				twice := 0
				for _, want := range l.want {
					for line := range strings.SplitSeq(strings.TrimSuffix(want.String(), "\n"), "\n") {
						if seen[line] == 0 {
							t.Fatalf("the plugin did not get %.20q", line)
						}
						twice += seen[line] - 1
						delete(seen, line)
					}
				}
				for line := range seen {
					t.Errorf("the plugin got %.60q of %d bytes, which nobody wrote", line, len(line))
				}
				t.Logf("%d of %d lines more than once", twice, l.n)
			})
		}
	}
}

// TestAStuckPluginHoldsBackNeitherFilesNorFinals: what it has not taken stays in the queue.
func TestAStuckPluginHoldsBackNeitherFilesNorFinals(t *testing.T) {
	s := newSetup(t)
	s.Outputs = append(s.Outputs, output1("/", func(o *config.Output) {
		o.Plugin, o.PluginAck, o.File = []string{"/bin/sleep", "1000"}, config.PluginAckPipe, ""
	}))
	x := start(t, s)
	f := newFeeder(1)
	f.connect(t, x.r.Addr().String())
	for i := range 100 {
		f.add(rec{host: "h", path: "f", data: fmt.Sprintf("line %d %s\n", i, strings.Repeat("x", 50000))})
	}
	f.until(t, "final acks", f.allFinal)
	role := x.r.status()
	if got := role.Queue.Cursors[1].Backlog.Batches; got != 100 {
		t.Errorf("%d batches wait for the plugin, want 100", got)
	}
	if n := len(linesOf(t, s.out("h", "f"))); n != 100 {
		t.Errorf("the file has %d lines", n)
	}
	x.r.c.ShutdownTimeout = 100 * time.Millisecond // it does not end by itself
	x.r.p.shutdown = x.r.c.ShutdownTimeout
	x.end()
}

// TestTheFileOfAPluginWasOpenToEverybody: mode, dir_mode, uid and gid of an output say who may
// read what its plugin prints, too; they were ignored. One that keeps them is the same plugin
// for a reload.
func TestTheFileOfAPluginWasOpenToEverybody(t *testing.T) {
	s := newSetup(t)
	dir := filepath.Join(filepath.Dir(s.State), "printed")
	s.Outputs = append(s.Outputs, output1(dir, func(o *config.Output) {
		o.Plugin, o.PluginAck, o.File = []string{"/bin/cat"}, config.PluginAckPipe, "all/plugin"
		o.Mode, o.DirMode = new(uint32), new(uint32)
		*o.Mode, *o.DirMode = 0o600, 0o710
	}))
	x := start(t, s)
	f := newFeeder(1)
	f.connect(t, x.r.Addr().String())
	f.add(rec{host: "h", path: "f", data: "secret\n"})
	f.until(t, "what the plugin prints", func() bool { return len(linesOf(t, filepath.Join(dir, "all", "plugin"))[0]) > 0 })
	for name, want := range map[string]os.FileMode{"": 0o710, "all": 0o710, "all/plugin": 0o600} {
		info, err := os.Stat(filepath.Join(dir, name))
		must(t, err)
		if got := info.Mode().Perm(); got != want {
			t.Errorf("%q below its dir has mode %o, want %o", name, got, want)
		}
	}
	x.end()
}
