package mount

import (
	"context"
	"sync"
	"sync/atomic"
	"time"
)

// roomPoll is how often room is looked for while somebody waits for it: the queue gives
// space back whenever a destination acks.
const roomPoll = 5 * time.Millisecond

// roomAsk is how many bytes may be accepted before the queue is asked again.
const roomAsk = 256 << 10

// room decides whether the queue's limit, less what is accepted and not yet in the
// queue, leaves room for a write.
type room struct {
	free    func() int64 // bytes until the limit
	budget  atomic.Int64 // bytes that may be accepted without asking
	mu      sync.Mutex
	waiters int
	changed chan struct{} // closed at the next look
}

// take reports whether n bytes may be accepted now, and takes them.
func (r *room) take(n int) bool {
	if r.budget.Add(-int64(n)) >= 0 {
		return true
	}
	free := r.free()
	if free < int64(n) {
		r.budget.Store(0)
		return false
	}
	r.budget.Store(min((free-int64(n))/2, roomAsk))
	return true
}

// wait returns when it is time to look for room again, or with ctx's error.
func (r *room) wait(ctx context.Context) error {
	r.mu.Lock()
	r.waiters++
	if r.changed == nil {
		r.changed = make(chan struct{})
		time.AfterFunc(roomPoll, r.look)
	}
	changed := r.changed
	r.mu.Unlock()
	defer func() {
		r.mu.Lock()
		r.waiters--
		r.mu.Unlock()
	}()
	select {
	case <-changed:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// look wakes those who wait if there is room, else it looks again later.
func (r *room) look() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.waiters > 0 && r.free() <= 0 {
		time.AfterFunc(roomPoll, r.look)
		return
	}
	r.wakeAll()
}

// wake wakes those who wait: what decides has changed.
func (r *room) wake() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.wakeAll()
}

// wakeAll is called with mu held.
func (r *room) wakeAll() {
	if r.changed != nil {
		close(r.changed)
		r.changed = nil
	}
}
