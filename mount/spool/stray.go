package spool

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// Strays returns how many bytes have data although they were captured and punched out:
// somebody stored them through a shared mapping of the spool file, or wrote over them with
// Overwrite. It counts whole blocks.
func (f *File) Strays() (int64, error) {
	f.s.tidy.mu.Lock()
	done := f.punch.done
	f.s.tidy.mu.Unlock()
	var n int64
	for at := int64(0); at < done; {
		from, err := unix.Seek(f.fd, at, unix.SEEK_DATA)
		if err == unix.ENXIO || err == nil && from >= done {
			break
		}
		if err == nil {
			at, err = unix.Seek(f.fd, from, unix.SEEK_HOLE)
		}
		if err != nil {
			return n, fmt.Errorf("look for data in the punched part of spool file %s: %w", f.number, err)
		}
		n += min(at, done) - from
	}
	return n, nil
}
