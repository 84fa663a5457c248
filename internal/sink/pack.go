package sink

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"ftfuse/internal/failpoint"
	"ftfuse/internal/output"
)

var (
	fpPacked   = failpoint.New("rotate/packed")   // compressed, on disk, without a name
	fpNoted    = failpoint.New("rotate/noted")    // its identity is in the queue's state
	fpLinked   = failpoint.New("rotate/linked")   // it has its name, on disk
	fpUnlinked = failpoint.New("rotate/unlinked") // what it was made of is removed
	fpRemoved  = failpoint.New("rotate/removed")  // the oldest is removed, the queue's state does not say so
)

// packAll compresses and removes rotated files until ctx ends. Nothing is touched before all
// that was assigned to it is on disk and the queue has forgotten it.
func (r *rotor) packAll(ctx context.Context) error {
	for {
		for {
			s, k, remove := r.nextWork()
			if s == nil {
				break
			}
			var err error
			if remove {
				err = r.remove(ctx, s, k)
			} else {
				err = r.compress(ctx, s, k)
			}
			if err != nil {
				err = r.failedAt(ctx, s, &k, err)
			}
			if r.done(); err != nil {
				return err
			}
		}
		timer := time.NewTimer(tryAgain)
		select {
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		case <-r.work:
			timer.Stop()
		case <-timer.C:
		}
	}
}

// done ends what nextWork began: the queue has all of it, or nobody works at it any more.
func (r *rotor) done() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.at = nil
}

// failedAt puts a file aside that could not be worked on. An error is for the role to stop.
func (r *rotor) failedAt(ctx context.Context, s *series, k *rotated, err error) error {
	var stop *stopError
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.As(err, &stop), errors.Is(err, failpoint.ErrInjected):
		return err
	}
	r.count.rotateErrors.Add(1)
	path := s.dir + "/" + s.nameOf(k)
	r.log.Error("rotated output file cannot be compressed or removed for now; it stays as it is", "file", path, "error", err)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.failed[path] = time.Now().Add(tryAgain)
	return nil
}

// nextWork returns a copy of a rotated file that is to be removed or compressed now, the
// former first, or nil. Its series is not forgotten before done is called.
func (r *rotor) nextWork() (s *series, k rotated, remove bool) {
	if !r.hasWork() {
		return nil, k, false
	}
	busy := r.table.busyIDs()
	r.mu.Lock()
	defer r.mu.Unlock()
	defer func() { r.at = s }()
	clear := func(s *series, k *rotated) bool {
		_, pending := busy[k.id]
		due, failed := r.failed[s.dir+"/"+s.nameOf(k)]
		if failed && time.Now().After(due) {
			delete(r.failed, s.dir+"/"+s.nameOf(k))
			failed = false
		}
		return !pending && !failed
	}
	for _, s := range r.series {
		for i := range r.excess(s) {
			if clear(s, &s.kept[i]) {
				return s, s.kept[i], true
			}
		}
	}
	for _, s := range r.series {
		for i := range s.kept {
			if s.kept[i].unpacked() && clear(s, &s.kept[i]) {
				return s, s.kept[i], false
			}
		}
	}
	return nil, k, false
}

func (k *rotated) unpacked() bool { return k.codec != codecNone && k.stage != stagePacked }

// excess returns how many of the files of s, the oldest, are not to be kept. r.mu is held.
func (r *rotor) excess(s *series) int {
	o := r.outputOf(s)
	if o == nil || o.Rotate.Keep == 0 {
		return 0
	}
	return max(0, len(s.kept)-o.Rotate.Keep)
}

// hasWork reports whether some file is to be compressed or removed.
func (r *rotor) hasWork() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, s := range r.series {
		if r.excess(s) > 0 || slices.ContainsFunc(s.kept, func(k rotated) bool { return k.unpacked() }) {
			return true
		}
	}
	return false
}

// remove removes a file that is more than are to be kept.
func (r *rotor) remove(ctx context.Context, s *series, k rotated) error {
	root, err := r.roots.get(s.dir, &output.Perm{})
	if err != nil {
		return err
	}
	if err := r.store(ctx, s); err != nil { // a redo must not miss the file
		return err
	}
	name := s.nameOf(&k)
	info, err := root.Stat(name)
	if err == nil {
		err = root.Remove(name, k.id)
	}
	if err == nil {
		r.count.rotatedRemoved.Add(1)
		r.count.rotatedRemovedBytes.Add(uint64(info.Size))
		r.log.Info("rotated output file removed: more than rotate.keep", "file", root.Path(name), "bytes", info.Size)
		err = fpRemoved.Inject()
	}
	if err := ignoreGone(err); err != nil {
		return err
	}
	return r.forget(ctx, s, k)
}

