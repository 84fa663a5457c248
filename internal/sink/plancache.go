package sink

import (
	"sync"

	"ftfuse/internal/batch"
)

// maxPlanBytes bounds what plans hold, their batches' data included, between the handler,
// which makes them to know how long things are, and the applier, which writes them.
const maxPlanBytes = 64 << 20

// planCache hands plans from the handler to the applier. A plan that does not fit is
// made again from the queue. It is safe for concurrent use.
type planCache struct {
	mu    sync.Mutex
	bytes int64
	plans map[batch.ID]*plan
}

// put takes p over, if there is room; otherwise p is released.
func (c *planCache) put(id batch.ID, p *plan) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.plans[id] != nil || c.bytes+p.bytes() > maxPlanBytes {
		p.release()
		return
	}
	c.plans[id] = p
	c.bytes += p.bytes()
}

// take returns the plan of a batch, which is the caller's then, or nil.
func (c *planCache) take(id batch.ID) *plan {
	c.mu.Lock()
	defer c.mu.Unlock()
	p := c.plans[id]
	if p != nil {
		delete(c.plans, id)
		c.bytes -= p.bytes()
	}
	return p
}

// drop forgets the plan of a batch that will never be written.
func (c *planCache) drop(id batch.ID) {
	if p := c.take(id); p != nil {
		p.release()
	}
}
