package spool

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"ftfuse/internal/failpoint"
)

var (
	fpNoted     = failpoint.New("spool/noted")
	fpWritten   = failpoint.New("spool/written")
	fpOverwrite = failpoint.New("spool/overwrite") // bytes that are committed are about to be written over others
	fpTruncated = failpoint.New("spool/truncated")
)

// File is a spool file that is open or has entries that are not committed. Its methods
// are safe for concurrent use.
type File struct {
	s        *Store
	number   Number
	fd       int
	readOnly bool // fd is: an orphan's

	mu   sync.Mutex    // orders note and pwrite, so that at most one write of a file is in progress
	size atomic.Int64  // changed under mu; kernel writers move the end without it
	last atomic.Uint64 // sequence number of its newest entry
	busy int           // Reserve less Unreserve. Under mu
	owed []owedNote    // notes that the ring had no place for. Under mu
	owes atomic.Bool   // there are some. Changed under mu
	kept kept          // of a truncation that is prepared. Under mu

	kernel  atomic.Int32 // handles through which the kernel writes, and 1 for a writer that an earlier connection left. Changed under mu
	shared  uint64       // writer id of the handles that share their lines; 0: none. Under mu
	openers []*Handle    // those, oldest first. Under mu
	noted   opener       // what the newest Opened note says. Under mu
	ended   ended        // what it was when the last handle went. Under mu
	told    int64        // the newest size in a note. Under mu
	flushed int64        // size at the newest Flush note for the kernel's bytes. Under mu
	watch   watched

	// under Store.mu
	refs   int
	linked bool // has a name
	held   bool // an orphan of the last run, until Settled

	punch    fileholes
	captured atomic.Int64 // the bytes below are, or are about to be
	guard    guard
}

// Number names the file.
func (f *File) Number() Number { return f.number }

// Size is the file's length.
func (f *File) Size() int64 {
	if f.kernel.Load() == 0 {
		return f.size.Load()
	}
	return f.end()
}

// Acquire opens file n and keeps it until Release.
func (s *Store) Acquire(n Number) (*File, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f, err := s.get(n)
	if err != nil {
		return nil, err
	}
	f.refs++
	return f, nil
}

// get needs s.mu.
func (s *Store) get(n Number) (*File, error) {
	if f := s.files[n]; f != nil {
		return f, nil
	}
	mode := unix.O_RDWR
	_, readOnly := s.followed[n]
	if readOnly {
		mode = unix.O_RDONLY
	}
	fd, err := unix.Openat(int(s.spool.Fd()), n.String(), mode|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open spool file", Path: s.spool.Name() + "/" + n.String(), Err: bare(err)}
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("stat spool file %s: %w", n, err)
	}
	f := s.opened(n, fd, st.Size)
	f.readOnly = readOnly
	return f, nil
}

// opened makes a File of the open spool file n, whose descriptor it takes. It needs s.mu.
func (s *Store) opened(n Number, fd int, size int64) *File {
	f := &File{s: s, number: n, fd: fd, linked: !s.orphans[n], held: s.orphans[n]}
	f.size.Store(size)
	f.captured.Store(size)
	f.told = size
	s.files[n] = f
	return f
}

// Release gives up an Acquire.
func (f *File) Release() {
	f.s.mu.Lock()
	defer f.s.mu.Unlock()
	f.refs--
	f.s.retire(f)
}

// unlinked says that the file has lost its name: it goes when its last handle is
// closed and its last entry committed.
func (s *Store) unlinked(n Number) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f, err := s.get(n)
	if err != nil {
		s.o.Logger.Error("file that lost its name cannot be opened", "err", err)
		return
	}
	f.linked = false
	s.retire(f)
}

// retire closes a file that nobody uses and whose entries are all committed, and
// removes it if it has no name. It needs s.mu.
func (s *Store) retire(f *File) {
	if f.refs > 0 {
		return
	}
	if f.held || f.last.Load() > s.journal.done.Load() {
		s.leaving[f.number] = f
		return
	}
	delete(s.leaving, f.number)
	if f.linked && s.tidy.last(f) { // it holds the file until what is committed is punched out
		return
	}
	delete(s.files, f.number)
	s.watch.forget(f)
	f.close()
	if f.linked {
		return
	}
	delete(s.orphans, f.number)
	if err := unix.Unlinkat(int(s.spool.Fd()), f.number.String(), 0); err != nil && err != unix.ENOENT {
		s.o.Logger.Error("spool file not removed; the next start tries again", "file", f.number.String(), "err", err)
		return
	}
	s.gone = append(s.gone, f.number)
}

