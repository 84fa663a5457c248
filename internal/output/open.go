package output

import (
	"errors"
	"fmt"
	"hash/fnv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

const resolve = unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS

// ID identifies a file for as long as its file system lives. Birth and Handle are 0 where
// the file system has none. (Birth alone does not do: ext4 gives the inode number of a
// removed file to the next one, and its clock ticks every few milliseconds; the handle
// has the inode's generation number.)
type ID struct {
	Dev, Ino uint64
	Birth    int64  // birth time, Unix nanoseconds
	Handle   uint64 // hash of the file handle, name_to_handle_at(2)
}

// IsZero reports whether no file is named.
func (id ID) IsZero() bool { return id == ID{} }

// String is device, inode, birth time and handle.
func (id ID) String() string {
	return fmt.Sprintf("%x:%d@%d/%x", id.Dev, id.Ino, id.Birth, id.Handle)
}

// Info is what Stat tells of a file.
type Info struct {
	ID    ID
	Size  int64
	Links uint32
}

// resolve opens name beneath r without following any link.
func (r *Root) resolve(name string, flags int, mode uint32) (int, error) {
	flags |= unix.O_CLOEXEC
	if r.o.NoOpenat2 {
		return r.walk(name, flags, mode)
	}
	for {
		fd, err := unix.Openat2(r.fd, name, &unix.OpenHow{Flags: uint64(flags), Mode: uint64(mode), Resolve: resolve})
		if err != unix.EAGAIN && err != unix.EINTR { // EAGAIN: a rename raced with the walk (openat2(2))
			return fd, err
		}
	}
}

// walk is resolve for kernels without openat2: one element after the other.
func (r *Root) walk(name string, flags int, mode uint32) (int, error) {
	dir := r.fd
	for {
		elem, rest, more := strings.Cut(name, "/")
		f, m := unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, uint32(0)
		if !more {
			f, m = flags|unix.O_NOFOLLOW, mode
		}
		fd, err := unix.Openat(dir, elem, f, m)
		if dir != r.fd {
			unix.Close(dir)
		}
		if err == nil && !more && flags&unix.O_PATH != 0 {
			err = notALink(fd)
		}
		if err != nil || !more {
			return fd, err
		}
		dir, name = fd, rest
	}
}

// notALink closes fd and fails where O_PATH|O_NOFOLLOW opened a link itself.
func notALink(fd int) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		unix.Close(fd)
		return err
	}
	if st.Mode&unix.S_IFMT == unix.S_IFLNK {
		unix.Close(fd)
		return unix.ELOOP
	}
	return nil
}

// classify turns errors that time does not heal into a RefusedError.
func (r *Root) classify(verb, name string, err error) error {
	reason := ""
	switch {
	case errors.Is(err, unix.ELOOP), errors.Is(err, unix.EXDEV): // a link; an escape
		reason = ReasonLink
	case errors.Is(err, unix.ENOTDIR):
		reason = ReasonNotDir
		if r.linkInTheWay(name) { // what the walk without openat2 gets
			reason = ReasonLink
		}
	case errors.Is(err, unix.EISDIR):
		reason = ReasonIsDir
	case errors.Is(err, unix.ENXIO), errors.Is(err, unix.ENODEV): // a FIFO without a reader, a socket
		reason = ReasonSpecial
	case errors.Is(err, unix.ENAMETOOLONG):
		reason = ReasonTooLong
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.EILSEQ): // a byte that this file system does not take
		reason = ReasonName
	default:
		return fmt.Errorf("%s output file %q: %w", verb, r.Path(name), err)
	}
	return &RefusedError{Dir: r.dir, Name: name, Reason: reason, Err: err}
}

func (r *Root) linkInTheWay(name string) bool {
	for i := range len(name) {
		if name[i] != '/' {
			continue
		}
		fd, err := r.resolve(name[:i], unix.O_PATH|unix.O_NOFOLLOW, 0)
		if err != nil {
			return errors.Is(err, unix.ELOOP)
		}
		unix.Close(fd)
	}
	return false
}

// openFlags: O_NONBLOCK so that a FIFO does not hold us; O_RDWR because a redo compares.
const openFlags = unix.O_RDWR | unix.O_NONBLOCK | unix.O_NOCTTY | unix.O_NOFOLLOW

