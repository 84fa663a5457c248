package relay

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"ftfuse/config"
	"ftfuse/internal/batch"
	"ftfuse/internal/roletest"
)

const testLimit = 30 * time.Second // what takes longer has failed

// childEnv holds a setup in JSON: the test binary is then a relay and no test.
const childEnv = "FTFUSE_RELAY_CHILD"

func TestMain(m *testing.M) {
	if raw := os.Getenv(childEnv); raw != "" {
		os.Exit(child(raw))
	}
	os.Exit(m.Run())
}

func child(raw string) int {
	var s setup
	if err := json.Unmarshal([]byte(raw), &s); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 2
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	if err := RunWith(context.Background(), s.config(), log, s.options()); err != nil {
		fmt.Fprintln(os.Stderr, "relay:", err)
		return 1
	}
	return 0
}

// setup is what a test's relay is made of.
type setup struct {
	State, Listen   string
	Forwards        []config.Forward
	Outputs         []config.Output
	MaxBytes        int64
	OnFull          config.FullPolicy // default block
	MaxAge          time.Duration
	KeepFinal       bool
	FinalTimeout    time.Duration
	CheckpointEvery time.Duration
	SegmentBytes    int64
	TLS             config.TLS
	Allow           map[string][]string
}

func (s setup) config() *config.Config {
	q := config.Queue{CommitEvery: 5 * time.Millisecond, CommitBytes: 1 << 20, MaxBytes: config.Size(s.MaxBytes), OnFull: config.FullBlock, MaxAge: s.MaxAge}
	if q.MaxBytes == 0 {
		q.MaxBytes = 8 << 30
	}
	if s.OnFull != "" {
		q.OnFull = s.OnFull
	}
	q.KeepUntil, q.FinalTimeout = config.KeepUntilHop, s.FinalTimeout
	if s.KeepFinal {
		q.KeepUntil = config.KeepUntilFinal
	}
	return &config.Config{
		File: "test.toml", Host: "relay", StateDir: s.State, ShutdownTimeout: 10 * time.Second, Queue: q, TLS: s.TLS,
		Relay: &config.Relay{
			Listen: s.Listen, Forwards: s.Forwards, Outputs: s.Outputs, Queue: q,
			Listener: config.Listener{Allow: s.Allow, MaxConnections: 1024, MaxConnectionsPerAddress: 1024},
		},
	}
}

func (s setup) options() Options {
	return Options{CheckpointEvery: s.CheckpointEvery, SegmentBytes: s.SegmentBytes}
}

// newSetup is a relay in a directory of its own, with a group for each destination.
func newSetup(t testing.TB, to ...*aggregator) setup {
	t.Helper()
	dir := t.TempDir()
	s := setup{State: filepath.Join(dir, "state"), Listen: roletest.FreePort(t), CheckpointEvery: 50 * time.Millisecond}
	for i, a := range to {
		s.Forwards = append(s.Forwards, config.Forward{
			Name: fmt.Sprint("group", i), Mode: config.ForwardAny, Primary: []string{a.addr},
			Window: 64 << 20, FailbackAfter: 100 * time.Millisecond,
		})
	}
	return s
}

// withCopy adds an output with all defaults.
func (s setup) withCopy() setup {
	s.Outputs = []config.Output{{
		Hosts: "*", Path: "**", Dir: filepath.Join(filepath.Dir(s.State), "out"), File: "%H/%F", Format: "%L", Time: "%Y-%m-%dT%H:%M:%S.%-%z",
	}}
	return s
}

func (s setup) out(elem ...string) string {
	return filepath.Join(append([]string{s.Outputs[0].Dir}, elem...)...)
}

// running is a relay in this process.
type running struct {
	t    testing.TB
	r    *Relay
	stop context.CancelFunc
	done chan error
}

func start(t testing.TB, s setup) *running {
	t.Helper()
	return startLogging(t, s, testLogger(t))
}

// startLogging is start with a log of its own.
func startLogging(t testing.TB, s setup, log *slog.Logger) *running {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ready := make(chan *Relay, 1)
	x := &running{t: t, stop: cancel, done: make(chan error, 1)}
	o := s.options()
	o.Ready = func(r *Relay) { ready <- r }
	go func() { x.done <- RunWith(ctx, s.config(), log, o) }()
	select {
	case x.r = <-ready:
	case err := <-x.done:
		t.Fatalf("relay did not start: %v", err)
	case <-time.After(testLimit):
		t.Fatal("relay is not ready")
	}
	t.Cleanup(func() { x.stop() })
	return x
}

// end stops the relay as SIGTERM does.
func (x *running) end() {
	x.t.Helper()
	x.stop()
	select {
	case err := <-x.done:
		if err != nil {
			x.t.Fatalf("relay ended with: %v", err)
		}
	case <-time.After(testLimit):
		x.t.Fatal("relay does not end")
	}
}

// proc is a relay in a process of its own.
type proc struct {
	t    testing.TB
	cmd  *exec.Cmd
	done chan error
	log  *bytes.Buffer
}

func spawn(t testing.TB, s setup, failpoints string) *proc {
	t.Helper()
	raw, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	p := &proc{t: t, cmd: exec.Command(os.Args[0], "-test.run=^$"), done: make(chan error, 1), log: &bytes.Buffer{}}
	p.cmd.Env = append(os.Environ(), childEnv+"="+string(raw), "FTFUSE_FAILPOINTS="+failpoints)
	p.cmd.Stderr = p.log
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { p.done <- p.cmd.Wait() }()
	t.Cleanup(func() { p.cmd.Process.Kill() })
	return p
}

func (p *proc) kill() {
	p.cmd.Process.Kill()
	<-p.done
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// changes announces that something changed to whoever waits for a state.
type changes struct {
	sync.Mutex
	ch chan struct{}
}

func newChanges() *changes { return &changes{ch: make(chan struct{})} }

// wake announces; the lock is held.
func (c *changes) wake() {
	close(c.ch)
	c.ch = make(chan struct{})
}

// until waits for a state; ok and say are called with the lock held.
func (c *changes) until(t testing.TB, what string, ok func() bool, say func() string) {
	t.Helper()
	limit := time.After(testLimit)
	for {
		c.Lock()
		good, ch, state := ok(), c.ch, say()
		c.Unlock()
		if good {
			return
		}
		select {
		case <-ch:
		case <-limit:
			t.Fatalf("waiting for %s: %s", what, state)
		}
	}
}

// waitFor waits for a state that nothing announces.
func waitFor(t testing.TB, what string, ok func() bool) {
	t.Helper()
	limit := time.Now().Add(testLimit)
	for tick := time.NewTicker(time.Millisecond); !ok(); <-tick.C {
		if time.Now().After(limit) {
			t.Fatalf("waiting for %s", what)
		}
	}
}

// testLogger writes to the test's log until the test has ended.
func testLogger(t testing.TB) *slog.Logger {
	w := &logWriter{t: t}
	t.Cleanup(func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.t = nil
	})
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: slog.LevelInfo}))
}

type logWriter struct {
	mu sync.Mutex
	t  testing.TB
}

func (w *logWriter) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.t != nil {
		w.t.Logf("%s", bytes.TrimSpace(p))
	}
	return len(p), nil
}

// background runs f until the test ends.
func background(t testing.TB, what string, f func(context.Context) error) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := f(ctx); err != nil && !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v", what, err)
		}
	})
	stop = sync.OnceFunc(func() { cancel(); wg.Wait() })
	t.Cleanup(stop)
	return stop
}

// node makes the id of a test's node.
func node(b byte) batch.Node { return batch.Node{b} }
