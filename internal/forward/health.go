package forward

import "time"

// Times of the decisions.
const (
	tryFor       = time.Second            // a destination is new for so long at most
	leaveAfter   = 500 * time.Millisecond // a connection is lost, unless that is known to be no accident
	stallAfter   = 5 * time.Second        // without any answer, or bytes that move, while something is in flight
	shakyWithin  = 10 * time.Second       // the third loss within it is no accident
	maxHold      = 10 * time.Minute
	goodForTimes = 10 // times failback_after that make a destination trusted again
)

// state is where a destination stands; see the package comment.
type state uint8

const (
	stateNew state = iota
	stateGood
	stateShaken
	stateHold
	stateStalled
	stateDraining
	stateDown
)

var stateNames = [...]string{"connecting", "connected", "reconnecting", "hold-down", "stalled", "draining", "failed over"}

// String is the word that status shows.
func (s state) String() string { return stateNames[s] }

// rank says how willingly a destination is used: the lower the better.
type rank uint8

// The ranks; odd ones are those of secondaries.
const (
	rankGood    rank = 0
	rankHold    rank = 2
	rankStalled rank = 4
	rankNone    rank = 6 // carries nothing new
)

// event is what happened to a destination.
type event uint8

const (
	evConnected event = iota // the handshake is done
	evLost                   // the connection ended, perhaps by accident: reset, closed, busy
	evGone                   // it ended and is no accident (silent, an orderly end), or cannot be made
	evDrain                  // the peer asked for no more
	evAcked                  // it answered
	evMoved                  // it did not yet, but bytes of a batch came there
)

var eventNames = [...]string{"connected", "lost", "gone", "drain", "acked", "moved"}

// String names the event.
func (e event) String() string { return eventNames[e] }

// health is what a line knows of one destination. It is pure: events and the time since
// the line began go in, a rank comes out. It is not safe for concurrent use.
type health struct {
	secondary bool
	failback  time.Duration

	state    state
	until    time.Duration   // end of new, shaken or hold
	hold     time.Duration   // of the next hold-down
	goodFrom time.Duration   // since when it is good
	failed   bool            // before: the next failure is one more
	losses   []time.Duration // within shakyWithin
	inFlight bool            // it owes an answer
	progress time.Duration   // when it last gave one, or took bytes, or began to owe
}

func newHealth(now time.Duration, secondary bool, failback time.Duration) health {
	return health{secondary: secondary, failback: failback, hold: failback, until: now + tryFor}
}

// on takes in an event.
func (h *health) on(now time.Duration, ev event) {
	h.tick(now)
	switch ev {
	case evConnected:
		h.progress = now
		if h.state == stateNew || h.state == stateShaken {
			h.trust(now)
		} else {
			h.state, h.until = stateHold, now+h.hold
		}
	case evLost:
		switch {
		case h.state == stateGood && !h.shaky(now):
			h.state, h.until = stateShaken, now+leaveAfter
		case h.state != stateShaken:
			h.fail(now)
		}
	case evGone:
		h.fail(now)
	case evDrain:
		if h.rank() != rankNone {
			h.state = stateDraining
		}
	case evMoved:
		h.progress = now // what is stalled stays so: that it takes bytes is no answer
	case evAcked:
		h.progress = now
		if h.state == stateStalled {
			h.state, h.until = stateHold, now+h.hold
		}
	}
}

// owes notes whether anything is in flight to it.
func (h *health) owes(now time.Duration, inFlight bool) {
	if inFlight && !h.inFlight {
		h.progress = now
	}
	h.inFlight = inFlight
}

// tick does what the time brings.
func (h *health) tick(now time.Duration) {
	for at, ok := h.deadline(); ok && at <= now; at, ok = h.deadline() {
		switch {
		case h.state == stateNew || h.state == stateShaken:
			h.fail(now)
		case h.state == stateHold && h.until <= at:
			h.trust(now)
		default:
			h.escalate(now)
			h.state = stateStalled
		}
	}
}

// deadline is when tick has something to do; false: never, unless something happens.
func (h *health) deadline() (time.Duration, bool) {
	stall := h.progress + stallAfter
	switch h.state {
	case stateNew, stateShaken:
		return h.until, true
	case stateGood:
		return stall, h.inFlight
	case stateHold:
		if h.inFlight {
			return min(stall, h.until), true
		}
		return h.until, true
	}
	return 0, false
}

// trust makes it good.
func (h *health) trust(now time.Duration) {
	if h.state != stateShaken {
		h.goodFrom = now
	}
	h.state = stateGood
}

// shaky notes a loss and reports whether there were too many of late.
func (h *health) shaky(now time.Duration) bool {
	h.losses = append(h.losses, now)
	for now-h.losses[0] > shakyWithin {
		h.losses = h.losses[1:]
	}
	return len(h.losses) >= 3
}

// fail makes it down.
func (h *health) fail(now time.Duration) {
	if h.state == stateGood || h.state == stateShaken || h.state == stateHold {
		h.escalate(now)
	}
	h.state, h.losses = stateDown, nil
}

// escalate sets how long the next hold-down lasts: one that was not good for long since
// it last failed flaps.
func (h *health) escalate(now time.Duration) {
	trusted := h.state != stateHold && now-h.goodFrom >= goodForTimes*h.failback
	switch {
	case trusted || !h.failed:
		h.hold = h.failback
	default:
		h.hold = max(h.hold, min(2*h.hold, maxHold))
	}
	h.failed = true
}

// rank is how willingly it is used.
func (h *health) rank() rank {
	r := rankNone
	switch h.state {
	case stateNew, stateGood, stateShaken:
		r = rankGood
	case stateHold:
		r = rankHold
	case stateStalled:
		r = rankStalled
	default:
		return rankNone
	}
	if h.secondary {
		r++
	}
	return r
}
