package e2e

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"ftfuse/bench/rig"
	"ftfuse/bench/tally"
)

// example returns the path of a plugin of the documentation.
func example(t *testing.T, name string) string {
	t.Helper()
	path, err := filepath.Abs("../testdata/plugins/" + name)
	must(t, err)
	return path
}

// pluginRules are two rules with plugins: cat for logs, and one that acknowledges for what is
// not transferred.
func pluginRules(t *testing.T, p *rig.Pair) string {
	t.Helper()
	return fmt.Sprintf(`[[mount.rule]]
path = "logs/**"
plugin = ["/bin/cat"]
plugin_output = %q

[[mount.rule]]
path = "only/**"
transfer = false
plugin = [%q]
plugin_ack = "line"
plugin_timeout = "20s"
plugin_output = %q
`, filepath.Join(p.Dir, "cat.out"), example(t, "batch.sh"), filepath.Join(p.Dir, "batch.out"))
}

// atLeastOnce checks a plugin's output: each line that was accepted, none that was not, and
// returns how many stand there more than once.
func atLeastOnce(t *testing.T, path string, plan tally.Plan, cut bool) int64 {
	t.Helper()
	f, err := os.Open(path)
	must(t, err)
	defer f.Close()
	c, err := tally.Check(f, plan)
	must(t, err)
	if c.Lost > 0 || (c.Altered > 0 || c.Partial > 0) && !cut {
		t.Errorf("%s: %v", filepath.Base(path), c)
	}
	return c.Doubled
}

// pluginOf is the process that is the plugin of a script below the mount's worker; 0: none.
func pluginOf(role *rig.Role, script string) int {
	dirs, _ := filepath.Glob("/proc/[0-9]*/cmdline") // the pattern is well-formed
	for _, d := range dirs {
		text, err := os.ReadFile(d)
		if err != nil || !strings.Contains(string(text), script) {
			continue
		}
		var pid, parent int
		stat, err := os.ReadFile(filepath.Join(filepath.Dir(d), "stat"))
		if err != nil {
			continue
		}
		rest := string(stat[strings.LastIndexByte(string(stat), ')')+2:])
		fmt.Sscan(filepath.Base(filepath.Dir(d)), &pid)
		fmt.Sscanf(rest, "%1s %d", new(string), &parent)
		if parent == role.Worker() {
			return pid
		}
	}
	return 0
}

// TestPluginsOfRulesGetEachLineThoughAllIsKilled: the worker, the whole mount, and the plugin
// that acknowledges, in the middle of writes; the receiver has each line once all the same, and
// what is not transferred never comes there.
func TestPluginsOfRulesGetEachLineThoughAllIsKilled(t *testing.T) {
	eachCapture(t, func(t *testing.T, c capture, p *rig.Pair) {
		p.Rules = pluginRules(t, p)
		c.start(t, p)
		must(t, os.MkdirAll(p.In("logs"), 0o755))
		must(t, os.MkdirAll(p.In("only"), 0o755))
		job := rig.Job{Size: 100, Lines: tally.MaxLines, Rate: 3000, Survive: true, IgnoreClose: true}
		logs, only := startLoad(t, p, "logs/a", 2, job), startLoad(t, p, "only/b", 2, job)
		for range kills() {
			grows(t, filepath.Join(p.Dir, "cat.out"), 50_000)
			grows(t, filepath.Join(p.Dir, "batch.out"), 50_000)
			if pid := pluginOf(p.MountRole, "batch.sh"); pid == 0 {
				t.Error("the plugin does not run")
			} else {
				must(t, syscall.Kill(pid, syscall.SIGKILL))
			}
			<-time.After(time.Duration(rand.IntN(50)) * time.Millisecond) // any moment
			n := p.MountRole.Readies()
			must(t, p.MountRole.KillWorker())
			must(t, p.MountRole.ReadyAgain(t.Context(), n+1))
		}
		plan, results := logs.finish(t)
		planOnly, _ := only.finish(t)
		stop(t, p)
		logs.count(t, plan, results)
		if _, err := os.Stat(p.Out("only/b")); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("what is not transferred is at the receiver: %v", err)
		}
		twice := atLeastOnce(t, filepath.Join(p.Dir, "cat.out"), plan, false)
		acked := atLeastOnce(t, filepath.Join(p.Dir, "batch.out"), planOnly, true)
		t.Logf("%d and %d lines more than once, of about %d", twice, acked, 2*plan.Lines)
	}, "open", "write")
}

