// Package output opens the files that records are written to, below one directory and
// never outside it, and keeps a bounded number of them open.
//
// A name comes from the wire and is never trusted: every element of it is resolved
// beneath the Root without following a link, and what is opened must be a regular file.
// What can never be a file there is refused with a *RefusedError (a dead letter); what
// may work later, such as a full disk, is any other error.
//
// A file is identified by its ID (device, inode, birth time), not by its name: a file
// that took the name, or the inode number, of another one is another file.
package output

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"ftfuse/internal/flock"
)

// Defaults of Options.
const (
	DefaultFileMode = 0o644
	DefaultDirMode  = 0o755
)

// Limits of names (limits.h, and what a path may be before the kernel looks at it).
const (
	maxName = 255
	maxPath = 4095
)

// Errors of this package.
var (
	// ErrLocked is returned by OpenRoot for a directory that another process writes to.
	ErrLocked = errors.New("output directory is in use by another process")
	// ErrRefused is in the chain of every RefusedError.
	ErrRefused = errors.New("refused")
	// ErrGone is returned where a file that is looked for is not in its directory.
	ErrGone = errors.New("the file is not in its directory any more")
)

// Reasons of a RefusedError, as they are counted.
const (
	ReasonName    = "bad-name"      // empty, "..", ".", an empty element, NUL
	ReasonTooLong = "name-too-long" // an element or the whole
	ReasonLink    = "symlink"       // a link in the way, or in the file's place
	ReasonNotDir  = "not-a-directory"
	ReasonIsDir   = "is-a-directory"
	ReasonSpecial = "special-file"
	ReasonRotated = "rotated-file" // of this or another name, that was rotated or compressed
)

// RefusedError says that a name can never be written below its root as things are.
type RefusedError struct {
	Dir, Name string
	Reason    string
	Err       error // of the kernel, or nil
}

func (e *RefusedError) Error() string {
	s := fmt.Sprintf("refuse output file %q below %q: %s", e.Name, e.Dir, e.Reason)
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

// Is makes every RefusedError an ErrRefused.
func (e *RefusedError) Is(target error) bool { return target == ErrRefused }

// Options of OpenRoot. A zero field takes its default.
type Options struct {
	FileMode, DirMode uint32
	Perm              Perm // of the directory itself, and of its parents, where they are made
	NoOpenat2         bool // walk element by element, as on kernels before 5.6
	NoLock            bool // do not refuse a second owner
	NoTmpfile         bool // as on file systems without O_TMPFILE
}

// Root is one output directory. It is safe for concurrent use.
type Root struct {
	dir string
	fd  int
	dev uint64
	o   Options

	names sync.RWMutex // held to write while we rename: who looks for a file by its ID must not miss it

	mu    sync.Mutex
	freed bool                // see Unlock
	whole bool                // see NeedWhole
	stale map[string]struct{} // directories, relative, whose entries are not known to be on disk
}

// OpenRoot makes dir where it is missing, opens it and locks it (flock on the directory)
// against a second process.
func OpenRoot(dir string, o Options) (*Root, error) {
	if o.FileMode == 0 {
		o.FileMode = DefaultFileMode
	}
	if o.DirMode == 0 {
		o.DirMode = DefaultDirMode
	}
	if err := makeDirs(dir, o.DirMode, &o.Perm); err != nil {
		return nil, err
	}
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open output directory %q: %w", dir, err)
	}
	info, _, err := statFd(fd)
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("look at output directory %q: %w", dir, err)
	}
	r := &Root{dir: dir, fd: fd, dev: info.ID.Dev, o: o, stale: map[string]struct{}{}}
	if err := r.Lock(); err != nil {
		unix.Close(fd)
		return nil, err
	}
	if !r.o.NoOpenat2 {
		fd, err := unix.Openat2(r.fd, ".", &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: resolve})
		if err == nil {
			unix.Close(fd)
		}
		r.o.NoOpenat2 = err != nil // before 5.6, or forbidden by a seccomp filter
	}
	return r, nil
}

// Lock takes the lock that Unlock gave up. ErrLocked: another process has it.
func (r *Root) Lock() error {
	if r.o.NoLock {
		return nil
	}
	err := flock.Lock(r.fd)
	switch {
	case errors.Is(err, flock.ErrHeld):
		return fmt.Errorf("%w: %q; give each process a dir of its own", ErrLocked, r.dir)
	case err != nil:
		return fmt.Errorf("lock output directory %q: %w", r.dir, err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.freed = false
	return nil
}

// Unlock lets another process have the directory. r can still be used, but Revive, which
// would lock what has the name, does nothing.
func (r *Root) Unlock() error {
	r.mu.Lock()
	r.freed = true
	r.mu.Unlock()
	if err := flock.Unlock(r.fd); err != nil {
		return fmt.Errorf("unlock output directory %q: %w", r.dir, err)
	}
	return nil
}

// makeDirs makes dir and its parents and syncs what it made.
func makeDirs(dir string, def uint32, p *Perm) error {
	var missing []string
	for d := dir; ; d = filepath.Dir(d) {
		if _, err := os.Stat(d); err == nil || d == filepath.Dir(d) {
			break
		}
		missing = append(missing, d)
	}
	if len(missing) == 0 {
		return nil
	}
	mode, finish := p.dir(def)
	if err := os.MkdirAll(dir, os.FileMode(mode&0o777)); err != nil {
		return fmt.Errorf("make output directory: %w", err)
	}
	for _, d := range missing {
		if finish {
			if err := p.give(d, p.DirMode, def); err != nil {
				return fmt.Errorf("make output directory %q: %w", d, err)
			}
		}
		if err := syncDir(filepath.Dir(d)); err != nil {
			return err
		}
	}
	return nil
}

func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("sync directory: %w", err)
	}
	defer f.Close()
	if err := f.Sync(); err != nil {
		return fmt.Errorf("sync directory %q: %w", dir, err)
	}
	return nil
}

