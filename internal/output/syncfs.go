package output

import (
	"fmt"
	"sync"

	"golang.org/x/sys/unix"
)

// SyncFS brings everything of the file system that holds r to disk, names included. One
// call is cheaper than a sync of each of many files. It may be relied on for files that
// Covers is true of.
func (r *Root) SyncFS() error {
	r.mu.Lock()
	r.stale = map[string]struct{}{}
	r.mu.Unlock()
	if err := fpSyncFS.Inject(); err != nil {
		return fmt.Errorf("sync the file system of output directory %q: %w", r.dir, err)
	}
	for {
		err := unix.Syncfs(r.fd)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return fmt.Errorf("sync the file system of output directory %q: %w", r.dir, err)
		}
		return nil
	}
}

// Covers reports whether SyncFS brings the file to disk: it is on the root's own file
// system, and the kernel reports a failed write back there (since 5.8, fs/sync.c).
func (r *Root) Covers(id ID) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return syncfsReports() && id.Dev == r.dev
}

// NeedWhole notes that a file was written to that cannot be synced by itself any more,
// so that the next sync must be a SyncFS.
func (r *Root) NeedWhole() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.whole = true
}

// TakeWhole reports whether NeedWhole was called since the last TakeWhole.
func (r *Root) TakeWhole() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	whole := r.whole
	r.whole = false
	return whole
}

var syncfsReports = sync.OnceValue(func() bool {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return false
	}
	var major, minor int
	if _, err := fmt.Sscanf(unix.ByteSliceToString(u.Release[:]), "%d.%d", &major, &minor); err != nil {
		return false
	}
	return major > 5 || major == 5 && minor >= 8
})
