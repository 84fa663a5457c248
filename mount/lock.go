package mount

import (
	"syscall"

	"bazil.org/fuse"
)

// Locks are kept here and not by the kernel, because the kernel keeps them per node
// and a file can have several. They belong to the request loop and go with it: like
// those of any program, they do not survive the daemon.

// heldLock is a lock, or one that waits.
type heldLock struct {
	owner fuse.LockOwner
	flock bool
	fuse.FileLock
}

type waitingLock struct {
	heldLock
	req *fuse.LockWaitRequest
}

// lockTable holds the locks of one file.
type lockTable struct {
	held    []heldLock
	waiting []*waitingLock
}

// conflict returns a lock that keeps l from being had, nil if none does.
func (t *lockTable) conflict(l heldLock) *heldLock {
	for i := range t.held {
		h := &t.held[i]
		if h.flock == l.flock && h.owner != l.owner && h.Start <= l.End && l.Start <= h.End &&
			(h.Type == fuse.LockWrite || l.Type == fuse.LockWrite) {
			return h
		}
	}
	return nil
}

// set gives l's range to l's owner, with l's type; LockUnlock takes it away.
func (t *lockTable) set(l heldLock) {
	var held []heldLock
	for _, h := range t.held {
		if h.flock != l.flock || h.owner != l.owner || h.End < l.Start || l.End < h.Start {
			held = append(held, h)
			continue
		}
		if h.Start < l.Start {
			left := h
			left.End = l.Start - 1
			held = append(held, left)
		}
		if h.End > l.End {
			right := h
			right.Start = l.End + 1
			held = append(held, right)
		}
	}
	if l.Type != fuse.LockUnlock {
		held = append(held, l)
	}
	t.held = held
}

// grant answers those that wait for what has become free.
func (t *lockTable) grant(answered func(*fuse.LockWaitRequest)) {
	for i := 0; i < len(t.waiting); {
		w := t.waiting[i]
		if t.conflict(w.heldLock) != nil {
			i++
			continue
		}
		t.set(w.heldLock)
		t.waiting = append(t.waiting[:i], t.waiting[i+1:]...)
		answered(w.req)
		w.req.Respond()
		i = 0
	}
}

const wholeFile = ^uint64(0)

// lockOf makes a heldLock of a request.
func lockOf(r *fuse.LockRequest) heldLock {
	return heldLock{owner: r.LockOwner, flock: r.LockFlags&fuse.LockFlock != 0, FileLock: r.Lock}
}

func (s *server) lock(r *fuse.LockRequest) {
	h := s.handle(r.Handle)
	if h == nil {
		r.RespondError(syscall.EBADF)
		return
	}
	l := lockOf(r)
	if h.file.locks.conflict(l) != nil {
		r.RespondError(syscall.EAGAIN)
		return
	}
	h.file.locks.set(l)
	h.file.locks.grant(s.lockAnswered) // a write lock that became a read lock
	r.Respond()
}

func (s *server) lockWait(r *fuse.LockWaitRequest) {
	h := s.handle(r.Handle)
	if h == nil {
		r.RespondError(syscall.EBADF)
		return
	}
	t := &h.file.locks
	w := &waitingLock{heldLock: lockOf((*fuse.LockRequest)(r)), req: r}
	if t.conflict(w.heldLock) == nil {
		t.set(w.heldLock)
		t.grant(s.lockAnswered)
		r.Respond()
		return
	}
	t.waiting = append(t.waiting, w)
	s.pending.add(r.ID, func() { // runs in the loop, on INTERRUPT
		for i := range t.waiting {
			if t.waiting[i] == w {
				t.waiting = append(t.waiting[:i], t.waiting[i+1:]...)
				s.pending.remove(r.ID)
				r.RespondError(syscall.EINTR)
				return
			}
		}
	})
}

func (s *server) lockAnswered(r *fuse.LockWaitRequest) { s.pending.remove(r.ID) }

func (s *server) unlock(r *fuse.UnlockRequest) {
	if h := s.handle(r.Handle); h != nil {
		h.file.locks.set(lockOf((*fuse.LockRequest)(r)))
		h.file.locks.grant(s.lockAnswered)
	}
	r.Respond()
}

func (s *server) queryLock(r *fuse.QueryLockRequest) {
	h := s.handle(r.Handle)
	if h == nil {
		r.RespondError(syscall.EBADF)
		return
	}
	l := heldLock{owner: r.LockOwner, flock: r.LockFlags&fuse.LockFlock != 0, FileLock: r.Lock}
	if c := h.file.locks.conflict(l); c != nil {
		r.Respond(&fuse.QueryLockResponse{Lock: c.FileLock})
		return
	}
	l.Type = fuse.LockUnlock
	r.Respond(&fuse.QueryLockResponse{Lock: l.FileLock})
}

// dropLocks takes an owner's locks of one kind away: at a close (POSIX) or at the last
// close of an open file (flock).
func (s *server) dropLocks(f *file, owner fuse.LockOwner, flock bool) {
	if len(f.locks.held) == 0 {
		return
	}
	f.locks.set(heldLock{owner: owner, flock: flock, FileLock: fuse.FileLock{End: wholeFile, Type: fuse.LockUnlock}})
	f.locks.grant(s.lockAnswered)
}
