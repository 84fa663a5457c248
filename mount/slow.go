package mount

import (
	"context"
	"errors"
	"sync"
	"syscall"

	"bazil.org/fuse"

	"ftfuse/queue"
)

// gate lets one operation at a time have a file for itself (truncation, overwriting), or
// one parked write. Who wants to keep the writes away that the loop answers inline
// reserves the spool file before it enters.
type gate chan struct{} // capacity 1

func newGate() gate { return make(gate, 1) }

// enter waits until the file is free, or returns ctx's error.
func (g gate) enter(ctx context.Context) error {
	select {
	case g <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (g gate) leave() { <-g }

// pending knows the requests that are not answered yet and can be interrupted.
type pending struct {
	mu     sync.Mutex
	cancel map[fuse.RequestID]func()
}

func (p *pending) add(id fuse.RequestID, cancel func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cancel == nil {
		p.cancel = map[fuse.RequestID]func(){}
	}
	p.cancel[id] = cancel
}

func (p *pending) remove(id fuse.RequestID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.cancel, id)
}

// interrupt cancels a request. One that was answered meanwhile is not there any more,
// and the kernel forgets its INTERRUPT (fs/fuse/dev.c, request_end).
func (p *pending) interrupt(id fuse.RequestID) {
	p.mu.Lock()
	cancel := p.cancel[id]
	p.mu.Unlock()
	if cancel != nil {
		cancel()
	}
}

// later runs work on a goroutine of its own. Its context ends at an INTERRUPT of the
// request and at the end of the server.
func (s *server) later(id fuse.RequestID, work func(ctx context.Context)) {
	ctx, cancel := context.WithCancel(s.ctx)
	s.pending.add(id, cancel)
	s.wg.Go(func() {
		defer cancel()
		work(ctx)
	})
}

// answer removes the request from the pending ones; it is called right before a reply.
func (s *server) answered(id fuse.RequestID) { s.pending.remove(id) }

// errnoOf is what a program gets for an error of a slow operation: EINTR if ctx ended
// by an INTERRUPT, ESHUTDOWN if the server stops, a bare errno as it is, EIO else.
func (s *server) errnoOf(ctx context.Context, err error) syscall.Errno {
	switch {
	case s.ctx.Err() != nil:
		return syscall.ESHUTDOWN
	case ctx.Err() != nil:
		return syscall.EINTR
	}
	if e, ok := err.(syscall.Errno); ok {
		return e
	}
	if errors.Is(err, queue.ErrFull) {
		return syscall.ENOSPC
	}
	s.log.Error("a request failed", "err", err)
	return syscall.EIO
}
