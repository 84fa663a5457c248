package mount

import (
	"sync"
	"time"
	"unsafe"

	"bazil.org/fuse"

	"ftfuse/mount/kernel"
)

// pollRoom is the room from which poll(2) says that a file can be written: what one request
// carries, an eighth of max_bytes if that is less. Room for a byte would wake programs for
// writes that do not fit.
func (s *server) pollRoom() int64 { return min(kernel.MaxWrite, s.limits.Load().maxBytes/8) }

// pollers are the open files that the kernel polls for programs: by poll(2) or epoll, or
// by a language's runtime, as Go's does with every file that it opens.
type pollers struct {
	mu      sync.Mutex
	known   map[fuse.HandleID]fuse.PollWakeup // all that may be told
	asked   map[fuse.HandleID]bool            // those that wait for room
	looking bool                              // lookForRoom runs
}

// add keeps how the kernel wants to hear of h.
func (p *pollers) add(h fuse.HandleID, w fuse.PollWakeup) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.known == nil {
		p.known = map[fuse.HandleID]fuse.PollWakeup{}
	}
	p.known[h] = w
}

// ask remembers that h waits for room. look is true if somebody has to begin to look.
func (p *pollers) ask(h fuse.HandleID) (look bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, ok := p.known[h]; !ok {
		return false
	}
	if p.asked == nil {
		p.asked = map[fuse.HandleID]bool{}
	}
	p.asked[h] = true
	look, p.looking = !p.looking, true
	return look
}

func (p *pollers) forget(h fuse.HandleID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.known, h)
	delete(p.asked, h)
}

// take returns whom to tell of room, each once, if there is room. more is false when
// nobody waits any longer: the looking has ended.
func (p *pollers) take(room bool) (tell []fuse.PollWakeup, more bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if room {
		for h := range p.asked {
			tell = append(tell, p.known[h])
		}
		p.asked = nil
	}
	p.looking = len(p.asked) > 0
	return tell, p.looking
}

// wakeupKey is what the kernel calls a poller (kh), which the library does not show, and
// wakeup the reverse of it.
func wakeupKey(w fuse.PollWakeup) uint64    { return *(*uint64)(unsafe.Pointer(&w)) }
func wakeup(key uint64) (w fuse.PollWakeup) { *(*uint64)(unsafe.Pointer(&w)) = key; return w }

// This does not compile if a PollWakeup is more than its key.
var _ = [1]struct{}{}[unsafe.Sizeof(fuse.PollWakeup{})-unsafe.Sizeof(uint64(0))]

// poll says what can be done with an open file at once: reading always, as with any file
// on a disk, writing while there is room for it.
func (s *server) poll(r *fuse.PollRequest) {
	events := fuse.DefaultPollMask
	if h := s.handles.get(r.Handle); h != nil && h.write != nil {
		if w, ok := r.Wakeup(); ok {
			s.pollers.add(h.id, w)
			s.session.SetPoll(uint64(h.id), wakeupKey(w))
		}
		if !s.writable() {
			events &^= fuse.PollOut | fuse.PollWriteNormal
			s.tellWritable(h)
		}
	}
	r.Respond(&fuse.PollResponse{REvents: events})
}

// writable reports whether a write would neither wait nor get EAGAIN.
func (s *server) writable() bool {
	if s.closing.Load() {
		return true // it gets an error at once
	}
	if s.limits.Load().full == fullBlock && s.room.free() < s.pollRoom() {
		return false
	}
	return s.store.HasRoom(int(s.pollRoom()))
}

// tellWritable has the kernel told, once, when h can be written: it was said that it
// cannot, by poll or by EAGAIN. Who polls for edges would wait for ever otherwise.
func (s *server) tellWritable(h *handle) {
	if s.pollers.ask(h.id) {
		s.wg.Go(s.lookForRoom)
	}
}

// lookForRoom looks every now and then, as long as somebody waits. The kernel does not
// make the teller wait: it wakes who polls and forgets what it does not know any more
// (fs/fuse/file.c, fuse_notify_poll_wakeup).
func (s *server) lookForRoom() {
	tick := time.NewTicker(roomPoll)
	defer tick.Stop()
	for {
		select {
		case <-s.ctx.Done():
			return
		case <-tick.C:
		}
		tell, more := s.pollers.take(s.writable())
		for _, w := range tell {
			if err := s.conn.NotifyPollWakeup(w); err != nil && s.ctx.Err() == nil {
				s.log.Warn("a program that polls could not be told that there is room", "err", err)
			}
		}
		if !more {
			return
		}
	}
}
