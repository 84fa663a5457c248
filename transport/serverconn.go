package transport

import (
	"container/list"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"ftfuse/internal/batch"
)

const (
	serverReadBuffer = 4 << 10
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

	address          string        // what it is counted by
	early, earlyHere *list.Element // in Server.places, under its lock

	wake chan struct{} // the writer has something to do
	mu   sync.Mutex
	out  outbox

	lanes     map[batch.Lane]uint64 // what the peer sent or announced, and what it claims, see interested; under mu
	allLanes  bool
	lastBatch time.Time // under mu
	may       mayCache
	denied    atomic.Uint64
	batches   atomic.Uint64
	bytes     atomic.Uint64
	refusals  atomic.Uint64
	pending   atomic.Int64
	blocked   atomic.Bool
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
		s: s, nc: nc, address: address, wake: make(chan struct{}, 1), lanes: make(map[batch.Lane]uint64),
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
		if without, ok := c.s.limit.allow("handshake " + c.address); ok {
			c.s.log.Warn("handshake with a peer failed", "addr", c.nc.RemoteAddr().String(), "error", err, "more", without)
		}
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

// horizon passes on what the peer says is final of a lane, if it may speak for it. What it
// says of a lane of which nothing was taken here waits for its first batch, see claims.
func (c *serverConn) horizon(lh LaneHorizon) {
	if c.mayLane(lh.Lane) {
		c.interested(lh.Lane, 0)
		c.s.h.Horizon(c.peer, lh.Lane, lh.Below)
		return
	}
	c.interested(lh.Lane, lh.Below)
}

// mayLane reports whether the peer is believed what it says of lane.
func (c *serverConn) mayLane(lane batch.Lane) bool {
	a := c.s.admission()
	if a == nil {
		return true
	}
	host := c.s.laneHost(lane)
	return host != "" && c.may.speak(a, c.peer, host)
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
	c.frames.pace.start() // the wait was ours
	var crc uint32
	if b.Data, crc, err = c.frames.readData(int(h.data)); err != nil {
		c.settled(cost)
		return err
	}
	c.batches.Add(1)
	c.bytes.Add(uint64(h.data))
	c.interested(b.ID.Lane, 0)
	c.mu.Lock()
	c.lastBatch = time.Now()
	c.mu.Unlock()
	if v := c.verify(&b, crc); v.Code != Taken {
		c.settled(cost)
		return c.refuse(b.ID, v)
	}
	c.s.claims(b.ID.Lane, b.Host)
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

// verify is what a batch must pass before the Handler sees it; crc is that of its data as
// they came.
func (c *serverConn) verify(b *batch.Sealed, crc uint32) Verdict {
	if slices.Contains(b.Via, c.s.o.Identity.Node) {
		return Verdict{Loop, fmt.Sprintf("came through %s before", c.s.o.Identity.Host)}
	}
	if n := len(b.Via); n == 0 || b.Via[n-1] != c.peer.Node {
		return c.deny(fmt.Sprintf("does not name its sender, node %v, as the last that it came through", c.peer.Node))
	}
	if !c.may.speak(c.s.admission(), c.peer, b.Host) {
		return c.deny(fmt.Sprintf("was sealed on host %q, for which a peer with a certificate of %s may not speak; list it under allow if it may", b.Host, strings.Join(c.peer.Names, ", ")))
	}
	if crc != b.CRC {
		return Verdict{BadCRC, fmt.Sprintf("CRC-32C of %d bytes is %08x, want %08x", len(b.Data), crc, b.CRC)}
	}
	return Verdict{}
}

// deny counts a batch that the peer must not send.
func (c *serverConn) deny(why string) Verdict {
	c.denied.Add(1)
	c.s.deniedBatches.Add(1)
	return Verdict{Denied, why}
}

// mayCache remembers for which hosts a peer may speak. One goroutine uses it.
type mayCache struct {
	a     *Admission
	hosts map[string]bool
}

func (m *mayCache) speak(a *Admission, p Peer, host string) bool {
	if a == nil {
		return true
	}
	if m.a != a || len(m.hosts) > 4096 {
		m.a, m.hosts = a, make(map[string]bool)
	}
	ok, known := m.hosts[host]
	if !known {
		ok = a.May(p, host)
		m.hosts[host] = ok
	}
	return ok
}

// interested notes that the peer is to hear of lane, and the horizon that it claims and
// that nobody was told of yet.
func (c *serverConn) interested(lane batch.Lane, claim uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if old, ok := c.lanes[lane]; ok || len(c.lanes) < maxLanes {
		c.lanes[lane] = max(old, claim)
	} else {
		c.allLanes = true
	}
}

// hears reports whether the peer is to hear of lane.
func (c *serverConn) hears(lane batch.Lane) bool {
	c.mu.Lock()
	_, ok := c.lanes[lane]
	all := c.allLanes
	c.mu.Unlock()
	if ok || !all {
		return ok
	}
	a := c.s.admission() // lanes of others are nothing for it, not even their names
	return a == nil || a.May(c.peer, c.s.laneHost(lane))
}

// claimed is the horizon of lane that the peer claims, if it may speak for host.
func (c *serverConn) claimed(a *Admission, lane batch.Lane, host string) (below uint64) {
	c.mu.Lock()
	below = c.lanes[lane]
	c.mu.Unlock()
	if below > 1 && a.May(c.peer, host) {
		return below
	}
	return 0
}

// claims passes on what peers said was final of lane before its first batch was taken, a
// batch of host that is about to be.
func (s *Server) claims(lane batch.Lane, host string) {
	a := s.admission()
	if a == nil || s.laneHost(lane) != "" {
		return
	}
	for _, c := range s.all() {
		if below := c.claimed(a, lane, host); below > 0 {
			s.h.Horizon(c.peer, lane, below)
		}
	}
}

func (s *Server) admission() *Admission {
	if s.o.Admission == nil {
		return nil
	}
	return s.o.Admission()
}

func (s *Server) laneHost(lane batch.Lane) string {
	if s.o.LaneHost == nil {
		return ""
	}
	return s.o.LaneHost(lane)
}

func (c *serverConn) stats() PeerStats {
	c.mu.Lock()
	defer c.mu.Unlock()
	return PeerStats{
		Peer: c.peer, Since: c.since, LastBatch: c.lastBatch, Batches: c.batches.Load(), Bytes: c.bytes.Load(),
		Refused: c.refusals.Load(), Denied: c.denied.Load(), Pending: c.pending.Load(), Blocked: c.blocked.Load(),
	}
}
