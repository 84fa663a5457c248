package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"ftfuse/config"
)

// binary is ftfuse itself, built for these tests: exit codes are of a process.
var binary string

func TestMain(m *testing.M) {
	maybeStuck()
	os.Exit(buildAndRun(m))
}

func buildAndRun(m *testing.M) int {
	dir, err := os.MkdirTemp("", "ftfuse-cli")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	binary = filepath.Join(dir, "ftfuse")
	build := exec.Command("go", "build", "-ldflags", "-X main.version=v1.2.3-test", "-o", binary, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build: %v\n%s", err, out)
		return 1
	}
	return m.Run()
}

// ftfuse runs the binary and returns its exit code and what it printed.
func ftfuse(t *testing.T, env []string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), binary, args...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	for _, e := range os.Environ() {
		if !strings.HasPrefix(e, "FTFUSE_") {
			cmd.Env = append(cmd.Env, e)
		}
	}
	cmd.Env = append(cmd.Env, env...)
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), out.String(), errs.String()
}

// file writes a configuration and returns its path.
func file(t *testing.T, text string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "test.toml")
	if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return name
}

const goodConfig = `host = "h"
[mount]
[[mount.forward]]
primary = ["b:7401"]
[receive]
`

func TestExitCodes(t *testing.T) {
	good := file(t, goodConfig)
	bad := file(t, "host = \"h\"\nhots = \"h\"\n")
	later := file(t, goodConfig+"[tls]\ncert = \"/a\"\nkey = \"/b\"\n")
	relay := file(t, goodConfig+"[relay]\n")
	noRole := file(t, "host = \"h\"\n")
	for _, tc := range []struct {
		args string
		code int
		text string // in what it prints to either
	}{
		{"", 2, "a command must follow"},
		{"help", 0, "COMMANDS"},
		{"--help", 0, "COMMANDS"},
		{"mount --help", 0, "--options"},
		{"mont", 2, `unknown command "mont"`},
		{"--bla", 2, "not defined: -bla"},
		{"mount --bla", 2, "ftfuse mount: flag provided but not defined: -bla"},
		{"mount -o bla", 2, "bla"},
		{"mount a b", 2, `unexpected argument "b"`},
		{"mount -c", 2, "flag needs an argument"},
		{"receive x", 2, `unexpected argument "x"`},
		{"version x", 2, `unexpected argument "x"`},
		{"version", 0, "v1.2.3-test"},
		{"queue", 2, "a command must follow"},
		{"queue bla", 2, `unknown command "bla"`},
		{"queue cat", 2, "not in this version"},
		{"queue export", 2, "not in this version"},
		{"queue import", 2, "not in this version"},
		{"queue verify --role bla -c " + good, 2, `"bla"`},
		{"queue verify --role relay -c " + good, 78, "no [relay]"},
		{"queue ls -c " + bad, 78, "hots"},
		{"send x", 2, "not in this version"},
		{"status", 2, "not in this version"},
		{"relay", 2, "not in this version"},
		{"bench --bla", 2, "bla"},
		{"bench --help", 0, "writers"},
		{"demo --bla", 2, "bla"},
		{"demo --help", 0, "folder"},

		{"check -c " + good, 0, "mount: good"},
		{"check -c " + good, 0, "mount: capture: "},
		{"check -c " + bad, 78, bad + ":2: unknown key hots; did you mean host?"},
		{"check --config " + bad, 78, bad + ":2: "},
		{"check -c " + later, 78, later + ":6: TLS"},
		{"check -c " + relay, 78, relay + ":6: "},
		{"check -c " + noRole, 78, "no [mount]"},
		{"check -c /does/not/exist.toml", 78, "/does/not/exist.toml: "},
		{"mount -c " + bad, 78, bad + ":2: "},
		{"mount -c " + later, 78, later + ":6: TLS"},
		{"mount -c " + good + " /var/lib/ftfuse/mnt", 78, "MOUNTPOINT on the command line"},
		{"receive -c " + bad, 78, bad + ":2: "},
		{"receive -c " + later, 78, later + ":6: TLS"},
		{"receive -c " + noRole, 78, "no [receive]"},
	} {
		t.Run(tc.args, func(t *testing.T) {
			code, stdout, stderr := ftfuse(t, nil, strings.Fields(tc.args)...)
			if code != tc.code || !strings.Contains(stdout+stderr, tc.text) {
				t.Errorf("exit code %d, want %d, and %q in:\n%s%s", code, tc.code, tc.text, stdout, stderr)
			}
			if code != 0 && stderr == "" {
				t.Error("failed and said nothing on standard error")
			}
		})
	}
}

// Editors and scripts read FILE:LINE: at the beginning of a line.
func TestProblemsStandOnLinesOfTheirOwn(t *testing.T) {
	bad := file(t, "hots = 1\n[queue]\nmax_bytes = \"x\"\n[tls]\n")
	_, stdout, stderr := ftfuse(t, nil, "check", "-c", bad)
	lines := strings.Split(strings.TrimSuffix(stderr, "\n"), "\n")
	for i, line := range []int{1, 3, 4, 4} {
		if i >= len(lines) || !strings.HasPrefix(lines[i], fmt.Sprintf("%s:%d: ", bad, line)) {
			t.Fatalf("line %d of standard error is not a problem of line %d:\n%s", i+1, line, stderr)
		}
	}
	if len(lines) != 4 || stdout != "" {
		t.Errorf("got %d lines, want 4, and %q on standard output", len(lines), stdout)
	}
}

// What two roles refuse alike is said once.
func TestCheckSaysEachProblemOnce(t *testing.T) {
	later := file(t, goodConfig+"[http]\nlisten = \":80\"\n")
	_, _, stderr := ftfuse(t, nil, "check", "-c", later)
	if n := strings.Count(stderr, later+":7: "); n != 1 {
		t.Errorf("said %d times:\n%s", n, stderr)
	}
}

func TestConfigFileOfTheEnvironment(t *testing.T) {
	good := file(t, goodConfig)
	code, stdout, stderr := ftfuse(t, []string{"FTFUSE_CONFIG=" + good}, "check")
	if code != 0 || !strings.Contains(stdout, good) {
		t.Errorf("exit code %d:\n%s%s", code, stdout, stderr)
	}
	// -c goes before it.
	code, _, stderr = ftfuse(t, []string{"FTFUSE_CONFIG=" + good}, "check", "-c", "/not/there")
	if code != 78 || !strings.Contains(stderr, "/not/there: ") {
		t.Errorf("exit code %d:\n%s", code, stderr)
	}
	code, _, stderr = ftfuse(t, []string{"FTFUSE_CONFIG="}, "check")
	if _, err := os.Stat(config.DefaultFile); err != nil && (code != 78 || !strings.Contains(stderr, config.DefaultFile+": ")) {
		t.Errorf("exit code %d:\n%s", code, stderr)
	}
}

func TestVersionAsJSON(t *testing.T) {
	_, stdout, _ := ftfuse(t, nil, "version", "--json")
	var b build
	if err := json.Unmarshal([]byte(stdout), &b); err != nil {
		t.Fatalf("%v in:\n%s", err, stdout)
	}
	if b.Version != "v1.2.3-test" || b.Go == "" || b.OS == "" || b.Arch == "" {
		t.Errorf("got %+v", b)
	}
}
