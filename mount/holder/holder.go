package holder

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"ftfuse/internal/failpoint"
)

// Failpoints: the holder has taken a connection; is about to let a worker begin; is
// about to replace itself.
var (
	fpKept   = failpoint.New("holder/kept")
	fpGo     = failpoint.New("holder/go")
	fpReexec = failpoint.New("holder/reexec")
)

// Options of a holder.
type Options struct {
	Args     []string // the command line of this process; workers get the same
	Version  string   // of this binary
	Settings Settings
	Config   []byte // the text that Settings come from; the first worker uses it
	Logger   func(level, format string) *slog.Logger
}

// Exit codes of Run beside the workers' own.
const exitFailed = 1

// Times that the operator has no say in.
const (
	failGrace  = 5 * time.Second        // for a failed worker to unmount by itself
	leaveGrace = 10 * time.Second       // for a worker to leave at a handover
	firstPause = 100 * time.Millisecond // between attempts, doubled up to longPause
	longPause  = 2 * time.Second
	steadyTick = time.Second
	busyTick   = 20 * time.Millisecond
)

// stopGrace is how long beyond shutdown_timeout a worker may take before it is killed;
// tests shorten it.
var stopGrace = 10 * time.Second

// holder is Run's state. One goroutine, the loop, owns it.
type holder struct {
	o       Options
	s       Settings
	config  []byte // of the worker in force
	log     *slog.Logger
	path    string // where the binary is installed
	sd      *systemd
	lock    *os.File
	control *net.UnixListener
	events  chan event
	asked   chan *request
	signals chan os.Signal
	wg      sync.WaitGroup

	conn    *connection // nil: nothing is mounted
	cur     *worker     // serves, begins, or leaves; nil: none
	swap    *handover   // nil: none under way
	back    *back       // nil, or a handover that failed and is not answered yet
	bin     *os.File    // what workers are started from; nil: this program
	held    os.Signal   // nil, or a stop that waits until a worker serves
	again   bool        // a worker died while it was stopping
	backlog []event     // to be heard before what comes next
	spawned int
	ready   bool // READY=1 was sent

	unserved time.Time // since when no worker serves a connection; zero: one does
	retry    time.Time // when the next worker starts; zero: now
	pause    time.Duration
	stopping bool
	sent     time.Time // the last ping
	why      string    // of the newest failure

	over bool
	code int
}

// Run holds the mount that its workers serve, until it is told to stop or a worker fails
// for good, and returns the exit code for the process: that of the last worker, or 1. It
// owns the process's signals, and its garbage collector.
func Run(o Options) (int, error) {
	setName()
	h, err := newHolder(o)
	if err != nil {
		return exitFailed, err
	}
	tune()
	return h.run(), nil
}

func newHolder(o Options) (*holder, error) {
	h := &holder{
		o: o, s: o.Settings, config: o.Config, sd: newSystemd(),
		events: make(chan event, 16), asked: make(chan *request), signals: make(chan os.Signal, 16),
	}
	h.log = o.Logger(h.s.LogLevel, h.s.LogFormat).With("role", "mount", "part", "holder")
	var err error
	if h.path, err = installed(o.Args[0]); err != nil {
		return nil, err
	}
	h.listen()
	if os.Getenv(reexecEnv) != "" {
		if err := h.resume(); err != nil {
			return nil, fmt.Errorf("take over from the holder's old binary: %w", err)
		}
	} else if err := h.begin(); err != nil {
		return nil, err
	}
	go h.accept()
	return h, nil
}

func (h *holder) listen() {
	signal.Notify(h.signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, syscall.SIGPIPE)
}

// begin takes the lock and looks for what systemd kept.
func (h *holder) begin() (err error) {
	if err = os.MkdirAll(h.s.Dir, 0o700); err != nil {
		return fmt.Errorf("make state directory: %w", err)
	}
	if h.lock, err = lock(h.s.Dir); err != nil {
		return err
	}
	if h.control, err = listen(h.s.Dir, holderSocket); err != nil {
		return err
	}
	fd, text := stored()
	if fd < 0 {
		return nil
	}
	var k keptState
	switch err := json.Unmarshal(text, &k); {
	case err != nil || k.V != reexecVersion || k.Point != h.s.Point:
		h.log.Warn("the connection that systemd kept is of no use; it is dropped", "err", err, "version", k.V, "point", k.Point)
	case dead(fd):
		h.log.Warn("the connection that systemd kept was dropped by the kernel", "point", k.Point)
	default:
		h.conn = &connection{fd: fd, saved: k.State, dev: k.Dev}
		h.unserved = time.Now()
		h.log.Info("took the connection that systemd kept", "point", k.Point)
		return nil
	}
	_ = unix.Close(fd)
	return nil
}

