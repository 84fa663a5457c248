package rig

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// goneIn is how long a process may take to be gone after SIGKILL.
const goneIn = 20 * time.Second

// attr returns the value of a key in a line of slog's text format, "" if it is not there.
// A quoted value is returned without its quotes.
func attr(line, key string) string {
	_, rest, ok := strings.Cut(line, " "+key+"=")
	if !ok {
		return ""
	}
	if quoted, err := strconv.QuotedPrefix(rest); err == nil {
		if s, err := strconv.Unquote(quoted); err == nil {
			return s
		}
	}
	value, _, _ := strings.Cut(rest, " ")
	return value
}

// readies are the lines in which the role said that it serves, one for each worker.
func (r *Role) readies() []string {
	var out []string
	for _, line := range r.Log() {
		if strings.Contains(line, "msg=ready") {
			out = append(out, line)
		}
	}
	return out
}

// Readies is how many workers have said so far that they serve: 1 after the start, one more
// after each worker that took over.
func (r *Role) Readies() int { return len(r.readies()) }

// ReadyAgain waits until at least n workers have said that they serve.
func (r *Role) ReadyAgain(ctx context.Context, n int) error {
	ctx, cancel := context.WithTimeout(ctx, ReadyIn)
	defer cancel()
	for {
		r.mu.Lock()
		more, over := r.more, r.over
		r.mu.Unlock()
		if r.Readies() >= n {
			return nil
		}
		if over {
			return fmt.Errorf("wait for worker number %d of %s: %w, log:\n  %s", n, r.Name, ErrExited, strings.Join(r.Log(), "\n  "))
		}
		select {
		case <-more:
		case <-ctx.Done():
			return fmt.Errorf("wait for worker number %d of %s: %w, log:\n  %s", n, r.Name, context.Cause(ctx), strings.Join(r.Log(), "\n  "))
		}
	}
}

// ReadyAttr is what the newest ready line says for a key, "" if nothing.
func (r *Role) ReadyAttr(key string) string {
	lines := r.readies()
	if len(lines) == 0 {
		return ""
	}
	return attr(lines[len(lines)-1], key)
}

// Worker is the process id of the one that serves: of the holder's worker, or of the role
// itself where it has no holder.
func (r *Role) Worker() int {
	if pid, err := strconv.Atoi(r.ReadyAttr("pid")); err == nil {
		return pid
	}
	return r.PID()
}

// Family is the role's process and all that descend from it, without those that have ended.
// The first is the role's own.
func (r *Role) Family() []int {
	parent := map[int]int{}
	dirs, _ := filepath.Glob("/proc/[0-9]*") // the pattern is well-formed
	for _, d := range dirs {
		pid, err := strconv.Atoi(filepath.Base(d))
		if err != nil {
			continue
		}
		if f, ok := stat(pid); ok && f[0] != "Z" {
			parent[pid], _ = strconv.Atoi(f[1]) // the kernel's own number
		}
	}
	family := []int{r.PID()}
	for i := 0; i < len(family); i++ {
		var children []int
		for pid, of := range parent {
			if of == family[i] {
				children = append(children, pid)
			}
		}
		slices.Sort(children)
		family = append(family, children...)
	}
	return family
}

// stat returns the fields of /proc/PID/stat behind the name: state, parent, ….
func stat(pid int) ([]string, bool) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return nil, false
	}
	f := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	return f, len(f) > 2
}

// KillWorker ends the process that serves as kill -9 does, waits until it is gone, and
// leaves the holder, if there is one, alone. Where none serves, because the last one was
// killed a moment ago, it waits for the next.
func (r *Role) KillWorker() error {
	pid := r.Worker()
	if pid == r.PID() {
		return r.Kill()
	}
	for limit := time.Now().Add(goneIn); !slices.Contains(r.Family(), pid); pid = r.Worker() {
		if r.Gone() || time.Now().After(limit) {
			return fmt.Errorf("kill the worker of %s: process %d of its ready line is no child of process %d", r.Name, pid, r.PID())
		}
		pause(time.Millisecond)
	}
	return killAndWait([]int{pid})
}

// KillNext waits until the holder has started a worker after the one that was killed, gives
// it so much time, and ends it as kill -9 does, however far it has come. It returns its
// process id.
func (r *Role) KillNext(killed int, after time.Duration) (int, error) {
	for limit := time.Now().Add(goneIn); ; pause(time.Millisecond) {
		if r.Gone() || time.Now().After(limit) {
			return 0, fmt.Errorf("kill the worker after process %d of %s: process %d has started none", killed, r.Name, r.PID())
		}
		for _, pid := range r.Family()[1:] {
			if f, ok := stat(pid); ok && f[1] == strconv.Itoa(r.PID()) && pid != killed {
				pause(after)
				return pid, killAndWait([]int{pid})
			}
		}
	}
}

// Kill ends the role as kill -9 of each of its processes at once does, and waits until all
// are gone. What has ended already is not an error.
func (r *Role) Kill() error {
	if r.Gone() {
		return killAndWait(r.orphans())
	}
	// Stopped, the holder cannot start another worker while its processes are looked for.
	if err := r.Signal(syscall.SIGSTOP); err != nil {
		return err
	}
	limit := time.Now().Add(goneIn)
	for !r.Gone() && time.Now().Before(limit) {
		if f, ok := stat(r.PID()); !ok || f[0] == "T" || f[0] == "Z" {
			break
		}
		pause(50 * time.Microsecond)
	}
	family := append(r.Family(), r.orphans()...)
	if err := killAndWait(family); err != nil {
		return err
	}
	<-r.done
	return nil
}

// orphans are workers whose holder has gone: known by their ready lines, and still running
// this binary's role.
func (r *Role) orphans() []int {
	var out []int
	for _, line := range r.readies() {
		pid, err := strconv.Atoi(attr(line, "pid"))
		if err != nil || pid == r.PID() {
			continue
		}
		args, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if err == nil && bytes.Contains(args, []byte("\x00-c\x00"+r.config+"\x00")) {
			out = append(out, pid)
		}
	}
	return out
}

// killAndWait sends SIGKILL to processes in their order and waits until each is gone, or is
// a zombie that its parent has not asked for yet.
func killAndWait(pids []int) error {
	var fds []int
	defer func() {
		for _, fd := range fds {
			_ = unix.Close(fd)
		}
	}()
	for _, pid := range pids {
		fd, err := unix.PidfdOpen(pid, 0)
		if errors.Is(err, unix.ESRCH) {
			continue
		}
		if err != nil {
			return fmt.Errorf("kill process %d: %w", pid, err)
		}
		fds = append(fds, fd)
	}
	for _, fd := range fds {
		if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("kill one of the processes %v: %w", pids, err)
		}
	}
	limit := time.Now().Add(goneIn)
	for _, fd := range fds {
		for { // a pidfd becomes readable when its process ends (pidfd_open(2))
			n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(max(time.Until(limit).Milliseconds(), 0)))
			if err != nil && !errors.Is(err, unix.EINTR) {
				return fmt.Errorf("wait for the end of one of the processes %v: %w", pids, err)
			}
			if n > 0 {
				break
			}
			if time.Now().After(limit) {
				return fmt.Errorf("one of the processes %v is still there %v after SIGKILL", pids, goneIn)
			}
		}
	}
	return nil
}
