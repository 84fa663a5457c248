package receive

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"ftfuse/internal/batch"
	"ftfuse/internal/failpoint"
	"ftfuse/internal/record"
	"ftfuse/internal/sink"
	"ftfuse/queue"
)

// Handler is what becomes of the batches that a Server took. Its calls come one at a time.
//
// Each batch is in the server's queue, on disk, before the Handler is given it, and leaves
// the queue only when Commit returned nil for a position at or behind it. A Handler that
// stores the position in the same transaction as what it made of the batches, and returns
// it from Position, has each batch exactly once, whatever is killed when. One whose
// Position is always zero gets those again that it had and that the queue had not let go:
// at least once.
type Handler interface {
	// Position returns what the newest Commit that is durable was given; the zero Position
	// if there was none. OpenServer calls it once, before everything else.
	Position(ctx context.Context) (Position, error)

	// Batch takes the next batch, in the order of the queue. Nothing of it need be durable
	// before Commit. An error stops the server, and Commit is not called any more: what came
	// since the last one is given again after a restart. ctx ends when the server is to stop.
	Batch(ctx context.Context, b *Batch) error

	// Commit makes durable all that Batch took since the last Commit, together with at. It
	// comes CommitEvery, or CommitBytes, after the first batch, and when the server stops.
	// An error stops the server.
	Commit(ctx context.Context, at Position) error
}

const handleCursor = "handle"

// Steps at which a kill is tried.
var (
	fpHandled = failpoint.New("receive/handled") // the handler has a batch, not committed
	fpStored  = failpoint.New("receive/stored")  // the handler has committed, the queue has not let go
)

// A note beside a batch in the queue: its version and bits.
const (
	noteVersion = 1
	noteDead    = 1 << 0 // cannot be read: a dead letter, not for the handler
	noteHealed  = 1 << 1
)

// handled is the engine of a Handler.
type handled struct {
	q       *queue.Queue
	cur     *queue.Cursor
	h       Handler
	dead    string // directory of dead letters
	every   time.Duration
	limit   int64
	done    Position // what the handler has for good, as of its start
	readers sync.Pool
	pending

	calls  sync.Mutex // one call of h at a time
	at     uint64     // newest seq that h took; under calls
	broken bool       // h has failed: no Commit; under calls
}

var (
	_ engine = (*handled)(nil)
	_ engine = (*sink.Sink)(nil)
)

// openHandled asks h where it stands, and notes which batches wait for it.
func openHandled(ctx context.Context, q *queue.Queue, h Handler, dead string, every time.Duration, limit int64) (*handled, error) {
	cur, err := q.Cursor(handleCursor)
	if err != nil {
		return nil, err
	}
	at, err := h.Position(ctx)
	if err != nil {
		return nil, fmt.Errorf("ask the handler for its position: %w", err)
	}
	newest := q.Stats().Committed
	switch {
	case at != Position{} && at.Queue != q.Node():
		return nil, fmt.Errorf("%w %v: the handler's store belongs to another queue than this one, %v: batches of this one may be in it or not; give the server the state directory that the store was made with, or the handler an empty store",
			ErrPosition, at, q.Node())
	case at.Seq > newest:
		return nil, fmt.Errorf("%w %v: the queue ends at %d: it is older than the handler's store (restored, or repaired), and what comes next would be taken for handled; start with an empty state directory and an empty store, or set the store's position to %d and accept what was handled behind it twice",
			ErrPosition, at, newest, newest)
	}
	e := &handled{q: q, cur: cur, h: h, dead: dead, every: every, limit: limit, done: at, at: at.Seq}
	e.readers.New = func() any { return new(record.Reader) }
	e.pending.init()
	return e, e.recall(ctx)
}

// recall notes the batches of earlier runs: they are not final yet.
func (e *handled) recall(ctx context.Context) error {
	for left := e.backlog().Waiting.Batches; left > 0; {
		limited, cancel := context.WithTimeout(ctx, time.Second)
		item, err := e.cur.NextHead(limited)
		cancel()
		if errors.Is(err, queue.ErrUnread) && ctx.Err() == nil {
			continue
		}
		if errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
			break // fewer than were counted: some could not be read
		}
		if err != nil {
			return fmt.Errorf("read the queue: %w", err)
		}
		left--
		if item.Seq > e.done.Seq {
			e.expect(item.ID)
		}
	}
	e.cur.Rewind()
	return nil
}

