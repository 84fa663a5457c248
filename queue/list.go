package queue

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"ftfuse/internal/batch"
)

// Listed is an entry that some cursor still needs.
type Listed struct {
	Head
	Waiting []string // names of the cursors that have not acked it
	Segment uint64   // number of the segment file
	Err     error    // it cannot be read; ID.N is 0 where the id is not known
}

// List calls fn for each committed entry that cursor has not acked (that some cursor has
// not, for ""), in order, until fn returns an error. It reads heads only, marks nothing,
// and may be slow: what is acked or dropped meanwhile is left out, and so is what is
// committed meanwhile.
func (q *Queue) List(ctx context.Context, cursor string, fn func(Listed) error) error {
	return q.each(ctx, cursor, true, func(l Listed, _ *head) error { return fn(l) })
}

// Cat is List with the batches. fn gets no data with Listed.Err.
func (q *Queue) Cat(ctx context.Context, cursor string, fn func(Listed, batch.Sealed) error) error {
	return q.each(ctx, cursor, false, func(l Listed, h *head) error { return fn(l, h.e.Batch) })
}

func (q *Queue) each(ctx context.Context, cursor string, headOnly bool, fn func(Listed, *head) error) error {
	q.mu.Lock()
	cursors := q.cursors
	q.mu.Unlock()
	if cursor != "" {
		c, err := q.Cursor(cursor)
		if err != nil {
			return err
		}
		cursors = []*Cursor{c}
	}
	q.mu.Lock()
	last := q.committed // or there would be no end of a queue that is always busy
	q.mu.Unlock()
	for at := uint64(1); ; {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("list the queue: %w", err)
		}
		q.mu.Lock()
		l, h, seg, err := q.nextListed(cursors, at, last)
		q.mu.Unlock()
		if err != nil || l.Seq == 0 {
			return err
		}
		at = l.Seq
		if h == nil {
			h, err = q.readListed(cursors, &l, seg, headOnly)
			if errors.Is(err, errReopen) {
				continue
			} else if err != nil {
				return err
			}
		}
		at++
		if h == nil { // gone meanwhile
			continue
		}
		l.Head = h.public()
		l.Seq = at - 1
		if err := fn(l, h); err != nil {
			return err
		}
	}
}

// nextListed finds the first entry from at to last that one of cursors needs, in memory or
// in a segment. Seq is 0 where there is none. The caller holds mu.
func (q *Queue) nextListed(cursors []*Cursor, at, last uint64) (l Listed, h *head, seg *segment, err error) {
	if err := q.state(); err != nil {
		return l, nil, nil, err
	}
	seq := nextOpen(cursors, at)
	if seq > last {
		return l, nil, nil, nil
	}
	if seg = q.segmentOf(seq); seg == nil {
		return l, nil, nil, fmt.Errorf("find entry %d: no segment holds it; run `ftfuse queue verify`", seq)
	}
	l.Seq, l.Segment = seq, seg.num
	for _, c := range q.cursors {
		if !c.acked.Contains(seq) {
			l.Waiting = append(l.Waiting, c.name)
		}
	}
	if it := q.mem.get(seq); it != nil {
		x := it.head()
		h = &x
	}
	return l, h, seg, nil
}

// readListed reads l from the disk. It returns nil where nobody needs it any more.
func (q *Queue) readListed(cursors []*Cursor, l *Listed, seg *segment, headOnly bool) (*head, error) {
	h, found, err := seg.read(l.Seq, headOnly)
	if errors.Is(err, errReopen) {
		return nil, err
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if err := q.state(); err != nil {
		return nil, err
	}
	if !slices.ContainsFunc(cursors, func(c *Cursor) bool { return !c.acked.Contains(l.Seq) }) {
		return nil, nil
	}
	if err = missing(seg, l.Seq, found, err); err != nil {
		if !isDamage(err) {
			return nil, fmt.Errorf("read entry %d: %w", l.Seq, err)
		}
		l.Err = err
		if h.seq == 0 {
			h.e.Batch.ID, _ = seg.ids.id(l.Seq)
		}
		h.e.Batch.Data = nil
	}
	return &h, nil
}

// View is a queue that no process has open, to be read. Nothing of it changes, but that
// unfinished segments are removed. Its methods are those of Queue.
type View struct{ q *Queue }

// OpenView takes the lock of the queue in dir and reads its state. A queue whose newest
// state is damaged is refused with ErrNewestDamaged.
func OpenView(dir string) (*View, error) {
	o, err := Options{Cursors: []string{"none"}}.withDefaults()
	if err != nil {
		return nil, err
	}
	lock, err := lockDir(dir)
	if err != nil {
		return nil, err
	}
	q := newQueue(dir, o, lock)
	nums, records, err := q.loadState()
	if err == nil && len(nums) == 0 {
		err = fmt.Errorf("%w: no segment", ErrNewestDamaged)
	}
	if err != nil {
		q.closeFiles()
		return nil, fmt.Errorf("open queue %s to read it: %w", dir, err)
	}
	q.o.Cursors = slices.Sorted(maps.Keys(records))
	q.loadCursors(records)
	for _, s := range q.segs {
		s.path = q.segmentPath(s.num)
	}
	return &View{q}, nil
}

// Node returns the id drawn when the queue was made.
func (v *View) Node() batch.Node { return v.q.node }

// List is Queue.List.
func (v *View) List(ctx context.Context, cursor string, fn func(Listed) error) error {
	return v.q.List(ctx, cursor, fn)
}

// Cat is Queue.Cat.
func (v *View) Cat(ctx context.Context, cursor string, fn func(Listed, batch.Sealed) error) error {
	return v.q.Cat(ctx, cursor, fn)
}

// Stats is Queue.Stats.
func (v *View) Stats() Stats { return v.q.Stats() }

// Close gives up the lock.
func (v *View) Close() error {
	v.q.mu.Lock()
	v.q.closed = true
	v.q.mu.Unlock()
	v.q.closeFiles()
	return nil
}
