package queue

import (
	"fmt"
	"log/slog"
	"slices"

	"ftfuse/internal/batch"
)

// skipUnwanted acks it, which is being committed to seg, for every cursor that does not
// want its lane, and passes it if nobody is left. The caller holds mu.
func (q *Queue) skipUnwanted(seg *segment, it *memItem) {
	if q.o.Wants == nil && it.replaces.seq == 0 {
		return
	}
	t := entryTally(&it.e, it.size)
	id := it.e.Batch.ID
	wanted, skipped := false, false
	for _, c := range q.cursors {
		if q.wants(c, id.Lane) {
			wanted = true
		} else if !c.acked.Contains(it.seq) {
			c.take(seg, it.seq, t)
			skipped = true
		}
	}
	if q.needed(it.seq) || !skipped && it.replaces.seq == 0 {
		return
	}
	q.pass(seg, it.seq, t)
	if !wanted {
		q.loseID(Loss{Seq: it.seq, ID: id, Reason: LostNoCursor}, t)
		q.log.Warn("a batch that no destination is configured for was dropped", slog.String("reason", LostNoCursor),
			slog.Uint64("records", t.Records), slog.Uint64("bytes", t.Payload), slog.String("batch", id.String()))
	}
}

// settleWants brings the entries that were stored before this start in line with Wants: no
// cursor needs what it does not want (it may be new, or its acks of that were not stored).
// Nobody else has the queue yet; see SetCursors for later.
func (q *Queue) settleWants() error {
	if q.o.Wants == nil {
		return nil
	}
	var lost tally
	for _, seg := range q.segs {
		for seq := seg.first; seq <= seg.last; seq++ {
			t, err := q.settleOld(seg, seq)
			if err != nil {
				return err
			}
			lost.add(t)
		}
	}
	q.logUnneeded(lost)
	return nil
}

// settleOld is settleWants for one entry; it returns what was lost.
func (q *Queue) settleOld(seg *segment, seq uint64) (lost tally, err error) {
	e := queued{seg: seg, seq: seq}
	if e.id, e.named = seg.ids.id(seq); !e.named && q.needed(seq) { // the list of ids has an end
		if err := q.know(&e); err != nil || !e.named {
			return lost, err
		}
	}
	wanted, passed := false, false
	for _, c := range q.cursors {
		wants := q.wants(c, e.id.Lane)
		wanted = wanted || wants
		if wants || !e.openFor(c) {
			continue
		}
		if err := q.know(&e); err != nil || e.err != nil {
			return lost, err // the second: it is found, and counted, when it is read
		}
		c.take(seg, seq, e.t)
		passed = true
	}
	switch {
	case !passed, q.needed(seq), slices.ContainsFunc(q.leaving, e.openFor): // the last: see settleLeaving
	case wanted:
		q.pass(seg, seq, e.t)
	default:
		return q.loseUnneeded(&e, nil), nil
	}
	return lost, nil
}

// know reads the head of an entry of which not all is known. An error is no damage. The caller
// holds mu.
func (q *Queue) know(e *queued) error {
	if e.known {
		return nil
	}
	h, err := q.headOf(e.seg, e.seq)
	if err != nil && !isDamage(err) {
		return fmt.Errorf("read the head of entry %d: %w", e.seq, err)
	}
	e.take(h, err)
	return nil
}

func (q *Queue) wants(c *Cursor, lane batch.Lane) bool {
	return q.o.Wants == nil || q.o.Wants(c.name, lane)
}
