package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

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

// commandLimit is how long a command may take. One that serves where it should refuse is
// killed: it would outlive the tests.
const commandLimit = time.Minute

// ftfuse runs the binary and returns its exit code and what it printed.
func ftfuse(t *testing.T, env []string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), commandLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, binary, args...)
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
	relay := file(t, goodConfig+"[relay]\n")
	certs := t.TempDir()
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
		{"queue verify --role bla -c " + good, 2, `"bla"`},
		{"queue verify --role relay -c " + good, 78, "no [relay]"},
		{"queue ls -c " + bad, 78, "hots"},
		{"send x", 2, "--as PATH"},
		{"send --as logs/", 2, "slash"},
		{"send --as a --again", 2, "--again"},
		{"send --as a --id n x", 2, "--id"},
		{"status x", 2, `unexpected argument "x"`},
		{"status --role bla -c " + good, 2, `"bla"`},
		{"status --role relay -c " + good, 78, "no [relay]"},
		{"status -c " + bad, 78, "hots"},
		{"status -c " + good, 1, "mount: /var/lib/ftfuse/mount/ftfuse.sock: the role does not answer"},
		{"status --json -c " + good, 1, `"role": "receive",`},
		{"cert", 2, "a command must follow"},
		{"cert host --dir " + certs, 2, "names of hosts must follow"},
		{"cert host --dir " + certs + " a", 1, "`ftfuse cert ca` makes one"},
		{"cert ca --days 0 --dir " + certs, 2, "--days 0"},
		{"cert ca x", 2, `unexpected argument "x"`},
		{"cert ca --dir " + certs, 0, "ca-key.pem"},
		{"cert ca --dir " + certs + "/new/site", 0, "new/site/ca-key.pem"},
		{"cert host --dir " + certs + "/none a", 1, "`ftfuse cert ca` makes one"},
		{"cert ca --dir " + certs, 1, "there already"},
		{"cert host --dir " + certs + " a,10.0.0.1 b", 0, `cert = "/etc/ftfuse/b.pem"`},
		{"cert host --dir " + certs + " c b", 1, "--replace"},
		{"cert host --replace --dir " + certs + " b", 0, "b-key.pem"},
		{"cert host --dir " + certs + " a/b", 2, `"a/b"`},
		{"bench --bla", 2, "bla"},
		{"bench --help", 0, "writers"},
		{"demo --bla", 2, "bla"},
		{"demo --help", 0, "folder"},

		{"check -c " + good, 0, "mount: good"},
		{"check -c " + good, 0, "mount: capture: "},
		{"check -c " + bad, 78, bad + ":2: unknown key hots; did you mean host?"},
		{"check --config " + bad, 78, bad + ":2: "},
		{"check -c " + relay, 78, relay + ":6: "},
		{"check -c " + noRole, 78, "no [mount]"},
		{"check -c /does/not/exist.toml", 78, "/does/not/exist.toml: "},
		{"mount -c " + bad, 78, bad + ":2: "},
		{"mount -c " + good + " /var/lib/ftfuse/mnt", 78, "MOUNTPOINT on the command line"},
		{"relay -c " + relay, 78, relay + ":6: the relay has nowhere to send to"},
		{"relay -c " + good, 78, "no [relay]"},
		{"receive -c " + bad, 78, bad + ":2: "},
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
	for i, line := range []int{1, 3, 4, 4, 4} {
		if i >= len(lines) || !strings.HasPrefix(lines[i], fmt.Sprintf("%s:%d: ", bad, line)) {
			t.Fatalf("line %d of standard error is not a problem of line %d:\n%s", i+1, line, stderr)
		}
	}
	if len(lines) != 5 || stdout != "" {
		t.Errorf("got %d lines, want 5, and %q on standard output", len(lines), stdout)
	}
}

// What two roles refuse alike is said once.
func TestCheckSaysEachProblemOnce(t *testing.T) {
	conf := file(t, goodConfig+"[tls]\ncert = \"/not/there.pem\"\nkey = \"/k\"\nca = \"/c\"\n")
	code, stdout, stderr := ftfuse(t, nil, "check", "-c", conf)
	if n := strings.Count(stderr, conf+":6: "); n != 1 || code != exitConfig || strings.Count(stdout, "would not start") != 2 {
		t.Errorf("exit code %d, said %d times:\n%s%s", code, n, stdout, stderr)
	}
}

// The text that `ftfuse cert host` prints is what the file needs.
func TestCertificatesOfTheCommandAreGood(t *testing.T) {
	dir := t.TempDir()
	for _, args := range [][]string{{"ca"}, {"host", "web-01,127.0.0.1"}} {
		args = append([]string{"cert", args[0], "--dir", dir}, args[1:]...)
		if code, stdout, stderr := ftfuse(t, nil, args...); code != 0 {
			t.Fatalf("%v: exit code %d:\n%s%s", args, code, stdout, stderr)
		} else if _, tls, ok := strings.Cut(stdout, "[tls]"); ok {
			conf := file(t, strings.ReplaceAll(goodConfig+"[tls]"+tls, "/etc/ftfuse", dir))
			if code, stdout, stderr := ftfuse(t, nil, "check", "-c", conf); code != 0 || strings.Contains(stdout, "no tls") {
				t.Errorf("check: exit code %d:\n%s%s", code, stdout, stderr)
			}
		} else if args[1] == "host" {
			t.Errorf("no [tls] in:\n%s", stdout)
		}
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