// Open opens the file called name, and makes it and its directories where they are
// missing. The name is durable after the next SyncDirs.
func (r *Root) Open(name string) (*File, error) { return r.OpenAs(name, &Perm{}) }

// OpenAs is Open; what it makes is p's.
func (r *Root) OpenAs(name string, p *Perm) (*File, error) {
	if err := CheckName(r.dir, name); err != nil {
		return nil, err
	}
	f, err := r.openExisting(name)
	for try := 0; errors.Is(err, unix.ENOENT) && try < 8; try++ { // again when it is removed in between
		f, err = r.create(name, p)
	}
	if err != nil {
		return nil, r.classify("open", name, err)
	}
	if _, finish := p.file(r.o.FileMode); finish {
		if err := p.finishFile(f.fd, r.o.FileMode); err != nil {
			f.Close()
			return nil, fmt.Errorf("make output file %q: %w", r.Path(name), err)
		}
	}
	r.markStale(parent(name))
	return f, nil
}

func (r *Root) openExisting(name string) (*File, error) {
	fd, err := r.resolve(name, openFlags, 0)
	if err != nil {
		return nil, err
	}
	return r.newFile(fd, name)
}

func (r *Root) create(name string, p *Perm) (*File, error) {
	if dir := parent(name); dir != "" {
		if err := r.mkdirs(dir, p); err != nil {
			return nil, err
		}
	}
	mode, _ := p.file(r.o.FileMode)
	fd, err := r.resolve(name, openFlags|unix.O_CREAT, mode)
	if err != nil {
		return nil, err
	}
	return r.newFile(fd, name)
}

// mkdirs makes dir, relative, and its parents, where they are missing.
func (r *Root) mkdirs(dir string, p *Perm) error {
	fd, err := r.resolve(dir, unix.O_PATH|unix.O_DIRECTORY, 0)
	if errors.Is(err, unix.ENOENT) {
		fd, err = r.mkdir(dir, p)
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if _, finish := p.dir(r.o.DirMode); finish {
		if err := p.finishDir(fd, r.o.DirMode); err != nil {
			return fmt.Errorf("make directory %q: %w", r.Path(dir), err)
		}
	}
	return nil
}

// mkdir makes dir, and returns a descriptor of it.
func (r *Root) mkdir(dir string, p *Perm) (int, error) {
	at := r.fd
	if up := parent(dir); up != "" {
		err := r.mkdirs(up, p)
		if err == nil {
			at, err = r.resolve(up, unix.O_PATH|unix.O_DIRECTORY, 0)
		}
		if err != nil {
			return -1, err
		}
		defer unix.Close(at)
	}
	mode, _ := p.dir(r.o.DirMode)
	if err := unix.Mkdirat(at, dir[strings.LastIndexByte(dir, '/')+1:], mode); err != nil && !errors.Is(err, unix.EEXIST) {
		return -1, err
	}
	return r.resolve(dir, unix.O_PATH|unix.O_DIRECTORY, 0)
}

// newFile takes fd over and checks that it is a regular file.
func (r *Root) newFile(fd int, name string) (*File, error) {
	info, mode, err := statFd(fd)
	if err == nil && mode&unix.S_IFMT != unix.S_IFREG {
		err = unix.ENXIO
		if mode&unix.S_IFMT == unix.S_IFDIR {
			err = unix.EISDIR
		}
	}
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	return &File{fd: fd, id: info.ID, path: r.Path(name)}, nil
}

// statFd reads identity, size, links and mode.
func statFd(fd int) (Info, uint32, error) {
	var x unix.Statx_t
	const mask = unix.STATX_TYPE | unix.STATX_MODE | unix.STATX_NLINK | unix.STATX_INO | unix.STATX_SIZE | unix.STATX_BTIME
	for {
		err := unix.Statx(fd, "", unix.AT_EMPTY_PATH|unix.AT_STATX_SYNC_AS_STAT, mask, &x)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return Info{}, 0, err
		}
		break
	}
	info := Info{ID: ID{Dev: unix.Mkdev(x.Dev_major, x.Dev_minor), Ino: x.Ino}, Size: int64(x.Size), Links: x.Nlink}
	if x.Mask&unix.STATX_BTIME != 0 {
		info.ID.Birth = x.Btime.Sec*1e9 + int64(x.Btime.Nsec)
	}
	info.ID.Handle = handleOf(fd)
	return info, uint32(x.Mode), nil
}

