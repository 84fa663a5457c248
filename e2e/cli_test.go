package e2e

import (
	"debug/elf"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// The binary needs nothing of the machine: no interpreter, no shared library.
func TestBinaryIsStatic(t *testing.T) {
	f, err := elf.Open(bin)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP || p.Type == elf.PT_DYNAMIC {
			t.Errorf("the binary has a %v: it is not static", p.Type)
		}
	}
}

func TestVersionNamesTheBuild(t *testing.T) {
	out, _, code := ftfuse(t, "version")
	if code != 0 || !strings.HasPrefix(out, "ftfuse ") {
		t.Errorf("version: exit %d, %q", code, out)
	}
	out, _, code = ftfuse(t, "version", "--json")
	var v struct{ Version, Go, OS string }
	if err := json.Unmarshal([]byte(out), &v); err != nil || code != 0 || v.Version == "" || v.OS != "linux" {
		t.Errorf("version --json: exit %d, %v, %+v", code, err, v)
	}
}

// Exit codes are what people script against: 0 good, 2 usage, 78 configuration.
func TestMisuseIsExitCode2(t *testing.T) {
	for _, args := range [][]string{
		{"no-such-command"},
		{"mount", "--no-such-flag"},
		{"version", "extra"},
		{"bench", "--sizes", "3"},
		{"bench", "extra"},
		{"demo", "extra"},
		{"relay", "extra"},
		{"queue", "cat", "--no-such-flag"},
		{"cert", "no-such-kind"},
	} {
		_, complaint, code := ftfuse(t, args...)
		if code != 2 || complaint == "" {
			t.Errorf("ftfuse %s: exit %d, said %q, want exit 2 and a reason", strings.Join(args, " "), code, complaint)
		}
	}
}

func TestBadConfigurationIsExitCode78WithItsLine(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "bad.toml")
	for name, tc := range map[string]struct{ text, where, says string }{
		"unknown key":       {"host = \"a\"\n\n[mount]\npiont = \"/mnt/x\"\n", "bad.toml:4", "piont"},
		"wrong type":        {"[queue]\nmax_bytes = true\n", "bad.toml:2", "max_bytes"},
		"bad size":          {"[queue]\ncommit_bytes = \"1 parsec\"\n", "bad.toml:2", "parsec"},
		"syntax":            {"[queue]\nmax_bytes = = 1\n", "bad.toml:2", ""},
		"state below point": {"state_dir = \"" + dir + "/mnt/state\"\n[mount]\npoint = \"" + dir + "/mnt\"\n[[mount.forward]]\nprimary = [\"localhost:1\"]\n", "bad.toml:", "state_dir"},
	} {
		if err := os.WriteFile(path, []byte(tc.text), 0o644); err != nil {
			t.Fatal(err)
		}
		for _, command := range []string{"check", "mount"} {
			_, complaint, code := ftfuse(t, command, "-c", path)
			if code != 78 || !strings.Contains(complaint, tc.where) || !strings.Contains(complaint, tc.says) {
				t.Errorf("%s: ftfuse %s: exit %d, said %q, want exit 78 with %q and %q", name, command, code, complaint, tc.where, tc.says)
			}
		}
	}
	if _, complaint, code := ftfuse(t, "check", "-c", filepath.Join(dir, "none.toml")); code != 78 || !strings.Contains(complaint, "none.toml") {
		t.Errorf("a file that is not there: exit %d, said %q", code, complaint)
	}
}

// The example files are good as they stand.
func TestExamplesAreGood(t *testing.T) {
	examples, err := filepath.Glob("../testdata/*.toml")
	if err != nil || len(examples) < 2 {
		t.Fatalf("found %d examples: %v", len(examples), err)
	}
	for _, path := range examples {
		if out, complaint, code := ftfuse(t, "check", "-c", path); code != 0 {
			t.Errorf("%s: exit %d, said %q %q", path, code, out, complaint)
		}
	}
}

// The TOML that the documents show is good as it stands.
func TestTOMLInDocumentsIsGood(t *testing.T) {
	blocks := 0
	for _, document := range []string{"README.md"} { // docs/configuration.md shows later values, too
		text := string(read(t, filepath.Join("..", document)))
		for _, rest := range strings.Split(text, "\n```toml\n")[1:] {
			block, _, ok := strings.Cut(rest, "\n```")
			if !ok {
				t.Fatalf("%s: a block without an end", document)
			}
			if !strings.Contains(block, "[mount]") && !strings.Contains(block, "[receive]") {
				continue // a part of a file
			}
			blocks++
			path := filepath.Join(t.TempDir(), "shown.toml")
			must(t, os.WriteFile(path, []byte(block+"\n"), 0o644))
			if out, complaint, code := ftfuse(t, "check", "-c", path); code != 0 {
				t.Errorf("%s shows a file that exits %d: %s%s\n%s", document, code, out, complaint, block)
			}
		}
	}
	if blocks < 3 {
		t.Errorf("only %d files are shown", blocks)
	}
}
