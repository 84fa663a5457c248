package holder

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Environment of a worker.
const (
	// FDEnv names the descriptor of the socket to the holder.
	FDEnv = "FTFUSE_HOLDER_FD"
	// ConfigEnv names the descriptor of the configuration's text; where it is absent the
	// worker reads the file.
	ConfigEnv = "FTFUSE_HOLDER_CONFIG_FD"
)

// Errors of this package.
var (
	// ErrRunning: another process holds or serves the mount.
	ErrRunning = errors.New("a running ftfuse mount has it")
	// ErrRefused is returned by Hello when the holder does not want this worker.
	ErrRefused = errors.New("the holder refused this worker")
	// ErrHandover is returned by RequestHandover when the old worker had to go on.
	ErrHandover = errors.New("no handover")
)

// Link is a worker's side of the socket to its holder. A nil *Link is that of a process
// without a holder: its methods do nothing and its channels never close. Methods are safe
// for concurrent use, but for Taken, which needs Hello to have returned.
type Link struct {
	ch     *channel
	config []byte
	given  bool

	fd    int // of the connection to take over; -1: none
	saved []byte

	begin    chan error  // capacity 1
	stops    chan string // capacity 2
	handover chan struct{}
	gone     chan struct{}
	leave    sync.Once
	alive    atomic.Pointer[func() bool] // nil: being able to answer is enough
}

// FromEnv returns the link of a worker, and nil in a process that no holder started. It
// takes what it uses out of the environment, so that no child finds it.
func FromEnv() (*Link, error) {
	text := os.Getenv(FDEnv)
	if text == "" {
		return nil, nil
	}
	fd, err := inherited(FDEnv)
	if err != nil {
		return nil, err
	}
	ch, err := fileChannel(fd)
	if err != nil {
		return nil, fmt.Errorf("use the holder's socket: %w", err)
	}
	l := &Link{ch: ch, fd: -1, begin: make(chan error, 1), stops: make(chan string, 2), handover: make(chan struct{}), gone: make(chan struct{})}
	if os.Getenv(ConfigEnv) != "" {
		cfd, err := inherited(ConfigEnv)
		if err != nil {
			return nil, err
		}
		defer unix.Close(cfd)
		if l.config, err = contents(cfd); err != nil {
			return nil, fmt.Errorf("take over the configuration: %w", err)
		}
		l.given = true
	}
	setName()
	go l.read()
	return l, nil
}

// inherited returns the descriptor that an environment variable names, closed on exec,
// and removes the variable.
func inherited(name string) (int, error) {
	text := os.Getenv(name)
	_ = os.Unsetenv(name)
	fd, err := strconv.Atoi(text)
	if err != nil || fd < 0 {
		return -1, fmt.Errorf("%s = %q is not a descriptor; only the holder sets it", name, text)
	}
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETFD, unix.FD_CLOEXEC); err != nil {
		return -1, fmt.Errorf("use descriptor %d of %s: %w; only the holder sets it", fd, name, err)
	}
	return fd, nil
}

func (l *Link) read() {
	defer close(l.gone)
	for {
		m, err := l.ch.recv()
		if errors.Is(err, errMessage) {
			continue // of a newer holder
		}
		if err != nil {
			return
		}
		switch m.Type {
		case typeGo:
			l.fd, l.saved = m.fd, m.State
			m.fd = -1
			l.answer(nil)
		case typeRefuse:
			l.answer(fmt.Errorf("%w: %s", ErrRefused, m.Error))
		case typeStop:
			select {
			case l.stops <- m.Signal:
			default: // two are all that there is to say
			}
		case typeLeave:
			l.leave.Do(func() { close(l.handover) })
		case typePing:
			if alive := l.alive.Load(); alive == nil || (*alive)() {
				_ = l.ch.send(message{Type: typePong}, -1) // a holder that is gone is noticed by recv
			}
		}
		if m.fd >= 0 {
			_ = unix.Close(m.fd)
		}
	}
}

func (l *Link) answer(err error) {
	select {
	case l.begin <- err:
	default: // the first one counts
	}
}

// Config returns the text of the configuration that this worker has to use, and false if
// it has to read the file.
func (l *Link) Config() ([]byte, bool) {
	if l == nil {
		return nil, false
	}
	return l.config, l.given
}

