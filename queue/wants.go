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

// settleCursors brings the entries that were stored before this start in line with the
// cursors of this run: none needs what it does not want (one may be new, or its acks of that
// were not stored), and what only one of those that are going needed is lost. A gone one stays
// stored until the commit that says so. Nobody else has the queue yet; see SetCursors for later.
func (q *Queue) settleCursors(going []*Cursor) error {
	if len(going) == 0 && q.o.Wants == nil {
		return nil
	}
	var lost tally
	for _, seg := range q.segs {
		for seq := seg.first; seq <= seg.last; seq++ {
			t, err := q.settleOld(seg, seq, going)
			if err != nil {
				return err
			}
			lost.add(t)
		}
	}
	for _, c := range going {
		q.ackLater()
		q.log.Warn("a cursor is no longer configured; nothing is kept for it", slog.String("cursor", c.name))
	}
	q.logUnneeded(lost)
	return nil
}

// settleOld is settleCursors for one entry; it returns what was lost.
func (q *Queue) settleOld(seg *segment, seq uint64, going []*Cursor) (lost tally, err error) {
	gone := slices.ContainsFunc(going, func(c *Cursor) bool { return !c.acked.Contains(seq) })
	var took tally
	wanted := false
	if id, ok := seg.ids.id(seq); ok && q.o.Wants != nil {
		for _, c := range q.cursors {
			wants := q.wants(c, id.Lane)
			wanted = wanted || wants
			if wants || c.acked.Contains(seq) {
				continue
			}
			t, err := q.tallyOf(seg, seq)
			if isDamage(err) {
				return lost, nil // it is found, and counted, when it is read
			} else if err != nil {
				return lost, fmt.Errorf("read the head of entry %d: %w", seq, err)
			}
			c.take(seg, seq, t)
			took = t
		}
	}
	switch {
	case q.needed(seq):
	case gone || took.Batches > 0 && !wanted:
		h, err := q.headOf(seg, seq)
		if err != nil && !isDamage(err) {
			return lost, fmt.Errorf("read the head of entry %d: %w", seq, err)
		}
		e := queued{seg: seg, seq: seq}
		e.id, e.named = seg.ids.id(seq)
		e.take(h, err)
		return q.loseUnneeded(&e, going), nil
	case took.Batches > 0:
		q.pass(seg, seq, took)
	}
	return lost, nil
}

func (q *Queue) wants(c *Cursor, lane batch.Lane) bool {
	return q.o.Wants == nil || q.o.Wants(c.name, lane)
}
