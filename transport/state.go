package transport

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

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

// Why is the kind of failure that ended a connection or a try, for decisions; the error
// beside it is for people.
type Why string

// The kinds.
const (
	WhyRefused     Why = "refused"     // nobody listens there
	WhyReset       Why = "reset"       // or closed without a word: the peer was killed
	WhySilent      Why = "silent"      // frozen, or cut off
	WhyBye         Why = "bye"         // the peer ended it and said why, see ByeError
	WhyBusy        Why = "busy"        // it takes nothing now
	WhyUnreachable Why = "unreachable" // no route, or no answer
	WhyName        Why = "name"        // it could not be looked up
	WhyTLS         Why = "tls"         // one side does not accept the other's certificate
	WhyProtocol    Why = "protocol"    // what came is no ftfuse
	WhyOther       Why = "other"
)

// plain reports whether w says all there is to say: the error's text differs from time to
// time by addresses only.
func (w Why) plain() bool {
	return w == WhyRefused || w == WhyReset || w == WhySilent || w == WhyUnreachable
}

// StateChange is one step of a Client.
type StateChange struct {
	State State
	Peer  Peer      // of the newest connection
	Why   Why       // with StateWaiting: what ended the connection or the try
	Err   error     // with StateWaiting
	At    time.Time // monotonic reading included
}

// why sorts the error that ended a connection or a try.
func why(err error) Why {
	var bye *ByeError
	var dns *net.DNSError
	switch {
	case err == nil, errors.Is(err, errPeerDrained), errors.As(err, &bye):
		return WhyBye
	case errors.Is(err, errBusy):
		return WhyBusy
	case errors.As(err, &dns), errors.Is(err, ErrName):
		return WhyName
	case errors.Is(err, ErrSilent):
		return WhySilent
	case errors.Is(err, ErrFrame):
		return WhyProtocol
	case isTLS(err):
		return WhyTLS
	case errors.Is(err, unix.ECONNREFUSED):
		return WhyRefused
	case errors.Is(err, unix.ECONNRESET), errors.Is(err, unix.EPIPE), errors.Is(err, errNoBye),
		errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, io.ErrClosedPipe):
		return WhyReset
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded), errors.Is(err, unix.ETIMEDOUT),
		errors.Is(err, unix.EHOSTUNREACH), errors.Is(err, unix.ENETUNREACH), errors.Is(err, unix.EHOSTDOWN):
		return WhyUnreachable
	}
	return WhyOther
}

// isTLS reports whether err is about certificates or the TLS handshake.
func isTLS(err error) bool {
	var alert tls.AlertError
	var record tls.RecordHeaderError
	var verify *tls.CertificateVerificationError
	var host x509.HostnameError
	var op *net.OpError
	return errors.Is(err, errTLS) || errors.As(err, &alert) || errors.As(err, &record) || errors.As(err, &verify) ||
		errors.As(err, &host) || errors.As(err, &op) && op.Op == "remote error"
}
