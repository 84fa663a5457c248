package holder

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"

	"ftfuse/internal/mountinfo"

	"golang.org/x/sys/unix"
)

// connection is what the holder keeps.
type connection struct {
	fd    int    // of /dev/fuse
	saved []byte // for the next worker
	dev   string // MAJOR:MINOR of the mounted file system; "" if it was not found
}

// mountedAt returns MAJOR:MINOR of the FUSE file system that is mounted topmost on point,
// and "" if none is. It asks the kernel's list, never the file system.
func mountedAt(point string) (string, error) {
	all, err := mountinfo.On(point)
	if err != nil || len(all) == 0 {
		return "", err
	}
	if top := all[len(all)-1]; top.Type == "fuse" || strings.HasPrefix(top.Type, "fuse.") {
		return top.Dev, nil
	}
	return "", nil
}

// detachLimit is how long taking the mount away may last. The kernel asks the file
// system nothing for it; a path through another file system that hangs can.
const detachLimit = 5 * time.Second

// detach takes the mount of c away from point, though it is in use, and makes the kernel
// drop the connection: what waits gets ECONNABORTED (fs/fuse/inode.c, fuse_umount_begin),
// what comes later ENOTCONN. Whatever else is mounted there is left alone.
func (c *connection) detach(point string) error {
	done := make(chan error, 1)
	go func() {
		dev, err := mountedAt(point)
		switch {
		case err != nil:
		case dev == "" || c.dev != "" && dev != c.dev:
			err = nil // it is gone
		case os.Geteuid() == 0:
			err = unix.Unmount(point, unix.MNT_FORCE|unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		default:
			var out []byte
			if out, err = exec.Command("fusermount3", "-uz", point).CombinedOutput(); err != nil {
				err = fmt.Errorf("fusermount3 -uz: %w: %s", err, strings.TrimSpace(string(out)))
			}
		}
		done <- err
	}()
	late := time.NewTimer(detachLimit)
	defer late.Stop()
	select {
	case err := <-done:
		if err != nil {
			return fmt.Errorf("detach the mount on %s: %w; `umount -l %s` takes it away", point, err, point)
		}
		return nil
	case <-late.C:
		return fmt.Errorf("detach the mount on %s: not done within %v; `umount -fl %s` takes it away", point, detachLimit, point)
	}
}

// Dead reports whether the kernel has dropped the connection fd of /dev/fuse
// (fs/fuse/dev.c, fuse_dev_poll).
func Dead(fd int) bool {
	p := []unix.PollFd{{Fd: int32(fd)}}
	n, err := unix.Poll(p, 0)
	return err == nil && n > 0 && p[0].Revents&(unix.POLLERR|unix.POLLNVAL) != 0
}
