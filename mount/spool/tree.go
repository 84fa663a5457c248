package spool

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"
)

// MaxPath is the longest path below the mount, in bytes, that the tree of names takes;
// a longer one gets ENAMETOOLONG, and so does a directory's new name with which one in it would be.
const MaxPath = 4000

// FileInfo is one spool file as Open found it.
type FileInfo struct {
	Number   Number
	Path     string // below the mount; "" for a file without a name, the old one for an orphan's
	Size     int64
	UID, GID uint32
	Orphan   bool // programs of an earlier connection write to it: see DetachOrphans
}

// Dirent is one name in a directory of the tree.
type Dirent struct {
	Name   string
	Dir    bool
	Number Number // of a file
	Inode  uint64 // of a directory, in the tree's file system
}

// Files gives fn every spool file that Open found, until it returns false. It is for
// recovery, before anything is written.
func (s *Store) Files(fn func(FileInfo) bool) error {
	for _, i := range s.found {
		if !fn(i) {
			break
		}
	}
	return nil
}

// parseNumber reads the name of a spool file, or the target of a link in the tree.
func parseNumber(name string) (Number, bool) {
	if len(name) != 16 {
		return 0, false
	}
	n, err := strconv.ParseUint(name, 16, 64)
	return Number(n), err == nil && n > 0 && Number(n).String() == name
}

// checkTree finds every spool file and its name, and returns the highest number. Files
// that are not ours are left alone and said; a name without its file (power loss can
// do that on some file systems) gets an empty one.
func (s *Store) checkTree() (Number, error) {
	names, err := s.readTree()
	if err != nil {
		return 0, err
	}
	entries, err := os.ReadDir(filepath.Join(s.dir, "spool"))
	if err != nil {
		return 0, fmt.Errorf("read spool directory: %w", err)
	}
	var highest Number
	for _, e := range entries {
		n, ok := parseNumber(e.Name())
		if !ok || !e.Type().IsRegular() {
			s.o.Logger.Warn("not a spool file of ftfuse, left alone", "path", filepath.Join(s.dir, "spool", e.Name()))
			continue
		}
		highest = max(highest, n)
		st, err := s.StatFile(n)
		if err != nil {
			return 0, fmt.Errorf("stat spool file %s: %w", n, err)
		}
		path, named := names[n]
		if !named {
			s.orphans[n] = true
		}
		delete(names, n)
		s.found = append(s.found, FileInfo{Number: n, Path: path, Size: st.Size, UID: st.Uid, GID: st.Gid})
	}
	for n, path := range names {
		s.o.Logger.Warn("a file of the mount has lost its spool file; it is empty now", "path", path, "file", n.String())
		fd, err := s.makeFile(n, 0o644)
		if err != nil {
			return 0, fmt.Errorf("make spool file for %q: %w", path, err)
		}
		unix.Close(fd)
		highest = max(highest, n)
		s.found = append(s.found, FileInfo{Number: n, Path: path, UID: uint32(os.Geteuid()), GID: uint32(os.Getegid())})
	}
	return highest, nil
}

func (s *Store) readTree() (map[Number]string, error) {
	names := map[Number]string{}
	err := s.Walk(func(e Dirent) error {
		s.noteLongest(int64(len(e.Name)))
		switch other, twice := names[e.Number]; {
		case e.Dir:
		case e.Number == 0:
			s.o.Logger.Warn("not a name that ftfuse made, hidden on the mount; move it away", "path", filepath.Join(s.dir, "tree", e.Name))
		case twice:
			return fmt.Errorf("%w: %q and %q are names of the same file %s; remove the one that was copied there", ErrTree, other, e.Name, e.Number)
		default:
			names[e.Number] = e.Name
		}
		return nil
	})
	if err != nil && !errors.Is(err, ErrTree) {
		err = fmt.Errorf("read tree of names: %w", err)
	}
	return names, err
}

// at is path for the *at calls.
func at(path string) string {
	if path == "" {
		return "."
	}
	return path
}

// Lookup says what path, below the mount, is. Errors of it and of the other calls on
// names are bare errnos, as a program would get them.
func (s *Store) Lookup(path string) (dir bool, n Number, err error) {
	if len(path) > MaxPath {
		return false, 0, unix.ENAMETOOLONG
	}
	var buf [17]byte
	size, err := unix.Readlinkat(int(s.tree.Fd()), at(path), buf[:])
	switch {
	case err == unix.EINVAL: // not a link
		var st unix.Stat_t
		if err := unix.Fstatat(int(s.tree.Fd()), at(path), &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return false, 0, err
		}
		if st.Mode&unix.S_IFMT != unix.S_IFDIR {
			return false, 0, unix.ENOENT
		}
		return true, 0, nil
	case err != nil:
		return false, 0, err
	}
	n, ok := parseNumber(string(buf[:size]))
	if !ok {
		return false, 0, unix.ENOENT
	}
	return false, n, nil
}

