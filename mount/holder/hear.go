package holder

import (
	"encoding/json"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"ftfuse/internal/systemd"
)

// heard takes a worker's message or end.
func (h *holder) heard(e event) {
	w := e.w
	if w != h.cur && w != h.swap.worker() {
		if e.m.fd > 0 {
			_ = unix.Close(e.m.fd)
		}
		return
	}
	w.heard = time.Now()
	if e.end != nil {
		h.ended(w, *e.end)
		return
	}
	switch e.m.Type {
	case typeHello:
		h.hello(w, e.m)
	case typeKeep:
		h.keep(w, e.m)
	case typeReady:
		h.serves(w)
	case typeReloaded:
		h.reloaded(w, e.m)
	case typeFailed:
		w.failed = e.m.Error
		h.why = e.m.Error
		if w == h.cur && h.conn != nil && !h.stopping {
			w.killIn(failGrace, "it failed and does not end")
		}
	case typeUnmounted:
		w.unmount = true
		h.release()
	}
}

// hello lets a worker begin, or refuses it.
func (h *holder) hello(w *worker, m message) {
	w.version, w.reexec, w.said, w.config = m.Version, m.Reexec, m.Settings, m.State
	why := ""
	switch s := m.Settings; {
	case s == nil:
		why = "it does not tell its settings"
	case s.Point != h.s.Point:
		why = fmt.Sprintf("its mount point is %s and this mount is on %s: stop and start instead", s.Point, h.s.Point)
	case s.Dir != h.s.Dir:
		why = fmt.Sprintf("its state is in %s and that of this mount in %s: stop and start instead", s.Dir, h.s.Dir)
	case s.Timeout <= 0:
		why = "its holder_timeout is 0, which is no holder: stop and start instead"
	}
	if why != "" {
		w.failed = why
		_ = w.ch.send(message{Type: typeRefuse, Error: why}, -1)
		w.killIn(failGrace, "it was refused and does not end")
		return
	}
	if w == h.cur {
		h.letBegin(w)
		h.hangUp()
		return
	}
	h.prepared()
}

// letBegin hands the connection to w, whose predecessor has ended.
func (h *holder) letBegin(w *worker) {
	if err := fpGo.Inject(); err != nil {
		w.kill(err.Error())
		return
	}
	m, fd := message{Type: typeGo}, -1
	if h.conn != nil {
		m.State, fd = h.conn.saved, h.conn.fd
	}
	w.begun = true
	if err := w.ch.send(m, fd); err != nil {
		h.log.Error("a worker cannot be told to begin", "pid", w.pid, "err", err)
		w.kill("it does not listen")
	}
}

// keep takes a connection from a worker.
func (h *holder) keep(w *worker, m message) {
	if m.fd < 0 || w != h.cur {
		return
	}
	if h.conn != nil {
		_ = unix.Close(h.conn.fd)
	}
	dev, err := mountedAt(h.s.Point)
	if err != nil {
		h.log.Warn("the mount cannot be found; it is not detached should its worker fail for good", "point", h.s.Point, "err", err)
	}
	h.conn = &connection{fd: m.fd, saved: m.State, dev: dev}
	if !w.ready && h.unserved.IsZero() {
		h.unserved = time.Now()
	}
	if err := fpKept.Inject(); err != nil {
		w.kill(err.Error())
	}
	state, err := json.Marshal(keptState{V: reexecVersion, Point: h.s.Point, Dev: dev, State: m.State})
	if err == nil {
		err = h.sd.store(m.fd, state)
	}
	if err != nil {
		h.log.Warn("systemd does not keep the connection; should the holder be killed, the worker offers it", "err", err)
	}
}

// serves notes that w serves.
func (h *holder) serves(w *worker) {
	w.ready, w.since = true, time.Now()
	if w != h.cur || w.leaving {
		return
	}
	if h.ready && !h.unserved.IsZero() {
		h.log.Info("a worker serves again", "pid", w.pid, "version", w.version, "after", time.Since(h.unserved).Round(time.Millisecond))
	}
	h.unserved, h.retry, h.sent = time.Time{}, time.Time{}, time.Now()
	if h.looping.IsZero() {
		h.pause = 0
	}
	h.config, h.s = w.config, *w.said
	if !h.ready {
		h.ready = true
		systemd.Tell(h.log, h.sd.ready())
	}
	if !h.stopping { // else it has been told to stop, and has its time for that
		w.killAt = time.Time{}
	}
	tune() // what the change of workers has left behind
	h.reap()
	h.answerBack()
	if s := h.held; s != nil {
		h.held = nil
		h.signalled(s)
		return
	}
	if h.swap != nil && h.swap.next == w {
		h.log.Info("handover done", "pid", w.pid, "version", w.version)
		h.replace(w)
	}
	if r := h.waiting; r != nil {
		h.waiting = nil
		h.handover(r)
	}
}

// ended decides what the end of a worker means.
func (h *holder) ended(w *worker, e ended) {
	why := w.failed
	if why == "" && w.killed != "" {
		why = "killed: " + w.killed
	}
	if why == "" {
		why = e.String()
	}
	if w == h.swap.worker() && w != h.cur {
		h.lostNext(w, why)
		return
	}
	h.cur = nil
	h.why = why
	if h.conn != nil && h.unserved.IsZero() {
		h.unserved = time.Now()
	}
	crashed := w.said != nil && (e.code < 0 || e.code == 0 || e.code == 2) // 2: the Go runtime's, of a panic
	switch {
	case h.stopping && h.conn != nil && crashed && w.failed == "" && w.killed == "" && !h.again:
		h.log.Error("worker ended while it was stopping, starting another to drain", "pid", w.pid, "why", why, "code", e.code, "signal", e.signal)
		h.again, h.stopping, h.held = true, false, unix.SIGTERM
	case h.stopping && h.conn != nil:
		h.giveUp("the worker did not stop in order: " + why)
	case h.stopping, w.unmount:
		h.end(e.exit())
	case w.leaving:
		h.left(w, e)
	case w == h.swap.worker():
		h.failBack(why)
	case crashed && w.failed == "":
		h.log.Error("worker ended, starting another", "pid", w.pid, "why", why, "code", e.code, "signal", e.signal)
		h.crashed(w, e)
	case e.code < 0 && w.failed == "": // before its first word
		h.log.Error("worker ended, starting another", "pid", w.pid, "why", why, "signal", e.signal)
		h.backOff()
		if h.conn == nil && h.pause >= longPause {
			h.end(exitFailed)
		}
	case h.conn != nil:
		h.giveUp(why)
	default:
		h.end(e.exit())
	}
}

// steady is how long a worker has to serve before its crash is taken for a single one.
const steady = 10 * time.Second

// crashed decides when a worker that crashed is followed by another: at once, unless they
// crash again and again. A request that no worker survives comes again at each of them, and
// who waits for its answer cannot be killed; after holder_timeout the mount is given up. A
// SIGKILL is somebody else's, or the kernel's for want of memory, and says nothing of the
// next worker.
func (h *holder) crashed(w *worker, e ended) {
	if !w.ready {
		h.backOff()
		return
	}
	if e.signal == unix.SIGKILL.String() {
		return
	}
	now := time.Now()
	if now.Sub(w.since) >= steady || h.looping.IsZero() {
		h.looping, h.pause = now, 0
	}
	if now.Sub(h.looping) > h.s.Timeout {
		h.giveUp(fmt.Sprintf("workers crash again and again, for holder_timeout (%v); last: %s", h.s.Timeout, h.why))
		return
	}
	h.backOff()
}
