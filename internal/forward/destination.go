package forward

import (
	"context"
	"slices"
	"time"

	"ftfuse/internal/batch"
	"ftfuse/queue"
	"ftfuse/transport"
)

// refusal is why a destination does not take a batch; see line.refusedBy.
type refusal struct {
	code transport.Code
	node batch.Node
	conn uint64 // the connection it was said on
}

// destination is one destination of a line: the transport.Source of its client.
type destination struct {
	l          *line
	i          int    // in l.dests
	address    string // that is connected to
	configured string
	client     client
	ended      chan struct{} // closed by end
	end        func()        // ends the client: it is not configured any more

	// Guarded by l.mu.
	ready     flowHeap
	strays    []*entry // by seq
	out       int      // fetching and given
	over      bool     // its client has ended: nothing comes from it any more
	connected bool
	conns     uint64
	refusals  uint64     // on this connection
	node      batch.Node // of the newest connection
	host      string
	since     time.Time // of its state
	wake      chan struct{}
}

// Next returns the oldest batch that waits for this destination; see transport.Source.
func (d *destination) Next(ctx context.Context) (uint64, batch.Sealed, error) {
	for {
		e, turn, err := d.take(ctx)
		if err != nil {
			return 0, batch.Sealed{}, err
		}
		var it queue.Item
		stored, ok := false, false
		if stored, err = d.l.mark.cover(ctx, e.seq); err == nil {
			it, ok, err = d.l.cursor.Fetch(ctx, e.seq)
		}
		if b, ok, err := d.fetched(e, turn, it.Batch, ok, err); ok || err != nil {
			if ok && !stored { // a restart would not know that it may have been sent
				b.Flags |= batch.FlagResent
			}
			return e.seq, b, err
		}
	}
}

// take waits for a batch and makes it fetching.
func (d *destination) take(ctx context.Context) (*entry, uint32, error) {
	for {
		if err := ctx.Err(); err != nil {
			return nil, 0, err
		}
		d.l.mu.Lock()
		e := d.next()
		if e != nil {
			turn := e.turn
			d.l.mu.Unlock()
			return e, turn, nil
		}
		d.l.mu.Unlock()
		select {
		case <-d.wake:
		case <-ctx.Done():
		}
	}
}

// next takes the oldest batch out of the flows and strays of d. The caller holds mu.
func (d *destination) next() *entry {
	for !d.l.paused {
		var e *entry
		if len(d.ready) > 0 {
			fl := d.ready[0]
			if e = fl.first(); e == nil {
				d.ready.remove(fl)
				continue
			}
		}
		if s := d.stray(); s != nil && (e == nil || s.seq < e.seq) {
			d.strays = d.strays[1:]
			e = s
		} else if e != nil {
			fl := e.flow
			fl.waiting[0] = nil
			fl.waiting = fl.waiting[1:]
			fl.out++
			e.counted = true
		}
		if e != nil && e.twinAway() {
			if e.counted {
				e.counted = false
				e.flow.out--
				d.ready.update(e.flow)
			}
			d.l.park(e)
			continue
		}
		if e != nil {
			e.stage, e.at = fetching, d
			e.turn++
			d.out++
			d.l.peers.health[d.i].owes(d.l.now(), true)
			if e.counted {
				d.ready.update(e.flow)
			}
			signal(d.l.kick)
		}
		return e
	}
	return nil
}

// twinAway reports whether another copy of the same id is on its way: an answer names an
// id, and must be that to one copy.
func (e *entry) twinAway() bool {
	for t := e.lane.byN[e.n]; t != nil; t = t.twin {
		if t != e && (t.stage == fetching || t.stage == given) {
			return true
		}
	}
	return false
}

// stray returns the oldest stray that still waits, or nil.
func (d *destination) stray() *entry {
	for len(d.strays) > 0 {
		if s := d.strays[0]; s.stage == waits && s.at == d {
			return s
		}
		d.strays = d.strays[1:]
	}
	return nil
}

func (d *destination) addStray(e *entry) {
	i, found := slices.BinarySearchFunc(d.strays, e, func(a, b *entry) int {
		switch {
		case a.seq < b.seq:
			return -1
		case a.seq > b.seq:
			return 1
		}
		return 0
	})
	if !found {
		d.strays = slices.Insert(d.strays, i, e)
	}
}

// fetched ends what take began. ok is false where e is another's or nobody's meanwhile.
func (d *destination) fetched(e *entry, turn uint32, b batch.Sealed, found bool, err error) (batch.Sealed, bool, error) {
	l := d.l
	l.mu.Lock()
	defer l.mu.Unlock()
	if e.stage != fetching || e.at != d || e.turn != turn {
		return b, false, err
	}
	if err != nil || !found {
		l.out(e)
		if found = err == nil; found { // dropped, expired, relabelled: no longer there
			l.drop(e)
		} else {
			l.place(e)
		}
		return b, false, err
	}
	e.stage = given
	if e.resent {
		b.Flags |= batch.FlagResent
	}
	return b, true, nil
}

// Acked settles a batch: this destination has it on its disk.
func (d *destination) Acked(seq uint64) { d.l.acked(d, seq) }

// Final settles what the last node has.
func (d *destination) Final(lane batch.Lane, r []batch.Range) { d.l.final(lane, r, false) }

// Refused finds another way for a batch.
func (d *destination) Refused(seq uint64, v transport.Verdict) { d.l.refused(d, seq, v) }

// Horizon lists what is final of every lane that goes this way.
func (d *destination) Horizon() []transport.LaneHorizon { return d.l.f.finals.horizons(d.l.index) }

// Skipped hears what was dropped further down.
func (d *destination) Skipped(lane batch.Lane, s []transport.Skip) { d.l.skipped(d, lane, s) }

// Skips lists what was dropped before it came here, or here.
func (d *destination) Skips() []transport.LaneSkips { return d.l.f.skips.All() }

var _ transport.Source = (*destination)(nil)

// changed takes in what the client says of its connection.
func (d *destination) changed(s transport.StateChange) {
	l := d.l
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.now()
	switch s.State {
	case transport.StateConnected:
		d.connect(s.Peer)
		l.on(d, now, evConnected)
	case transport.StateDraining:
		l.on(d, now, evDrain)
	case transport.StateWaiting:
		l.on(d, now, d.lost(s.Why))
	}
}

// moved takes in that bytes of a batch came there: a large one on a slow line takes long to
// be answered.
func (d *destination) moved() {
	d.l.mu.Lock()
	defer d.l.mu.Unlock()
	d.l.on(d, d.l.now(), evMoved)
}

// connect notes a connection: what this destination refused may be offered again, and
// what another node had at its place, and is not final, nobody has.
func (d *destination) connect(p transport.Peer) {
	l := d.l
	another := d.node != (batch.Node{}) && d.node != p.Node
	d.connected, d.node, d.host = true, p.Node, p.Host
	d.conns++
	d.refusals = 0
	for e := range l.parked {
		l.unpark(e)
	}
	if another {
		l.log.Warn("another node answers at a destination: what its predecessor had and is not final is sent again",
			"address", d.address, "peer", p.String(), "node", p.Node.String())
		l.resendFrom(d)
	}
}

// lost is the event of the end of a connection, or of a try.
func (d *destination) lost(why transport.Why) event {
	was := d.connected
	d.connected = false
	switch why {
	case transport.WhyReset, transport.WhyBusy, transport.WhyProtocol, transport.WhyOther:
		if was {
			return evLost
		}
	}
	return evGone
}
