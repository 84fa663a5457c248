package plugin

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"strings"
	"syscall"
	"time"
)

// How the runner begins and ends its children.

// begin starts a child.
func (r *runner) begin(now time.Time) {
	stdout, err := r.out.open(now)
	var c *child
	if err == nil {
		c, err = startChild(&r.p, r.set.env(&r.p), stdout, r.logs)
	}
	r.count.starts.Add(1)
	if errors.Is(err, errSync) && !passes(err) {
		r.fail(err)
		return
	}
	if err != nil {
		r.log.Error("a plugin cannot be started; it is tried again", "plugin", r.label, "error", err)
		r.down(now, err.Error())
		return
	}
	pid := c.cmd.Process.Pid
	r.set.notePID(r, pid)
	r.log.Info("plugin started", "plugin", r.label, "pid", pid)
	r.child, r.started, r.progress, r.moved = c, now, now, false
	r.handed, r.writing, r.ending, r.read = 0, false, false, 0
	r.pollAt, r.termAt, r.killAt, r.lookAt = time.Time{}, time.Time{}, time.Time{}, time.Time{}
	if stdout != nil {
		r.lookAt = now.Add(lookEvery)
	}
	for _, o := range r.window {
		o.put, o.end = false, 0
	}
	r.mu.Lock()
	r.state.pid, r.state.since, r.state.next, r.state.why = pid, now, time.Time{}, ""
	r.mu.Unlock()
	signal(r.more)
}

// down notes that no child runs, and when the next one starts.
func (r *runner) down(now time.Time, why string) {
	wait := r.set.o.MinBackoff
	for range min(r.failures, 30) {
		wait = min(2*wait, r.set.o.MaxBackoff)
	}
	r.failures++
	r.restartAt = now.Add(wait)
	r.mu.Lock()
	r.state.pid, r.state.since, r.state.next, r.state.why = 0, now, r.restartAt, why
	r.mu.Unlock()
	signal(r.more)
}

// end has the child end: its input ends when the unit that is being written is in it. It
// gets SIGTERM at by; zero: it may take as long as it likes.
func (r *runner) end(by time.Time) {
	if r.child == nil {
		return
	}
	r.ending = true
	if r.killAt.IsZero() && r.killed.IsZero() {
		r.termAt = by
	}
	if !r.writing {
		r.child.endInput()
	}
}

// kill ends the child by force.
func (r *runner) kill(now time.Time) {
	r.ending = true
	r.child.signal(syscall.SIGKILL)
	r.termAt, r.killAt, r.killed = time.Time{}, time.Time{}, now
}

// leaveAt is when a child that was killed is waited for no longer; zero: for as long as it takes,
// since the next one is to be the only one.
func (r *runner) leaveAt() time.Time {
	if r.child == nil || r.killed.IsZero() || !r.finishing {
		return time.Time{}
	}
	return r.killed.Add(r.set.o.ExitGrace + endPatience)
}

// leave ends the runner without the end of its child, which is in the kernel and cannot be killed
// there. Its process stays noted: who starts the plugin again waits for it first.
func (r *runner) leave() {
	r.log.Error("a plugin was killed and is still there: it waits for a disk or a server; it is left", "plugin", r.label, "pid", r.child.cmd.Process.Pid)
	r.set.leaves(r.label, r.child.cmd.Process.Pid)
	r.left = true
	r.unsynced = nil // a sync may wait for the same
	c := r.child
	go func() {
		for e := range c.events {
			if e.exit != nil {
				return
			}
		}
	}()
}

// handle does what an event of the child asks for.
func (r *runner) handle(e event) {
	now := time.Now()
	switch {
	case e.exit != nil:
		r.gone(e.exit, now)
	case e.err != nil:
		r.writing = false
		r.deaf(now)
	case e.wrote != nil:
		r.wrote(e.wrote, now)
	case e.bad != "":
		r.count.badAcks.Add(1)
		r.complain(now, "a plugin wrote to descriptor 3 what is not \"ok N\"", "line", escape(strings.TrimRight(e.bad, "\r\n")))
	default:
		r.acked(e.ack, now)
	}
}

// complain logs what a plugin does wrong with descriptor 3, which it may do all the time.
func (r *runner) complain(now time.Time, what string, attrs ...any) {
	if leftOut, ok := r.acksLog.admit(now); ok {
		r.log.Warn(what, append(attrs, "plugin", r.label, "left_out", leftOut)...)
	}
}

// deaf has a child end that has closed its input.
func (r *runner) deaf(now time.Time) {
	if !r.ending {
		r.log.Warn("a plugin closed its input", "plugin", r.label, "pid", r.child.cmd.Process.Pid)
	}
	r.end(now.Add(r.set.o.ExitGrace))
}

// gone notes the end of the child.
func (r *runner) gone(e *exit, now time.Time) {
	if r.p.Ack == AckPipe {
		r.readTo(e.taken, now)
	}
	r.flushAcks()
	r.takeBack()
	pid, asked := r.child.cmd.Process.Pid, r.ending && r.killAt.IsZero() && r.killed.IsZero()
	r.set.forgetPID(r)
	r.child, r.handed, r.writing, r.ending = nil, 0, false, false
	r.pollAt, r.termAt, r.killAt, r.killed, r.lookAt = time.Time{}, time.Time{}, time.Time{}, time.Time{}, time.Time{}
	r.out.close()
	again := 0
	for _, o := range r.window {
		if o.put {
			again++
		}
		o.ok = false
	}
	level := slog.LevelWarn
	if asked && e.good {
		level = slog.LevelInfo
	}
	r.log.Log(context.Background(), level, "plugin ended", "plugin", r.label, "pid", pid, "state", e.state, "batches_not_taken", again)
	if asked && !r.finishing {
		r.failures = 0
		r.restartAt = now
		return
	}
	why := cmp.Or(r.spoilt, e.state)
	if r.spoilt == "" && (e.good && r.moved || now.Sub(r.started) >= steadyRun) {
		r.failures = 0
	}
	r.spoilt = ""
	r.down(now, why)
}

// lookAtOutput has the child end where another output file is due.
func (r *runner) lookAtOutput(now time.Time) {
	r.lookAt = time.Time{}
	if r.child == nil || r.ending {
		return
	}
	if r.out.stale(now) {
		r.log.Info("the output file of a plugin is another one now; it is started again", "plugin", r.label, "file", r.out.now)
		r.end(now.Add(max(r.set.o.ExitGrace, r.p.Timeout)))
		return
	}
	if r.out.file != nil {
		r.lookAt = now.Add(lookEvery)
	}
}
