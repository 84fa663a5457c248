// Package systemd tells the service manager that started this process how it goes, as
// sd_notify(3) says: a datagram of NAME=VALUE lines to the socket that $NOTIFY_SOCKET
// names. Where nobody asked for that, every function does nothing and returns nil.
//
// Who starts a mount in the background (package daemon) listens in the same way, until it
// is ready; then the variable is removed.
// All functions are safe for concurrent use.
package systemd

import (
	"fmt"
	"log/slog"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Env names the manager's socket: a path, or an abstract name behind an @.
const Env = "NOTIFY_SOCKET"

// Starter is what the names of sockets begin with whose listener wants to hear of the start
// alone: after READY=1 nobody is there.
const Starter = "@ftfuse-start-"

// Heard reports whether a socket's listener has heard all that it waits for when it was told
// state.
func Heard(socket, state string) bool { return state == ready && strings.HasPrefix(socket, Starter) }

const ready = "READY=1"

// limit is how long a notification may wait for a manager that reads nothing.
const limit = 5 * time.Second

// Ready says that the process serves, or that a reload has ended.
func Ready() error { return Notify(ready) }

// Stopping says that the process drains and ends.
func Stopping() error { return Notify("STOPPING=1") }

// Failed shows in `systemctl status` why the process ends.
func Failed(err error) error {
	return Notify(FailedState(err.Error()))
}

// FailedState is what Failed sends.
func FailedState(why string) string {
	return failed + strings.Map(func(r rune) rune {
		if r < ' ' {
			return ' '
		}
		return r
	}, why[:min(len(why), 4096)])
}

// failed is what Failed begins with.
const failed = "STATUS=failed: "

// Failure returns the text of a notification that Failed sent.
func Failure(state string) (why string, ok bool) { return strings.CutPrefix(state, failed) }

// Reloading says that the configuration is being read again, for which a service of
// Type=notify-reload waits after its SIGHUP. Ready ends it, whatever came of it.
func Reloading() error { return Notify(ReloadingState()) }

// ReloadingState is what Reloading sends.
func ReloadingState() string {
	var now unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &now) // fails for no clock that Linux has
	return "RELOADING=1\nMONOTONIC_USEC=" + strconv.FormatInt(now.Nano()/1000, 10)
}

// Notify sends lines of NAME=VALUE to the manager that $NOTIFY_SOCKET names.
func Notify(state string) error {
	socket := os.Getenv(Env)
	err := Send(socket, state)
	if Heard(socket, state) {
		_ = os.Unsetenv(Env)
	}
	return err
}

// Tell notes in the log that a notification failed, of which err is the outcome. The process
// goes on: who waits for it gives up by itself.
func Tell(log *slog.Logger, err error) {
	if err != nil {
		log.Warn("systemd is not told", "error", err)
	}
}

// Send is Notify to a socket that the caller names, "" being none, and with descriptors, which
// stay the caller's.
func Send(socket, state string, fds ...int) error {
	if socket == "" {
		return nil
	}
	if socket[0] != '/' && socket[0] != '@' {
		return fmt.Errorf("notify systemd: %s = %q is not a socket of this kind", Env, socket)
	}
	sock, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("make a socket to notify systemd: %w", err)
	}
	defer unix.Close(sock)
	var rights []byte
	if len(fds) > 0 {
		rights = unix.UnixRights(fds...)
	}
	wait := unix.NsecToTimeval(int64(limit))
	if err := unix.SetsockoptTimeval(sock, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &wait); err != nil {
		return fmt.Errorf("notify systemd: %w", err)
	}
	if err := unix.Sendmsg(sock, []byte(state), rights, &unix.SockaddrUnix{Name: socket}, unix.MSG_NOSIGNAL); err != nil {
		return fmt.Errorf("notify systemd at %s: %w", socket, err)
	}
	return nil
}
