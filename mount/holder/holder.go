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
	sd      *service
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
	waiting *request    // nil, or a handover that waits until a worker serves
	held    os.Signal   // nil, or a stop that waits until a worker serves
	again   bool        // a worker died while it was stopping
	backlog []event     // to be heard before what comes next
	spawned int
	ready   bool // READY=1 was sent
	reload  reload

	unserved time.Time // since when no worker serves a connection; zero: one does
	looping  time.Time // since when workers crash soon after they serve; zero: they do not
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
		o: o, s: o.Settings, config: o.Config, sd: newService(),
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
	signal.Notify(h.signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, syscall.SIGUSR1, syscall.SIGPIPE)
}

// begin takes the lock and looks for what systemd kept.
func (h *holder) begin() (err error) {
	if err = os.MkdirAll(h.s.Dir, 0o700); err != nil {
		return fmt.Errorf("make state directory: %w", err)
	}
	if h.lock, err = lockForMount(h.s.Dir, h.log); err != nil {
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
	case Dead(fd):
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
