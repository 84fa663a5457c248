package kernel

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	plainName  = "ftfuse"
	helperName = "fusermount3"
	commFD     = "_FUSE_COMMFD"
)

// FSType is the type of a mounted file system in /proc/self/mountinfo.
const FSType = "fuse.ftfuse"

// mountFlags are the values of Options.Flags.
var mountFlags = map[string]uintptr{
	"noexec": unix.MS_NOEXEC, "noatime": unix.MS_NOATIME, "nodiratime": unix.MS_NODIRATIME, "relatime": unix.MS_RELATIME,
	"strictatime": unix.MS_STRICTATIME, "sync": unix.MS_SYNCHRONOUS, "dirsync": unix.MS_DIRSYNC,
}

func (o Options) source() string {
	if o.Source == "" {
		return plainName
	}
	return o.Source
}

// mountRoot opens /dev/fuse and mounts it on dir with mount(2).
func mountRoot(dir string, o Options) (int, error) {
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("%w on %s: open /dev/fuse: %w; is the fuse module loaded?", ErrMount, dir, err)
	}
	data := []string{
		"fd=" + strconv.Itoa(fd), "rootmode=40000",
		"user_id=" + strconv.Itoa(os.Getuid()), "group_id=" + strconv.Itoa(os.Getgid()),
		"default_permissions",
	}
	if o.AllowOther {
		data = append(data, "allow_other")
	}
	flags := uintptr(unix.MS_NOSUID | unix.MS_NODEV)
	for _, f := range o.Flags {
		flags |= mountFlags[f]
	}
	if err := unix.Mount(o.source(), dir, FSType, flags, strings.Join(data, ",")); err != nil {
		_ = unix.Close(fd)
		if err == unix.EPERM && !capable(unix.CAP_SYS_ADMIN) {
			return -1, fmt.Errorf("%w on %s: %w: root has no CAP_SYS_ADMIN here; give it to the container or service (--cap-add SYS_ADMIN, CapabilityBoundingSet=)", ErrMount, dir, err)
		}
		return -1, fmt.Errorf("%w on %s: %w", ErrMount, dir, err)
	}
	return fd, nil
}

// mountUser has the system's fusermount3 mount on dir, for a user who is not root.
func mountUser(dir string, o Options) (int, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("%w on %s: make a socket for %s: %w", ErrMount, dir, helperName, err)
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), "fusermount3"), os.NewFile(uintptr(pair[1]), "fusermount3")
	defer ours.Close()
	defer theirs.Close()
	opts := "fsname=" + strings.NewReplacer(`\`, `\\`, ",", `\,`).Replace(o.source()) + ",subtype=" + strings.TrimPrefix(FSType, "fuse.") + ",default_permissions"
	if o.AllowOther {
		opts += ",allow_other"
	}
	for _, f := range o.Flags {
		opts += "," + f
	}
	cmd := exec.Command(helperName, "-o", opts, "--", dir)
	cmd.Env = append(os.Environ(), commFD+"=3")
	cmd.ExtraFiles = []*os.File{theirs}
	if out, err := cmd.CombinedOutput(); err != nil {
		return -1, fmt.Errorf("%w on %s as a user who is not root: %w: %s; this needs the package fuse3 (fusermount3), /dev/fuse open to that user, and user_allow_other in /etc/fuse.conf for allow_other",
			ErrMount, dir, err, bytes.TrimSpace(out))
	}
	fd, err := receiveFD(int(ours.Fd()))
	if err != nil {
		_ = Detach(dir)
		return -1, fmt.Errorf("%w on %s: take the descriptor from %s: %w", ErrMount, dir, helperName, err)
	}
	return fd, nil
}

// receiveFD takes one descriptor that was sent over a Unix socket.
func receiveFD(sock int) (int, error) {
	oob := make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := unix.Recvmsg(sock, make([]byte, 32), oob, unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		return -1, err
	}
	messages, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil {
		return -1, err
	}
	for _, m := range messages {
		if fds, err := unix.ParseUnixRights(&m); err == nil && len(fds) == 1 {
			return fds[0], nil
		}
	}
	return -1, fmt.Errorf("no descriptor came")
}

// Detach takes the mount on dir away though it is in use, and drops its connection: a
// request that waits gets ECONNABORTED (fs/fuse/inode.c, fuse_umount_begin).
func Detach(dir string) error {
	if os.Geteuid() == 0 {
		return unix.Unmount(dir, unix.MNT_FORCE|unix.MNT_DETACH)
	}
	return runFusermount("-uz", dir)
}

// Unmount unmounts dir. busy is true if it was in use and had to be detached.
func Unmount(dir string) (busy bool, err error) {
	if os.Geteuid() == 0 {
		err = unix.Unmount(dir, unix.UMOUNT_NOFOLLOW)
	} else {
		err = runFusermount("-u", dir)
	}
	if err == nil || err == unix.EINVAL { // EINVAL: somebody else unmounted it
		return false, nil
	}
	return true, Detach(dir)
}

// runFusermount runs the system's fusermount3 for a user who is not root.
func runFusermount(args ...string) error {
	out, err := exec.Command(helperName, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s %v: %w: %s", helperName, args, err, bytes.TrimSpace(out))
	}
	return nil
}
