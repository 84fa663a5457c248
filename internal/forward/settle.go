package forward

import (
	"ftfuse/internal/batch"
	"ftfuse/transport"
)

// acked settles a batch that d has on its disk.
func (l *line) acked(d *destination, seq uint64) {
	l.mu.Lock()
	now := l.now()
	l.on(d, now, evAcked)
	e := l.entries[seq]
	if e == nil || e.stage == unfinal {
		l.mu.Unlock()
		return
	}
	l.count.acked = plus(l.count.acked, e)
	l.withdraw(e, d)
	lane, n := e.lane, batch.Range{First: e.n, Last: e.n}
	if l.f.o.KeepFinal {
		l.ahead--
		l.count.unfinal = plus(l.count.unfinal, e)
		e.stage, e.at, e.node = unfinal, d, d.node
		l.cursor.Release(seq)
		delete(l.parked, e)
		l.unfinal.push(e, now, l.f.o.FinalTimeout)
		signal(l.room)
		signal(l.kick)
	} else {
		l.cursor.Ack(seq)
		l.drop(e)
		if _, held := l.held[seq]; held {
			l.held[seq] = true
		}
	}
	claimed := l.f.finals.acked(l.index, batch.ID{Lane: lane.lane, N: n.First})
	l.mu.Unlock()
	if claimed { // the last node had said so before
		l.final(lane.lane, []batch.Range{n}, false)
	}
}

// withdraw takes e away from whoever else has it or may get it: by has it on its disk.
func (l *line) withdraw(e *entry, by *destination) {
	if e.stage == fetching || e.stage == given {
		if e.at == by {
			l.out(e)
		} else {
			if e.stage == given {
				e.at.client.Recall(e.seq)
				e.at.client.Forget(e.seq)
			}
			l.out(e)
		}
	}
	for _, d := range e.left {
		if d != by {
			d.client.Forget(e.seq)
		}
	}
	e.left = nil
}

// final settles what the last node has. It names ids, not contents: only an ack says that
// the next node's content is ours. So what this line has and nobody acked stays, and is
// not reported upstream, until it is acked; sure is for what needs no such proof.
func (l *line) final(lane batch.Lane, ranges []batch.Range, sure bool) {
	l.mu.Lock()
	open := ranges
	if !sure {
		open = l.proven(lane, ranges)
	}
	everywhere, hops := l.f.finals.add(l.index, lane, ranges, open)
	l.count.final += hops
	if le := l.lanes[lane]; le != nil {
		for _, r := range open {
			eachIn(le.byN, r, func(e *entry) {
				if e.stage == unfinal {
					l.cursor.Ack(e.seq)
					l.drop(e)
				}
			})
		}
	}
	olds := l.f.relabels.final(l.index, lane, open)
	l.mu.Unlock()
	l.f.final(lane, everywhere)
	for id, old := range olds {
		l.final(old.Lane, []batch.Range{{First: old.N, Last: old.N}}, true)
		l.f.relabels.done(l.index, id)
	}
}

// proven returns what of ranges may be taken for final: all but what this line has and
// nobody acked, and, as long as the line does not know what is in the queue, only what
// was acked.
func (l *line) proven(lane batch.Lane, ranges []batch.Range) []batch.Range {
	var acked, not batch.Ranges
	if le := l.lanes[lane]; le != nil {
		for _, r := range ranges {
			eachIn(le.byN, r, func(e *entry) {
				if e.stage == unfinal {
					acked.Add(e.n)
				} else {
					not.Add(e.n)
				}
			})
		}
	}
	l.f.relabels.withhold(l.index, lane, &not)
	if !l.known {
		return subtract(acked.All(), not.All())
	}
	if not.Len() == 0 {
		return ranges
	}
	return subtract(ranges, not.All())
}

// abreast reports whether everything in the queue is known here.
func (l *line) abreast() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.known
}

// fallBehind notes that there is more in the queue than is known here: up to what is
// committed now. (What comes later is only for a moment unknown, and is sent whatever is
// said of its id meanwhile. A queue that is never empty would else never be known.)
func (l *line) fallBehind() {
	committed := l.f.store.Stats().Committed
	l.mu.Lock()
	defer l.mu.Unlock()
	l.known, l.upTo = false, committed
}

