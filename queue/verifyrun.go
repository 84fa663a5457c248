package queue

import (
	"context"
	"fmt"
	"slices"
)

// Verify reads all segments of a running queue and says what of them is damaged, as
// Verify of a closed one does. It changes nothing and counts nothing as lost. What is
// committed while it reads is not looked at.
func (q *Queue) Verify(ctx context.Context) (Report, error) {
	x := &inspection{q: q, scans: map[uint64]*scan{}, report: Report{Dir: q.dir, Node: q.node}}
	q.mu.Lock()
	if err := q.state(); err != nil {
		q.mu.Unlock()
		return Report{}, err
	}
	segs := slices.Clone(q.segs)
	then := &loaded{}
	for _, s := range segs {
		last := min(s.last, q.committed)
		then.segs = append(then.segs, &segment{num: s.num, first: s.first, last: last, ids: idRuns{runs: slices.Clone(s.ids.runs)}})
	}
	q.mu.Unlock()
	for _, s := range segs {
		if err := ctx.Err(); err != nil {
			return Report{}, fmt.Errorf("verify the queue: %w", err)
		}
		sc, err := s.scan()
		if err != nil {
			return Report{}, fmt.Errorf("verify the queue: %w", err)
		}
		if q.hasSegment(s) { // else it was drained meanwhile
			x.nums, x.scans[s.num] = append(x.nums, s.num), sc
		}
	}
	// What is needed now was needed all the time, so that it must have been found.
	q.mu.Lock()
	then.cursors = map[string]cursorRecord{}
	for _, c := range q.cursors {
		then.cursors[c.name] = cursorRecord{acked: c.acked.Clone()}
	}
	q.mu.Unlock()
	x.judge(then)
	return x.report, nil
}

// scan is scanSegment, of a running queue.
func (s *segment) scan() (*scan, error) {
	unpin := s.pin()
	defer unpin()
	return scanSegment(s.path)
}

// pin has the pages of the newest commit, and of later ones, of an active segment stay as
// they are until unpin is called. A roll waits for that.
func (s *segment) pin() (unpin func()) {
	s.io.RLock()
	defer s.io.RUnlock()
	unpin = func() {}
	if s.db == nil {
		return unpin
	}
	_ = guard(s.path, func() error { // without a pin some of it may look damaged
		tx, err := s.db.Begin(false)
		if err == nil {
			unpin = func() { _ = tx.Rollback() }
		}
		return err
	})
	return unpin
}

func (q *Queue) hasSegment(s *segment) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return slices.Contains(q.segs, s)
}