// ignoreGone drops the error of a file that is not there: somebody else removed or moved it.
func ignoreGone(err error) error {
	if errors.Is(err, output.ErrGone) || errors.Is(err, unix.ENOENT) {
		return nil
	}
	return err
}

// forget takes a file that is gone out of its series.
func (r *rotor) forget(ctx context.Context, s *series, k rotated) error {
	r.table.unretire(k.id)
	r.mu.Lock()
	s.drop(k.number)
	r.mu.Unlock()
	return r.submit(ctx, s, nil)
}

// finish ends a compression whose copy was noted.
func (r *rotor) finish(ctx context.Context, root *output.Root, s *series, k rotated) error {
	was := k.id
	here, err := r.resumeOne(root, s, &k)
	if err != nil {
		return err
	}
	if !here {
		return r.forget(ctx, s, k)
	}
	if k.id != was {
		r.table.unretire(was)
	}
	return r.change(ctx, s, k.number, func(at *rotated) { *at = k })
}

// compress puts a compressed copy in the place of a rotated file. At every moment one of the two is
// there, and what has the copy's name is whole: it gets it when it is on disk. (With both, the start
// after a kill removes the plain one.)
func (r *rotor) compress(ctx context.Context, s *series, k rotated) error {
	root, err := r.roots.get(s.dir, &output.Perm{})
	if err != nil {
		return err
	}
	if k.stage == stageNoted { // an attempt failed behind that
		return r.finish(ctx, root, s, k)
	}
	plain := rotatedName(s.name, k.number)
	packed := plain + k.codec.suffix()
	if info, err := root.Stat(plain); ignoreGone(err) != nil {
		return err
	} else if err != nil || info.ID != k.id {
		r.log.Info("rotated output file is gone or was replaced: left alone", "file", root.Path(plain))
		return r.forget(ctx, s, k)
	}
	size, id, err := r.packInto(ctx, root, s, &k, plain, packed)
	switch {
	case errors.Is(err, unix.EEXIST):
		r.log.Warn("rotated output file stays as it is: the name of the compressed one is taken", "file", root.Path(packed))
		return r.change(ctx, s, k.number, func(k *rotated) { k.stage, k.codec = stagePlain, codecNone })
	case err != nil:
		return err
	}
	if err := ignoreGone(root.Remove(plain, k.id)); err != nil {
		return err
	}
	if err := fpUnlinked.Inject(); err != nil {
		return err
	}
	r.table.unretire(k.id)
	r.count.rotatedPacked.Add(1)
	r.log.Info("rotated output file compressed", "file", root.Path(packed), "bytes", size)
	return r.change(ctx, s, k.number, func(k *rotated) { k.stage, k.id, k.packed = stagePacked, id, output.ID{} })
}

// packInto makes the compressed copy. When it returns nil, the copy has its name, on disk.
func (r *rotor) packInto(ctx context.Context, root *output.Root, s *series, k *rotated, plain, packed string) (size int64, id output.ID, err error) {
	from, err := root.OpenID(plain, k.id)
	if err != nil {
		return 0, id, err
	}
	defer from.Close()
	info, err := from.Stat()
	if err != nil {
		return 0, id, err
	}
	to, err := root.Temp(packed)
	if err != nil {
		return 0, id, err
	}
	defer to.Close()
	if err := errors.Join(k.codec.pack(ctx, to, from, info.Size), to.Imitate(from), to.Sync()); err != nil {
		return 0, id, err
	}
	if again, err := from.Stat(); err != nil || again.Size != info.Size {
		return 0, id, errors.Join(fmt.Errorf("%q grew while it was compressed: somebody else writes to it", from.Path()), err)
	}
	if err := fpPacked.Inject(); err != nil {
		return 0, id, err
	}
	id = to.ID()
	r.mu.Lock()
	if at := s.at(k.number); at != nil {
		at.stage, at.packed = stageNoted, id
	}
	r.mu.Unlock()
	if err := r.store(ctx, s); err != nil {
		return 0, id, err
	}
	if err := fpNoted.Inject(); err != nil {
		return 0, id, err
	}
	r.table.retire(id)
	if err := to.Link(); err != nil {
		r.table.unretire(id)
		return 0, id, err
	}
	if err := root.SyncDirOf(packed); err != nil {
		return 0, id, &stopError{err}
	}
	return info.Size, id, fpLinked.Inject()
}

// change changes the entry of a number, and tells the queue.
func (r *rotor) change(ctx context.Context, s *series, number uint64, set func(*rotated)) error {
	r.mu.Lock()
	if k := s.at(number); k != nil {
		set(k)
	}
	r.mu.Unlock()
	return r.submit(ctx, s, nil)
}
