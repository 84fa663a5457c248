package transport

import (
	"bufio"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"time"
)

// sayBye tells the peer why, where there is something to tell, and closes. Only so many
// strangers at a time are told.
func (c *serverConn) sayBye(err error) {
	if !c.ready.Load() {
		defer c.s.telling.Add(-1)
		if c.s.telling.Add(1) > maxTelling {
			abort(c.nc)
			return
		}
	}
	code, text, ok := byeFor(err)
	var h *handshakeError
	switch {
	case errors.As(err, &h):
		code, text, ok = h.code, h.Error(), true
	case errors.Is(err, errEvicted):
		code, text, ok = ByeTooMany, err.Error(), true
	case errors.Is(err, errTLS) && tcp(c.nc) != nil: // TLS has said it
		linger(tcp(c.nc))
		return
	}
	if errors.Is(err, ErrSilent) { // a FIN would wait behind what the peer does not acknowledge; a reset may come through
		abort(c.nc)
		return
	}
	if !ok {
		closeNow(c.nc)
		return
	}
	_ = c.nc.SetWriteDeadline(time.Now().Add(time.Second))
	if _, err := c.nc.Write(appendBye(nil, code, text)); err != nil {
		abort(c.nc)
		return
	}
	linger(c.nc)
}

// handshakeError is a handshake that this side ends.
type handshakeError struct {
	code ByeCode
	err  error
}

func (e *handshakeError) Error() string { return e.err.Error() }
func (e *handshakeError) Unwrap() error { return e.err }

// handshake reads HELLO and answers WELCOME.
func (c *serverConn) handshake() error {
	if err := c.nc.SetDeadline(time.Now().Add(c.s.t.handshake)); err != nil {
		return err
	}
	if err := handshakeTLS(c.ctx, c.nc); err != nil {
		return err
	}
	// Not before: strangers that never get here are to cost little.
	c.frames = frameReader{r: bufio.NewReaderSize(&c.wire, serverReadBuffer), pace: c.wire.pace, lim: limits{meta: maxEarlyMeta}}
	m, err := c.readHello()
	if err != nil {
		return err
	}
	version := min(m.maxVersion, MaxVersion)
	if version < max(m.minVersion, MinVersion) {
		return &handshakeError{ByeVersion, fmt.Errorf("peer %s (%s) speaks protocol %d to %d, this node %d to %d",
			m.host, m.product, m.minVersion, m.maxVersion, MinVersion, MaxVersion)}
	}
	c.peer = Peer{
		Node: m.node, Host: m.host, Role: m.role, Product: m.product,
		Addr: c.nc.RemoteAddr().String(), Version: version, Names: peerNames(c.nc),
	}
	c.key = keyOf(c)
	id := c.s.o.Identity
	if m.node == id.Node {
		return &handshakeError{ByeLoop, fmt.Errorf("%s %s is this very node %v: a forward points back here", m.role, m.host, m.node)}
	}
	if err := c.s.admit(c.peer, c.nc); err != nil {
		c.s.deniedPeers.Add(1)
		return &handshakeError{ByeDenied, fmt.Errorf("%w: %s %s: %w", errDenied, m.role, m.host, err)}
	}
	if !c.keepPlace() { // before WELCOME: a peer that has it is not to be put out
		return errEvicted
	}
	w := hello{
		minVersion: version, maxVersion: version, node: id.Node, maxData: c.s.o.MaxData, window: c.s.o.Window,
		host: id.Host, role: id.Role, product: id.Product,
	}
	if _, err := c.nc.Write(w.append(nil, typeWelcome)); err != nil {
		return fmt.Errorf("write WELCOME: %w", err)
	}
	if err := c.nc.SetDeadline(time.Time{}); err != nil {
		return err
	}
	c.begin()
	return nil
}

// readHello reads the first frame.
func (c *serverConn) readHello() (hello, error) {
	head, meta, err := c.frames.next()
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return hello{}, &handshakeError{ByeTimeout, fmt.Errorf("no HELLO within %v: %w", c.s.t.handshake, err)}
	case err != nil:
		return hello{}, fmt.Errorf("read HELLO: %w", err)
	case head.kind != typeHello:
		return hello{}, fmt.Errorf("%w: %v before HELLO", ErrFrame, head.kind)
	}
	return parseHello(meta)
}

// keepPlace makes the connection one that gives way to no other; false if it had to.
func (c *serverConn) keepPlace() bool {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	return c.s.places.ready(c)
}

// begin makes the connection one of those that are served, when its handshake is done.
func (c *serverConn) begin() {
	// The client always reads, so its window never stays closed.
	setUserTimeout(c.nc, userTimeouts*c.s.t.deadAfter)
	c.wire.silence = c.s.t.deadAfter
	c.frames.lim = limits{meta: maxMeta, data: c.s.o.MaxData}
	if tc, ok := c.nc.(*tls.Conn); ok {
		if early, ok := tc.NetConn().(*earlyConn); ok { // else the listener's own TLS
			early.lift()
		}
	}
	c.since = time.Now()
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	c.ready.Store(true)
	select {
	case <-c.s.stopping: // Shutdown may have looked before ready was set
		c.drain()
	default:
	}
}

// admit refuses peers that are not wanted.
func (s *Server) admit(p Peer, nc net.Conn) error {
	if err := s.admission().Peer(p); err != nil { // nil admits everybody
		return err
	}
	if s.o.Admit != nil {
		return s.o.Admit(p, nc)
	}
	return nil
}

// keyOf is by what peers are told apart for what each may take: the name in the
// certificate, without one the address, or network, that connections are counted by.
func keyOf(c *serverConn) string {
	switch {
	case len(c.peer.Names) > 0:
		return "name " + c.peer.Names[0]
	case c.address != "":
		return c.address
	}
	return c.peer.Addr
}