// keptState is what is stored beside a connection's descriptor.
type keptState struct {
	V     int    `json:"v"`
	Point string `json:"point"`
	Dev   string `json:"dev"`
	State []byte `json:"state"`
}

// run is the loop.
func (h *holder) run() int {
	for !h.over {
		h.progress()
		if h.over {
			break
		}
		if len(h.backlog) > 0 {
			e := h.backlog[0]
			h.backlog = h.backlog[1:]
			h.heard(e)
			continue
		}
		tick := steadyTick
		if h.busy() {
			tick = busyTick
		}
		timer := time.NewTimer(min(tick, max(h.s.Timeout/8, busyTick)))
		select {
		case e := <-h.events:
			h.heard(e)
		case s := <-h.signals:
			h.signalled(s)
		case r := <-h.asked:
			h.handover(r)
		case <-timer.C:
		}
		timer.Stop()
	}
	return h.finish()
}

// busy reports whether something with a time limit is under way.
func (h *holder) busy() bool {
	return h.swap != nil || h.stopping || h.cur == nil || !h.cur.ready || h.cur.leaving || !h.cur.killAt.IsZero()
}

// progress does what is due.
func (h *holder) progress() {
	now := time.Now()
	for _, w := range []*worker{h.cur, h.swap.worker()} {
		if w != nil && !w.killAt.IsZero() && now.After(w.killAt) {
			w.killAt = time.Time{}
			h.log.Error("killing a worker", "pid", w.pid, "why", w.killWhy)
			w.kill(w.killWhy)
			if h.stopping || w.failed != "" {
				h.giveUp(w.killWhy) // it may be in a state in which it cannot be killed
				return
			}
		}
	}
	if !h.unserved.IsZero() && now.Sub(h.unserved) > h.s.Timeout {
		h.giveUp(fmt.Sprintf("no worker has served for holder_timeout (%v); last: %s", h.s.Timeout, h.why))
		return
	}
	if h.cur == nil && h.swap == nil && !h.stopping && !now.Before(h.retry) {
		h.startWorker()
	}
	h.ping(now)
}

// startWorker starts one from the holder's own binary, with the configuration in force.
func (h *holder) startWorker() {
	bin := "/proc/self/exe"
	if h.bin != nil {
		bin = fdPath(h.bin)
	}
	w, err := h.spawn(bin, h.config)
	if err != nil {
		h.why = err.Error()
		h.log.Error("no worker", "err", err)
		if h.conn == nil {
			h.end(exitFailed)
		}
		h.backOff()
		return
	}
	w.config = h.config
	h.cur = w
}

// backOff delays the next worker, longer each time until one serves.
func (h *holder) backOff() {
	h.retry = time.Now().Add(h.pause)
	h.pause = min(max(2*h.pause, firstPause), longPause)
}

// ping asks a serving worker whether it is alive. One that says nothing for half of
// holder_timeout is killed: the other half is for its successor.
func (h *holder) ping(now time.Time) {
	w := h.cur
	if w == nil || !w.ready || w.leaving || now.Sub(h.sent) < min(steadyTick, h.s.Timeout/8) {
		return
	}
	late := now.Sub(h.sent) > h.s.Timeout/4 // this process stood still itself
	h.sent = now
	if late {
		w.heard = now
	}
	_ = w.ch.send(message{Type: typePing}, -1) // its end is an event
	if silent := now.Sub(w.heard); silent > h.s.Timeout/2 && w.killAt.IsZero() && w.killed == "" {
		h.unserved = w.heard
		w.ready = false
		w.killIn(0, fmt.Sprintf("it has not answered for %v", silent.Round(time.Millisecond)))
	}
}

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
	w.ready = true
	if w != h.cur || w.leaving {
		return
	}
	if h.ready && !h.unserved.IsZero() {
		h.log.Info("a worker serves again", "pid", w.pid, "version", w.version, "after", time.Since(h.unserved).Round(time.Millisecond))
	}
	h.unserved, h.retry, h.pause, h.sent = time.Time{}, time.Time{}, 0, time.Now()
	h.config, h.s = w.config, *w.said
	if !h.ready {
		h.ready = true
		if err := h.sd.notify("READY=1"); err != nil {
			h.log.Warn("systemd is not told", "err", err)
		}
	}
	w.killAt = time.Time{}
	tune() // what the change of workers has left behind
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
		if !w.ready {
			h.backOff()
		}
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

