package holder

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// Names of the sockets in <state_dir>/mount.
const (
	holderSocket = "holder.sock" // of the holder, for `ftfuse mount --handover`
	workerSocket = "worker.sock" // of the worker, for the worker of the next holder
	senderSocket = "sender.sock" // of who has the lock without a mount, see Exclude
	lockName     = "holder.lock" // held by the holder
)

// longest is how long the path of a socket may be (unix(7)).
const longest = 107

// socketPath calls f with a path of dir/name that is short enough for a socket.
func socketPath(dir, name string, f func(path string) error) error {
	path := filepath.Join(dir, name)
	if len(path) <= longest {
		return f(path)
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return f(fmt.Sprintf("/proc/self/fd/%d/%s", d.Fd(), name))
}

// listen makes the socket dir/name, for this user only. What a predecessor left there
// is replaced: the caller has the lock that keeps others away.
func listen(dir, name string) (l *net.UnixListener, err error) {
	if err := os.Remove(filepath.Join(dir, name)); err != nil && !os.IsNotExist(err) {
		return nil, fmt.Errorf("remove the socket of a predecessor: %w", err)
	}
	err = socketPath(dir, name, func(path string) error {
		made, err := (&net.ListenConfig{Control: ownerOnly}).Listen(context.Background(), "unixpacket", path)
		if err == nil {
			l = made.(*net.UnixListener)
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("make the socket %s: %w", filepath.Join(dir, name), err)
	}
	l.SetUnlinkOnClose(false) // removed under the lock, by its path
	return l, nil
}

// ownerOnly gives a socket the mode that its name will have (net/unix/af_unix.c,
// unix_bind_bsd): there is no moment in which it is anybody else's.
func ownerOnly(_, _ string, c syscall.RawConn) (err error) {
	if cerr := c.Control(func(fd uintptr) { err = unix.Fchmod(int(fd), 0o600) }); cerr != nil {
		return cerr
	}
	return err
}

// dial connects to dir/name. The error is ENOENT or ECONNREFUSED where nobody listens.
func dial(dir, name string) (*channel, error) {
	var c *net.UnixConn
	err := socketPath(dir, name, func(path string) (err error) {
		c, err = net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: path, Net: "unixpacket"})
		return err
	})
	if err != nil {
		return nil, err
	}
	return &channel{c: c}, nil
}

// peer is the pid of the process at the other end when it listened.
func (c *channel) peer() int {
	raw, err := c.c.SyscallConn()
	if err != nil {
		return 0
	}
	pid := 0
	_ = raw.Control(func(fd uintptr) {
		if cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
			pid = int(cred.Pid)
		}
	})
	return pid
}

// lock takes dir's lock, or says who has it. The lock is the open file's: it goes with
// the last copy of the descriptor.
func lock(dir string) (*os.File, error) {
	path := filepath.Join(dir, lockName)
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the holder's lock: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if err == unix.EWOULDBLOCK {
			return nil, fmt.Errorf("lock %s: %w; stop it, or give this one a state_dir of its own", path, ErrRunning)
		}
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return f, nil
}
