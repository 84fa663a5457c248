package transport

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"ftfuse/internal/batch"
)

const (
	serverReadBuffer = 8 << 10
	maxLanes         = 1 << 16 // lanes a connection is told of by name; one with more is told of all
	maxRefusals      = 1 << 20 // bytes of REFUSE frames that wait for a peer that does not read
	batchOverhead    = 1 << 10 // what a batch in the Handler's hands costs beside its bytes
)

// serverConn is one connection of a Server: the goroutine of run reads it and calls
// the Handler, a second one writes.
type serverConn struct {
	s      *Server
	nc     net.Conn
	ctx    context.Context
	cancel context.CancelCauseFunc
	wire   wire
	frames frameReader
	peer   Peer
	ready  atomic.Bool // the handshake is done; peer and since do not change any more
	since  time.Time

	wake chan struct{} // the writer has something to do
	mu   sync.Mutex
	out  outbox

	lanes     map[batch.Lane]struct{} // what the peer sent or announced; under mu
	allLanes  bool
	lastBatch time.Time // under mu
	batches   atomic.Uint64
	bytes     atomic.Uint64
	refusals  atomic.Uint64
	pending   atomic.Int64
	blocked   atomic.Bool
}

// outbox is what the writer is to send.
type outbox struct {
	acks, finals map[batch.Lane]*batch.Ranges
	frames       []byte // REFUSE frames, encoded
	pong         uint64
	havePong     bool
	drain        bool
}

func newServerConn(ctx context.Context, s *Server, nc net.Conn) *serverConn {
	c := &serverConn{
		s: s, nc: nc, wake: make(chan struct{}, 1), lanes: make(map[batch.Lane]struct{}),
		out: outbox{acks: make(map[batch.Lane]*batch.Ranges), finals: make(map[batch.Lane]*batch.Ranges)},
	}
	c.ctx, c.cancel = context.WithCancelCause(ctx)
	c.wire = wire{nc: nc, ctx: c.ctx}
	c.frames = frameReader{r: bufio.NewReaderSize(&c.wire, serverReadBuffer), lim: limits{meta: maxEarlyMeta}}
	return c
}

// run serves the connection to its end.
func (c *serverConn) run() {
	stop := watch(c.ctx, c.nc, false)
	err := c.handshake()
	if err != nil {
		c.cancel(err)
		stop()
		c.sayBye(err)
		c.s.log.Warn("handshake with a peer failed", "addr", c.nc.RemoteAddr().String(), "error", err)
		return
	}
	c.s.log.Info("peer connected", "peer", c.peer.String(), "node", c.peer.Node.String(), "product", c.peer.Product)
	written := make(chan struct{})
	go func() {
		defer close(written)
		c.write()
	}()
	err = c.read()
	c.cancel(err)
	<-written
	stop()
	err = context.Cause(c.ctx)            // the first of reader, writer, server
	if errors.Is(err, context.Canceled) { // the context of Serve
		err = errShutdown
	}
	c.sayBye(err)
	var bye *ByeError
	orderly := errors.As(err, &bye) && (bye.Code == ByeDrained || bye.Code == ByeShutdown)
	if orderly || errors.Is(err, errShutdown) {
		c.s.log.Info("peer disconnected", "peer", c.peer.String(), "reason", err.Error())
	} else {
		c.s.log.Warn("connection to a peer ended", "peer", c.peer.String(), "error", err)
	}
}

// sayBye tells the peer why, where there is something to tell, and closes.
func (c *serverConn) sayBye(err error) {
	code, text, ok := byeFor(err)
	var h *handshakeError
	if errors.As(err, &h) {
		code, text, ok = h.code, h.Error(), true
	}
	if !ok {
		_ = c.nc.Close()
		return
	}
	_ = c.nc.SetWriteDeadline(time.Now().Add(time.Second))
	if _, err := c.nc.Write(appendBye(nil, code, text)); err != nil {
		abort(c.nc)
		return
	}
	linger(c.nc)
}

// handshakeError is a handshake that this side ends.
type handshakeError struct {
	code ByeCode
	err  error
}

func (e *handshakeError) Error() string { return e.err.Error() }
func (e *handshakeError) Unwrap() error { return e.err }