// Settled says that everything below pos of file n is in the queue and durable. At
// recovery it has to be called for each file that Files gives, and is what lets one
// without a name go; later it is enough to call Committed.
func (s *Store) Settled(n Number, pos int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.files[n] == nil && !s.orphans[n] {
		return
	}
	f, err := s.get(n)
	if err != nil {
		return
	}
	if pos >= f.Size() {
		f.held = false
	}
	s.retire(f)
}

// TakeGone returns the files that were removed since the last call, so that what is
// stored about them can go too.
func (s *Store) TakeGone() []Number {
	s.mu.Lock()
	defer s.mu.Unlock()
	g := s.gone
	s.gone = nil
	return g
}

// Reserve makes every TryWrite of the file fail with ErrBusy until Unreserve: something
// wants the file for itself. When it returns, no TryWrite is in progress.
func (f *File) Reserve() {
	f.mu.Lock()
	f.busy++
	f.mu.Unlock()
}

// Unreserve takes a Reserve back.
func (f *File) Unreserve() {
	f.mu.Lock()
	f.busy--
	f.mu.Unlock()
}

// TryWrite is Write for a caller who does not keep others away from the file: it
// returns ErrBusy, and nothing happened, while the file is reserved.
func (h *Handle) TryWrite(p []byte, off int64, appendEnd bool, m *Meta) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.busy > 0 {
		return 0, ErrBusy
	}
	return h.writeLocked(p, off, appendEnd, m)
}

// Write is one write request: it notes it, makes the one pwrite, corrects the note to
// what was written and returns that. With appendEnd the bytes go to the end of the
// file wherever off is. A hole between the end and off stays a hole.
//
// On ErrJournalFull and ErrOverwrite nothing happened. Another error is a bare
// errno, and not one byte was kept.
func (h *Handle) Write(p []byte, off int64, appendEnd bool, m *Meta) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.writeLocked(p, off, appendEnd, m)
}

func (h *Handle) writeLocked(p []byte, off int64, appendEnd bool, m *Meta) (int, error) {
	f := h.File
	if len(f.owed) > 0 {
		if err := f.noteOwed(); err != nil {
			return 0, err
		}
	}
	size := f.Size()
	if appendEnd {
		off = size
	} else if off < size {
		return 0, ErrOverwrite
	}
	j := f.s.journal
	if !j.fits(len(p), f.s.o.MaxUncaptured) {
		return 0, ErrJournalFull
	}
	e := Entry{
		File: f.number, Writer: h.Writer, Off: off, Len: uint32(len(p)), PathID: h.PathID, Kind: Write,
		PID: m.PID, UID: m.UID, GID: m.GID, Time: m.Time, Unique: m.Unique,
	}
	if f.kernel.Load() > 0 && size != f.told {
		if off == size {
			e.Flags = FlagJoined
		} else if err := f.noteGrown(size); err != nil { // a hole comes, which is nobody's
			return 0, err
		}
	}
	seq, err := j.note(&e)
	if err != nil {
		return 0, err
	}
	f.last.Store(seq)
	n, err := f.put(p, off, size)
	if n > 0 { // else nobody learns from the note what lies before it
		f.told = max(f.told, off+int64(n))
	}
	j.complete(seq, uint32(len(p)), uint32(n))
	if n == 0 {
		return 0, err
	}
	if !h.wrote.Load() {
		h.wrote.Store(true)
		h.ever.Store(true)
	}
	return n, nil
}

// put is the one pwrite of a noted write, with f.mu held. A failure leaves the size as
// it was: what a failed pwrite may have put behind the end is cut off.
func (f *File) put(p []byte, off, size int64) (int, error) {
	if err := fpNoted.Inject(); err != nil {
		return 0, unix.EIO
	}
	n, err := unix.Pwrite(f.fd, p, off)
	for err == unix.EINTR {
		n, err = unix.Pwrite(f.fd, p, off)
	}
	if n <= 0 {
		n = 0
		if err == nil && len(p) > 0 {
			err = unix.EIO
		}
		f.cutFailed(size)
	} else {
		f.size.Store(off + int64(n))
	}
	if fpErr := fpWritten.Inject(); fpErr != nil && err == nil {
		return n, nil
	}
	return n, err
}

// cutFailed makes sure that a failed write left nothing behind the end.
func (f *File) cutFailed(size int64) {
	var st unix.Stat_t
	if err := unix.Fstat(f.fd, &st); err == nil && st.Size <= size {
		return
	}
	if err := unix.Ftruncate(f.fd, size); err != nil {
		f.s.o.Logger.Error("a failed write may have left bytes", "file", f.number.String(), "err", err)
	}
}

