package plugin

import (
	"slices"
	"time"
)

// What is offered to the child, and taken.

// full reports whether no more units are to be taken in.
func (r *runner) full() bool { return r.bytes >= maxOfferedBytes || len(r.window) >= maxOffered }

// take takes a unit in.
func (r *runner) take(u *unit) {
	if u.seq != 0 {
		r.refs[u.seq] += u.holds
	}
	if u.bytes == 0 && len(u.releases) == 0 {
		r.settleBatch(u)
		return
	}
	if u.seq != 0 {
		r.refs[u.seq]++
	}
	r.places++
	r.window = append(r.window, &offered{unit: u, place: r.places})
	r.bytes += u.bytes
}

// settleBatch acks the batches of which u was the last part.
func (r *runner) settleBatch(u *unit) {
	if u.seq != 0 && r.refs[u.seq] == 0 {
		r.ack(u.seq)
	}
	for _, seq := range u.releases {
		r.deref(seq)
	}
}

// done notes that the plugin has taken a unit for good.
func (r *runner) done(u *unit) {
	r.count.taken.add(u)
	if u.seq != 0 {
		r.deref(u.seq)
	}
	for _, seq := range u.releases {
		r.deref(seq)
	}
}

func (r *runner) deref(seq uint64) {
	if r.refs[seq]--; r.refs[seq] == 0 {
		r.ack(seq)
	}
}

// ack tells the queue.
func (r *runner) ack(seq uint64) {
	delete(r.refs, seq)
	r.cur.Ack(seq)
	_ = fpAcked.Inject() // a kill is all that can be here
	signal(r.more)
}

// hand gives the child the next unit, if it can take one.
func (r *runner) hand() {
	if r.child == nil || r.writing || r.ending || r.handed == len(r.window) {
		return
	}
	o := r.window[r.handed]
	r.handed++
	r.writing, o.since = true, time.Now()
	r.child.give(o.unit)
	if r.pollAt.IsZero() {
		r.pollAt = o.since.Add(lastPoll)
	}
	_ = fpGiven.Inject()
}

// wrote notes that all of a unit is in the pipe.
func (r *runner) wrote(u *unit, now time.Time) {
	r.writing = false
	i := slices.IndexFunc(r.window, func(o *offered) bool { return o.unit == u })
	if i < 0 {
		return
	}
	o := r.window[i]
	o.put, o.end = true, r.child.put.Load()
	r.count.given.add(u)
	if r.p.Ack == AckPipe {
		r.poll, r.pollAt = firstPoll, now
	} else {
		r.dropTaken(now)
	}
	if r.ending {
		r.child.endInput()
	}
}

// acked notes "ok n".
func (r *runner) acked(n uint64, now time.Time) {
	i := slices.IndexFunc(r.window[:r.handed], func(o *offered) bool { return o.seq == n && !o.ok })
	if i < 0 {
		r.count.badAcks.Add(1)
		r.complain(now, "a plugin acknowledged a batch that it was not offered, or twice", "batch", n)
		return
	}
	r.window[i].ok = true
	r.dropTaken(now)
}

// dropTaken lets the units go that are written and acknowledged.
func (r *runner) dropTaken(now time.Time) {
	kept := r.window[:0]
	for _, o := range r.window {
		if !o.ok || !o.put {
			kept = append(kept, o)
			continue
		}
		r.handed-- // none is acknowledged that was not handed over
		r.taken(o, now)
	}
	clear(r.window[len(kept):])
	r.window = kept
}

// taken notes that the plugin has taken a unit.
func (r *runner) taken(o *offered, now time.Time) {
	_ = fpTaken.Inject()
	r.bytes -= o.bytes
	r.progress, r.moved = now, true
	if r.out.file == nil || r.p.Ack != AckLine {
		r.done(o.unit)
		return
	}
	r.syncLater(o, now)
}

// pollInput looks whether the child still reads, and with AckPipe how much it has read.
func (r *runner) pollInput(now time.Time) {
	r.pollAt = time.Time{}
	if r.child == nil {
		return
	}
	if !r.ending && r.handed > 0 && r.child.deaf() {
		r.deaf(now)
	}
	if r.p.Ack == AckLine {
		if r.handed > 0 {
			r.pollAt = now.Add(lookEvery)
		}
		return
	}
	n := r.child.taken()
	if n > r.read {
		r.read, r.progress = n, now
	}
	if r.readTo(n, now) {
		r.poll = firstPoll
	}
	if r.handed > 0 {
		r.pollAt = now.Add(r.poll)
		r.poll = min(2*r.poll, lastPoll)
	}
}

// readTo lets the units go that end at or before n of the child's input.
func (r *runner) readTo(n int64, now time.Time) (moved bool) {
	k := 0
	for ; k < len(r.window) && r.window[k].put && r.window[k].end <= n; k++ {
		r.taken(r.window[k], now)
	}
	if k == 0 {
		return false
	}
	r.window = slices.Delete(r.window, 0, k)
	r.handed -= k
	return true
}
