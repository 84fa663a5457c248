package mount

import (
	"fmt"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

func init() { actors["poll"] = actPoll }

// actPoll says what poll(2) gives for PATH, opened for appending and for reading.
func actPoll(args []string) error {
	for _, flags := range []int{syscall.O_WRONLY | syscall.O_APPEND | syscall.O_CREAT, syscall.O_RDONLY} {
		f, err := syscall.Open(args[0], flags, 0o644)
		if err != nil {
			return err
		}
		fds := []unix.PollFd{{Fd: int32(f), Events: unix.POLLIN | unix.POLLOUT}}
		if _, err := unix.Poll(fds, 100); err != nil {
			return err
		}
		fmt.Printf("in %v out %v\n", fds[0].Revents&unix.POLLIN != 0, fds[0].Revents&unix.POLLOUT != 0)
	}
	return nil
}

// TestPollSaysThatAFullQueueCannotBeWritten: it said always ready, so that a program that
// got EAGAIN and polled went round and round, or waited for an edge that never came. That
// the edge comes is tested in e2e, with a receiver that makes room.
func TestPollSaysThatAFullQueueCannotBeWritten(t *testing.T) {
	r := newRig(t, tinyQueue)
	says := func() string {
		o := startActor(t, "poll", r.path("a.log"))
		return o.next() + "; " + o.next()
	}
	if got := says(); got != "in true out true; in true out true" {
		t.Errorf("with room: %s", got)
	}
	fillUp(t, r, "full.log")
	if got := says(); got != "in true out false; in true out true" {
		t.Errorf("full: %s", got)
	}
	r.stop()
}
