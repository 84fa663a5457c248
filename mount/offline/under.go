package offline

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"ftfuse/mount/capture"
)

// ErrHidden is returned by Reopen where the directory below a mount cannot be had.
var ErrHidden = errors.New("the directory below the mount point is out of reach")

// Open opens the directory of a mount point on which nothing is mounted yet.
func Open(point string) (*os.File, error) {
	fd, err := unix.Open(point, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open the directory below the mount point: %w", &os.PathError{Op: "open", Path: point, Err: err})
	}
	return os.NewFile(uintptr(fd), point), nil
}

// Reopen opens the directory below a mount point that a predecessor has mounted, and which
// Open's descriptor was lost with: a copy of the mount that has the parent directory, without
// what is mounted in it (open_tree(2), OPEN_TREE_CLONE), shows it. It is the directory that
// was opened before, or the error is ErrHidden.
func Reopen(ctx context.Context, point string, c Capture) (*os.File, error) {
	var was *capture.Source
	err := c.Sources(ctx, func(_ uint64, s capture.Source) {
		if s.Kind == capture.SourceRoot {
			was = &s
		}
	})
	switch {
	case err != nil:
		return nil, err
	case was == nil:
		return nil, fmt.Errorf("%w: nobody has opened it before", ErrHidden)
	}
	tree, err := unix.OpenTree(unix.AT_FDCWD, filepath.Dir(point), unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("%w: open_tree %s: %w", ErrHidden, filepath.Dir(point), err)
	}
	defer unix.Close(tree)
	fd, err := unix.Openat(tree, filepath.Base(point), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("%w: open %s below the mount: %w", ErrHidden, filepath.Base(point), err)
	}
	st, err := statOf(fd)
	now := st.source(capture.SourceRoot, "")
	if err != nil || !sameDir(was, &now) {
		unix.Close(fd)
		return nil, fmt.Errorf("%w: another directory is there, perhaps since %s is a mount point of its own", ErrHidden, point)
	}
	return os.NewFile(uintptr(fd), point), nil
}
