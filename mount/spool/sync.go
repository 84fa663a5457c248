package spool

import (
	"fmt"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Sync makes what was written to f survive power loss where it is, with its notes and
// its paths: for when it cannot be committed now. A start finds it as after a kill.
func (f *File) Sync() error {
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
