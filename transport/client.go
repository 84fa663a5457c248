package transport

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// ClientOptions are the options of a Client. Zero values mean the defaults.
type ClientOptions struct {
	Identity Identity
	Address  string // HOST:PORT; a HOST with several IP addresses is looked up, and they are tried in turn, at each connect
	// Resolver looks Address up; nil is one of the client's own.
	Resolver *Resolver
	// TLS, if set, is asked for the configuration of each connection; its ServerName is
	// filled in from Address. nil is plain TCP.
	TLS func() *tls.Config
	// Dial, if set, connects instead, to whatever it likes; TLS comes on top. ctx ends when
	// the time for it is up.
	Dial      func(ctx context.Context, network, address string) (net.Conn, error)
	Window    int64  // bytes in flight, the peer's own window permitting
	MaxData   uint32 // longest sealed batch this node takes, told to the peer
	Heartbeat time.Duration
	DeadAfter time.Duration
	Handshake time.Duration
	Connect   time.Duration // for Dial
	MinWait   time.Duration // before the first reconnect; doubles up to MaxWait, with jitter
	MaxWait   time.Duration
	// OnConnect, if set, is called after each handshake, before the first batch goes
	// out: the time to offer again what was refused.
	OnConnect func(Peer)
	// OnState, if set, is called for each change of state, in their order. It must not
	// block; it may call the client's methods, but for Run and Drain.
	OnState func(StateChange)
	// OnProgress, if set, is called about every Heartbeat in which bytes of batches, at least
	// 1 KiB of them since the last time, came to the peer's kernel: a large batch on a slow
	// line moves, long before it is answered. It must not block.
	OnProgress func()
	Logger     *slog.Logger
}

// Client brings the batches of one Source to one destination. Its methods are safe
// for concurrent use.
type Client struct {
	o   ClientOptions
	t   timing
	src Source
	log *slog.Logger

	flights flights
	ran     chan struct{} // held by Run
	probe   atomic.Bool   // the peer was busy: try one batch first

	notify   sync.Mutex // held over a change of state and its OnState
	mu       sync.Mutex
	st       ClientStats
	lastWhy  Why           // of st.LastError
	drain    chan struct{} // closed by Drain
	draining bool
	ended    chan struct{} // closed when Run returns
}

// ClientStats is a snapshot.
type ClientStats struct {
	State         State
	Address       string
	Peer          Peer      // of the newest connection
	Since         time.Time // of State
	InFlight      int       // batches sent, or about to be, and not answered
	InFlightBytes int64
	Window        int64         // bytes that may be in flight
	LastAck       time.Time     // zero: none yet
	OldestSent    time.Time     // when the oldest batch without an answer was written first; zero: there is none
	RTT           time.Duration // of the newest PING that was answered
	Connects      uint64        // handshakes done
	Failures      uint64        // tries and connections that failed
	LastError     string        // of the newest failure
	Sent          uint64        // batches written, resent ones included
	SentBytes     uint64        // of their sealed bytes
	Resent        uint64        // batches
	Acked         uint64        // batches
	Refused       uint64        // batches surfaced to the Source
}

// NewClient returns a Client that will send what s gives it. Nothing happens before
// Run.
func NewClient(o ClientOptions, s Source) *Client {
	o.Window = orDefault(o.Window, int64(DefaultWindow))
	o.MaxData = orDefault(o.MaxData, uint32(DefaultMaxData))
	o.Connect = orDefault(o.Connect, DefaultDial)
	o.MinWait = orDefault(o.MinWait, DefaultMinWait)
	o.MaxWait = max(orDefault(o.MaxWait, DefaultMaxWait), o.MinWait)
	if o.Resolver == nil {
		o.Resolver = new(Resolver)
	}
	if o.Dial == nil {
		o.Dial = (&dialer{r: o.Resolver}).dial
	}
	c := &Client{
		o: o, t: timing{o.Heartbeat, o.DeadAfter, o.Handshake}.withDefaults(), src: s, log: o.Logger,
		ran: make(chan struct{}, 1), drain: make(chan struct{}), ended: make(chan struct{}),
	}
	if c.log == nil {
		c.log = slog.New(slog.DiscardHandler)
	}
	c.flights.init()
	c.st = ClientStats{State: StateIdle, Address: o.Address, Since: time.Now(), Window: o.Window}
	return c
}

// Run connects, sends, and reconnects for ever, until ctx ends (it returns the error
// of ctx), Drain has done its work (nil), or the Source fails (its error). What was
// not acknowledged by then stays the source's. Run may be called once; behind Drain it
// returns nil at once.
func (c *Client) Run(ctx context.Context) error {
	select {
	case c.ran <- struct{}{}:
	default:
		if c.drained() { // by a Drain that came first: there is nothing to do
			return nil
		}
		return errors.New("transport: Client.Run called twice")
	}
	defer close(c.ended)
	defer c.setState(StateStopped, nil)
	wait := c.o.MinWait
	for {
		err := c.connectAndServe(ctx, &wait)
		var src *sourceError
		switch {
		case errors.As(err, &src):
			return src.err
		case ctx.Err() != nil:
			return ctx.Err()
		case c.drained():
			return nil
		}
		c.failed(err)
		c.setState(StateWaiting, err)
		// Half to all of wait, so that the peers of a node that restarts do not all come at
		// once.
		timer := time.NewTimer(wait/2 + rand.N(wait/2+1))
		wait = min(2*wait, c.o.MaxWait)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		case <-c.drainWithNothingLeft():
			timer.Stop()
			return nil
		}
	}
}

