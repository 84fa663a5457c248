package spool

import (
	"errors"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// Walk gives fn every name below the mount, a directory before what is in it; Name is its path.
// Number is 0 for what ftfuse did not make. What is removed meanwhile may be missing. No path is too
// long for it, wherever the state directory is, and it holds few descriptors, however deep it goes.
func (s *Store) Walk(fn func(Dirent) error) error {
	return walk(walked{fd: int(s.tree.Fd())}, "", fn)
}

// walkFrom is the length of a path, in bytes, from which on a walk goes by a directory on it.
const walkFrom = 1000

// walked is an open directory by which a walk goes, and its path with a slash behind.
type walked struct {
	fd   int
	path string
}

// walk is Walk for the directory path below d.
func walk(d walked, path string, fn func(Dirent) error) error {
	fd, err := openDirAt(d.fd, at(path))
	if err != nil {
		return &os.PathError{Op: "open directory", Path: d.path + path, Err: err}
	}
	list, err := dirents(fd)
	if len(path) < walkFrom {
		unix.Close(fd)
	} else {
		defer unix.Close(fd)
		d, path = walked{fd, d.path + path + "/"}, ""
	}
	if err != nil {
		return &os.PathError{Op: "read directory", Path: d.path + path, Err: err}
	}
	if path != "" {
		path += "/"
	}
	for _, e := range list {
		below := path + e.Name
		e.Name = d.path + below
		if err := fn(e); err != nil {
			return err
		}
		if !e.Dir {
			continue
		}
		if err := walk(d, below, fn); err != nil && !errors.Is(err, unix.ENOENT) {
			return err
		}
	}
	return nil
}

func (s *Store) openTree(path string) (int, error) { return openDirAt(int(s.tree.Fd()), at(path)) }

func openDirAt(fd int, path string) (int, error) {
	return unix.Openat(fd, path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
}

// dirents returns what is in an open directory of the tree, which stays the caller's. Number is 0
// for what ftfuse did not make.
func dirents(fd int) ([]Dirent, error) {
	dup, err := openDirAt(fd, ".")
	if err != nil {
		return nil, err
	}
	d := os.NewFile(uintptr(dup), "/proc/self/fd/"+strconv.Itoa(dup)) // by which the library looks at what has no type
	defer d.Close()
	list, err := d.ReadDir(-1)
	if err != nil {
		return nil, bare(err)
	}
	out := make([]Dirent, 0, len(list))
	var buf [17]byte
	for _, e := range list {
		one := Dirent{Name: e.Name(), Dir: e.IsDir()}
		if one.Dir {
			var st unix.Stat_t
			if unix.Fstatat(fd, one.Name, &st, unix.AT_SYMLINK_NOFOLLOW) != nil {
				continue
			}
			one.Inode = st.Ino
		} else if size, err := unix.Readlinkat(fd, one.Name, buf[:]); err == nil {
			if n, ok := parseNumber(string(buf[:size])); ok {
				one.Number = n
			}
		}
		out = append(out, one)
	}
	return out, nil
}

// errLong ends a walk that has met what it looked for, or too much.
var errLong = errors.New("too long")

// fits reports whether all that is in the directory from has a path of at most MaxPath when that is
// called to: a name that is longer could not be reached any more. Names that get longer are rare,
// and paths of that length more so: all are looked at only where the longest that there may be,
// which is noted, would be too long. It needs s.naming.
func (s *Store) fits(from, to string) (bool, error) {
	grow := int64(len(to) - len(from))
	if grow <= 0 {
		return true, nil
	}
	if s.longest.Load()+grow <= MaxPath {
		s.noteLongest(s.longest.Load() + grow)
		return true, nil
	}
	longest, names := int64(0), 0
	err := walk(walked{fd: int(s.tree.Fd())}, from, func(e Dirent) error {
		names++
		if longest = max(longest, int64(len(e.Name))); longest+grow > MaxPath {
			return errLong
		}
		return nil
	})
	switch {
	case err == errLong:
		return false, nil
	case err != nil:
		return false, bare(err)
	}
	if s.looked += names; s.looked >= s.names {
		s.measure()
	}
	s.noteLongest(longest + grow)
	return true, nil
}

// mostMeasured bounds how many names measure looks at: all that names files waits for it.
const mostMeasured = 50_000

// measure notes what the longest path is now, which may be far shorter than what is noted, unless there
// are too many names. It is called again when fits has looked at as many: so it costs no more than that.
// It needs s.naming.
func (s *Store) measure() {
	longest := int64(0)
	s.looked, s.names = 0, 0
	err := s.Walk(func(e Dirent) error {
		if s.names++; s.names > mostMeasured {
			return errLong
		}
		longest = max(longest, int64(len(e.Name)))
		return nil
	})
	if err == nil {
		s.longest.Store(longest)
	}
}

// noteLongest says that a path may have n bytes.
func (s *Store) noteLongest(n int64) {
	for old := s.longest.Load(); n > old && !s.longest.CompareAndSwap(old, n); old = s.longest.Load() {
	}
}
