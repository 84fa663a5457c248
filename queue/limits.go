package queue

import (
	"fmt"
	"log/slog"
	"time"
)

// Limits are what SetLimits changes of Options; a zero field takes its default.
type Limits struct {
	CommitEvery time.Duration
	CommitBytes int64
	MaxBytes    int64
	OnFull      Policy
	MaxAge      time.Duration
}

// SetLimits changes the limits of a running queue, for what waits in Submit too. What is in
// the queue stays; with less MaxBytes than there is, OnFull decides about what comes. It
// returns ErrOptions, and changes nothing, for limits that cannot be.
func (q *Queue) SetLimits(l Limits) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	o := q.o
	o.CommitEvery, o.CommitBytes, o.MaxBytes, o.OnFull, o.MaxAge = l.CommitEvery, l.CommitBytes, l.MaxBytes, l.OnFull, l.MaxAge
	o, err := o.withDefaults()
	if err != nil {
		return err
	}
	q.o.CommitEvery, q.o.CommitBytes, q.o.MaxBytes, q.o.OnFull, q.o.MaxAge = o.CommitEvery, o.CommitBytes, o.MaxBytes, o.OnFull, o.MaxAge
	q.moreRoom()
	q.wakeCommitter()
	return nil
}

// CursorSet is what SetCursors changes of Options.
type CursorSet struct {
	Cursors []string
	Copies  []string
	Wants   CursorWants
	// Again names cursors that were added before, and whose consumers have not begun yet:
	// they begin anew, without what all others passed meanwhile.
	Again []string
	// Unbegun tells that the consumers of the cursors that go never began: another one that
	// wanted a batch and passed it had it for them too, and nothing of that is lost.
	Unbegun bool
}

// SetCursors changes who consumes a running queue. The consumers of cursors that go have
// ended; those of new ones begin when it has returned. As with Open, a new cursor begins with
// the oldest batch that some cursor needed, what only a gone one needed is dropped and counted
// as LostNoCursor, and none needs what it does not want; Wants may change its mind about a cursor only by the
// call that adds it. It is on disk with the next commit,
// within half a second; a start before that finds the old cursors, or does the same again.
func (q *Queue) SetCursors(set CursorSet) error {
	if n := len(set.Cursors); n == 0 || n > maxCursors {
		return fmt.Errorf("%w: %d cursors, want 1 to %d", ErrOptions, n, maxCursors)
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if err := q.state(); err != nil {
		return err
	}
	for _, name := range set.Again {
		if err := q.beginAgain(name); err != nil {
			return err
		}
	}
	were := make(map[string]*Cursor, len(q.cursors))
	for _, c := range q.cursors {
		were[c.name] = c
	}
	all, added := make([]*Cursor, 0, len(set.Cursors)), false
	for _, name := range set.Cursors {
		c := were[name]
		if delete(were, name); c == nil {
			c, added = q.addCursor(name), true
		}
		all = append(all, c)
	}
	q.cursors = all
	var going []*Cursor // those that went before may still be in retired, and are settled
	for _, c := range were {
		c.gone, c.unbegun = true, set.Unbegun
		going = append(going, c)
		c.signal()
	}
	q.retired = append(q.retired, going...)
	q.o.Cursors, q.o.Copies, q.o.Wants = set.Cursors, set.Copies, set.Wants
	if added || len(going) > 0 { // else what each wants is as it was
		if err := q.settleCursors(going); err != nil {
			return err
		}
	}
	q.ackLater()
	q.moreRoom()
	return nil
}

// addCursor makes a cursor that needs what some other one does. The caller holds mu.
func (q *Queue) addCursor(name string) *Cursor {
	records := make(map[string]cursorRecord, len(q.cursors))
	for _, c := range q.cursors {
		records[c.name] = cursorRecord{acked: c.acked}
	}
	c := newCursor(q, name)
	c.acked, c.base = q.passedRanges(records), q.nextSeq-1
	c.loadParts(cursorRecord{}, false)
	c.dirty = true
	still := q.retired[:0]
	for _, r := range q.retired { // its record is written again, not removed
		if r.name != name {
			still = append(still, r)
		}
	}
	q.retired = still
	q.log.Info("a new cursor begins with the oldest batch in the queue", slog.String("cursor", name))
	return c
}

// beginAgain has the cursor name pass what was there when it was added and what all others
// have passed since. The caller holds mu.
func (q *Queue) beginAgain(name string) error {
	c, err := q.cursorOf(name)
	if err != nil {
		return err
	}
	for seq := c.acked.Next(); seq <= min(c.base, q.committed); seq++ {
		if c.acked.Contains(seq) || q.neededByOthers(seq, c) {
			continue
		}
		seg := q.segmentOf(seq)
		if seg == nil {
			continue
		}
		t, err := q.tallyOf(seg, seq)
		if isDamage(err) {
			continue // it is found, and counted, when it is read
		} else if err != nil {
			return fmt.Errorf("read the head of entry %d: %w", seq, err)
		}
		c.take(seg, seq, t)
		q.passIfAll(seg, seq, t)
	}
	c.next = c.acked.Next()
	return nil
}

func (q *Queue) neededByOthers(seq uint64, than *Cursor) bool {
	for _, c := range q.cursors {
		if c != than && !c.acked.Contains(seq) {
			return true
		}
	}
	return false
}
