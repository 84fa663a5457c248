// Package service has what every role in the foreground is made of: the lock on its
// state directory, and its parts, which are started together and stopped in order.
package service

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"ftfuse/internal/flock"
)

// ErrLocked is returned by Lock where another process has the state directory.
var ErrLocked = errors.New("another process of this role uses this state_dir")

// Lock makes dir, the state directory of one role, and locks it until the file that it
// returns is closed, or the process ends.
func Lock(dir string) (*flock.File, error) {
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return nil, fmt.Errorf("make the state directory: %w", err)
	}
	path := filepath.Join(dir, "lock")
	f, err := flock.Open(path, 0o640)
	if errors.Is(err, flock.ErrHeld) {
		return nil, fmt.Errorf("lock %q: %w", path, ErrLocked)
	}
	if err != nil {
		return nil, fmt.Errorf("take the state directory: %w", err)
	}
	return f, nil
}