// failed notes and logs the end of a try or a connection.
func (c *Client) failed(err error) {
	var bye *ByeError
	orderly := err == nil || errors.As(err, &bye) && (bye.Code == ByeShutdown || bye.Code == ByeDrained) || errors.Is(err, errPeerDrained)
	c.mu.Lock()
	if err == nil {
		err = errPeerDrained
	}
	text := err.Error()
	kind := why(err)
	again := c.st.LastError != "" && c.lastWhy == kind && (kind.plain() || c.st.LastError == text)
	c.st.LastError, c.lastWhy = text, kind
	if !orderly {
		c.st.Failures++
	}
	c.mu.Unlock()
	switch {
	case again:
		c.log.Debug("connection to the next node failed again", "address", c.o.Address, "error", err)
	case orderly:
		c.log.Info("the next node ended the connection", "address", c.o.Address, "reason", text)
	default:
		c.log.Warn("connection to the next node failed; trying again", "address", c.o.Address, "error", err)
	}
}

// connectAndServe makes one connection and serves it to its end. wait is set back when
// the connection had been of use.
func (c *Client) connectAndServe(ctx context.Context, wait *time.Duration) error {
	c.setState(StateConnecting, nil)
	dctx, cancel := context.WithTimeout(ctx, c.o.Connect)
	nc, err := c.o.Dial(dctx, "tcp", c.o.Address)
	cancel()
	if err != nil {
		return fmt.Errorf("connect to %s: %w", c.o.Address, err)
	}
	if c.o.TLS != nil {
		nc = clientTLS(nc, c.o.TLS(), c.o.Address)
	}
	s := newSession(ctx, c, nc)
	err = s.run()
	c.flights.forget(nil) // an ack comes on the connection that the batch went out on, or never
	if s.useful {
		*wait = c.o.MinWait
	}
	if err != nil {
		err = fmt.Errorf("connection to %s: %w", c.o.Address, err)
	}
	return err
}

// Drain makes the client take nothing more from its Source, waits until what is in
// flight is answered, says BYE, and makes Run return nil. It returns nil then, or the
// error of ctx if that ends first; Run goes on trying then until its own context ends.
func (c *Client) Drain(ctx context.Context) error {
	c.mu.Lock()
	if !c.draining {
		c.draining = true
		close(c.drain)
	}
	c.mu.Unlock()
	select {
	case c.ran <- struct{}{}: // Run was never called, and cannot be any more
		close(c.ended)
		return nil
	default:
	}
	select {
	case <-c.ended:
		return nil
	case <-ctx.Done():
		n, bytes := c.flights.size()
		return fmt.Errorf("drain connection to %s, %d batches of %d bytes are not acknowledged: %w", c.o.Address, n, bytes, ctx.Err())
	}
}

// drained reports whether Drain was called and nothing is left to wait for.
func (c *Client) drained() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	n, _ := c.flights.size()
	return c.draining && n == 0
}

// drainWithNothingLeft is a channel that Drain closes, if nothing is in flight; nil
// otherwise: then a connection is needed.
func (c *Client) drainWithNothingLeft() <-chan struct{} {
	if n, _ := c.flights.size(); n > 0 {
		return nil
	}
	return c.drain
}

// Stats returns a snapshot.
func (c *Client) Stats() ClientStats {
	n, bytes := c.flights.size()
	oldest := c.flights.oldest()
	c.mu.Lock()
	defer c.mu.Unlock()
	st := c.st
	st.InFlight, st.InFlightBytes, st.OldestSent = n, bytes, oldest
	return st
}

// RecalledBatch is what Recall took back.
type RecalledBatch struct {
	Seq  uint64
	Sent bool // perhaps: it was, or is just being, written to a connection
}

// Recall takes back those of seqs that are not answered, so that the source can send them
// another way: the client does not send them again, they take no room in the window, and
// Drain does not wait for them.
//
// What a client has from Next is then in the result, or comes back through Acked or
// Refused: a batch that Next gave while Recall ran comes as Refused with the code
// Recalled, and was never sent. A recalled batch that was sent may still be reported by
// Acked, as long as its connection lives and Forget was not called; if it was given to
// this client again meanwhile, for each time that it was given.
func (c *Client) Recall(seqs ...uint64) []RecalledBatch { return c.flights.recallThese(seqs) }

// RecallAll is Recall for all that is not answered.
func (c *Client) RecallAll() []RecalledBatch { return c.flights.recallAll() }

// Forget ends the wait for acks of batches that were recalled.
func (c *Client) Forget(seqs ...uint64) {
	set := make(map[uint64]struct{}, len(seqs))
	for _, seq := range seqs {
		set[seq] = struct{}{}
	}
	c.flights.forget(set)
}

// setState changes the state and tells OnState; err is what led there.
func (c *Client) setState(s State, err error) { c.changeState(s, err, func(*ClientStats) {}) }

func (c *Client) changeState(s State, err error, and func(*ClientStats)) {
	c.notify.Lock()
	defer c.notify.Unlock()
	change := StateChange{State: s, At: time.Now()}
	changed := false
	c.update(func(st *ClientStats) {
		if changed = st.State != s; changed {
			st.State, st.Since = s, change.At
		}
		and(st)
		change.Peer = st.Peer
	})
	if !changed || c.o.OnState == nil {
		return
	}
	if s == StateWaiting {
		if err == nil {
			err = errPeerDrained
		}
		change.Why, change.Err = why(err), err
	}
	c.o.OnState(change)
}

func (c *Client) update(change func(*ClientStats)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	change(&c.st)
}

// sourceError is an error of Source.Next, which ends the client.
type sourceError struct{ err error }

func (e *sourceError) Error() string { return "take a batch from the queue: " + e.err.Error() }
func (e *sourceError) Unwrap() error { return e.err }

// errPeerDrained is the end of a connection that the peer had asked to drain.
var errPeerDrained = errors.New("transport: the peer asked for no more")
