package sink

import (
	"context"
	"slices"
	"time"

	"ftfuse/queue"
)

// ask is a call of Placed.
type ask struct {
	upTo uint64
	yes  chan struct{} // closed when all up to there has its places
}

// Placed returns nil when all that was committed when it was called has its places, or ctx's
// error. What has them stays assigned as it is, whatever outputs a Reconfigure takes away, be
// it written already, or on its way, or held. Apply must be running. Several may call it.
func (s *Sink) Placed(ctx context.Context) error {
	a := s.applier
	if a.late == nil { // it got them with its commit
		return nil
	}
	q := &ask{upTo: a.q.Stats().Committed, yes: make(chan struct{})}
	a.mu.Lock()
	a.late.asks = append(a.late.asks, q)
	a.mu.Unlock()
	defer a.withdraw(q)
	again := time.NewTicker(lateSoon) // nothing tells when the last of it is dropped, or acked
	defer again.Stop()
	for {
		a.stir()
		select {
		case <-q.yes:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		case <-again.C:
		}
	}
}

func (a *applier) withdraw(q *ask) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.late.asks = slices.DeleteFunc(a.late.asks, func(x *ask) bool { return x == q })
}

// stir has the applier answer, also where it waits for a batch.
func (a *applier) stir() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.late.stir != nil {
		a.late.stir()
	}
}

// nextLate is nextDue, and answers who asks: what the cursor has given is placed, then, and
// nothing is in hand.
func (a *applier) nextLate(ctx context.Context) (queue.Item, error) {
	for {
		limited, cancel := context.WithCancel(ctx)
		a.mu.Lock()
		a.late.stir = cancel
		a.answer()
		a.mu.Unlock()
		item, err := a.nextDue(limited)
		stirred := limited.Err() != nil
		cancel()
		if err != nil && stirred && ctx.Err() == nil {
			continue // an error of the queue comes again
		}
		return item, err
	}
}

// answer tells those who ask that what they ask for is placed. a.mu is held.
func (a *applier) answer() {
	l := a.late
	if len(l.asks) == 0 {
		return
	}
	all := a.unread() == 0 && l.placed >= l.early
	l.asks = slices.DeleteFunc(l.asks, func(q *ask) bool {
		if all || l.placed >= q.upTo {
			close(q.yes)
			return true
		}
		return false
	})
}
