package receive

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
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
	"ftfuse/internal/record"
	"ftfuse/internal/roletest"
	"ftfuse/transport"
)

const testLimit = 20 * time.Second // what takes longer has failed

// childEnv holds a setup in JSON: the test binary is then a receiver and no test.
const childEnv = "FTFUSE_RECEIVE_CHILD"

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
	if s.Store != "" {
		if err := ownChild(s, log); err != nil {
			fmt.Fprintln(os.Stderr, "server:", err)
			return 1
		}
		return 0
	}
	if err := RunWith(context.Background(), s.config(), log, s.options()); err != nil {
		fmt.Fprintln(os.Stderr, "receive:", err)
		return 1
	}
	return 0
}

// setup is what a test's receiver is made of.
type setup struct {
	State, Listen   string
	Outputs         []config.Output
	MaxBytes        int64
	OnFull          config.FullPolicy // default block
	MaxAge          time.Duration
	OpenFiles       int
	CheckpointBytes int64
	CheckpointEvery time.Duration
	ForgetAfter     time.Duration
	SegmentBytes    int64
	TLS             config.TLS
	Store           string // a Server with a Handler whose store this is, and not the role
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
	return &config.Config{
		File: "test.toml", Host: "aggregator", StateDir: s.State, ShutdownTimeout: 10 * time.Second, Queue: q, TLS: s.TLS,
		Receive: &config.Receive{Listen: s.Listen, Listener: config.Listener{Allow: s.Allow}, Outputs: s.Outputs, Queue: q},
	}
}

func (s setup) options() Options {
	return Options{OpenFiles: s.OpenFiles, CheckpointBytes: s.CheckpointBytes, CheckpointEvery: s.CheckpointEvery, ForgetAfter: s.ForgetAfter, SegmentBytes: s.SegmentBytes}
}

// output is one [[receive.output]] with the defaults filled in.
func output1(dir string, change func(o *config.Output)) config.Output {
	o := config.Output{Hosts: "*", Path: "**", Dir: dir, File: "%H/%F", Format: "%L", Time: "%Y-%m-%dT%H:%M:%S.%-%z"}
	if change != nil {
		change(&o)
	}
	return o
}

// newSetup is a receiver in a directory of its own, with one output of all defaults.
func newSetup(t testing.TB, outputs ...config.Output) setup {
	t.Helper()
	dir := t.TempDir()
	s := setup{State: filepath.Join(dir, "state"), Listen: roletest.FreePort(t), Outputs: outputs, CheckpointEvery: 50 * time.Millisecond}
	if len(outputs) == 0 {
		s.Outputs = []config.Output{output1(filepath.Join(dir, "out"), nil)}
	}
	return s
}

func (s setup) out(elem ...string) string {
	return filepath.Join(append([]string{s.Outputs[0].Dir}, elem...)...)
}

// running is a receiver in this process.
type running struct {
	t    testing.TB
	r    *Receiver
	stop context.CancelFunc
	done chan error
}

func start(t testing.TB, s setup) *running {
	t.Helper()
	return startLog(t, s, testLogger(t))
}

func startLog(t testing.TB, s setup, log *slog.Logger) *running {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ready := make(chan *Receiver, 1)
	x := &running{t: t, stop: cancel, done: make(chan error, 1)}
	o := s.options()
	o.Ready = func(r *Receiver) { ready <- r }
	go func() { x.done <- RunWith(ctx, s.config(), log, o) }()
	select {
	case x.r = <-ready:
	case err := <-x.done:
		t.Fatalf("receiver did not start: %v", err)
	case <-time.After(testLimit):
		t.Fatal("receiver is not ready")
	}
	t.Cleanup(func() { x.stop() })
	return x
}

// end stops the receiver as SIGTERM does.
func (x *running) end() {
	x.t.Helper()
	x.stop()
	select {
	case err := <-x.done:
		if err != nil {
			x.t.Fatalf("receiver ended with: %v", err)
		}
	case <-time.After(testLimit):
		x.t.Fatal("receiver does not end")
	}
}

// proc is a receiver in a process of its own.
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

// gone waits until the process ended by itself.
func (p *proc) gone() error {
	p.t.Helper()
	select {
	case err := <-p.done:
		return err
	case <-time.After(testLimit):
		p.t.Fatalf("receiver is still alive; its log:\n%s", p.log)
		return nil
	}
}

