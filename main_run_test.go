package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"ftfuse/config"
	"ftfuse/internal/reload"
	"ftfuse/internal/systemd"
)

// stuckEnv makes this test binary a role that never stops by itself; its value is a
// configuration file.
const stuckEnv = "FTFUSE_TEST_STUCK"

func maybeStuck() {
	if os.Getenv(lateReloadEnv) != "" {
		lateReload()
	}
	file := os.Getenv(stuckEnv)
	if file == "" {
		return
	}
	run := func(_ context.Context, _ *config.Config, log *slog.Logger, _ *reload.Handle) error {
		log.Info("ready")
		select {}
	}
	os.Exit(exitCode(serve(config.RoleReceive, run, func() (*config.Config, error) { return config.Load(file) }, nil, nil, os.Stderr)))
}

// lateReloadEnv makes this test binary a role that is still busy with a SIGHUP when it has stopped.
const lateReloadEnv = "FTFUSE_TEST_LATE_RELOAD"

func lateReload() {
	s := newSignals(slog.New(slog.DiscardHandler), nil)
	busy := make(chan struct{})
	s.watch(syscall.SIGHUP, func() {
		fmt.Fprintln(os.Stderr, `{"msg":"ready"}`)
		_, _ = os.Stdin.Read(make([]byte, 1)) // until nobody reads the log
		close(busy)
		for range 20000 {
			fmt.Fprintln(os.Stderr, "a line of the log")
		}
	})
	_ = syscall.Kill(os.Getpid(), syscall.SIGHUP)
	<-busy
	s.close()
	os.Exit(exitOK)
}

// A role whose log nobody read was killed by that where it stopped while it was busy with a
// SIGHUP: what the reload then said was written after the signals had been given back.
func TestAReloadAtTheEndKilledARoleWhoseLogNobodyReads(t *testing.T) {
	in, out, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	p := startWith(t, in, []string{lateReloadEnv + "=1"}, self)
	p.waitFor("ready")
	p.pipe.Close()
	if _, err := out.Write([]byte{0}); err != nil {
		t.Fatal(err)
	}
	p.exits(exitOK)
}

// A reload that hangs, as where the file is on a server that is gone, held up the end of its role
// for ever.
func TestAReloadThatHangsHoldsUpNoEnd(t *testing.T) {
	s := newSignals(slog.New(slog.DiscardHandler), nil)
	s.patience = 10 * time.Millisecond
	busy, gone := make(chan struct{}), make(chan struct{})
	s.watch(syscall.SIGUSR2, func() { close(busy); <-gone })
	if err := syscall.Kill(os.Getpid(), syscall.SIGUSR2); err != nil {
		t.Fatal(err)
	}
	<-busy
	ended := make(chan struct{})
	go func() { s.close(); close(ended) }()
	select {
	case <-ended:
	case <-time.After(10 * time.Second):
		t.Error("it does not end")
	}
	close(gone)
	s.close() // gives the signals back
}

// process is a role in the foreground whose log is read as JSON.
type process struct {
	t    *testing.T
	cmd  *exec.Cmd
	pipe *os.File
	log  *bufio.Scanner
}

func start(t *testing.T, env []string, name string, args ...string) *process {
	t.Helper()
	return startWith(t, nil, env, name, args...)
}

// startWith is start with a standard input, which it closes.
func startWith(t *testing.T, in *os.File, env []string, name string, args ...string) *process {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	p := &process{t: t, cmd: exec.CommandContext(t.Context(), name, args...), pipe: r, log: bufio.NewScanner(r)}
	p.cmd.Stderr = w
	if in != nil {
		p.cmd.Stdin = in
		defer in.Close()
	}
	p.cmd.Env = append(os.Environ(), env...)
	err = p.cmd.Start()
	w.Close()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return p
}

// waitFor reads the log up to a message that begins with prefix.
func (p *process) waitFor(prefix string) map[string]any {
	p.t.Helper()
	if err := p.pipe.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
		p.t.Fatal(err)
	}
	var seen []string
	for p.log.Scan() {
		seen = append(seen, p.log.Text())
		line := map[string]any{}
		if err := json.Unmarshal(p.log.Bytes(), &line); err != nil {
			p.t.Fatalf("%v: not JSON: %s", err, p.log.Text())
		}
		if msg, _ := line["msg"].(string); strings.HasPrefix(msg, prefix) {
			return line
		}
	}
	p.t.Fatalf("no message %q (%v) in:\n%s", prefix, p.log.Err(), strings.Join(seen, "\n"))
	return nil
}

func (p *process) signal(s syscall.Signal) {
	p.t.Helper()
	if err := p.cmd.Process.Signal(s); err != nil {
		p.t.Fatal(err)
	}
}

