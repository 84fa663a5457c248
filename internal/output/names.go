package output

import (
	"errors"
	"fmt"
	"strconv"

	"golang.org/x/sys/unix"
)

// parentOf opens the directory of name, relative; the caller closes it.
func (r *Root) parentOf(name string, flags int) (fd int, base string, err error) {
	dir := parent(name)
	at := "."
	if dir != "" {
		at = dir
	}
	fd, err = r.resolve(at, flags|unix.O_DIRECTORY, 0)
	return fd, baseOf(name), err
}

// idAt returns the identity of what is called base in the directory fd, a link itself.
func idAt(fd int, base string) (Info, error) {
	at, err := unix.Openat(fd, base, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return Info{}, err
	}
	defer unix.Close(at)
	info, _, err := statFd(at)
	return info, err
}

// Rename gives the file with that ID, which is called from, the name to in the same
// directory. ErrGone: from is another file, or none. unix.EEXIST: the name to is taken;
// nothing is ever replaced. The name is durable after the next SyncDirs.
func (r *Root) Rename(from, to string, id ID) error {
	if err := CheckName(r.dir, to); err != nil {
		return err
	}
	fd, base, err := r.parentOf(from, unix.O_PATH)
	if err != nil {
		return r.classify("rename", from, err)
	}
	defer unix.Close(fd)
	r.names.Lock()
	defer r.names.Unlock()
	if info, err := idAt(fd, base); errors.Is(err, unix.ENOENT) || err == nil && info.ID != id {
		return ErrGone
	} else if err != nil {
		return r.classify("rename", from, err)
	}
	target := baseOf(to)
	if err := renameNew(fd, base, target); err != nil {
		return r.classify("rename", from, err)
	}
	r.markStale(parent(from))
	if info, err := idAt(fd, target); err == nil && info.ID != id { // somebody replaced it in that moment
		_ = renameNew(fd, target, base)
		return ErrGone
	}
	return nil
}

// renameNew is renameat2 with RENAME_NOREPLACE, also where the file system has none: then
// the names are looked at before, as only the owner of the directory makes such names.
func renameNew(fd int, from, to string) error {
	err := unix.Renameat2(fd, from, fd, to, unix.RENAME_NOREPLACE)
	if !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOSYS) {
		return err
	}
	if _, err := idAt(fd, to); !errors.Is(err, unix.ENOENT) {
		return errors.Join(unix.EEXIST, err)
	}
	return unix.Renameat(fd, from, fd, to)
}

// Remove removes the file called name if it is the one with that ID; else ErrGone.
func (r *Root) Remove(name string, id ID) error {
	if err := CheckName(r.dir, name); err != nil {
		return err
	}
	fd, base, err := r.parentOf(name, unix.O_PATH)
	if err == nil {
		defer unix.Close(fd)
		r.names.Lock()
		defer r.names.Unlock()
		var info Info
		if info, err = idAt(fd, base); err == nil && info.ID != id {
			return ErrGone
		}
		if err == nil {
			err = unix.Unlinkat(fd, base, 0)
		}
	}
	if errors.Is(err, unix.ENOENT) {
		return ErrGone
	}
	if err != nil {
		return r.classify("remove", name, err)
	}
	r.markStale(parent(name))
	return nil
}

// SyncDirOf brings the entries of the directory of name to disk. After an error nobody
// knows which are: stop.
func (r *Root) SyncDirOf(name string) error {
	if err := fpDirs.Inject(); err != nil {
		return fmt.Errorf("sync the directory of %q: %w", r.Path(name), err)
	}
	return r.syncDir(parent(name))
}

// Highest returns the highest number N of the names NAME.N… in the directory of name, where N has
// that many digits, or more once all of those are given, and ends the name or stands before a dot;
// 0: there is none. (A date is no number: NAME.20261123 is another program's.)
func (r *Root) Highest(name string, digits int) (uint64, error) {
	var top, long uint64
	err := r.numbered(name, digits, func(_, num string, n uint64) error {
		if len(num) == digits {
			top = max(top, n)
		} else {
			long = max(long, n)
		}
		return nil
	})
	if len(strconv.FormatUint(top+1, 10)) > digits {
		return max(top, long), err
	}
	return top, err
}

