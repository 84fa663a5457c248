package queue

import (
	"fmt"
	"log/slog"
	"math"
	"slices"
	"sort"
	"time"

	"ftfuse/internal/batch"
)

// Reasons for which a batch is lost. They are the keys of Stats.Losses.
const (
	LostDropOldest = "drop_oldest"
	LostDropNewest = "drop_newest"
	LostExpired    = "expired"
	LostCorrupt    = "corrupt"   // with Dedupe another copy is taken, see Txn.Healed
	LostNoCursor   = "no_cursor" // whoever needed it is not configured any more
)

// losses counts what was lost since the queue was made, by reason.
type losses map[string]tally

func (l losses) encode() []byte {
	reasons := make([]string, 0, len(l))
	for r := range l {
		reasons = append(reasons, r)
	}
	sort.Strings(reasons)
	b := appendFields(nil, uint64(len(reasons)))
	for _, r := range reasons {
		t := l[r]
		b = append(appendFields(b, uint64(len(r))), r...)
		b = appendFields(b, t.Batches, t.Records, t.Payload, t.Bytes)
	}
	return b
}

func (l losses) parse(b []byte) error {
	var count uint64
	b, err := readFields(b, &count)
	if err != nil {
		return err
	}
	for range count {
		var n uint64
		if b, err = readFields(b, &n); err != nil {
			return err
		}
		if n > uint64(len(b)) {
			return fmt.Errorf("%w: reason of %d bytes", errDamaged, n)
		}
		reason := string(b[:n])
		var t tally
		if b, err = readFields(b[n:], &t.Batches, &t.Records, &t.Payload, &t.Bytes); err != nil {
			return err
		}
		l[reason] = t
	}
	return nil
}

// lose counts t as lost. The caller holds mu.
func (q *Queue) lose(reason string, t tally) {
	sum := q.losses[reason]
	sum.add(t)
	q.losses[reason] = sum
	q.ackLater()
}

// loseEntry takes the committed entry at seq from every cursor that has not acked it.
// h is its head, or nil where that cannot be read. The caller holds mu.
func (q *Queue) loseEntry(seg *segment, seq uint64, h *head, reason string, cause error) {
	t := tally{Batches: 1}
	id, named := seg.ids.id(seq)
	if h != nil {
		t = entryTally(&h.e, h.size())
		id, named = h.e.Batch.ID, true
	}
	open, copies, skipped := false, true, false
	for _, c := range q.cursors {
		if c.acked.Contains(seq) {
			continue
		}
		if c.joining && named && !q.wants(c, id.Lane) {
			c.take(seg, seq, t)
			skipped = true
		} else {
			open, copies = true, copies && (q.copyOnly(c) || c.given[seq].kept)
			c.take(seg, seq, t)
		}
	}
	if open || skipped {
		q.pass(seg, seq, t)
	}
	if !open {
		return
	}
	if named {
		q.loseID(Loss{Seq: seq, ID: id, Reason: reason, Copy: copies}, t)
	} else {
		q.lose(reason, t)
	}
	attrs := []any{slog.String("reason", reason), slog.Uint64("seq", seq), slog.Uint64("records", t.Records), slog.Uint64("bytes", t.Payload)}
	if named {
		attrs = append(attrs, slog.String("batch", id.String()))
	}
	if cause != nil {
		seg.damaged = true
		q.log.Error("a batch in the queue cannot be read and is lost; its segment will be kept as "+corruptExt, append(attrs, slog.String("segment", seg.path), slog.Any("error", cause))...)
		return
	}
	q.log.Warn("a batch was dropped from the queue", attrs...)
}

// dropNew counts and names an entry that a full queue does not take. The caller holds mu.
func (q *Queue) dropNew(e *Entry) {
	t := entryTally(e, e.size())
	q.loseID(Loss{ID: e.Batch.ID, Reason: LostDropNewest}, t)
	q.log.Warn("a batch was not taken into the full queue", slog.String("reason", LostDropNewest),
		slog.Uint64("records", t.Records), slog.Uint64("bytes", t.Payload), slog.String("batch", e.Batch.ID.String()))
}

// dropOldest takes the oldest committed entry that no consumer holds; false where there
// is none, or it cannot be read for now: who waits for room is woken to try again. The caller
// holds mu.
func (q *Queue) dropOldest(reason string) bool {
	seq := q.oldestFree()
	if seq == 0 {
		return false
	}
	if q.dropSeq(seq, reason) == nil {
		return true
	}
	time.AfterFunc(retryEvery, func() {
		q.mu.Lock()
		defer q.mu.Unlock()
		q.moreRoom()
	})
	return false
}

// dropSeq drops the committed entry at seq for reason. An error says that its head cannot be
// read, and is no damage: then it stays. The caller holds mu.
func (q *Queue) dropSeq(seq uint64, reason string) error {
	seg := q.segmentOf(seq)
	h, err := q.headOf(seg, seq)
	switch {
	case err == nil:
		q.loseEntry(seg, seq, h, reason, nil)
	case !isDamage(err):
		return fmt.Errorf("read the head of entry %d to drop it: %w", seq, err)
	default:
		q.loseEntry(seg, seq, h, LostCorrupt, err)
	}
	return nil
}

// headOf returns the head of a committed entry, from memory or disk. The caller holds mu.
func (q *Queue) headOf(seg *segment, seq uint64) (*head, error) {
	if it := q.mem.get(seq); it != nil {
		h := it.head()
		return &h, nil
	}
	h, found, err := seg.read(seq, true)
	q.noteRead(seg, err)
	err = missing(seg, seq, found, err)
	if h.seq == 0 {
		return nil, err
	}
	return &h, err
}

// oldestFree returns the oldest committed seq that some cursor has not acked and no
// consumer holds, or 0. The caller holds mu.
func (q *Queue) oldestFree() uint64 {
	for seq := nextOpen(q.cursors, 1); seq <= q.committed; seq = nextOpen(q.cursors, seq+1) {
		if !slices.ContainsFunc(q.cursors, func(c *Cursor) bool { return c.given[seq].held }) {
			return seq
		}
	}
	return 0
}

// nextOpen returns the first seq from at on that one of cursors has not acked.
func nextOpen(cursors []*Cursor, at uint64) uint64 {
	seq := uint64(math.MaxUint64)
	for _, c := range cursors {
		seq = min(seq, c.acked.Gap(at))
	}
	return seq
}

// low returns the oldest seq that some cursor has not acked, or one that leaves.
func (q *Queue) low() uint64 {
	low := q.nextSeq
	for _, c := range q.stayingAndLeaving() {
		low = min(low, c.acked.Next())
	}
	return low
}

// expire drops what is older than MaxAge from the front. The caller holds mu.
func (q *Queue) expire(now time.Time) {
	for q.o.MaxAge > 0 {
		seq := q.oldestFree()
		if seq == 0 {
			return
		}
		h, err := q.headOf(q.segmentOf(seq), seq)
		if err == nil && !q.expired(h.e.Batch, now) || err != nil && !isDamage(err) {
			return
		}
		if q.dropSeq(seq, LostExpired) != nil {
			return
		}
	}
}

func (q *Queue) expired(s batch.Sealed, now time.Time) bool {
	return q.o.MaxAge > 0 && now.UnixNano()-s.Time > int64(q.o.MaxAge)
}
