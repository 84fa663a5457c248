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
	"time"

	"ftfuse/internal/batch"
)

const clientReadBuffer = 16 << 10

// session is one connection of a Client: a goroutine that sends batches (run's own),
// one that reads, and one for everything else that is to be written.
type session struct {
	c       *Client
	nc      net.Conn
	ctx     context.Context
	cancel  context.CancelCauseFunc
	frames  frameReader
	wire    wire
	number  uint64 // of this connection, from 1
	peer    Peer
	window  int64
	maxData uint32
	useful  bool // an answer came
	start   time.Time

	progress progress

	pull     context.Context // ends when no new batch is to be taken
	stopPull context.CancelFunc

	wmu    sync.Mutex // one frame at a time; guards the next five
	head   []byte
	vec    [2][]byte
	bufs   net.Buffers
	broken bool                  // a frame was not written whole
	told   map[batch.Lane]uint64 // the horizons announced on this connection
	skips  SkipSet               // the skips told on this connection

	mu         sync.Mutex
	ctl        control
	peerDrains bool
	wake       chan struct{} // for the control goroutine
}

// control is what the control goroutine is to write.
type control struct {
	pong     uint64
	havePong bool
}

func newSession(ctx context.Context, c *Client, nc net.Conn) *session {
	s := &session{c: c, nc: nc, wake: make(chan struct{}, 1), start: time.Now(), told: make(map[batch.Lane]uint64)}
	s.ctx, s.cancel = context.WithCancelCause(ctx)
	s.wire = wire{nc: nc, ctx: s.ctx}
	s.frames = frameReader{r: bufio.NewReaderSize(&s.wire, clientReadBuffer), lim: limits{meta: maxEarlyMeta}}
	s.pull, s.stopPull = context.WithCancel(s.ctx)
	return s
}

// run serves the connection. nil means that it was drained, by whichever side.
func (s *session) run() error {
	stop := watch(s.ctx, s.nc, true)
	defer stop()
	defer s.c.flights.endPull()
	defer s.stopPull()
	if err := s.handshake(); err != nil {
		s.cancel(err)
		abort(s.nc)
		return err
	}
	s.c.log.Info("connected to the next node", "peer", s.peer.String(), "node", s.peer.Node.String(), "product", s.peer.Product)
	if s.c.o.OnConnect != nil {
		s.c.o.OnConnect(s.peer)
	}
	var wg sync.WaitGroup
	wg.Go(func() { s.cancel(s.read()) })
	wg.Go(s.control)
	if s.c.o.OnProgress != nil {
		wg.Go(s.watchProgress)
	}
	wg.Go(func() {
		select {
		case <-s.c.drain:
			s.c.setState(StateDraining, nil)
			s.stopPull()
			s.c.flights.signal()
		case <-s.ctx.Done():
		}
	})
	err := s.send()
	if err == nil {
		s.wmu.Lock()
		err = s.writeLocked(appendBye(nil, ByeDrained, ""))
		s.wmu.Unlock()
	}
	if err == nil {
		s.cancel(errPeerDrained)
		wg.Wait()
		linger(s.nc)
		return nil
	}
	s.cancel(err)
	wg.Wait()
	err = context.Cause(s.ctx)
	s.close(err)
	return err
}

// close ends a connection that was not drained, with a word to the peer when this side
// is the one that ends it.
func (s *session) close(err error) {
	code, text, tell := byeFor(err)
	switch {
	case errors.Is(err, errBusy):
		code, text, tell = ByeShutdown, "asked for a pause", true
	case errors.Is(err, errDamaged):
		code, text, tell = ByeShutdown, "sends again what arrived damaged", true
	case errors.Is(err, context.Canceled): // the context of Run
		code, tell = ByeShutdown, true
	}
	if tell && !s.broken && s.nc.SetWriteDeadline(time.Now().Add(100*time.Millisecond)) == nil &&
		s.writeLocked(appendBye(nil, code, text)) == nil {
		linger(s.nc)
		return
	}
	abort(s.nc)
}

// errNoBye is the end of a connection that the peer closed without a word, as the kernel
// does for a process that was killed.
var errNoBye = errors.New("peer closed the connection without a BYE")

// errBusy is the end of a connection to a peer that takes nothing now.
var errBusy = errors.New("peer is busy")

// errDamaged is the end of a connection on which a batch arrived damaged. All that was not
// answered is sent again on the next, so that the order stays.
var errDamaged = errors.New("batch arrived damaged; sending it again")

