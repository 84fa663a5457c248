package transport

import (
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"ftfuse/internal/batch"
	"ftfuse/internal/dirty"
)

// batch receives one batch and hands it over, or refuses it.
func (c *serverConn) batch(h frameHeader, meta []byte) error {
	b, err := parseBatch(meta)
	if err != nil {
		return err
	}
	c.pending.Add(1)
	crc, room, err := c.receive(&b, int(h.data))
	if err != nil {
		c.pending.Add(-1)
		return err
	}
	settled := func() {
		c.pending.Add(-1)
		room.give()
	}
	c.batches.Add(1)
	c.bytes.Add(uint64(h.data))
	c.interested(b.ID.Lane, 0)
	c.mu.Lock()
	c.lastBatch = time.Now()
	c.mu.Unlock()
	if c.held.Load() {
		settled()
		return c.keep(b.ID, Verdict{Busy, "comes behind a batch that was not taken"})
	}
	if v := c.verify(&b, crc); v.Code != Taken {
		settled()
		c.hold(v.Code)
		return c.refuse(b.ID, v)
	}
	c.s.claims(b.ID.Lane, b.Host)
	c.blocked.Store(true)
	defer c.blocked.Store(false)
	var once atomic.Bool
	id := b.ID
	c.s.h.Batch(c.ctx, c.peer, b, func(v Verdict) {
		if once.Swap(true) {
			return
		}
		settled()
		c.hold(v.Code)
		if v.Code == Taken || v.Code == Duplicate {
			c.ack(id)
		} else if err := c.refuse(id, v); err != nil {
			c.cancel(err)
		}
	})
	return nil
}

// hold takes nothing more from a connection on which a batch was refused that its peer
// sends again, on its next connection: what is behind it would be written before it.
func (c *serverConn) hold(code Code) {
	if code == Busy || code == BadCRC {
		c.held.Store(true)
	}
}

// firstPiece is how much of a batch is read before there is room for it in MaxPending: a
// peer that announces megabytes and sends nothing holds up nobody.
const firstPiece = 16 << 10

// receive reads the n bytes of b's data and returns their CRC and the room that they take.
func (c *serverConn) receive(b *batch.Sealed, n int) (crc uint32, room *share, err error) {
	first := dirty.Make(min(n, firstPiece))[:min(n, firstPiece)]
	if crc, err = c.frames.fill(first, 0); err != nil {
		return 0, nil, err
	}
	c.blocked.Store(true)
	room, err = c.s.pending.take(c.ctx, c, int64(n)+batchOverhead)
	c.blocked.Store(false)
	if err != nil {
		return 0, nil, err
	}
	if b.Data = first; n == len(first) {
		return crc, room, nil
	}
	c.frames.pace.start() // the wait was ours
	room.comes()
	b.Data = dirty.Make(n)[:n:n]
	if crc, err = c.frames.fill(b.Data[copy(b.Data, first):], crc); err != nil {
		room.give()
		return 0, nil, err
	}
	room.came()
	return crc, room, nil
}

// verify is what a batch must pass before the Handler sees it; crc is that of its data as
// they came.
func (c *serverConn) verify(b *batch.Sealed, crc uint32) Verdict {
	if slices.Contains(b.Via, c.s.o.Identity.Node) {
		return Verdict{Loop, fmt.Sprintf("came through %s before", c.s.o.Identity.Host)}
	}
	if n := len(b.Via); n == 0 || b.Via[n-1] != c.peer.Node {
		return c.deny(fmt.Sprintf("does not name its sender, node %v, as the last that it came through", c.peer.Node))
	}
	if !c.may.speak(c.s.admission(), c.peer, b.Host) {
		return c.deny(fmt.Sprintf("was sealed on host %q, for which a peer with a certificate of %s may not speak; list it under allow if it may", b.Host, strings.Join(c.peer.Names, ", ")))
	}
	if crc != b.CRC {
		return Verdict{BadCRC, fmt.Sprintf("CRC-32C of %d bytes is %08x, want %08x", len(b.Data), crc, b.CRC)}
	}
	if err := c.open(b.ID.Lane, b.Host); err != nil {
		c.denied.Add(1)
		c.s.deniedLanes.Add(1)
		return Verdict{Denied, err.Error()}
	}
	return Verdict{}
}

// deny counts a batch that the peer must not send.
func (c *serverConn) deny(why string) Verdict {
	c.denied.Add(1)
	c.s.deniedBatches.Add(1)
	return Verdict{Denied, why}
}

// mayCache remembers for which hosts a peer may speak. One goroutine uses it.
type mayCache struct {
	a     *Admission
	hosts map[string]bool
}

func (m *mayCache) speak(a *Admission, p Peer, host string) bool {
	if a == nil {
		return true
	}
	if m.a != a || len(m.hosts) > 512 {
		m.a, m.hosts = a, make(map[string]bool)
	}
	ok, known := m.hosts[host]
	if !known {
		ok = a.May(p, host)
		m.hosts[host] = ok
	}
	return ok
}

func (s *Server) admission() *Admission {
	if s.o.Admission == nil {
		return nil
	}
	return s.o.Admission()
}
