package transport

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"ftfuse/internal/batch"
)

// ServerOptions are the options of a Server. Zero values mean the defaults.
type ServerOptions struct {
	Identity           Identity
	MaxConns           int           // connections at a time, those in their handshake included
	MaxConnsPerAddress int           // of one IPv4 address, or one /64 of IPv6
	MaxData            uint32        // longest sealed batch taken, in bytes
	Window             uint32        // most unacknowledged bytes a peer may send, in bytes
	MaxPending         int64         // bytes of batches in memory, over all connections: coming in, or with the Handler and not answered
	Heartbeat          time.Duration // between two PINGs
	DeadAfter          time.Duration // of silence a peer is dead
	Handshake          time.Duration // from accept to the peer's HELLO, TLS included
	// TLS, if set, is asked for the configuration of each connection. nil is plain TCP.
	TLS func() *tls.Config
	// Admission, if set, is asked again and again for whom to admit, so that it can change.
	// It says what a peer may be called (else the connection is refused) and for which hosts
	// it may send batches (else they are refused, as Denied). nil, or a nil result, is
	// everybody.
	Admission func() *Admission
	// LaneHost says which host sealed the batches of a lane; "": nothing of it was taken here.
	// With an Admission, only a peer that may speak for that host is believed what it says of
	// the lane (HORIZON, SKIP), or is told of lanes that it did not name. nil: of none is known.
	LaneHost func(batch.Lane) string
	// KnowsLane says whether something of a lane was taken here, or noted as final. A peer
	// may open lanes that are not known only so fast; nil: none is known.
	KnowsLane func(batch.Lane) bool
	// Admit, if set, may refuse a peer by what it says it is and how it came.
	Admit  func(p Peer, nc net.Conn) error
	Logger *slog.Logger
}

// Server receives batches from any number of peers. All methods are safe for
// concurrent use.
type Server struct {
	o       ServerOptions
	t       timing
	h       Handler
	log     *slog.Logger
	pending *budget
	grace   time.Duration // see pace

	lanes      *laneLimit
	laneRetry  time.Duration
	named      atomic.Int64 // lanes in the maps of all connections
	claimsWait atomic.Bool  // a connection has one, or had

	mu       sync.Mutex
	places   places
	stopping chan struct{} // closed by Shutdown
	ended    chan struct{} // closed and made anew when a connection ends

	telling atomic.Int64 // connections that are being told why they end
	limit   logLimit

	turnedAway, evicted, failed, deniedPeers, deniedBatches, deniedLanes, heldHorizons atomic.Uint64
}

// NewServer returns a Server that gives what it receives to h.
func NewServer(o ServerOptions, h Handler) *Server {
	o.MaxConns = orDefault(o.MaxConns, DefaultMaxConns)
	o.MaxConnsPerAddress = orDefault(o.MaxConnsPerAddress, DefaultMaxConnsPerAddress)
	o.MaxData = orDefault(o.MaxData, uint32(DefaultMaxData))
	o.Window = orDefault(o.Window, uint32(DefaultWindow))
	o.MaxPending = orDefault(o.MaxPending, int64(DefaultWindow))
	s := &Server{
		o: o, t: timing{o.Heartbeat, o.DeadAfter, o.Handshake}.withDefaults(), h: h, log: o.Logger,
		pending: newBudget(o.MaxPending), grace: paceGrace, lanes: newLaneLimit(), laneRetry: laneRetry, places: newPlaces(), stopping: make(chan struct{}), ended: make(chan struct{}),
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	return s
}

// Serve accepts connections from ln until ctx ends or Shutdown is called, closes ln,
// and returns nil when every connection has ended. The end of ctx ends them at once,
// with a BYE; Shutdown waits for them.
func (s *Server) Serve(ctx context.Context, ln net.Listener) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(errShutdown)
	defer ln.Close()
	stop := context.AfterFunc(ctx, func() { ln.Close() })
	defer stop()
	wg.Go(func() {
		select {
		case <-s.stopping:
			ln.Close()
		case <-ctx.Done():
		}
	})
	for {
		nc, err := ln.Accept()
		if err != nil && s.waitForResources(ctx, err) {
			continue
		}
		if err != nil {
			return s.acceptEnded(ctx, cancel, &wg, err)
		}
		c, err := s.add(ctx, nc)
		if err != nil {
			wg.Go(func() { s.turnAway(nc, err) })
			continue
		}
		wg.Go(func() {
			c.run()
			s.remove(c)
		})
	}
}

