package sink

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"ftfuse/internal/failpoint"
	"ftfuse/internal/output"
	"ftfuse/queue"
)

// The steps of a rotation (docs/architecture.md, "Rotation").
var (
	fpIntended = failpoint.New("rotate/intended") // the number and the inode are in the queue's state
	fpRenamed  = failpoint.New("rotate/renamed")  // the file has its new name
	fpBegun    = failpoint.New("rotate/begun")    // another file has the old one
)

// Rotate says when an output file is rotated, and what becomes of those that were. The zero
// value rotates nothing.
type Rotate struct {
	Size     int64         // as soon as it has so many bytes; 0: whatever it has
	Every    time.Duration // when such a period of the clock on the wall begins, see began; 0: never
	Keep     int           // rotated files of one name that are kept, the newest; 0: all
	Compress string        // "", "none", "gzip" or "zstd"
}

func (r Rotate) on() bool { return r.Size > 0 || r.Every > 0 }

// Times of the rotor.
const (
	lookAtClock = time.Minute      // the longest until it is looked whether a period has begun
	tryAgain    = 10 * time.Second // after a rotation or a compression that failed
)

// rotor rotates output files, and compresses and removes what it rotated.
type rotor struct {
	q       store
	table   *table
	roots   *roots
	count   *counters
	log     *slog.Logger
	outputs func() *outputs // those of the configuration
	now     func() time.Time
	aside   bool // what it stores passes those who wait for room: nobody else stores it on the way of a batch

	forgetAfter time.Duration // see Options
	most        int           // series

	storing sync.Mutex // held from encoding a series until it is in its place in the queue
	mu      sync.Mutex
	series  map[string]*series // by path
	at      *series            // whose files are compressed or removed now
	dropAt  time.Time          // when series are forgotten next; monotonic
	due     []*file            // have the size
	dueNow  chan struct{}
	work    chan struct{}        // something may be compressed or removed
	failed  map[string]time.Time // rotated files that could not be worked on, and when it is tried again
}

func newRotor(q store, t *table, n *counters, log *slog.Logger, now func() *outputs) *rotor {
	r := &rotor{
		q: q, table: t, roots: t.roots, count: n, log: log, outputs: now, now: time.Now,
		series: map[string]*series{}, dueNow: make(chan struct{}, 1), work: make(chan struct{}, 1), failed: map[string]time.Time{},
		most: mostSeries,
	}
	t.isDue = func(f *file) {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.due = append(r.due, f)
		signal(r.dueNow)
	}
	return r
}

// turnAll rotates what is due, by size or by the clock, until ctx ends.
func (r *rotor) turnAll(ctx context.Context) error {
	swept := map[time.Duration]time.Time{}
	for {
		if err := r.sweep(ctx, swept); err != nil {
			return err
		}
		if err := r.dropIdle(ctx); err != nil {
			return err
		}
		timer := time.NewTimer(r.untilNext())
		select {
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		case <-r.dueNow:
			timer.Stop()
		case <-timer.C:
		}
		for {
			f := r.nextDue()
			if f == nil {
				break
			}
			if err := r.try(ctx, f, false); err != nil {
				return err
			}
		}
	}
}

func (r *rotor) nextDue() *file {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.due) == 0 {
		return nil
	}
	f := r.due[0]
	r.due = r.due[1:]
	return f
}

// untilNext returns how long nothing can be due by the clock.
func (r *rotor) untilNext() time.Duration {
	wait, now := lookAtClock, r.now()
	for _, o := range r.outputs().set.outputs {
		if every := o.Rotate.Every; every > 0 {
			wait = min(wait, next(now, every).Sub(now))
		}
	}
	if r.table.turning() {
		wait = min(wait, lineWait)
	}
	wait = min(wait, time.Until(r.nextDrop()))
	return max(wait, time.Millisecond)
}

