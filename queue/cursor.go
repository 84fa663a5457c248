package queue

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sort"
	"syscall"
	"time"

	"ftfuse/internal/batch"
)

// Cursor is a named consumer of the queue. Next and NextHead may be called by one
// goroutine at a time; Fetch, Ack and Rewind by any.
type Cursor struct {
	q    *Queue
	name string
	wake chan struct{} // there is more, or something changed

	// Guarded by q.mu.
	acked batch.Ranges
	next  uint64
	given map[uint64]givenItem // given and not acked
	parts map[uint64]tally     // by segment: what of it was acked
	late  map[uint64]uint64    // replaced when it was given: what its ack is for
	dirty bool
	epoch uint64 // counts Rewinds
	base  uint64 // what was submitted when it was added
	gone  bool   // the queue has it no more

	unbegun bool // it has no consumer yet, or had none: see CursorSet
	joining bool // it is being added: it may have not acked yet what it does not want
}

type givenItem struct {
	tally
	time int64
	held bool // the consumer has it: by Next or Fetch since the last Rewind
	kept bool // Release: another node has it, too
}

func newCursor(q *Queue, name string) *Cursor {
	return &Cursor{q: q, name: name, wake: make(chan struct{}, 1), given: map[uint64]givenItem{}, late: map[uint64]uint64{}, parts: map[uint64]tally{}}
}

// Name returns the cursor's name.
func (c *Cursor) Name() string { return c.name }

// Next returns the next committed entry that was not acked, in order, and waits for
// one. It returns ctx's error, with ErrUnread where that does not mean that nothing is there,
// ErrClosed, or an error that wraps ErrFailed. Entries that cannot be read are counted as lost and
// stepped over; for those that cannot be read for now it waits.
func (c *Cursor) Next(ctx context.Context) (Item, error) {
	h, err := c.nextEntry(ctx, false)
	return Item{Seq: h.seq, Entry: h.e}, err
}

// nextEntry is Next, or NextHead.
func (c *Cursor) nextEntry(ctx context.Context, headOnly bool) (head, error) {
	for {
		if err := ctx.Err(); err != nil {
			return head{}, c.ended(err)
		}
		c.q.mu.Lock()
		it, seg, seq, err := c.look(headOnly)
		epoch := c.epoch
		c.q.mu.Unlock()
		switch {
		case err != nil:
			return head{}, err
		case it != nil:
			return it.head(), nil
		case seg != nil:
			h, ok, err := c.fromDisk(seg, seq, epoch, headOnly)
			if passes(err) {
				if err = c.q.awaitRead(ctx, err); err == nil {
					continue
				}
			}
			if err != nil || ok {
				return h, err
			}
			continue
		}
		select {
		case <-c.wake:
		case <-ctx.Done():
		case <-c.q.failed:
		case <-c.q.stop:
		}
	}
}

// ended is err, of a context that ended, and ErrUnread where something is there that was not looked at.
func (c *Cursor) ended(err error) error {
	c.q.mu.Lock()
	defer c.q.mu.Unlock()
	for c.next <= c.q.committed && c.acked.Contains(c.next) {
		c.next++
	}
	if c.next <= c.q.committed {
		return fmt.Errorf("%w: %w", err, ErrUnread)
	}
	return err
}

// look finds what is next: an item in memory, or the segment to read seq from, or
// neither. The caller holds mu.
func (c *Cursor) look(headOnly bool) (*memItem, *segment, uint64, error) {
	q := c.q
	if err := q.state(); err != nil {
		return nil, nil, 0, err
	}
	if c.gone {
		return nil, nil, 0, fmt.Errorf("%w: %q was removed", ErrNoCursor, c.name)
	}
	for ; c.next <= q.committed; c.next++ {
		seq := c.next
		if c.acked.Contains(seq) {
			continue
		}
		it := q.mem.get(seq)
		if it == nil {
			seg := q.segmentOf(seq)
			if seg == nil {
				return nil, nil, 0, fmt.Errorf("find entry %d: no segment holds it; run `ftfuse queue verify`", seq)
			}
			return nil, seg, seq, nil
		}
		if q.expired(it.e.Batch, time.Now()) {
			h := it.head()
			q.loseEntry(q.segmentOf(seq), seq, &h, LostExpired, nil)
			continue
		}
		c.give(seq, &it.e, it.size, !headOnly)
		return it, nil, 0, nil
	}
	return nil, nil, 0, nil
}