// StatDir returns the attributes of a directory.
func (s *Store) StatDir(path string) (st unix.Stat_t, err error) {
	err = unix.Fstatat(int(s.tree.Fd()), at(path), &st, unix.AT_SYMLINK_NOFOLLOW)
	return st, err
}

// StatFile returns the attributes of a file.
func (s *Store) StatFile(n Number) (st unix.Stat_t, err error) {
	err = unix.Fstatat(int(s.spool.Fd()), n.String(), &st, unix.AT_SYMLINK_NOFOLLOW)
	return st, err
}

// Stat returns the attributes of f, which is open.
func (f *File) Stat() (st unix.Stat_t, err error) {
	err = unix.Fstat(f.fd, &st)
	return st, err
}

// makeFile makes an empty spool file and returns its descriptor, which is the caller's.
func (s *Store) makeFile(n Number, mode uint32) (fd int, err error) {
	fd, err = unix.Openat(int(s.spool.Fd()), n.String(), unix.O_RDWR|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return -1, err
	}
	if err := unix.Fchmod(fd, mode); err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// Create makes an empty file named path and returns it acquired. First the spool file,
// complete with mode and owner, then its name: a kill in between leaves a file without
// a name, which the next start removes. Nothing fails once it has the name.
func (s *Store) Create(path string, mode, uid, gid uint32) (*File, error) {
	if len(path) > MaxPath {
		return nil, unix.ENAMETOOLONG
	}
	s.naming.RLock()
	defer s.naming.RUnlock()
	s.noteLongest(int64(len(path)))
	s.mu.Lock()
	id, err := s.numbers.take()
	s.mu.Unlock()
	if err != nil {
		s.o.Logger.Error("no number for a new file", "err", err)
		return nil, unix.EIO
	}
	n := Number(id)
	fd, err := s.makeFile(n, mode&0o7777)
	if err != nil {
		return nil, bare(err)
	}
	undo := func(err error) (*File, error) {
		unix.Close(fd)
		_ = unix.Unlinkat(int(s.spool.Fd()), n.String(), 0)
		return nil, bare(err)
	}
	if err := s.Chown(n, uid, gid); err != nil {
		return undo(err)
	}
	if mode&0o6000 != 0 { // a change of owner clears them
		if err := s.Chmod(n, mode); err != nil {
			return undo(err)
		}
	}
	s.mu.Lock() // who looks the name up waits for its File
	defer s.mu.Unlock()
	if err := unix.Symlinkat(n.String(), int(s.tree.Fd()), path); err != nil {
		return undo(err)
	}
	f := s.opened(n, fd, 0)
	f.refs++
	return f, nil
}

// Mkdir makes a directory.
func (s *Store) Mkdir(path string, mode, uid, gid uint32) error {
	if len(path) > MaxPath {
		return unix.ENAMETOOLONG
	}
	s.naming.RLock()
	defer s.naming.RUnlock()
	s.noteLongest(int64(len(path)))
	fd := int(s.tree.Fd())
	if err := unix.Mkdirat(fd, path, 0o700); err != nil {
		return err
	}
	err := s.ChownDir(path, uid, gid)
	if err == nil {
		err = s.ChmodDir(path, mode)
	}
	if err != nil {
		_ = unix.Unlinkat(fd, path, unix.AT_REMOVEDIR)
	}
	return err
}

// Unlink takes the name of a file away.
func (s *Store) Unlink(path string) error {
	dir, n, err := s.Lookup(path)
	switch {
	case err != nil:
		return err
	case dir:
		return unix.EISDIR
	}
	if err := unix.Unlinkat(int(s.tree.Fd()), path, 0); err != nil {
		return err
	}
	s.unlinked(n)
	return nil
}

// Rmdir removes an empty directory.
func (s *Store) Rmdir(path string) error {
	return unix.Unlinkat(int(s.tree.Fd()), path, unix.AT_REMOVEDIR)
}

// Rename gives what is named from the name to. A file that had that name loses it.
func (s *Store) Rename(from, to string) error {
	if len(to) > MaxPath {
		return unix.ENAMETOOLONG
	}
	if from == to {
		return nil
	}
	s.naming.Lock()
	defer s.naming.Unlock()
	folder, _, err := s.Lookup(from)
	if err != nil {
		return err
	}
	if folder {
		if ok, err := s.fits(from, to); err != nil {
			return err
		} else if !ok {
			return unix.ENAMETOOLONG
		}
	}
	s.noteLongest(int64(len(to)))
	dir, replaced, err := s.Lookup(to)
	if err == unix.ENOENT {
		var st unix.Stat_t
		if unix.Fstatat(int(s.tree.Fd()), to, &st, unix.AT_SYMLINK_NOFOLLOW) == nil {
			return unix.EPERM // something that ftfuse did not make is there
		}
	} else if err != nil {
		return err
	}
	if err := unix.Renameat(int(s.tree.Fd()), from, int(s.tree.Fd()), to); err != nil {
		return err
	}
	if err == nil && !dir {
		s.unlinked(replaced)
	}
	return nil
}

// ReadDir returns the names in a directory, without those that ftfuse did not make.
func (s *Store) ReadDir(path string) ([]Dirent, error) {
	fd, err := s.openTree(path)
	if err != nil {
		return nil, bare(err)
	}
	defer unix.Close(fd)
	list, err := dirents(fd)
	return slices.DeleteFunc(list, func(e Dirent) bool { return !e.Dir && e.Number == 0 }), bare(err)
}

// SyncDir makes the names of a directory durable.
func (s *Store) SyncDir(path string) error {
	fd, err := s.openTree(path)
	if err != nil {
		return bare(err)
	}
	defer unix.Close(fd)
	return s.synced(fpSyncDir, func() error { return unix.Fsync(fd) })
}

// Chmod, Chown and Utimens change a file; their Dir forms a directory.
func (s *Store) Chmod(n Number, mode uint32) error {
	return unix.Fchmodat(int(s.spool.Fd()), n.String(), mode&0o7777, 0)
}

func (s *Store) Chown(n Number, uid, gid uint32) error {
	return s.chown(int(s.spool.Fd()), n.String(), uid, gid)
}

func (s *Store) Utimens(n Number, atime, mtime unix.Timespec) error {
	return unix.UtimesNanoAt(int(s.spool.Fd()), n.String(), []unix.Timespec{atime, mtime}, unix.AT_SYMLINK_NOFOLLOW)
}

func (s *Store) ChmodDir(path string, mode uint32) error {
	return unix.Fchmodat(int(s.tree.Fd()), at(path), mode&0o7777, 0)
}

func (s *Store) ChownDir(path string, uid, gid uint32) error {
	return s.chown(int(s.tree.Fd()), at(path), uid, gid)
}

func (s *Store) UtimensDir(path string, atime, mtime unix.Timespec) error {
	return unix.UtimesNanoAt(int(s.tree.Fd()), at(path), []unix.Timespec{atime, mtime}, unix.AT_SYMLINK_NOFOLLOW)
}

// chown leaves an id of ^0 alone, and one that the file has already, so that a daemon
// without privilege works for its own user.
func (s *Store) chown(dirfd int, name string, uid, gid uint32) error {
	var st unix.Stat_t
	if err := unix.Fstatat(dirfd, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	u, g := -1, -1
	if uid != ^uint32(0) && uid != st.Uid {
		u = int(uid)
	}
	if gid != ^uint32(0) && gid != st.Gid {
		g = int(gid)
	}
	if u == -1 && g == -1 {
		return nil
	}
	return unix.Fchownat(dirfd, name, u, g, unix.AT_SYMLINK_NOFOLLOW)
}

// Statfs returns the numbers of the file system that the spool is on.
func (s *Store) Statfs() (st unix.Statfs_t, err error) {
	err = unix.Fstatfs(int(s.spool.Fd()), &st)
	return st, err
}

// bare returns the errno inside err, EIO if there is none. That the daemon has no descriptor left
// is ENFILE: a program would take EMFILE for a limit of its own.
func bare(err error) error {
	if err == nil {
		return nil
	}
	var errno unix.Errno
	switch {
	case !errors.As(err, &errno):
		return unix.EIO
	case errno == unix.EMFILE:
		return unix.ENFILE
	}
	return errno
}

// futimens sets the times of an open file.
func futimens(fd int, atime, mtime unix.Timespec) error {
	ts := [2]unix.Timespec{atime, mtime}
	_, _, errno := unix.Syscall6(unix.SYS_UTIMENSAT, uintptr(fd), 0, uintptr(unsafe.Pointer(&ts)), 0, 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}
