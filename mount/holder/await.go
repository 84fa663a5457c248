package holder

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// awaitTick is how often AwaitEnd looks whether its context has ended.
const awaitTick = 100 * time.Millisecond

// AwaitEnd waits until the process that answers on one of the sockets in dir, the first that
// is there, has ended: the holder of a mount that was unmounted and is sending what it has, or
// who serves without one. It returns at once where there is none, and ctx's error if that
// ends first.
func AwaitEnd(ctx context.Context, dir string, sockets ...string) error {
	for _, name := range append([]string{holderSocket}, sockets...) {
		fd, err := peer(dir, name)
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ECONNREFUSED) || errors.Is(err, unix.ESRCH) {
			continue
		}
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		for ctx.Err() == nil {
			n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(awaitTick.Milliseconds()))
			if err != nil && err != unix.EINTR {
				return fmt.Errorf("wait for the end of a process: %w", err)
			}
			if n > 0 {
				return nil
			}
		}
		return ctx.Err()
	}
	return nil
}

// peer returns a pidfd of who made the socket dir/name.
func peer(dir, name string) (fd int, err error) {
	err = socketPath(dir, name, func(path string) error {
		var c net.Conn
		for _, network := range []string{"unixpacket", "unix"} {
			if c, err = net.Dial(network, path); !errors.Is(err, unix.EPROTOTYPE) {
				break
			}
		}
		if err != nil {
			return fmt.Errorf("ask who serves: %w", err)
		}
		defer c.Close()
		raw, err := c.(*net.UnixConn).SyscallConn()
		if err != nil {
			return err
		}
		var cred *unix.Ucred
		if cerr := raw.Control(func(s uintptr) { cred, err = unix.GetsockoptUcred(int(s), unix.SOL_SOCKET, unix.SO_PEERCRED) }); cerr != nil || err != nil {
			return fmt.Errorf("ask who serves: %w", errors.Join(cerr, err))
		}
		fd, err = unix.PidfdOpen(int(cred.Pid), 0)
		return err
	})
	return fd, err
}