// handshake sends HELLO and reads WELCOME.
func (s *session) handshake() error {
	c := s.c
	if err := s.nc.SetDeadline(time.Now().Add(c.t.handshake)); err != nil {
		return err
	}
	if err := handshakeTLS(s.ctx, s.nc); err != nil {
		return err
	}
	id := c.o.Identity
	m := hello{
		minVersion: MinVersion, maxVersion: MaxVersion, node: id.Node, maxData: c.o.MaxData,
		window: uint32(min(c.o.Window, 1<<32-1)), host: id.Host, role: id.Role, product: id.Product,
	}
	if _, err := s.nc.Write(m.append(nil, typeHello)); err != nil {
		return fmt.Errorf("write HELLO: %w", err)
	}
	w, err := s.welcome()
	if err != nil {
		return err
	}
	if err := s.nc.SetDeadline(time.Time{}); err != nil {
		return err
	}
	if s.ctx.Err() != nil { // what watch did may just have been undone
		return context.Cause(s.ctx)
	}
	s.peer = Peer{
		Node: w.node, Host: w.host, Role: w.role, Product: w.product,
		Addr: s.nc.RemoteAddr().String(), Version: w.minVersion, Names: peerNames(s.nc),
	}
	s.window, s.maxData = c.o.Window, w.maxData
	if w.window > 0 {
		s.window = min(s.window, int64(w.window))
	}
	s.wire.silence = c.t.deadAfter
	s.frames.lim = limits{meta: maxMeta}
	c.changeState(StateConnected, nil, func(st *ClientStats) {
		st.Connects++
		st.Peer, st.Window, st.LastError = s.peer, s.window, ""
		s.number = st.Connects
	})
	return nil
}

// welcome reads the answer to HELLO.
func (s *session) welcome() (hello, error) {
	h, meta, err := s.frames.next()
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return hello{}, fmt.Errorf("no WELCOME within %v: %w", s.c.t.handshake, ErrSilent)
	case err != nil:
		return hello{}, fmt.Errorf("read WELCOME: %w", unexpected(err))
	case h.kind == typeBye:
		bye, err := parseBye(meta)
		if err != nil {
			return hello{}, err
		}
		return hello{}, bye
	case h.kind != typeWelcome:
		return hello{}, fmt.Errorf("%w: %v, want WELCOME", ErrFrame, h.kind)
	}
	w, err := parseHello(meta)
	if err == nil && (w.minVersion < MinVersion || w.minVersion > MaxVersion) {
		err = fmt.Errorf("%w: WELCOME chose protocol version %d, offered were %d to %d", ErrFrame, w.minVersion, MinVersion, MaxVersion)
	}
	return w, err
}

// send announces the horizons, sends again what was not answered, and then what the
// Source gives. It returns nil when one side wants no more and all is answered.
func (s *session) send() error {
	if err := s.announce(); err != nil {
		return err
	}
	for _, fl := range s.c.flights.left() {
		if s.peerWantsNoMore() {
			break
		}
		if err := s.sendFlight(fl); err != nil {
			return err
		}
		if s.c.probe.Load() {
			// A peer that was busy is asked with one batch whether it still is, not with all.
			if err := s.waitFor(s.ctx, func() bool { return s.c.flights.isDone(fl) }); err != nil {
				return err
			}
			s.c.probe.Store(false)
		}
	}
	for s.pull.Err() == nil {
		if err := s.waitFor(s.pull, func() bool { return s.hasRoom() }); err != nil {
			break
		}
		ctx := s.c.flights.pull(s.pull)
		seq, b, err := s.c.src.Next(ctx)
		if err != nil {
			s.c.flights.unpull()
			if ctx.Err() != nil {
				continue // recalled, or the loop's end
			}
			return &sourceError{err}
		}
		fl := &flight{seq: seq, b: b}
		if v := s.sendable(&b); v.Code != Taken {
			s.c.flights.unpull()
			s.surface(fl, v)
			continue
		}
		switch s.c.flights.add(fl) {
		case isBack:
			s.c.src.Refused(seq, Verdict{Recalled, "taken back before it was sent"})
			continue
		case isDouble:
			continue // in flight already: its answer counts for both
		}
		if err := s.sendFlight(fl); err != nil {
			return err
		}
	}
	if err := s.ctx.Err(); err != nil {
		return context.Cause(s.ctx)
	}
	return s.drained()
}

// drained tells the peer that no more comes and waits for the answers.
func (s *session) drained() error {
	if !s.peerWantsNoMore() {
		s.wmu.Lock()
		err := s.writeLocked(appendEmpty(nil, typeDrain))
		s.wmu.Unlock()
		if err != nil {
			return err
		}
	}
	return s.waitFor(s.ctx, func() bool { return s.c.flights.outstanding(s.number) == 0 })
}

// waitFor waits until ok; only the sending goroutine calls it.
func (s *session) waitFor(ctx context.Context, ok func() bool) error {
	for !ok() {
		select {
		case <-s.c.flights.changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

func (s *session) hasRoom() bool {
	n, bytes := s.c.flights.size()
	return n == 0 || bytes < s.window
}

func (s *session) peerWantsNoMore() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.peerDrains
}

// sendable refuses here what the peer could not take.
func (s *session) sendable(b *batch.Sealed) Verdict {
	switch {
	case uint64(len(b.Data)) > uint64(s.maxData):
		return Verdict{TooLarge, fmt.Sprintf("%d bytes, %v takes at most %d", len(b.Data), s.peer, s.maxData)}
	case len(b.Via)+1 > maxVia:
		return Verdict{Loop, fmt.Sprintf("came through %d nodes, at most %d are possible", len(b.Via), maxVia)}
	case slices.Contains(b.Via, s.peer.Node):
		return Verdict{Loop, fmt.Sprintf("came through %v before", s.peer)}
	}
	return Verdict{}
}
