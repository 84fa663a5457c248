package mount

import (
	"context"
	"errors"
	"sync"
	"syscall"
	"time"

	"bazil.org/fuse"

	"ftfuse/mount/kernel"
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

// signalGrace is how long a request goes on after a signal that does not kill. Programs
// do not expect EINTR from a file, and most waits are over in milliseconds: signals of
// timers and children, or of a language's runtime, must not break them.
const signalGrace = 500 * time.Millisecond

// killPoll is how often a thread is looked at after a signal: the kernel sends one
// INTERRUPT only, and a second signal may be the one that kills.
const killPoll = 50 * time.Millisecond

// later runs work on a goroutine of its own, with a copy of the request's header: the
// request itself must not be used any more, since its buffer, of a megabyte, is given
// back. The context ends at the end of the server and after an INTERRUPT of the request:
// at once if its thread is being killed, after signalGrace otherwise.
func (s *server) later(r *fuse.Header, work func(ctx context.Context, h *fuse.Header)) {
	h := kernel.Forgo(r)
	ctx, cancel := context.WithCancel(s.ctx)
	s.pending.add(h.ID, func() { s.wg.Go(func() { giveWay(ctx, cancel, h.Pid) }) })
	s.wg.Go(func() {
		defer cancel()
		work(ctx, &h)
	})
}

// giveWay cancels a request that was interrupted, unless it is done before.
func giveWay(ctx context.Context, cancel func(), tid uint32) {
	grace := time.After(signalGrace)
	tick := time.NewTicker(killPoll)
	defer tick.Stop()
	for !beingKilled(tid) {
		select {
		case <-ctx.Done():
			return
		case <-grace:
			cancel()
			return
		case <-tick.C:
		}
	}
	cancel()
}

// answer gives the reply of a request that later began, unless a successor will: it gets
// the request again and finds what was done.
func (s *server) answer(id fuse.RequestID, reply func()) {
	s.pending.remove(id)
	if !s.leaving.Load() {
		reply()
	}
}

// errnoOf is what a program gets for an error of a slow operation: 0 for none, EINTR if
// ctx ended by an INTERRUPT, ESHUTDOWN if the server stops, a bare errno as it is, EIO
// else.
func (s *server) errnoOf(ctx context.Context, err error) syscall.Errno {
	switch {
	case err == nil:
		return 0
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
