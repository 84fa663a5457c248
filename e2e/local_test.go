package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"ftfuse/bench/rig"
	"ftfuse/bench/tally"
)

// copied is a rule that copies everything to a file of its name below dir.
func copied(dir, attribution string) string {
	return fmt.Sprintf("[[mount.rule]]\npath = \"**\"\nattribution = %q\noutput = %q\n", attribution, dir+"/%F")
}

// Rules have local outputs, by name or as a template: what is for them alone never leaves the
// host, what has groups too is there and at the receiver, byte for byte, and files are made
// with the owner and mode that the output says, whatever the umask.
func TestLocalOutputs(t *testing.T) {
	eachCapture(t, func(t *testing.T, c capture, p *rig.Pair) {
		local := filepath.Join(p.Dir, "local")
		p.Rules = fmt.Sprintf(`[[mount.rule]]
path = "audit/**"
transfer = false
output = "audit"
[[mount.rule]]
path = "app/**"
output = %q
[[mount.rule]]
path = "secret/**"
transfer = false
[[mount.output]]
name = "audit"
dir = %q
file = "all/%%f"
format = "%%H %%F %%L"
mode = "0646"
dir_mode = "02751"
uid = 12
gid = 34
`, local+"/copies/%F.copy", local+"/audit")
		c.start(t, p)
		for _, dir := range []string{"audit", "app", "secret"} {
			sh(t, `mkdir "$1"; for i in 1 2 3; do echo "line $i" >>"$1/a.log"; done; printf 'no end' >>"$1/a.log"`, p.In(dir))
		}
		sh(t, `echo plain >>"$1"`, p.In("plain.log"))
		arrives(t, local+"/audit/all/a.log", []byte("web-01 audit/a.log line 1\nweb-01 audit/a.log line 2\nweb-01 audit/a.log line 3\nweb-01 audit/a.log no end\n"))
		arrives(t, local+"/copies/app/a.log.copy", []byte("line 1\nline 2\nline 3\nno end"))
		arrives(t, p.Out("app/a.log"), []byte("line 1\nline 2\nline 3\nno end"))
		arrives(t, p.Out("plain.log"), []byte("plain\n"))
		said, _, code := ftfuse(t, "status", "-c", p.MountConfig())
		if code != 0 || !strings.Contains(said, "output written bytes") {
			t.Errorf("status says nothing of the outputs: %d\n%s", code, said)
		}
		stop(t, p)
		for _, dir := range []string{"audit", "secret"} {
			if _, err := os.Stat(p.Out(dir)); !os.IsNotExist(err) {
				t.Errorf("%s left the host: %v", dir, err)
			}
		}
		for path, mode := range map[string]uint32{"audit": 0o2751, "audit/all": 0o2751, "audit/all/a.log": 0o646} {
			var st syscall.Stat_t
			must(t, syscall.Stat(filepath.Join(local, path), &st))
			if st.Mode&0o7777 != mode || st.Uid != 12 || st.Gid != 34 {
				t.Errorf("%s: mode %04o of %d:%d, want %04o of 12:34", path, st.Mode&0o7777, st.Uid, st.Gid, mode)
			}
		}
		startReceive(t, p)
		startMount(t, p) // what a start finds is not written again
		sh(t, `echo more >>"$1"`, p.In("audit/a.log"))
		arrives(t, local+"/audit/all/a.log", []byte("web-01 audit/a.log line 1\nweb-01 audit/a.log line 2\nweb-01 audit/a.log line 3\nweb-01 audit/a.log no end\nweb-01 audit/a.log more\n"))
		stop(t, p)
	})
}

// The mount dies at each step between a committed batch and a local output on disk, with and
// without a holder, and every accepted line stands once, there and at the receiver.
func TestKilledAtEachStepOfALocalOutput(t *testing.T) {
	needRoot(t)
	steps := []string{"sink/placed", "sink/applied", "sink/synced", "sink/trimmed", "queue/commit-after"}
	for _, name := range steps {
		for _, f := range []fate{{"open", true, []int{1, 3}}, {"write", false, []int{1, 2}}} {
			for _, hit := range f.hits {
				t.Run(fmt.Sprintf("%s-%v-%d", strings.ReplaceAll(name, "/", "-"), f, hit), func(t *testing.T) {
					killLocal(t, fmt.Sprintf("FTFUSE_FAILPOINTS=%s=kill@%d", name, hit), f)
				})
			}
		}
	}
}

