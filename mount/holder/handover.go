package holder

import (
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// handover swaps the worker. Its steps, and what goes on if one fails:
//
//	next is started and reads its configuration    the old worker has not been told
//	next said Hello; cur is asked to leave         killed if it does not: as good
//	cur has ended; next gets the connection
//	next is ready: done, the holder follows        the old binary is started, with the
//	                                               configuration that was in force
type handover struct {
	r    *request
	next *worker  // nil: it has ended
	bin  *os.File // the new binary
}

func (s *handover) worker() *worker {
	if s == nil {
		return nil
	}
	return s.next
}

// firstSteps bounds how long a new binary may take to read its configuration.
const firstSteps = 10 * time.Second

// handover begins one.
func (h *holder) handover(r *request) {
	switch {
	case r.m.Type != typeHandover:
		r.refuse(fmt.Sprintf("this holder knows no command %q", r.m.Type))
		return
	case h.stopping:
		r.refuse("the mount is being stopped")
		return
	case h.swap != nil:
		r.refuse("another handover is under way")
		return
	case h.waiting != nil:
		r.refuse("another handover is waiting")
		return
	case h.cur == nil || !h.cur.ready || h.conn == nil:
		h.log.Info("handover: waiting until a worker serves")
		h.waiting = r
		return
	}
	bin, err := openBinary(h.path)
	if err != nil {
		r.refuse(err.Error())
		return
	}
	next, err := h.spawn(fdPath(bin), nil)
	if err != nil {
		bin.Close()
		r.refuse(fmt.Sprintf("start %s: %v", h.path, err))
		return
	}
	h.log.Info("handover: started the installed binary", "path", h.path, "pid", next.pid)
	next.killIn(firstSteps, "it did not read its configuration in time")
	h.swap = &handover{r: r, next: next, bin: bin}
}

// openBinary opens the installed program at a descriptor that no child's own can hit.
func openBinary(path string) (*os.File, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open the installed binary %s: %w", path, err)
	}
	defer unix.Close(fd)
	high, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 64)
	if err != nil {
		return nil, fmt.Errorf("open the installed binary %s: %w", path, err)
	}
	return os.NewFile(uintptr(high), path), nil
}

func fdPath(f *os.File) string { return fmt.Sprintf("/proc/self/fd/%d", f.Fd()) }

// prepared makes the old worker leave: the next one has said Hello.
func (h *holder) prepared() {
	h.swap.next.killAt = time.Time{}
	if h.cur == nil { // it died meanwhile
		h.follows()
		return
	}
	h.cur.leaving = true
	h.unserved = time.Now()
	_ = h.cur.ch.send(message{Type: typeLeave}, -1) // one that does not hear it is killed
	h.cur.killIn(min(leaveGrace, h.s.Timeout/4), "it did not leave")
}

// left goes on where the old worker has ended, in whichever way.
func (h *holder) left(w *worker, e ended) {
	if e.code != 0 {
		h.log.Warn("worker ended, at a handover", "pid", w.pid, "code", e.code, "signal", e.signal, "why", w.killed)
	}
	if w.failed != "" {
		h.giveUp(w.failed)
		return
	}
	if h.swap == nil {
		return // progress starts another
	}
	h.follows()
}

// follows lets the next worker begin. Half of holder_timeout is its, the rest for the
// old binary.
func (h *holder) follows() {
	w := h.swap.next
	h.cur = w
	w.killIn(h.s.Timeout/2, "it was not ready in time")
	h.letBegin(w)
}

// lostNext goes on where the new worker has ended before it got the connection.
func (h *holder) lostNext(w *worker, why string) {
	h.swap.next = nil
	if h.cur == nil || h.cur.leaving {
		h.failBack(why)
		return
	}
	h.log.Error("handover refused, the old worker serves on", "pid", w.pid, "why", why)
	h.endSwap(func(r *request) {
		r.refuse(fmt.Sprintf("%s does not start (%s); the old worker serves on", h.path, why))
	})
}

// failBack goes back to the old binary: the new worker has ended, and the old one has
// left. The answer is given once a worker serves.
func (h *holder) failBack(why string) {
	h.log.Error("handover failed, going back to the old binary", "why", why)
	h.back = &back{why: why}
	h.endSwap(func(r *request) { h.back.r = r })
}

// back is a handover that failed and whose answer waits for a worker.
type back struct {
	r   *request
	why string
}

// answerBack says that the old version serves again.
func (h *holder) answerBack() {
	if b := h.back; b != nil {
		h.back = nil
		b.r.refuse(fmt.Sprintf("%s did not serve (%s); the old version serves again", h.path, b.why))
	}
}

// cancelSwap ends a handover that cannot go on.
func (h *holder) cancelSwap(why string) {
	if b := h.back; b != nil {
		h.back = nil
		b.r.refuse(fmt.Sprintf("%s did not serve (%s), and then: %s", h.path, b.why, why))
	}
	if h.waiting != nil {
		h.waiting.refuse(why)
		h.waiting = nil
	}
	if h.swap == nil {
		return
	}
	if w := h.swap.next; w != nil && w != h.cur {
		w.kill(why)
	}
	h.endSwap(func(r *request) { r.refuse(why) })
}

func (h *holder) endSwap(answer func(*request)) {
	s := h.swap
	h.swap = nil
	_ = s.bin.Close()
	answer(s.r)
}
