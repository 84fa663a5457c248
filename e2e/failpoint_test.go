package e2e

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"ftfuse/bench/rig"
	"ftfuse/bench/tally"
)

// rolesOf tells where the steps of a package are taken.
var rolesOf = map[string][]string{
	"queue": {"mount", "relay", "receive"}, "receive": {"receive"}, "sink": {"receive"}, "output": {"receive"}, "relay": {"relay"},
	"spool": {"mount"}, "capture": {"mount"}, "mount": {"mount"}, "session": {"mount"}, "kernel": {"mount"}, "holder": {"mount"},
}

// killedIn names, for steps that this file's load never comes to, the test file whose own load
// is killed there.
var killedIn = map[string]string{
	"forward": "e2e/reload_test.go", "offline": "e2e/offline_test.go", "plugin": "receive/plugin_test.go", "rotate": "receive/rotation_test.go",
}

// fate is what becomes of the connection when the process that serves dies at a step: the
// holder keeps it for the next one, or there is no holder and the next start finds a dead
// mount.
type fate struct {
	attribution string
	holder      bool
	hits        []int // which passing of a step is the deadly one
}

func (f fate) String() string {
	return f.attribution + map[bool]string{true: "-held", false: "-dropped"}[f.holder]
}

// fates of a role; only a mount has a holder.
func fates(role string) []fate {
	all := []int{1, 2, 3, 10, 50}
	switch {
	case role != "mount" && soak:
		return []fate{{"open", true, all}}
	case role != "mount":
		return []fate{{"open", true, []int{1, 3}}}
	case soak:
		return []fate{{"open", true, all}, {"open", false, all}, {"write", true, all}, {"write", false, all}}
	}
	return []fate{{"open", true, []int{1}}, {"open", false, []int{3}}, {"write", false, []int{1}}}
}

// failpoints are the names that stand in the code, found there so that none is forgotten.
func failpoints(t *testing.T) []string {
	t.Helper()
	name := regexp.MustCompile(`failpoint\.New\("([a-z]+/[a-z-]+)"\)`)
	var names []string
	err := filepath.WalkDir("..", func(path string, _ fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		for _, m := range name.FindAllStringSubmatch(string(read(t, path)), -1) {
			names = append(names, m[1])
		}
		return nil
	})
	must(t, err)
	slices.Sort(names)
	return slices.Compact(names)
}

// Each role dies at each named step under load, starts again, and every accepted line
// arrives once, in order. The load truncates, renames and removes too, so that every step
// is hit.
func TestKilledAtEveryFailpoint(t *testing.T) {
	needRoot(t)
	names := failpoints(t)
	if len(names) < 10 {
		t.Fatalf("only %d failpoints found", len(names))
	}
	var never []string
	for _, name := range names {
		pkg, _, _ := strings.Cut(name, "/")
		if len(rolesOf[pkg]) == 0 && !isKilledElsewhere(t, name) {
			t.Errorf("failpoint %s: no role is known for %s, and no other test that kills there", name, pkg)
		}
		for _, role := range rolesOf[pkg] {
			for _, f := range fates(role) {
				for _, hit := range f.hits {
					t.Run(fmt.Sprintf("%s-%s-%v-%d", strings.ReplaceAll(name, "/", "-"), role, f, hit), func(t *testing.T) {
						if k := killAt(t, name, role, hit, f); !k.died() {
							never = append(never, fmt.Sprintf("%s of %s, %v, time %d", name, role, f, hit))
						}
					})
				}
			}
		}
	}
	for _, n := range never {
		t.Logf("not reached by this load: %s", n)
	}
}

// isKilledElsewhere reports whether the test file of the step's package has the step's name.
func isKilledElsewhere(t *testing.T, name string) bool {
	t.Helper()
	pkg, step, _ := strings.Cut(name, "/")
	if killedIn[pkg] == "" {
		return false
	}
	return regexp.MustCompile(`\b` + step + `\b`).Match(read(t, filepath.Join("..", killedIn[pkg])))
}

// killed is a pair of which one role dies at a step.
type killed struct {
	p     *rig.Pair
	role  string
	first *rig.Role // the process that was armed
}

// died reports whether the process that was armed, or its worker, has died.
func (k *killed) died() bool {
	for _, line := range k.first.Log() {
		if strings.Contains(line, "worker ended") {
			return true
		}
	}
	return k.first.Gone() && k.first.ExitCode() == -1
}

// arm starts the roles, one of them with a failpoint; it may die before it serves.
func arm(t *testing.T, name, role string, hit int, f fate) *killed {
	p := newPair(t)
	p.Attribution = f.attribution
	if !f.holder {
		p.Mount = "holder_timeout = \"0s\""
	}
	env := fmt.Sprintf("FTFUSE_FAILPOINTS=%s=kill@%d", name, hit)
	k := &killed{p: p, role: role}
	if role == "receive" {
		err := p.StartReceive(t.Context(), env)
		k.first = p.ReceiveRole
		k.startAgain(t, err)
		startMount(t, p)
		return k
	}
	p.Relayed = role == "relay"
	startReceive(t, p)
	if p.Relayed {
		err := p.StartRelay(t.Context(), env)
		k.first = p.RelayRole
		k.startAgain(t, err)
		startMount(t, p)
		return k
	}
	err := p.StartMount(t.Context(), env)
	k.first = p.MountRole
	k.startAgain(t, err)
	return k
}

