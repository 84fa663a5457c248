// Package transport carries sealed batches from one node to the next over any
// net.Conn, and brings back what became of each by its id.
//
//	Source -> Client ==BATCH, HORIZON==> Server -> Handler
//	       <-        <==ACK, FINAL, REFUSE==     <- reply, Server.Final
//
// A Client connects, sends what its Source gives it, up to a window of bytes in
// flight, and keeps each batch until its id was acknowledged; after a reconnect it
// sends those that were not again, in order, before any new one. A Server verifies
// each batch and gives it to its Handler, in the order of arrival; a Handler that
// blocks stops the reading of that connection and nothing else. Both sides send
// heartbeats on their own account, so that a busy peer is told from a dead one.
//
// The sealed bytes are opaque here. docs/protocol.md, "Frames", describes every byte.
package transport

import (
	"context"
	"fmt"
	"time"

	"ftfuse/internal/batch"
)

// Protocol versions that this build speaks.
const (
	MinVersion = 1
	MaxVersion = 1
)

// Defaults of the options.
const (
	DefaultMaxData            = 4 << 20                 // longest sealed batch, in bytes
	DefaultWindow             = 64 << 20                // bytes in flight
	DefaultHeartbeat          = 750 * time.Millisecond  // between two PINGs
	DefaultDeadAfter          = 3500 * time.Millisecond // of silence
	DefaultHandshake          = 5 * time.Second         // from the connection to the last byte of the handshake
	DefaultDial               = 3 * time.Second         // to connect
	DefaultMinWait            = 50 * time.Millisecond   // before the first reconnect
	DefaultMaxWait            = time.Second             // between two reconnects
	DefaultMaxConns           = 1024                    // of a server
	DefaultMaxConnsPerAddress = 64                      // of a server
	ackEvery                  = time.Millisecond        // the least time between two ACK frames
)

// Code is a verdict on one batch.
type Code uint16

// The verdicts. Taken and Duplicate travel as a hop ack; the others as REFUSE, and
// the sender keeps the batch.
const (
	Taken     Code = 0 // it is on this node's disk
	Duplicate Code = 1 // it was already
	BadCRC    Code = 2 // its bytes do not fit its CRC: sent again once, on another connection
	Version   Code = 3 // a format that this node does not know
	Conflict  Code = 4 // its id was taken with another content
	Loop      Code = 5 // it came through this node before
	Denied    Code = 6 // not from this peer
	Busy      Code = 7 // not now: sent again on another connection
	TooLarge  Code = 8 // longer than what the node takes; said by the sender itself
	Recalled  Code = 9 // never sent: Recall was called while Next gave it; said by the client itself
)

var codeNames = [...]string{
	"taken", "duplicate", "bad crc", "version", "conflict", "loop", "denied", "busy", "too large", "recalled",
}

// String is the code in words.
func (c Code) String() string {
	if int(c) < len(codeNames) {
		return codeNames[c]
	}
	return fmt.Sprintf("code %d", uint16(c))
}

// Verdict is what became of one batch at the next node.
type Verdict struct {
	Code Code
	Text string // for the operator; at most 255 bytes travel
}

// ByeCode says why a peer ended a connection.
type ByeCode uint16

// The reasons.
const (
	ByeDrained  ByeCode = 0 // everything sent was answered
	ByeShutdown ByeCode = 1 // the node stops and does not wait any longer
	ByeProtocol ByeCode = 2 // a malformed frame, or one out of place
	ByeVersion  ByeCode = 3 // no protocol version in common
	ByeTooLarge ByeCode = 4 // a frame above what the node takes
	ByeTooMany  ByeCode = 5 // connections
	ByeTimeout  ByeCode = 6 // the handshake, or one frame, took too long
	ByeDenied   ByeCode = 7 // this peer is not wanted
	ByeLoop     ByeCode = 8 // the peer is this node itself
	ByeInternal ByeCode = 9 // a failure of the node's own
)

var byeNames = [...]string{
	"drained", "shutdown", "protocol error", "version", "frame too large", "too many connections",
	"timeout", "denied", "loop", "internal error",
}

