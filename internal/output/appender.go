package output

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Appender opens f once more for a child process to write to: each of its writes goes to
// the end of the file as it is then, and blocks as writes to files do. It is the caller's,
// and outlives f.
func (f *File) Appender() (*os.File, error) {
	fd, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", f.fd), unix.O_WRONLY|unix.O_APPEND|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open output file %q to append to: %w", f.path, err)
	}
	return os.NewFile(uintptr(fd), f.path), nil
}