// startAgain starts what died at its start.
func (k *killed) startAgain(t *testing.T, err error) {
	t.Helper()
	if err == nil {
		return
	}
	if !k.died() {
		t.Fatal(err)
	}
	restart(t, k.p)
}

// killAt runs a load with a failpoint armed in one role.
func killAt(t *testing.T, name, role string, hit int, f fate) *killed {
	k := arm(t, name, role, hit, f)
	p := k.p
	job := rig.Job{Size: 64, Lines: tally.MaxLines, Chunk: 16 << 10, Rate: 400_000, Survive: true}
	l, err := tryLoad(t, p, "load.log", 2, job)
	if err != nil { // it lived just long enough to say that it serves
		eventually(t, patience, func() error {
			if !k.died() {
				return err
			}
			return nil
		})
		restart(t, p)
		l, err = tryLoad(t, p, "load.log", 2, job)
	}
	must(t, err)
	for i := range 3 { // steps of truncation, renaming and removal; a dead daemon answers with an error
		side := p.In(fmt.Sprintf("side%d.log", i))
		_ = os.WriteFile(side, []byte("side\n"), 0o644)
		_ = os.Truncate(side, 0)
		_ = os.Rename(side, side+".1")
		_ = os.Remove(side + ".1")
	}
	if k.diesWhile(t, l) {
		restart(t, p)
		grows(t, p.Out("load.log"), 1)
	}
	plan, results := l.finish(t)
	if err := p.Stop(); err != nil && !k.died() { // a step of stopping
		t.Fatal(err)
	}
	restart(t, p) // everything drains, whichever role came to its end before the other
	drained(t, l, results)
	stop(t, p)
	l.count(t, plan, results)
	return k
}

// The start after a kill of holder and worker dies in turn, at each step of finding and
// moving the files that somebody still writes to, and what those programs write arrives.
func TestKilledWhileOrphansAreFound(t *testing.T) {
	for _, name := range failpoints(t) {
		if !strings.HasPrefix(name, "spool/orphan") && name != "capture/replayed" {
			continue
		}
		hits := []int{1, 2}
		if name == "capture/replayed" { // once a start
			hits = hits[:1]
		}
		for _, hit := range hits {
			t.Run(fmt.Sprintf("%s-%d", strings.ReplaceAll(name, "/", "-"), hit), func(t *testing.T) {
				eachCapture(t, func(t *testing.T, c capture, p *rig.Pair) {
					p.Mount = "holder_timeout = \"0s\""
					c.start(t, p)
					job := rig.Job{Size: 64, Lines: tally.MaxLines, Rate: 20_000, IgnoreClose: true}
					var loads []*load
					for i := range 3 {
						loads = append(loads, startLoad(t, p, fmt.Sprintf("load-%d.log", i), 1, job))
						grows(t, p.Out(loads[i].file), 1000)
					}
					must(t, p.MountRole.Kill())
					err := p.StartMount(t.Context(), fmt.Sprintf("FTFUSE_FAILPOINTS=%s=kill@%d", name, hit))
					k := &killed{p: p, role: "mount", first: p.MountRole}
					k.startAgain(t, err)
					if !k.died() {
						t.Errorf("the start never came to %s, time %d", name, hit)
					}
					for _, l := range loads {
						grows(t, p.Out(l.file), 1000)
					}
					for _, l := range loads {
						plan, results := l.finish(t)
						drained(t, l, results)
						t.Log(l.count(t, plan, results))
					}
					stop(t, p)
				}, "open")
			})
		}
	}
}

// restart starts what does not run. A worker whose holder has died is ended first.
func restart(t *testing.T, p *rig.Pair) {
	t.Helper()
	if p.ReceiveRole != nil && p.ReceiveRole.Gone() {
		startReceive(t, p)
	}
	if p.RelayRole != nil && p.RelayRole.Gone() {
		must(t, p.StartRelay(t.Context()))
	}
	if p.MountRole != nil && p.MountRole.Gone() {
		must(t, p.MountRole.Kill())
		startMount(t, p)
	}
}

// diesWhile waits until the role has died, or some load has passed without that.
func (k *killed) diesWhile(t *testing.T, l *load) bool {
	t.Helper()
	size := func() int64 {
		if st, err := os.Stat(l.p.Out(l.file)); err == nil {
			return st.Size()
		}
		return 0
	}
	from := size()
	eventually(t, patience, func() error {
		if k.died() || size() > from+6<<20 {
			return nil
		}
		return fmt.Errorf("%s lives and %d bytes have passed", k.role, size()-from)
	})
	return k.died()
}