func killLocal(t *testing.T, env string, f fate) {
	p := newPair(t)
	local := filepath.Join(p.Dir, "local")
	p.Rules = copied(local, f.attribution)
	if !f.holder {
		p.Mount = "holder_timeout = \"0s\""
	}
	startReceive(t, p)
	err := p.StartMount(t.Context(), env)
	k := &killed{p: p, role: "mount", first: p.MountRole}
	k.startAgain(t, err)
	l := startLoad(t, p, "load.log", 2, rig.Job{Size: 64, Lines: tally.MaxLines, Chunk: 16 << 10, Rate: 15_000, Survive: true})
	if k.diesWhile(t, l) {
		restart(t, p)
		grows(t, filepath.Join(local, "load.log"), 1)
	} else {
		t.Error("the step was not reached")
	}
	plan, results := l.finish(t)
	if err := p.Stop(); err != nil && !k.died() {
		t.Fatal(err)
	}
	restart(t, p)
	drained(t, l, results)
	stop(t, p)
	l.count(t, plan, results)
	pieces(t, plan, filepath.Join(local, "load.log"))
	// The receiver has each of them: then so must the output have, in the same order.
	same(t, filepath.Join(local, "load.log"), read(t, p.Out("load.log")))
}

// fullDir is a directory with no room until ballast is removed; then for 200 KiB.
func fullDir(t *testing.T) (dir, ballast string) {
	t.Helper()
	needRoot(t)
	dir = t.TempDir()
	must(t, syscall.Mount("none", dir, "tmpfs", 0, "size=256k"))
	t.Cleanup(func() { _ = syscall.Unmount(dir, syscall.MNT_DETACH) })
	ballast = filepath.Join(dir, "ballast")
	must(t, os.WriteFile(ballast, nil, 0o644))
	sh(t, `dd if=/dev/zero of="$1" bs=4k 2>/dev/null || :`, ballast)
	return dir, ballast
}

// An output on a full disk holds nothing else back, and gets everything once there is room.
func TestAFullLocalOutputHoldsNothingBack(t *testing.T) {
	p := newPair(t)
	local, ballast := fullDir(t)
	p.Rules = copied(local, "open")
	start(t, p)
	line := strings.Repeat("x", 1023) + "\n"
	sh(t, `for i in $(seq 150); do printf '%s\n' "$2"; done >>"$1"`, p.In("big.log"), strings.TrimSpace(line))
	want := []byte(strings.Repeat(line, 150))
	arrives(t, p.Out("big.log"), want)
	if _, err := p.MountRole.WaitLog(t.Context(), "output file cannot be written to"); err != nil {
		t.Fatal(err)
	}
	sh(t, `echo meanwhile >>"$1"`, p.In("small.log"))
	arrives(t, p.Out("small.log"), []byte("meanwhile\n"))
	must(t, os.Remove(ballast))
	arrives(t, filepath.Join(local, "big.log"), want)
	arrives(t, filepath.Join(local, "small.log"), []byte("meanwhile\n"))
	stop(t, p)
}

// A reload puts other outputs in force: of a file that stays open each line stands in the one
// that the rules named when it was captured, or in the other, and never in both or in none.
func TestLocalOutputsChangeUnderLoad(t *testing.T) {
	p := newPair(t)
	one, two := filepath.Join(p.Dir, "one"), filepath.Join(p.Dir, "two")
	p.Rules = copied(one, "open")
	start(t, p)
	l := startLoad(t, p, "load.log", 2, rig.Job{Size: 64, Lines: tally.MaxLines, Rate: 20_000})
	var paths []string
	for i, dir := range []string{one, two, filepath.Join(p.Dir, "three")} {
		path := filepath.Join(dir, "load.log")
		paths = append(paths, path)
		if i > 0 {
			p.Rules = copied(dir, "open")
			must(t, p.WriteConfigs())
			must(t, p.MountRole.Signal(syscall.SIGHUP))
		}
		grows(t, path, 200_000)
	}
	plan, results := l.finish(t)
	drained(t, l, results)
	stop(t, p)
	l.count(t, plan, results)
	pieces(t, plan, paths...)
}

// A handover gives the local outputs to the next worker, too: their directories are locked by
// one process at a time, and no line is lost or doubled in between.
func TestLocalOutputsGoToTheNextWorker(t *testing.T) {
	p := newPair(t)
	local := filepath.Join(p.Dir, "local")
	p.Rules = copied(local, "open")
	start(t, p)
	l := startLoad(t, p, "load.log", 2, rig.Job{Size: 64, Lines: tally.MaxLines, Rate: 20_000})
	path := filepath.Join(local, "load.log")
	for range 3 {
		grows(t, path, 100_000)
		if said, complaint, code := ftfuse(t, "mount", "--handover", "-c", p.MountConfig()); code != 0 {
			t.Fatalf("handover: %d\n%s%s", code, said, complaint)
		}
	}
	grows(t, path, 100_000)
	plan, results := l.finish(t)
	drained(t, l, results)
	stop(t, p)
	l.count(t, plan, results)
	pieces(t, plan, path)
}
