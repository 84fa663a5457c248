package transport

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"ftfuse/internal/batch"
)

// ServerOptions are the options of a Server. Zero values mean the defaults.
type ServerOptions struct {
	Identity   Identity
	MaxConns   int    // connections at a time, those in their handshake included
	MaxData    uint32 // longest sealed batch taken, in bytes
	Window     uint32 // most unacknowledged bytes a peer may send, in bytes
	MaxPending int64  // bytes of all connections given to the Handler and not answered;
	// beyond, each connection still gets one batch
	Heartbeat time.Duration // between two PINGs
	DeadAfter time.Duration // of silence a peer is dead
	Handshake time.Duration // from accept to the peer's HELLO
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
	pending budget

	mu       sync.Mutex
	conns    map[*serverConn]struct{}
	stopping chan struct{} // closed by Shutdown
	ended    chan struct{} // closed and made anew when a connection ends
	refused  uint64        // connections above MaxConns

	telling atomic.Int64 // connections that are being turned away
}

const maxTelling = 32

// NewServer returns a Server that gives what it receives to h.
func NewServer(o ServerOptions, h Handler) *Server {
	o.MaxConns = orDefault(o.MaxConns, DefaultMaxConns)
	o.MaxData = orDefault(o.MaxData, uint32(DefaultMaxData))
	o.Window = orDefault(o.Window, uint32(DefaultWindow))
	o.MaxPending = orDefault(o.MaxPending, int64(DefaultWindow))
	s := &Server{
		o: o, t: timing{o.Heartbeat, o.DeadAfter, o.Handshake}.withDefaults(), h: h, log: o.Logger,
		conns: make(map[*serverConn]struct{}), stopping: make(chan struct{}), ended: make(chan struct{}),
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	s.pending.free = o.MaxPending
	s.pending.changed = make(chan struct{})
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
		c := s.add(ctx, nc)
		if c == nil {
			wg.Go(func() { s.turnAway(nc) })
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

// add registers a new connection, or returns nil when there are too many.
func (s *Server) add(ctx context.Context, nc net.Conn) *serverConn {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.conns) >= s.o.MaxConns {
		s.refused++
		return nil
	}
	c := newServerConn(ctx, s, nc)
	s.conns[c] = struct{}{}
	return c
}

func (s *Server) remove(c *serverConn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.conns, c)
	close(s.ended)
	s.ended = make(chan struct{})
}

// turnAway tells a peer that there are too many, unless a flood of them is being told.
func (s *Server) turnAway(nc net.Conn) {
	if s.telling.Add(1) <= maxTelling {
		_ = nc.SetWriteDeadline(time.Now().Add(time.Second))
		_, _ = nc.Write(appendBye(nil, ByeTooMany, fmt.Sprintf("%d connections at most", s.o.MaxConns)))
		linger(nc)
	} else {
		abort(nc)
	}
	s.telling.Add(-1)
	s.log.Warn("turned a connection away: too many", "addr", nc.RemoteAddr().String(), "max", s.o.MaxConns)
}

// all returns the connections whose handshake is done.
func (s *Server) all() []*serverConn {
	s.mu.Lock()
	defer s.mu.Unlock()
	cs := make([]*serverConn, 0, len(s.conns))
	for c := range s.conns {
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
	for _, c := range s.all() {
		c.final(func(add func(batch.Lane, batch.Range)) {
			for _, id := range ids {
				add(id.Lane, batch.Range{First: id.N, Last: id.N})
			}
		})
	}
}

// FinalRanges is Final for ranges of one lane.
func (s *Server) FinalRanges(lane batch.Lane, ranges ...batch.Range) {
	for _, c := range s.all() {
		c.final(func(add func(batch.Lane, batch.Range)) {
			for _, r := range ranges {
				add(lane, r)
			}
		})
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
		left, ended := len(s.conns), s.ended
		for c := range s.conns {
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
			for c := range s.conns {
				c.cancel(errShutdown)
			}
			s.mu.Unlock()
			return fmt.Errorf("drain %d connections: %w", left, ctx.Err())
		}
	}
}

// PeerStats is one connection in ServerStats.
type PeerStats struct {
	Peer      Peer
	Since     time.Time // when the handshake was done
	LastBatch time.Time // zero: none yet
	Batches   uint64    // received, refused ones included
	Bytes     uint64    // of their sealed bytes
	Refused   uint64
	Pending   int64 // batches given to the Handler and not answered
	Blocked   bool  // not read now, because the Handler or MaxPending holds it up
}

// ServerStats is a snapshot.
type ServerStats struct {
	Peers      []PeerStats // by address
	TurnedAway uint64      // connections above MaxConns
	Pending    int64       // bytes given to the Handler and not answered
}

// Stats returns a snapshot.
func (s *Server) Stats() ServerStats {
	st := ServerStats{Pending: s.pending.used(s.o.MaxPending)}
	for _, c := range s.all() {
		st.Peers = append(st.Peers, c.stats())
	}
	slices.SortFunc(st.Peers, func(a, b PeerStats) int {
		switch {
		case a.Peer.Addr < b.Peer.Addr:
			return -1
		case a.Peer.Addr > b.Peer.Addr:
			return 1
		}
		return 0
	})
	s.mu.Lock()
	st.TurnedAway = s.refused
	s.mu.Unlock()
	return st
}

// errDenied wraps what Admit said.
var errDenied = errors.New("transport: peer is not admitted")

// budget bounds the bytes in the hands of the Handler.
type budget struct {
	mu      sync.Mutex
	free    int64
	waiters int
	changed chan struct{} // closed and made anew when bytes come back and someone waits
}

// take takes n bytes, waiting for them unless force is set.
func (b *budget) take(ctx context.Context, n int64, force func() bool) error {
	for {
		b.mu.Lock()
		if b.free >= n || force() {
			b.free -= n
			b.mu.Unlock()
			return nil
		}
		changed := b.changed
		b.waiters++
		b.mu.Unlock()
		var err error
		select {
		case <-changed:
		case <-ctx.Done():
			err = context.Cause(ctx)
		}
		b.mu.Lock()
		b.waiters--
		b.mu.Unlock()
		if err != nil {
			return err
		}
	}
}

// give returns n bytes.
func (b *budget) give(n int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.free += n
	if b.waiters > 0 {
		close(b.changed)
		b.changed = make(chan struct{})
	}
}

func (b *budget) used(of int64) int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return of - b.free
}
