package daemon

import (
	"context"
	"errors"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ftfuse/internal/systemd"
)

// Anybody on the host sees the socket's name in /proc/net/unix and can send to it: a user
// without rights had a mount that hung pass for mounted, or let mount(8) wait for ever.
func TestWhatAnotherUserSaysDecidesNothing(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root, to be somebody else")
	}
	for _, word := range []string{"READY=1", "STATUS=failed: so I say"} {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second) // the program asks for signals meanwhile
		said := make(chan bool)
		go func() { said <- whisper(ctx, word) }()
		done := make(chan error, 1)
		go func() { done <- Start(ctx, program("hangs", t.TempDir()+"/told")) }()
		if !<-said {
			t.Error("nothing was said")
		}
		select {
		case err := <-done:
			if !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("%s: %v", word, err)
			}
		case <-time.After(10 * time.Second):
			t.Errorf("%s: who starts it waits for ever", word)
		}
		cancel()
	}
}

// whisper sends word to who starts something, again and again until ctx ends, from a thread of
// another user, and reports whether any was taken.
func whisper(ctx context.Context, word string) (said bool) {
	runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
	if _, _, e := unix.RawSyscall(unix.SYS_SETRESUID, 65534, 65534, 65534); e != 0 {
		return false
	}
	for tick := time.NewTicker(time.Millisecond); ; {
		select {
		case <-ctx.Done():
			return said
		case <-tick.C:
		}
		sockets, _ := os.ReadFile("/proc/net/unix")
		for line := range strings.Lines(string(sockets)) {
			at := strings.Index(line, systemd.Starter)
			said = at >= 0 && systemd.Send(strings.TrimSpace(line[at:]), word) == nil || said
		}
	}
}
