package sink

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"ftfuse/internal/batch"
	"ftfuse/internal/failpoint"
	"ftfuse/internal/output"
	"ftfuse/queue"
)

var (
	fpApplied = failpoint.New("sink/applied") // written to its files, not synced
	fpSynced  = failpoint.New("sink/synced")  // files on disk, not acked
	fpTrimmed = failpoint.New("sink/trimmed") // acked to the queue, perhaps not on disk
)

// store is what the applier needs of the queue.
type store interface {
	Get(key string) ([]byte, bool)
	Range(prefix string, fn func(key string, value []byte) bool)
	Submit(ctx context.Context, t *queue.Txn) (queue.Status, error)
	Stats() queue.Stats
}

// cursor is the applier's place in the queue.
type cursor interface {
	Name() string
	Next(ctx context.Context) (queue.Item, error)
	Ack(seq uint64)
	Rewind()
}

// done is a batch of which every byte is written, or held nowhere.
type done struct {
	seq     uint64
	id      batch.ID
	gens    []*generation
	records uint64
	bytes   uint64
}

func newApplier(q store, cur cursor, t *table, d *deadDir, n *counters, log *slog.Logger) *applier {
	a := &applier{
		q: q, cur: cur, table: t, dead: d, count: n, log: log,
		sets: map[uint64]*set{}, planners: map[uint64]*planner{}, plans: &planCache{plans: map[batch.ID]*plan{}},
		held: map[*generation]struct{}{}, known: map[uint64]bool{}, ids: map[batch.ID][]*generation{},
		kick: make(chan struct{}, 1), full: make(chan struct{}, 1), more: make(chan struct{}, 1),
		limit: checkpointBytes, trimmed: func() {},
	}
	a.handle = a.apply
	return a
}

// applier puts batches into the output files in the order of the queue. Its methods
// belong to one goroutine, but for those of the checkpoint.
type applier struct {
	q     store
	cur   cursor
	table *table
	dead  *deadDir
	count *counters
	log   *slog.Logger
	sets  map[uint64]*set
	plans *planCache

	planners map[uint64]*planner
	held     map[*generation]struct{}
	current  uint64 // id of the set that this run assigns by
	fresh    uint64 // batches above this seq were assigned by this run
	starting bool   // the batches of earlier runs are read for the first time
	repaired bool   // the queue's state may be older than the output files
	trimmed  func() // called after each checkpoint
	late     *late  // nil: batches come with their places
	handle   func(context.Context, queue.Item) error
	members  func(route uint32) []string // see Options
	note     note
	buf      []byte // for comparing

	mu      sync.Mutex
	known   map[uint64]bool            // batches of which all is written, not acked yet
	ids     map[batch.ID][]*generation // batches taken and not acked yet; those assigned by this run with where they go
	order   []batch.ID                 // those of them that the queue has not given yet, in its order
	newest  uint64                     // highest seq that the queue gave
	waiting []done                     // written, not synced
	dirty   []*generation              // written to, not synced
	bytes   int64                      // since the last checkpoint
	kick    chan struct{}              // there is something to sync
	limit   int64                      // bytes at which a checkpoint is due
	full    chan struct{}              // bytes reached limit
	more    chan struct{}              // another batch is written
}

// run applies batches until ctx ends.
func (a *applier) run(ctx context.Context) error {
	next := a.nextDue
	if a.late != nil {
		next = a.nextLate
	}
	for {
		item, err := next(ctx)
		switch {
		case errors.Is(err, errRetry):
			if err := a.retry(ctx); err != nil {
				return err
			}
			continue
		case err != nil:
			return err
		}
		if err := a.handle(ctx, item); err != nil {
			return err
		}
	}
}

// errRetry is returned by nextDue when files that could not be written to are due.
var errRetry = errors.New("time to try again")

// nextDue waits for a batch, or for the next attempt at a held file.
func (a *applier) nextDue(ctx context.Context) (queue.Item, error) {
	due, ok := a.nextRetry()
	if !ok {
		return a.cur.Next(ctx)
	}
	if wait := time.Until(due); wait <= 0 {
		return queue.Item{}, errRetry
	}
	limited, cancel := context.WithDeadline(ctx, due)
	defer cancel()
	item, err := a.cur.Next(limited)
	if err != nil && ctx.Err() == nil && errors.Is(err, context.DeadlineExceeded) {
		return queue.Item{}, errRetry
	}
	return item, err
}

// apply writes one batch. Extents that cannot be written for now stay in the queue; the
// rest of the batch is written.
func (a *applier) apply(ctx context.Context, item queue.Item) error {
	a.mu.Lock()
	written := a.known[item.Seq]
	a.passTo(item)
	a.mu.Unlock()
	if written { // given again after a Rewind
		return nil
	}
	if len(item.Note) == 0 { // it came before there was an output, or not by Take
		a.count.passed.Add(1)
		a.finish(item, nil)
		return nil
	}
	if err := a.note.parse(item.Note); err != nil {
		return a.buryRedo(item, err)
	}
	if a.note.kind == noteDead {
		a.finish(item, nil)
		return nil
	}
	p, err := a.plan(item)
	if err != nil {
		return a.buryRedo(item, err)
	}
	defer p.release()
	if a.starting {
		if err := a.adopt(p); err != nil {
			return fmt.Errorf("batch %v in the queue: %w", item.Batch.ID, err)
		}
	}
	gens, whole, err := a.writeAll(ctx, item, p)
	if err != nil {
		return err
	}
	if !whole {
		return nil
	}
	if err := fpApplied.Inject(); err != nil {
		return err
	}
	a.finish(item, gens)
	return nil
}

