package transport

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"ftfuse/internal/batch"
)

// ClientOptions are the options of a Client. Zero values mean the defaults.
type ClientOptions struct {
	Identity Identity
	Address  string // HOST:PORT
	// Dial connects to Address; nil is plain TCP. ctx ends when the time for it is up.
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
	Logger    *slog.Logger
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

	mu       sync.Mutex
	st       ClientStats
	drain    chan struct{} // closed by Drain
	draining bool
	ended    chan struct{} // closed when Run returns
}

// State is what a Client is doing.
type State string

// The states.
const (
	StateIdle       State = "idle"       // Run was not called
	StateConnecting State = "connecting" // or in the handshake
	StateConnected  State = "connected"
	StateDraining   State = "draining" // connected, and one side wants no new batches
	StateWaiting    State = "waiting"  // for the next try
	StateStopped    State = "stopped"
)

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
	if o.Dial == nil {
		o.Dial = new(net.Dialer).DialContext
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
// not acknowledged by then stays the source's. Run may be called once.
func (c *Client) Run(ctx context.Context) error {
	select {
	case c.ran <- struct{}{}:
	default:
		return errors.New("transport: Client.Run called twice")
	}
	defer close(c.ended)
	defer c.setState(StateStopped)
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
		c.setState(StateWaiting)
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
	again := c.st.LastError == text
	c.st.LastError = text
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
	c.setState(StateConnecting)
	dctx, cancel := context.WithTimeout(ctx, c.o.Connect)
	nc, err := c.o.Dial(dctx, "tcp", c.o.Address)
	cancel()
	if err != nil {
		return fmt.Errorf("connect to %s: %w", c.o.Address, err)
	}
	s := newSession(ctx, c, nc)
	err = s.run()
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
	c.mu.Lock()
	defer c.mu.Unlock()
	st := c.st
	st.InFlight, st.InFlightBytes = n, bytes
	return st
}

func (c *Client) setState(s State) {
	c.update(func(st *ClientStats) {
		if st.State != s {
			st.State, st.Since = s, time.Now()
		}
	})
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

// flight is one batch that was taken from the Source and not answered.
type flight struct {
	seq     uint64
	b       batch.Sealed
	sent    bool   // at least once, on whatever connection
	session uint64 // the connection it was last written to
	badCRC  bool   // refused once for its CRC
	done    bool
}

// cost is what a flight counts for in the window.
func (f *flight) cost() int64 { return int64(len(f.b.Data)) + batchOverhead }

// flights are the batches in flight, in the order of the Source.
type flights struct {
	mu      sync.Mutex
	order   []*flight // done ones in front are cut off
	byID    map[batch.ID]*flight
	bytes   int64
	changed chan struct{} // holds a token after each change that someone may wait for
}

func (f *flights) init() {
	f.byID = make(map[batch.ID]*flight)
	f.changed = make(chan struct{}, 1)
}

func (f *flights) size() (n int, bytes int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.byID), f.bytes
}

// add takes one more. It returns false for an id that is in flight already.
func (f *flights) add(fl *flight) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.byID[fl.b.ID] != nil {
		return false
	}
	f.byID[fl.b.ID] = fl
	f.order = append(f.order, fl)
	f.bytes += fl.cost()
	return true
}

// left returns what is not answered, in order.
func (f *flights) left() []*flight {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []*flight
	for _, fl := range f.order {
		if !fl.done {
			out = append(out, fl)
		}
	}
	return out
}

// mark notes that fl is about to be written to a connection. It returns what to write,
// or send false when an answer has come meanwhile.
func (f *flights) mark(fl *flight, session uint64) (b batch.Sealed, send bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	b = fl.b
	if fl.sent {
		b.Flags |= batch.FlagResent
	}
	fl.sent, fl.session = true, session
	return b, !fl.done
}

// outstanding is how many batches a connection was given and has not answered.
func (f *flights) outstanding(session uint64) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := 0
	for _, fl := range f.byID {
		if fl.session == session {
			n++
		}
	}
	return n
}

// settle ends the flights of lane in set and appends their numbers in the Source to
// seqs. Numbers that are not in flight, an answer that came twice, are nothing.
func (f *flights) settle(lane batch.Lane, set batch.Ranges, seqs []uint64) []uint64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, r := range set.All() {
		if r.Last-r.First >= uint64(len(f.byID)) { // wider than all there is: look from the other side
			for id, fl := range f.byID {
				if id.Lane == lane && id.N >= r.First && id.N <= r.Last {
					seqs = append(seqs, fl.seq)
					f.end(fl)
				}
			}
			continue
		}
		for n := r.First; ; n++ {
			if fl := f.byID[batch.ID{Lane: lane, N: n}]; fl != nil {
				seqs = append(seqs, fl.seq)
				f.end(fl)
			}
			if n == r.Last {
				break
			}
		}
	}
	f.signal()
	return seqs
}

// isDone reports whether fl was answered.
func (f *flights) isDone(fl *flight) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return fl.done
}

// find returns the flight of id, or nil.
func (f *flights) find(id batch.ID) *flight {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.byID[id]
}

// drop ends one flight without an ack.
func (f *flights) drop(fl *flight) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !fl.done {
		f.end(fl)
	}
	f.signal()
}

func (f *flights) end(fl *flight) {
	fl.done = true
	f.bytes -= fl.cost()
	delete(f.byID, fl.b.ID)
	fl.b.Data = nil // the bytes may go now
	n := 0
	for n < len(f.order) && f.order[n].done {
		f.order[n] = nil
		n++
	}
	f.order = f.order[n:]
}

func (f *flights) signal() {
	select {
	case f.changed <- struct{}{}:
	default:
	}
}
