package queue

import (
	"errors"
	"fmt"
)

// ErrGone is returned by Submit for a Txn that replaces an entry which no cursor is to pass on
// any more, or which is not yet on disk, or being replaced already.
var ErrGone = errors.New("the entry to be replaced is not in the queue")

// replacement is what a memItem takes the place of.
type replacement struct {
	seq uint64 // 0: nothing
	t   tally
}

// checkReplace refuses a Txn that replaces what it cannot, and returns what each of its
// entries replaces. The caller holds mu.
func (q *Queue) checkReplace(t *Txn, fresh int) ([]replacement, error) {
	if len(t.Replace) == 0 {
		return nil, nil
	}
	if len(t.Replace) != len(t.Entries) || fresh != len(t.Entries) {
		return nil, fmt.Errorf("submit to the queue: %w: %d entries, of which %d have new ids, in the place of %d", ErrOptions, len(t.Entries), fresh, len(t.Replace))
	}
	out := make([]replacement, len(t.Replace))
	for i, seq := range t.Replace {
		seg := q.segmentOf(seq)
		if seg == nil || seq > q.committed || q.replacing[seq] || !q.owed(seq) {
			return nil, fmt.Errorf("submit batch %v in the place of entry %d: %w", t.Entries[i].Batch.ID, seq, ErrGone)
		}
		old, err := q.tallyOf(seg, seq)
		if err != nil {
			return nil, fmt.Errorf("submit batch %v in the place of entry %d: %w: %w", t.Entries[i].Batch.ID, seq, ErrGone, err)
		}
		for _, before := range out[:i] {
			if before.seq == seq {
				return nil, fmt.Errorf("submit batch %v in the place of entry %d: %w", t.Entries[i].Batch.ID, seq, ErrGone)
			}
		}
		out[i] = replacement{seq, old}
	}
	return out, nil
}

// owed says whether some cursor that passes on has not acked seq. The caller holds mu.
func (q *Queue) owed(seq uint64) bool {
	for _, c := range q.cursors {
		if !c.acked.Contains(seq) && !q.copyOnly(c) {
			return true
		}
	}
	return false
}

// needed says whether some cursor has not acked seq. The caller holds mu.
func (q *Queue) needed(seq uint64) bool {
	for _, c := range q.cursors {
		if !c.acked.Contains(seq) {
			return true
		}
	}
	return false
}

// tallyOf returns what the committed entry at seq counts. The caller holds mu.
func (q *Queue) tallyOf(seg *segment, seq uint64) (tally, error) {
	for _, c := range q.cursors {
		if g, ok := c.given[seq]; ok {
			return g.tally, nil
		}
	}
	h, err := q.headOf(seg, seq)
	if h == nil {
		return tally{}, err
	}
	return entryTally(&h.e, h.size()), nil
}

// replace puts it, which is being committed to seg, in the place of an older entry for the cursors
// that pass on: who has acked that needs it no more, and none of them needs the old one. Acks of
// the old one that came since Submit are seen here, and nothing comes in between this and the
// commit. The caller holds mu.
func (q *Queue) replace(seg *segment, it *memItem) {
	old := it.replaces
	delete(q.replacing, old.seq)
	from := q.segmentOf(old.seq)
	now := entryTally(&it.e, it.size)
	for _, c := range q.stayingAndLeaving() {
		if q.copyOnly(c) { // it has the old one, or gets it: in its order, and under its id
			c.take(seg, it.seq, now)
		}
	}
	open := false
	for _, c := range q.cursors {
		switch {
		case q.copyOnly(c):
		case c.acked.Contains(old.seq):
			c.take(seg, it.seq, now)
		default:
			c.supersede(old.seq, it.seq)
			c.take(from, old.seq, old.t)
			open = true
		}
	}
	if open {
		q.passIfAll(from, old.seq, old.t)
	}
}

// supersede notes what an ack of old counts for from now on. q.mu is held.
func (c *Cursor) supersede(old, now uint64) {
	if _, had := c.given[old]; had {
		c.late[old] = now
	}
	for seq, was := range c.late { // few, if any
		if was == old { // old took the place of seq itself
			c.late[seq] = now
		}
	}
}

// settleNew does to the entries of a group, as they are placed in seg, what cursors need
// not see. The caller holds mu.
func (q *Queue) settleNew(seg *segment, items []*memItem) {
	for _, it := range items {
		if it.replaces.seq != 0 {
			q.replace(seg, it)
		}
		q.skipUnwanted(seg, it)
	}
}
