package rig

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// ErrNoNamespace is returned where the kernel or the lack of rights does not let a network
// namespace be made.
var ErrNoNamespace = errors.New("no network namespace can be made here")

// Namespace is a network namespace that has no name anywhere: it lasts as long as this
// descriptor and the processes in it, so that nothing of it is left when a test dies. Its
// loopback is up. The zero value is not usable; the nil *Namespace is the one that the
// caller itself is in. Its methods are safe for concurrent use.
type Namespace struct {
	fd *os.File
}

// NewNamespace makes a network namespace. It needs CAP_SYS_ADMIN and ip(8).
func NewNamespace() (*Namespace, error) {
	n := &Namespace{}
	err := onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("%w: unshare: %w", ErrNoNamespace, err)
		}
		var err error
		if n.fd, err = os.Open("/proc/thread-self/ns/net"); err != nil {
			return fmt.Errorf("%w: %w", ErrNoNamespace, err)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	if err := n.run("ip", "link", "set", "lo", "up"); err != nil {
		_ = n.Close() // the error above says more
		return nil, fmt.Errorf("%w: %w", ErrNoNamespace, err)
	}
	return n, nil
}

// Close lets go of the namespace; it goes when its last process has gone.
func (n *Namespace) Close() error { return n.fd.Close() }

// path is where other processes find the namespace while this one lives.
func (n *Namespace) path() string {
	return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), n.fd.Fd())
}

// Do runs f in a thread that is inside the namespace and ends after it. Sockets that f makes
// and processes that it starts belong to the namespace for good; goroutines that it starts
// do not. On a nil Namespace it just runs f.
func (n *Namespace) Do(f func() error) error {
	if n == nil {
		return f()
	}
	return onThread(func() error {
		if err := unix.Setns(int(n.fd.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter a network namespace: %w", err)
		}
		return f()
	})
}

// onThread runs f in a thread of its own, which ends with it: what f changes of the thread
// does not come out.
func onThread(f func() error) error {
	err := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine (runtime.LockOSThread)
		err <- f()
	}()
	return <-err
}

// run runs a program of the system inside the namespace to its end.
func (n *Namespace) run(program string, args ...string) error {
	return n.runWith("", program, args...)
}

// runWith is run with text on standard input.
func (n *Namespace) runWith(stdin, program string, args ...string) error {
	return n.Do(func() error {
		cmd := exec.Command(program, args...)
		cmd.Stdin = strings.NewReader(stdin)
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%s %s: %w: %s", program, strings.Join(args, " "), err, strings.TrimSpace(string(out)))
		}
		return nil
	})
}
