package sink

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"ftfuse/internal/failpoint"
	"ftfuse/internal/output"
	"ftfuse/queue"
)

// With a date in the name of an output there are ever more series. One that nothing came for in a
// while, and of which nothing is unfinished, is forgotten: its rotated files are marked on the disk
// (output.Root.Mark), then its key goes from the queue's state. Should the name come back, recall
// finds what is marked. The steps (docs/architecture.md, "Rotation"):
var (
	fpMarked    = failpoint.New("rotate/marked")    // its files are marked, on disk
	fpForgotten = failpoint.New("rotate/forgotten") // its key is gone from the queue's state, on disk
)

// Limits of what the rotor knows.
const (
	forgetAfter = time.Hour // default of Options.ForgetAfter: without a record (where files are rotated by the clock) or a rotation
	mostSeries  = 1 << 16   // more are forgotten though the disk does not tell all of them, those unused for longest
	mostMarks   = 64        // synced at one go: rotations wait meanwhile
	markSoon    = time.Second
)

// resting is a series of which nothing is unfinished, as it was when the rotor looked at it.
type resting struct {
	s     *series
	o     *out // nil: the configuration does not rotate it any more
	used  time.Time
	last  uint64
	kept  []rotated
	due   bool // nothing came for it in a while
	force bool // there are too many
}

// dropIdle forgets series that rest. It belongs to the goroutine that rotates: no intent is under way.
func (r *rotor) dropIdle(ctx context.Context) error {
	now := time.Now()
	if now.Before(r.nextDrop()) {
		return nil
	}
	busy := r.table.busyIDs()
	gone, err := r.leaveAll(now, r.resting(now, busy))
	if err != nil || len(gone) == 0 {
		return err
	}
	if err := fpMarked.Inject(); err != nil {
		return err
	}
	if err := r.strike(ctx, gone, busy); err != nil {
		return err
	}
	return fpForgotten.Inject()
}

// leaveAll marks the files of all, and returns those that are to be forgotten. An error is for the
// role to stop.
func (r *rotor) leaveAll(now time.Time, all []resting) (gone []resting, err error) {
	next := min(lookAtClock, r.forgetAfter)
	marks, lost := 0, 0
	for _, one := range all {
		if marks >= mostMarks {
			next = markSoon
			break
		}
		n, told, err := r.leave(&one)
		if err != nil {
			return nil, &stopError{err}
		}
		if marks += n; told || one.force {
			gone = append(gone, one)
		} else {
			one.s.look = now.Add(r.forgetAfter)
		}
		if one.force && !told {
			lost++
		}
	}
	r.mu.Lock()
	r.dropAt = now.Add(next)
	r.mu.Unlock()
	if lost > 0 {
		r.count.rotateErrors.Add(uint64(lost))
		r.log.Error("too many output files are rotated, and some are forgotten that the disk does not tell all of: until a record comes they are not rotated by the clock, rotate.keep may not hold for what was rotated of them, and its numbers may be given again",
			"forgotten", lost, "most", r.most)
	}
	return gone, nil
}

func (r *rotor) nextDrop() time.Time {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.dropAt
}

// known makes s known by its path; r.mu is held.
func (r *rotor) known(s *series) {
	r.series[s.path()] = s
	if soon := time.Now().Add(markSoon); len(r.series) > r.most && soon.Before(r.dropAt) {
		r.dropAt = soon
		signal(r.dueNow)
	}
}

// resting returns the series to look at, those unused for longest first.
func (r *rotor) resting(now time.Time, busy map[output.ID]struct{}) []resting {
	r.mu.Lock()
	defer r.mu.Unlock()
	over := 0
	if len(r.series) > r.most {
		over = len(r.series) - r.most*3/4
	}
	var all []resting
	for _, s := range r.series {
		if due := now.Sub(s.used) >= r.forgetAfter && !now.Before(s.look); (due || over > 0) && r.rests(s, busy) {
			all = append(all, resting{s: s, o: r.outputOf(s), used: s.used, last: s.last, kept: slices.Clone(s.kept), due: due})
		}
	}
	slices.SortFunc(all, func(a, b resting) int { return a.used.Compare(b.used) })
	for i := range all {
		all[i].force = i < over
	}
	return slices.DeleteFunc(all, func(one resting) bool { return !one.due && !one.force })
}

