package forward

import "time"

// Bounds of sending again what is not final.
const (
	maxTries   = 4    // the wait doubles so often: 16 times final_timeout at most
	maxResends = 256  // batches at a time
	resendStep = 4096 // batches that are looked at while the lock is held
)

// unfinalSet is the batches that a next node has and that are kept until they are final:
// one queue for each number of tries, in which they are due in order.
type unfinalSet struct {
	queues  [maxTries + 1][]*entry
	resends map[*entry]struct{} // on their way again
}

// push notes e, which was just acked.
func (h *unfinalSet) push(e *entry, now time.Duration, timeout time.Duration) {
	delete(h.resends, e)
	e.due = now + timeout<<e.tries
	h.queues[e.tries] = append(h.queues[e.tries], e)
}

// front returns the first of queue i that is still kept, or nil.
func (h *unfinalSet) front(i int) *entry {
	q := h.queues[i]
	n := 0
	for n < len(q) && (q[n].stage != unfinal || q[n].tries != uint8(i)) {
		q[n] = nil
		n++
	}
	h.queues[i] = q[n:]
	if len(h.queues[i]) == 0 {
		h.queues[i] = nil
		return nil
	}
	return h.queues[i][0]
}

// due is when the first of them is to be sent again; false: never.
func (h *unfinalSet) due() (at time.Duration, ok bool) {
	if len(h.resends) >= maxResends {
		return 0, false
	}
	for i := range h.queues {
		if e := h.front(i); e != nil && (!ok || e.due < at) {
			at, ok = e.due, true
		}
	}
	return at, ok
}

// resendDue sends again what has not become final for too long. The caller holds mu.
func (l *line) resendDue(now time.Duration) {
	h := &l.unfinal
	for e := range h.resends {
		if e.stage == gone || e.stage == parked { // refused: the others need not wait for it
			delete(h.resends, e)
		}
	}
	for i := range h.queues {
		for len(h.resends) < maxResends {
			e := h.front(i)
			if e == nil || e.due > now {
				break
			}
			h.queues[i] = h.queues[i][1:]
			l.resend(e)
		}
	}
}

// resend sends a batch again that a next node has had, the current way; one of few at a
// time.
func (l *line) resend(e *entry) {
	if l.unfinal.resends == nil {
		l.unfinal.resends = map[*entry]struct{}{}
	}
	l.unfinal.resends[e] = struct{}{}
	l.unkeep(e)
	l.place(e)
}

// unkeep makes e one that no next node has.
func (l *line) unkeep(e *entry) {
	l.count.unfinal = minus(l.count.unfinal, e)
	l.count.resent++
	l.ahead++
	e.resent = true
	e.tries = min(e.tries+1, maxTries)
}

// lost is what a destination had when another node came to its place.
type lost struct {
	d      *destination
	queues [maxTries + 1][]*entry
}

// resendFrom sends everything again that d had before another node came to its place: the
// clock does, by and by.
func (l *line) resendFrom(d *destination) {
	l.lost = append(l.lost, &lost{d, l.unfinal.queues})
	signal(l.kick)
}

// resendLost sends some of that again. There may be half a million, and the lock is to be
// had in between.
func (l *line) resendLost() {
	if len(l.lost) == 0 {
		return
	}
	x := l.lost[0]
	byFlow := map[*flow][]*entry{}
	left := resendStep
	for i := range x.queues {
		some := x.queues[i][:min(left, len(x.queues[i]))]
		for _, e := range some {
			if e == nil || e.stage != unfinal || e.at != x.d || e.node == x.d.node {
				continue // settled, sent to somebody else, or to the new node
			}
			l.unkeep(e)
			if e.refused != nil {
				l.place(e)
				continue
			}
			e.stage, e.at = waits, nil
			byFlow[e.flow] = append(byFlow[e.flow], e)
		}
		x.queues[i] = x.queues[i][len(some):]
		left -= len(some)
	}
	for fl, all := range byFlow {
		fl.insertAll(all)
		l.update(fl)
	}
	if left > 0 {
		l.lost = l.lost[1:]
	}
	if len(l.lost) > 0 {
		signal(l.kick)
	}
}
