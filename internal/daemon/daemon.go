// Package daemon starts a program in the background and returns when it serves, or says why
// it does not: what mount(8) expects of a file system's helper.
//
// The program speaks sd_notify (package systemd): READY=1, or STATUS=failed: and why, before
// it ends. Who started it listens until then only, so that nothing is left behind.
package daemon

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"ftfuse/internal/systemd"
)

// Errors of Start.
var (
	// ErrStart: there is no process.
	ErrStart = errors.New("cannot be started in the background")
	// ErrFailed: it ended, and said why, before it was ready.
	ErrFailed = errors.New("failed")
)

// Program is what to start.
type Program struct {
	Path string
	Args []string // the first is its name
	Env  []string // beside this process's own
	Log  *os.File // its standard error; stays the caller's
}

// lastWords is how long the words of a program that ended are waited for: they were sent
// before.
const lastWords = 200 * time.Millisecond

// Start starts p in a session of its own, with / as its working directory, and waits until it
// is ready, or has ended. Where ctx ends before that, the program is told to stop by SIGTERM.
func Start(ctx context.Context, p Program) error {
	name := systemd.Starter + rand.Text()
	words, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: name, Net: "unixgram"})
	if err != nil {
		return fmt.Errorf("%w: make a socket to hear of it: %w", ErrStart, err)
	}
	defer words.Close()
	if err := withCredentials(words); err != nil {
		return fmt.Errorf("%w: ask who speaks on a socket: %w", ErrStart, err)
	}
	cmd := &exec.Cmd{
		Path: p.Path, Args: p.Args, Dir: "/", Stderr: p.Log,
		Env:         append(withoutManager(os.Environ()), append(p.Env, systemd.Env+"="+name)...),
		SysProcAttr: &syscall.SysProcAttr{Setsid: true},
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("%w: %w", ErrStart, err)
	}
	heard := make(chan error, 1)
	go func() { heard <- hear(words) }()
	ended := make(chan error, 1)
	go func() {
		err := cmd.Wait()
		_ = words.SetReadDeadline(time.Now().Add(lastWords))
		ended <- err
	}()
	select {
	case <-ctx.Done():
		_ = cmd.Process.Signal(syscall.SIGTERM) // what has ended is as good
		return ctx.Err()
	case err := <-heard:
		if errors.Is(err, os.ErrDeadlineExceeded) { // without a word
			return fmt.Errorf("%w: it ended before it served: %v", ErrFailed, cmd.ProcessState)
		}
		if !errors.Is(err, ErrFailed) {
			return err
		}
		select {
		case <-ended:
			return err
		case <-ctx.Done():
			_ = cmd.Process.Signal(syscall.SIGTERM)
			return errors.Join(err, ctx.Err())
		}
	}
}

// withCredentials has the kernel say of each datagram who sent it: the socket's name is there
// for everybody to see and to send to.
func withCredentials(words *net.UnixConn) error {
	raw, err := words.SyscallConn()
	if err != nil {
		return err
	}
	var set error
	err = raw.Control(func(fd uintptr) { set = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PASSCRED, 1) })
	return errors.Join(err, set)
}

// ours reports whether a datagram with these control messages is of this process's user.
func ours(control []byte) bool {
	all, err := unix.ParseSocketControlMessage(control)
	if err != nil {
		return false
	}
	for i := range all {
		if who, err := unix.ParseUnixCredentials(&all[i]); err == nil {
			return int(who.Uid) == os.Geteuid()
		}
	}
	return false
}

// hear reads up to the word that decides.
func hear(words *net.UnixConn) error {
	b := make([]byte, 16<<10)
	control := make([]byte, unix.CmsgSpace(unix.SizeofUcred)) // no room for descriptors: the kernel closes those
	for {
		n, c, _, _, err := words.ReadMsgUnix(b, control)
		if err != nil {
			return err
		}
		if !ours(control[:c]) {
			continue
		}
		state := string(b[:n])
		if why, ok := systemd.Failure(state); ok {
			return fmt.Errorf("%w: %s", ErrFailed, why)
		}
		if state == "READY=1" {
			return nil
		}
	}
}

// withoutManager is env without what a service manager said to this process.
func withoutManager(env []string) []string {
	var out []string
	for _, e := range env {
		name, _, _ := strings.Cut(e, "=")
		if name != systemd.Env && !strings.HasPrefix(name, "LISTEN_") {
			out = append(out, e)
		}
	}
	return out
}
