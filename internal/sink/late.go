package sink

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"ftfuse/internal/batch"
	"ftfuse/internal/failpoint"
	"ftfuse/queue"
)

// A sink with Options.Late gives bytes their places when their batch is in the queue already:
//
//	Cursor.Next ─▶ plan ─▶ queue.Submit: the places of each byte, in state of their own
//	                           ▼ on disk
//	                       output files ─▶ checkpoint: fdatasync ─▶ Ack, and the places go,
//	                                                                in one commit
//
// So nothing that an output does, or does not get done, is in the way of who fills the queue.

// placePrefix begins the keys of the queue's state that have the note of a batch of a late
// sink (docs/protocol.md, "State"): the batch's id in hexadecimal follows.
const placePrefix = "place/"

var fpPlaced = failpoint.New("sink/placed") // the places of a late sink are on disk, nothing is written

// Limits of what gets its places in one commit.
const (
	lateBatches = 256
	lateBytes   = 16 << 20
	lateSoon    = 50 * time.Millisecond // the longest wait for a batch that was counted and is not given
)

// lateRetry is how long placing rests after an output directory could not be looked at.
const lateRetry = time.Second

func placeKey(id batch.ID) string { return placePrefix + hex.EncodeToString(id.Append(nil)) }

// late is what a late sink keeps beside what any has. It belongs to the applier's goroutine,
// but for what a.mu guards: asks and stir.
type late struct {
	placed uint64 // what the cursor gave up to here has its places
	early  uint64 // newest batch without places that was given before they could be made
	asks   []*ask
	stir   func() // interrupts the wait for a batch
}

// applyLate places and writes first and what is there behind it.
func (s *Sink) applyLate(ctx context.Context, first queue.Item) error {
	items, err := s.applier.gather(ctx, first)
	if err != nil {
		return err
	}
	if err := s.placeLate(ctx, items); err != nil {
		return err
	}
	s.applier.late.placed = max(s.applier.late.placed, items[len(items)-1].Seq)
	for i := range items {
		if err := s.applier.apply(ctx, items[i]); err != nil {
			return err
		}
	}
	return nil
}

// gather returns first and what the cursor gives at once behind it.
func (a *applier) gather(ctx context.Context, first queue.Item) ([]queue.Item, error) {
	items, bytes := []queue.Item{first}, len(first.Batch.Data)
	for left := min(a.unread(), lateBatches-1); left > 0 && bytes < lateBytes; left-- {
		limited, cancel := context.WithTimeout(ctx, lateSoon)
		item, err := a.cur.Next(limited)
		cancel()
		if err != nil && ctx.Err() == nil && errors.Is(err, context.DeadlineExceeded) {
			break // it was dropped, or cannot be read
		}
		if err != nil {
			return nil, err
		}
		items, bytes = append(items, item), bytes+len(item.Batch.Data)
	}
	return items, nil
}

// placeLate gives the items that have none their places. They are on disk when it returns.
func (s *Sink) placeLate(ctx context.Context, items []queue.Item) error {
	s.rotor.storing.Lock() // what register returns is stored before what is newer
	t := &queue.Txn{Aside: true, Sync: true}
	err := s.fillLate(ctx, items, t)
	if err != nil || len(t.Set) == 0 {
		s.rotor.storing.Unlock()
		return err
	}
	stored := make(chan error, 1)
	t.Done = func(err error) { stored <- err }
	_, err = s.o.Queue.Submit(ctx, t)
	s.rotor.storing.Unlock()
	if err != nil {
		return fmt.Errorf("store places in output files: %w", err)
	}
	select {
	case err := <-stored:
		if err != nil {
			return fmt.Errorf("store places in output files: %w", err)
		}
	case <-ctx.Done():
		return ctx.Err()
	}
	return fpPlaced.Inject()
}

// fillLate puts the notes of items into them, and those that are new into t.
func (s *Sink) fillLate(ctx context.Context, items []queue.Item, t *queue.Txn) error {
	a := s.applier
	for i := range items {
		item := &items[i]
		a.mu.Lock()
		known := a.known[item.Seq]
		a.mu.Unlock()
		if known {
			continue
		}
		note, placed := a.q.Get(placeKey(item.Batch.ID))
		if !placed {
			one, err := s.takeLate(ctx, item.Batch)
			if err != nil {
				return err
			}
			note = one.Entries[0].Note
			t.Set = append(append(t.Set, one.Set...), queue.KV{Key: placeKey(item.Batch.ID), Value: note})
		}
		item.Note = note
	}
	return nil
}

// takeLate makes the note of one batch, and waits while an output cannot be looked at.
func (s *Sink) takeLate(ctx context.Context, b batch.Sealed) (*queue.Txn, error) {
	for said := false; ; said = true {
		t, err := s.Take(b, "")
		if err == nil {
			return t, t.Prepare(t)
		}
		if errors.Is(err, ErrHost) || ctx.Err() != nil {
			return nil, err
		}
		if s.count.retries.Add(1); !said {
			s.log.Error("output files cannot be looked at; the local outputs wait, their data stays in the queue", "error", err)
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(lateRetry):
		}
	}
}

// redoLate is redoAll of a late sink: what has places is written again; what has none is left
// to applyLate.
func (a *applier) redoLate(ctx context.Context) error {
	waits := map[string]bool{} // places of batches that were not seen yet
	a.q.Range(placePrefix, func(key string, _ []byte) bool { waits[key] = true; return true })
	for left := a.unread(); left > 0 && len(waits) > 0; left-- {
		item, err := a.nextSoon(ctx)
		if errors.Is(err, errRetry) {
			break
		}
		if err != nil {
			return fmt.Errorf("read the queue: %w", err)
		}
		key := placeKey(item.Batch.ID)
		note, placed := a.q.Get(key)
		if !placed {
			a.late.early = item.Seq
			continue
		}
		delete(waits, key)
		item.Note = note
		a.fresh = max(a.fresh, item.Seq)
		a.expect(item.Batch.ID)
		if err := a.apply(ctx, item); err != nil {
			return fmt.Errorf("redo: %w", err)
		}
		if a.due() {
			if err := a.checkpoint(func(...batch.ID) {}); err != nil {
				return err
			}
		}
	}
	if a.late.early > 0 {
		a.cur.Rewind()
	}
	t := &queue.Txn{Aside: true}
	for key := range waits { // the queue dropped the batch
		t.Set = append(t.Set, queue.KV{Key: key})
	}
	if len(t.Set) > 0 {
		if _, err := a.q.Submit(ctx, t); err != nil {
			return fmt.Errorf("forget places in output files: %w", err)
		}
	}
	return nil
}
