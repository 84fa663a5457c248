package holder

import (
	"errors"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"ftfuse/internal/systemd"
)

// storedName is the name of what is in systemd's store of descriptors (sd_listen_fds(3)): the
// connection, and a file in memory with what belongs to it. They go there in one message, so
// that never one is there alone. The unit needs FileDescriptorStoreMax=2.
const storedName = "ftfuse"

// service is the service manager that started this process, if one did. Its methods do
// nothing otherwise. They are called by the holder's loop only.
type service struct{ socket string }

func newService() *service { return &service{socket: os.Getenv(systemd.Env)} }

// notify sends lines of NAME=VALUE, with descriptors.
func (s *service) notify(state string, fds ...int) error {
	err := systemd.Send(s.socket, state, fds...)
	if systemd.Heard(s.socket, state) {
		s.socket = ""
	}
	return err
}

func (s *service) ready() error { return s.notify("READY=1") }

func (s *service) failed(why string) error { return s.notify(systemd.FailedState(why)) }

func (s *service) stopping() error { return s.notify("STOPPING=1") }

// store puts the connection into systemd's store, in the place of what was there.
func (s *service) store(fd int, state []byte) error {
	if s.socket == "" {
		return nil
	}
	mem, err := memory("ftfuse-state", state)
	if err != nil {
		return err
	}
	defer unix.Close(mem)
	return errors.Join(s.forget(), s.notify("FDSTORE=1\nFDNAME="+storedName, fd, mem))
}

// forget empties the store.
func (s *service) forget() error { return s.notify("FDSTOREREMOVE=1\nFDNAME=" + storedName) }

// firstListen is the first descriptor that systemd passes (SD_LISTEN_FDS_START).
const firstListen = 3

// reload is how far a SIGHUP has come.
type reload int

const (
	reloadNone  reload = iota
	reloadAsked        // no worker has been told
	reloadBegun        // the worker has been told
)

// hangUp passes a SIGHUP on to the worker, or, where none has said a word yet, which would die
// of it, to the next one that does. A worker that comes in the place of one that did not end
// its reload is told again.
func (h *holder) hangUp() {
	if h.reload == reloadNone || h.cur == nil || h.cur.said == nil || h.cur.leaving {
		return
	}
	if h.reload == reloadAsked {
		systemd.Tell(h.log, h.sd.notify(systemd.ReloadingState()))
	}
	h.reload = reloadBegun
	_ = h.cur.proc.Signal(unix.SIGHUP) // its end is an event
}

// reopen passes a SIGUSR1 on. A worker that has not said a word yet has no file open.
func (h *holder) reopen() {
	if h.cur != nil && h.cur.said != nil && !h.cur.leaving {
		_ = h.cur.proc.Signal(unix.SIGUSR1)
	}
}

// reloaded notes that w has ended its reload, and what it uses from now on.
func (h *holder) reloaded(w *worker, m message) {
	if m.fd >= 0 {
		defer unix.Close(m.fd)
	}
	if w != h.cur {
		return
	}
	if s := m.Settings; s != nil && m.fd >= 0 && s.Point == h.s.Point && s.Dir == h.s.Dir && s.Timeout > 0 {
		if text, err := contents(m.fd); err == nil {
			h.log = h.o.Logger(s.LogLevel, s.LogFormat).With("role", "mount", "part", "holder")
			h.s, h.config, w.said, w.config = *s, text, s, text
		} else {
			h.log.Error("what was reloaded cannot be kept; the next worker begins with what was in force before", "err", err)
		}
	}
	if h.reload == reloadBegun {
		h.reload = reloadNone
		systemd.Tell(h.log, h.sd.ready())
	}
}

// stored returns what systemd kept for a predecessor, -1 if nothing. All other descriptors
// that it passed are closed. The variables are removed.
func stored() (fd int, state []byte) {
	pid, _ := strconv.Atoi(os.Getenv("LISTEN_PID"))
	count, _ := strconv.Atoi(os.Getenv("LISTEN_FDS"))
	names := strings.Split(os.Getenv("LISTEN_FDNAMES"), ":")
	for _, v := range []string{"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"} {
		_ = os.Unsetenv(v)
	}
	if pid != os.Getpid() {
		return -1, nil
	}
	fd = -1
	for i := range min(count, 1024) {
		got := firstListen + i
		unix.CloseOnExec(got)
		var st unix.Stat_t
		if i >= len(names) || names[i] != storedName || unix.Fstat(got, &st) != nil {
			_ = unix.Close(got)
			continue
		}
		if st.Mode&unix.S_IFMT != unix.S_IFREG && fd < 0 {
			fd = got
			continue
		}
		if state == nil {
			state, _ = contents(got)
		}
		_ = unix.Close(got)
	}
	return fd, state
}