// sweep rotates what was begun before the period that is now; swept says for which it was
// done already.
func (r *rotor) sweep(ctx context.Context, swept map[time.Duration]time.Time) error {
	r.table.advanceAll()
	for _, o := range r.outputs().set.outputs {
		every := o.Rotate.Every
		if every == 0 {
			continue
		}
		from := began(r.now(), every)
		if !swept[every].Equal(from) {
			if err := r.sweepFrom(ctx, every, from); err != nil {
				return err
			}
			swept[every] = from
		}
	}
	return nil
}

// sweepFrom rotates the files of outputs with that period that began before from.
func (r *rotor) sweepFrom(ctx context.Context, every time.Duration, from time.Time) error {
	r.mu.Lock()
	all := map[*series]*out{}
	for _, s := range r.series {
		if o := r.outputOf(s); o != nil && o.Rotate.Every == every {
			all[s] = o
		}
	}
	r.mu.Unlock()
	for s, o := range all {
		f, err := r.old(s, o, from)
		if err != nil {
			r.complain(s.path(), err)
		}
		if f == nil {
			continue
		}
		if err := r.try(ctx, f, true); err != nil {
			return err
		}
	}
	return nil
}

// old returns the file of a series, which is of o, if it has something and began before from.
func (r *rotor) old(s *series, o *out, from time.Time) (*file, error) {
	root, err := r.roots.get(s.dir, &output.Perm{})
	if err != nil {
		return nil, err
	}
	info, err := root.Stat(s.name)
	if err != nil || info.Size == 0 {
		return nil, ignoreGone(err)
	}
	f, err := r.table.file(s.dir, s.name, s.path(), &o.Files)
	if err == nil {
		err = r.table.touch(f)
	}
	if err != nil {
		return nil, err
	}
	if t, ok := r.table.birth(f, o); !ok || !t.Before(from) {
		return nil, nil
	}
	return f, nil
}

// outputOf returns the output of the configuration that names the file of s, or nil. r.mu
// is held.
func (r *rotor) outputOf(s *series) *out {
	for _, o := range r.outputs().set.outputs {
		if o.Dir == s.dir && o.File == s.file && o.Rotate.on() {
			return o
		}
	}
	return nil
}

// try rotates f; what keeps it from that is told, and tried again later. An error is for
// the role to stop.
func (r *rotor) try(ctx context.Context, f *file, byClock bool) error {
	err := r.rotate(ctx, f, byClock)
	var stop *stopError
	if ctx.Err() != nil {
		return ctx.Err()
	}
	r.table.turned(f, err != nil)
	if errors.As(err, &stop) || errors.Is(err, failpoint.ErrInjected) {
		return err
	}
	if err != nil {
		r.complain(f.path, err)
	}
	signal(r.work)
	return nil
}

func (r *rotor) complain(path string, err error) {
	r.count.rotateErrors.Add(1)
	r.log.Error("output file cannot be rotated; it goes on growing, and is tried again", "file", path, "error", err)
}

// rotate gives the file that has f's name the next number, and begins another.
//
// The intent is on disk first: what is found with that name and that inode at the next start was
// rotated. From the rename on, bytes that were assigned to the inode are found there.
func (r *rotor) rotate(ctx context.Context, f *file, byClock bool) error {
	id, o := r.table.turnable(f, byClock)
	if id.IsZero() {
		return nil
	}
	for range 3 {
		s, number, err := r.intend(ctx, f, o, id)
		if err != nil {
			return err
		}
		if err := fpIntended.Inject(); err != nil {
			return err
		}
		err = r.turn(f, rotatedName(f.name, number), id, byClock)
		if err == nil {
			r.count.rotations.Add(1)
			return nil
		}
		r.mu.Lock()
		s.drop(number)
		r.mu.Unlock()
		switch {
		case errors.Is(err, output.ErrGone): // somebody else rotated it
			return nil
		case !errors.Is(err, unix.EEXIST):
			return err
		}
	}
	return fmt.Errorf("rotate output file %q: names like %q are taken again and again", f.path, rotatedName(f.name, 1))
}

