package queue

import (
	"errors"
	"fmt"
	"math"

	"ftfuse/internal/batch"
	"ftfuse/internal/failpoint"
)

var fpPortion = failpoint.New("queue/cursors-portion") // between two portions of a change of cursors

// What is done at once, with mu held, of what goes through all that is queued: an append
// waits no longer than for that.
const (
	portionSeqs    = 1024 // entries that are looked at, in memory
	portionEntries = 64   // entries of them with which something is done
)

// queued is an entry that a portionWalk is at.
type queued struct {
	seg   *segment
	seq   uint64
	id    batch.ID
	named bool // id is known
	known bool // t is; else the head is to be read
	t     tally
	err   error // of reading the head; where that is not known t is one batch
}

// portionWalk is what inPortions does. Both are called with mu held. An entry that pick wants is
// read with mu free; then pick is asked again, then do called.
type portionWalk struct {
	pick func(e *queued) bool
	do   func(e *queued)
}

// inPortions goes over the entries from at to to that are in segments. It returns what
// state says, or an error of reading that is no damage: then the rest is as it was.
func (q *Queue) inPortions(at, to uint64, w portionWalk) error {
	for at <= to {
		q.mu.Lock()
		err := q.state()
		var found []queued
		if err == nil {
			found, at = q.nextPortion(at, to, w)
		}
		q.mu.Unlock()
		if err == nil {
			err = fpPortion.Inject()
		}
		if err != nil {
			return err
		}
		for i := range found {
			found[i].read()
		}
		if err := q.doPortion(found, w); err != nil {
			return err
		}
	}
	return nil
}

// nextPortion finds what pick wants, and where the next portion begins. The caller holds mu.
func (q *Queue) nextPortion(at, to uint64, w portionWalk) (found []queued, next uint64) {
	for seen := 0; at <= to && seen < portionSeqs && len(found) < q.o.portion; seen++ {
		e := queued{seg: q.segmentOf(at), seq: at}
		if e.seg == nil { // drained, and removed
			at = q.segmentBehind(at)
			continue
		}
		at++
		e.id, e.named = e.seg.ids.id(e.seq)
		if !w.pick(&e) {
			continue
		}
		if it := q.mem.get(e.seq); it != nil {
			h := it.head()
			e.take(&h, nil)
		} else if g, ok := q.givenOf(e.seq); ok && e.named {
			e.t, e.known = g.tally, true
		}
		found = append(found, e)
	}
	return found, at
}

// segmentBehind returns where the first segment begins that is behind seq. The caller holds mu.
func (q *Queue) segmentBehind(seq uint64) uint64 {
	for _, s := range q.segs {
		if s.first > seq {
			return s.first
		}
	}
	return math.MaxUint64
}

// givenOf returns what is known of an entry that some cursor was given. The caller holds mu.
func (q *Queue) givenOf(seq uint64) (givenItem, bool) {
	for _, c := range q.cursors {
		if g, ok := c.given[seq]; ok {
			return g, true
		}
	}
	return givenItem{}, false
}

// read reads the head of an entry of which not all is known.
func (e *queued) read() {
	if e.known {
		return
	}
	for {
		h, found, err := e.seg.read(e.seq, true)
		if errors.Is(err, errReopen) {
			continue
		}
		e.take(&h, missing(e.seg, e.seq, found, err))
		return
	}
}

// take notes what reading the head gave: nil, or seq 0, where there is none to be read.
func (e *queued) take(h *head, err error) {
	e.known, e.err, e.t = true, err, tally{Batches: 1}
	if h != nil && h.seq != 0 {
		e.t, e.id, e.named = entryTally(&h.e, h.size()), h.e.Batch.ID, true
	}
}

// doPortion does to found what is to be done.
func (q *Queue) doPortion(found []queued, w portionWalk) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	for i := range found {
		e := &found[i]
		if err := q.state(); err != nil {
			return err
		}
		if !w.pick(e) { // passed meanwhile: perhaps its pages are another's by now
			continue
		}
		if e.err != nil && !isDamage(e.err) {
			return fmt.Errorf("read the head of entry %d: %w", e.seq, e.err)
		}
		w.do(e)
	}
	return nil
}

// openFor says whether c has not acked the entry. The caller holds mu.
func (e *queued) openFor(c *Cursor) bool { return !c.acked.Contains(e.seq) }
