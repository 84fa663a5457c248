package holder

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	leaveIn  = 20 * time.Second       // how long a mount waits for a sender to leave
	lookFor  = 200 * time.Millisecond // a sender that has the lock listens within
	lookEach = 10 * time.Millisecond
)

// Exclusion keeps mounts away from a state directory. It is safe for concurrent use.
type Exclusion struct {
	dir     string
	lock    *os.File
	socket  *net.UnixListener
	wanted  chan struct{}
	wg      sync.WaitGroup
	waiting []net.Conn // who wants it: the end of the connection says that it is free; of accept until that has ended
}

// Exclude keeps mounts of dir away until Close, as long as none wants to start: see Wanted.
// The error is ErrRunning where another process has dir.
func Exclude(dir string) (*Exclusion, error) {
	f, err := lock(dir)
	if err != nil {
		return nil, err
	}
	l, err := listen(dir, senderSocket)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	e := &Exclusion{dir: dir, lock: f, socket: l, wanted: make(chan struct{})}
	e.wg.Go(e.accept)
	return e, nil
}

// Wanted is closed when a mount wants to start. It waits for Close, some 20 seconds.
func (e *Exclusion) Wanted() <-chan struct{} { return e.wanted }

// Close lets mounts in.
func (e *Exclusion) Close() error {
	// The name goes under the lock: afterwards it may be another's.
	err := errors.Join(os.Remove(filepath.Join(e.dir, senderSocket)), e.lock.Close(), e.socket.Close())
	e.wg.Wait()
	for _, c := range e.waiting {
		err = errors.Join(err, c.Close())
	}
	return err
}

func (e *Exclusion) accept() {
	for {
		c, err := e.socket.Accept()
		if err != nil {
			return // closed
		}
		if e.waiting = append(e.waiting, c); len(e.waiting) == 1 {
			close(e.wanted)
		}
	}
}

// AwaitSender asks a `ftfuse send` that has the queue of dir to leave it, if one has, and
// waits until it has left: a mount is about to start.
func AwaitSender(dir string, log *slog.Logger) error {
	for limit := time.Now().Add(leaveIn); ; {
		if left, err := awaitSender(dir, limit, log); !left || err != nil {
			return err
		}
	}
}

// awaitSender reports whether a sender had dir, and has left it.
func awaitSender(dir string, limit time.Time, log *slog.Logger) (left bool, err error) {
	c, err := dial(dir, senderSocket)
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ECONNREFUSED):
		return false, nil
	case err != nil:
		return false, fmt.Errorf("ask ftfuse send to leave the queue: %w", err)
	}
	defer c.close()
	pid := c.peer()
	log.Info("waiting for ftfuse send, which has the queue until this mount serves", "pid", pid)
	if err := c.c.SetReadDeadline(limit); err != nil {
		return false, fmt.Errorf("wait for ftfuse send: %w", err)
	}
	if _, err := c.recv(); errors.Is(err, os.ErrDeadlineExceeded) {
		return false, fmt.Errorf("%w: it is ftfuse send, process %d, which does not leave; stop it, its bytes are sent when it runs again", ErrRunning, pid)
	}
	return true, nil
}

// lockForMount takes dir's lock for a mount that starts: a sender gives it up.
func lockForMount(dir string, log *slog.Logger) (*os.File, error) {
	limit := time.Now().Add(leaveIn)
	for soon := time.Now().Add(lookFor); ; {
		f, err := lock(dir)
		if !errors.Is(err, ErrRunning) {
			return f, err
		}
		switch left, serr := awaitSender(dir, limit, log); {
		case serr != nil:
			return nil, serr
		case left:
			soon = time.Now().Add(lookFor)
		case time.Now().After(soon):
			return nil, err
		default:
			time.Sleep(lookEach)
		}
	}
}