// handleOf returns a hash of the file's handle, 0 where the file system has none.
func handleOf(fd int) uint64 {
	var h struct { // struct file_handle
		bytes uint32
		kind  int32
		data  [128]byte // MAX_HANDLE_SZ
	}
	h.bytes = uint32(len(h.data))
	var mount int32
	empty := [1]byte{}
	_, _, errno := unix.Syscall6(unix.SYS_NAME_TO_HANDLE_AT, uintptr(fd), uintptr(unsafe.Pointer(&empty[0])),
		uintptr(unsafe.Pointer(&h)), uintptr(unsafe.Pointer(&mount)), unix.AT_EMPTY_PATH, 0)
	if errno != 0 || h.bytes > uint32(len(h.data)) {
		return 0
	}
	sum := fnv.New64a()
	_, _ = sum.Write(h.data[:h.bytes])
	return max(sum.Sum64(), 1)
}

// Stat looks at the file called name without opening it for writing. A missing file is
// unix.ENOENT.
func (r *Root) Stat(name string) (Info, error) {
	if err := CheckName(r.dir, name); err != nil {
		return Info{}, err
	}
	fd, err := r.resolve(name, unix.O_PATH, 0)
	if err != nil {
		return Info{}, r.classify("look at", name, err)
	}
	defer unix.Close(fd)
	info, mode, err := statFd(fd)
	if err == nil && mode&unix.S_IFMT != unix.S_IFREG {
		err = unix.ENXIO
		if mode&unix.S_IFMT == unix.S_IFDIR {
			err = unix.EISDIR
		}
	}
	if err != nil {
		return Info{}, r.classify("look at", name, err)
	}
	return info, nil
}

// OpenID opens the file with that ID: under name, or under another name in the same
// directory, where a rotation put it. Otherwise the error is ErrGone. It makes nothing.
func (r *Root) OpenID(name string, id ID) (*File, error) {
	if err := CheckName(r.dir, name); err != nil {
		return nil, err
	}
	r.names.RLock()
	defer r.names.RUnlock()
	f, err := r.openExisting(name)
	if err == nil {
		if f.id == id {
			r.markStale(parent(name))
			return f, nil
		}
		f.Close()
	}
	return r.findID(name, id)
}

// findID looks through the directory of name.
func (r *Root) findID(name string, id ID) (*File, error) {
	dir := parent(name)
	at := "."
	if dir != "" {
		at = dir
	}
	fd, err := r.resolve(at, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		if c := r.classify("look for", name, err); errors.Is(err, unix.ENOENT) || errors.Is(c, ErrRefused) {
			return nil, ErrGone
		}
		return nil, fmt.Errorf("look for a rotated file in %q: %w", r.Path(dir), err)
	}
	defer unix.Close(fd)
	found, err := scanDir(fd, id.Ino)
	if err != nil {
		return nil, fmt.Errorf("look for a rotated file in %q: %w", r.Path(dir), err)
	}
	for _, base := range found {
		full := base
		if dir != "" {
			full = dir + "/" + base
		}
		f, err := r.openExisting(full)
		if err != nil {
			continue // gone again, or not ours to write
		}
		if f.id == id {
			r.markStale(dir)
			return f, nil
		}
		f.Close()
	}
	return nil, ErrGone
}

// scanDir returns the names in the open directory that have that inode number.
func scanDir(fd int, ino uint64) ([]string, error) {
	var found []string
	buf := make([]byte, 32<<10)
	for {
		n, err := unix.Getdents(fd, buf)
		if err == unix.EINTR {
			continue
		}
		if err != nil || n == 0 {
			return found, err
		}
		for p := buf[:n]; len(p) > 0; {
			// struct linux_dirent64: ino u64, off s64, reclen u16, type u8, name (getdents(2))
			reclen := int(p[16]) | int(p[17])<<8
			this := uint64(0)
			for i := 7; i >= 0; i-- {
				this = this<<8 | uint64(p[i])
			}
			if this == ino {
				base, _, _ := strings.Cut(string(p[19:reclen]), "\x00")
				found = append(found, base)
			}
			p = p[reclen:]
		}
	}
}
