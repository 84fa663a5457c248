package output

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// markName is the extended attribute that says of a file that it was rotated: its value is the
// last element of the name that the file had then (docs/protocol.md, "Marks of rotated files").
const markName = "user.ftfuse.rotated"

// ErrUnmarked is returned where a file cannot be marked: its file system has no such
// attributes, or no room for one, or the file is not ours.
var ErrUnmarked = errors.New("the file cannot be marked as rotated")

// Mark notes in the file called name, which must be the one with that ID, that it was rotated: the
// mark is on disk when Mark returns. fresh says that it had none. ErrGone: name is another file, or
// none; ErrUnmarked: it has no mark. After any other error nobody knows: stop.
func (r *Root) Mark(name string, id ID) (fresh bool, err error) {
	f, err := r.openToLook(name)
	if err != nil {
		if c := r.classify("mark", name, err); !errors.Is(err, unix.ENOENT) && !errors.Is(c, ErrRefused) {
			return false, fmt.Errorf("%w: %w", ErrUnmarked, c)
		}
		return false, ErrGone
	}
	defer f.Close()
	switch {
	case f.id != id:
		return false, ErrGone
	case f.Marked():
		return false, nil
	}
	if err := unix.Fsetxattr(f.fd, markName, []byte(baseOf(name)), 0); err != nil {
		return false, fmt.Errorf("%w: %q: %w", ErrUnmarked, f.path, err)
	}
	if err := fpSync.Inject(); err != nil {
		return true, fmt.Errorf("sync the mark of output file %q: %w", f.path, err)
	}
	if err := unix.Fsync(f.fd); err != nil {
		return true, fmt.Errorf("sync the mark of output file %q: %w", f.path, err)
	}
	return true, nil
}

// Marked reports whether f was marked under the name that it was opened by. (One that was
// renamed or copied since is not what was rotated.)
func (f *File) Marked() bool {
	value := make([]byte, maxName)
	n, err := unix.Fgetxattr(f.fd, markName, value)
	return err == nil && string(value[:n]) == baseOf(f.path)
}

func baseOf(name string) string { return name[strings.LastIndexByte(name, '/')+1:] }

// openToLook opens what is there, for reading.
func (r *Root) openToLook(name string) (*File, error) {
	fd, err := r.resolve(name, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	return r.newFile(fd, name)
}

// Marked is a file that was rotated away from another and marked.
type Marked struct {
	Number uint64
	Suffix string // behind the number
	ID     ID
}

// MarkedBeside returns the marked files NAME.N… in the directory of name, where N has that many
// digits or more and ends the name or stands before a dot, in the order of the directory.
func (r *Root) MarkedBeside(name string, digits int) ([]Marked, error) {
	var all []Marked
	err := r.numbered(name, digits, func(rest, num string, n uint64) error {
		f, err := r.openToLook(name + "." + rest)
		switch {
		case errors.Is(err, unix.EMFILE), errors.Is(err, unix.ENFILE), errors.Is(err, unix.ENOMEM):
			return fmt.Errorf("look beside output file %q: %w", r.Path(name), err)
		case err != nil: // gone again, or not ours
			return nil
		}
		defer f.Close()
		if f.Marked() {
			all = append(all, Marked{Number: n, Suffix: rest[len(num):], ID: f.id})
		}
		return nil
	})
	return all, err
}

// numbered calls each for the names NAME.REST in the directory of name where REST begins with a
// number of at least so many digits and ends there or goes on with a dot.
func (r *Root) numbered(name string, digits int, each func(rest, num string, n uint64) error) error {
	fd, base, err := r.parentOf(name, unix.O_RDONLY)
	if err != nil {
		return r.classify("look beside", name, err)
	}
	dir := os.NewFile(uintptr(fd), r.Path(parent(name)))
	defer dir.Close()
	all, err := dir.Readdirnames(-1)
	if err != nil {
		return fmt.Errorf("look beside output file %q: %w", r.Path(name), err)
	}
	for _, one := range all {
		rest, ok := strings.CutPrefix(one, base+".")
		num, _, _ := strings.Cut(rest, ".")
		n, err := strconv.ParseUint(num, 10, 64)
		if !ok || err != nil || len(num) < digits {
			continue
		}
		if err := each(rest, num, n); err != nil {
			return err
		}
	}
	return nil
}
