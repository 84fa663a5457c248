package sink

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"ftfuse/internal/batch"
	"ftfuse/internal/output"
	"ftfuse/queue"
)

// Defaults of the checkpoint.
const (
	checkpointEvery = 500 * time.Millisecond // the longest a written batch waits to be synced
	checkpointBytes = 64 << 20               // written bytes that do not wait
	syncParallel    = 4                      // files synced at once
	syncFSFiles     = 32                     // above this many files, one sync of the file system is cheaper
)

// checkpoints brings output files to disk until ctx ends, then once more for what was
// written by then. After a failed sync it returns; nothing is tried again.
func (a *applier) checkpoints(ctx context.Context, every time.Duration, final func(...batch.ID)) error {
	timer := time.NewTimer(every)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return a.checkpoint(final)
		case <-a.kick: // something is written; others may follow
		}
		timer.Reset(every)
		select {
		case <-ctx.Done():
		case <-timer.C:
		case <-a.full:
		}
		if err := a.checkpoint(final); err != nil {
			return err
		}
	}
}

// checkpoint syncs every file written to so far, and the directories of new ones, and
// then lets the queue forget the batches that were written whole before it began.
func (a *applier) checkpoint(final func(...batch.ID)) error {
	a.mu.Lock()
	batches, dirty := a.waiting, a.dirty
	a.waiting, a.dirty, a.bytes = nil, nil, 0
	for _, g := range dirty {
		g.dirty = false
	}
	a.mu.Unlock()
	if len(batches) == 0 && len(dirty) == 0 {
		return nil
	}
	if err := a.syncAll(dirty); err != nil {
		return fmt.Errorf("checkpoint: %w; stop, and read what the disk has at the next start", err)
	}
	a.count.checkpoints.Add(1)
	if err := fpSynced.Inject(); err != nil {
		return err
	}
	if err := a.trim(batches, final); err != nil {
		return err
	}
	a.trimmed()
	return nil
}

// due reports whether enough was written that a checkpoint should not wait.
func (a *applier) due() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.bytes >= a.limit
}

// trim acks batches to the queue and reports them as final.
func (a *applier) trim(batches []done, final func(...batch.ID)) error {
	// Acked first: a file counts as idle once it is settled, and may be removed with the acks there are.
	a.mu.Lock() // over both, for settled
	for i := range batches {
		a.cur.Ack(batches[i].seq)
		delete(a.known, batches[i].seq)
		delete(a.ids, batches[i].id)
	}
	a.mu.Unlock()
	ids := make([]batch.ID, 0, len(batches))
	var stale []queue.KV
	for i := range batches {
		b := &batches[i]
		for _, g := range b.gens {
			if a.table.settle(g) {
				stale = append(stale, queue.KV{Key: shiftKey(g.era)})
			}
		}
		ids = append(ids, b.id)
		if a.late != nil {
			stale = append(stale, queue.KV{Key: placeKey(b.id)})
		}
		a.count.synced.batches.Add(1)
		a.count.synced.records.Add(b.records)
		a.count.synced.bytes.Add(b.bytes)
	}
	if err := fpTrimmed.Inject(); err != nil {
		return err
	}
	if len(stale) > 0 {
		// With the acks: a batch that is given again must find its places.
		if _, err := a.q.Submit(context.Background(), &queue.Txn{Set: stale, Acks: true, Aside: true}); err != nil {
			return fmt.Errorf("forget places in output files: %w", err)
		}
	}
	if len(ids) > 0 {
		final(ids...)
	}
	return nil
}

// syncAll brings the files of dirty and all new names to disk.
func (a *applier) syncAll(dirty []*generation) error {
	byRoot := map[*output.Root][]*generation{}
	for _, g := range dirty {
		byRoot[g.file.root] = append(byRoot[g.file.root], g)
	}
	for _, root := range a.table.roots.all() {
		if err := root.Revive(); err != nil {
			a.log.Error("output directory cannot be reached by its name", "dir", root.Dir(), "error", err)
		}
		if err := a.syncRoot(root, byRoot[root]); err != nil {
			return err
		}
	}
	return nil
}

// syncRoot syncs one output directory: file by file, or all at once.
func (a *applier) syncRoot(root *output.Root, dirty []*generation) error {
	files := make([]*output.File, 0, len(dirty))
	whole := root.TakeWhole()
	for _, g := range dirty {
		covered := root.Covers(a.table.identity(g))
		switch {
		case covered && len(dirty) > syncFSFiles:
			whole = true
		default:
			if f := a.table.cache.PinOpen(&g.slot); f != nil {
				files = append(files, f)
			} else if covered { // closed since it was written to
				whole = true
			} // else evicted has synced it
		}
	}
	errs := make(chan error, len(files)+1) // one each
	var wg sync.WaitGroup
	slots := make(chan struct{}, syncParallel)
	for _, f := range files {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			errs <- errors.Join(f.Sync(), a.table.cache.Unpin(f))
		})
	}
	wg.Wait()
	if whole {
		errs <- root.SyncFS()
	} else {
		errs <- root.SyncDirs()
	}
	close(errs)
	var all []error
	for err := range errs {
		all = append(all, err)
	}
	return errors.Join(all...)
}

// evicted is called before a file is closed to make room for another. What was written
// to it is still to be synced: with the file system that holds it, or now.
func evicted(s *output.Slot, f *output.File) error {
	if g, ok := s.Owner.(*generation); ok && !g.file.root.Covers(f.ID()) {
		return f.Sync()
	}
	return nil
}
