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

// roleOf tells where the steps of a package are taken; those of the queue in both roles.
var roleOf = map[string]string{"receive": "receive", "output": "receive", "spool": "mount", "capture": "mount", "mount": "mount"}

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

// hits says which passing of a step is the deadly one.
func hits() []int {
	if soak {
		return []int{1, 2, 3, 10, 50}
	}
	return []int{1, 3}
}

// Each role dies at each named step under load, starts again, and every accepted line
// arrives once, in order. The load truncates and rotates too, so that every step is hit.
func TestKilledAtEveryFailpoint(t *testing.T) {
	needRoot(t)
	names := failpoints(t)
	if len(names) < 10 {
		t.Fatalf("only %d failpoints found", len(names))
	}
	never := map[string]bool{}
	for _, name := range names {
		pkg, _, _ := strings.Cut(name, "/")
		for _, role := range []string{"mount", "receive"} {
			if pkg != "queue" && role != roleOf[pkg] {
				continue
			}
			for _, hit := range hits() {
				t.Run(fmt.Sprintf("%s-%s-%d", strings.ReplaceAll(name, "/", "-"), role, hit), func(t *testing.T) {
					if !killedAt(t, name, role, hit) {
						never[fmt.Sprintf("%s of %s, time %d", name, role, hit)] = true
					}
				})
			}
		}
	}
	for n := range never {
		t.Logf("not reached by this load: %s", n)
	}
}

// killedAt runs a load with a failpoint armed in one role and reports whether it died.
func killedAt(t *testing.T, name, role string, hit int) (died bool) {
	p := newPair(t)
	env := fmt.Sprintf("FTFUSE_FAILPOINTS=%s=kill@%d", name, hit)
	if role == "mount" {
		startReceive(t, p)
		if err := p.StartMount(t.Context(), env); err != nil {
			died = p.MountRole.Gone()
			if !died {
				t.Fatal(err)
			}
			startMount(t, p)
		}
	} else {
		if err := p.StartReceive(t.Context(), env); err != nil {
			died = p.ReceiveRole.Gone()
			if !died {
				t.Fatal(err)
			}
			startReceive(t, p)
		}
		startMount(t, p)
	}
	armed := map[string]*rig.Role{"mount": p.MountRole, "receive": p.ReceiveRole}[role]
	l := startLoad(t, p, "load.log", 2, rig.Job{Size: 64, Lines: tally.MaxLines, Chunk: 4096, Rate: 30_000, Survive: true})
	for i := range 3 { // steps of truncation and removal; a dead daemon answers with an error
		side := p.In(fmt.Sprintf("side%d.log", i))
		_ = os.WriteFile(side, []byte("side\n"), 0o644)
		_ = os.Truncate(side, 0)
		_ = os.Remove(side)
	}
	again := func() {
		if died = true; role == "mount" {
			startMount(t, p)
		} else {
			startReceive(t, p)
		}
	}
	if diesWhile(t, l, armed) {
		again()
		grows(t, p.Out("load.log"), 1)
	}
	plan, results := l.finish(t)
	if err := p.Stop(); err != nil { // a step of stopping
		if !armed.Gone() || armed.ExitCode() != -1 {
			t.Fatal(err)
		}
		again()
	}
	restart(t, p) // everything drains, whichever role came to its end before the other
	drained(t, l, results)
	stop(t, p)
	l.count(t, plan, results)
	return died
}

// restart starts what does not run.
func restart(t *testing.T, p *rig.Pair) {
	t.Helper()
	if p.ReceiveRole.Gone() {
		startReceive(t, p)
	}
	if p.MountRole.Gone() {
		startMount(t, p)
	}
}

// diesWhile waits until the role has died, or some load has passed without that.
func diesWhile(t *testing.T, l *load, r *rig.Role) bool {
	t.Helper()
	size := func() int64 {
		if st, err := os.Stat(l.p.Out(l.file)); err == nil {
			return st.Size()
		}
		return 0
	}
	from := size()
	eventually(t, patience, func() error {
		if r.Gone() || size() > from+1<<20 {
			return nil
		}
		return fmt.Errorf("%s lives and %d bytes have passed", r.Name, size()-from)
	})
	return r.Gone()
}
