package transport

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// ErrSilent is the end of a connection whose peer sent nothing, not even a heartbeat,
// for longer than DeadAfter.
var ErrSilent = errors.New("transport: peer is silent")

// timing is what both sides need to know about time. All of it is measured on the
// monotonic clock.
type timing struct {
	heartbeat, deadAfter, handshake time.Duration
}

func (t timing) withDefaults() timing {
	t.heartbeat = orDefault(t.heartbeat, DefaultHeartbeat)
	t.deadAfter = orDefault(t.deadAfter, DefaultDeadAfter)
	t.handshake = orDefault(t.handshake, DefaultHandshake)
	return t
}

func orDefault[T int | int64 | uint32 | time.Duration](v, def T) T {
	if v <= 0 {
		return def
	}
	return v
}

// wire reads from a connection and gives up when nothing comes for too long. The time
// between two calls of Read does not count: a reader that is held up by its own work
// does not take its peer for dead.
type wire struct {
	nc      net.Conn
	ctx     context.Context // ends the reading, see watch
	silence time.Duration   // 0: whatever deadline is set stays
	armed   time.Time
	pace    *pace        // nil: any will do
	count   atomic.Int64 // bytes read
}

// ErrSlow is the end of a connection whose peer took too long over one frame.
var ErrSlow = errors.New("transport: peer is too slow")

// A peer that has begun a frame must get on with it: behind a grace it must have sent so
// much a second, else what it has sent so far would be kept for it for hours.
const (
	paceGrace = 10 * time.Second
	paceLeast = 4 << 10 // bytes a second
)

// pace measures how fast a frame comes in, while it does. All methods of nil do nothing.
type pace struct {
	since time.Time // zero: no frame has begun
	bytes int64
	grace time.Duration
}

func (p *pace) start() {
	if p != nil {
		p.since, p.bytes = time.Now(), 0
	}
}

func (p *pace) stop() {
	if p != nil {
		p.since = time.Time{}
	}
}

// check counts n more bytes and says when that is too slow.
func (p *pace) check(n int) error {
	if p == nil || p.since.IsZero() {
		return nil
	}
	p.bytes += int64(n)
	late := time.Since(p.since) - p.grace
	if late > 0 && float64(p.bytes) < late.Seconds()*paceLeast {
		return fmt.Errorf("%w: %d bytes of a frame in %v", ErrSlow, p.bytes, (late + p.grace).Round(time.Millisecond))
	}
	return nil
}

func (w *wire) Read(p []byte) (int, error) {
	if w.silence > 0 {
		if now := time.Now(); now.Sub(w.armed) > w.silence/16 {
			if err := w.nc.SetReadDeadline(now.Add(w.silence)); err != nil {
				return 0, err
			}
			w.armed = now
		}
	}
	if err := w.ctx.Err(); err != nil { // after the deadline: see watch
		return 0, context.Cause(w.ctx)
	}
	n, err := w.nc.Read(p)
	w.count.Add(int64(n))
	if err != nil && err != io.EOF {
		err = w.explain(err)
	}
	if err == nil {
		err = w.pace.check(n)
	}
	return n, err
}

func (w *wire) explain(err error) error {
	switch {
	case w.ctx.Err() != nil:
		return context.Cause(w.ctx)
	case errors.Is(err, os.ErrDeadlineExceeded) && w.silence > 0:
		return fmt.Errorf("%w: nothing from %v for %v", ErrSilent, w.nc.RemoteAddr(), w.silence)
	}
	return err
}

// watch makes blocked reads and, with writes set, blocked writes of nc return when ctx
// ends. Call the result to stop watching.
func watch(ctx context.Context, nc net.Conn, writes bool) (stop func() bool) {
	return context.AfterFunc(ctx, func() {
		past := time.Unix(1, 0)
		_ = nc.SetReadDeadline(past)
		if writes {
			_ = nc.SetWriteDeadline(past)
		}
	})
}

// tcp returns the TCP connection below nc, or nil.
func tcp(nc net.Conn) *net.TCPConn {
	for {
		switch c := nc.(type) {
		case *net.TCPConn:
			return c
		case interface{ NetConn() net.Conn }: // *tls.Conn
			nc = c.NetConn()
		default:
			return nil
		}
	}
}

// userTimeouts is how many times DeadAfter the kernel tries: what a peer's kernel says has
// come waits on its slow line behind the batches that it sends, for seconds where a router
// queues much, and a batch would never get through. It is only needed while this side does
// not read, and nobody waits for it.
const userTimeouts = 4

// setUserTimeout bounds how long the kernel keeps trying to deliver what was written
// (tcp(7), TCP_USER_TIMEOUT). It must be set only where the peer always reads: a
// window that stays closed ends the connection too (net/ipv4/tcp_timer.c,
// tcp_probe_timer), and closed is what back-pressure looks like.
func setUserTimeout(nc net.Conn, d time.Duration) {
	t := tcp(nc)
	if t == nil {
		return
	}
	raw, err := t.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Control(func(fd uintptr) {
		// A kernel that does not know it leaves us with the heartbeats.
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(d.Milliseconds()))
	})
}

// abort closes nc without waiting for the peer, and without leaving the kernel to try
// to deliver what is still in its buffer.
func abort(nc net.Conn) {
	if t := tcp(nc); t != nil {
		_ = t.SetLinger(0)
	}
	closeNow(nc)
}

// closeNow closes nc without a word: the Close of a TLS connection would wait up to 5 s
// to say good-bye to a peer that does not read.
func closeNow(nc net.Conn) {
	if t := tcp(nc); t != nil {
		_ = t.Close()
		return
	}
	_ = nc.Close()
}

// linger closes nc so that what was written last, a BYE, has a chance to be read: a
// close with unread bytes would take it back.
func linger(nc net.Conn) {
	defer nc.Close()
	if err := nc.SetReadDeadline(time.Now().Add(300 * time.Millisecond)); err != nil {
		return
	}
	if t, ok := nc.(interface{ CloseWrite() error }); ok && t.CloseWrite() == nil {
		_, _ = io.CopyN(io.Discard, nc, 16<<20)
	}
}

// byeFor is what to tell the peer when a connection ends with err; ok is false when
// there is nothing to tell.
func byeFor(err error) (code ByeCode, text string, ok bool) {
	var bye *ByeError
	switch {
	case err == nil, err == io.EOF, errors.As(err, &bye):
		return 0, "", false
	case errors.Is(err, errShutdown):
		return ByeShutdown, "", true
	case errors.Is(err, ErrSlow):
		return ByeTimeout, err.Error(), true
	case errors.Is(err, errTooLarge):
		return ByeTooLarge, err.Error(), true
	case errors.Is(err, errHeaderVersion):
		return ByeVersion, err.Error(), true
	case errors.Is(err, ErrFrame):
		return ByeProtocol, err.Error(), true
	}
	return 0, "", false
}

// errShutdown ends the connections of a server that stops.
var errShutdown = errors.New("transport: shutting down")