func (c *Cursor) give(seq uint64, e *Entry, size int64, held bool) {
	c.given[seq] = givenItem{tally: entryTally(e, size), time: e.Batch.Time, held: held}
	c.next = seq + 1
}

// fromDisk reads seq. It returns false where the caller has to look again.
func (c *Cursor) fromDisk(seg *segment, seq, epoch uint64, headOnly bool) (head, bool, error) {
	h, found, err := seg.read(seq, headOnly)
	q := c.q
	q.mu.Lock()
	defer q.mu.Unlock()
	q.noteRead(seg, err)
	if c.gone || c.epoch != epoch || c.next != seq || c.acked.Contains(seq) || errors.Is(err, errReopen) || q.closed {
		return head{}, false, nil
	}
	if err = missing(seg, seq, found, err); err != nil {
		return head{}, false, q.unreadable(seg, seq, &h, err)
	}
	if q.expired(h.e.Batch, time.Now()) {
		q.loseEntry(seg, seq, &h, LostExpired, nil)
		return head{}, false, nil
	}
	c.give(seq, &h.e, h.size(), !headOnly)
	return h, true, nil
}

// isDamage says whether err tells of what is on the disk, and not of this process (out
// of descriptors, of memory): only the first may count as a loss.
func isDamage(err error) bool {
	return errors.Is(err, errDamaged) || errors.Is(err, syscall.EIO) || errors.Is(err, ErrVersion) || errors.Is(err, os.ErrNotExist)
}

// Ack tells that the consumer is done with seq, which Next gave it. Any order, any
// number of times. It becomes durable with a coming commit, within a second without
// one; a lost ack means only that seq is given again after a restart.
func (c *Cursor) Ack(seq uint64) {
	q := c.q
	q.mu.Lock()
	defer q.mu.Unlock()
	if c.gone {
		return
	}
	if now, ok := c.late[seq]; ok {
		delete(c.late, seq)
		q.ackLate(c, now)
		return
	}
	g, ok := c.given[seq]
	if !ok || c.acked.Contains(seq) {
		return
	}
	seg := q.segmentOf(seq)
	c.take(seg, seq, g.tally)
	q.passIfAll(seg, seq, g.tally)
}

// Release tells that another node has seq, which Fetch or Next gave, and that it is kept only
// in case that node loses it: a full queue under DropOldest and MaxAge may take it again, as a
// Loss with Copy set, until Fetch has read it once more.
func (c *Cursor) Release(seq uint64) { c.letGo(seq, true) }

// Return tells that nobody took seq, which Fetch or Next gave: a full queue under DropOldest
// and MaxAge may take it again, until Fetch has read it once more.
func (c *Cursor) Return(seq uint64) { c.letGo(seq, false) }

// letGo notes that the consumer has seq no more; kept: another node has.
func (c *Cursor) letGo(seq uint64, kept bool) {
	q := c.q
	q.mu.Lock()
	defer q.mu.Unlock()
	g, ok := c.given[seq]
	if !ok || !g.held && !kept {
		return
	}
	g.held, g.kept = false, kept
	c.given[seq] = g
	if q.o.OnFull == DropOldest {
		q.moreRoom() // who waits found nothing to drop
	}
}

// Needs reports whether seq, which was given, is still to be acked: it was not dropped.
func (c *Cursor) Needs(seq uint64) bool {
	c.q.mu.Lock()
	defer c.q.mu.Unlock()
	_, ok := c.given[seq]
	return ok && !c.acked.Contains(seq)
}

