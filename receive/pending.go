package receive

import (
	"slices"
	"sync"

	"ftfuse/internal/batch"
	"ftfuse/queue"
)

// handledBatch is a batch that the handler took.
type handledBatch struct {
	seq uint64
	id  batch.ID
}

// pending knows which batches are not final yet, and which of them the handler took since
// its last commit. Safe for concurrent use.
type pending struct {
	mu    sync.Mutex
	ids   map[batch.ID]struct{} // taken, and not final
	order []batch.ID            // those of them that the queue has not given yet, in its order
	done  []handledBatch        // the handler took them, not committed
	going int                   // taken for a commit, and not let go by the queue yet
	bytes int64                 // payload of done
	kick  chan struct{}         // there is something to commit
	full  chan struct{}         // it is enough not to wait
	more  chan struct{}         // another one was handled
}

func (p *pending) init() {
	p.ids = map[batch.ID]struct{}{}
	p.kick, p.full, p.more = make(chan struct{}, 1), make(chan struct{}, 1), make(chan struct{}, 1)
}

// expect notes a batch that is about to be committed to the queue.
func (p *pending) expect(id batch.ID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, twice := p.ids[id]; twice { // the first one was damaged
		p.order = slices.DeleteFunc(p.order, func(x batch.ID) bool { return x == id })
	}
	p.ids[id] = struct{}{}
	p.order = append(p.order, id)
}

// passTo forgets the batches before item that the queue did not give: they are lost.
func (p *pending) passTo(item queue.Item) {
	p.mu.Lock()
	defer p.mu.Unlock()
	at := slices.Index(p.order, item.Batch.ID)
	for _, id := range p.order[:max(at, 0)] {
		delete(p.ids, id)
	}
	p.order = p.order[at+1:]
}

// finish notes that the handler took item.
func (p *pending) finish(item queue.Item, limit int64) {
	p.mu.Lock()
	p.done = append(p.done, handledBatch{item.Seq, item.Batch.ID})
	p.bytes += int64(item.Batch.Payload)
	full := p.bytes >= limit
	p.mu.Unlock()
	signal(p.kick)
	if full {
		signal(p.full)
	}
	signal(p.more)
}

// take returns what the handler took since the last call.
func (p *pending) take() []handledBatch {
	p.mu.Lock()
	defer p.mu.Unlock()
	done := p.done
	p.done, p.bytes = nil, 0
	p.going += len(done)
	return done
}

// letGo acks batches that are durable with the handler: they are final.
func (p *pending) letGo(done []handledBatch, ack func(seq uint64)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, d := range done {
		ack(d.seq)
		delete(p.ids, d.id)
	}
	p.going -= len(done)
	signal(p.more)
}

// settled reports whether the handler took all of those that wait in the queue.
func (p *pending) settled(waiting func() uint64) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return waiting() <= uint64(len(p.done)+p.going)
}

// Expects reports whether a batch that was taken is not final yet.
func (p *pending) Expects(id batch.ID) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	_, ok := p.ids[id]
	return ok
}

// Final returns what of delivered, from below on, is final.
func (p *pending) Final(lane batch.Lane, delivered *batch.Ranges, below uint64) []batch.Range {
	final := batch.Ranges{}
	for _, r := range delivered.All() {
		if r.Last >= below {
			final.AddRange(batch.Range{First: max(r.First, below), Last: r.Last})
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for id := range p.ids {
		if id.Lane == lane {
			final.RemoveRange(batch.Range{First: id.N, Last: id.N})
		}
	}
	return final.All()
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
