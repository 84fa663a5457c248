package offline

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"ftfuse/internal/mountinfo"
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
// what is mounted in it (open_tree(2), OPEN_TREE_CLONE), shows it. Where that is not the mount
// in which point was mounted over, as where point is a mount point of its own besides, the
// error is ErrHidden. It asks nothing of what is mounted.
func Reopen(point string) (*os.File, error) {
	parent := filepath.Dir(point)
	all, err := mountinfo.On(point)
	if err != nil || len(all) == 0 {
		return nil, fmt.Errorf("%w: nothing is seen to be mounted on %s: %w", ErrHidden, point, errors.Join(err))
	}
	var x unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, parent, 0, unix.STATX_MNT_ID, &x); err != nil || x.Mask&unix.STATX_MNT_ID == 0 {
		return nil, fmt.Errorf("%w: ask for the mount of %s: %w", ErrHidden, parent, errors.Join(err))
	}
	if all[0].Parent != x.Mnt_id {
		return nil, fmt.Errorf("%w: %s is a mount point of its own", ErrHidden, point)
	}
	tree, err := unix.OpenTree(unix.AT_FDCWD, parent, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("%w: open_tree %s: %w", ErrHidden, parent, err)
	}
	defer unix.Close(tree)
	fd, err := unix.Openat(tree, filepath.Base(point), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("%w: open %s below the mount: %w", ErrHidden, filepath.Base(point), err)
	}
	return os.NewFile(uintptr(fd), point), nil
}