// waitForResources waits a while when err is one that passes: a connection that was
// reset while it waited, or a limit that other connections hold up. It reports whether
// to accept again.
func (s *Server) waitForResources(ctx context.Context, err error) bool {
	if errors.Is(err, unix.ECONNABORTED) {
		return true
	}
	if !errors.Is(err, unix.EMFILE) && !errors.Is(err, unix.ENFILE) && !errors.Is(err, unix.ENOBUFS) && !errors.Is(err, unix.ENOMEM) {
		return false
	}
	s.log.Error("cannot accept connections; trying again; raise the limit of open files (ulimit -n)", "error", err)
	timer := time.NewTimer(200 * time.Millisecond)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	case <-s.stopping:
	}
	return true
}

// acceptEnded waits for the connections as the reason demands.
func (s *Server) acceptEnded(ctx context.Context, cancel context.CancelCauseFunc, wg *sync.WaitGroup, err error) error {
	select {
	case <-s.stopping:
	default:
		if ctx.Err() == nil {
			cancel(errShutdown)
			return fmt.Errorf("accept connections: %w", err)
		}
	}
	wg.Wait()
	return nil
}

// all returns the connections whose handshake is done.
func (s *Server) all() []*serverConn {
	s.mu.Lock()
	defer s.mu.Unlock()
	cs := make([]*serverConn, 0, len(s.places.conns))
	for c := range s.places.conns {
		if c.ready.Load() {
			cs = append(cs, c)
		}
	}
	return cs
}

// Final tells the peers that sent or announced the lanes of ids that these batches are
// in the last node's output. It does not block; what several calls tell goes out
// together. A peer that is not connected is not told: tell it again when its Horizon
// comes, with FinalRanges.
func (s *Server) Final(ids ...batch.ID) {
	sets := make(map[batch.Lane]*batch.Ranges)
	for _, id := range ids {
		addTo(sets, id.Lane, batch.Range{First: id.N, Last: id.N})
	}
	for lane, set := range sets {
		s.FinalRanges(lane, set.All()...)
	}
}

// FinalRanges is Final for ranges of one lane.
func (s *Server) FinalRanges(lane batch.Lane, ranges ...batch.Range) {
	for _, c := range s.all() {
		c.final(lane, ranges...)
	}
}

// Skip tells the peers that sent or announced lane that batches of it were dropped, here
// or further on: nobody need wait for them. It does not block. A peer that is not
// connected is not told: tell it again when its Horizon comes.
func (s *Server) Skip(lane batch.Lane, skips ...Skip) {
	for _, c := range s.all() {
		c.skip(lane, skips)
	}
}

// Shutdown stops accepting, asks every peer to send no more (DRAIN), and returns nil
// when all have had their answers and said BYE. When ctx ends first it ends what is
// left and returns the error of ctx. Serve returns after that.
func (s *Server) Shutdown(ctx context.Context) error {
	s.mu.Lock()
	select {
	case <-s.stopping:
	default:
		close(s.stopping)
	}
	s.mu.Unlock()
	for {
		s.mu.Lock()
		left, ended := len(s.places.conns), s.ended
		for c := range s.places.conns {
			if c.ready.Load() {
				c.drain()
			} else {
				c.cancel(errShutdown)
			}
		}
		s.mu.Unlock()
		if left == 0 {
			return nil
		}
		select {
		case <-ended:
		case <-ctx.Done():
			s.mu.Lock()
			for c := range s.places.conns {
				c.cancel(errShutdown)
			}
			s.mu.Unlock()
			return fmt.Errorf("drain %d connections: %w", left, ctx.Err())
		}
	}
}

// errDenied wraps what Admit said.
var errDenied = errors.New("transport: peer is not admitted")
