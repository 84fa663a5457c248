package transport

import (
	"context"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"ftfuse/internal/batch"
)

// tapped is a listener whose connections a test slows down or listens to.
type tapped struct {
	net.Listener
	read func(n int) // after each Read, of n bytes
}

func tap(t *testing.T, read func(n int)) tapped {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return tapped{ln, read}
}

// Accept gives connections a small buffer, so that what is not read yet is not there yet.
func (l tapped) Accept() (net.Conn, error) {
	nc, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &tappedConn{nc, l.read}, nc.(*net.TCPConn).SetReadBuffer(32 << 10)
}

type tappedConn struct {
	net.Conn
	read func(n int)
}

func (c *tappedConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p[:min(len(p), 8<<10)])
	c.read(n)
	return n, err
}

// TestABatchOnASlowLineMakesProgress, again and again, long before it is answered.
func TestABatchOnASlowLineMakesProgress(t *testing.T) {
	gate := make(chan struct{}, 10_000) // lets a piece through
	ln := tap(t, func(n int) {
		if n > 1000 {
			select {
			case <-gate:
			case <-t.Context().Done():
			}
		}
	})
	serveOn(t, ln, ServerOptions{}, newTestHandler())
	moved, src := make(chan struct{}, 10_000), newTestSource()
	connect(t, ClientOptions{Address: ln.Addr().String(), DeadAfter: time.Minute, OnProgress: func() { moved <- struct{}{} }}, src)
	pushMany(src, 1, 2<<20)
	for times := 0; ; {
		select {
		case <-moved:
			times++
		case <-src.changed:
			if times < 5 {
				t.Errorf("the batch was answered after its bytes were seen to move %d times", times)
			}
			return
		case <-time.After(20 * testHeartbeat): // all is there but for what waits at the gate
		}
		for range 32 {
			gate <- struct{}{}
		}
	}
}

// TestHeartbeatsAreNoProgress: a peer that answers them and takes nothing does not move.
func TestHeartbeatsAreNoProgress(t *testing.T) {
	var taken atomic.Bool
	more := 4 * progressStep // bytes of heartbeats
	enough := make(chan struct{})
	ln := tap(t, func(n int) {
		if taken.Load() && more > 0 {
			if more -= n; more <= 0 {
				close(enough)
			}
		}
	})
	h, src := newTestHandler(), newTestSource()
	var moved atomic.Int64
	before := int64(0)
	h.before = func(context.Context, batch.Sealed) *Verdict {
		before = moved.Load()
		taken.Store(true)
		return nil
	}
	s := serveOn(t, ln, ServerOptions{}, neverReply{h})
	connect(t, ClientOptions{Address: ln.Addr().String(), Heartbeat: time.Millisecond, OnProgress: func() { moved.Add(1) }}, src)
	pushMany(src, 1, 100_000)
	select {
	case <-enough:
	case <-t.Context().Done():
	}
	if n := moved.Load() - before; n > 1 { // the end of the batch, perhaps
		t.Errorf("moved %d times while only heartbeats were sent", n)
	}
	if st := s.Stats().Peers; len(st) != 1 || st[0].Pending != 1 {
		t.Errorf("the peer has the batch in hand: %+v", st)
	}
}

// neverReply takes batches and keeps the answers to itself.
type neverReply struct{ *testHandler }

func (h neverReply) Batch(ctx context.Context, p Peer, b batch.Sealed, _ func(Verdict)) {
	h.testHandler.Batch(ctx, p, b, func(Verdict) {})
}
