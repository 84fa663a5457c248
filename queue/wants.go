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
// were not stored), and what only one of those that are going needed is lost. A gone one stays stored until the commit that says so. It is
// called once for each that goes. Nobody else has the queue yet, or the caller holds mu.
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
		if q.ackLater(); !c.unbegun {
			q.log.Warn("a cursor is no longer configured; nothing is kept for it", slog.String("cursor", c.name))
		}
	}
	if lost.Batches > 0 {
		q.log.Error("batches that only cursors needed which are no longer configured are dropped", slog.String("reason", LostNoCursor),
			slog.Uint64("batches", lost.Batches), slog.Uint64("records", lost.Records), slog.Uint64("bytes", lost.Payload))
	}
	return nil
}

// settleOld is settleCursors for one entry; it returns what was lost.
func (q *Queue) settleOld(seg *segment, seq uint64, going []*Cursor) (lost tally, err error) {
	gone, copies, had := false, true, false
	for _, c := range going {
		switch {
		case c.acked.Contains(seq):
		case q.hadFor(c, seg, seq):
			had = true
		default:
			gone, copies = true, copies && q.copyOnly(c)
		}
	}
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
		return q.loseUnneeded(seg, seq, gone && copies)
	case took.Batches > 0:
		q.pass(seg, seq, took)
	case had:
		t, err := q.tallyOf(seg, seq)
		if isDamage(err) {
			return q.loseUnneeded(seg, seq, true)
		} else if err != nil {
			return lost, fmt.Errorf("read the head of entry %d: %w", seq, err)
		}
		q.pass(seg, seq, t)
	}
	return lost, nil
}

// hadFor reports whether another cursor wants seq for c, which goes and never had a consumer.
func (q *Queue) hadFor(c *Cursor, seg *segment, seq uint64) bool {
	if !c.unbegun {
		return false
	}
	id, ok := seg.ids.id(seq)
	return q.o.Wants == nil || ok && slices.ContainsFunc(q.cursors, func(other *Cursor) bool {
		return q.wants(other, id.Lane) && (q.copyOnly(c) || !q.copyOnly(other))
	})
}

// loseUnneeded drops an entry that only retired cursors have not acked.
func (q *Queue) loseUnneeded(seg *segment, seq uint64, copies bool) (tally, error) {
	h, err := q.headOf(seg, seq)
	t, reason := tally{Batches: 1}, LostNoCursor
	id, named := seg.ids.id(seq)
	switch {
	case err != nil && !isDamage(err):
		return t, fmt.Errorf("read the head of entry %d: %w", seq, err)
	case err != nil:
		seg.damaged, reason = true, LostCorrupt
	}
	if h != nil {
		t, id, named = entryTally(&h.e, h.size()), h.e.Batch.ID, true
	}
	q.pass(seg, seq, t)
	if named {
		q.loseID(Loss{Seq: seq, ID: id, Reason: reason, Copy: copies}, t)
	} else {
		q.lose(reason, t)
	}
	return t, nil
}

func (q *Queue) wants(c *Cursor, lane batch.Lane) bool {
	return q.o.Wants == nil || q.o.Wants(c.name, lane)
}
