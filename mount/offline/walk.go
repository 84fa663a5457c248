package offline

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"ftfuse/mount/capture"
	"ftfuse/mount/spool"
)

// forgetAfter is how many passes in a row have to miss a file for it to be forgotten: one misses a
// file that is renamed meanwhile from a directory that is to come to one that was listed.
const forgetAfter = 2

// pass looks at every file below the directory. What the queue knows and is not there any
// more is forgotten.
func (t *Taker) pass(ctx context.Context) error {
	for _, k := range t.files {
		k.seen = false
	}
	for _, r := range t.removed {
		r.k.seen = true
	}
	whole, err := t.directory(ctx, t.o.Dir, "")
	if err != nil {
		return err
	}
	var gone []*known
	for _, k := range t.files {
		switch {
		case k.seen || !whole:
			k.missed = 0
		case k.missed+1 < forgetAfter:
			k.missed++
			t.watch.everything()
		default:
			gone = append(gone, k)
		}
	}
	return t.forgetGone(ctx, gone)
}

// forgetGone forgets files that are not there any more. After a power loss one would be there
// again, and be taken again, whose removal is not on the disk, as after a kill right behind it.
func (t *Taker) forgetGone(ctx context.Context, gone []*known) error {
	if len(gone) == 0 {
		return nil
	}
	if err := unix.Syncfs(int(t.o.Dir.Fd())); err != nil {
		t.once("syncfs", "files below the mount point that were removed stay known: their file system cannot be synced", "err", err)
		return nil
	}
	for _, k := range gone {
		if err := t.forget(ctx, k); err != nil {
			return err
		}
	}
	return nil
}

// directory looks at everything in dir, whose path is at. False: something could not be
// looked at.
func (t *Taker) directory(ctx context.Context, dir *os.File, at string) (whole bool, err error) {
	t.watch.add(dir, at)
	if _, err := dir.Seek(0, 0); err != nil {
		return false, err
	}
	entries, err := dir.ReadDir(-1)
	if err != nil {
		t.once("list "+at, "a directory below the mount point cannot be read", "path", at, "err", err)
		return false, nil
	}
	slices.SortFunc(entries, func(a, b fs.DirEntry) int { return older(a.Name(), b.Name()) })
	whole = true
	for _, e := range entries {
		if err := ctx.Err(); err != nil {
			return false, err
		}
		name := putBack(dir, e.Name())
		ok, err := t.entry(ctx, dir, name, e.Type(), path.Join(at, name))
		if err != nil {
			return false, err
		}
		whole = whole && ok
	}
	return whole, nil
}

// entry looks at one name.
func (t *Taker) entry(ctx context.Context, dir *os.File, name string, is fs.FileMode, at string) (whole bool, err error) {
	switch {
	case len(proper(at)) > spool.MaxPath && (is.IsDir() || is.IsRegular()):
		return t.skipped(at, errLong), nil
	case is.IsDir():
		sub, err := openAt(dir, name, unix.O_DIRECTORY)
		if err != nil {
			return t.skipped(at, err), nil
		}
		defer sub.Close()
		if st, err := statOf(int(sub.Fd())); err != nil || st.dev != t.root.dev {
			return err == nil, nil // another file system: not what lies below the mount
		}
		return t.directory(ctx, sub, at)
	case is.IsRegular():
		return t.file(ctx, dir, name, at)
	}
	return true, nil
}

// file takes one file.
func (t *Taker) file(ctx context.Context, dir *os.File, name, at string) (whole bool, err error) {
	if !t.o.Matches(proper(at)) {
		return t.left(dir, name, at), nil
	}
	f, err := openAt(dir, name, unix.O_NONBLOCK)
	if err != nil {
		return t.skipped(at, err), nil
	}
	defer f.Close()
	k, more, err := t.take(ctx, f, at)
	if broken := (*fileError)(nil); errors.As(err, &broken) {
		return t.skipped(at, err), nil
	}
	if errors.Is(err, capture.ErrSkipped) { // as one that does not match
		t.once("rules "+at, "a file below the mount point is left: the rules that are in force do not transfer what was written by its first path", "path", at, "first", k.s.Path)
		return true, nil
	}
	if more {
		t.watch.mark(at)
	}
	if err != nil || k == nil || more {
		return true, err
	}
	err = t.finish(ctx, dir, f, name, k)
	if broken := (*fileError)(nil); errors.As(err, &broken) {
		return t.skipped(at, err), nil
	}
	return true, err
}

