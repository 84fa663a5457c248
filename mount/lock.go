package mount

import (
	"syscall"

	"bazil.org/fuse"

	"ftfuse/mount/kernel"
	"ftfuse/mount/session"
)

// Locks are kept here and not by the kernel, because the kernel keeps them per node and a
// file can have several. They are guarded by server.mu, and stand in the session, so that
// a successor has them.

// heldLock is a lock, or one that waits.
type heldLock struct {
	owner fuse.LockOwner
	by    fuse.HandleID // through which it was asked for
	flock bool
	fuse.FileLock
}

type waitingLock struct {
	heldLock
	id fuse.RequestID
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

// setLock is set, kept in the session. On an error nothing has changed.
func (s *server) setLock(f *file, l heldLock) error {
	old := f.locks.held
	f.locks.set(l)
	if err := s.session.SetLocks(uint64(f.number), storedLocks(f.locks.held)); err != nil {
		f.locks.held = old
		s.log.Error("lock", "path", f.path(), "err", err)
		return syscall.ENOLCK
	}
	return nil
}

func storedLocks(held []heldLock) []session.Lock {
	out := make([]session.Lock, len(held))
	for i, l := range held {
		out[i] = session.Lock{Owner: uint64(l.owner), Start: l.Start, End: l.End, Type: uint32(l.Type), PID: l.PID, Flock: l.flock, Handle: uint64(l.by)}
	}
	return out
}

func restoredLocks(locks []session.Lock) []heldLock {
	var t lockTable
	for _, l := range locks {
		t.set(heldLock{owner: fuse.LockOwner(l.Owner), by: fuse.HandleID(l.Handle), flock: l.Flock, FileLock: fuse.FileLock{
			Start: l.Start, End: l.End, Type: fuse.LockType(l.Type), PID: l.PID,
		}})
	}
	return t.held
}

// grant answers those that wait for what has become free.
func (s *server) grant(f *file) {
	t := &f.locks
	for i := 0; i < len(t.waiting); {
		w := t.waiting[i]
		if t.conflict(w.heldLock) != nil {
			i++
			continue
		}
		t.waiting = append(t.waiting[:i], t.waiting[i+1:]...)
		err := s.setLock(f, w.heldLock)
		_ = fpDone.lock.Inject()
		s.answer(w.id, func() { s.dev.RespondError(w.id, errno(err)) })
		i = 0
	}
}

const wholeFile = ^uint64(0)

// lockOf makes a heldLock of a request.
func lockOf(r *fuse.LockRequest) heldLock {
	return heldLock{owner: r.LockOwner, by: r.Handle, flock: r.LockFlags&fuse.LockFlock != 0, FileLock: r.Lock}
}

func (s *server) lock(r *fuse.LockRequest) {
	h := s.fileHandle(r.Handle)
	if h == nil {
		r.RespondError(syscall.EBADF)
		return
	}
	l := lockOf(r)
	if h.file.locks.conflict(l) != nil {
		r.RespondError(syscall.EAGAIN)
		return
	}
	if err := s.setLock(h.file, l); err != nil {
		r.RespondError(err)
		return
	}
	s.grant(h.file) // a write lock that became a read lock
	_ = fpDone.lock.Inject()
	r.Respond()
}

func (s *server) lockWait(r *fuse.LockWaitRequest) {
	h := s.fileHandle(r.Handle)
	if h == nil {
		r.RespondError(syscall.EBADF)
		return
	}
	f, l := h.file, lockOf((*fuse.LockRequest)(r))
	if l.flock && f.locks.conflict(l) != nil {
		// flock(2) gives the lock that it converts up before it waits: else two that share a file
		// and both want it for themselves would wait for each other.
		s.dropLocks(f, l.owner, true)
	}
	id := kernel.Forgo(&r.Header).ID
	f.locks.waiting = append(f.locks.waiting, &waitingLock{heldLock: l, id: id})
	s.pending.add(id, func() { s.giveUpLock(f, id) })
	s.grant(f)
}

// giveUpLock runs in the loop, on INTERRUPT.
func (s *server) giveUpLock(f *file, id fuse.RequestID) {
	t := &f.locks
	for i, w := range t.waiting {
		if w.id == id {
			t.waiting = append(t.waiting[:i], t.waiting[i+1:]...)
			s.answer(id, func() { s.dev.RespondError(id, syscall.EINTR) })
			return
		}
	}
}

func (s *server) unlock(r *fuse.UnlockRequest) {
	if h := s.fileHandle(r.Handle); h != nil {
		if err := s.setLock(h.file, lockOf((*fuse.LockRequest)(r))); err != nil {
			r.RespondError(err) // it would have become two
			return
		}
		s.grant(h.file)
	}
	_ = fpDone.lock.Inject()
	r.Respond()
}

func (s *server) queryLock(r *fuse.QueryLockRequest) {
	h := s.fileHandle(r.Handle)
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
	// It only takes away, so there is room for it.
	_ = s.setLock(f, heldLock{owner: owner, flock: flock, FileLock: fuse.FileLock{End: wholeFile, Type: fuse.LockUnlock}})
	s.grant(f)
}

// dropHandle takes away what is left of the locks that h got, when it is closed for good:
// those of an open file description (F_OFD_SETLK), whose owner is h's and of whose end the
// kernel says nothing. Those of processes are gone by then, by their own closes.
func (s *server) dropHandle(h *handle) {
	held := make([]heldLock, 0, len(h.file.locks.held))
	for _, l := range h.file.locks.held {
		if l.by != h.id {
			held = append(held, l)
		}
	}
	if len(held) == len(h.file.locks.held) {
		return
	}
	h.file.locks.held = held
	_ = s.session.SetLocks(uint64(h.file.number), storedLocks(held)) // fewer than there were
	s.grant(h.file)
}