// writeAll writes every extent; whole is false where one is held.
func (a *applier) writeAll(ctx context.Context, item queue.Item, p *plan) (gens []*generation, whole bool, err error) {
	whole = true
	for i := range a.note.extents {
		e, pf := &a.note.extents[i], &p.files[i]
		if e.dead {
			continue
		}
		g := a.table.generation(e.era)
		if g == nil {
			return nil, false, fmt.Errorf("apply batch %v: the generation %016x of %q is not known (a defect)", item.Batch.ID, e.era, pf.path)
		}
		gens = append(gens, g)
		front, _, _ := pf.join(e.before)
		segs := pf.segs
		if len(front) > 0 {
			segs = append([][]byte{front}, segs...)
		}
		ok, err := a.write(ctx, g, e.off, e.n, segs, item.Seq > a.fresh)
		if errors.Is(err, output.ErrRefused) {
			err = a.refuse(item, i, pf, segs, g, e, err)
			ok = err == nil
		}
		if err != nil {
			return nil, false, err
		}
		whole = whole && ok
	}
	return gens, whole, nil
}

// refuse makes a dead letter of an extent whose file has become what cannot be written.
func (a *applier) refuse(item queue.Item, part int, pf *planFile, segs [][]byte, g *generation, e *extent, why error) error {
	a.log.Error("dead letter: an output file cannot be written any more", "file", pf.path, "error", why)
	g.next = e.off + e.n
	return a.dead.put(item.Batch.ID, part, refusedLetter(pf, why), segs...)
}

func refusedLetter(pf *planFile, why error) letter {
	l := letter{Reason: "refused", Error: why.Error(), Content: contentOutput, Dir: pf.out.Dir, File: pf.name, Records: uint64(pf.records)}
	var r *output.RefusedError
	if errors.As(why, &r) {
		l.Reason = r.Reason
	}
	return l
}

// buryRedo makes a dead letter of a batch in the queue that cannot be written the way it
// was assigned: its note or its template set is damaged.
func (a *applier) buryRedo(item queue.Item, why error) error {
	a.log.Error("dead letter: a batch in the queue cannot be written as it was assigned", "batch", item.Batch.ID.String(), "error", why)
	l := letter{Reason: reasonRedo, Error: why.Error(), Content: contentBatch, Records: uint64(item.Batch.Records)}
	if err := a.dead.put(item.Batch.ID, -1, l, item.Batch.Data); err != nil {
		return err
	}
	a.finish(item, nil)
	return nil
}

// finish notes that all of a batch is written.
func (a *applier) finish(item queue.Item, gens []*generation) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.known[item.Seq] = true
	a.waiting = append(a.waiting, done{seq: item.Seq, id: item.Batch.ID, gens: gens, records: uint64(item.Batch.Records), bytes: item.Batch.Payload})
	if len(a.waiting) == 1 {
		signal(a.kick)
	}
	if a.bytes >= a.limit {
		signal(a.full)
	}
	signal(a.more)
}

// holds reports whether some file cannot be written to for now.
func (a *applier) holds() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.held) > 0
}

// settled reports whether every batch that is left in the queue is written. (The queue
// may have dropped some by max_age or on_full: they are not waited for.)
func (a *applier) settled() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return int(a.backlog().Waiting.Batches) <= len(a.known)
}

// backlog returns what the queue has for the applier.
func (a *applier) backlog() queue.CursorStats {
	for _, c := range a.q.Stats().Cursors {
		if c.Name == a.cur.Name() {
			return c
		}
	}
	return queue.CursorStats{}
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// plan returns what the batch writes, by the set that it was assigned with.
func (a *applier) plan(item queue.Item) (*plan, error) {
	if p := a.plans.take(item.Batch.ID); p != nil {
		return p, nil
	}
	pl, err := a.planner(a.note.set)
	if err != nil {
		return nil, fmt.Errorf("batch %v in the queue: %w", item.Batch.ID, err)
	}
	p, err := pl.build(item.Batch)
	if err != nil {
		return nil, fmt.Errorf("batch %v in the queue: %w", item.Batch.ID, err)
	}
	if err := a.note.fits(p); err != nil {
		return nil, fmt.Errorf("batch %v in the queue: %w", item.Batch.ID, err)
	}
	return p, nil
}

// fits checks that a plan made again is the plan that the note was made for.
func (n *note) fits(p *plan) error {
	if len(p.files) != len(n.extents) {
		return fmt.Errorf("%w: it names %d files, the templates give %d", errNote, len(n.extents), len(p.files))
	}
	for i := range n.extents {
		e, pf := &n.extents[i], &p.files[i]
		front, _, _ := pf.join(e.before)
		if e.check != pathCheck(pf.path) || !e.dead && e.n != pf.n+int64(len(front)) {
			return fmt.Errorf("%w: extent %d of %d bytes does not fit %d bytes for %q", errNote, i, e.n, pf.n+int64(len(front)), pf.path)
		}
	}
	return nil
}

func (a *applier) planner(id uint64) (*planner, error) {
	if pl := a.planners[id]; pl != nil {
		return pl, nil
	}
	s := a.sets[id]
	if s == nil {
		raw, ok := a.q.Get(setKey(id))
		if !ok {
			return nil, fmt.Errorf("%w: %s is missing", errSet, setKey(id))
		}
		var err error
		if s, err = parseSet(raw); err != nil {
			return nil, err
		}
		s.members = a.members
		a.sets[id] = s
	}
	a.planners[id] = newPlanner(s)
	return a.planners[id], nil
}

func setKey(id uint64) string { return fmt.Sprintf(setPrefix+"%016x", id) }