// intend stores that f is to get the next number. It returns when that is on disk.
func (r *rotor) intend(ctx context.Context, f *file, o *out, id output.ID) (*series, uint64, error) {
	top, err := f.root.Highest(f.name, numberDigits)
	if err != nil {
		return nil, 0, err
	}
	kept, err := r.recall(f)
	if err != nil {
		return nil, 0, err
	}
	r.mu.Lock()
	s := r.series[f.path]
	if s == nil {
		s = newSeries(f, o)
		r.known(s)
	}
	s.used = time.Now()
	s.kept = append(kept, s.kept...) // one of both is empty
	s.last = max(s.last, top) + 1
	number := s.last
	s.kept = append(s.kept, rotated{number: number, codec: codecOf(o.Rotate.Compress), id: id})
	var gone []rotated
	if o.Rotate.Keep == 0 {
		gone = s.trim(remembered)
	}
	r.mu.Unlock()
	for _, k := range gone {
		r.table.unretire(k.id)
	}
	return s, number, r.store(ctx, s)
}

func newSeries(f *file, o *out) *series {
	return &series{dir: f.root.Dir(), name: f.name, file: o.File, used: time.Now()}
}

// turn renames the file and begins the next one.
func (r *rotor) turn(f *file, to string, id output.ID, byClock bool) error {
	f.look.Lock()
	defer f.look.Unlock()
	if err := f.root.Rename(f.name, to, id); err != nil {
		return err
	}
	r.table.retire(id)
	if err := fpRenamed.Inject(); err != nil {
		return &stopError{err}
	}
	if byClock && r.table.rest(f) { // nothing comes for it: the next record makes the file
		return nil
	}
	g, err := r.table.fresh(f)
	if err != nil {
		r.log.Warn("no new output file after a rotation, for now", "file", f.path, "error", err)
		return nil // the next record looks again
	}
	r.table.turnTo(f, g)
	if err := fpBegun.Inject(); err != nil {
		return &stopError{err}
	}
	return nil
}

// store puts a series into the queue's state and returns when it is on disk, with all acks: no
// batch that was settled before will be looked for in its file again.
func (r *rotor) store(ctx context.Context, s *series) error {
	done := make(chan error, 1)
	if err := r.submit(ctx, s, func(err error) { done <- err }); err != nil {
		return err
	}
	select {
	case err := <-done:
		if err != nil {
			return &stopError{fmt.Errorf("store %s: %w", s.key(), err)}
		}
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// submit gives the state of s to the queue, in the order of its changes. Of a sink that places
// bytes late it waits for no room in the queue: the applier, which makes it, may wait for storing.
// Of others it must, since register's value comes in the order of who waits.
func (r *rotor) submit(ctx context.Context, s *series, done func(error)) error {
	r.storing.Lock()
	defer r.storing.Unlock()
	r.mu.Lock()
	kv := queue.KV{Key: s.key(), Value: s.append(nil)}
	r.mu.Unlock()
	if _, err := r.q.Submit(ctx, &queue.Txn{Set: []queue.KV{kv}, Sync: true, Acks: true, Done: done, Aside: r.aside}); err != nil {
		return &stopError{fmt.Errorf("store %s: %w", s.key(), err)}
	}
	return nil
}

// register notes a file that is rotated by the clock, so that it is known when nothing comes
// for it any more. It is called in commit order, and returns what is to be stored.
func (r *rotor) register(f *file, o *out) (queue.KV, bool) {
	if o.Rotate.Every == 0 {
		return queue.KV{}, false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if s := r.series[f.path]; s != nil {
		s.used = time.Now()
		return queue.KV{}, false
	}
	s := newSeries(f, o)
	r.known(s)
	return queue.KV{Key: s.key(), Value: s.append(nil)}, true
}
