package plugin

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"ftfuse/internal/bootid"
)

// A child outlives a role that is killed, until it has read what was in its pipe. So that
// there is never more than one of a plugin, each start notes the process in
// Dir/NAME.pid: its id, when it was started (in the clock ticks of proc(5)) and which
// boot that was.

func (s *Set) pidFile(r *runner) string {
	return filepath.Join(s.o.Dir, strings.TrimPrefix(r.p.Cursor, CursorPrefix)+".pid")
}

// notePID notes the process that was started. Where that cannot be done the plugin runs all
// the same.
func (s *Set) notePID(r *runner, pid int) {
	born, err := startOf(pid)
	if err == nil {
		err = os.MkdirAll(s.o.Dir, 0o700)
	}
	if err == nil {
		err = os.WriteFile(s.pidFile(r), fmt.Appendf(nil, "%d %s %s\n", pid, born, bootName()), 0o600)
	}
	if err != nil {
		s.o.Logger.Warn("the process of a plugin is not noted: if this role is killed, the next start does not wait for the plugin's end", "plugin", r.label, "error", err)
	}
}

// forgetPID notes that there is none.
func (s *Set) forgetPID(r *runner) { _ = os.Remove(s.pidFile(r)) }

func bootName() string {
	id := bootid.ID()
	return hex.EncodeToString(id[:])
}

// startOf returns the field starttime of /proc/PID/stat, which tells a process from a later
// one with the same id.
func startOf(pid int) (string, error) {
	fields, err := procStat(pid)
	if err != nil {
		return "", err
	}
	return fields[19], nil
}

// procStat returns the fields of /proc/PID/stat from the third on, the state; 20 at least.
func procStat(pid int) ([]string, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return nil, err
	}
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	if len(fields) < 20 {
		return nil, fmt.Errorf("/proc/%d/stat has %d fields behind the name", pid, len(fields))
	}
	return fields, nil
}

// remnant is a process of a plugin that nobody waits for any more, though it is still there.
type remnant struct {
	plugin string
	pid    int
	born   string
}

// leaves notes a process that is given up.
func (s *Set) leaves(plugin string, pid int) {
	born, err := startOf(pid)
	if err != nil {
		return // it has ended
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.left = append(s.left, remnant{plugin, pid, born})
}

// remnants returns the processes that were given up and are still there.
func (s *Set) remnants() []remnant {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.left = slices.DeleteFunc(s.left, func(r remnant) bool {
		stat, err := procStat(r.pid)
		return err != nil || stat[0] == "Z" || stat[19] != r.born
	})
	return slices.Clone(s.left)
}

// awaitPredecessor waits for the process that an earlier run of the role left: it ends by
// itself when it has read what is in its pipe; after ExitGrace, or plugin_timeout if that is
// longer, it is killed. ctx ends the wait.
func (r *runner) awaitPredecessor(ctx context.Context) {
	text, err := os.ReadFile(r.set.pidFile(r))
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	var pid int
	var born, boot string
	if err == nil {
		_, err = fmt.Sscan(string(text), &pid, &born, &boot)
	}
	if err != nil || pid <= 1 || boot != bootName() {
		return
	}
	fd, err := unix.PidfdOpen(pid, 0) // from here on it is this process or none
	if err != nil {
		return
	}
	defer unix.Close(fd)
	if now, err := startOf(pid); err != nil || now != born {
		return
	}
	r.awaits(pid)
	defer r.awaits(0)
	r.log.Info("waiting for the plugin of an earlier run to end", "plugin", r.label, "pid", pid)
	if waitPidfd(ctx, fd, max(r.set.o.ExitGrace, r.p.Timeout)) {
		return
	}
	select {
	case <-r.set.abandoned:
		r.left = true // the next start waits for it
		return
	default:
	}
	r.log.Warn("the plugin of an earlier run does not end; it is killed", "plugin", r.label, "pid", pid)
	_ = unix.Kill(-pid, unix.SIGKILL)
	if !waitPidfd(ctx, fd, r.set.o.ExitGrace) {
		r.log.Error("the plugin of an earlier run is still there; going on beside it", "plugin", r.label, "pid", pid)
		r.set.leaves(r.label, pid)
	}
}

// awaits makes known which process of an earlier run is waited for; 0: none.
func (r *runner) awaits(pid int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.state.earlier, r.state.awaited = pid, time.Now()
}

// waitPidfd waits until the process of fd has ended; false: it has not within patience, or
// ctx has ended.
func waitPidfd(ctx context.Context, fd int, patience time.Duration) bool {
	for end := time.Now().Add(patience); ; {
		left := time.Until(end)
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(p, int(min(max(left, 0), 100*time.Millisecond)/time.Millisecond))
		switch {
		case n > 0:
			return true
		case err != nil && !errors.Is(err, unix.EINTR), left <= 0, ctx.Err() != nil:
			return false
		}
	}
}