// Overwrite writes over bytes that the file has, and past its end, after the capture
// has committed them. It makes no note. The file gets as long as its position then is, also
// where the bytes cannot be written: ErrShort where not even that can be done.
func (h *Handle) Overwrite(p []byte, off int64) (int, error) {
	f := h.File
	h.wrote.Store(true)
	h.ever.Store(true)
	f.mu.Lock()
	defer f.mu.Unlock()
	n, err := 0, error(unix.EIO)
	if fpOverwrite.Inject() == nil {
		f.changing(off, off+int64(len(p)), func() { n, err = unix.Pwrite(f.fd, p, off) })
	}
	n = max(n, 0)
	if n > 0 && off+int64(n) > f.size.Load() {
		f.size.Store(off + int64(n))
		f.told = max(f.told, off+int64(n))
	}
	if n < len(p) {
		err = errors.Join(err, f.lengthen(off+int64(len(p))))
	}
	return n, err
}

// Lengthen makes file n at least size bytes long, all of which are committed: an overwrite
// past the end was, and its worker killed before the pwrite. What is written to the file
// next must not begin below its position, where it would count as captured.
func (s *Store) Lengthen(n Number, size int64) error {
	f, err := s.Acquire(n)
	if err != nil {
		return err
	}
	defer f.Release()
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.lengthen(size)
}

// lengthen needs f.mu.
func (f *File) lengthen(size int64) error {
	if f.Size() >= size {
		return nil
	}
	if err := unix.Ftruncate(f.fd, size); err != nil {
		return fmt.Errorf("%w: file %s, %d bytes, position %d: %w", ErrShort, f.number, f.Size(), size, err)
	}
	f.size.Store(size)
	f.told = max(f.told, size)
	return nil
}

// Flush notes a close(2) of one of h's descriptors, if h wrote since the last one. On
// ErrJournalFull nothing happened.
func (h *Handle) Flush(m *Meta) error {
	if h.mode != Kernel && !h.wrote.Load() {
		return nil
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if err := h.noteOwed(); err != nil {
		return err
	}
	if h.mode == Kernel {
		size := h.end()
		if size == h.flushed && !h.wrote.Load() {
			return nil
		}
		if size != h.told {
			if err := h.noteGrown(size); err != nil {
				return err
			}
		}
		h.flushed = size
	}
	e := h.mark(Flush, m)
	if err := h.noteMark(&e); err != nil {
		return err
	}
	h.wrote.Store(false)
	return nil
}

// ReadAt reads from the file; what was punched out reads as zeros. It returns io.EOF
// at the end.
func (f *File) ReadAt(p []byte, off int64) (int, error) {
	for {
		n, err := unix.Pread(f.fd, p, off)
		switch {
		case err == unix.EINTR:
		case err != nil:
			return 0, err
		case n == 0 && len(p) > 0:
			return 0, io.EOF
		default:
			return n, nil
		}
	}
}

// ReadAt fills p from file n at off, for bytes that entries or the size have promised.
func (s *Store) ReadAt(n Number, p []byte, off int64) (int, error) {
	s.mu.Lock()
	f, err := s.get(n)
	if err == nil {
		f.refs++
	}
	s.mu.Unlock()
	if err != nil {
		return 0, err
	}
	defer f.Release()
	f.caught(off + int64(len(p)))
	total := 0
	for total < len(p) {
		n, err := f.ReadAt(p[total:], off+int64(total))
		total += n
		if err == io.EOF {
			return total, io.ErrUnexpectedEOF
		}
		if err != nil {
			return total, fmt.Errorf("read spool file %s at %d: %w", f.number, off+int64(total), err)
		}
	}
	return total, nil
}

// SeekData returns the offset of the first byte of file n at or after off that is not
// in a hole, or io.EOF if there is none.
func (s *Store) SeekData(n Number, off int64) (int64, error) {
	s.mu.Lock()
	f, err := s.get(n)
	if err == nil {
		f.refs++
	}
	s.mu.Unlock()
	if err != nil {
		return 0, err
	}
	defer f.Release()
	at, err := unix.Seek(f.fd, off, unix.SEEK_DATA)
	if err == unix.ENXIO {
		return 0, io.EOF
	}
	if err != nil {
		return 0, fmt.Errorf("seek data in spool file %s from %d: %w", f.number, off, err)
	}
	return at, nil
}

// Size is the length of file n, 0 if there is no such file.
func (s *Store) Size(n Number) int64 {
	s.mu.Lock()
	f := s.files[n]
	s.mu.Unlock()
	if f != nil {
		return f.Size()
	}
	var st unix.Stat_t
	if err := unix.Fstatat(int(s.spool.Fd()), n.String(), &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return 0
	}
	return st.Size
}

func (f *File) close() error { return unix.Close(f.fd) }
