package transport

import (
	"fmt"
	"time"

	"ftfuse/internal/batch"
)

// post changes the outbox and wakes the writer.
func (c *serverConn) post(change func(*outbox)) {
	c.mu.Lock()
	change(&c.out)
	c.mu.Unlock()
	c.wakeWriter()
}

func (c *serverConn) wakeWriter() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// ack tells the peer that id is on this node's disk.
func (c *serverConn) ack(id batch.ID) {
	c.post(func(o *outbox) { addTo(o.acks, id.Lane, batch.Range{First: id.N, Last: id.N}) })
}

// refuse logs and tells the peer that it keeps id.
func (c *serverConn) refuse(id batch.ID, v Verdict) error {
	// A peer may be made to send any number of them.
	if without, ok := c.s.limit.allow(v.Code.String()+" "+c.address, 1); ok {
		c.s.log.Warn("refused a batch", "peer", c.peer.String(), "names", c.peer.Names, "batch", id.String(),
			"code", v.Code.String(), "reason", v.Text, "more", without)
	}
	return c.keep(id, v)
}

// keep tells the peer that it keeps id. It fails when too much waits for a peer that
// does not read.
func (c *serverConn) keep(id batch.ID, v Verdict) error {
	c.refusals.Add(1)
	var waiting int
	c.post(func(o *outbox) {
		o.frames = appendRefuse(o.frames, id, v)
		waiting = len(o.frames)
	})
	if waiting > maxRefusals {
		return fmt.Errorf("%w: %d bytes of refusals wait for a peer that does not read them", ErrFrame, waiting)
	}
	return nil
}

// final tells the peer what is final, where it is interested.
func (c *serverConn) final(lane batch.Lane, ranges ...batch.Range) {
	if !c.hears(lane) {
		return
	}
	c.post(func(o *outbox) {
		for _, r := range ranges {
			addTo(o.finals, lane, r)
		}
	})
}

// skip tells the peer what was dropped, where it is interested.
func (c *serverConn) skip(lane batch.Lane, skips []Skip) {
	if c.hears(lane) {
		c.post(func(o *outbox) { o.skips.Add(lane, skips...) })
	}
}

// drain asks the peer to send no more.
func (c *serverConn) drain() { c.post(func(o *outbox) { o.drain = true }) }

func addTo(sets map[batch.Lane]*batch.Ranges, lane batch.Lane, r batch.Range) {
	set := sets[lane]
	if set == nil {
		set = new(batch.Ranges)
		sets[lane] = set
	}
	if r.First == r.Last {
		set.Add(r.First)
	} else {
		set.AddRange(r)
	}
}

// write sends what is in the outbox, at once when the connection was at rest and every
// millisecond when it is busy, and a PING when nothing else was sent for a heartbeat,
// whatever the reader and the Handler are doing. It ends with the connection's context.
func (c *serverConn) write() {
	heartbeat := time.NewTimer(c.s.t.heartbeat)
	defer heartbeat.Stop()
	pause := time.NewTimer(0)
	defer pause.Stop()
	<-pause.C
	var buf []byte
	var last time.Time
	drained := false
	for {
		buf = buf[:0]
		select {
		case <-c.ctx.Done():
			return
		case <-heartbeat.C:
			heartbeat.Reset(c.s.t.heartbeat)
			buf = appendToken(buf, typePing, uint64(time.Since(c.since)))
		case <-c.wake:
			if rest := ackEvery - time.Since(last); rest > 0 {
				pause.Reset(rest)
				select {
				case <-pause.C:
				case <-c.ctx.Done():
					return
				}
			}
		}
		buf = c.takeOutbox(buf, &drained)
		if len(buf) == 0 {
			continue
		}
		if err := c.nc.SetWriteDeadline(time.Now().Add(c.s.t.deadAfter)); err != nil {
			c.cancel(fmt.Errorf("write to peer: %w", err))
			return
		}
		if _, err := c.nc.Write(buf); err != nil {
			c.cancel(fmt.Errorf("write to peer: %w", err))
			return
		}
		last = time.Now()
		heartbeat.Reset(c.s.t.heartbeat) // what was written is as good as a PING
		if cap(buf) > 64<<10 {
			buf = nil
		}
	}
}

// takeOutbox empties the outbox into frames.
func (c *serverConn) takeOutbox(buf []byte, drained *bool) []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	o := &c.out
	buf = appendSets(buf, typeAck, o.acks)
	buf = append(buf, o.frames...)
	if cap(o.frames) > 64<<10 {
		o.frames = nil
	}
	o.frames = o.frames[:0]
	buf = appendSets(buf, typeFinal, o.finals)
	for _, l := range o.skips.take() {
		buf = appendSkips(buf, l.Lane, l.Skips)
	}
	if o.havePong {
		buf = appendToken(buf, typePong, o.pong)
		o.havePong = false
	}
	if o.drain && !*drained {
		buf = appendEmpty(buf, typeDrain)
		*drained = true
	}
	return buf
}
