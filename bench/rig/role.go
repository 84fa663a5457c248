// Package rig runs ftfuse the way an operator does, for the benchmark, the demo and the
// end-to-end tests: the roles as child processes of a built binary with TOML files made
// for them, killed with a real kill -9, and writers that are processes of their own.
// It imports no role.
package rig

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"
)

// ReadyIn is how long a role may take to say that it serves.
const ReadyIn = 60 * time.Second

// ErrExited is returned while waiting for a role that has ended instead.
var ErrExited = errors.New("the role has exited")

// Role is one running process of the binary. Its methods are safe for concurrent use.
type Role struct {
	Name string // mount, relay, receive; of a Host, its name

	config string
	cmd    *exec.Cmd
	done   chan struct{} // closed when the process has been waited for

	mu   sync.Mutex
	log  []string
	more chan struct{} // closed and replaced at every new log line
	over bool          // the log has ended
}

// Start runs `bin role -c config` with env added to the environment. Its log is kept and
// also written to log, which may be nil. The role has a process group of its own, so a ^C
// at the terminal reaches only the caller.
func Start(bin, role, config string, log io.Writer, env ...string) (*Role, error) {
	return StartWith(nil, bin, role, config, log, env...)
}

// StartWith is Start with files as descriptors 3 and on, as a service manager passes them.
func StartWith(files []*os.File, bin, role, config string, log io.Writer, env ...string) (*Role, error) {
	return startNamed(role, files, bin, role, config, log, env...)
}

// startNamed is StartWith under a name for the log.
func startNamed(name string, files []*os.File, bin, role, config string, log io.Writer, env ...string) (*Role, error) {
	cmd := exec.Command(bin, role, "-c", config)
	cmd.ExtraFiles = files
	cmd.Env = append(os.Environ(), env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	out, in, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("make a pipe for the log of %s: %w", role, err)
	}
	cmd.Stdout, cmd.Stderr = in, in
	if err := cmd.Start(); err != nil {
		in.Close()
		out.Close()
		return nil, fmt.Errorf("start %s %s: %w", bin, role, err)
	}
	in.Close()
	r := &Role{Name: name, config: config, cmd: cmd, done: make(chan struct{}), more: make(chan struct{})}
	go r.read(out, log)
	go func() {
		_ = cmd.Wait() // the exit status is asked from ProcessState
		close(r.done)
	}()
	return r, nil
}

func (r *Role) read(out *os.File, log io.Writer) {
	defer out.Close()
	lines := bufio.NewScanner(out)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		if log != nil {
			fmt.Fprintf(log, "%s: %s\n", r.Name, lines.Text())
		}
		r.mu.Lock()
		r.log = append(r.log, lines.Text())
		close(r.more)
		r.more = make(chan struct{})
		r.mu.Unlock()
	}
	r.mu.Lock()
	r.over = true
	close(r.more)
	r.mu.Unlock()
}

// PID is the process id of what was started: of the holder, where the role has one.
func (r *Role) PID() int { return r.cmd.Process.Pid }

// Done is closed once the process has ended.
func (r *Role) Done() <-chan struct{} { return r.done }

// Gone reports whether the process has ended.
func (r *Role) Gone() bool {
	select {
	case <-r.done:
		return true
	default:
		return false
	}
}

// ExitCode waits for the process and returns its exit code, -1 if a signal ended it.
func (r *Role) ExitCode() int {
	<-r.done
	return r.cmd.ProcessState.ExitCode()
}

// Log returns what the role has logged so far, one element a line.
func (r *Role) Log() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]string(nil), r.log...)
}

// WaitLog waits until the role has logged a line that contains text, and returns it.
func (r *Role) WaitLog(ctx context.Context, text string) (string, error) {
	for seen := 0; ; {
		r.mu.Lock()
		lines, more, over := r.log[seen:], r.more, r.over
		r.mu.Unlock()
		for _, l := range lines {
			if strings.Contains(l, text) {
				return l, nil
			}
		}
		seen += len(lines)
		if over {
			<-r.done
			return "", fmt.Errorf("wait for %q of %s: %w with code %d, log:\n  %s",
				text, r.Name, ErrExited, r.ExitCode(), strings.Join(r.Log(), "\n  "))
		}
		select {
		case <-more:
		case <-ctx.Done():
			return "", fmt.Errorf("wait for %q of %s: %w, log:\n  %s", text, r.Name, context.Cause(ctx), strings.Join(r.Log(), "\n  "))
		}
	}
}

// Ready waits for the line that says the role serves.
func (r *Role) Ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, ReadyIn)
	defer cancel()
	_, err := r.WaitLog(ctx, "msg=ready")
	return err
}

// Signal sends a signal to the process.
func (r *Role) Signal(s syscall.Signal) error {
	if err := r.cmd.Process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("send %v to %s: %w", s, r.Name, err)
	}
	return nil
}

// Stop asks the role to stop (SIGTERM) and waits. A role that has not stopped within
// limit is killed, and an exit code other than 0 is an error.
func (r *Role) Stop(limit time.Duration) error {
	if err := r.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	late := time.NewTimer(limit)
	defer late.Stop()
	select {
	case <-r.done:
	case <-late.C:
		if err := r.Kill(); err != nil {
			return err
		}
		return fmt.Errorf("stop %s: still running %v after SIGTERM, killed; log:\n  %s", r.Name, limit, strings.Join(r.Log(), "\n  "))
	}
	if code := r.ExitCode(); code != 0 {
		return fmt.Errorf("stop %s: exit code %d, want 0; log:\n  %s", r.Name, code, strings.Join(r.Log(), "\n  "))
	}
	return nil
}
