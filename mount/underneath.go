package mount

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"ftfuse/config"
	"ftfuse/internal/mountinfo"
	"ftfuse/mount/capture"
	"ftfuse/mount/kernel"
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

// openUnderneath opens the directory below the mount point. With a connection that is taken
// over something is mounted there already, and the directory may be out of reach. It waits
// for nothing: programs do, for the worker.
func (r *role) openUnderneath() error {
	if r.m.Offline == config.OfflineIgnore {
		return nil
	}
	open := offline.Open
	if r.taken.fd >= 0 {
		open = offline.Reopen
	}
	dir, err := open(r.m.Point)
	if errors.Is(err, offline.ErrHidden) {
		r.log.Warn("what programs still write below the mount point, to files that they opened before the mount, is taken in by the next start", "err", err)
		return nil
	}
	if err != nil {
		return err
	}
	switch captured, err := isCaptured(dir); {
	case err != nil:
		return errors.Join(err, dir.Close())
	case captured:
		r.log.Warn(onAnother+": files that are there are not taken in", "point", r.m.Point)
		return dir.Close()
	}
	under, err := offline.New(offline.Options{
		Dir: dir, Capture: r.cap, Keep: r.m.Offline == config.OfflineKeep, Logger: r.log,
		Matches: r.transfers, Chunk: int(min(r.roomToSpare(), 4<<20)), Room: r.spareRoom,
	})
	if err != nil {
		return fmt.Errorf("take in what was written while nothing was mounted: %w", err)
	}
	r.under.Store(under)
	return nil
}

// onAnother is of a mount point below that of another mount.
const onAnother = "the mount point lies on another mount of ftfuse, which captures what is written there while nothing is mounted on it"

// isCaptured reports whether dir is on a mount of ftfuse: its files have been captured there,
// and taken in they would stand twice.
func isCaptured(dir *os.File) (bool, error) {
	st, err := dir.Stat()
	if err != nil {
		return false, fmt.Errorf("look at the directory below the mount point: %w", err)
	}
	dev := st.Sys().(*syscall.Stat_t).Dev
	all, err := mountinfo.Of(uint64(dev))
	return len(all) > 0 && all[0].Type == kernel.FSType, err
}

// Notes are what `ftfuse check` tells of a good configuration on this machine as it is now. It
// asks no file system.
func Notes(cfg *config.Config) []string {
	for dir := cfg.Mount.Point; dir != filepath.Dir(dir); {
		dir = filepath.Dir(dir)
		all, err := mountinfo.On(dir)
		switch {
		case err != nil || len(all) == 0:
		case all[len(all)-1].Type == kernel.FSType:
			return []string{onAnother + " (" + dir + ")"}
		default:
			return nil
		}
	}
	return nil
}

// underneath takes in what lies below the mount point of a mount that is to be made.
func (r *role) underneath(ctx context.Context) error {
	if err := r.openUnderneath(); err != nil {
		return err
	}
	under := r.under.Load()
	if under == nil || r.taken.fd >= 0 {
		return nil
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

// ignoreUnderneath ends the lines that files left unfinished which are taken no more.
func (r *role) ignoreUnderneath(ctx context.Context) error {
	var ids []uint64
	err := r.cap.Sources(func(id uint64, s capture.Source) {
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
	ctx, r.stopUnder = context.WithCancel(ctx)
	switch under := r.under.Load(); {
	case under != nil:
		under.Serving()
		r.start(ctx, "offline", under.Run)
	case r.m.Offline == config.OfflineIgnore:
		r.start(ctx, "offline", r.ignoreUnderneath)
	}
}
