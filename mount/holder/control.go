package holder

import (
	"errors"
	"fmt"
	"net"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// request is one command to the holder, answered once on its channel.
type request struct {
	ch *channel
	m  message
}

func (r *request) answer(m message) {
	if r == nil || r.ch == nil {
		return
	}
	_ = r.ch.send(m, -1) // who asked may be gone
	r.ch.close()
	r.ch = nil
}

func (r *request) refuse(why string) { r.answer(message{Type: typeRefuse, Error: why}) }

// askLimit is how long who connects may take to say what it wants.
const askLimit = 2 * time.Second

// accept hands commands to the loop, until the socket is closed.
func (h *holder) accept() {
	for {
		c, err := h.control.AcceptUnix()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			time.Sleep(firstPause) // out of descriptors, perhaps
			continue
		}
		go func() {
			ch := &channel{c: c}
			_ = c.SetReadDeadline(time.Now().Add(askLimit))
			m, err := ch.recv()
			if err != nil {
				ch.close()
				return
			}
			if m.fd >= 0 {
				_ = unix.Close(m.fd)
			}
			h.asked <- &request{ch: ch, m: m}
		}()
	}
}

// RequestHandover asks the holder of dir, <state_dir>/mount, to swap its worker for the
// binary that is now installed, and returns that one's version once it serves. The error
// wraps ErrHandover where the old one serves on.
func RequestHandover(dir string) (version string, err error) {
	ch, err := dial(dir, holderSocket)
	if errors.Is(err, syscall.ENOENT) || errors.Is(err, syscall.ECONNREFUSED) {
		return "", fmt.Errorf("%w: no `ftfuse mount` holds %s (it is not running, or has holder_timeout = 0); start it", ErrHandover, dir)
	}
	if err != nil {
		return "", fmt.Errorf("connect to the holder at %s: %w", filepath.Join(dir, holderSocket), err)
	}
	defer ch.close()
	if err := ch.send(message{Type: typeHandover}, -1); err != nil {
		return "", fmt.Errorf("ask the holder: %w", err)
	}
	m, err := ch.recv()
	switch {
	case err != nil:
		return "", fmt.Errorf("wait for the holder (its log says more): %w", err)
	case m.Type == typeDone:
		return m.Version, nil
	}
	return "", fmt.Errorf("%w: %s", ErrHandover, m.Error)
}

// lookPath finds a program as a shell does, and makes the path absolute.
func lookPath(name string) (string, error) {
	if !strings.Contains(name, "/") {
		found, err := exec.LookPath(name)
		if err != nil {
			return "", err
		}
		name = found
	}
	path, err := filepath.Abs(name)
	if err != nil {
		return "", err
	}
	return path, unix.Access(path, unix.X_OK)
}
