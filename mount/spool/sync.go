package spool

import (
	"fmt"
	"path/filepath"

	"golang.org/x/sys/unix"

	"ftfuse/internal/failpoint"
)

// Places where something is about to be synced.
var (
	fpSyncFile   = failpoint.New("spool/sync-file")   // what was accepted of a file, with its notes and paths
	fpSyncCut    = failpoint.New("spool/sync-cut")    // a file before its truncation
	fpSyncLength = failpoint.New("spool/sync-length") // the length of a file that was cut
	fpSyncDir    = failpoint.New("spool/sync-dir")    // a directory of names
	fpSyncHeader = failpoint.New("spool/sync-header") // the limit of the numbers that were given out
)

// synced does a sync. One that fails is told to Options.Failed, whoever asked for it: the
// kernel says so once, what it could not write is no longer dirty, and the next sync would
// say that all is well.
func (s *Store) synced(point *failpoint.Point, sync func() error) error {
	err := point.Inject()
	if err == nil {
		err = sync()
	}
	if err != nil {
		s.o.Failed(fmt.Errorf("make what is in %s durable: %w; look at the disk of state_dir, then start again", s.dir, err))
	}
	return err
}

// Sync makes what was written to f survive power loss where it is, with its notes and
// its paths: for when it cannot be committed now. A start finds it as after a kill.
func (f *File) Sync() error { return f.s.synced(fpSyncFile, f.sync) }

func (f *File) sync() error {
	s := f.s
	if err := unix.Fdatasync(f.fd); err != nil {
		return fmt.Errorf("sync spool file %s: %w", f.number, err)
	}
	if err := s.paths.sync(); err != nil {
		return err
	}
	if err := unix.Msync(s.journal.mem, unix.MS_SYNC); err != nil {
		return fmt.Errorf("sync journal %s: %w", s.journal.f.Name(), err)
	}
	return syncDirOf(filepath.Join(s.dir, "spool", f.number.String()))
}

func (t *pathTable) sync() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := unix.Fdatasync(int(t.f.Fd())); err != nil {
		return fmt.Errorf("sync path table %s: %w", t.file, err)
	}
	return nil
}
