// Package sink puts the batches of a queue into output files, each byte once.
//
//	Take: decode, match outputs, render lengths
//	   │ queue.Submit: the batch and the place of each byte in ONE transaction
//	   ▼
//	queue ─▶ cursor ─▶ Apply ─▶ output files
//	            ▲        │ every 64 MiB or half a second
//	            └─ Ack ◀── Checkpoints: fdatasync; then final
//
// The queue is the redo log of the output files: a process that was killed, or lost
// power, writes the same bytes to the same places again, and finds those that are there.
// The package knows nothing of who sent a batch: the roles that write output files share
// it, each over a queue of its own.
package sink

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"ftfuse/internal/batch"
	"ftfuse/internal/output"
	"ftfuse/queue"
)

// Options of Open.
type Options struct {
	Queue   *queue.Queue
	Cursor  string   // name of the queue's cursor that is this sink's alone
	Outputs []Output // what is assigned from now on goes there
	DeadDir string   // where dead letters are put; made when the first one is

	// Late has batches come by the cursor alone, whoever submits them: they get their places
	// when they are in the queue. Take is not to be called then.
	Late bool
	// Members is for outputs that have a Name: they get the batches of the routes of which
	// it is a member. It must say the same of a route for ever, but for names of others.
	Members func(route uint32) []string

	OpenFiles       int           // descriptors kept open; default output.DefaultOpenFiles
	CheckpointEvery time.Duration // default 500 ms
	CheckpointBytes int64         // default 64 MiB
	ForgetAfter     time.Duration // what was rotated of a name that nothing comes for; default an hour
	Logger          *slog.Logger
}

// Sink is the output files of one role. Take may be called from several goroutines;
// Apply and Checkpoints run once each, beside each other.
type Sink struct {
	o       Options
	log     *slog.Logger
	roots   *roots
	table   *table
	rotor   *rotor
	applier *applier
	dead    *deadDir
	count   *counters

	current atomic.Pointer[outputs]
	change  sync.Mutex  // held by Reconfigure
	retire  atomic.Bool // a directory is to be unlocked when nothing is pending there
}

// Open takes the output directories, which are locked, and redoes what earlier runs left
// in the queue: when it returns, all of it is written but for files that cannot be
// written to now. Batches must come by Take from then on, whoever submits them; see Late.
func Open(ctx context.Context, o Options) (_ *Sink, err error) {
	if o.CheckpointEvery == 0 {
		o.CheckpointEvery = checkpointEvery
	}
	if o.CheckpointBytes == 0 {
		o.CheckpointBytes = checkpointBytes
	}
	if o.ForgetAfter == 0 {
		o.ForgetAfter = forgetAfter
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	s := &Sink{o: o, log: o.Logger, count: &counters{}, roots: newRoots()}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Close())
		}
	}()
	first, err := s.compile(o.Outputs)
	if err != nil {
		return nil, err
	}
	s.current.Store(first)
	cur, err := o.Queue.Cursor(o.Cursor)
	if err != nil {
		return nil, err
	}
	s.dead = &deadDir{dir: o.DeadDir, count: s.count}
	if n, err := s.dead.kept(); err != nil {
		return nil, err
	} else if n > 0 {
		s.log.Warn("there are dead letters", "count", n, "dir", s.dead.dir)
	}
	s.table = newTable(s.roots, output.NewCache(o.OpenFiles, evicted), s.count)
	s.rotor = newRotor(o.Queue, s.table, s.count, s.log, s.current.Load)
	s.rotor.forgetAfter = o.ForgetAfter
	s.applier = newApplier(o.Queue, cur, s.table, s.dead, s.count, s.log)
	s.applier.limit = max(1, min(o.CheckpointBytes, o.Queue.Stats().MaxBytes/8))
	s.applier.sets[first.set.id], s.applier.current = first.set, first.set.id
	s.applier.trimmed, s.applier.members = s.trimmed, o.Members
	if s.rotor.aside = o.Late; o.Late {
		s.applier.late, s.applier.handle = &late{}, s.applyLate
	}
	if err := s.rotor.load(ctx); err != nil { // before files are looked up by their names
		return nil, err
	}
	if err := s.applier.redoAll(ctx); err != nil {
		return nil, err
	}
	return s, nil
}

// Apply writes what comes, and rotates files, until ctx ends, which is no error, or until
// something fails.
func (s *Sink) Apply(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	parts := []func(context.Context) error{s.applier.run, s.rotor.turnAll, s.rotor.packAll}
	ended := make(chan error, len(parts))
	for _, run := range parts {
		go func() { ended <- run(ctx) }()
	}
	err := <-ended
	cancel()
	for range len(parts) - 1 {
		<-ended // because of cancel
	}
	return err
}

// Checkpoints brings what is written to disk, acks it to the queue and reports it to
// final, until ctx ends; then once more. After a failed sync it returns the error;
// nothing is tried again, and the process must stop.
func (s *Sink) Checkpoints(ctx context.Context, final func(...batch.ID)) error {
	return s.applier.checkpoints(ctx, s.o.CheckpointEvery, final)
}

// Drain returns nil when all that the queue holds for this sink is written, as far as it
// can be now, or ctx's error. Apply must be running.
func (s *Sink) Drain(ctx context.Context) error {
	for !s.applier.settled() && !s.applier.holds() {
		select {
		case <-s.applier.more:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// Expects reports whether a batch that was taken is not in the output for good yet.
func (s *Sink) Expects(id batch.ID) bool { return s.applier.expects(id) }

// Final returns what of delivered, from below on, is in the output for good. The caller
// took delivered from the queue before the call: what becomes final in between is final.
func (s *Sink) Final(lane batch.Lane, delivered *batch.Ranges, below uint64) []batch.Range {
	return s.applier.written(lane, delivered, below)
}

// Stats returns what the sink did since it was opened.
func (s *Sink) Stats() Stats {
	st := s.count.snapshot()
	st.OpenFiles = s.table.cache.Len()
	s.applier.mu.Lock()
	defer s.applier.mu.Unlock()
	st.HeldFiles = len(s.applier.held)
	return st
}

// Close closes the files and gives the directories back. Nothing may run any more, and
// the queue must be closed.
func (s *Sink) Close() error {
	var errs []error
	if s.table != nil {
		errs = append(errs, s.table.cache.Close())
	}
	return errors.Join(append(errs, s.roots.close())...)
}
