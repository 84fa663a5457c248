package forward

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"
)

// drainPoll is how often Drain looks.
const drainPoll = 10 * time.Millisecond

// Drain waits until every batch of the queue is with a next node, ends the connections
// in order and returns nil; the caller submits nothing meanwhile. It returns an error
// that says what stays in the queue and why where ctx ends first, where nothing is left
// but batches that were refused, or where no destination is connected for
// Options.ReconnectGrace.
// Run goes on until its own context ends.
func (f *Forwarder) Drain(ctx context.Context) error {
	errs := make([]error, len(f.lines))
	var wg sync.WaitGroup
	for i, l := range f.lines {
		wg.Go(func() { errs[i] = l.sendAll(ctx) })
	}
	wg.Wait()
	for _, l := range f.lines {
		l.mu.Lock()
		dests := slices.Clone(l.dests) // a service may be given another host meanwhile
		l.mu.Unlock()
		for _, d := range dests {
			wg.Go(func() { _ = d.client.Drain(ctx) }) // what it has left is counted by sendAll
		}
	}
	wg.Wait()
	return errors.Join(errs...)
}

// sendAll waits until the line has sent all that it can.
func (l *line) sendAll(ctx context.Context) error {
	tick := time.NewTicker(drainPoll)
	defer tick.Stop()
	alone := time.Now()
	for {
		left, refused := l.left()
		if left == 0 {
			return nil
		}
		say := func(why string) error {
			return fmt.Errorf("%d batches of group %q stay queued: %s", left, l.group.Name, why)
		}
		if left == refused {
			return say("the next nodes refused them")
		}
		if l.connected() {
			alone = time.Now()
		}
		if time.Since(alone) > l.f.o.ReconnectGrace {
			return say("no destination is connected: " + l.lastError())
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", say("no time is left"), ctx.Err())
		}
	}
}

// left is how many batches of the queue no next node has, and how many of these were
// refused wherever they can go; that is looked at only where all others are with one.
func (l *line) left() (left, refused uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if left = l.unsent(); left > uint64(len(l.parked)) {
		return left, 0
	}
	l.forgetDropped()
	for e := range l.parked {
		if len(e.refused) > 0 {
			refused++
		}
	}
	return l.unsent(), refused
}

// unsent is how many batches of the queue no next node has. The caller holds mu.
func (l *line) unsent() (n uint64) {
	for _, c := range l.f.store.Stats().Cursors {
		if c.Name == l.cfg.cursor {
			n = c.Waiting.Batches - min(c.Waiting.Batches, l.count.unfinal.Batches)
			// What was kept for the final ack may be dropped by now, and is counted still.
			n = max(n, min(c.Waiting.Batches, uint64(l.ahead)))
		}
	}
	return n
}

func (l *line) lastError() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, d := range l.dests {
		if l.peers.removed[d.i] {
			continue
		}
		if s := d.client.Stats().LastError; s != "" {
			return s
		}
	}
	return "not yet"
}