// ackLate acks seq, which took the place of an entry that c has acked since: what it
// stands for is where it was to go. The caller holds mu.
func (q *Queue) ackLate(c *Cursor, seq uint64) {
	seg := q.segmentOf(seq)
	if seg == nil || c.acked.Contains(seq) {
		return
	}
	t, err := q.tallyOf(seg, seq)
	if err != nil {
		return // it is found, and counted, when it is read
	}
	c.take(seg, seq, t)
	q.passIfAll(seg, seq, t)
}

// take notes that this cursor is done with seq. The caller holds mu.
func (c *Cursor) take(seg *segment, seq uint64, t tally) {
	c.acked.Add(seq)
	delete(c.given, seq)
	p := c.parts[seg.num]
	p.add(t)
	c.parts[seg.num] = p
	c.dirty = true
	c.q.ackLater()
}

// Rewind makes Next start again at the oldest entry that was not acked.
func (c *Cursor) Rewind() {
	c.q.mu.Lock()
	defer c.q.mu.Unlock()
	c.next = c.acked.Next()
	c.epoch++
	for seq, g := range c.given {
		g.held = false
		c.given[seq] = g
	}
	c.signal()
}

func (c *Cursor) signal() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// passIfAll passes seq if every cursor has acked it. The caller holds mu.
func (q *Queue) passIfAll(seg *segment, seq uint64, t tally) {
	for _, c := range q.cursors {
		if !c.acked.Contains(seq) {
			return
		}
	}
	q.pass(seg, seq, t)
}

// pass gives up seq: no cursor needs it any more. The caller holds mu.
func (q *Queue) pass(seg *segment, seq uint64, t tally) {
	for _, c := range q.leaving {
		if !c.acked.Contains(seq) {
			c.take(seg, seq, t)
		}
	}
	seg.passed.add(t)
	seg.dirty = true
	q.live -= int64(t.Bytes)
	q.mem.drop(seq)
	if seg == q.active() {
		if first, ok := seg.passBlock(seq); ok {
			q.deletes = append(q.deletes, first)
		}
	}
	q.moreRoom()
}

// moreRoom wakes those who wait for room. The caller holds mu.
func (q *Queue) moreRoom() {
	close(q.room)
	q.room = make(chan struct{})
}

// segmentOf returns the segment that was given seq, or nil. The caller holds mu.
func (q *Queue) segmentOf(seq uint64) *segment {
	i := sort.Search(len(q.segs), func(i int) bool { return q.segs[i].first > seq }) - 1
	for ; i >= 0; i-- { // segments without entries share their first with the next
		if s := q.segs[i]; seq <= s.last && seq >= s.first {
			return s
		}
	}
	return nil
}

func (q *Queue) active() *segment { return q.segs[len(q.segs)-1] }

// cursorRecord is what is stored of a cursor.
type cursorRecord struct {
	acked   batch.Ranges
	parts   map[uint64]tally
	unbegun bool
	base    uint64 // 0, unless it is unbegun
}

// encode stores the parts of the active segment and of those that are acked in part. In the place
// of a segment 0, which none is, stands what an unbegun cursor begins behind.
func (c *Cursor) encode() []byte {
	b := c.acked.Append(nil)
	for _, s := range c.q.segs {
		if p, ok := c.parts[s.num]; ok && (s == c.q.active() || p.Batches < s.count()) {
			b = appendFields(b, s.num, p.Batches, p.Records, p.Payload, p.Bytes)
		}
	}
	if c.unbegun {
		b = appendFields(b, 0, c.base, 0, 0, 0)
	}
	return b
}

func (r *cursorRecord) parse(b []byte) (err error) {
	if r.acked, b, err = batch.ParseRanges(b); err != nil {
		return fmt.Errorf("%w: %w", errDamaged, err)
	}
	r.parts = map[uint64]tally{}
	for len(b) > 0 {
		var num uint64
		var t tally
		if b, err = readFields(b, &num, &t.Batches, &t.Records, &t.Payload, &t.Bytes); err != nil {
			return err
		}
		if num == 0 {
			r.unbegun, r.base = true, t.Batches
			continue
		}
		r.parts[num] = t
	}
	return nil
}
