package session

import (
	"hash/crc32"
	"sync/atomic"
)

// Lock is a lock that somebody has on a file.
type Lock struct {
	Owner      uint64
	Start, End uint64 // both included
	Type       uint32 // as the kernel numbers them
	PID        int32
	Flock      bool   // flock(2), else fcntl(2)
	Handle     uint64 // through which it was asked for
}

// heldLock is a Lock and its place in the table.
type heldLock struct {
	Lock
	place int
}

// Offsets in a lock.
const (
	lockState  = 0 // 1 while it is in use, stored last
	lockCRC    = 4 // of bytes 8 to 63
	lockFile   = 8
	lockOwner  = 16
	lockStart  = 24
	lockEnd    = 32
	lockType   = 40
	lockPID    = 44
	lockFlock  = 48
	lockHandle = 56
	lockUsed   = 64
)

// SetLocks keeps the locks of a file, in place of those that it had. New ones are stored
// before old ones go: a kill in between leaves a lock that its owner asked for or one
// that it has had, never less; the request comes again then. On ErrLocks it is as before.
func (s *Session) SetLocks(file uint64, locks []Lock) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	old := s.byFile[file]
	kept := make([]heldLock, 0, len(locks))
	var fresh []int
	stays := make([]bool, len(old))
	for _, l := range locks {
		place := -1
		for i := range old {
			if !stays[i] && old[i].Lock == l {
				stays[i], place = true, old[i].place
				break
			}
		}
		if place < 0 {
			var err error
			if place, err = s.locks.take(); err != nil {
				for _, p := range fresh {
					s.locks.give(p)
				}
				return err
			}
			s.storeLock(place, file, &l)
			fresh = append(fresh, place)
		}
		kept = append(kept, heldLock{l, place})
	}
	for i := range old {
		if !stays[i] {
			s.locks.give(old[i].place)
		}
	}
	if len(kept) == 0 {
		delete(s.byFile, file)
		return nil
	}
	s.byFile[file] = kept
	return nil
}

func (s *Session) storeLock(place int, file uint64, l *Lock) {
	b := s.locks.bytes(place)
	le.PutUint64(b[lockFile:], file)
	le.PutUint64(b[lockOwner:], l.Owner)
	le.PutUint64(b[lockStart:], l.Start)
	le.PutUint64(b[lockEnd:], l.End)
	le.PutUint32(b[lockType:], l.Type)
	le.PutUint32(b[lockPID:], uint32(l.PID))
	flock := uint64(0)
	if l.Flock {
		flock = 1
	}
	le.PutUint64(b[lockFlock:], flock)
	le.PutUint64(b[lockHandle:], l.Handle)
	le.PutUint32(b[lockCRC:], crc32.Checksum(b[lockFile:lockUsed], castagnoli))
	atomic.StoreUint32(s.locks.state(place), 1)
}

func (s *Session) loadLocks() error {
	for i := range s.locks.have {
		if atomic.LoadUint32(s.locks.state(i)) == 0 {
			continue
		}
		b := s.locks.bytes(i)
		if le.Uint32(b[lockCRC:]) != crc32.Checksum(b[lockFile:lockUsed], castagnoli) {
			return s.bad("lock %d: CRC does not fit", i)
		}
		file := le.Uint64(b[lockFile:])
		s.byFile[file] = append(s.byFile[file], heldLock{place: i, Lock: Lock{
			Owner: le.Uint64(b[lockOwner:]), Start: le.Uint64(b[lockStart:]), End: le.Uint64(b[lockEnd:]),
			Type: le.Uint32(b[lockType:]), PID: int32(le.Uint32(b[lockPID:])), Flock: le.Uint64(b[lockFlock:]) != 0,
			Handle: le.Uint64(b[lockHandle:]),
		}})
	}
	return nil
}

// Locks returns the files that have locks, and these.
func (s *Session) Locks() map[uint64][]Lock {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := map[uint64][]Lock{}
	for file, held := range s.byFile {
		for _, h := range held {
			all[file] = append(all[file], h.Lock)
		}
	}
	return all
}
