package queue

import (
	"log/slog"

	"ftfuse/internal/batch"
)

// damaged is what of the delivered set has no copy left, here or behind here, because a disk
// lost it: another copy of it is welcome, where else it would be a duplicate. What was lost in
// this queue stands in the account of losses (LostCorrupt), which outlives restarts; and it is
// taken off that in the very commit that holds the other copy, so that this is taken once.
type damaged struct {
	behind map[batch.Lane]*batch.Ranges // lost by nodes behind this one, see TakeAgain
	coming map[batch.ID]struct{}        // taken again, not committed yet
	healed tally                        // since the queue was opened
}

func newDamaged() damaged {
	return damaged{behind: map[batch.Lane]*batch.Ranges{}, coming: map[batch.ID]struct{}{}}
}

// welcome says whether id, which is in the delivered set, is to be taken again. The caller
// holds mu.
func (q *Queue) welcome(id batch.ID) bool {
	if r := q.damaged.behind[id.Lane]; r != nil && r.Contains(id.N) {
		return true
	}
	if _, coming := q.damaged.coming[id]; coming {
		return false
	}
	return q.lost.corrupt(id)
}

// heals notes that another copy of a batch was submitted, if it is one that was welcome. The
// caller holds mu.
func (q *Queue) heals(s *batch.Sealed) {
	if len(q.damaged.behind) > 0 {
		if r := q.damaged.behind[s.ID.Lane]; r != nil && r.Contains(s.ID.N) {
			q.damaged.drop(s.ID.Lane, batch.Range{First: s.ID.N, Last: s.ID.N})
		}
	}
	if len(q.lost.lanes) > 0 && q.lost.corrupt(s.ID) {
		q.damaged.coming[s.ID] = struct{}{}
		q.pending.heals = true
	}
}

// healNow takes what is being committed off the account of losses. The caller holds mu.
func (q *Queue) healNow(items []*memItem) {
	if len(q.damaged.coming) == 0 {
		return
	}
	for _, it := range items {
		s := &it.e.Batch
		if _, coming := q.damaged.coming[s.ID]; !coming {
			continue
		}
		delete(q.damaged.coming, s.ID)
		q.lost.heal(s.ID)
		q.damaged.healed.add(entryTally(&it.e, it.size))
		q.log.Info("a batch that was damaged in this queue came again and is taken", slog.String("batch", s.ID.String()),
			slog.Uint64("records", uint64(s.Records)), slog.Uint64("bytes", s.Payload))
	}
}

// TakeAgain tells that nodes behind this one lost batches of lane to damage: what of them was
// taken here is taken again if it comes again. It is forgotten with the next restart, so
// whoever tells it tells it again.
func (q *Queue) TakeAgain(lane batch.Lane, ranges ...batch.Range) {
	q.mu.Lock()
	defer q.mu.Unlock()
	had := q.delivered.Ranges(lane)
	for _, r := range ranges {
		for _, h := range had.All() {
			if h.First = max(h.First, r.First); h.First > min(h.Last, r.Last) {
				continue
			}
			if q.damaged.behind[lane] == nil {
				q.damaged.behind[lane] = &batch.Ranges{}
			}
			q.damaged.behind[lane].AddRange(batch.Range{First: h.First, Last: min(h.Last, r.Last)})
		}
	}
}

// merge forgets what is below a lane's horizon: it is final.
func (d *damaged) merge(lane batch.Lane, below uint64) {
	d.drop(lane, batch.Range{First: 0, Last: below - 1})
}

func (d *damaged) drop(lane batch.Lane, r batch.Range) {
	if all := d.behind[lane]; all != nil {
		if all.RemoveRange(r); all.Len() == 0 {
			delete(d.behind, lane)
		}
	}
}

// corrupt says whether id was lost to damage, and did not come again.
func (l *lostLanes) corrupt(id batch.ID) bool {
	x := l.lanes[id.Lane]
	if x == nil {
		return false
	}
	for i := range x.by {
		if x.by[i].Reason == LostCorrupt {
			return x.by[i].Ranges.Contains(id.N)
		}
	}
	return false
}

// heal takes id off what was lost to damage.
func (l *lostLanes) heal(id batch.ID) {
	x := l.lanes[id.Lane]
	kept := x.by[:0]
	for _, b := range x.by {
		if b.Reason == LostCorrupt {
			b.shrink(func(r *batch.Ranges) { r.RemoveRange(batch.Range{First: id.N, Last: id.N}) })
		}
		if b.Ranges.Len() > 0 {
			kept = append(kept, b)
		}
	}
	l.dirty[id.Lane] = true
	if x.by = kept; len(kept) == 0 {
		delete(l.lanes, id.Lane)
	}
}