// reached reports whether the line knows what it did not, with seq.
func (l *line) reached(seq uint64) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return !l.known && seq >= l.upTo
}

// catchUp notes that everything in the queue is known here, and looks again at what was
// said to be final before.
func (l *line) catchUp() {
	l.mu.Lock()
	l.known = true
	l.mu.Unlock()
	for lane, ranges := range l.f.finals.claims(l.index) {
		l.final(lane, ranges, false)
	}
}

// eachIn calls fn for each entry in r. fn may delete it.
func eachIn(all map[uint64]*entry, r batch.Range, fn func(*entry)) {
	if r.Last-r.First >= uint64(len(all)) {
		for n, e := range all {
			if n >= r.First && n <= r.Last {
				e.each(fn)
			}
		}
		return
	}
	for n := r.First; ; n++ {
		if e := all[n]; e != nil {
			e.each(fn)
		}
		if n == r.Last {
			return
		}
	}
}

// each calls fn for e and its twins. fn may remove them.
func (e *entry) each(fn func(*entry)) {
	for e != nil {
		next := e.twin
		fn(e)
		e = next
	}
}

// loggedRefusals is how many refusals on one connection are logged; Stats counts all.
const loggedRefusals = 32

// refused finds another way for a batch that d does not take.
func (l *line) refused(d *destination, seq uint64, v transport.Verdict) {
	l.mu.Lock()
	e := l.entries[seq]
	if e == nil || e.stage != given || e.at != d {
		l.mu.Unlock()
		return
	}
	now := l.now()
	l.out(e)
	if v.Code == transport.Recalled {
		l.place(e)
		l.mu.Unlock()
		return
	}
	l.on(d, now, evAcked)
	if e.refused == nil {
		e.refused = map[*destination]refusal{}
	}
	e.refused[d] = refusal{v.Code, d.node, d.conns}
	id := batch.ID{Lane: e.lane.lane, N: e.n}
	if v.Code == transport.Conflict { // no other one is asked: an id never names two contents
		l.park(e)
	} else {
		l.place(e)
	}
	held := e.stage == parked
	d.refusals++
	many := d.refusals > loggedRefusals
	l.mu.Unlock()
	if !many {
		l.logRefused(d, id, v, held)
	}
	if v.Code == transport.Conflict {
		l.f.conflict(seq, id)
	}
}

func (l *line) logRefused(d *destination, id batch.ID, v transport.Verdict, held bool) {
	then := "another destination is asked"
	if held {
		then = "it stays queued and is offered again after a reconnect"
	}
	if v.Code == transport.Loop {
		l.log.Error("a batch met a node that it came through before; it is not offered to that node again: check the forwards of both hosts",
			"host", l.f.o.Identity.Host, "peer", d.host, "address", d.address, "batch", id.String(), "text", v.Text, "then", then)
		return
	}
	l.log.Error("a next node refused a batch", "address", d.address, "peer", d.host, "batch", id.String(),
		"code", v.Code.String(), "text", v.Text, "then", then)
}

// unpark offers a parked batch to whoever has not refused it. The caller holds mu.
func (l *line) unpark(e *entry) {
	if _, held := l.held[e.seq]; held {
		return
	}
	if !e.conflicts() {
		l.place(e)
	}
}

// skipped hears that a node behind d dropped batches of lane. What d had been given of
// them, and was kept for the final ack, is settled: that will not come. What was lost to
// damage is no decision, and is sent again.
func (l *line) skipped(d *destination, lane batch.Lane, skips []transport.Skip) {
	l.mu.Lock()
	skips = l.sendAgain(d, lane, skips)
	if le := l.lanes[lane]; le != nil && l.f.o.KeepFinal {
		for i := range skips {
			for _, r := range skips[i].Ranges.All() {
				eachIn(le.byN, r, func(e *entry) {
					if e.stage == unfinal && e.at == d {
						l.cursor.Ack(e.seq)
						l.drop(e)
					}
				})
			}
		}
	}
	l.mu.Unlock()
	l.f.heard(lane, skips)
}