// String is the reason in words.
func (c ByeCode) String() string {
	if int(c) < len(byeNames) {
		return byeNames[c]
	}
	return fmt.Sprintf("code %d", uint16(c))
}

// ByeError is the end of a connection as the peer gave it.
type ByeError struct {
	Code ByeCode
	Text string
}

func (e *ByeError) Error() string {
	if e.Text == "" {
		return fmt.Sprintf("peer ended the connection: %v", e.Code)
	}
	return fmt.Sprintf("peer ended the connection: %v: %s", e.Code, e.Text)
}

// Peer is the other end of a connection, as it named itself in the handshake.
type Peer struct {
	Node    batch.Node
	Host    string
	Role    string // mount, relay or receive
	Product string // version of its ftfuse
	Addr    string // its network address
	Version uint16 // protocol version spoken
	// Names are those of its verified certificate, in lower case: the DNS names and the
	// common name. nil without TLS: then all of the above is only what the peer says.
	Names []string
}

// String is role, host and address.
func (p Peer) String() string { return fmt.Sprintf("%s %s (%s)", p.Role, p.Host, p.Addr) }

// Identity is how a node names itself in the handshake.
type Identity struct {
	Node    batch.Node
	Host    string
	Role    string
	Product string
}

// Handler takes the batches that a Server received. It is called from one goroutine
// a connection, and from several at once for several connections.
type Handler interface {
	// Batch is called for each batch whose bytes fit its CRC and that did not come
	// through this node before, in the order of arrival. It may block: the connection
	// is not read meanwhile. ctx ends when the connection does; the verdict goes
	// nowhere then. b.Data belongs to the handler. reply is to be called exactly once,
	// from any goroutine, at any time; it does not block. An answer of Taken or
	// Duplicate is custody: the peer deletes its copy.
	Batch(ctx context.Context, p Peer, b batch.Sealed, reply func(Verdict))
	// Horizon tells that all of lane below below is final at its source. It comes for
	// every lane of a peer at the beginning of a connection, and again as it moves. first
	// is set where nothing was told of lane on this connection before: the peer does not
	// know what became of it while it was away. It must not block.
	Horizon(p Peer, lane batch.Lane, below uint64, first bool)
	// Skip tells that a node upstream dropped batches of lane. It comes again and again,
	// also for what was told before: a SkipSet says what is new. It must not block.
	Skip(p Peer, lane batch.Lane, skips []Skip)
}

// Source gives a Client its batches and takes what became of them. Its methods are
// called from the client's goroutines, Next from one at a time, and must not block,
// except for Next.
type Source interface {
	// Next returns the next batch to send. It blocks until there is one or ctx ends;
	// a call that returns an error has consumed nothing. An error while ctx lives ends
	// the Client.
	Next(ctx context.Context) (seq uint64, b batch.Sealed, err error)
	// Acked tells that the next node has the batch on its disk.
	Acked(seq uint64)
	// Final tells what of lane the last node has in its output. It comes at any time,
	// also for what was acked long ago, and more than once.
	Final(lane batch.Lane, r []batch.Range)
	// Skipped tells that the next node, or one behind it, dropped batches of lane. It comes
	// again and again, also for what was told before: a SkipSet says what is new.
	Skipped(lane batch.Lane, skips []Skip)
	// Refused tells that the next node will not take the batch. The client forgets it;
	// the source keeps it and may give it to Next again, best after a reconnect. With the
	// code Recalled nothing was sent, see Client.Recall.
	Refused(seq uint64, v Verdict)
	// Horizon lists what to announce: every lane whose finals the source wants to hear
	// of, also one of which nothing is final yet (Below 1). The server tells what became
	// final while this client was away only for lanes that it announced or sends. It is
	// asked at the start of each connection and at every heartbeat; only what moved
	// travels.
	Horizon() []LaneHorizon
	// Skips lists what this node dropped, and what it heard that others before it did. It
	// is asked when Horizon is; only what the peer has not been told on this connection
	// travels.
	Skips() []LaneSkips
}