// Temp is a file without a name, in the directory where it is to get one: when the process
// dies before that, it is gone.
type Temp struct {
	*File
	root *Root
	name string
	dir  int
	part string // its name where the file system has no files without one
}

// partSuffix names a Temp on file systems without O_TMPFILE.
const partSuffix = ".part"

// Temp makes an empty file that is to be called name. The caller must call Close.
func (r *Root) Temp(name string) (*Temp, error) {
	if err := CheckName(r.dir, name); err != nil {
		return nil, err
	}
	dir, base, err := r.parentOf(name, unix.O_PATH)
	if err != nil {
		return nil, r.classify("make", name, err)
	}
	t := &Temp{root: r, name: name, dir: dir}
	fd := -1
	if !r.o.NoTmpfile {
		fd, err = unix.Openat(dir, ".", unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, r.o.FileMode)
	}
	if r.o.NoTmpfile || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EISDIR) || errors.Is(err, unix.EINVAL) {
		t.part = base + partSuffix
		if fd, err = t.openPart(); errors.Is(err, unix.EEXIST) { // left by a process that died
			_ = unix.Unlinkat(dir, t.part, 0)
			fd, err = t.openPart()
		}
	}
	if err == nil {
		t.File, err = r.newFile(fd, name)
	}
	if err != nil {
		unix.Close(dir)
		return nil, r.classify("make", name, err)
	}
	return t, nil
}

func (t *Temp) openPart() (int, error) {
	return unix.Openat(t.dir, t.part, unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_RDWR|unix.O_CLOEXEC, t.root.o.FileMode)
}

// Write appends p.
func (t *Temp) Write(p []byte) (int, error) {
	for done := 0; done < len(p); {
		n, err := unix.Write(t.fd, p[done:])
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return done, fmt.Errorf("write %q: %w", t.path, err)
		}
		done += n
	}
	return len(p), nil
}

// Imitate gives it the owner, the mode and the times of f.
func (t *Temp) Imitate(f *File) error {
	var st unix.Stat_t
	err := unix.Fstat(f.fd, &st)
	if err == nil {
		err = unix.Fchown(t.fd, int(st.Uid), int(st.Gid))
	}
	if err == nil {
		err = unix.Fchmod(t.fd, st.Mode&0o7777) // after the owner, which takes setuid bits away
	}
	if err == nil {
		times := []unix.Timespec{st.Atim, st.Mtim}
		err = unix.UtimesNanoAt(unix.AT_FDCWD, t.proc(), times, 0)
	}
	if err != nil {
		return fmt.Errorf("give %q the owner, mode and times of %q: %w", t.path, f.path, err)
	}
	return nil
}

// proc is the open file as a path, see proc(5).
func (t *Temp) proc() string { return fmt.Sprintf("/proc/self/fd/%d", t.fd) }

// Link gives it its name. unix.EEXIST: the name is taken. It is durable after SyncDirOf.
func (t *Temp) Link() error {
	t.root.names.Lock()
	defer t.root.names.Unlock()
	base := baseOf(t.name)
	var err error
	if t.part != "" {
		if err = renameNew(t.dir, t.part, base); err == nil {
			t.part = ""
		}
	} else {
		err = unix.Linkat(unix.AT_FDCWD, t.proc(), t.dir, base, unix.AT_SYMLINK_FOLLOW)
	}
	if err != nil {
		return fmt.Errorf("name output file %q: %w", t.path, err)
	}
	return nil
}

// Close gives everything back; a file that got no name is gone.
func (t *Temp) Close() error {
	var err error
	if t.part != "" {
		err = unix.Unlinkat(t.dir, t.part, 0)
	}
	return errors.Join(err, t.File.Close(), unix.Close(t.dir))
}
