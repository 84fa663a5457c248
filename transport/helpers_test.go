package transport

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"ftfuse/internal/batch"
)

// Times of the tests: everything a real connection does, twenty times as fast.
const (
	testHeartbeat = 50 * time.Millisecond
	testDeadAfter = 400 * time.Millisecond
	testLimit     = 20 * time.Second // a test that waits longer has failed
)

func testNode(b byte) (n batch.Node) {
	for i := range n {
		n[i] = b
	}
	return n
}

func testLane(b byte) batch.Lane {
	return batch.Lane{Origin: batch.Origin(testNode(b)), Epoch: batch.Epoch{Counter: 1, Random: 42}}
}

func testBatch(lane batch.Lane, n uint64, data []byte) batch.Sealed {
	return batch.Sealed{
		ID: batch.ID{Lane: lane, N: n}, CRC: batch.Checksum(data), Records: 1,
		Payload: uint64(len(data)), Time: int64(n), Data: data,
	}
}

// discard is for tests whose log would be the most of what they do.
var discard = slog.New(slog.DiscardHandler)

// testLogger writes to the test's log, and to nothing once the test has ended.
func testLogger(t testing.TB, side string) *slog.Logger {
	w := &logWriter{t: t}
	t.Cleanup(func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.t = nil
	})
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: slog.LevelDebug})).With("side", side)
}

type logWriter struct {
	mu sync.Mutex
	t  testing.TB
}

func (w *logWriter) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.t != nil {
		w.t.Logf("%s", p)
	}
	return len(p), nil
}

// testHandler takes every batch once, and what else a test wants.
type testHandler struct {
	mu       sync.Mutex
	got      []batch.Sealed
	seen     map[batch.ID]uint32
	horizons []LaneHorizon
	firsts   int // of horizons, those that came as the first of their connection
	skips    SkipSet
	changed  chan struct{}
	before   func(ctx context.Context, b batch.Sealed) *Verdict // nil or a verdict instead of the usual
}

func newTestHandler() *testHandler {
	return &testHandler{seen: make(map[batch.ID]uint32), changed: make(chan struct{}, 1)}
}

func (h *testHandler) Batch(ctx context.Context, _ Peer, b batch.Sealed, reply func(Verdict)) {
	if h.before != nil {
		if v := h.before(ctx, b); v != nil {
			reply(*v)
			return
		}
	}
	h.mu.Lock()
	_, dup := h.seen[b.ID]
	if !dup {
		h.seen[b.ID] = b.CRC
		h.got = append(h.got, b)
	}
	h.mu.Unlock()
	h.signal()
	if dup {
		reply(Verdict{Code: Duplicate})
	} else {
		reply(Verdict{Code: Taken})
	}
}

func (h *testHandler) Horizon(_ Peer, lane batch.Lane, below uint64, first bool) {
	h.mu.Lock()
	h.horizons = append(h.horizons, LaneHorizon{lane, below})
	if first {
		h.firsts++
	}
	h.mu.Unlock()
	h.signal()
}

// knows is KnowsLane of a node that has what h took.
func (h *testHandler) knows(lane batch.Lane) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	for id := range h.seen {
		if id.Lane == lane {
			return true
		}
	}
	return slices.ContainsFunc(h.horizons, func(lh LaneHorizon) bool { return lh.Lane == lane && lh.Below > 1 })
}

func (h *testHandler) Skip(_ Peer, lane batch.Lane, skips []Skip) {
	h.skips.Add(lane, skips...)
	h.signal()
}

func (h *testHandler) signal() {
	select {
	case h.changed <- struct{}{}:
	default:
	}
}

func (h *testHandler) batches() []batch.Sealed {
	h.mu.Lock()
	defer h.mu.Unlock()
	return append([]batch.Sealed(nil), h.got...)
}

// testSource gives what is pushed.
type testSource struct {
	mu      sync.Mutex
	queue   []batch.Sealed
	next    uint64
	acked   map[uint64]int
	refused map[uint64]Verdict
	final   map[batch.Lane]*batch.Ranges
	horizon []LaneHorizon
	skips   []LaneSkips
	skipped SkipSet
	fail    error
	pushed  chan struct{}
	changed chan struct{}
}

func newTestSource() *testSource {
	return &testSource{
		acked: make(map[uint64]int), refused: make(map[uint64]Verdict), final: make(map[batch.Lane]*batch.Ranges),
		pushed: make(chan struct{}, 1), changed: make(chan struct{}, 1),
	}
}

func (s *testSource) push(bs ...batch.Sealed) {
	s.mu.Lock()
	s.queue = append(s.queue, bs...)
	s.mu.Unlock()
	select {
	case s.pushed <- struct{}{}:
	default:
	}
}

