package offline

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"ftfuse/internal/bootid"
	"ftfuse/mount/capture"
)

// stat is what a file is known by, and its size and times.
type stat struct {
	dev, ino uint64
	birth    int64 // Unix nanoseconds; 0 where the file system has none
	mode     uint16
	links    uint32
	uid, gid uint32
	size     int64
	mtime    int64
}

// inode is a file of one file system; no two have the same, as long as it keeps birth times.
type inode struct {
	ino   uint64
	birth int64
}

// statOf is statx(2) of a descriptor.
func statOf(fd int) (stat, error) { return statAt(fd, "", unix.AT_EMPTY_PATH) }

// statAt is statx(2) of a name in the directory fd.
func statAt(fd int, name string, flags int) (stat, error) {
	var x unix.Statx_t
	if err := unix.Statx(fd, name, flags, unix.STATX_BASIC_STATS|unix.STATX_BTIME, &x); err != nil {
		return stat{}, &fileError{fmt.Errorf("statx: %w", err)}
	}
	s := stat{
		dev: unix.Mkdev(x.Dev_major, x.Dev_minor), ino: x.Ino, mode: x.Mode, links: x.Nlink, uid: x.Uid, gid: x.Gid,
		size: int64(x.Size), mtime: x.Mtime.Sec*1e9 + int64(x.Mtime.Nsec),
	}
	if x.Mask&unix.STATX_BTIME != 0 {
		s.birth = x.Btime.Sec*1e9 + int64(x.Btime.Nsec)
	}
	return s, nil
}

func (s *stat) regular() bool { return s.mode&unix.S_IFMT == unix.S_IFREG }

// is reports whether it is the same file.
func (s *stat) is(o *stat) bool { return s.dev == o.dev && s.ino == o.ino && s.birth == o.birth }

// source is a new source of the file.
func (s *stat) source(path string) capture.Source {
	return capture.Source{Kind: capture.SourceFile, Path: proper(path), Dev: s.dev, Ino: s.ino, Birth: s.birth}
}

var thisBoot = bootid.ID()

// Verdict is what became of a file that is a source.
type Verdict uint8

// Verdicts.
const (
	Same    Verdict = iota // it is that file, and may have grown
	Another                // it is another file, whose inode is reused
	Anew                   // the file was truncated, or written anew: it is to be taken from its beginning
	Shorter                // a power loss took bytes that were taken: it goes on at its end
)

// Judge compares a file of now with the source that its inode and birth time name. head is
// its beginning, MaxBegin bytes or all of it.
//
// What was taken begins with s.Begin. A file that begins otherwise was written anew, or, on
// another device, is another file. One that is shorter than what was taken of it was
// truncated, unless the machine was started since: then its last bytes may never have
// reached the disk. (A file that is truncated and then written anew with the same first 512
// bytes, up to at least its old length, is not told from one that was left alone.)
func Judge(s *capture.Source, dev uint64, size int64, head []byte, boot [16]byte) Verdict {
	n := min(len(s.Begin), len(head))
	same := bytes.Equal(s.Begin[:n], head[:n])
	if s.Dev != dev && (!same || n == 0 || s.Birth == 0) {
		return Another
	}
	switch {
	case !same, size < s.Pos && (boot == s.Boot || size == 0):
		return Anew
	case size < s.Pos:
		return Shorter
	}
	return Same
}

// Head reads the beginning of a file, as Judge wants it.
func Head(f io.ReaderAt) ([]byte, error) {
	b := make([]byte, capture.MaxBegin)
	n, err := f.ReadAt(b, 0)
	if err != nil && err != io.EOF {
		return nil, &fileError{fmt.Errorf("read the beginning: %w", err)}
	}
	return b[:n], nil
}

// identify returns the source of a file, which it makes where there is none.
func (t *Taker) identify(ctx context.Context, f *os.File, st *stat, path string) (*known, error) {
	k := t.inodes[inode{st.ino, st.birth}]
	if k != nil {
		head, err := Head(f)
		if err != nil {
			return nil, err
		}
		switch Judge(&k.s, st.dev, st.size, head, thisBoot) {
		case Another: // the one that was has no name here; known beside this, a start could take it for this
			err, k = t.forget(ctx, k), nil
		case Anew:
			t.o.Logger.Info("a file below the mount point was truncated or written anew: it is taken from its beginning", "path", path, "taken", k.s.Pos, "size", st.size)
			err = t.move(ctx, k, 0, nil)
		case Shorter:
			t.o.Logger.Warn("a file below the mount point is shorter than what was taken of it, after a restart of the machine: going on from its end", "path", path, "taken", k.s.Pos, "size", st.size)
			err = t.move(ctx, k, st.size, k.s.Begin[:min(int64(len(k.s.Begin)), st.size)])
		}
		if err != nil {
			return nil, err
		}
	}
	if k == nil {
		s := st.source(path)
		id, err := t.o.Capture.AddSource(ctx, s)
		if err != nil {
			return nil, err
		}
		k = &known{id: id, s: s, punched: keptHead, ended: -1}
		t.know(k)
	}
	k.at, k.seen, k.missed = path, true, 0
	if k.s.Dev == st.dev {
		return k, nil
	}
	// The devices were numbered anew.
	if err := t.o.Capture.ChangeSource(ctx, k.id, func(s *capture.Source) { s.Dev = st.dev }); err != nil {
		return nil, err
	}
	k.s.Dev = st.dev
	return k, nil
}

// move sets the position of a source. After an error k is as it was, whatever became of the
// change: the file is compared again.
func (t *Taker) move(ctx context.Context, k *known, pos int64, begin []byte) error {
	begin = bytes.Clone(begin)
	err := t.o.Capture.ChangeSource(ctx, k.id, func(s *capture.Source) { s.Pos, s.Begin = pos, bytes.Clone(begin) })
	if err != nil {
		return err
	}
	k.s.Pos, k.s.Begin, k.s.Boot = pos, begin, thisBoot
	k.punched, k.ended = keptHead, -1
	return nil
}