// rests reports whether nothing of s is unfinished: no file is to be compressed or removed, or
// has bytes to come, and nobody works at one. r.mu is held.
func (r *rotor) rests(s *series, busy map[output.ID]struct{}) bool {
	return s != r.at && r.excess(s) == 0 && !slices.ContainsFunc(s.kept, func(k rotated) bool {
		_, pending := busy[k.id]
		return pending || k.unpacked()
	})
}

// leave marks the rotated files of a series, and returns how many had no mark. told says that the
// disk has all that is to be known of it then: the files, the highest number, and nothing that
// waits for the clock. An error is for the role to stop.
func (r *rotor) leave(one *resting) (marks int, told bool, err error) {
	if one.o == nil { // what was kept is the operator's, as after a start
		return 0, true, nil
	}
	root, err := r.roots.get(one.s.dir, &output.Perm{})
	if err != nil {
		return 0, false, nil // looked at again
	}
	waits := false
	if one.o.Rotate.Every > 0 {
		info, err := root.Stat(one.s.name)
		waits = err == nil && (info.Size > 0 || r.table.awaits(one.s.path())) || err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, output.ErrRefused)
	}
	told, number := true, one.last == 0
	for i := range one.kept {
		k := &one.kept[i]
		fresh, err := root.Mark(one.s.nameOf(k), k.id)
		if fresh {
			marks++
		}
		switch {
		case err == nil:
			number = number || k.number == one.last
		case errors.Is(err, output.ErrGone): // moved away, or removed
		case errors.Is(err, output.ErrUnmarked):
			told = false
		default:
			return marks, false, err
		}
	}
	return marks, told && number && !waits, nil
}

// strike takes series out of the queue's state, in order with what register notes: one that a
// record has come for since stays known.
func (r *rotor) strike(ctx context.Context, gone []resting, busy map[output.ID]struct{}) error {
	var ids []output.ID
	fill := func(t *queue.Txn) error {
		r.mu.Lock()
		defer r.mu.Unlock()
		for i := range gone {
			if s := gone[i].s; s.used.Equal(gone[i].used) && r.rests(s, busy) {
				delete(r.series, s.path())
				t.Set = append(t.Set, queue.KV{Key: s.key()})
				for _, k := range s.kept {
					ids = append(ids, k.id)
				}
			}
		}
		return nil
	}
	done := make(chan error, 1)
	t := &queue.Txn{Sync: true, Done: func(err error) { done <- err }}
	if err := r.submitFilled(ctx, t, fill); err != nil {
		return err
	}
	select {
	case err := <-done:
		if err != nil {
			return &stopError{fmt.Errorf("forget rotated output files: %w", err)}
		}
	case <-ctx.Done():
		return ctx.Err()
	}
	for _, id := range ids {
		r.table.unretire(id)
	}
	return nil
}

// submitFilled gives t to the queue, filled in the order of all that is stored of series: see submit.
func (r *rotor) submitFilled(ctx context.Context, t *queue.Txn, fill func(*queue.Txn) error) error {
	r.storing.Lock()
	defer r.storing.Unlock()
	if t.Prepare = fill; r.aside {
		t.Prepare, t.Aside = nil, true
		_ = fill(t)
	}
	if _, err := r.q.Submit(ctx, t); err != nil {
		return &stopError{fmt.Errorf("forget rotated output files: %w", err)}
	}
	return nil
}

// recall returns the rotated files of a name that were marked, oldest first, where nothing is known of them.
func (r *rotor) recall(f *file) ([]rotated, error) {
	r.mu.Lock()
	s := r.series[f.path]
	known := s != nil && s.last > 0
	r.mu.Unlock()
	if known {
		return nil, nil
	}
	marked, err := f.root.MarkedBeside(f.name, numberDigits)
	if err != nil {
		return nil, err
	}
	var all []rotated
	for _, m := range marked {
		k := rotated{number: m.Number, id: m.ID}
		for _, c := range []codec{codecGzip, codecZstd} {
			if m.Suffix == c.suffix() {
				k.stage, k.codec = stagePacked, c
			}
		}
		if m.Suffix == k.codec.suffix() {
			all = append(all, k)
			r.table.retire(k.id)
		}
	}
	slices.SortFunc(all, func(a, b rotated) int { return cmp.Compare(a.number, b.number) })
	return all, nil
}
