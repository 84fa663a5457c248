package holder

import (
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"ftfuse/internal/systemd"
)

// signalled passes a signal on.
func (h *holder) signalled(s os.Signal) {
	sig, _ := s.(syscall.Signal)
	if sig == syscall.SIGPIPE {
		return // the reader of the log went away
	}
	switch sig {
	case syscall.SIGHUP:
		h.reload = reloadAsked
		h.hangUp()
	case syscall.SIGUSR1:
		h.reopen()
	default:
		h.stop(sig)
	}
}

// stop passes the wish to stop on to the worker that serves.
func (h *holder) stop(sig syscall.Signal) {
	if h.conn != nil && !h.stopping && h.held == nil && (h.cur == nil || !h.cur.ready || h.cur.leaving) {
		h.log.Info("stopping as soon as a worker serves", "signal", sig.String())
		h.held = sig // a worker that serves can drain and unmount
		return
	}
	first := !h.stopping
	if first {
		h.stopping = true
		systemd.Tell(h.log, h.sd.stopping())
		h.cancelSwap("the mount is being stopped")
	}
	if h.cur == nil {
		h.giveUp("stopped while no worker served: " + h.why)
		return
	}
	h.log.Debug("the worker is told to stop", "pid", h.cur.pid, "signal", sig.String())
	if first { // who asks again does not give it more time
		h.cur.killIn(h.s.Shutdown+stopGrace, "it did not stop within shutdown_timeout")
	}
	if h.cur.ch.send(message{Type: typeStop, Signal: sig.String()}, -1) != nil {
		_ = h.cur.proc.Signal(sig) // its end is an event
	}
}

// giveUp drops the connection, so that programs get ENOTCONN and can end, and ends. An append
// descriptor that the kernel serves writes to the spool file whatever becomes of the
// connection: its program sees no error, and is an orphan of the next start.
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
		h.log.Error("the mount point is given up: programs get ENOTCONN; programs that append through the kernel go on into the spool. What was accepted stays there and is sent after the next start", "point", h.s.Point, "why", why)
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
	if h.code != 0 && h.why != "" {
		systemd.Tell(h.log, h.sd.failed(h.why))
	}
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
