package transport

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"log/slog"
	"math/big"
	"net"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"ftfuse/internal/batch"
)

// pushMany pushes n batches of size bytes of lane 1.
func pushMany(src *testSource, n, size int) {
	data := make([]byte, size)
	for i := range n {
		src.push(testBatch(testLane(1), uint64(i+1), data))
	}
}

// TestSlowHandlerIsNotADeadPeer: a handler that blocks for many times DeadAfter, while
// the client has more to send than all buffers hold, costs the connection nothing.
func TestSlowHandlerIsNotADeadPeer(t *testing.T) {
	h, src := newTestHandler(), newTestSource()
	gate, entered := make(chan struct{}), make(chan struct{}, 100)
	h.before = func(ctx context.Context, b batch.Sealed) *Verdict {
		entered <- struct{}{}
		select {
		case <-gate:
		case <-ctx.Done():
		}
		return nil
	}
	s, ln := serve(t, ServerOptions{}, h)
	c := connect(t, ClientOptions{Address: ln.Addr().String()}, src)
	pushMany(src, 60, 1<<20)
	<-entered
	blockedFor := time.NewTimer(5 * testDeadAfter)
	defer blockedFor.Stop()
	<-blockedFor.C // nothing is to happen: there is no event to wait for
	st, peers := c.Stats(), s.Stats().Peers
	if st.Connects != 1 || st.Failures != 0 || st.State != StateConnected {
		t.Errorf("after the handler blocked for %v: %+v", 5*testDeadAfter, st)
	}
	if len(peers) != 1 || !peers[0].Blocked || peers[0].Pending != 1 {
		t.Errorf("server's view: %+v", peers)
	}
	close(gate)
	src.awaitAcked(t, 60)
	if st := c.Stats(); st.Connects != 1 || st.Resent != 0 {
		t.Errorf("in the end: %+v", st)
	}
}

// TestFrozenPeerIsNoticed: when nothing comes through any more and nothing is closed,
// both sides know within DeadAfter.
func TestFrozenPeerIsNoticed(t *testing.T) {
	h, src := newTestHandler(), newTestSource()
	s, ln := serve(t, ServerOptions{}, h)
	p := newProxy(t, ln.Addr().String(), nil)
	c := connect(t, ClientOptions{Address: p.addr()}, src)
	pushMany(src, 1, 10)
	src.awaitAcked(t, 1)
	start := time.Now()
	p.freeze()
	await(t, nil, "the client to notice", func() bool { return c.Stats().Failures > 0 })
	took := time.Since(start)
	if st := c.Stats(); !strings.Contains(st.LastError, "silent") {
		t.Errorf("noticed as %q", st.LastError)
	}
	await(t, nil, "the server to notice", func() bool { return len(s.Stats().Peers) == 0 })
	t.Logf("client noticed after %v, server after %v; DeadAfter %v", took, time.Since(start), testDeadAfter)
	if took > 3*testDeadAfter { // generous: the machine is shared
		t.Errorf("took %v, DeadAfter is %v", took, testDeadAfter)
	}
}

// TestFrozenServerWhileSending is the same with a full pipe: the client's write blocks
// and must be let go.
func TestFrozenServerWhileSending(t *testing.T) {
	h, src := newTestHandler(), newTestSource()
	_, ln := serve(t, ServerOptions{}, h)
	p := newProxy(t, ln.Addr().String(), nil)
	dead, err := net.Listen("tcp", "127.0.0.1:0") // accepts in the kernel, answers nothing
	if err != nil {
		t.Fatal(err)
	}
	defer dead.Close()
	var address atomic.Value
	address.Store(p.addr())
	c := connect(t, ClientOptions{Handshake: 100 * time.Millisecond, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, address.Load().(string))
	}}, src)
	pushMany(src, 200, 1<<20)
	src.awaitAcked(t, 3)
	p.freeze()
	await(t, nil, "the client to notice", func() bool { return c.Stats().Failures > 0 })
	address.Store(dead.Addr().String()) // a server that never answers HELLO
	await(t, nil, "a handshake that times out", func() bool { return strings.Contains(c.Stats().LastError, "no WELCOME") })
	address.Store(ln.Addr().String())
	src.awaitAcked(t, 200)
	checkInOrder(t, h, 200)
}

// checkInOrder wants batches 1 to n, each once, in order.
func checkInOrder(t *testing.T, h *testHandler, n int) {
	t.Helper()
	got := h.batches()
	if len(got) != n {
		t.Fatalf("%d batches arrived, want %d", len(got), n)
	}
	for i := range got {
		if got[i].ID.N != uint64(i+1) {
			t.Fatalf("batch %d at place %d", got[i].ID.N, i+1)
		}
	}
}