// Hello tells the holder what the configuration, whose text is given, says, and waits
// until this worker may begin: the one before it has ended then, and its connection, if
// there is one, is Taken. It returns ErrRefused where the holder cannot go on with these
// settings, and ctx's error. A holder that dies meanwhile does not keep it.
func (l *Link) Hello(ctx context.Context, version string, s Settings, config []byte) error {
	if l == nil {
		return nil
	}
	fd, err := memory("ftfuse-config", config)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := l.ch.send(message{Type: typeHello, Version: version, Settings: &s, Reexec: reexecVersion}, fd); err != nil {
		return fmt.Errorf("tell the holder: %w", err)
	}
	select {
	case err := <-l.begin:
		return err
	case <-ctx.Done():
		return ctx.Err()
	case <-l.gone:
		select {
		case err := <-l.begin:
			return err
		default:
			return fmt.Errorf("wait for the holder: it has died; start `ftfuse mount` again")
		}
	}
}

// Taken returns the connection that this worker takes over: a descriptor, which is the
// caller's from then on, and what was saved with it by Keep. ok is false if there is none.
func (l *Link) Taken() (fd int, saved []byte, ok bool) {
	if l == nil || l.fd < 0 {
		return -1, nil, false
	}
	fd, l.fd = l.fd, -1
	return fd, l.saved, true
}

// Keep gives the holder a copy of the connection's descriptor and what the next worker
// needs to take it over. It replaces what was given before.
func (l *Link) Keep(fd int, saved []byte) error {
	if l == nil {
		return nil
	}
	if err := l.ch.send(message{Type: typeKeep, State: saved}, fd); err != nil {
		return fmt.Errorf("give the connection to the holder: %w", err)
	}
	return nil
}

// Ready tells the holder that this worker serves.
func (l *Link) Ready() error {
	if l == nil {
		return nil
	}
	return l.ch.send(message{Type: typeReady}, -1)
}

// Watch has the holder answered only while alive says so: one that is not answered for half
// of its time limit kills this worker and starts another. alive is called about once a second,
// by one goroutine, and must not wait.
func (l *Link) Watch(alive func() bool) {
	if l != nil {
		l.alive.Store(&alive)
	}
}

// Stops gives the name of the signal that the holder was told to stop with: the first one
// is to drain, unmount and end, the second to end at once. It is not a signal itself: where
// somebody signals every process at once, holder and worker, that is still one stop.
func (l *Link) Stops() <-chan string {
	if l == nil {
		return nil
	}
	return l.stops
}

// Handover is closed when this worker has to leave the connection to a successor: stop
// reading, answer nothing more, close what it has open and exit with 0, mounted.
func (l *Link) Handover() <-chan struct{} {
	if l == nil {
		return nil
	}
	return l.handover
}

// Failed tells the holder that the connection is to be dropped, since this worker cannot
// keep its promises, or that it cannot begin.
func (l *Link) Failed(err error) {
	if l == nil || err == nil {
		return
	}
	text := err.Error()
	_ = l.ch.send(message{Type: typeFailed, Error: text[:min(len(text), maxMessage/8)]}, -1) // the exit code says it too
}

// Reloaded tells the holder that a reload has ended: what the next worker is to use from now
// on, or, with nil, that nothing changed.
func (l *Link) Reloaded(s *Settings, config []byte) {
	if l == nil {
		return
	}
	fd := -1
	if s != nil {
		mem, err := memory("ftfuse-config", config)
		if err == nil {
			defer unix.Close(mem)
			fd = mem
		} // else the next worker begins with what was in force before, and is told to reload
	}
	_ = l.ch.send(message{Type: typeReloaded, Settings: s}, fd) // its end says it too
}

// Unmounted tells the holder that the mount is gone, in order.
func (l *Link) Unmounted() {
	if l != nil {
		_ = l.ch.send(message{Type: typeUnmounted}, -1) // the exit code says it too
	}
}

// Gone is closed when the holder has died.
func (l *Link) Gone() <-chan struct{} {
	if l == nil {
		return nil
	}
	return l.gone
}

// adoptLimit is how long a worker may take to give its connection, and to leave.
const adoptLimit = 15 * time.Second
