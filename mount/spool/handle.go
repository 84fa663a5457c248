package spool

import (
	"fmt"
	"os"
	"slices"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// OpenMode says who writes to the spool file for a handle, and whose lines these are.
type OpenMode uint8

// Modes of a handle.
const (
	PerWrite OpenMode = iota // the daemon writes and notes each write; the handle's lines are its own
	Shared                   // the daemon writes; the lines are those of all handles of the file
	Kernel                   // the kernel writes (FUSE passthrough), unseen; the lines are those of all handles of the file
)

// Handle is one open(2) of a file for writing. Handles of one file are either all
// PerWrite or all of the two other modes; nothing breaks when that changes while some are
// open, but lines of the two kinds may then meet as those of different writers do.
type Handle struct {
	*File
	Writer uint64
	Path   string // as it was opened
	PathID uint32
	mode   OpenMode
	by     Meta        // who opened it
	wrote  atomic.Bool // since the last Flush
	ever   atomic.Bool
}

// Meta is who asks for something: a write, an open.
type Meta struct {
	Unique        uint64
	PID, UID, GID uint32
	Time          int64
}

// opener is whose bytes the kernel's are.
type opener struct {
	path          uint32
	pid, uid, gid uint32
	flags         uint32 // of the Opened note; 0: the kernel does not write
}

// Mode is how the handle was opened.
func (h *Handle) Mode() OpenMode { return h.mode }

// OpenHandle makes a handle of f for writing, opened as path by m. For Shared and Kernel
// it has to be called before the program has its descriptor: who may write from here on
// is noted, with the size until which the bytes are others'. A ring without a place makes
// nobody wait: the note is owed.
func (s *Store) OpenHandle(f *File, path string, mode OpenMode, m *Meta) (*Handle, error) {
	h, err := s.newHandle(f, path, mode, m)
	if err != nil {
		return nil, err
	}
	if mode == PerWrite {
		h.Writer, err = s.takeWriter()
		if err != nil {
			s.paths.release(h.PathID)
			return nil, err
		}
		return h, nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	resumed := f.takeBack(mode)
	if f.shared == 0 {
		if f.shared, err = s.takeWriter(); err != nil {
			s.paths.release(h.PathID)
			return nil, err
		}
	}
	h.Writer = f.shared
	f.openers = append(f.openers, h)
	if mode == Kernel {
		f.addKernel()
	}
	if resumed { // no note tells of what the kernel wrote before
		f.told = 0
	}
	f.owe(f.openNote()...)
	return h, nil
}

// RestoreHandle makes a handle again that an earlier process had made, with its writer id,
// for a worker that takes a connection over. It notes nothing, and has to be called before
// Begin.
func (s *Store) RestoreHandle(f *File, path string, mode OpenMode, writer uint64, m *Meta) (*Handle, error) {
	h, err := s.newHandle(f, path, mode, m)
	if err != nil {
		return nil, err
	}
	h.Writer = writer
	h.wrote.Store(true)
	h.ever.Store(true)
	s.sawWriter(writer)
	if mode == PerWrite {
		return h, nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.shared = writer
	at, _ := slices.BinarySearchFunc(f.openers, m.Time, func(o *Handle, t int64) int {
		if o.by.Time <= t {
			return -1
		}
		return 1
	})
	f.openers = slices.Insert(f.openers, at, h)
	if mode == Kernel {
		f.addKernel()
	}
	f.told = 0 // nobody knows what the last note said
	f.noted, _ = f.opener()
	s.watch.opened(f, s.paths.name(f.noted.path), f.noted.pid)
	return h, nil
}

func (s *Store) newHandle(f *File, path string, mode OpenMode, m *Meta) (*Handle, error) {
	id, err := s.paths.acquire(path)
	if err != nil {
		return nil, err
	}
	return &Handle{File: f, Path: path, PathID: id, mode: mode, by: *m}, nil
}

func (s *Store) takeWriter() (uint64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	w, err := s.writers.take()
	if err == nil {
		s.newest.Store(w)
	}
	return w, err
}

func (s *Store) sawWriter(w uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.newest.Store(max(s.newest.Load(), w))
}

// OpenMode reports whether file n has handles that share their lines, which are those that
// the kernel may serve.
func (s *Store) OpenMode(n Number) bool {
	s.mu.Lock()
	f := s.files[n]
	s.mu.Unlock()
	if f == nil {
		return false
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.shared != 0
}

// KernelWriter reports whether the kernel writes to file n for somebody, of this connection
// or an orphan, and who is to be noted for that: an Opened note, empty for an orphan.
func (s *Store) KernelWriter(n Number) (Entry, bool) {
	s.mu.Lock()
	f := s.files[n]
	s.mu.Unlock()
	if f == nil {
		return Entry{}, false
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	o, by := f.opener()
	if by == nil {
		return Entry{}, f.kernel.Load() > 0
	}
	e := f.openedNote(o, by)
	e.Path = s.paths.name(o.path)
	return e, true
}

// addKernel counts one more handle through which the kernel writes, with f.mu held.
func (f *File) addKernel() {
	if f.kernel.Load() == 0 {
		f.told = f.size.Load()
	}
	if f.kernel.Add(1) == 1 {
		f.s.watch.add(f)
	}
}

// opener is who is noted for what the kernel writes, and the handle of that: the newest
// that the kernel serves. (What the daemon writes for others has notes of its own.) The path
// is that of the oldest such handle: a program goes on under the path that it opened, though
// somebody else opens the file by the name that it was given since. It needs f.mu.
func (f *File) opener() (o opener, by *Handle) {
	if f.kernel.Load() == 0 {
		return o, nil
	}
	for _, h := range f.openers {
		if h.mode != Kernel {
			continue
		}
		if by == nil {
			o.flags, o.path = FlagKernel, h.PathID
		} else if h.by.PID != by.by.PID {
			o.flags |= FlagSeveral
		}
		by = h
		o.pid, o.uid, o.gid = h.by.PID, h.by.UID, h.by.GID
	}
	return o, by
}

// openNote is the note of who writes from now on, nothing if that is known. It needs f.mu.
func (f *File) openNote() []Entry {
	o, by := f.opener()
	if o == f.noted || by == nil {
		return nil
	}
	f.noted, f.told = o, f.end()
	f.s.watch.opened(f, f.s.paths.name(o.path), o.pid)
	return []Entry{f.openedNote(o, by)}
}

// openedNote needs f.mu.
func (f *File) openedNote(o opener, by *Handle) Entry {
	return Entry{
		File: f.number, Writer: f.shared, Off: f.told, PathID: o.path, Kind: Opened, Flags: o.flags,
		PID: o.pid, UID: o.uid, GID: o.gid, Time: by.by.Time, Unique: by.by.Unique,
	}
}

// grownNote says that everything below size that no other note covers is the kernel's. It
// needs f.mu.
func (f *File) grownNote(size int64, flags uint32) Entry {
	return Entry{File: f.number, Writer: f.shared, Off: size, Kind: Grown, Flags: flags}
}

// noteGrown notes that. On ErrJournalFull nothing happened. It needs f.mu.
func (f *File) noteGrown(size int64) error {
	e := f.grownNote(size, 0)
	if err := f.noteMark(&e); err != nil {
		return err
	}
	f.told = size
	return nil
}

// endShared is End for a handle that shares its lines. It needs f.mu.
func (h *Handle) endShared(m *Meta) {
	f := h.File
	f.openers = slices.DeleteFunc(f.openers, func(o *Handle) bool { return o == h })
	var notes []Entry
	if h.mode == Kernel && f.kernel.Load() == 1 {
		size := f.end()
		f.size.Store(size)
		f.kernel.Store(0)
		f.s.watch.remove(f, size)
		notes = append(notes, f.grownNote(size, FlagEnd))
		f.ended.noted, f.noted = f.noted, opener{}
	} else {
		if h.mode == Kernel {
			f.kernel.Add(-1)
		}
		notes = f.openNote()
	}
	if len(f.openers) == 0 {
		notes = append(notes, h.mark(Release, m))
		f.ended.writer, f.shared = f.shared, 0
	}
	f.owe(notes...)
	if len(f.owed) > 0 {
		f.owed[len(f.owed)-1].release = append(f.owed[len(f.owed)-1].release, h.PathID)
	} else {
		f.s.paths.release(h.PathID)
	}
}

// end is the length that the file has now. Only kernel writers can have moved it beyond
// what size says.
func (f *File) end() int64 {
	var st unix.Stat_t
	if err := unix.Fstat(f.fd, &st); err != nil {
		f.s.o.Logger.Error("stat spool file", "file", f.number.String(), "err", err)
		return f.size.Load()
	}
	return st.Size
}

// OpenBacking opens the spool file for FUSE_DEV_IOC_BACKING_OPEN, which wants it read-only.
func (f *File) OpenBacking() (*os.File, error) {
	fd, err := unix.Openat(int(f.s.spool.Fd()), f.number.String(), unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open spool file %s for the kernel: %w", f.number, err)
	}
	return os.NewFile(uintptr(fd), f.number.String()), nil
}
