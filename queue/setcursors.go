package queue

import (
	"fmt"
	"log/slog"
	"maps"
	"slices"
)

// CursorSet is what SetCursors changes of Options.
type CursorSet struct {
	Cursors []string
	Copies  []string
	Wants   CursorWants
	// Later names cursors that this call adds and a later one names in Again. Until that one they
	// have no consumer, which is on disk with them: a start does with those that stay what Again
	// does, and with the others what Unbegun does.
	Later []string
	// Again names cursors that were added before, and whose consumers have not begun yet:
	// they begin anew, without what all but these passed meanwhile.
	Again []string
	// Unbegun tells that the consumers of the cursors that go never began: another one that
	// wanted a batch and passed it had it for them too, and nothing of that is lost.
	Unbegun bool
}

// SetCursors changes who consumes a running queue. The consumers of cursors that go have
// ended; those of new ones begin when it has returned. As with Open, a new cursor begins with
// the oldest batch that some cursor needed, what only a gone one needed is dropped and counted
// as LostNoCursor, and none needs what it does not want; Wants may change its mind about a
// cursor only by the call that adds it. An error changes nothing.
//
// What is queued is gone through a portion at a time, so that nobody waits for it but who
// calls this: for what new cursors do not want, and what Again passes, it returns afterwards.
// What gone ones needed is dropped behind its back: until then it counts as Live, a full queue
// drops and refuses nothing, and the next call waits. That is on disk with a commit half a second
// later at most; a start before it does the rest, or finds those cursors needing that rest.
func (q *Queue) SetCursors(set CursorSet) error {
	if n := len(set.Cursors); n == 0 || n > maxCursors {
		return fmt.Errorf("%w: %d cursors, want 1 to %d", ErrOptions, n, maxCursors)
	}
	select {
	case q.changing <- struct{}{}:
	case <-q.failed:
		return q.err
	case <-q.stop:
		return ErrClosed
	}
	err := q.changeCursors(set)
	go func() {
		q.settleLeaving()
		<-q.changing
	}()
	return err
}