// handshake reads HELLO and answers WELCOME.
func (c *serverConn) handshake() error {
	if err := c.nc.SetDeadline(time.Now().Add(c.s.t.handshake)); err != nil {
		return err
	}
	head, meta, err := c.frames.next()
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return &handshakeError{ByeTimeout, fmt.Errorf("no HELLO within %v: %w", c.s.t.handshake, err)}
	}
	if err != nil {
		return fmt.Errorf("read HELLO: %w", err)
	}
	if head.kind != typeHello {
		return fmt.Errorf("%w: %v before HELLO", ErrFrame, head.kind)
	}
	m, err := parseHello(meta)
	if err != nil {
		return err
	}
	version := min(m.maxVersion, MaxVersion)
	if version < max(m.minVersion, MinVersion) {
		return &handshakeError{ByeVersion, fmt.Errorf("peer %s (%s) speaks protocol %d to %d, this node %d to %d",
			m.host, m.product, m.minVersion, m.maxVersion, MinVersion, MaxVersion)}
	}
	c.peer = Peer{
		Node: m.node, Host: m.host, Role: m.role, Product: m.product,
		Addr: c.nc.RemoteAddr().String(), Version: version,
	}
	id := c.s.o.Identity
	if m.node == id.Node {
		return &handshakeError{ByeLoop, fmt.Errorf("peer %v is this very node %v: a forward points back here", c.peer, m.node)}
	}
	if c.s.o.Admit != nil {
		if err := c.s.o.Admit(c.peer, c.nc); err != nil {
			return &handshakeError{ByeDenied, fmt.Errorf("%w: %v: %w", errDenied, c.peer, err)}
		}
	}
	w := hello{
		minVersion: version, maxVersion: version, node: id.Node, maxData: c.s.o.MaxData, window: c.s.o.Window,
		host: id.Host, role: id.Role, product: id.Product,
	}
	if _, err := c.nc.Write(w.append(nil, typeWelcome)); err != nil {
		return fmt.Errorf("write WELCOME: %w", err)
	}
	if err := c.nc.SetDeadline(time.Time{}); err != nil {
		return err
	}
	// The client always reads, so its window never stays closed.
	setUserTimeout(c.nc, c.s.t.deadAfter-c.s.t.heartbeat)
	c.wire.silence = c.s.t.deadAfter
	c.frames.lim = limits{meta: maxMeta, data: c.s.o.MaxData}
	c.since = time.Now()
	c.ready.Store(true)
	select {
	case <-c.s.stopping: // Shutdown may have looked before ready was set
		c.drain()
	default:
	}
	return nil
}

// read reads frames until the connection ends, and says why it did.
func (c *serverConn) read() error {
	for {
		h, meta, err := c.frames.next()
		if err != nil {
			return err
		}
		switch h.kind {
		case typeBatch:
			err = c.batch(h, meta)
		case typeHorizon:
			err = parseHorizons(meta, func(lh LaneHorizon) {
				c.interested(lh.Lane)
				c.s.h.Horizon(c.peer, lh.Lane, lh.Below)
			})
		case typePing:
			var token uint64
			if token, err = parseToken(meta); err == nil {
				c.post(func(o *outbox) { o.pong, o.havePong = token, true })
			}
		case typePong, typeDrain, typeSkip:
			// A PONG has done its work by coming. A client that drains needs nothing but
			// its acks. SKIP is reserved.
		case typeBye:
			bye, err := parseBye(meta)
			if err != nil {
				return err
			}
			return bye
		default:
			err = fmt.Errorf("%w: %v from a client", ErrFrame, h.kind)
		}
		if err != nil {
			return err
		}
	}
}

// batch receives one batch and hands it over, or refuses it.
func (c *serverConn) batch(h frameHeader, meta []byte) error {
	b, err := parseBatch(meta)
	if err != nil {
		return err
	}
	cost := int64(h.data) + batchOverhead
	c.blocked.Store(true)
	err = c.s.pending.take(c.ctx, cost, func() bool { return c.pending.Load() == 0 })
	c.blocked.Store(false)
	if err != nil {
		return err
	}
	c.pending.Add(1)
	if b.Data, err = c.frames.readData(int(h.data)); err != nil {
		c.settled(cost)
		return err
	}
	c.batches.Add(1)
	c.bytes.Add(uint64(h.data))
	c.interested(b.ID.Lane)
	c.mu.Lock()
	c.lastBatch = time.Now()
	c.mu.Unlock()
	if v := c.verify(&b); v.Code != Taken {
		c.settled(cost)
		return c.refuse(b.ID, v)
	}
	c.blocked.Store(true)
	defer c.blocked.Store(false)
	var once atomic.Bool
	id := b.ID
	c.s.h.Batch(c.ctx, c.peer, b, func(v Verdict) {
		if once.Swap(true) {
			return
		}
		c.settled(cost)
		if v.Code == Taken || v.Code == Duplicate {
			c.ack(id)
		} else if err := c.refuse(id, v); err != nil {
			c.cancel(err)
		}
	})
	return nil
}

// settled gives back what a batch took of the budget. The count goes first: whoever
// waits looks at it when the bytes come.
func (c *serverConn) settled(cost int64) {
	c.pending.Add(-1)
	c.s.pending.give(cost)
}

// verify is what a batch must pass before the Handler sees it.
func (c *serverConn) verify(b *batch.Sealed) Verdict {
	if slices.Contains(b.Via, c.s.o.Identity.Node) {
		return Verdict{Loop, fmt.Sprintf("came through %s before", c.s.o.Identity.Host)}
	}
	if crc := batch.Checksum(b.Data); crc != b.CRC {
		return Verdict{BadCRC, fmt.Sprintf("CRC-32C of %d bytes is %08x, want %08x", len(b.Data), crc, b.CRC)}
	}
	return Verdict{}
}

// interested notes that the peer is to hear of lane.
func (c *serverConn) interested(lane batch.Lane) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.lanes) < maxLanes {
		c.lanes[lane] = struct{}{}
	} else {
		c.allLanes = true
	}
}

func (c *serverConn) stats() PeerStats {
	c.mu.Lock()
	defer c.mu.Unlock()
	return PeerStats{
		Peer: c.peer, Since: c.since, LastBatch: c.lastBatch, Batches: c.batches.Load(), Bytes: c.bytes.Load(),
		Refused: c.refusals.Load(), Pending: c.pending.Load(), Blocked: c.blocked.Load(),
	}
}