// signalled passes a signal on.
func (h *holder) signalled(s os.Signal) {
	sig, _ := s.(syscall.Signal)
	if sig == syscall.SIGPIPE {
		return // the reader of the log went away
	}
	if sig != syscall.SIGHUP {
		if h.conn != nil && !h.stopping && h.held == nil && (h.cur == nil || !h.cur.ready || h.cur.leaving) {
			h.log.Info("stopping as soon as a worker serves", "signal", sig.String())
			h.held = s // a worker that serves can drain and unmount
			return
		}
		if !h.stopping {
			h.stopping = true
			if err := h.sd.notify("STOPPING=1"); err != nil {
				h.log.Warn("systemd is not told", "err", err)
			}
			h.cancelSwap("the mount is being stopped")
		}
		if h.cur == nil {
			h.giveUp("stopped while no worker served: " + h.why)
			return
		}
		h.cur.killIn(h.s.Shutdown+stopGrace, "it did not stop within shutdown_timeout")
	}
	if h.cur != nil {
		_ = h.cur.proc.Signal(sig) // its end is an event
	}
}

// giveUp drops the connection, so that programs get ENOTCONN and can end, and ends.
func (h *holder) giveUp(why string) {
	if h.over {
		return
	}
	for _, w := range []*worker{h.cur, h.swap.worker()} {
		if w != nil {
			w.kill("the mount is given up")
		}
	}
	if h.conn != nil {
		h.log.Error("the mount point is given up; programs that use it get ENOTCONN. What was accepted stays in the spool and is sent after the next start", "point", h.s.Point, "why", why)
		if err := h.conn.detach(h.s.Point); err != nil {
			h.log.Error("the mount point answers ENOTCONN", "err", err)
		}
		h.release()
	} else {
		h.log.Error("stopped", "why", why)
	}
	h.cancelSwap(why)
	h.end(exitFailed)
}

// release lets the connection go: here and in systemd's store.
func (h *holder) release() {
	if h.conn == nil {
		return
	}
	if err := h.sd.forget(); err != nil {
		h.log.Warn("systemd is not told to drop the connection", "err", err)
	}
	_ = unix.Close(h.conn.fd)
	h.conn, h.unserved = nil, time.Time{}
}

// end makes the loop return; the first code counts.
func (h *holder) end(code int) {
	if !h.over {
		h.over, h.code = true, code
	}
}

// lastGrace is how long the end waits for workers that were killed.
const lastGrace = 5 * time.Second

func (h *holder) finish() int {
	h.cancelSwap("the mount is being stopped")
	late := time.NewTimer(lastGrace)
	defer late.Stop()
	for h.cur != nil || h.swap.worker() != nil {
		select {
		case e := <-h.events:
			if e.end != nil && e.w == h.cur {
				h.cur = nil
			} else if e.end != nil && e.w == h.swap.worker() {
				h.swap.next = nil
			}
		case <-late.C:
			h.log.Error("a worker cannot be killed; it keeps the locks in state_dir until the kernel lets it go", "state_dir", h.s.Dir)
			return h.code
		}
	}
	h.release()
	_ = h.control.Close()
	_ = os.Remove(h.s.Dir + "/" + holderSocket)
	_ = h.lock.Close()
	return h.code
}

// installed is the path under which this program was started, made absolute, and its
// links not followed: a new version may be another file behind it.
func installed(arg0 string) (string, error) {
	path, err := lookPath(arg0)
	if err == nil {
		return path, nil
	}
	self, err2 := os.Executable()
	if err2 != nil {
		return "", fmt.Errorf("find this program: %w", errors.Join(err, err2))
	}
	return strings.TrimSuffix(self, " (deleted)"), nil
}
