package offline

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"ftfuse/mount/capture"
	"ftfuse/queue"
)

// keptHead is how much of a file's beginning is never punched out: it is known by it.
const keptHead = 4096

// turn is how much of one file is taken before others have their turn.
const turn = 64 << 20

// take takes in what a file has, and reports whether there is more at once. When it returns
// nil and false, all of it is taken. path is where it stands now.
func (t *Taker) take(ctx context.Context, f *os.File, path string) (k *known, more bool, err error) {
	st, err := statOf(int(f.Fd()))
	if err != nil || !st.regular() || t.inodes[inode{st.ino, st.birth}] == nil && st.size == 0 {
		return nil, false, err
	}
	if k := t.inodes[inode{st.ino, st.birth}]; (k == nil || k.s.Pos != st.size) && t.o.Room != nil && !t.o.Room() {
		return nil, false, ErrNoRoom // nor does anything else wait for a queue that is full
	}
	if k, err = t.identify(ctx, f, &st, path); err != nil {
		return nil, false, err
	}
	for took := int64(0); k.s.Pos < st.size; {
		if took >= turn {
			return k, true, nil
		}
		if t.o.Room != nil && !t.o.Room() {
			return k, false, ErrNoRoom
		}
		n, err := t.feed(ctx, f, k, &st)
		if err == nil && n > 0 {
			took += n
			err = t.punch(f, k, &st)
		}
		if errors.Is(err, errAnew) {
			return k, true, nil // identify decides
		}
		if err != nil || n == 0 {
			k.size = st.size
			return k, false, err
		}
		if k.s.Pos >= st.size {
			if st, err = statOf(int(f.Fd())); err != nil {
				return k, false, err
			}
		}
	}
	k.size = st.size
	return k, false, nil
}

// feed takes the next bytes of a file in; none where nothing but a hole is left, which may
// be room that its writer has reserved, or a hole comes next that somebody may yet fill.
func (t *Taker) feed(ctx context.Context, f *os.File, k *known, st *stat) (int64, error) {
	if t.buf == nil {
		t.buf = make([]byte, t.o.Chunk)
	}
	x := t.extent(f, k.s.Pos, st.size)
	free := func() {}
	filling := false
	if x.from > k.s.Pos || x.gap {
		if filling, free = t.filling(f, k); filling && x.from > k.s.Pos {
			return 0, nil // what lies between may be written yet
		}
		if !filling {
			x = t.extent(f, k.s.Pos, st.size) // what was written until the last writer closed it
		}
	}
	data, err := x.read(f, t.buf, filling)
	free()
	if err != nil || len(data) == 0 {
		return 0, err
	}
	if err := unchanged(f, k); err != nil {
		return 0, err
	}
	from, n := x.from, len(data)
	if err := t.o.Capture.Feed(ctx, k.id, from, data, true, capture.Fed{UID: st.uid, GID: st.gid, Time: st.mtime}); err != nil {
		return 0, refused(err)
	}
	if have := len(k.s.Begin); k.s.Pos < capture.MaxBegin && int64(have) == k.s.Pos && from == k.s.Pos {
		k.s.Begin = append(k.s.Begin, data[:min(n, capture.MaxBegin-have)]...)
	}
	k.s.Pos, k.s.Boot, k.ended = from+int64(n), thisBoot, -1
	t.bytes.Add(uint64(n))
	return int64(n), fpTaken.Inject()
}

// extent is the next data of a file.
type extent struct {
	from, end int64
	gap       bool // a hole follows
}

// extent returns the first data at or behind pos, at most a chunk of it.
func (t *Taker) extent(f *os.File, pos, size int64) extent {
	fd := int(f.Fd())
	x := extent{from: pos}
	switch from, err := unix.Seek(fd, pos, unix.SEEK_DATA); err {
	case nil:
		x.from = from
	case unix.ENXIO:
		return extent{from: pos, end: pos}
	default: // not known here
	}
	x.end = min(size, x.from+int64(len(t.buf)))
	if hole, err := unix.Seek(fd, x.from, unix.SEEK_HOLE); err == nil && hole > x.from && hole <= x.end {
		x.end, x.gap = hole, hole < size
	}
	return x
}

// read returns what the extent has; nothing where it was truncated meanwhile. Data begins and
// ends with a block: zeros in front of a hole may be the rest of a block that its writer has
// not come to. They are left out while somebody is filling the file, and where nothing but
// room that was reserved follows.
func (x extent) read(f *os.File, buf []byte, filling bool) ([]byte, error) {
	if x.end <= x.from {
		return nil, nil
	}
	n, err := f.ReadAt(buf[:x.end-x.from], x.from)
	if n == 0 && err != io.EOF {
		return nil, &fileError{err}
	}
	data := buf[:n]
	if !x.gap {
		return data, nil
	}
	if _, err := unix.Seek(int(f.Fd()), x.end, unix.SEEK_DATA); filling || err == unix.ENXIO {
		data = bytes.TrimRight(data, "\x00")
	}
	return data, nil
}

