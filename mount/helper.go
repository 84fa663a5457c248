package mount

import (
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"bazil.org/fuse"
	"golang.org/x/sys/unix"
)

const (
	helperName = "fusermount3"
	fsType     = "fuse.ftfuse"
	fsName     = "ftfuse"
)

// MaybeHelper turns this process into the helper that mounts, and does not return, if
// it was started under the helper's name. main calls it before anything else: a mount
// run by root needs no package installed, since the library's search for fusermount3
// finds a link to this very binary.
func MaybeHelper() {
	if filepath.Base(os.Args[0]) != helperName || os.Getenv("_FUSE_COMMFD") == "" {
		return
	}
	if err := helper(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "ftfuse mount helper:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// helper speaks fusermount3's side of the protocol: -o OPTIONS -- DIR, and the
// descriptor of /dev/fuse over the socket that _FUSE_COMMFD names.
func helper(args []string) error {
	var opts string
	for len(args) > 1 && args[0] == "-o" {
		opts, args = args[1], args[2:]
	}
	if len(args) == 2 && args[0] == "--" {
		args = args[1:]
	}
	if len(args) != 1 {
		return fmt.Errorf("unexpected arguments %q", args)
	}
	sock, err := strconv.Atoi(os.Getenv("_FUSE_COMMFD"))
	if err != nil {
		return fmt.Errorf("read _FUSE_COMMFD: %w", err)
	}
	fd, err := mountFUSE(args[0], strings.Split(opts, ","))
	if err != nil {
		return err
	}
	if err := unix.Sendmsg(sock, []byte{0}, unix.UnixRights(fd), nil, 0); err != nil {
		return fmt.Errorf("hand the descriptor over: %w", err)
	}
	return nil
}

// mountFUSE opens /dev/fuse and mounts it on dir.
func mountFUSE(dir string, opts []string) (int, error) {
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open /dev/fuse: %w; is the fuse module loaded?", err)
	}
	data := []string{
		"fd=" + strconv.Itoa(fd), "rootmode=40000",
		"user_id=" + strconv.Itoa(os.Getuid()), "group_id=" + strconv.Itoa(os.Getgid()),
	}
	for _, o := range opts {
		switch key, _, _ := strings.Cut(o, "="); key {
		case "allow_other", "default_permissions", "max_read":
			data = append(data, o)
		}
	}
	if err := unix.Mount(fsName, dir, fsType, unix.MS_NOSUID|unix.MS_NODEV, strings.Join(data, ",")); err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("mount on %s: %w", dir, err)
	}
	return fd, nil
}

// connect mounts on dir and returns the connection. Root mounts by itself, anybody
// else needs fusermount3.
func connect(dir string, allowOther bool) (*fuse.Conn, error) {
	opts := []fuse.MountOption{
		fuse.FSName(fsName), fuse.Subtype("ftfuse"), fuse.DefaultPermissions(),
		fuse.LockingFlock(), fuse.LockingPOSIX(),
		// A RELEASE is a background request: beyond the limit (12 by default) it would wait
		// in the kernel while later requests of the program that closed go past it
		// (fs/fuse/dev.c, flush_bg_queue).
		fuse.MaxBackground(math.MaxUint16), fuse.CongestionThreshold(math.MaxUint16),
	}
	if allowOther {
		opts = append(opts, fuse.AllowOther())
	}
	if os.Geteuid() != 0 {
		c, err := fuse.Mount(dir, opts...)
		if err != nil {
			return nil, fmt.Errorf("mount on %s as a user who is not root: %w; this needs the package fuse3 (fusermount3), /dev/fuse open to that user, and user_allow_other in /etc/fuse.conf for allow_other", dir, err)
		}
		return c, nil
	}
	undo, err := helperOnPath()
	if err != nil {
		return nil, err
	}
	defer undo()
	c, err := fuse.Mount(dir, opts...)
	if err != nil {
		return nil, fmt.Errorf("mount on %s: %w", dir, err)
	}
	return c, nil
}

// helperOnPath puts a private directory first on PATH in which the helper's name is
// this binary.
func helperOnPath() (undo func(), err error) {
	bin, err := os.MkdirTemp("", "ftfuse-helper-")
	if err != nil {
		return nil, fmt.Errorf("make a directory for the mount helper: %w", err)
	}
	self, err := os.Executable()
	if err == nil {
		err = os.Symlink(self, filepath.Join(bin, helperName))
	}
	if err != nil {
		os.RemoveAll(bin)
		return nil, fmt.Errorf("link the mount helper: %w", err)
	}
	path, had := os.LookupEnv("PATH")
	os.Setenv("PATH", bin+string(os.PathListSeparator)+path)
	return func() {
		if had {
			os.Setenv("PATH", path)
		} else {
			os.Unsetenv("PATH")
		}
		os.RemoveAll(bin)
	}, nil
}

// mounted is one line of /proc/self/mountinfo.
type mounted struct {
	point, fstype string
}

// mountsOn returns what is mounted on dir, the topmost last.
func mountsOn(dir string) ([]mounted, error) {
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("read mounts: %w", err)
	}
	var all []mounted
	for line := range strings.Lines(string(text)) {
		before, after, ok := strings.Cut(line, " - ")
		fields := strings.Fields(before)
		rest := strings.Fields(after)
		if !ok || len(fields) < 5 || len(rest) < 1 {
			continue
		}
		if point := unescapeMount(fields[4]); point == dir {
			all = append(all, mounted{point, rest[0]})
		}
	}
	return all, nil
}

// unescapeMount undoes the octal escapes of mountinfo (proc_pid_mountinfo(5)).
func unescapeMount(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if v, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(v))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// ErrMountPoint is returned when the mount point cannot be used.
var ErrMountPoint = errors.New("mount point is not usable")

// clearStale detaches what killed predecessors left on dir. It never touches a mount
// that somebody serves.
func clearStale(dir string) (cleared int, err error) {
	for {
		all, err := mountsOn(dir)
		if err != nil || len(all) == 0 {
			return cleared, err
		}
		top := all[len(all)-1]
		if top.fstype != fsType {
			return cleared, fmt.Errorf("%w: a file system of type %s is mounted on %s; unmount it or choose another point", ErrMountPoint, top.fstype, dir)
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

// detach takes the mount on dir away though it is in use, and drops its connection: a
// request that waits gets ECONNABORTED (fs/fuse/inode.c, fuse_umount_begin).
func detach(dir string) error {
	if os.Geteuid() == 0 {
		return unix.Unmount(dir, unix.MNT_FORCE|unix.MNT_DETACH)
	}
	return runFusermount("-uz", dir)
}

// unmount unmounts dir. busy is true if it was in use and had to be detached.
func unmount(dir string) (busy bool, err error) {
	if os.Geteuid() == 0 {
		err = unix.Unmount(dir, unix.UMOUNT_NOFOLLOW)
	} else {
		err = runFusermount("-u", dir)
	}
	if err == nil || err == unix.EINVAL { // EINVAL: somebody else unmounted it
		return false, nil
	}
	return true, detach(dir)
}
