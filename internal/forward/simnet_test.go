package forward

import (
	"context"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// simNet is a network between processes in one Go process: connections like those of
// TCP, with latency, and with what breaks them: processes that die (reset), links that
// swallow everything in one direction, resets out of nowhere. What a cut link holds
// arrives when it is mended, as TCP sends again. It uses nothing but the clock, so that
// it runs in a synctest bubble.
type simNet struct {
	mu    sync.Mutex
	hosts map[string]*simListener // by host name
	cuts  map[[2]string]bool      // from, to
	conns map[*simConn]struct{}
	mend  chan struct{} // closed and made anew when a link is mended
	delay func() time.Duration
}

// simPort is where every host listens.
const simPort = ":7400"

// simBuffer is how much a connection holds in one direction.
const simBuffer = 64 << 10

func newSimNet(delay func() time.Duration) *simNet {
	return &simNet{
		hosts: map[string]*simListener{}, cuts: map[[2]string]bool{}, conns: map[*simConn]struct{}{},
		mend: make(chan struct{}), delay: delay,
	}
}

// listen makes a host take connections.
func (n *simNet) listen(host string) *simListener {
	n.mu.Lock()
	defer n.mu.Unlock()
	l := &simListener{n: n, host: host, conns: make(chan net.Conn, 16), closed: make(chan struct{})}
	n.hosts[host] = l
	return l
}

// dial connects from one host to another.
func (n *simNet) dial(ctx context.Context, from, to string) (net.Conn, error) {
	for {
		n.mu.Lock()
		if !n.cuts[[2]string{from, to}] && !n.cuts[[2]string{to, from}] {
			l := n.hosts[to]
			if l == nil {
				n.mu.Unlock()
				return nil, unix.ECONNREFUSED
			}
			a, b := n.pair(from, to)
			n.mu.Unlock()
			select {
			case l.conns <- b:
				return a, nil
			case <-l.closed:
				a.Close()
				return nil, unix.ECONNREFUSED
			case <-ctx.Done():
				a.Close()
				return nil, ctx.Err()
			}
		}
		mend := n.mend
		n.mu.Unlock()
		select {
		case <-mend:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// pair makes a connection. The caller holds mu.
func (n *simNet) pair(from, to string) (a, b *simConn) {
	out, back := newSimPipe(n, from, to), newSimPipe(n, to, from)
	a = &simConn{n: n, host: from, peer: to, in: back, out: out}
	b = &simConn{n: n, host: to, peer: from, in: out, out: back}
	n.conns[a], n.conns[b] = struct{}{}, struct{}{}
	return a, b
}

// kill ends every connection of a process that died, and its listener.
func (n *simNet) kill(host string) {
	n.mu.Lock()
	l := n.hosts[host]
	delete(n.hosts, host)
	for c := range n.conns {
		if c.host == host {
			n.abort(c)
		}
	}
	n.mu.Unlock()
	if l != nil {
		l.Close()
	}
}

// reset breaks every connection of a host, as a box between would: both ends see it.
func (n *simNet) reset(host string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for c := range n.conns {
		if c.host == host || c.peer == host {
			c.in.reset = true
			c.in.wakeAll()
			c.out.wakeAll()
		}
	}
}

// abort closes c; the other end sees a reset. The caller holds mu.
func (n *simNet) abort(c *simConn) {
	if c.closed {
		return
	}
	c.closed = true
	c.out.reset = true
	c.in.wakeAll()
	c.out.wakeAll()
	delete(n.conns, c)
}

// cut swallows everything from one host to another, or lets it pass again.
func (n *simNet) cut(from, to string, cut bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	k := [2]string{from, to}
	if n.cuts[k] == cut {
		return
	}
	if cut {
		n.cuts[k] = true
		return
	}
	delete(n.cuts, k)
	close(n.mend)
	n.mend = make(chan struct{})
	for c := range n.conns {
		c.in.wakeAll()
	}
}

// simPipe is one direction of a connection.
type simPipe struct {
	n            *simNet
	from, to     string
	segs         []simSegment
	size         int
	fin, reset   bool
	rwake, wwake chan struct{}
}

type simSegment struct {
	at time.Time // it arrives
	p  []byte
}

func newSimPipe(n *simNet, from, to string) *simPipe {
	return &simPipe{n: n, from: from, to: to, rwake: make(chan struct{}, 1), wwake: make(chan struct{}, 1)}
}

func (p *simPipe) wakeAll() {
	signal(p.rwake)
	signal(p.wwake)
}

// simConn is one end.
type simConn struct {
	n          *simNet
	host, peer string
	in, out    *simPipe
	closed     bool
	rdl, wdl   time.Time
}

// Read waits for what has arrived.
func (c *simConn) Read(b []byte) (int, error) {
	p := c.in
	for {
		c.n.mu.Lock()
		now := time.Now()
		cut := c.n.cuts[[2]string{p.from, p.to}]
		var until time.Time
		switch {
		case c.closed:
			c.n.mu.Unlock()
			return 0, net.ErrClosed
		case !c.rdl.IsZero() && !now.Before(c.rdl):
			c.n.mu.Unlock()
			return 0, os.ErrDeadlineExceeded
		case cut:
		case p.reset:
			c.n.mu.Unlock()
			return 0, unix.ECONNRESET
		case len(p.segs) > 0 && !p.segs[0].at.After(now):
			n := copy(b, p.segs[0].p)
			if p.segs[0].p = p.segs[0].p[n:]; len(p.segs[0].p) == 0 {
				p.segs = p.segs[1:]
			}
			p.size -= n
			signal(p.wwake)
			c.n.mu.Unlock()
			return n, nil
		case len(p.segs) > 0:
			until = p.segs[0].at
		case p.fin:
			c.n.mu.Unlock()
			return 0, io.EOF
		}
		if !c.rdl.IsZero() && (until.IsZero() || c.rdl.Before(until)) {
			until = c.rdl
		}
		c.n.mu.Unlock()
		wait(p.rwake, until)
	}
}

// Write puts b on the way.
func (c *simConn) Write(b []byte) (int, error) {
	p, written := c.out, 0
	for {
		c.n.mu.Lock()
		now := time.Now()
		cut := c.n.cuts[[2]string{p.to, p.from}] // a reset would come back that way
		switch {
		case c.closed:
			c.n.mu.Unlock()
			return written, net.ErrClosed
		case !cut && c.in.reset:
			c.n.mu.Unlock()
			return written, unix.ECONNRESET
		case !c.wdl.IsZero() && !now.Before(c.wdl):
			c.n.mu.Unlock()
			return written, os.ErrDeadlineExceeded
		case p.size < simBuffer:
			at := now.Add(c.n.delay())
			if k := len(p.segs); k > 0 && p.segs[k-1].at.After(at) {
				at = p.segs[k-1].at
			}
			p.segs = append(p.segs, simSegment{at, append([]byte(nil), b...)})
			p.size += len(b)
			signal(p.rwake)
			c.n.mu.Unlock()
			return len(b), nil
		}
		until := c.wdl
		c.n.mu.Unlock()
		wait(p.wwake, until)
	}
}

// wait waits for a token or a time; zero is never.
func wait(c <-chan struct{}, until time.Time) {
	if until.IsZero() {
		<-c
		return
	}
	timer := time.NewTimer(time.Until(until))
	defer timer.Stop()
	select {
	case <-c:
	case <-timer.C:
	}
}

// Close lets what was written arrive.
func (c *simConn) Close() error {
	c.n.mu.Lock()
	defer c.n.mu.Unlock()
	if c.closed {
		return net.ErrClosed
	}
	c.closed = true
	c.out.fin = true
	c.in.wakeAll()
	c.out.wakeAll()
	delete(c.n.conns, c)
	return nil
}

// SetDeadline, SetReadDeadline and SetWriteDeadline are those of net.Conn.
func (c *simConn) SetDeadline(t time.Time) error {
	_ = c.SetReadDeadline(t)
	return c.SetWriteDeadline(t)
}

// SetReadDeadline wakes a Read that waits.
func (c *simConn) SetReadDeadline(t time.Time) error {
	c.n.mu.Lock()
	defer c.n.mu.Unlock()
	c.rdl = t
	signal(c.in.rwake)
	return nil
}

// SetWriteDeadline wakes a Write that waits.
func (c *simConn) SetWriteDeadline(t time.Time) error {
	c.n.mu.Lock()
	defer c.n.mu.Unlock()
	c.wdl = t
	signal(c.out.wwake)
	return nil
}

// LocalAddr and RemoteAddr name the hosts.
func (c *simConn) LocalAddr() net.Addr  { return simAddr(c.host) }
func (c *simConn) RemoteAddr() net.Addr { return simAddr(c.peer) }

type simAddr string

func (simAddr) Network() string  { return "sim" }
func (a simAddr) String() string { return string(a) + simPort }

// simListener takes the connections to one host.
type simListener struct {
	n      *simNet
	host   string
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

// Accept waits for one.
func (l *simListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

// Close ends it.
func (l *simListener) Close() error {
	l.once.Do(func() {
		close(l.closed)
		l.n.mu.Lock()
		defer l.n.mu.Unlock()
		if l.n.hosts[l.host] == l {
			delete(l.n.hosts, l.host)
		}
	})
	return nil
}

// Addr names the host.
func (l *simListener) Addr() net.Addr { return simAddr(l.host) }