// exits waits for the end and fails unless the exit code is code.
func (p *process) exits(code int) {
	p.t.Helper()
	if err := p.cmd.Wait(); p.cmd.ProcessState.ExitCode() != code {
		p.t.Fatalf("ended with %v, want exit code %d", err, code)
	}
}

// manager is a service manager's side of sd_notify(3).
type manager struct {
	t *testing.T
	c *net.UnixConn
}

func newManager(t *testing.T) *manager {
	t.Helper()
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(t.TempDir(), "notify"), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return &manager{t, c}
}

// env is what makes a process its service.
func (m *manager) env() []string { return []string{systemd.Env + "=" + m.c.LocalAddr().String()} }

// wants fails unless the next word begins with prefix.
func (m *manager) wants(prefix string) {
	m.t.Helper()
	if err := m.c.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
		m.t.Fatal(err)
	}
	b := make([]byte, 8192)
	if n, err := m.c.Read(b); err != nil || !strings.HasPrefix(string(b[:n]), prefix) {
		m.t.Fatalf("notified %q, %v; want %q", b[:n], err, prefix)
	}
}

// receiverConfig is a receiver below dir that listens on addr.
func receiverConfig(t *testing.T, dir, addr, more string) string {
	t.Helper()
	if err := os.MkdirAll(filepath.Join(dir, "out"), 0o755); err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(dir, "b.toml")
	text := fmt.Sprintf("host = \"h\"\nstate_dir = %q\nlog.format = \"json\"\n%s\n[receive]\nlisten = %q\n[[receive.output]]\ndir = %q\n",
		filepath.Join(dir, "state"), more, addr, filepath.Join(dir, "out"))
	if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return name
}

func TestSignalsStopARoleCleanly(t *testing.T) {
	for _, s := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT} {
		p := start(t, nil, binary, "receive", "-c", receiverConfig(t, t.TempDir(), "127.0.0.1:0", ""))
		if ready := p.waitFor("ready"); ready["role"] != "receive" {
			t.Errorf("the line ready is %v", ready)
		}
		p.signal(s)
		p.waitFor("stopping")
		p.waitFor("stopped")
		p.exits(exitOK)
	}
}

func TestASecondSignalStopsAtOnce(t *testing.T) {
	p := start(t, []string{stuckEnv + "=" + receiverConfig(t, t.TempDir(), "127.0.0.1:0", "")}, os.Args[0])
	p.waitFor("ready")
	p.signal(syscall.SIGTERM)
	p.waitFor("stopping")
	p.signal(syscall.SIGINT)
	p.waitFor("second signal")
	p.exits(exitRuntime)
}

func TestHangupReloadsTheLogLevelAndKeepsTheRole(t *testing.T) {
	dir := t.TempDir()
	conf := receiverConfig(t, dir, "127.0.0.1:0", "")
	m := newManager(t)
	p := start(t, m.env(), binary, "receive", "-c", conf)
	p.waitFor("ready")
	m.wants("READY=1")
	if err := os.WriteFile(conf, []byte("hots = 1\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	p.signal(syscall.SIGHUP)
	if line := p.waitFor("reload refused"); !strings.Contains(fmt.Sprint(line["error"]), conf+":1: ") {
		t.Errorf("a bad file is refused without its line: %v", line)
	}
	receiverConfig(t, dir, "127.0.0.1:0", `log.level = "error"`)
	p.signal(syscall.SIGHUP)
	p.waitFor("reloaded")
	for range 2 {
		m.wants("RELOADING=1\nMONOTONIC_USEC=")
		m.wants("READY=1")
	}
	// From here on it says nothing below error.
	p.signal(syscall.SIGTERM)
	for p.log.Scan() {
		t.Errorf("at level error it still says %s", p.log.Text())
	}
	m.wants("STOPPING=1")
	p.exits(exitOK)
}

// The reader of the log, a pipe to a logger for one, may die; the role must not.
func TestALogThatNobodyReadsDoesNotKill(t *testing.T) {
	p := start(t, nil, binary, "receive", "-c", receiverConfig(t, t.TempDir(), "127.0.0.1:0", ""))
	p.waitFor("ready")
	p.pipe.Close()
	p.signal(syscall.SIGHUP) // makes it say something
	p.signal(syscall.SIGTERM)
	p.exits(exitOK)
}

func TestARoleThatCannotServeExitsWithOne(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	m := newManager(t)
	p := start(t, m.env(), binary, "receive", "-c", receiverConfig(t, t.TempDir(), l.Addr().String(), ""))
	line := p.waitFor("stopped")
	m.wants("STATUS=failed: listen ")
	if line["level"] != "ERROR" || !strings.Contains(fmt.Sprint(line["error"]), l.Addr().String()) {
		t.Errorf("the last line does not name the address: %v", line)
	}
	p.exits(exitRuntime)
}
