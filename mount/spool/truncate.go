package spool

import (
	"crypto/rand"
	"fmt"

	"golang.org/x/sys/unix"
)

// Truncation. A writer that the kernel serves can outlive the daemon and append to the
// file right after a kill, so that the size alone does not tell a start whether a
// truncation had happened. So it is prepared:
//
//  1. the file is drained: everything in it is committed
//  2. PunchAll: it is punched out whole, the last bytes below its end become a random Mark,
//     and both are synced
//  3. the intent is committed: old size, new size, mark
//  4. ftruncate
//  5. the new position is committed
//
// A start that finds the intent looks for the mark below the old size: an ftruncate to
// less cuts it off, and nobody writes below the end of a file. (Where less than a mark is
// cut off the mark is shorter; its bytes are none that text has.)

// Cut is a truncation to be: what its intent has to remember.
type Cut struct {
	Old, New int64
	Mark     []byte // stands right below Old; nil unless the file shrinks
}

// markSize is the length of a mark, in bytes.
const markSize = 16

// kept is what could be read back of a file before it was punched out.
type kept struct {
	low, high       []byte
	lowAt, highAt   int64
	prepared        bool
	preparedForSize int64
}

// PunchAll prepares file n for its truncation to size, for a caller who keeps all writers
// away and has drained the file: see Cut.
func (s *Store) PunchAll(n Number, size int64) (Cut, error) {
	f, err := s.Acquire(n)
	if err != nil {
		return Cut{}, err
	}
	defer f.Release()
	f.punch.mu.Lock()
	defer f.punch.mu.Unlock()
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.punchAll(size)
}

// punchAll needs f.punch.mu and f.mu.
func (f *File) punchAll(size int64) (Cut, error) {
	c := Cut{Old: f.Size(), New: size}
	if size >= c.Old {
		return c, nil
	}
	k := kept{prepared: true, preparedForSize: size}
	var err error
	if k.low, k.lowAt, err = f.readTail(size); err != nil {
		return c, err
	}
	if k.high, k.highAt, err = f.readTail(c.Old); err != nil {
		return c, err
	}
	const block = 1 << 16
	f.changing(0, c.Old, func() { err = punchHole(f.fd, 0, (c.Old/block+1)*block) })
	if err != nil && err != unix.EOPNOTSUPP {
		return c, fmt.Errorf("punch out spool file %s before its truncation: %w", f.number, err)
	}
	f.kept = k
	c.Mark = newMark(min(markSize, c.Old-size))
	at := c.Old - int64(len(c.Mark))
	f.changing(at, c.Old, func() { _, err = unix.Pwrite(f.fd, c.Mark, at) })
	if err != nil {
		f.unpunch()
		return c, fmt.Errorf("mark spool file %s before its truncation: %w", f.number, err)
	}
	if err := f.s.synced(fpSyncCut, func() error { return unix.Fdatasync(f.fd) }); err != nil {
		return c, fmt.Errorf("sync spool file %s before its truncation: %w", f.number, err)
	}
	return c, nil
}

// newMark is n random bytes that do not occur in UTF-8.
func newMark(n int64) []byte {
	b := make([]byte, n)
	rand.Read(b)
	for i := range b {
		b[i] |= 0xf8
		if b[i] == 0xff && n > 1 {
			b[i] = 0xfe
		}
	}
	return b
}

// readTail reads what can be read back below size.
func (f *File) readTail(size int64) ([]byte, int64, error) {
	from := max(0, size-f.s.o.Readback)
	b := make([]byte, size-from)
	n, err := unix.Pread(f.fd, b, from)
	if err != nil {
		return nil, 0, fmt.Errorf("read spool file %s before its truncation: %w", f.number, err)
	}
	return b[:n], from, nil
}

// Unpunch takes a PunchAll back as far as that goes, when no truncation follows: the last
// bytes can be read again.
func (s *Store) Unpunch(n Number) {
	f, err := s.Acquire(n)
	if err != nil {
		return
	}
	defer f.Release()
	f.mu.Lock()
	defer f.mu.Unlock()
	f.unpunch()
}

func (f *File) unpunch() {
	if f.kept.prepared {
		f.putBack(f.kept.high, f.kept.highAt)
	}
	f.kept = kept{}
}

func (f *File) putBack(b []byte, at int64) {
	if len(b) == 0 {
		return
	}
	var err error
	f.changing(at, at+int64(len(b)), func() { _, err = unix.Pwrite(f.fd, b, at) })
	if err != nil {
		f.s.o.Logger.Warn("bytes before a truncation cannot be read back", "file", f.number.String(), "err", err)
	}
}

// Truncate sets the length of f to size, for a caller who keeps writers away and has told
// the capture (BeginTruncate, which calls PunchAll) before. Then the last bytes that could
// be read back are put back.
func (f *File) Truncate(size int64) error {
	f.punch.mu.Lock()
	defer f.punch.mu.Unlock()
	f.mu.Lock()
	defer f.mu.Unlock()
	old := f.Size()
	if size < old && (!f.kept.prepared || f.kept.preparedForSize != size) {
		if _, err := f.punchAll(size); err != nil {
			return bare(err)
		}
	}
	if err := unix.Ftruncate(f.fd, size); err != nil {
		f.unpunch()
		return err
	}
	f.size.Store(size)
	f.told = size
	f.s.watch.truncated(f, size)
	if size >= old {
		f.caught(size)
		return nil
	}
	f.cut(size)
	for i := range f.owed { // made before, they would be notes of the old file
		if e := &f.owed[i].Entry; e.Kind == Opened || e.Kind == Grown {
			e.Off = min(e.Off, size)
		}
	}
	f.s.tidy.restart(f, size)
	k := f.kept
	f.kept = kept{}
	if err := fpTruncated.Inject(); err != nil {
		return unix.EIO
	}
	f.putBack(k.low, k.lowAt)
	return nil
}

func punchHole(fd int, off, size int64) error {
	for {
		err := unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, size)
		if err != unix.EINTR {
			return err
		}
	}
}
