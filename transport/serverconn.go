package transport

import (
	"container/list"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"ftfuse/internal/batch"
)

const (
	serverReadBuffer = 4 << 10
	maxRefusals      = 1 << 20 // bytes of REFUSE frames that wait for a peer that does not read
	batchOverhead    = 1 << 10 // what a batch in the Handler's hands costs beside its bytes
	loggedConns      = 32      // of one address, that begin or end in one logEvery
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

	address          string        // what it is counted by
	key              string        // who the peer is for what it may take of the budget, see keyOf
	early, earlyHere *list.Element // in Server.places, under its lock

	wake chan struct{} // the writer has something to do
	mu   sync.Mutex
	out  outbox

	lanes     map[batch.Lane]laneState // what the peer sent or announced, see interested; under mu
	allLanes  bool                     // under mu
	retry     *time.Timer              // of run: asks the peer to offer again what was refused for its lane
	lastBatch time.Time                // under mu
	may       mayCache
	denied    atomic.Uint64
	batches   atomic.Uint64
	bytes     atomic.Uint64
	refusals  atomic.Uint64
	pending   atomic.Int64
	blocked   atomic.Bool
	held      atomic.Bool // see hold
}

// outbox is what the writer is to send.
type outbox struct {
	acks, finals map[batch.Lane]*batch.Ranges
	skips        SkipSet // what waits to be told
	frames       []byte  // REFUSE frames, encoded
	pong         uint64
	havePong     bool
	drain        bool
}

func newServerConn(ctx context.Context, s *Server, nc net.Conn, address string) *serverConn {
	if s.o.TLS != nil {
		nc = tls.Server(newEarlyConn(nc), s.o.TLS())
	}
	c := &serverConn{
		s: s, nc: nc, address: address, wake: make(chan struct{}, 1), lanes: make(map[batch.Lane]laneState),
		out: outbox{acks: make(map[batch.Lane]*batch.Ranges), finals: make(map[batch.Lane]*batch.Ranges)},
	}
	c.ctx, c.cancel = context.WithCancelCause(ctx)
	c.wire = wire{nc: nc, ctx: c.ctx, pace: &pace{grace: s.grace}}
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
		c.s.failed.Add(1)
		if without, ok := c.s.limit.allow("handshake "+c.address, 1); ok {
			c.s.log.Warn("handshake with a peer failed", "addr", c.nc.RemoteAddr().String(), "error", err, "more", without)
		}
		return
	}
	if without, ok := c.s.limit.allow("connected "+c.address, loggedConns); ok {
		c.s.log.Info("peer connected", "peer", c.peer.String(), "node", c.peer.Node.String(), "product", c.peer.Product, "more", without)
	}
	written := make(chan struct{})
	go func() {
		defer close(written)
		c.write()
	}()
	err = c.read()
	c.cancel(err)
	<-written
	c.forgetLanes()
	stop()
	err = context.Cause(c.ctx)            // the first of reader, writer, server
	if errors.Is(err, context.Canceled) { // the context of Serve
		err = errShutdown
	}
	c.sayBye(err)
	c.logEnd(err)
}

// logEnd says why the connection ended.
func (c *serverConn) logEnd(err error) {
	without, ok := c.s.limit.allow("ended "+c.address, loggedConns)
	if !ok {
		return
	}
	var bye *ByeError
	orderly := errors.As(err, &bye) && (bye.Code == ByeDrained || bye.Code == ByeShutdown)
	if orderly || errors.Is(err, errShutdown) {
		c.s.log.Info("peer disconnected", "peer", c.peer.String(), "reason", err.Error(), "more", without)
	} else {
		c.s.log.Warn("connection to a peer ended", "peer", c.peer.String(), "error", err, "more", without)
	}
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
			err = parseHorizons(meta, c.horizon)
		case typePing:
			var token uint64
			if token, err = parseToken(meta); err == nil {
				c.post(func(o *outbox) { o.pong, o.havePong = token, true })
			}
		case typeSkip:
			var lane batch.Lane
			var skip Skip
			if lane, skip, err = parseSkip(meta); err == nil && c.mayLane(lane) {
				c.s.h.Skip(c.peer, lane, []Skip{skip})
			}
		case typePong, typeDrain:
			// A PONG has done its work by coming. A client that drains needs nothing but
			// its acks.
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

func (c *serverConn) stats() PeerStats {
	c.mu.Lock()
	defer c.mu.Unlock()
	return PeerStats{
		Peer: c.peer, Since: c.since, LastBatch: c.lastBatch, Batches: c.batches.Load(), Bytes: c.bytes.Load(),
		Refused: c.refusals.Load(), Denied: c.denied.Load(), Pending: c.pending.Load(), Blocked: c.blocked.Load(),
	}
}
