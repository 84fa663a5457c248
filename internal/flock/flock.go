// Package flock has one process at a time own a file or directory, by flock(2).
//
// Such a lock belongs to the open file, not to the process (flock(2)): a child that was forked
// and has not executed its program yet has it, too, for some milliseconds. It may outlive a
// process that closed the file, or was killed, by so much.
package flock

import (
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// ErrHeld is returned by Lock where another process has the lock.
var ErrHeld = errors.New("locked by another process")

// patience is how long Lock waits for children that have not executed their program.
const patience = 200 * time.Millisecond

// retryEvery is how often it looks meanwhile.
const retryEvery = 5 * time.Millisecond

// File is a lock file that is open and locked.
type File struct{ *os.File }

// Open opens the file at path, makes it with perm if it is missing, and locks it. The error
// wraps ErrHeld where another process has it.
func Open(path string, perm os.FileMode) (*File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, perm)
	if err != nil {
		return nil, fmt.Errorf("open lock: %w", err)
	}
	if err := Lock(int(f.Fd())); err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: %w", path, err), f.Close())
	}
	return &File{f}, nil
}

// Close gives the lock up at once, and closes the file.
func (f *File) Close() error {
	return errors.Join(Unlock(int(f.Fd())), f.File.Close())
}

// Lock takes the lock of the open file fd, for as long as that is open or until Unlock. Where
// another process has it, it waits a fifth of a second before it returns ErrHeld.
func Lock(fd int) error {
	for end := time.Now().Add(patience); ; time.Sleep(retryEvery) {
		err := unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB)
		switch {
		case err == nil:
			return nil
		case err == unix.EINTR:
		case err != unix.EWOULDBLOCK:
			return fmt.Errorf("flock: %w", err)
		case time.Now().After(end):
			return ErrHeld
		}
	}
}

// Unlock gives the lock up at once, whoever else has the open file.
func Unlock(fd int) error {
	if err := unix.Flock(fd, unix.LOCK_UN); err != nil {
		return fmt.Errorf("unlock: %w", err)
	}
	return nil
}