// TestAStuckPluginOfARuleHoldsNothingBack: writes, the receiver and the other plugin go on; it
// gets what waited when it is killed by its time limit.
func TestAStuckPluginOfARuleHoldsNothingBack(t *testing.T) {
	p := newPair(t)
	mark := filepath.Join(p.Dir, "mark")
	stuck := filepath.Join(p.Dir, "stuck.sh")
	must(t, os.WriteFile(stuck, []byte("#!/bin/sh\n[ -e "+mark+" ] && exec cat\nexec sleep 1000\n"), 0o755))
	p.Rules = fmt.Sprintf(`[[mount.rule]]
path = "a"
plugin = [%q]
plugin_output = %q
plugin_timeout = "2s"
[[mount.rule]]
path = "b"
plugin = ["/bin/cat"]
plugin_output = %q
`, stuck, filepath.Join(p.Dir, "a.out"), filepath.Join(p.Dir, "b.out"))
	start(t, p)
	text := strings.Repeat(strings.Repeat("x", 99)+"\n", 30_000)
	must(t, os.WriteFile(p.In("a"), []byte(text), 0o644))
	must(t, os.WriteFile(p.In("b"), []byte(text), 0o644))
	arrives(t, filepath.Join(p.Dir, "b.out"), []byte(text))
	arrives(t, p.Out("a"), []byte(text))
	if b := read(t, filepath.Join(p.Dir, "a.out")); len(b) > 0 {
		t.Errorf("the stuck plugin printed %d bytes", len(b))
	}
	must(t, os.WriteFile(mark, nil, 0o644))
	arrives(t, filepath.Join(p.Dir, "a.out"), []byte(text))
	stop(t, p)
	if _, err := p.MountRole.WaitLog(t.Context(), "takes nothing"); err != nil {
		t.Error(err)
	}
}

// TestThePluginOfARuleChangesUnderLoad: by SIGHUP, with other arguments or another output. Each
// line that is written meanwhile comes to one or the other, and once to the receiver.
func TestThePluginOfARuleChangesUnderLoad(t *testing.T) {
	p := newPair(t)
	with := func(name string) string {
		return fmt.Sprintf("[[mount.rule]]\npath = \"logs/**\"\nplugin = [\"/bin/cat\"]\nplugin_output = %q\n", filepath.Join(p.Dir, name))
	}
	p.Rules = with("0")
	start(t, p)
	must(t, os.MkdirAll(p.In("logs"), 0o755))
	load := startLoad(t, p, "logs/a", 2, rig.Job{Size: 100, Lines: tally.MaxLines, Rate: 5000})
	grows(t, filepath.Join(p.Dir, "0"), 1)
	for i := 1; i <= 4; i++ {
		p.Rules = with(fmt.Sprint(i))
		must(t, p.WriteConfigs())
		must(t, p.MountRole.Signal(syscall.SIGHUP))
		grows(t, filepath.Join(p.Dir, fmt.Sprint(i)), 50_000)
	}
	plan, results := load.finish(t)
	stop(t, p)
	load.count(t, plan, results)
	var all []byte
	for i := range 5 {
		part := read(t, filepath.Join(p.Dir, fmt.Sprint(i)))
		if len(part) == 0 {
			t.Errorf("nothing went to output %d", i)
		}
		all = append(all, part...)
	}
	must(t, os.WriteFile(filepath.Join(p.Dir, "all"), all, 0o644))
	t.Logf("%d lines more than once", atLeastOnce(t, filepath.Join(p.Dir, "all"), plan, false))
}