// Dir returns the directory as it was given.
func (r *Root) Dir() string { return r.dir }

// Path returns where name is, for messages.
func (r *Root) Path(name string) string { return r.dir + "/" + name }

// Close gives up the lock. Files that were opened stay open.
func (r *Root) Close() error {
	if !r.o.NoLock {
		_ = flock.Unlock(r.fd) // a child that is being started may have it, too
	}
	if err := unix.Close(r.fd); err != nil {
		return fmt.Errorf("close output directory %q: %w", r.dir, err)
	}
	return nil
}

// CheckName says whether name can be a file below any root, without looking at a disk.
func CheckName(dir, name string) error {
	refuse := func(reason string) error { return &RefusedError{Dir: dir, Name: name, Reason: reason} }
	if len(name) > maxPath {
		return &RefusedError{Dir: dir, Name: name[:64] + "…", Reason: ReasonTooLong}
	}
	if strings.IndexByte(name, 0) >= 0 {
		return refuse(ReasonName)
	}
	for elem := range strings.SplitSeq(name, "/") {
		switch {
		case elem == "", elem == ".", elem == "..":
			return refuse(ReasonName)
		case len(elem) > maxName:
			return refuse(ReasonTooLong)
		}
	}
	return nil
}

// SyncDirs makes the names of all files that were opened or made below r durable. It
// syncs each directory once, however many files were made in it.
func (r *Root) SyncDirs() error {
	r.mu.Lock()
	stale := r.stale
	r.stale = map[string]struct{}{}
	r.mu.Unlock()
	if err := fpDirs.Inject(); err != nil && len(stale) > 0 {
		return fmt.Errorf("sync output directory %q: %w", r.dir, err)
	}
	for dir := range stale {
		if err := r.syncDir(dir); err != nil {
			return err
		}
	}
	return nil
}

func (r *Root) syncDir(dir string) error {
	fd := r.fd
	if dir != "" {
		var err error
		if fd, err = r.resolve(dir, unix.O_RDONLY|unix.O_DIRECTORY, 0); err != nil {
			if errors.Is(err, unix.ENOENT) || errors.Is(err, ErrRefused) {
				return nil // it was removed or replaced: there is no name left to keep
			}
			return fmt.Errorf("sync output directory %q: %w", r.Path(dir), err)
		}
		defer unix.Close(fd)
	}
	if err := unix.Fsync(fd); err != nil {
		return fmt.Errorf("sync output directory %q: %w", r.Path(dir), err)
	}
	return nil
}

// markStale notes that dir, relative, has an entry that may not be on disk, as may the
// directories above it.
func (r *Root) markStale(dir string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for {
		if _, ok := r.stale[dir]; ok {
			return
		}
		r.stale[dir] = struct{}{}
		if dir == "" {
			return
		}
		dir = parent(dir)
	}
}

func parent(name string) string {
	if i := strings.LastIndexByte(name, '/'); i >= 0 {
		return name[:i]
	}
	return ""
}

// Revive looks whether dir is still the directory that r has open. When it was moved
// away or removed, r goes on with the directory that has the name now, made where there
// is none. Files that are open stay what they are.
func (r *Root) Revive() error {
	r.mu.Lock()
	freed := r.freed
	r.mu.Unlock()
	if freed {
		return nil
	}
	var now, then unix.Stat_t
	if err := unix.Fstat(r.fd, &then); err != nil {
		return fmt.Errorf("look at output directory %q: %w", r.dir, err)
	}
	if err := unix.Stat(r.dir, &now); err == nil && now.Dev == then.Dev && now.Ino == then.Ino {
		return nil
	}
	fresh, err := OpenRoot(r.dir, r.o)
	if err != nil {
		return err
	}
	defer unix.Close(fresh.fd) // the lock, of the open directory, stays: r.fd names that then
	if err := unix.Dup3(fresh.fd, r.fd, unix.O_CLOEXEC); err != nil {
		return fmt.Errorf("reopen output directory %q: %w", r.dir, err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.dev = fresh.dev
	return nil
}