// TestSlowLinkIsNotADeadPeer: one batch that takes many times DeadAfter to come through
// is no reason to end the connection.
func TestSlowLinkIsNotADeadPeer(t *testing.T) {
	const deadAfter = 3 * testDeadAfter // the machine is shared
	h, src := newTestHandler(), newTestSource()
	_, ln := serve(t, ServerOptions{DeadAfter: deadAfter}, h)
	tick := time.NewTicker(deadAfter / 24)
	defer tick.Stop()
	p := newProxy(t, ln.Addr().String(), func(_ int, up bool, _ int64, b []byte) (int, bool) {
		if up && len(b) > 1000 {
			select {
			case <-tick.C:
			case <-t.Context().Done():
			}
		}
		return len(b), false
	})
	c := connect(t, ClientOptions{Address: p.addr(), DeadAfter: deadAfter}, src)
	pushMany(src, 1, 1<<20) // 32 pieces of 32 KiB
	src.awaitAcked(t, 1)
	if st := c.Stats(); st.Connects != 1 || st.Failures != 0 {
		t.Errorf("%+v", st)
	}
}

// TestShutdownEndsBlockedHandlers: when the time for draining is up, the handler's
// context ends, and so does everything.
func TestShutdownEndsBlockedHandlers(t *testing.T) {
	h, src := newTestHandler(), newTestSource()
	entered := make(chan struct{}, 10)
	h.before = func(ctx context.Context, b batch.Sealed) *Verdict {
		entered <- struct{}{}
		<-ctx.Done()
		return &Verdict{Code: Busy}
	}
	s, ln := serve(t, ServerOptions{}, h)
	c := connect(t, ClientOptions{Address: ln.Addr().String()}, src)
	pushMany(src, 3, 10)
	<-entered
	await(t, nil, "three in flight", func() bool { return c.Stats().InFlight == 3 })
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if err := s.Shutdown(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Shutdown: %v", err)
	}
	await(t, nil, "the client to see the end", func() bool { return c.Stats().State != StateDraining && c.Stats().State != StateConnected })
	if st := c.Stats(); st.InFlight != 3 || st.Acked != 0 {
		t.Errorf("the client gave something up: %+v", st)
	}
}

// TestDrainGivesUpWithItsContext: Drain with a dead server returns when its context
// ends, says what is left, and Run can still be ended.
func TestDrainGivesUpWithItsContext(t *testing.T) {
	h, src := newTestHandler(), newTestSource()
	h.before = func(ctx context.Context, b batch.Sealed) *Verdict { <-ctx.Done(); return &Verdict{Code: Busy} }
	_, ln := serve(t, ServerOptions{}, h)
	c, stop := connectStoppable(t, ClientOptions{Address: ln.Addr().String()}, src)
	pushMany(src, 2, 10)
	await(t, nil, "two in flight", func() bool { return c.Stats().InFlight == 2 })
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if err := c.Drain(ctx); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "2 batches") {
		t.Errorf("Drain: %v", err)
	}
	if err := stop(); !errors.Is(err, context.Canceled) {
		t.Errorf("Run: %v", err)
	}
}

// TestDrainWithoutConnection: nothing in flight and nobody there is drained at once.
func TestDrainWithoutConnection(t *testing.T) {
	c, stop := connectStoppable(t, ClientOptions{Address: "127.0.0.1:1", MinWait: time.Hour, MaxWait: time.Hour}, newTestSource())
	await(t, nil, "a failure", func() bool { return c.Stats().State == StateWaiting })
	if err := c.Drain(context.Background()); err != nil {
		t.Error(err)
	}
	if err := stop(); err != nil {
		t.Errorf("Run: %v", err)
	}
	if err := NewClient(ClientOptions{}, newTestSource()).Drain(context.Background()); err != nil {
		t.Errorf("Drain of a client that never ran: %v", err)
	}
}

