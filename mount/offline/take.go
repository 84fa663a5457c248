package offline

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"ftfuse/mount/capture"
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
		if err != nil || n == 0 {
			return k, false, err
		}
		took += n
		if err := t.punch(f, k, &st); err != nil {
			return k, false, err
		}
		if k.s.Pos >= st.size {
			if st, err = statOf(int(f.Fd())); err != nil {
				return k, false, err
			}
		}
	}
	return k, false, nil
}

// feed takes the next bytes of a file in; none where nothing but a hole is left, which may
// be room that its writer has reserved.
func (t *Taker) feed(ctx context.Context, f *os.File, k *known, st *stat) (int64, error) {
	if t.buf == nil {
		t.buf = make([]byte, t.o.Chunk)
	}
	fd := int(f.Fd())
	from, err := unix.Seek(fd, k.s.Pos, unix.SEEK_DATA)
	switch err {
	case nil:
	case unix.ENXIO:
		return 0, nil
	default: // not known here
		from = k.s.Pos
	}
	end := min(st.size, from+int64(len(t.buf)))
	if hole, err := unix.Seek(fd, from, unix.SEEK_HOLE); err == nil && hole > from {
		end = min(end, hole)
	}
	if end <= from {
		return 0, nil
	}
	n, err := f.ReadAt(t.buf[:end-from], from)
	if n == 0 {
		if err == io.EOF { // it was truncated meanwhile
			return 0, nil
		}
		return 0, &fileError{err}
	}
	data := t.buf[:n]
	if err := t.o.Capture.Feed(ctx, k.id, from, data, true, capture.Fed{UID: st.uid, GID: st.gid, Time: st.mtime}); err != nil {
		return 0, err
	}
	if have := len(k.s.Begin); k.s.Pos < capture.MaxBegin && int64(have) == k.s.Pos && from == k.s.Pos {
		k.s.Begin = append(k.s.Begin, data[:min(n, capture.MaxBegin-have)]...)
	}
	k.s.Pos, k.s.Boot, k.ended = from+int64(n), thisBoot, -1
	t.bytes.Add(uint64(n))
	return int64(n), fpTaken.Inject()
}

// punch gives the space of what is committed back, but for the beginning and the block at
// the position. A file with several names is somebody else's, too.
func (t *Taker) punch(f *os.File, k *known, st *stat) error {
	upto := k.s.Pos / keptHead * keptHead
	if t.o.Keep || st.links != 1 || upto <= k.punched {
		return nil
	}
	w, err := os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", f.Fd()), os.O_WRONLY, 0)
	if err != nil {
		t.once("punch", "space of files that were taken in is not given back before they are removed", "path", k.at, "err", err)
		return nil
	}
	defer w.Close()
	err = unix.Fallocate(int(w.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, k.punched, upto-k.punched)
	if err != nil {
		t.once("punch", "space of files that were taken in is not given back before they are removed", "path", k.at, "err", err)
		return nil
	}
	k.punched = upto
	if after, err := statOf(int(w.Fd())); err == nil && after.size == st.size {
		times := []unix.Timespec{{Nsec: unix.UTIME_OMIT}, unix.NsecToTimespec(st.mtime)}
		_ = unix.UtimesNanoAt(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", w.Fd()), times, 0)
	}
	return fpPunched.Inject()
}

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
