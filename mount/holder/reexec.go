package holder

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"ftfuse/internal/systemd"
)

// reexecEnv names the descriptor of a holder's state for the binary that replaces it.
const reexecEnv = "FTFUSE_HOLDER_STATE_FD"

// reexecVersion is the version of holderState and of keptState. A worker says which one
// its binary takes over; the holder becomes no other.
const reexecVersion = 1

// holderState is what a holder leaves to the binary that replaces it in its process: the
// numbers of descriptors, which stay open, and what belongs to them.
type holderState struct {
	V         int       `json:"v"`
	Path      string    `json:"path"`
	Settings  Settings  `json:"settings"`
	Lock      int       `json:"lock"`
	Control   int       `json:"control"`
	Conn      int       `json:"conn"`
	Kept      keptState `json:"kept"`
	Worker    int       `json:"worker"` // pid
	Link      int       `json:"link"`   // the socket to it
	Version   string    `json:"version"`
	Reexec    int       `json:"reexec"`
	Config    int       `json:"config"` // a file in memory: the text in force
	Requester int       `json:"requester"`
	Spawned   int       `json:"spawned"`
}

// replace ends a handover: this process becomes the binary whose worker serves, keeping
// its descriptors, its pid and its child. Where that cannot be, it stays what it is and
// starts later workers from the new binary all the same.
//
// That the binary starts was shown before: its worker did.
func (h *holder) replace(w *worker) {
	s := h.swap
	h.swap = nil
	done := message{Type: typeDone, Version: w.version}
	err := fmt.Errorf("it takes over version %d of the holder's state, this one writes %d", w.reexec, reexecVersion)
	if w.reexec == reexecVersion {
		err = h.become(s.bin, w, s.r)
	}
	h.log.Warn("the holder stays with its own binary; its workers are started from the new one", "why", err)
	if h.bin != nil {
		_ = h.bin.Close()
	}
	h.bin = s.bin
	s.r.answer(done)
}

// become calls execve(2), and returns only where that fails.
func (h *holder) become(bin *os.File, w *worker, r *request) error {
	if err := fpReexec.Inject(); err != nil {
		return err
	}
	if !h.quiet(w) {
		return errors.New("the worker has said something meanwhile")
	}
	defer h.follow(w) // where execve failed
	st := holderState{
		V: reexecVersion, Path: h.path, Settings: h.s, Worker: w.pid, Version: w.version, Reexec: w.reexec, Spawned: h.spawned,
		Conn: h.conn.fd, Kept: keptState{V: reexecVersion, Point: h.s.Point, Dev: h.conn.dev, State: h.conn.saved}, Requester: -1,
	}
	kept, err := h.keepOpen(&st, w, r)
	defer func() { closeAll(kept) }() // duplicates, of an execve that failed
	if err != nil {
		return err
	}
	b, err := json.Marshal(st)
	if err != nil {
		return fmt.Errorf("encode the holder's state: %w", err)
	}
	state, err := memory("ftfuse-holder", b)
	if err != nil {
		return err
	}
	kept = append(kept, state)
	for _, fd := range kept {
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETFD, 0); err != nil {
			return fmt.Errorf("keep descriptor %d: %w", fd, err)
		}
	}
	env := append(workerEnv(os.Environ(), 0), reexecEnv+"="+strconv.Itoa(state))
	if h.sd.socket != "" {
		env = append(env, systemd.Env+"="+h.sd.socket)
	}
	return h.execve(fdPath(bin), h.o.Args, env)
}

// keepOpen duplicates what the next binary needs open, and writes the numbers into st.
func (h *holder) keepOpen(st *holderState, w *worker, r *request) (kept []int, err error) {
	keep := func(fd int, err error) int {
		if err != nil {
			return -1
		}
		kept = append(kept, fd)
		return fd
	}
	st.Lock = keep(unix.Dup(int(h.lock.Fd())))
	st.Control = keep(dupConn(h.control))
	st.Link = keep(dupConn(w.ch.c))
	st.Conn = keep(unix.Dup(h.conn.fd))
	st.Config = keep(memory("ftfuse-config", h.config))
	if st.Lock < 0 || st.Control < 0 || st.Link < 0 || st.Conn < 0 || st.Config < 0 {
		return kept, errors.New("duplicate the holder's descriptors: none is left (ulimit -n)")
	}
	if r.ch != nil {
		st.Requester = keep(dupConn(r.ch.c))
	}
	return kept, nil
}

