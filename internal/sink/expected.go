package sink

import (
	"slices"

	"ftfuse/internal/batch"
	"ftfuse/queue"
)

// expect notes a batch that is about to be committed, and what it was assigned to.
func (a *applier) expect(id batch.ID, to ...*generation) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if first, twice := a.ids[id]; twice { // the first one was damaged
		a.order = slices.DeleteFunc(a.order, func(x batch.ID) bool { return x == id })
		a.abandon(first)
	}
	a.ids[id] = to
	a.order = append(a.order, id)
}

// passTo forgets the batches before item that the queue did not give: it dropped them, by
// max_age or on_full. a.mu is held.
func (a *applier) passTo(item queue.Item) {
	if item.Seq <= a.newest { // given again after a Rewind
		return
	}
	a.newest = item.Seq
	at := slices.Index(a.order, item.Batch.ID)
	for _, id := range a.order[:max(at, 0)] {
		a.abandon(a.ids[id])
		delete(a.ids, id)
		a.plans.drop(id)
	}
	a.order = a.order[at+1:]
}

// abandon settles extents that will never be written.
func (a *applier) abandon(gens []*generation) {
	for _, g := range gens {
		a.table.settle(g) // shifts that are of no more use are forgotten at the next start
	}
}

// expects reports whether a batch that was taken is not final yet.
func (a *applier) expects(id batch.ID) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	_, ok := a.ids[id]
	return ok
}

// written returns the ranges of delivered from below on that are final.
func (a *applier) written(lane batch.Lane, delivered *batch.Ranges, below uint64) []batch.Range {
	var not batch.Ranges
	a.mu.Lock()
	for id := range a.ids {
		if id.Lane == lane {
			not.Add(id.N)
		}
	}
	a.mu.Unlock()
	var final []batch.Range
	for _, r := range delivered.All() {
		first := max(r.First, below)
		for _, x := range not.All() {
			if x.Last < first || x.First > r.Last {
				continue
			}
			if x.First > first {
				final = append(final, batch.Range{First: first, Last: x.First - 1})
			}
			first = x.Last + 1
		}
		if first <= r.Last {
			final = append(final, batch.Range{First: first, Last: r.Last})
		}
	}
	return final
}
