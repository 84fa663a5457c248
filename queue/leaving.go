package queue

import (
	"log/slog"
	"slices"
	"time"
)

// A cursor that was removed is not consumed any more, and nothing is kept for it. But what
// it had not acked must be counted, entry by entry, so that it stays in Queue.leaving until all
// is gone through. Whatever is interrupted, this holds, in memory and in each commit:
//
//	an entry is passed  ⟺  all of cursors and all of leaving have acked it
//
// An entry that no other cursor needs is lost: the leaving ones ack it, and it is passed.
// What others need the leaving ones do not ack, until those others have all passed it.
// So a start that finds the record of such a cursor can go on, or keep the cursor.

// settleLeaving drops what only leaving cursors needed, then forgets them. It returns early
// where the queue is closed or has failed. The caller holds changing.
func (q *Queue) settleLeaving() {
	q.mu.Lock()
	going, to := q.leaving, q.active().last // nothing behind it is stored for them
	q.mu.Unlock()
	if len(going) == 0 {
		return
	}
	var lost tally
	for {
		err := q.inPortions(1, to, portionWalk{
			pick: func(e *queued) bool { return !q.needed(e.seq) && slices.ContainsFunc(going, e.openFor) },
			do:   func(e *queued) { lost.add(q.loseUnneeded(e, going)) },
		})
		if err == nil {
			break
		}
		q.mu.Lock()
		ended := q.state() != nil
		q.mu.Unlock()
		if ended {
			return
		}
		q.log.Error("what only cursors needed that are configured no more could not be read to be dropped; it is tried again", slog.Any("error", err))
		select {
		case <-time.After(retryEvery):
		case <-q.failed:
			return
		case <-q.stop:
			return
		}
	}
	q.mu.Lock()
	q.leaving, q.retired = nil, append(q.retired, going...)
	q.ackLater()
	q.moreRoom() // who waits may look at the policy again
	q.mu.Unlock()
	q.logUnneeded(lost)
}

func (q *Queue) logUnneeded(lost tally) {
	if lost.Batches > 0 {
		q.log.Error("batches that only cursors needed which are no longer configured are dropped", slog.String("reason", LostNoCursor),
			slog.Uint64("batches", lost.Batches), slog.Uint64("records", lost.Records), slog.Uint64("bytes", lost.Payload))
	}
}

// loseUnneeded drops an entry that nobody has not acked but the cursors going, and returns what
// is lost by that. The caller holds mu.
func (q *Queue) loseUnneeded(e *queued, going []*Cursor) tally {
	gone, had, copies := false, false, true
	for _, c := range going {
		switch {
		case !e.openFor(c):
		case q.hadFor(c, e):
			had = true
		default:
			gone, copies = true, copies && q.copyOnly(c)
		}
	}
	reason := LostNoCursor
	if e.err != nil {
		e.seg.damaged, reason = true, LostCorrupt
	}
	q.pass(e.seg, e.seq, e.t)
	switch {
	case had && !gone && e.err == nil:
		return tally{}
	case e.named:
		q.loseID(Loss{Seq: e.seq, ID: e.id, Reason: reason, Copy: copies && (gone || had)}, e.t)
	default:
		q.lose(reason, e.t)
	}
	return e.t
}

// hadFor reports whether another cursor wants the entry for c, which goes and never had a
// consumer. The caller holds mu.
func (q *Queue) hadFor(c *Cursor, e *queued) bool {
	if !c.unbegun {
		return false
	}
	return q.o.Wants == nil || e.named && slices.ContainsFunc(q.cursors, func(other *Cursor) bool {
		return q.wants(other, e.id.Lane) && (q.copyOnly(c) || !q.copyOnly(other))
	})
}

// stayingAndLeaving are the cursors by which it is told whether an entry is passed. The caller
// holds mu.
func (q *Queue) stayingAndLeaving() []*Cursor {
	if len(q.leaving) == 0 {
		return q.cursors
	}
	return slices.Concat(q.cursors, q.leaving)
}
