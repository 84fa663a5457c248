package sink

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"ftfuse/internal/batch"
	"ftfuse/queue"
)

// Keys of the queue's state (docs/protocol.md, "State").
const (
	setPrefix   = "set/"   // + id, 16 hexadecimal digits: a template set in JSON
	shiftPrefix = "shift/" // + era, 16 hexadecimal digits: where a generation's bytes went instead
)

// redoAll reads every batch that earlier runs left in the queue, makes their files and
// generations known, and writes what is missing. Files that cannot be written to for
// now are held; everything is known when it returns, so that new batches can be
// assigned behind the old ones.
func (a *applier) redoAll(ctx context.Context) error {
	_, a.repaired = a.q.Get(queue.RepairedKey)
	a.starting = true
	defer func() { a.starting = false }()
	if a.late != nil {
		return errors.Join(a.redoLate(ctx), a.tidy(ctx), a.endRepair(ctx))
	}
	for {
		left := a.unread()
		if left == 0 {
			return errors.Join(a.tidy(ctx), a.endRepair(ctx))
		}
		for range left {
			item, err := a.nextSoon(ctx)
			if errors.Is(err, errRetry) { // fewer than were counted: some could not be read
				break
			}
			if err != nil {
				return fmt.Errorf("read the queue: %w", err)
			}
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
	}
}

// nextSoon returns the next batch, or errRetry when none comes at once.
func (a *applier) nextSoon(ctx context.Context) (queue.Item, error) {
	for {
		limited, cancel := context.WithTimeout(ctx, time.Second)
		item, err := a.cur.Next(limited)
		cancel()
		if err == nil || ctx.Err() != nil || !errors.Is(err, context.DeadlineExceeded) {
			return item, err
		}
		if !errors.Is(err, queue.ErrUnread) { // else it comes
			return queue.Item{}, errRetry
		}
	}
}

// unread returns how many batches the cursor has not given yet.
func (a *applier) unread() int {
	c := a.backlog()
	return int(c.Waiting.Batches) - c.Given
}

// adopt makes the generations known that the note in a.note names.
func (a *applier) adopt(p *plan) error {
	for i := range a.note.extents {
		e, pf := &a.note.extents[i], &p.files[i]
		if e.dead {
			continue
		}
		f, err := a.table.file(pf.out.Dir, pf.name, pf.path, &pf.out.Files)
		if err != nil {
			return err
		}
		var shifts []shift
		if raw, ok := a.q.Get(shiftKey(e.era)); ok {
			if shifts, err = parseShifts(raw); err != nil {
				return fmt.Errorf("%s: %w", shiftKey(e.era), err)
			}
		}
		_, after, _ := pf.join(e.before)
		a.table.adopt(f, e, after, shifts)
	}
	return nil
}

// tidy deletes state that no batch in the queue needs.
func (a *applier) tidy(ctx context.Context) error {
	var stale []queue.KV
	a.q.Range(shiftPrefix, func(key string, _ []byte) bool {
		era, err := strconv.ParseUint(strings.TrimPrefix(key, shiftPrefix), 16, 64)
		if err != nil || a.table.generation(era) == nil {
			stale = append(stale, queue.KV{Key: key})
		}
		return true
	})
	a.q.Range(setPrefix, func(key string, _ []byte) bool {
		id, err := strconv.ParseUint(strings.TrimPrefix(key, setPrefix), 16, 64)
		if err != nil || a.planners[id] == nil && id != a.current {
			stale = append(stale, queue.KV{Key: key})
		}
		return true
	})
	if len(stale) == 0 {
		return nil
	}
	if _, err := a.q.Submit(ctx, &queue.Txn{Set: stale}); err != nil {
		return fmt.Errorf("forget unused state: %w", err)
	}
	return nil
}
