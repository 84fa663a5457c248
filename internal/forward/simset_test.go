package forward

import (
	"context"
	"maps"
	"slices"

	"ftfuse/internal/batch"
	"ftfuse/queue"
)

// deliveredSet is the delivered set of a node; the real one, but for a mutant.
type deliveredSet interface {
	Look(id batch.ID, crc uint32) (known, conflict bool)
	Add(id batch.ID, crc uint32)
	Merge(lane batch.Lane, below uint64)
	Lanes() []batch.Lane
	Ranges(lane batch.Lane) batch.Ranges
}

// highWater is the mutant that remembers the highest number of a lane instead of a set.
type highWater map[batch.Lane]uint64

func (h highWater) Look(id batch.ID, _ uint32) (known, conflict bool) {
	return id.N <= h[id.Lane], false
}
func (h highWater) Add(id batch.ID, _ uint32)           { h[id.Lane] = max(h[id.Lane], id.N) }
func (h highWater) Merge(lane batch.Lane, below uint64) { h[lane] = max(h[lane], below-1) }
func (h highWater) Lanes() []batch.Lane                 { return slices.Collect(maps.Keys(h)) }
func (h highWater) Ranges(lane batch.Lane) (all batch.Ranges) {
	all.AddRange(batch.Range{First: 1, Last: h[lane]})
	return all
}

// List calls fn for what a cursor has not acked, in order.
func (q *simQueue) List(_ context.Context, cursor string, fn func(queue.Listed) error) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, c := range q.cursors {
		for _, seq := range slices.Sorted(maps.Keys(q.disk.entries)) {
			if c.name != cursor || c.acked[seq] {
				continue
			}
			if err := fn(queue.Listed{Head: queue.Head{Seq: seq, ID: q.disk.entries[seq].Batch.ID}}); err != nil {
				return err
			}
		}
	}
	return nil
}

// Lanes and Delivered are what the delivered set has.
func (q *simQueue) Lanes() []batch.Lane {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.set.Lanes()
}

func (q *simQueue) Delivered(lane batch.Lane) batch.Ranges {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.set.Ranges(lane)
}