// filling reports whether somebody may be writing to f. If not, nobody opens it for that
// until free.
func (t *Taker) filling(f *os.File, k *known) (filling bool, free func()) {
	if has, err := unix.FcntlInt(f.Fd(), unix.F_GETLEASE, 0); err == nil && has == unix.F_RDLCK {
		return false, func() {} // it is the caller's
	}
	busy, err := written(f)
	if err != nil {
		t.once("filling", "of a file below the mount point that has holes nothing behind one is taken: the file system tells nobody whether a file is open for writing", "path", k.at, "err", err)
	}
	if busy || err != nil {
		return true, func() {}
	}
	return false, func() { release(f) }
}

// errAnew is of a file that was truncated or written anew while it is taken.
var errAnew = errors.New("truncated or written anew")

// unchanged returns errAnew if f is not what was taken of it any more. Whatever was read
// before is of the file that k knows.
func unchanged(f *os.File, k *known) error {
	st, err := statOf(int(f.Fd()))
	if err != nil {
		return err
	}
	head, err := Head(f)
	if err != nil {
		return err
	}
	if Judge(&k.s, st.dev, st.size, head, thisBoot) != Same {
		return errAnew
	}
	return nil
}

// punch gives the space of what is committed back, but for the beginning and the block at
// the position. A file with several names is somebody else's, too, and one that somebody has
// open may be written anew at any moment: what would be punched out then is not what was
// taken.
func (t *Taker) punch(f *os.File, k *known, st *stat) error {
	upto := k.s.Pos / keptHead * keptHead
	if t.o.Keep || st.links != 1 || upto <= k.punched {
		return nil
	}
	if busy, err := written(f); busy || err != nil {
		return nil // finish says where nobody can know who writes
	}
	release(f) // else it could not be opened for writing
	free, err := alone(f)
	if errors.Is(err, unix.EAGAIN) {
		return nil
	}
	if err == nil {
		err = t.punchAlone(f, k, st, upto)
		if ferr := free(); ferr != nil {
			return errors.Join(err, &fileError{ferr})
		}
	}
	var refused *os.PathError
	if errors.As(err, &refused) {
		t.once("punch", "space of files that were taken in is not given back before they are removed", "path", k.at, "err", err)
		return nil
	}
	return err
}

// punchAlone is the end of punch, while nobody else can open the file.
func (t *Taker) punchAlone(f *os.File, k *known, st *stat, upto int64) error {
	if err := unchanged(f, k); err != nil {
		return err
	}
	if err := fpPunching.Inject(); err != nil {
		return err
	}
	fd := int(f.Fd())
	if err := unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, k.punched, upto-k.punched); err != nil {
		return &os.PathError{Op: "punch", Path: k.at, Err: err}
	}
	k.punched = upto
	if after, err := statOf(fd); err == nil && after.size == st.size {
		times := []unix.Timespec{{Nsec: unix.UTIME_OMIT}, unix.NsecToTimespec(st.mtime)}
		_ = unix.UtimesNanoAt(unix.AT_FDCWD, procPath(f), times, 0)
	}
	return fpPunched.Inject()
}

// alone has f opened for writing, and by nobody else, until free, after which it can be read
// alone, as before. Who opens the file meanwhile waits (F_WRLCK of F_SETLEASE in fcntl(2),
// which is for the only descriptor of a file). The error is an *os.PathError, of
// EAGAIN where somebody has it open.
func alone(f *os.File) (free func() error, err error) {
	reopen := func(flags int) error {
		again, err := os.OpenFile(procPath(f), flags, 0)
		if err != nil {
			return err
		}
		defer again.Close()
		if err := unix.Dup3(int(again.Fd()), int(f.Fd()), unix.O_CLOEXEC); err != nil {
			return &os.PathError{Op: "reopen", Path: f.Name(), Err: err}
		}
		return nil
	}
	if err := reopen(os.O_RDWR); err != nil {
		return nil, err
	}
	free = func() error {
		release(f)
		return reopen(os.O_RDONLY)
	}
	if _, err := unix.FcntlInt(f.Fd(), unix.F_SETLEASE, unix.F_WRLCK); err != nil {
		if ferr := free(); ferr != nil {
			return nil, ferr
		}
		return nil, &os.PathError{Op: "lease", Path: f.Name(), Err: err}
	}
	return free, nil
}

func procPath(f *os.File) string { return fmt.Sprintf("/proc/self/fd/%d", f.Fd()) }

// written reports whether somebody has f open for writing (F_SETLEASE of fcntl(2): nobody
// gets a lease to read on such a file). With false the lease is f's until release.
func written(f *os.File) (bool, error) {
	_, err := unix.FcntlInt(f.Fd(), unix.F_SETLEASE, unix.F_RDLCK)
	if errors.Is(err, unix.EAGAIN) {
		return true, nil
	}
	return false, err
}

func release(f *os.File) {
	_, _ = unix.FcntlInt(f.Fd(), unix.F_SETLEASE, unix.F_UNLCK)
}

// refused is what a Taker makes of an error of Feed.
func refused(err error) error {
	if errors.Is(err, queue.ErrFull) {
		return fmt.Errorf("%w: %w", ErrNoRoom, err) // of a queue that does not block
	}
	return err
}
