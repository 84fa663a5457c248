package mount

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"ftfuse/internal/mountinfo"
	"ftfuse/mount/kernel"
)

// MaybeHelper turns this process into a helper of a mount, and does not return, if it
// was started as one. main calls it before anything else.
func MaybeHelper() {
	kernel.MaybeHelper()
	if len(os.Args) != 2 || filepath.Base(os.Args[0]) != throttleName {
		return
	}
	if err := throttleMain(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, throttleName+":", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// ErrMountPoint is returned when the mount point cannot be used.
var ErrMountPoint = errors.New("mount point is not usable")

// clearStale detaches what killed predecessors left on dir. It never touches a mount
// that somebody serves.
func clearStale(dir string) (cleared int, err error) {
	for {
		all, err := mountinfo.On(dir)
		if err != nil || len(all) == 0 {
			return cleared, err
		}
		top := all[len(all)-1]
		if top.Type != kernel.FSType {
			return cleared, fmt.Errorf("%w: a file system of type %s is mounted on %s; unmount it or choose another point", ErrMountPoint, top.Type, dir)
		}
		if !dead(dir) {
			return cleared, fmt.Errorf("%w: a running ftfuse serves %s; stop it or choose another point", ErrMountPoint, dir)
		}
		if err := detach(dir); err != nil {
			return cleared, fmt.Errorf("detach the stale mount on %s: %w", dir, err)
		}
		cleared++
	}
}

// Serves reports whether the FUSE file system on dir has a server.
func Serves(dir string) bool { return !dead(dir) }

// dead reports whether the FUSE connection mounted on dir has no server. It asks the
// control files of the connection first, since a stat of a server that hangs would
// hang too.
func dead(dir string) bool {
	result := make(chan error, 1)
	go func() {
		var st unix.Statfs_t
		result <- unix.Statfs(dir, &st)
	}()
	select {
	case err := <-result:
		return err == unix.ENOTCONN || err == unix.ECONNABORTED
	case <-afterProbe():
		return false
	}
}

// detach takes the mount on dir away though it is in use, and drops its connection.
func detach(dir string) error { return kernel.Detach(dir) }

// unmount unmounts dir. busy is true if it was in use and had to be detached.
func unmount(dir string) (busy bool, err error) { return kernel.Unmount(dir) }
