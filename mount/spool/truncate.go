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
//  2. PunchAll: it is punched out but for what can be read back, the last bytes below its end
//     become a random Mark, and both are synced
//  3. the intent is committed: old size, new size, mark
//  4. ftruncate, and the new length is synced
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

// kept is what the mark of a truncation that is prepared stands over.
type kept struct {
	over            []byte
	at              int64
	prepared        bool
	preparedForSize int64
}

// highKept bounds what can be read back below the old end when no truncation follows, in bytes: it
// is synced with the mark, while all writers wait.
const highKept = 1 << 20

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
	c, err := f.punchAll(size)
	f.mu.Unlock() // whoever asks for it does not wait for the disk
	if err != nil || len(c.Mark) == 0 {
		return c, err
	}
	if err := s.synced(fpSyncCut, func() error { return unix.Fdatasync(f.fd) }); err != nil {
		return c, fmt.Errorf("sync spool file %s before its truncation: %w", n, err)
	}
	return c, nil
}

// punchAll needs f.punch.mu and f.mu.
func (f *File) punchAll(size int64) (Cut, error) {
	c := Cut{Old: f.Size(), New: size}
	if size >= c.Old {
		return c, nil
	}
	at := c.Old - min(markSize, c.Old-size)
	k := kept{at: at, prepared: true, preparedForSize: size}
	var err error
	f.changing(0, c.Old, func() {
		if err = f.punchBut(size, c.Old); err != nil {
			return
		}
		if k.over, err = f.readBack(at, c.Old); err != nil {
			return
		}
		f.kept = k
		c.Mark = newMark(c.Old - at)
		_, err = unix.Pwrite(f.fd, c.Mark, at)
	})
	if err != nil {
		f.unpunch()
		return c, fmt.Errorf("punch out spool file %s before its truncation, and mark it: %w", f.number, err)
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

// punchBut punches out what can be read back neither after a truncation from old to size nor, as far
// as highKept goes, without it. Those bytes stay where they are: readback can be any size, and memory
// is not.
func (f *File) punchBut(size, old int64) error {
	readback := f.s.o.Readback
	for _, hole := range [][2]int64{{0, size - readback}, {size, old - min(readback, highKept)}} {
		if hole[1] <= hole[0] {
			continue
		}
		if err := punchHole(f.fd, hole[0], hole[1]-hole[0]); err != nil && err != unix.EOPNOTSUPP {
			return err
		}
	}
	return nil
}

// readBack reads the bytes from from to to.
func (f *File) readBack(from, to int64) ([]byte, error) {
	b := make([]byte, to-from)
	for {
		n, err := unix.Pread(f.fd, b, from)
		if err != unix.EINTR {
			return b[:max(n, 0)], err
		}
	}
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
	k := f.kept
	f.kept = kept{}
	if len(k.over) == 0 {
		return
	}
	var err error
	f.changing(k.at, k.at+int64(len(k.over)), func() { _, err = unix.Pwrite(f.fd, k.over, k.at) })
	if err != nil {
		f.s.o.Logger.Warn("bytes before a truncation cannot be read back", "file", f.number.String(), "err", err)
	}
}

// Truncate sets the length of f to size, for a caller who keeps writers away and has told
// the capture (BeginTruncate, which calls PunchAll) before. A length that got less is on the disk
// when it returns nil; on ErrOldLength the truncation has to stay open.
func (f *File) Truncate(size int64) error {
	f.punch.mu.Lock()
	defer f.punch.mu.Unlock()
	f.mu.Lock()
	old := f.Size()
	err := f.truncate(old, size)
	f.mu.Unlock()
	if err != nil || size >= old {
		return err
	}
	if err := f.s.synced(fpSyncLength, func() error { return unix.Fdatasync(f.fd) }); err != nil {
		return fmt.Errorf("%w: spool file %s, %d instead of %d bytes: %w", ErrOldLength, f.number, old, size, err)
	}
	return nil
}

// truncate needs f.punch.mu and f.mu.
func (f *File) truncate(old, size int64) error {
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
	f.kept = kept{}
	if err := fpTruncated.Inject(); err != nil {
		return unix.EIO
	}
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