// quiet stops reading from w, so that the next binary misses no word of it. It returns
// false, and reads on, if there was one that matters.
func (h *holder) quiet(w *worker) bool {
	w.parked.Store(true)
	_ = w.ch.c.SetReadDeadline(time.Unix(1, 0))
	still := true
	for {
		e := <-h.events
		if e.w == w && e.parked {
			break
		}
		h.backlog = append(h.backlog, e)
		if e.end == nil && e.m.Type == typePong {
			continue
		}
		if still = false; e.w == w && e.end != nil {
			return false
		}
	}
	w.parked.Store(false)
	_ = w.ch.c.SetReadDeadline(time.Time{})
	if !still {
		h.follow(w)
	}
	return still
}

// dupConn duplicates a socket's descriptor.
func dupConn(c syscall.Conn) (dup int, err error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return -1, err
	}
	dup = -1
	if cerr := raw.Control(func(fd uintptr) { dup, err = unix.Dup(int(fd)) }); cerr != nil {
		return -1, cerr
	}
	return dup, err
}

// execve replaces this process. SIGHUP and SIGINT are ignored until the new image asks for
// them: a signal that comes before is lost, where it would kill. Of SIGTERM the Go runtime
// lets nobody say so: within the millisecond or two it ends the process, and the worker
// goes on as that of a holder that was killed.
func (h *holder) execve(path string, args, env []string) error {
	signal.Ignore(unix.SIGHUP, unix.SIGINT)
	defer h.listen()
	if len(h.signals) > 0 {
		return errors.New("a signal came meanwhile")
	}
	return fmt.Errorf("execve %s: %w", path, unix.Exec(path, args, env))
}

// resume takes over what become left.
func (h *holder) resume() error {
	fd, err := inherited(reexecEnv)
	if err != nil {
		return err
	}
	b, err := contents(fd)
	_ = unix.Close(fd)
	if err != nil {
		return err
	}
	var st holderState
	if err := json.Unmarshal(b, &st); err != nil || st.V != reexecVersion {
		return fmt.Errorf("read the holder's state, version %d: %w", st.V, err)
	}
	for _, fd := range []int{st.Lock, st.Control, st.Conn, st.Link, st.Config, st.Requester} {
		if fd >= 0 {
			unix.CloseOnExec(fd)
		}
	}
	h.path, h.s, h.spawned, h.ready = st.Path, st.Settings, st.Spawned, true
	h.log = h.o.Logger(h.s.LogLevel, h.s.LogFormat).With("role", "mount", "part", "holder")
	h.conn = &connection{fd: st.Conn, saved: st.Kept.State, dev: st.Kept.Dev}
	h.lock = os.NewFile(uintptr(st.Lock), lockName)
	if h.config, err = contents(st.Config); err != nil {
		return err
	}
	_ = unix.Close(st.Config)
	if h.control, err = fileListener(st.Control); err != nil {
		return err
	}
	if err := h.resumeWorker(&st); err != nil {
		return err
	}
	h.log.Info("the holder has become the new binary", "version", h.o.Version, "worker", st.Worker)
	if st.Requester >= 0 {
		if ch, err := fileChannel(st.Requester); err == nil {
			(&request{ch: ch}).answer(message{Type: typeDone, Version: st.Version})
		}
	}
	return nil
}

// resumeWorker goes on with the child that the old binary started.
func (h *holder) resumeWorker(st *holderState) error {
	ch, err := fileChannel(st.Link)
	if err != nil {
		return err
	}
	proc, err := os.FindProcess(st.Worker)
	if err != nil {
		return fmt.Errorf("find worker %d: %w", st.Worker, err)
	}
	w := &worker{
		pid: st.Worker, proc: proc, ch: ch, version: st.Version, reexec: st.Reexec,
		said: &h.s, config: h.config, begun: true, ready: true, heard: time.Now(),
	}
	h.cur, h.sent = w, time.Now()
	h.follow(w)
	return nil
}

func fileListener(fd int) (*net.UnixListener, error) {
	f := os.NewFile(uintptr(fd), holderSocket)
	defer f.Close()
	l, err := net.FileListener(f)
	if err != nil {
		return nil, fmt.Errorf("use descriptor %d as a socket: %w", fd, err)
	}
	u, ok := l.(*net.UnixListener)
	if !ok {
		l.Close()
		return nil, fmt.Errorf("descriptor %d is no unix socket", fd)
	}
	u.SetUnlinkOnClose(false)
	return u, nil
}

// Resuming reports whether this process is a holder that has just replaced its binary:
// Run needs nothing but the command line then.
func Resuming() bool { return os.Getenv(reexecEnv) != "" }