// feeder is a mount without files: it makes batches, and gives them to a client until
// they are acked.
type feeder struct {
	lane batch.Lane
	b    *record.Builder

	mu      sync.Mutex
	changed chan struct{}
	queue   []batch.Sealed
	next    int
	n       uint64
	acked   map[uint64]bool
	final   batch.Ranges
	refused []transport.Verdict
	skips   transport.SkipSet // to tell

	host string             // what it calls itself; default "source"
	tls  func() *tls.Config // nil: plain TCP
}

func newFeeder(origin byte) *feeder {
	return &feeder{
		lane: batch.Lane{Origin: batch.Origin{origin}, Epoch: batch.Epoch{Counter: 1, Random: 7}},
		b:    record.NewBuilder(1 << 20), changed: make(chan struct{}), acked: map[uint64]bool{},
	}
}

type rec struct {
	host, path, data string
	flags            uint16
	pid              uint32
	time             int64
}

// seal makes a batch without giving it to the client.
func (f *feeder) seal(recs ...rec) batch.Sealed {
	f.mu.Lock()
	f.n++
	n := f.n
	f.mu.Unlock()
	for _, r := range recs {
		a := record.Attr{Host: r.host, Path: r.path, PID: r.pid, UID: 10, GID: 20, Time: r.time, Flags: r.flags}
		if !f.b.Add(&a, []byte(r.data)) {
			panic("a test's record does not fit")
		}
	}
	return f.b.Seal(batch.ID{Lane: f.lane, N: n}, 1e18)
}

func (f *feeder) send(b batch.Sealed) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.queue = append(f.queue, b)
	f.wake()
}

// add sends records, in a batch for each run of one host.
func (f *feeder) add(recs ...rec) {
	for len(recs) > 0 {
		n := 1
		for n < len(recs) && recs[n].host == recs[0].host {
			n++
		}
		f.send(f.seal(recs[:n]...))
		recs = recs[n:]
	}
}

func (f *feeder) wake() {
	close(f.changed)
	f.changed = make(chan struct{})
}

func (f *feeder) Next(ctx context.Context) (uint64, batch.Sealed, error) {
	for {
		f.mu.Lock()
		if f.next < len(f.queue) {
			f.next++
			seq, b := uint64(f.next), f.queue[f.next-1]
			f.mu.Unlock()
			return seq, b, nil
		}
		changed := f.changed
		f.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			return 0, batch.Sealed{}, ctx.Err()
		}
	}
}

func (f *feeder) Acked(seq uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.acked[seq] = true
	f.wake()
}

func (f *feeder) Final(lane batch.Lane, r []batch.Range) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, x := range r {
		f.final.AddRange(x)
	}
	f.wake()
}

func (f *feeder) Refused(_ uint64, v transport.Verdict) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.refused = append(f.refused, v)
	f.wake()
}

func (f *feeder) Skipped(batch.Lane, []transport.Skip) {}
func (f *feeder) Skips() []transport.LaneSkips         { return f.skips.All() }

func (f *feeder) Horizon() []transport.LaneHorizon {
	return []transport.LaneHorizon{{Lane: f.lane, Below: 1}}
}

// behind is how many batches are not acked.
func (f *feeder) behind() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.queue) - len(f.acked)
}

// until waits for a state of the feeder.
func (f *feeder) until(t testing.TB, what string, ok func() bool) {
	t.Helper()
	limit := time.After(testLimit)
	for {
		f.mu.Lock()
		good, changed := ok(), f.changed
		state := fmt.Sprintf("%d batches, %d acked, final %v, refused %v", len(f.queue), len(f.acked), f.final.String(), f.refused)
		f.mu.Unlock()
		if good {
			return
		}
		select {
		case <-changed:
		case <-limit:
			t.Fatalf("waiting for %s: %s", what, state)
		}
	}
}

func (f *feeder) allAcked() bool { return len(f.acked) == len(f.queue) }
func (f *feeder) allFinal() bool { return f.final.Count() == uint64(len(f.queue)) }

// connect runs a client until the test ends.
func (f *feeder) connect(t testing.TB, addr string) {
	c := transport.NewClient(transport.ClientOptions{
		Identity: transport.Identity{Node: batch.Node(f.lane.Origin), Host: cmp.Or(f.host, "source"), Role: "mount", Product: "test"},
		Address:  addr, MinWait: 5 * time.Millisecond, MaxWait: 50 * time.Millisecond, TLS: f.tls, Logger: slog.New(slog.DiscardHandler),
	}, f)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := c.Run(ctx); err != nil && !errors.Is(err, context.Canceled) {
			t.Errorf("client: %v", err)
		}
	})
	t.Cleanup(func() { cancel(); wg.Wait() })
}
