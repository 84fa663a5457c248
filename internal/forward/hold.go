package forward

import "ftfuse/transport"

// hold makes every line keep its hands off a batch that is to be relabelled, and returns
// which still have to send it, and whether it may be with somebody; see line.hold.
func (r *relabels) hold(seq uint64) (owed map[int]bool, resent, ok bool) {
	owed = map[int]bool{}
	for _, l := range r.f.lines {
		needs, sent, ok := l.hold(seq)
		if !ok {
			return nil, false, false
		}
		resent = resent || sent
		if needs {
			owed[l.index] = true
		}
	}
	return owed, resent, true
}

// hold makes a line keep its hands off a batch that is to be relabelled. needs says
// whether it still has to send it, resent whether it may be with somebody. ok is false
// where that is not known: the answer must come first of whoever has it, or may have it,
// under the old id, or it would stand there under both. Where it is kept until it is
// final, that must come first, too: nothing would be kept of it otherwise.
func (l *line) hold(seq uint64) (needs, resent, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	e := l.entries[seq]
	switch {
	case e == nil && !l.known:
		return false, false, false
	case e == nil:
	case e.stage == fetching || e.stage == given || e.stage == unfinal || e.resent && !e.conflicts():
		return false, false, false
	default:
		l.park(e)
		needs = true
	}
	if !l.held[seq] {
		l.held[seq] = false
	}
	return needs, e != nil && e.resent, true
}

// conflicts reports whether a destination said, on its newest connection, that it knows
// the id of e with another content.
func (e *entry) conflicts() bool {
	for d, r := range e.refused {
		if r.code == transport.Conflict && r.conn == d.conns {
			return true
		}
	}
	return false
}

// letGo ends hold, and reports whether the batch was acked meanwhile. gone: it is not in
// the queue any more.
func (l *line) letGo(seq uint64, gone bool) (acked bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	acked = l.held[seq]
	delete(l.held, seq)
	if e := l.entries[seq]; e != nil && e.stage == parked {
		switch {
		case gone:
			l.drop(e)
		case e.conflicts(): // it was read to be relabelled
			l.park(e)
		default:
			l.place(e)
		}
	}
	return acked
}
