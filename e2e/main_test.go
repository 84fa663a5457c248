// Package e2e runs the built binary as an operator does: real mounts, real sockets, real
// programs, kill -9, full disks, power loss; and counts what comes out with code that
// shares nothing with what it checks (bench/tally).
//
// The long forms of these tests run with FTFUSE_SOAK=1. FTFUSE_BIN names a binary to
// test instead of building one, FTFUSE_E2E_LOG a file that takes the logs of all roles.
// FTFUSE_SEED repeats the chance of a test that logged it, FTFUSE_ROUNDS says how many
// troubles befall a network of relays.
package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"ftfuse/bench/rig"
)

// bin is the binary under test.
var bin string

// soak asks for the long forms.
var soak = os.Getenv("FTFUSE_SOAK") == "1"

// patience is how long a test waits for something that should take milliseconds, on a
// machine that may be doing much else.
const patience = 30 * time.Second

// patienceLook is how often it looks whether it has come.
const patienceLook = 2 * time.Millisecond

func TestMain(m *testing.M) {
	code, err := runTests(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		code = 1
	}
	os.Exit(code)
}

func runTests(m *testing.M) (int, error) {
	if bin = os.Getenv("FTFUSE_BIN"); bin == "" {
		dir, err := os.MkdirTemp("", "ftfuse-e2e-")
		if err != nil {
			return 1, err
		}
		defer os.RemoveAll(dir)
		bin = filepath.Join(dir, "ftfuse")
		build := exec.Command("go", "build", "-trimpath", "-ldflags", "-X main.version=e2e", "-o", bin, "ftfuse")
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			return 1, fmt.Errorf("build the binary: %w\n%s", err, out)
		}
	}
	code := m.Run()
	if left := leftBehind(); len(left) > 0 {
		return 1, fmt.Errorf("processes of %s are left after the tests: %s", bin, strings.Join(left, "; "))
	}
	if left := namespacesLeft(); len(left) > 0 {
		return 1, fmt.Errorf("network namespaces are held open after the tests: %s", strings.Join(left, "; "))
	}
	return code, nil
}

// namespacesLeft names the network namespaces that this process still holds: those of a
// site (rig.Site) have no name, and with the last descriptor and process they, their links
// and their packet filters are gone.
func namespacesLeft() []string {
	var left []string
	fds, _ := filepath.Glob("/proc/self/fd/*") // the pattern is well-formed
	for _, fd := range fds {
		if to, err := os.Readlink(fd); err == nil && strings.HasPrefix(to, "net:[") {
			left = append(left, to)
		}
	}
	return left
}

// leftBehind names the processes that still run the binary under test, as no test may leave
// any. Those that are about to end get a moment.
func leftBehind() []string {
	limit := time.Now().Add(10 * time.Second)
	for {
		var left []string
		dirs, _ := filepath.Glob("/proc/[0-9]*") // the pattern is well-formed
		for _, dir := range dirs {
			if exe, err := os.Readlink(filepath.Join(dir, "exe")); err == nil && strings.TrimSuffix(exe, " (deleted)") == bin {
				args, _ := os.ReadFile(filepath.Join(dir, "cmdline")) // gone meanwhile: no arguments
				left = append(left, filepath.Base(dir)+" "+strings.ReplaceAll(string(args), "\x00", " "))
			}
		}
		if len(left) == 0 || time.Now().After(limit) {
			return left
		}
		<-time.After(10 * time.Millisecond)
	}
}

// needRoot skips what only root can do, and says so.
func needRoot(t *testing.T) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: mounts with allow_other, loop devices, kill of any process (sudo make test)")
	}
	if _, err := os.Stat("/dev/fuse"); err != nil {
		t.Skipf("needs /dev/fuse: %v", err)
	}
}

// need skips a test of a program that is not installed; `make setup` installs them all.
func need(t *testing.T, programs ...string) {
	t.Helper()
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			t.Skipf("needs %s (make setup installs it): %v", p, err)
		}
	}
}