// changeCursors is SetCursors, without what gone cursors needed. The caller holds changing.
func (q *Queue) changeCursors(set CursorSet) error {
	if err := q.beginAgain(set.Again); err != nil {
		return err
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if err := q.state(); err != nil {
		return err
	}
	was := CursorSet{Cursors: q.o.Cursors, Copies: q.o.Copies, Wants: q.o.Wants, Unbegun: true}
	q.o.Copies, q.o.Wants = set.Copies, set.Wants
	added := q.addCursors(set.Cursors)
	for _, c := range added {
		c.unbegun = slices.Contains(set.Later, c.name)
	}
	to := q.active().last // what comes behind it is compared with Wants as it is stored
	q.mu.Unlock()
	err := q.skipQueued(added, to)
	q.mu.Lock()
	for _, c := range added {
		c.joining = false
	}
	if err != nil {
		set = was
	}
	q.o.Cursors, q.o.Copies, q.o.Wants = set.Cursors, set.Copies, set.Wants
	q.keepCursors(set.Cursors, set.Unbegun)
	q.ackLater()
	q.moreRoom()
	return err
}

// addCursors adds those of names that the queue has not. The caller holds mu.
func (q *Queue) addCursors(names []string) (added []*Cursor) {
	for _, name := range names {
		if _, err := q.cursorOf(name); err != nil {
			added = append(added, q.newJoining(name))
		}
	}
	q.cursors = slices.Concat(q.cursors, added) // readers may hold the old one
	return added
}

// newJoining makes a cursor that needs what some other one does. The caller holds mu.
func (q *Queue) newJoining(name string) *Cursor {
	records := make(map[string]cursorRecord, len(q.cursors))
	for _, c := range q.cursors {
		records[c.name] = cursorRecord{acked: c.acked}
	}
	c := newCursor(q, name)
	c.acked, c.base = q.passedRanges(records), q.nextSeq-1
	c.loadParts(cursorRecord{}, false)
	c.dirty, c.joining = true, true
	q.retired = slices.DeleteFunc(q.retired, func(r *Cursor) bool { return r.name == name }) // its record is written again, not removed
	q.log.Info("a new cursor begins with the oldest batch in the queue", slog.String("cursor", name))
	return c
}

// keepCursors puts the queue's cursors into the order of names, all of which it has; the
// others leave. The caller holds mu.
func (q *Queue) keepCursors(names []string, unbegun bool) {
	were := make(map[string]*Cursor, len(q.cursors))
	for _, c := range q.cursors {
		were[c.name] = c
	}
	all := make([]*Cursor, 0, len(names))
	for _, name := range names {
		all = append(all, were[name])
	}
	q.cursors = all
	for _, c := range all {
		delete(were, c.name)
	}
	for c := range maps.Values(were) {
		c.gone, c.unbegun, c.dirty = true, c.unbegun || unbegun, true
		q.leaving = append(q.leaving, c)
		c.signal()
		if !unbegun {
			q.log.Warn("a cursor is no longer configured; nothing is kept for it", slog.String("cursor", c.name))
		}
	}
}

// skipQueued has cursors that are being added pass what of the entries up to to they do not want.
func (q *Queue) skipQueued(added []*Cursor, to uint64) error {
	q.mu.Lock()
	all := q.o.Wants == nil
	q.mu.Unlock()
	if all || len(added) == 0 {
		return nil
	}
	unwanted := func(c *Cursor, e *queued) bool {
		return e.openFor(c) && !(e.named && q.wants(c, e.id.Lane))
	}
	return q.inPortions(1, to, portionWalk{
		pick: func(e *queued) bool {
			return slices.ContainsFunc(added, func(c *Cursor) bool { return unwanted(c, e) })
		},
		do: func(e *queued) {
			if e.err != nil {
				return // it is found, and counted, when it is read
			}
			for _, c := range added {
				if unwanted(c, e) {
					c.take(e.seg, e.seq, e.t)
				}
			}
			q.passIfAll(e.seg, e.seq, e.t)
		},
	})
}

// beginAgain has each of the cursors named in again pass what was there when it was added and
// what all but these have passed since.
func (q *Queue) beginAgain(again []string) error {
	for _, name := range again {
		if err := q.passAgain(name, again); err != nil {
			return err
		}
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, name := range again {
		if c, err := q.cursorOf(name); err == nil {
			c.unbegun, c.dirty = false, true
		}
	}
	return nil
}

// passAgain is beginAgain for the cursor name, which is one of again.
func (q *Queue) passAgain(name string, again []string) error {
	q.mu.Lock()
	c, err := q.cursorOf(name)
	if err != nil {
		q.mu.Unlock()
		return err
	}
	from, to := c.acked.Next(), min(c.base, q.committed)
	q.mu.Unlock()
	err = q.inPortions(from, to, portionWalk{
		pick: func(e *queued) bool { return e.openFor(c) && q.passedBut(again, e.seq) },
		do: func(e *queued) {
			if e.err != nil {
				return // it is found, and counted, when it is read
			}
			c.take(e.seg, e.seq, e.t)
			q.passIfAll(e.seg, e.seq, e.t)
		},
	})
	q.mu.Lock()
	defer q.mu.Unlock()
	c.next = c.acked.Next()
	return err
}

// passedBut says whether there are cursors but those named in again, and those that have not
// begun, and all of them have acked seq. The caller holds mu.
func (q *Queue) passedBut(again []string, seq uint64) (passed bool) {
	for _, c := range q.stayingAndLeaving() {
		switch {
		case c.unbegun || slices.Contains(again, c.name):
		case !c.acked.Contains(seq):
			return false
		default:
			passed = true
		}
	}
	return passed
}