func (s *testSource) Next(ctx context.Context) (uint64, batch.Sealed, error) {
	for {
		s.mu.Lock()
		if s.fail != nil {
			defer s.mu.Unlock()
			return 0, batch.Sealed{}, s.fail
		}
		if len(s.queue) > 0 {
			defer s.mu.Unlock()
			b := s.queue[0]
			s.queue = s.queue[1:]
			s.next++
			return s.next, b, nil
		}
		s.mu.Unlock()
		select {
		case <-s.pushed:
		case <-ctx.Done():
			return 0, batch.Sealed{}, ctx.Err()
		}
	}
}

func (s *testSource) change(f func()) {
	s.mu.Lock()
	f()
	s.mu.Unlock()
	select {
	case s.changed <- struct{}{}:
	default:
	}
}

func (s *testSource) Acked(seq uint64) { s.change(func() { s.acked[seq]++ }) }

func (s *testSource) Final(lane batch.Lane, r []batch.Range) {
	s.change(func() {
		for _, x := range r {
			addTo(s.final, lane, x)
		}
	})
}

func (s *testSource) Refused(seq uint64, v Verdict) { s.change(func() { s.refused[seq] = v }) }

func (s *testSource) Horizon() []LaneHorizon {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]LaneHorizon(nil), s.horizon...)
}

func (s *testSource) Skips() []LaneSkips {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]LaneSkips(nil), s.skips...)
}

func (s *testSource) Skipped(lane batch.Lane, skips []Skip) {
	s.change(func() { s.skipped.Add(lane, skips...) })
}

// await waits until ok, looking again after each change.
func await(t testing.TB, changed <-chan struct{}, what string, ok func() bool) {
	t.Helper()
	limit := time.NewTimer(testLimit)
	defer limit.Stop()
	look := time.NewTicker(5 * time.Millisecond) // for what has no event of its own
	defer look.Stop()
	for !ok() {
		select {
		case <-changed:
		case <-look.C:
		case <-limit.C:
			t.Fatalf("timed out waiting for %s", what)
		}
	}
}

func (s *testSource) awaitAcked(t testing.TB, n int) {
	t.Helper()
	s.awaitAnswers(t, n, 0)
}

// awaitAnswers waits for so many acks and refusals, which come in no order between them.
func (s *testSource) awaitAnswers(t testing.TB, acked, refused int) {
	t.Helper()
	await(t, s.changed, fmt.Sprintf("%d acks and %d refusals", acked, refused), func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return len(s.acked) >= acked && len(s.refused) >= refused
	})
}

// serve starts a server on loopback and stops it with the test.
func serve(t testing.TB, o ServerOptions, h Handler) (*Server, net.Listener) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return serveOn(t, ln, o, h), ln
}

func serveOn(t testing.TB, ln net.Listener, o ServerOptions, h Handler) *Server {
	t.Helper()
	if o.Identity == (Identity{}) {
		o.Identity = Identity{Node: testNode(0xee), Host: "agg", Role: "receive", Product: "test"}
	}
	o.Heartbeat, o.DeadAfter = orDefault(o.Heartbeat, testHeartbeat), orDefault(o.DeadAfter, testDeadAfter)
	if _, bench := t.(*testing.B); !bench && o.Logger == nil {
		o.Logger = testLogger(t, "server")
	}
	s := NewServer(o, h)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, ln) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	return s
}

// connect starts a client and stops it with the test.
func connect(t testing.TB, o ClientOptions, src Source) *Client {
	t.Helper()
	c, stop := connectStoppable(t, o, src)
	t.Cleanup(func() { stop() })
	return c
}

func connectStoppable(t testing.TB, o ClientOptions, src Source) (*Client, func() error) {
	t.Helper()
	if o.Identity == (Identity{}) {
		o.Identity = Identity{Node: testNode(1), Host: "web-01", Role: "mount", Product: "test"}
	}
	o.Heartbeat, o.DeadAfter = orDefault(o.Heartbeat, testHeartbeat), orDefault(o.DeadAfter, testDeadAfter)
	o.MinWait, o.MaxWait = orDefault(o.MinWait, 5*time.Millisecond), orDefault(o.MaxWait, 50*time.Millisecond)
	if _, bench := t.(*testing.B); !bench && o.Logger == nil {
		o.Logger = testLogger(t, "client")
	}
	c := NewClient(o, src)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	return c, sync.OnceValue(func() error {
		cancel()
		return <-done
	})
}

// listenAgain listens on an address that was just given up.
func listenAgain(t testing.TB, addr string) net.Listener {
	t.Helper()
	var ln net.Listener
	await(t, nil, "the address "+addr, func() (ok bool) {
		var err error
		ln, err = net.Listen("tcp", addr)
		return err == nil
	})
	return ln
}