// left sees a file that is not to be taken. What was taken of it while it was, or under
// another path, stays known.
func (t *Taker) left(dir *os.File, name, at string) (whole bool) {
	if len(t.files) == 0 {
		return true
	}
	st, err := statAt(int(dir.Fd()), name, unix.AT_SYMLINK_NOFOLLOW)
	if err != nil {
		return t.skipped(at, err)
	}
	if k := t.inodes[inode{st.ino, st.birth}]; k != nil {
		k.seen = true
	}
	return true
}

// errLong is of what no program could write by that path on the mount: neither the queue nor
// a receiver takes paths of any length.
var errLong = fmt.Errorf("%w: its path has more than %d bytes; move it up", unix.ENAMETOOLONG, spool.MaxPath)

// fileError is of one file, and does not keep others from being taken.
type fileError struct{ err error }

func (e *fileError) Error() string { return e.err.Error() }
func (e *fileError) Unwrap() error { return e.err }

// skipped says why a file is not looked at; true for one that is not there any more, or lies
// elsewhere and is mounted there.
func (t *Taker) skipped(at string, err error) bool {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ELOOP) || errors.Is(err, unix.EXDEV) {
		return true
	}
	t.once("open "+at, "a file below the mount point cannot be taken in", "path", at, "err", err)
	return false
}

// openAt opens a name in dir: no link, and nothing that is mounted there, be it of the same file
// system (mount --bind), which is unix.EXDEV.
func openAt(dir *os.File, name string, flags int) (*os.File, error) {
	how := &unix.OpenHow{Flags: uint64(flags | unix.O_RDONLY | unix.O_NOFOLLOW | unix.O_CLOEXEC), Resolve: unix.RESOLVE_NO_XDEV}
	fd, err := openat2(int(dir.Fd()), name, how)
	if noOpenat2(err) {
		fd, err = openWithin(int(dir.Fd()), name, int(how.Flags))
	}
	if err != nil {
		return nil, fmt.Errorf("open: %w", err)
	}
	return os.NewFile(uintptr(fd), name), nil
}

// openat2 is openat2(2); tests take it away.
var openat2 = unix.Openat2

// noOpenat2 reports whether err is that of a kernel before 5.6, or of a seccomp filter.
func noOpenat2(err error) bool { return err == unix.ENOSYS || err == unix.EPERM }

// openWithin is openAt by openat(2): what is mounted there is opened, and then refused.
func openWithin(dir int, name string, flags int) (int, error) {
	fd, err := unix.Openat(dir, name, flags, 0)
	if err != nil {
		return -1, err
	}
	is, err := mountOf(fd)
	var want int
	if err == nil {
		want, err = mountOf(dir)
	}
	if err == nil && is != want {
		err = unix.EXDEV
	}
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// mountOf is the mount that a descriptor was opened in (proc_pid_fdinfo(5)).
func mountOf(fd int) (id int, err error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/self/fdinfo/%d", fd))
	if err != nil {
		return 0, err
	}
	_, after, ok := strings.Cut(string(text), "\nmnt_id:")
	if !ok {
		return 0, fmt.Errorf("no mnt_id in /proc/self/fdinfo/%d", fd)
	}
	_, err = fmt.Sscan(after, &id)
	return id, err
}

// some looks at the files that were written to, and those that somebody has open.
func (t *Taker) some(ctx context.Context) error {
	todo := t.watch.take()
	for k := range t.writers {
		todo[k.at] = true
	}
	for _, at := range slices.SortedFunc(maps.Keys(todo), older) {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := t.one(ctx, at); err != nil {
			return err
		}
	}
	return nil
}

// one looks at the file at a path, if there is one.
func (t *Taker) one(ctx context.Context, at string) error {
	if len(proper(at)) > spool.MaxPath {
		t.skipped(at, errLong)
		return nil
	}
	how := &unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_DIRECTORY | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_XDEV,
	}
	parent := path.Dir(at)
	fd, err := openat2(int(t.o.Dir.Fd()), parent, how)
	if noOpenat2(err) {
		t.watch.everything()
		return nil
	}
	if err != nil {
		t.lost(at)
		return nil
	}
	dir := os.NewFile(uintptr(fd), parent)
	defer dir.Close()
	name := putBack(dir, path.Base(at))
	at = path.Join(parent, name)
	var st unix.Stat_t
	if err := unix.Fstatat(fd, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil || st.Mode&unix.S_IFMT != unix.S_IFREG {
		t.lost(at)
		return nil
	}
	_, err = t.file(ctx, dir, name, at)
	return err
}

// lost is told that there is no file at a path. One that was renamed is found by a pass.
func (t *Taker) lost(at string) {
	for k := range t.writers {
		if k.at == at {
			delete(t.writers, k)
			t.open.Store(int64(len(t.writers)))
			t.watch.everything()
		}
	}
}