// Take checks b and returns the transaction that commits it.
func (e *handled) Take(b batch.Sealed, from string) (*queue.Txn, error) {
	n := byte(0)
	switch err := e.check(b); {
	case errors.Is(err, record.ErrVersion), errors.Is(err, sink.ErrHost):
		return nil, err
	case err != nil:
		if err := sink.BuryBatch(e.dead, b, from, err); err != nil {
			return nil, err
		}
		n = noteDead
	}
	return &queue.Txn{
		Entries: []queue.Entry{{Batch: b}},
		Prepare: func(t *queue.Txn) error {
			if len(t.Entries) == 0 { // the queue drops it
				return nil
			}
			if t.Healed {
				n |= noteHealed
			}
			t.Entries[0].Note = []byte{noteVersion, n}
			e.expect(b.ID)
			return nil
		},
	}, nil
}

// check reads all of b.
func (e *handled) check(b batch.Sealed) error {
	r := e.readers.Get().(*record.Reader)
	defer e.readers.Put(r)
	return checkBatch(r, b)
}

// Apply gives the handler what comes until ctx ends.
func (e *handled) Apply(ctx context.Context) error {
	r := new(record.Reader)
	for {
		item, err := e.cur.Next(ctx)
		if err != nil {
			return err
		}
		e.passTo(item)
		if err := e.give(ctx, item, r); err != nil {
			return err
		}
		e.finish(item, e.limit)
	}
}

// give hands one batch to the handler, unless it has it.
func (e *handled) give(ctx context.Context, item queue.Item, r *record.Reader) error {
	if item.Seq <= e.done.Seq {
		return nil
	}
	if len(item.Note) != 2 || item.Note[0] != noteVersion {
		return fmt.Errorf("batch %v in the queue: note % x is not of this version", item.Batch.ID, item.Note)
	}
	if item.Note[1]&noteDead != 0 {
		return nil
	}
	b, err := newBatch(item, r)
	if err != nil {
		return fmt.Errorf("batch %v in the queue: %w", item.Batch.ID, err)
	}
	b.Resent, b.Healed = item.Batch.Flags&batch.FlagResent != 0, item.Note[1]&noteHealed != 0
	e.calls.Lock()
	defer e.calls.Unlock()
	if e.broken {
		return errBroken
	}
	if err := e.h.Batch(ctx, b); err != nil {
		e.broken = true
		return fmt.Errorf("handle batch %v: %w", item.Batch.ID, err)
	}
	e.at = item.Seq
	return fpHandled.Inject()
}

// errBroken ends Apply when Commit has failed, which says why.
var errBroken = errors.New("receive: the handler has failed")

// Checkpoints has the handler commit until ctx ends; see engine.
func (e *handled) Checkpoints(ctx context.Context, final func(...batch.ID)) error {
	timer := time.NewTimer(e.every)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return e.commit(final)
		case <-e.kick: // something is handled; others may follow
		}
		timer.Reset(e.every)
		select {
		case <-ctx.Done():
		case <-timer.C:
		case <-e.full:
		}
		if err := e.commit(final); err != nil {
			return err
		}
	}
}

// commit makes durable what was handled, and lets the queue forget it.
func (e *handled) commit(final func(...batch.ID)) error {
	done, err := e.store()
	if err != nil || len(done) == 0 {
		return err
	}
	e.letGo(done, e.cur.Ack)
	ids := make([]batch.ID, len(done))
	for i, d := range done {
		ids[i] = d.id
	}
	final(ids...)
	return nil
}

// store has the handler commit, and returns what it has for good then.
func (e *handled) store() ([]handledBatch, error) {
	e.calls.Lock()
	defer e.calls.Unlock()
	if e.broken {
		return nil, nil
	}
	done := e.take()
	if len(done) == 0 {
		return nil, nil
	}
	at := Position{Queue: e.q.Node(), Seq: max(e.at, done[len(done)-1].seq)}
	if err := e.h.Commit(context.Background(), at); err != nil {
		e.broken = true
		return nil, fmt.Errorf("handler: commit %v: %w", at, err)
	}
	return done, fpStored.Inject()
}

// Drain returns nil when the handler was given all that the queue holds, or ctx's error.
func (e *handled) Drain(ctx context.Context) error {
	for !e.settled(func() uint64 { return e.backlog().Waiting.Batches }) {
		select {
		case <-e.more:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// Close does nothing: the handler is its owner's.
func (e *handled) Close() error { return nil }

// backlog is what the queue has for the handler.
func (e *handled) backlog() queue.CursorStats {
	all := e.q.Stats().Cursors
	return all[slices.IndexFunc(all, func(c queue.CursorStats) bool { return c.Name == handleCursor })]
}
