package mount

import (
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// parkedMemory is how many bytes of writes that wait are kept in the heap. The kernel gives
// nothing back that was read from it, and reading no more would keep INTERRUPT from coming,
// so that what waits beyond that is kept on the disk.
const parkedMemory = 64 << 20

// parkedSmall is the largest write that always stays in the heap: waiting takes as much
// memory anyway.
const parkedSmall = 4 << 10

// parking keeps the bytes of writes that wait. It is safe for concurrent use.
type parking struct {
	dir   string // of the disk's part: files without a name, which end with the process
	limit int64  // for the heap

	mu   sync.Mutex
	heap int64
}

// keep copies p. The copy is the caller's until it calls free. An error is a bare errno: the
// disk is full, and so is the memory that may be used.
func (k *parking) keep(p []byte) (kept []byte, free func(), err error) {
	if n := int64(len(p)); n <= parkedSmall || k.take(n) {
		return append([]byte(nil), p...), func() { k.give(n) }, nil
	}
	kept, err = k.mapped(len(p))
	switch err {
	case nil:
		copy(kept, p)
		return kept, func() { _ = unix.Munmap(kept) }, nil
	case syscall.ENOSPC, syscall.EDQUOT, syscall.ENOMEM, syscall.EMFILE, syscall.ENFILE:
		return nil, nil, err
	}
	// A file system that has no files without a name, or does not reserve.
	return append([]byte(nil), p...), func() {}, nil
}

func (k *parking) take(n int64) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.heap+n > k.limit {
		return false
	}
	k.heap += n
	return true
}

func (k *parking) give(n int64) {
	if n <= parkedSmall {
		return
	}
	k.mu.Lock()
	k.heap -= n
	k.mu.Unlock()
}

// mapped is memory that the kernel can write to the disk: of a file that has no name, whose
// space is reserved, since a page that finds none is a SIGBUS.
func (k *parking) mapped(n int) ([]byte, error) {
	fd, err := unix.Open(k.dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	for err = unix.EINTR; err == unix.EINTR; {
		err = unix.Fallocate(fd, 0, 0, int64(n))
	}
	if err != nil {
		return nil, err
	}
	return unix.Mmap(fd, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
}

// turns lets a few at a time do something that takes a large buffer each. Who has a turn
// waits for nothing but the disk.
type turns chan struct{}

// readTurns is how many READ requests are served at a time, of 1 MiB at most.
const readTurns = 16
