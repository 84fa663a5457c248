package transport

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"
)

// maxTelling is how many connections are being told why they end at a time: a flood of
// them is cut off without a word.
const maxTelling = 32

// errEvicted ends a connection in its handshake whose place another one needs.
var errEvicted = errors.New("transport: there are too many connections, and this one did not finish its handshake")

// places are the connections of a Server. Those whose handshake is not done give way to
// newer ones, the oldest first, so that peers that only take up places cannot keep a
// good one out. The caller holds Server.mu.
type places struct {
	conns     map[*serverConn]struct{}
	early     *list.List // of *serverConn in their handshake, oldest first
	byAddress map[string]*addressPlaces
}

type addressPlaces struct {
	n     int
	early *list.List
}

func newPlaces() places {
	return places{conns: make(map[*serverConn]struct{}), early: list.New(), byAddress: make(map[string]*addressPlaces)}
}

// addressOf is what connections are counted by: the IPv4 address, the /64 of an IPv6
// address (what one customer has), "" for anything else, which is not counted.
func addressOf(nc net.Conn) string {
	ap, err := netip.ParseAddrPort(nc.RemoteAddr().String())
	if err != nil {
		return ""
	}
	ip := ap.Addr().Unmap().WithZone("")
	if ip.Is4() {
		return ip.String()
	}
	prefix, err := ip.Prefix(64)
	if err != nil {
		return ""
	}
	return prefix.String()
}

// room makes room for one more connection of address: it returns what is to give way for
// it, if any, and an error if nothing can.
func (p *places) room(address string, most, mostPerAddress int) (evict *serverConn, err error) {
	if a := p.byAddress[address]; a != nil && address != "" && a.n >= mostPerAddress {
		if a.early.Len() == 0 {
			return nil, fmt.Errorf("%d connections of %s at most", mostPerAddress, address)
		}
		return a.early.Front().Value.(*serverConn), nil
	}
	if len(p.conns) >= most {
		if p.early.Len() == 0 {
			return nil, fmt.Errorf("%d connections at most", most)
		}
		return p.early.Front().Value.(*serverConn), nil
	}
	return nil, nil
}

func (p *places) add(c *serverConn) {
	p.conns[c] = struct{}{}
	a := p.byAddress[c.address]
	if a == nil {
		a = &addressPlaces{early: list.New()}
		p.byAddress[c.address] = a
	}
	a.n++
	c.early, c.earlyHere = p.early.PushBack(c), a.early.PushBack(c)
}

// ready notes that the handshake of c is done. It returns false if c had to give way.
func (p *places) ready(c *serverConn) bool {
	if _, ok := p.conns[c]; !ok {
		return false
	}
	p.early.Remove(c.early)
	p.byAddress[c.address].early.Remove(c.earlyHere)
	c.early, c.earlyHere = nil, nil
	return true
}

func (p *places) remove(c *serverConn) {
	if _, ok := p.conns[c]; !ok {
		return
	}
	delete(p.conns, c)
	a := p.byAddress[c.address]
	if c.early != nil {
		p.early.Remove(c.early)
		a.early.Remove(c.earlyHere)
	}
	if a.n--; a.n == 0 {
		delete(p.byAddress, c.address)
	}
}

// add registers a new connection, or says why there is no place for it.
func (s *Server) add(ctx context.Context, nc net.Conn) (*serverConn, error) {
	address := addressOf(nc)
	s.mu.Lock()
	defer s.mu.Unlock()
	evict, err := s.places.room(address, s.o.MaxConns, s.o.MaxConnsPerAddress)
	if err != nil {
		s.turnedAway.Add(1)
		return nil, err
	}
	if evict != nil {
		s.evicted.Add(1)
		s.places.remove(evict)
		evict.cancel(errEvicted)
	}
	c := newServerConn(ctx, s, nc, address)
	s.places.add(c)
	return c, nil
}

func (s *Server) remove(c *serverConn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.places.remove(c)
	close(s.ended)
	s.ended = make(chan struct{})
}

// turnAway tells a peer that there is no place for it, unless a flood of them is being
// told.
func (s *Server) turnAway(nc net.Conn, why error) {
	if n := s.telling.Add(1); s.o.TLS == nil && n <= maxTelling { // with TLS it would not understand
		_ = nc.SetWriteDeadline(time.Now().Add(time.Second))
		_, _ = nc.Write(appendBye(nil, ByeTooMany, why.Error()))
		linger(nc)
	} else {
		abort(nc)
	}
	s.telling.Add(-1)
	if without, ok := s.limit.allow("turned away", 1); ok {
		s.log.Warn("turned a connection away: too many", "addr", nc.RemoteAddr().String(), "why", why.Error(), "more", without)
	}
}
