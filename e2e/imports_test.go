package e2e

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// Only these packages may import these modules (DESIGN.md, section 6).
var owners = map[string][]string{
	"github.com/urfave/cli/v2": {"ftfuse"},
	"bazil.org/fuse":           {"ftfuse/mount", "ftfuse/mount/kernel", "ftfuse/mount/nullfs"},
	"go.etcd.io/bbolt":         {"ftfuse/queue", "ftfuse/examples/countlines"},
	"go.yaml.in/yaml":          {"ftfuse/internal/k2hft"},
}

// roles never import one another.
var roles = []string{"ftfuse/mount", "ftfuse/relay", "ftfuse/receive"}

// engines are the internal packages that stand above queue and transport, since several
// roles are made of them; all others are leaves.
var engines = map[string][]string{
	"ftfuse/internal/sink":      {"ftfuse/queue"},
	"ftfuse/internal/plugin":    {"ftfuse/queue"},
	"ftfuse/internal/queuetool": {"ftfuse/queue"},
	"ftfuse/internal/forward":   {"ftfuse/queue", "ftfuse/transport"},
	"ftfuse/internal/upstream":  {"ftfuse/queue", "ftfuse/transport"},
	"ftfuse/internal/report":    {"ftfuse/queue", "ftfuse/transport"},
	"ftfuse/internal/service":   {"ftfuse/config", "ftfuse/queue", "ftfuse/transport"},
	"ftfuse/internal/reload":    {"ftfuse/config"},
}

type goPackage struct {
	ImportPath string
	Imports    []string
	Deps       []string
}

func below(path, root string) bool { return path == root || strings.HasPrefix(path, root+"/") }

// complaints are the breaches of the directions that the design lays down.
func complaints(packages []goPackage) []string {
	var out []string
	say := func(p goPackage, what, why string) { out = append(out, p.ImportPath+" imports "+what+": "+why) }
	for _, p := range packages {
		for _, i := range p.Imports {
			for module, who := range owners {
				if below(i, module) && !slices.Contains(who, p.ImportPath) {
					say(p, i, "only "+strings.Join(who, " and ")+" may")
				}
			}
			for _, role := range roles {
				for _, other := range roles {
					if role != other && below(p.ImportPath, role) && below(i, other) {
						say(p, i, "no role imports another")
					}
				}
			}
			if below(i, "ftfuse/bench") && p.ImportPath != "ftfuse" && !below(p.ImportPath, "ftfuse/bench") {
				say(p, i, "nothing rests on the benchmark")
			}
			if below(p.ImportPath, "ftfuse/internal") && below(i, "ftfuse") && !below(i, "ftfuse/internal") && !slices.Contains(engines[p.ImportPath], i) {
				say(p, i, "internal packages are leaves")
			}
			if p.ImportPath == "ftfuse/config" && strings.HasPrefix(i, "ftfuse/") && !strings.HasPrefix(i, "ftfuse/internal/") {
				say(p, i, "config is a leaf")
			}
		}
		for _, carrier := range []string{"ftfuse/queue", "ftfuse/transport"} {
			if !below(p.ImportPath, carrier) {
				continue
			}
			for _, d := range p.Deps {
				if d == "ftfuse/config" || strings.HasPrefix(d, "github.com/BurntSushi/toml") || d == "ftfuse/internal/record" {
					say(p, d, "queue and transport never see TOML and carry batches unopened")
				}
			}
		}
	}
	return out
}

func TestImportsGoTheRightWay(t *testing.T) {
	out, err := exec.Command("go", "list", "-json=ImportPath,Imports,Deps", "ftfuse/...").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var packages []goPackage
	for d := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p goPackage
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		packages = append(packages, p)
	}
	if len(packages) < 10 {
		t.Fatalf("go list knows only %d packages", len(packages))
	}
	for _, c := range complaints(packages) {
		t.Error(c)
	}
}

// The check above must be able to fail.
func TestWrongImportsAreNoticed(t *testing.T) {
	for _, p := range []goPackage{
		{ImportPath: "ftfuse/receive", Imports: []string{"go.etcd.io/bbolt"}},
		{ImportPath: "ftfuse/receive", Imports: []string{"ftfuse/mount/spool"}},
		{ImportPath: "ftfuse/bench", Imports: []string{"bazil.org/fuse/fs"}},
		{ImportPath: "ftfuse/mount", Imports: []string{"github.com/urfave/cli/v2"}},
		{ImportPath: "ftfuse/config", Imports: []string{"ftfuse/queue"}},
		{ImportPath: "ftfuse/internal/record", Imports: []string{"ftfuse/queue"}},
		{ImportPath: "ftfuse/internal/sink", Imports: []string{"ftfuse/transport"}},
		{ImportPath: "ftfuse/relay", Imports: []string{"ftfuse/receive"}},
		{ImportPath: "ftfuse/queue", Deps: []string{"ftfuse/config"}},
		{ImportPath: "ftfuse/transport", Deps: []string{"github.com/BurntSushi/toml"}},
		{ImportPath: "ftfuse/receive", Imports: []string{"ftfuse/bench/rig"}},
	} {
		if c := complaints([]goPackage{p}); len(c) != 1 {
			t.Errorf("%+v: %d complaints, want 1: %v", p, len(c), c)
		}
	}
	if c := complaints([]goPackage{
		{ImportPath: "ftfuse/queue", Imports: []string{"go.etcd.io/bbolt", "ftfuse/internal/batch"}},
		{ImportPath: "ftfuse/internal/forward", Imports: []string{"ftfuse/queue", "ftfuse/transport", "ftfuse/internal/batch"}},
	}); len(c) != 0 {
		t.Errorf("good imports: %v", c)
	}
}
