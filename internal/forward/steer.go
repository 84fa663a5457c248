package forward

import (
	"context"
	"slices"
	"time"

	"ftfuse/internal/batch"
	"ftfuse/transport"
)

// Times of moving what stays behind, in a group of mode any.
const (
	behindAfter = 10 * time.Second // waiting for a destination while another has nothing to do
	behindEvery = time.Second      // one flow a destination
)

// on takes in an event of a destination and steers by what it changed. The caller holds
// mu, as for all of this file.
func (l *line) on(d *destination, now time.Duration, ev event) {
	l.peers.health[d.i].on(now, ev)
	l.steer(now)
	signal(l.kick)
}

// clock steers when the time for it has come, until ctx ends.
func (l *line) clock(ctx context.Context) error {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		l.mu.Lock()
		now := l.now()
		l.steer(now)
		l.rebalance(now)
		l.resendDue(now)
		l.resendLost()
		l.sweep(now)
		at, ok := l.deadline()
		l.mu.Unlock()
		wait := time.Hour
		if ok {
			wait = max(at-now, 0)
		}
		timer.Reset(wait)
		select {
		case <-timer.C:
		case <-l.kick:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// deadline is when clock has something to do next.
func (l *line) deadline() (at time.Duration, ok bool) {
	at, ok = l.peers.deadline()
	sooner := func(t time.Duration) {
		if !ok || t < at {
			at, ok = t, true
		}
	}
	if l.balances() && l.ahead > 0 {
		sooner(l.behind + behindEvery)
	}
	if t, some := l.unfinal.due(); some {
		sooner(t)
	}
	if len(l.flows) > 0 {
		sooner(l.swept + idleFlows)
	}
	return at, ok
}

// steer moves the flows whose home is no longer the right one, if any destination
// changed.
func (l *line) steer(now time.Duration) {
	l.peers.tick(now)
	if !l.changed() {
		return
	}
	l.steerAll(now)
}

// seen is what flows are steered by. A destination that is not configured any more can
// still fail, with what it was given before.
type seen struct {
	state   state
	removed bool
}

// changed reports whether a destination is in another state than when the flows were
// last steered.
func (l *line) changed() bool {
	same := len(l.seen) == len(l.dests)
	for i := range l.dests {
		s := seen{l.peers.health[i].state, l.peers.removed[i]}
		if i == len(l.seen) {
			l.seen = append(l.seen, s)
		}
		if l.seen[i] != s {
			same, l.seen[i] = false, s
			l.dests[i].since = time.Now()
		}
	}
	return !same
}

func (l *line) steerAll(now time.Duration) {
	failing := false
	for _, fl := range l.flows {
		failing = l.move(fl, l.target(fl, now)) || failing
	}
	l.recall(failing)
	for e := range l.parked {
		l.unpark(e)
	}
}

// target is where a flow should be.
func (l *line) target(fl *flow, now time.Duration) int {
	to := l.peers.pick(fl.key, fl.home, nil)
	if fl.pin != nowhere && now < fl.pinUntil && to != nowhere && l.peers.rank(fl.pin) == l.peers.rank(to) {
		return fl.pin
	}
	return to
}

// move sends a flow to another destination, or makes it wait until it can go. It
// reports whether what it has at its home is to be taken back.
func (l *line) move(fl *flow, to int) (failing bool) {
	switch l.peers.moveFrom(fl.home, to) {
	case moveNone:
		fl.next = nowhere
		l.update(fl)
	case moveFailover:
		l.count.failovers++
		fl.failing = true
		l.settle(fl, to)
		return true
	case moveOrderly:
		fl.next = to
		l.arrive(fl)
		l.update(fl)
	}
	return false
}

// arrive ends the move of a flow whose home has answered all.
func (l *line) arrive(fl *flow) {
	if fl.next == nowhere || fl.out > 0 {
		return
	}
	if fl.home != nowhere {
		l.count.failbacks++
	}
	l.settle(fl, fl.next)
}

// settle makes a flow at home at to.
func (l *line) settle(fl *flow, to int) {
	if fl.at >= 0 {
		l.dests[fl.home].ready.remove(fl)
	}
	fl.home, fl.next = to, nowhere
	l.update(fl)
}

// recall takes back what flows have at a home that they left because it failed, and
// strays at a destination that failed, where they can go elsewhere.
func (l *line) recall(failing bool) {
	l.replaceStrays()
	for _, d := range l.dests {
		failing = failing || d.out > 0 && l.peers.rank(d.i) >= rankStalled
	}
	if !failing {
		return
	}
	byDest := map[*destination][]*entry{}
	for _, e := range l.entries {
		if (e.stage == fetching || e.stage == given) && (e.flow.failing && e.counted || l.stranded(e)) {
			byDest[e.at] = append(byDest[e.at], e)
		}
	}
	for d, all := range byDest {
		l.recallFrom(d, all)
	}
	for _, fl := range l.flows {
		fl.failing = false
	}
}

// stranded reports whether e is a stray at a destination that failed, and somebody else
// would take it.
func (l *line) stranded(e *entry) bool {
	if e.counted || e.at.i == e.flow.home || l.peers.rank(e.at.i) < rankStalled {
		return false
	}
	to := l.peers.pick(e.flow.key, nowhere, func(i int) bool { return i == e.at.i || l.refusedBy(e, i) })
	return to != nowhere && l.peers.rank(to) < rankStalled
}

// replaceStrays finds a new place for strays that wait.
func (l *line) replaceStrays() {
	for _, d := range l.dests {
		all := d.strays
		d.strays = nil
		for _, e := range all {
			if e.stage == waits && e.at == d {
				l.place(e)
			}
		}
	}
}

// recallFrom takes entries back from d. What its client is just being given comes back
// as refused.
func (l *line) recallFrom(d *destination, all []*entry) {
	var seqs []uint64
	for _, e := range all {
		if e.stage == given {
			seqs = append(seqs, e.seq)
		}
	}
	slices.Sort(seqs)
	sent := map[uint64]bool{}
	for _, r := range d.client.Recall(seqs...) {
		sent[r.Seq] = r.Sent
	}
	back := map[*flow][]*entry{}
	doubtful := map[doubt]*batch.Ranges{}
	for _, e := range all {
		maybe, got := sent[e.seq]
		if e.stage == given && !got {
			if e.counted { // it does not keep its flow from moving on
				e.counted = false
				e.flow.out--
			}
			continue
		}
		l.out(e)
		if maybe {
			l.count.doubtful++
			e.resent = true
			e.left = append(e.left, d)
			doubtful[doubt{e.flow, e.lane.lane}] = withNumber(doubtful[doubt{e.flow, e.lane.lane}], e.n)
		}
		if e.refused != nil {
			l.place(e)
			continue
		}
		e.stage, e.at = waits, nil
		back[e.flow] = append(back[e.flow], e)
	}
	for fl, es := range back {
		fl.insertAll(es)
		l.update(fl)
	}
	l.logLeft(d, len(all), doubtful)
}

// doubt is what may stand at two destinations: batches of one lane, which all go the way
// of one flow.
type doubt struct {
	flow *flow
	lane batch.Lane
}

func withNumber(set *batch.Ranges, n uint64) *batch.Ranges {
	if set == nil {
		set = &batch.Ranges{}
	}
	set.Add(n)
	return set
}

// logLeft names what may stand at two destinations, for whoever compares them.
func (l *line) logLeft(d *destination, batches int, doubtful map[doubt]*batch.Ranges) {
	l.log.Warn("left a destination; what it did not answer goes to another one",
		"from", d.address, "state", l.peers.health[d.i].state.String(), "batches", batches)
	for x, set := range doubtful {
		l.remember(x.lane, set)
		to := ""
		if x.flow.home != nowhere {
			to = l.dests[x.flow.home].address
		}
		l.log.Info("sent again to another destination", "from", d.address, "to", to, "lane", x.lane.String(),
			"ranges", set.String(), "batches", set.Count())
	}
}

// Bounds of what remember keeps.
const (
	doubtfulLanes  = 256
	doubtfulRanges = 256 // of one lane, the highest
)

// remember keeps the ids of what may stand at two destinations, for Stats: the newest
// lanes last.
func (l *line) remember(lane batch.Lane, set *batch.Ranges) {
	var all batch.Ranges
	i := slices.IndexFunc(l.doubtful, func(x transport.LaneRanges) bool { return x.Lane == lane })
	if i >= 0 {
		all = l.doubtful[i].Ranges
		l.doubtful = slices.Delete(l.doubtful, i, i+1)
	} else if len(l.doubtful) == doubtfulLanes {
		l.doubtful = slices.Delete(l.doubtful, 0, 1)
	}
	for _, r := range set.All() {
		all.AddRange(r)
	}
	if over := all.Len() - doubtfulRanges; over > 0 {
		all.DropBelow(all.At(over).First)
	}
	l.doubtful = append(l.doubtful, transport.LaneRanges{Lane: lane, Ranges: all})
}

// balances reports whether flows may leave a destination that merely stays behind.
func (l *line) balances() bool { return l.group.Mode == Any && len(l.dests) > 1 }

// rebalance moves the flow that waits longest at a destination which stays behind to one
// that has nothing to do.
func (l *line) rebalance(now time.Duration) {
	if !l.balances() || now-l.behind < behindEvery {
		return
	}
	l.behind = now
	for _, d := range l.dests {
		if len(d.ready) == 0 || l.peers.health[d.i].state != stateGood {
			continue
		}
		fl := d.ready[0]
		if e := fl.first(); e == nil || now-e.read < behindAfter {
			l.update(fl)
			continue
		}
		for _, to := range l.dests {
			if to.out == 0 && len(to.ready) == 0 && l.peers.health[to.i].state == stateGood && l.peers.rank(to.i) == l.peers.rank(d.i) {
				l.log.Info("a destination stays behind; a lane moves to another one", "address", d.address, "to", to.address)
				fl.pin, fl.pinUntil = to.i, now+maxHold
				l.move(fl, to.i)
				break
			}
		}
	}
}
