package holder

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Offer is a worker's socket at which the worker of the next holder finds it, should its
// own holder die. The one who holds the lock of the spool makes it.
type Offer struct {
	l      *net.UnixListener
	path   string
	link   *Link
	point  string
	fd     int
	saved  []byte
	leave  chan struct{}
	once   sync.Once
	wg     sync.WaitGroup
	mu     sync.Mutex
	open   map[*channel]bool
	closed bool
}

// NewOffer listens in dir, <state_dir>/mount, and gives fd and saved, the connection of
// the mount on point, to who asks once link's holder has died. fd stays the caller's. With
// a nil link it does nothing.
func NewOffer(dir string, link *Link, point string, fd int, saved []byte) (*Offer, error) {
	o := &Offer{link: link, point: point, fd: fd, saved: saved, leave: make(chan struct{}), open: map[*channel]bool{}}
	if link == nil {
		return o, nil
	}
	var err error
	if o.fd, err = unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3); err != nil {
		return nil, fmt.Errorf("duplicate the connection's descriptor: %w", err)
	}
	if o.l, err = listen(dir, workerSocket); err != nil {
		unix.Close(o.fd)
		return nil, err
	}
	o.path = filepath.Join(dir, workerSocket)
	o.wg.Go(o.accept)
	return o, nil
}

// Adopted is closed when another worker has the connection, and this one has to leave as
// after Link.Handover.
func (o *Offer) Adopted() <-chan struct{} { return o.leave }

// Close ends the offer. The adopter waits for it: it comes after everything else is closed.
func (o *Offer) Close() {
	if o == nil || o.l == nil {
		return
	}
	_ = os.Remove(o.path) // a start replaces what is left there
	_ = o.l.Close()
	o.mu.Lock()
	o.closed = true
	for c := range o.open {
		c.close()
	}
	o.mu.Unlock()
	o.wg.Wait()
	_ = unix.Close(o.fd)
}

func (o *Offer) accept() {
	for {
		c, err := o.l.AcceptUnix()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			time.Sleep(10 * time.Millisecond) // out of descriptors, perhaps
			continue
		}
		ch := &channel{c: c}
		o.mu.Lock()
		if o.closed {
			ch.close()
		}
		o.open[ch] = true
		o.mu.Unlock()
		o.wg.Go(func() { o.serve(ch) })
	}
}

// orphanGrace is how long an adopter waits for the worker to notice its holder's death.
const orphanGrace = 2 * time.Second

// serve answers one adopter. Its channel stays open until Close once it has asked this
// worker to leave.
func (o *Offer) serve(ch *channel) {
	left := false
	defer func() {
		if left {
			return
		}
		ch.close()
		o.mu.Lock()
		delete(o.open, ch)
		o.mu.Unlock()
	}()
	_ = ch.c.SetReadDeadline(time.Now().Add(adoptLimit))
	if m, err := ch.recv(); err != nil || m.Type != typeAdopt {
		return
	}
	late := time.NewTimer(orphanGrace)
	defer late.Stop()
	select {
	case <-o.link.Gone():
	case <-late.C:
		_ = ch.send(message{Type: typeRefuse, Error: fmt.Sprintf("the holder of worker %d is alive", os.Getpid())}, -1)
		return
	}
	if err := ch.send(message{Type: typeOffer, State: o.saved, Point: o.point}, o.fd); err != nil {
		return
	}
	if m, err := ch.recv(); err == nil && m.Type == typeLeave {
		left = true
		o.once.Do(func() { close(o.leave) })
	}
}

// Adoption is the connection of a worker whose holder died, and that worker, which still
// serves.
type Adoption struct {
	FD    int // the caller's
	Saved []byte
	Point string
	PID   int

	ch   *channel
	proc int // a pidfd: the number may be another process's once it has ended
}

// Adopt finds the worker of a dead holder in dir and takes a copy of its connection. It
// returns nil if there is none, and ErrRunning if its holder lives.
func Adopt(dir string) (*Adoption, error) {
	ch, err := dial(dir, workerSocket)
	if errors.Is(err, syscall.ENOENT) || errors.Is(err, syscall.ECONNREFUSED) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("look for a worker without a holder: %w", err)
	}
	a := &Adoption{FD: -1, PID: ch.peer(), ch: ch}
	if a.proc, err = unix.PidfdOpen(a.PID, 0); err != nil {
		ch.close()
		if err == unix.ESRCH {
			return nil, nil // it died meanwhile
		}
		return nil, fmt.Errorf("watch worker %d, whose holder died: %w", a.PID, err)
	}
	_ = ch.c.SetReadDeadline(time.Now().Add(adoptLimit))
	var m message
	if err = ch.send(message{Type: typeAdopt}, -1); err == nil {
		m, err = ch.recv()
	}
	switch {
	case err != nil && exited(a.proc, dying(err)):
		a.Decline()
		return nil, nil
	case err != nil:
		a.Decline()
		return nil, fmt.Errorf("adopt the connection of worker %d, whose holder died: %w; kill that process, then start again", a.PID, err)
	case m.Type == typeRefuse:
		a.Decline()
		return nil, fmt.Errorf("adopt the connection of worker %d: %w: %s", a.PID, ErrRunning, m.Error)
	case m.Type != typeOffer || m.fd < 0:
		a.Decline()
		return nil, fmt.Errorf("adopt the connection of worker %d: %w (%q)", a.PID, errMessage, m.Type)
	}
	a.FD, a.Saved, a.Point = m.fd, m.State, m.Point
	return a, nil
}

// dying is how long a worker with which talking ended with err may take to end. One that is being
// killed has closed its sockets some time before.
func dying(err error) time.Duration {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return 0
	}
	return adoptLimit
}

// Take makes the old worker leave and returns when its process has ended. One that does
// not is killed. FD stays the caller's.
func (a *Adoption) Take() error {
	defer a.close()
	err := a.ch.send(message{Type: typeLeave}, -1)
	if err == nil && exited(a.proc, adoptLimit) || exited(a.proc, 0) {
		return nil
	}
	_ = unix.PidfdSendSignal(a.proc, unix.SIGKILL, nil, 0) // what has ended already is as good
	if !exited(a.proc, adoptLimit) {
		return fmt.Errorf("make worker %d leave: it can be neither asked (%v) nor killed", a.PID, err)
	}
	return nil
}

// Decline leaves the old worker as it is, and closes FD.
func (a *Adoption) Decline() {
	a.close()
	if a.FD >= 0 {
		_ = unix.Close(a.FD)
		a.FD = -1
	}
}

func (a *Adoption) close() {
	a.ch.close()
	_ = unix.Close(a.proc)
}

// exited waits until the process has ended, a zombie or not, for at most limit.
func exited(pidfd int, limit time.Duration) bool {
	until := time.Now().Add(limit)
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, int(max(0, time.Until(until).Milliseconds())))
		if n > 0 {
			return true
		}
		if err != unix.EINTR && !time.Now().Before(until) {
			return false
		}
	}
}