// newPair is a source and an aggregator in the test's own folder, not started yet. Mount
// and processes are gone after the test, however it ends.
func newPair(t *testing.T) *rig.Pair {
	t.Helper()
	needRoot(t)
	p, err := rig.NewPair(bin, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	p.Log = roleLog(t)
	watch(t, p)
	return p
}

// watch logs what the roles said if the test fails, and ends them.
func watch(t *testing.T, p *rig.Pair) {
	t.Cleanup(func() {
		p.Close()
		if !t.Failed() {
			return
		}
		for _, r := range p.Roles() {
			lines := r.Log()
			t.Logf("log of %s:\n  %s", r.Name, strings.Join(lines[max(0, len(lines)-25):], "\n  "))
		}
	})
}

// roleLog is where the roles' logs go if FTFUSE_E2E_LOG asks for them.
func roleLog(t *testing.T) io.Writer {
	t.Helper()
	path := os.Getenv("FTFUSE_E2E_LOG")
	if path == "" {
		return nil
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	must(t, err)
	t.Cleanup(func() { f.Close() })
	return f
}

// startPair starts a pair with nothing but defaults.
func startPair(t *testing.T) *rig.Pair {
	t.Helper()
	p := newPair(t)
	start(t, p)
	return p
}

func start(t *testing.T, p *rig.Pair) {
	t.Helper()
	if err := p.StartBoth(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func startMount(t *testing.T, p *rig.Pair, env ...string) {
	t.Helper()
	if err := p.StartMount(t.Context(), env...); err != nil {
		t.Fatal(err)
	}
}

func startReceive(t *testing.T, p *rig.Pair, env ...string) {
	t.Helper()
	if err := p.StartReceive(t.Context(), env...); err != nil {
		t.Fatal(err)
	}
}

// stop stops both roles in order; each must exit with 0.
func stop(t *testing.T, p *rig.Pair) {
	t.Helper()
	if err := p.Stop(); err != nil {
		t.Fatal(err)
	}
}

// eventually waits until ok returns nil and fails the test with its last error if it
// does not within limit.
func eventually(t *testing.T, limit time.Duration, ok func() error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for {
		err := ok()
		if err == nil {
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("not within %v: %v", limit, err)
		}
	}
}

// arrives waits until the file at path has len(want) bytes or more, and compares it.
func arrives(t *testing.T, path string, want []byte) {
	t.Helper()
	eventually(t, patience, func() error {
		st, err := os.Stat(path)
		if errors.Is(err, fs.ErrNotExist) && len(want) == 0 {
			return nil
		}
		if err != nil {
			return err
		}
		if st.Size() < int64(len(want)) {
			return fmt.Errorf("%s has %d bytes, want %d%s", path, st.Size(), len(want), difference(read(t, path), want))
		}
		return nil
	})
	same(t, path, want)
}

// same compares a file byte for byte.
func same(t *testing.T, path string, want []byte) {
	t.Helper()
	if got := read(t, path); !bytes.Equal(got, want) {
		t.Fatalf("%s has %d bytes, want %d%s", path, len(got), len(want), difference(got, want))
	}
}

// difference says in words where got and want part.
func difference(got, want []byte) string {
	n := 0
	for n < len(got) && n < len(want) && got[n] == want[n] {
		n++
	}
	if n == len(got) && n == len(want) {
		return ""
	}
	around := func(b []byte) []byte { return b[min(len(b), max(0, n-30)):min(len(b), n+60)] }
	return fmt.Sprintf(": they part at offset %d:\n  got  %q\n  want %q", n, around(got), around(want))
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	return b
}

// sh runs a script of sh with arguments; any failure or complaint fails the test.
func sh(t *testing.T, script string, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "sh", append([]string{"-euc", script, "sh"}, args...)...)
	var out, complaints bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &complaints
	if err := cmd.Run(); err != nil || complaints.Len() > 0 {
		t.Fatalf("sh: %v\n%s\n%s", err, script, complaints.String())
	}
	return out.String()
}

// ftfuse runs the binary to its end and returns what it said and its exit code.
func ftfuse(t *testing.T, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, bin, args...)
	var out, complaints bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &complaints
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("run ftfuse %s: %v", strings.Join(args, " "), err)
	}
	return out.String(), complaints.String(), cmd.ProcessState.ExitCode()
}

// diskUse is what `du` says of a folder, in bytes: blocks, not sizes.
func diskUse(t *testing.T, dir string) int64 {
	t.Helper()
	var sum int64
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // removed while we looked
		}
		if err != nil {
			return err
		}
		var st syscall.Stat_t
		if err := syscall.Lstat(path, &st); err == nil {
			sum += st.Blocks * 512
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return sum
}

// lockedBuffer takes a process's output while a test reads it.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