// TestAStopRightAtTheStartIsNoError: a role that is asked to stop may drain a client before
// the goroutine that runs it has begun. That said "Client.Run called twice", and the role
// ended as if it had failed.
func TestAStopRightAtTheStartIsNoError(t *testing.T) {
	c := NewClient(ClientOptions{}, newTestSource())
	if err := c.Drain(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := c.Run(t.Context()); err != nil {
		t.Errorf("Run behind Drain: %v", err)
	}
}

// TestRepeatedFailuresAreLoggedOnce: the same reason again and again is one warning,
// whatever ports the tries come from.
func TestRepeatedFailuresAreLoggedOnce(t *testing.T) {
	_, ln := serve(t, ServerOptions{Admit: func(Peer, net.Conn) error { return errors.New("not on the list") }}, newTestHandler())
	resets, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	defer func() { resets.Close(); <-done }()
	go func() {
		defer close(done)
		for {
			nc, err := resets.Accept()
			if err != nil {
				return
			}
			_, _ = nc.Read(make([]byte, 1))
			abort(nc) // the client's error names its port
		}
	}()
	for name, addr := range map[string]string{"denied": ln.Addr().String(), "reset": resets.Addr().String()} {
		t.Run(name, func(t *testing.T) {
			var warnings atomic.Int64
			logger := slog.New(countWarnings{slog.DiscardHandler, &warnings})
			c := connect(t, ClientOptions{Address: addr, Logger: logger, MinWait: time.Millisecond, MaxWait: time.Millisecond}, newTestSource())
			await(t, nil, "ten failures", func() bool { return c.Stats().Failures >= 10 })
			if n := warnings.Load(); n != 1 {
				t.Errorf("%d warnings", n)
			}
		})
	}
}

// countWarnings is a log that counts.
type countWarnings struct {
	slog.Handler
	n *atomic.Int64
}

func (h countWarnings) Enabled(_ context.Context, l slog.Level) bool { return l >= slog.LevelWarn }
func (h countWarnings) Handle(context.Context, slog.Record) error    { h.n.Add(1); return nil }

// TestSourceErrorEndsRun: the queue's failure is the client's.
func TestSourceErrorEndsRun(t *testing.T) {
	h, src := newTestHandler(), newTestSource()
	src.fail = errors.New("queue failed")
	_, ln := serve(t, ServerOptions{}, h)
	c, stop := connectStoppable(t, ClientOptions{Address: ln.Addr().String()}, src)
	await(t, nil, "the end", func() bool { return c.Stats().State == StateStopped })
	if err := stop(); !errors.Is(err, src.fail) {
		t.Errorf("Run: %v", err)
	}
}

// TestTLS: nothing but a dial function and a listener is needed.
func TestTLS(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), DNSNames: []string{"agg"},
		NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(cert)
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ln := tls.NewListener(inner, &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}})
	h, src := newTestHandler(), newTestSource()
	s := serveOn(t, ln, ServerOptions{}, h)
	dialer := &tls.Dialer{Config: &tls.Config{RootCAs: pool, ServerName: "agg"}}
	c := connect(t, ClientOptions{Address: ln.Addr().String(), Dial: dialer.DialContext}, src)
	pushMany(src, 50, 300_000)
	src.awaitAcked(t, 50)
	checkInOrder(t, h, 50)
	ctx, cancel := context.WithTimeout(context.Background(), testLimit)
	defer cancel()
	if err := s.Shutdown(ctx); err != nil {
		t.Error(err)
	}
	if st := c.Stats(); st.Acked != 50 {
		t.Errorf("%+v", st)
	}
}

// TestWindow: what is in flight never exceeds the smaller of the two windows by more
// than the one batch that crossed it, and one batch larger than the window passes.
func TestWindow(t *testing.T) {
	const size, window = 10_000, 100_000
	for name, c := range map[string]struct{ client, server uint32 }{"client's": {window, 0}, "server's": {1 << 30, window}} {
		t.Run(name, func(t *testing.T) {
			h, src := &hoarder{replies: make(chan func(Verdict), 1000)}, newTestSource()
			_, ln := serve(t, ServerOptions{Window: c.server}, h)
			cl := connect(t, ClientOptions{Address: ln.Addr().String(), Window: int64(c.client)}, src)
			src.push(testBatch(testLane(1), 1, make([]byte, 2*window)))
			(<-h.replies)(Verdict{Code: Taken})
			for n := range 100 {
				src.push(testBatch(testLane(1), uint64(n+2), make([]byte, size)))
			}
			for n := range 100 {
				reply := <-h.replies
				if st := cl.Stats(); st.InFlightBytes > window+size+batchOverhead {
					t.Fatalf("%d bytes in flight, window %d", st.InFlightBytes, window)
				}
				if n == 0 {
					await(t, nil, "a full window", func() bool { return cl.Stats().InFlightBytes >= window })
				}
				reply(Verdict{Code: Taken})
			}
			src.awaitAcked(t, 101)
		})
	}
}

// TestNoGoroutineIsLeft: Run and Serve return only when all they started has ended.
func TestNoGoroutineIsLeft(t *testing.T) {
	before := runtime.NumGoroutine()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := NewServer(ServerOptions{Identity: Identity{Node: testNode(0xee)}}, newTestHandler())
	sctx, stopServer := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- s.Serve(sctx, ln) }()
	for range 10 {
		src := newTestSource()
		_, stop := connectStoppable(t, ClientOptions{Address: ln.Addr().String()}, src)
		pushMany(src, 5, 100)
		src.awaitAcked(t, 5)
		if err := stop(); !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	}
	stopServer()
	if err := <-served; err != nil {
		t.Error(err)
	}
	await(t, nil, "goroutines that have returned to be gone", func() bool { return runtime.NumGoroutine() <= before })
}
