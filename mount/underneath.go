package mount

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"ftfuse/config"
	"ftfuse/mount/capture"
	"ftfuse/mount/offline"
)

// What programs write below the mount point while nothing is mounted there is taken in
// before the mount, and what they go on writing to such files afterwards as it comes
// (package offline).

// offlinePatience is how long a start takes files in before it mounts all the same; the rest
// follows.
const offlinePatience = 30 * time.Second

// offlineRoom is how much room of the queue is left to the programs on the mount, or an
// eighth of all, if that is less.
const offlineRoom = 64 << 20

// underneath takes in what lies below the mount point, and starts nothing yet.
func (r *role) underneath(ctx context.Context) error {
	if r.m.Offline == config.OfflineIgnore {
		return r.ignoreUnderneath(ctx)
	}
	dir, err := r.openUnderneath(ctx)
	if errors.Is(err, offline.ErrHidden) {
		r.log.Warn("what programs still write below the mount point, to files that they opened before the mount, is taken in by the next start", "err", err)
		return nil
	}
	if err != nil {
		return err
	}
	under, err := offline.New(ctx, offline.Options{
		Dir: dir, Capture: r.cap, Keep: r.m.Offline == config.OfflineKeep, Logger: r.log,
		Matches: r.transfers, Chunk: int(min(r.roomToSpare(), 1<<20)), Room: r.spareRoom,
	})
	if err != nil {
		return fmt.Errorf("take in what was written while nothing was mounted: %w", err)
	}
	r.under.Store(under)
	if r.taken.fd >= 0 {
		return nil // programs wait for the mount
	}
	began := time.Now()
	taking, cancel := context.WithTimeout(ctx, offlinePatience)
	defer cancel()
	switch err := under.TakeAll(taking); {
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, offline.ErrNoRoom), err != nil && taking.Err() != nil:
		r.log.Warn("not everything that was written while nothing was mounted is taken in yet: the rest follows behind what is written from now on", "bytes", under.Stats().Bytes, "err", err)
	case err != nil:
		return fmt.Errorf("take in what was written while nothing was mounted: %w", err)
	}
	if n := under.Stats().Bytes; n > 0 {
		r.log.Info("took in what was written while nothing was mounted", "bytes", n, "ms", time.Since(began).Milliseconds())
	}
	return nil
}

// openUnderneath opens the directory below the mount, which is there already if the
// connection is taken over.
func (r *role) openUnderneath(ctx context.Context) (*os.File, error) {
	if r.taken.fd >= 0 {
		return offline.Reopen(ctx, r.m.Point, r.cap)
	}
	return offline.Open(r.m.Point)
}

// ignoreUnderneath ends the lines that files left unfinished which are taken no more.
func (r *role) ignoreUnderneath(ctx context.Context) error {
	var ids []uint64
	err := r.cap.Sources(ctx, func(id uint64, s capture.Source) {
		if s.Kind == capture.SourceFile {
			ids = append(ids, id)
		}
	})
	for _, id := range ids {
		err = errors.Join(err, r.cap.EndLine(ctx, id, false))
	}
	return err
}

// transfers reports whether the rules transfer what is written by a path.
func (r *role) transfers(path string) bool {
	for _, rule := range captureRules(r.now.Load().Mount.Rules) {
		if capture.Match([]capture.Rule{rule}, path) == 0 {
			return rule.Transfer
		}
	}
	return true
}

// watchUnderneath goes on with it behind the mount, until ctx ends.
func (r *role) watchUnderneath(ctx context.Context) {
	under := r.under.Load()
	if under == nil {
		return
	}
	under.Serving()
	ctx, r.stopUnder = context.WithCancel(ctx)
	r.start(ctx, "offline", under.Run)
}
