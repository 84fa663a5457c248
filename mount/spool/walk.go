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

// errLong ends a walk that has met what it looked for.
var errLong = errors.New("too long")

// fits reports whether all that is in the directory from has a path of at most MaxPath when that is
// called to: a name that is longer could not be reached any more. Names that get longer are rare,
// and paths of that length more so: all are looked at only where the longest that there may be,
// which is noted, would be too long.
func (s *Store) fits(from, to string) (bool, error) {
	grow := int64(len(to) - len(from))
	if grow <= 0 {
		return true, nil
	}
	if s.longest.Load()+grow > MaxPath {
		if ok, err := s.below(from, grow); !ok || err != nil {
			return ok, err
		}
	}
	s.noteLongest(min(s.longest.Load()+grow, MaxPath))
	return true, nil
}

// below reports whether the names in the directory from can be longer by grow bytes.
func (s *Store) below(from string, grow int64) (bool, error) {
	err := walk(walked{fd: int(s.tree.Fd())}, from, func(e Dirent) error {
		if int64(len(e.Name))+grow > MaxPath {
			return errLong
		}
		return nil
	})
	if err == errLong {
		return false, nil
	}
	return err == nil, bare(err)
}

// noteLongest says that a path may have n bytes.
func (s *Store) noteLongest(n int64) {
	for old := s.longest.Load(); n > old && !s.longest.CompareAndSwap(old, n); old = s.longest.Load() {
	}
}
