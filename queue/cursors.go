package queue

import (
	"log/slog"

	"ftfuse/internal/batch"
)

// loadCursors makes the cursors of this run. A name that is new begins with the oldest
// entry that is stored; one whose name is gone leaves.
func (q *Queue) loadCursors(records map[string]cursorRecord) {
	for _, name := range q.o.Cursors {
		c := newCursor(q, name)
		r, ok := records[name]
		if ok {
			c.acked, c.unbegun, c.base = r.acked, r.unbegun, r.base
		} else {
			c.acked = q.passedRanges(records)
			if len(records) > 0 {
				q.log.Info("a new cursor begins with the oldest batch in the queue", slog.String("cursor", name))
			}
		}
		c.loadParts(r, ok)
		q.cursors = append(q.cursors, c)
	}
	for name, r := range records {
		if _, err := q.cursorOf(name); err != nil {
			c := newCursor(q, name)
			c.acked, c.unbegun, c.base = r.acked, r.unbegun, r.base
			c.loadParts(r, true)
			q.leaving = append(q.leaving, c)
			q.log.Warn("a cursor is no longer configured; nothing is kept for it", slog.String("cursor", name))
		}
	}
}

// unbegun names the cursors that a change before this start added, and that have not begun.
func (q *Queue) unbegun() (names []string) {
	for _, c := range q.cursors {
		if c.unbegun {
			names = append(names, c.name)
		}
	}
	return names
}

// loadParts sets what of each segment is acked, from its record if it is stored.
func (c *Cursor) loadParts(r cursorRecord, stored bool) {
	for _, s := range c.q.segs {
		switch part, partly := r.parts[s.num]; {
		case partly:
			c.parts[s.num] = part
		case s.count() > 0 && countIn(c.acked, s.first, s.last) == s.count():
			c.parts[s.num] = s.total
		case !stored:
			c.parts[s.num] = s.passed
		}
	}
	c.next = c.acked.Next()
}

// passedRanges is what all of the stored cursors have acked, in a set of its own.
func (q *Queue) passedRanges(records map[string]cursorRecord) (all batch.Ranges) {
	first := true
	for _, r := range records {
		if first {
			for _, x := range r.acked.All() {
				all.AddRange(x)
			}
			first = false
			continue
		}
		all = intersect(all, r.acked)
	}
	if all.Len() == 0 && len(records) == 0 && q.committed > 0 {
		all.AddRange(batch.Range{First: 1, Last: q.committed})
	}
	return all
}

func intersect(a, b batch.Ranges) (out batch.Ranges) {
	x, y := a.All(), b.All()
	for len(x) > 0 && len(y) > 0 {
		out.AddRange(batch.Range{First: max(x[0].First, y[0].First), Last: min(x[0].Last, y[0].Last)})
		if x[0].Last < y[0].Last {
			x = x[1:]
		} else {
			y = y[1:]
		}
	}
	return out
}

// countIn returns how many numbers of [first, last] are in r.
func countIn(r batch.Ranges, first, last uint64) (n uint64) {
	for _, x := range r.All() {
		if lo, hi := max(x.First, first), min(x.Last, last); lo <= hi {
			n += hi - lo + 1
		}
	}
	return n
}
