package forward

import (
	"cmp"
	"container/heap"
	"slices"
	"sort"
	"time"

	"ftfuse/internal/batch"
)

// stage is how far a batch is.
type stage uint8

const (
	waits    stage = iota // in its flow, or as a stray at a destination
	fetching              // its bytes are being read for a destination
	given                 // with the client of a destination
	parked                // refused wherever it could go
	unfinal               // a next node has it; not final yet, and kept for that
	gone                  // nothing is owed any more
)

// entry is a batch that the line has read and that is not settled.
type entry struct {
	seq     uint64
	n       uint64 // in its lane
	lane    *laneEntries
	twin    *entry // another copy of the same id
	flow    *flow
	size    int64
	records uint32
	payload uint64
	read    time.Duration // when

	stage   stage
	counted bool           // in flow.out
	resent  bool           // may be with somebody: the flag
	damaged bool           // it was lost further down, and went out again for that
	turn    uint32         // counts how often it was taken, so that a Fetch notices
	at      *destination   // of fetching, given and unfinal
	left    []*destination // that it was recalled from, perhaps too late
	node    batch.Node     // of unfinal: who has it
	due     time.Duration  // of unfinal: sent again then
	tries   uint8          // of unfinal
	refused map[*destination]refusal
}

// flow is the batches that keep together.
type flow struct {
	key  flowKey
	home int // destination, or nowhere
	next int // that it moves to when out is 0; nowhere: it stays
	out  int // with home

	waiting []*entry // by seq; those that do not wait any more are stepped over
	failing bool     // while the line steers
	at      int      // in the heap of home; -1: not in it

	pin      int // where it was moved because home stayed behind
	pinUntil time.Duration
	idle     time.Duration // since when nothing is tracked; see line.sweep
	tracked  int
}

func newFlow(k flowKey) *flow {
	return &flow{key: k, home: nowhere, next: nowhere, at: -1, pin: nowhere}
}

// first returns the oldest batch that waits, or nil.
func (fl *flow) first() *entry {
	n := 0
	for n < len(fl.waiting) && !fl.holds(fl.waiting[n]) {
		fl.waiting[n] = nil
		n++
	}
	fl.waiting = fl.waiting[n:]
	if len(fl.waiting) == 0 {
		return nil
	}
	return fl.waiting[0]
}

// holds reports whether e waits in fl, and not as a stray.
func (fl *flow) holds(e *entry) bool { return e.stage == waits && e.at == nil }

// insert puts e where its seq belongs; mostly that is the end.
func (fl *flow) insert(e *entry) {
	if n := len(fl.waiting); n == 0 || fl.waiting[n-1].seq < e.seq {
		fl.waiting = append(fl.waiting, e)
		return
	}
	i := sort.Search(len(fl.waiting), func(i int) bool { return fl.waiting[i].seq >= e.seq })
	if fl.waiting[i] != e { // it may never have left the slice
		fl.waiting = slices.Insert(fl.waiting, i, e)
	}
}

// insertAll is insert for many, in any order. What is before the first of them is not
// looked at.
func (fl *flow) insertAll(all []*entry) {
	bySeq := func(a, b *entry) int { return cmp.Compare(a.seq, b.seq) }
	slices.SortFunc(all, bySeq)
	i, _ := slices.BinarySearchFunc(fl.waiting, all[0], bySeq)
	tail := slices.Clone(fl.waiting[i:])
	fl.waiting = fl.waiting[:i]
	for len(all) > 0 && len(tail) > 0 {
		switch c := bySeq(all[0], tail[0]); {
		case c > 0:
			fl.waiting, tail = append(fl.waiting, tail[0]), tail[1:]
		case c == 0: // it may never have left the slice
			all = all[1:]
		default:
			fl.waiting, all = append(fl.waiting, all[0]), all[1:]
		}
	}
	fl.waiting = append(append(fl.waiting, all...), tail...)
}

// flowHeap is the flows of one destination that have something to send, the one with
// the oldest batch first.
type flowHeap []*flow

// Len, Less, Swap, Push and Pop are for container/heap.
func (h flowHeap) Len() int           { return len(h) }
func (h flowHeap) Less(i, j int) bool { return h[i].waiting[0].seq < h[j].waiting[0].seq }
func (h flowHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].at, h[j].at = i, j
}

// Push appends.
func (h *flowHeap) Push(x any) {
	fl := x.(*flow)
	fl.at = len(*h)
	*h = append(*h, fl)
}

// Pop removes the last.
func (h *flowHeap) Pop() any {
	old := *h
	fl := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	fl.at = -1
	return fl
}

// update puts fl where it belongs after its front may have changed: in the heap if there
// is something to send, out of it otherwise.
func (h *flowHeap) update(fl *flow) {
	switch some := fl.next == nowhere && fl.first() != nil; {
	case some && fl.at >= 0:
		heap.Fix(h, fl.at)
	case some:
		heap.Push(h, fl)
	case fl.at >= 0:
		h.remove(fl)
	}
}

// remove takes fl out, whatever its front is.
func (h *flowHeap) remove(fl *flow) {
	last := len(*h) - 1
	i := fl.at
	if i != last {
		h.Swap(i, last)
	}
	h.Pop()
	if i != last {
		heap.Fix(h, i)
	}
}
