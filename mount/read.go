package mount

import (
	"context"
	"fmt"
	"io"
	"slices"
	"sync"
	"syscall"

	"bazil.org/fuse"

	"ftfuse/mount/spool"
)

// read answers on another goroutine: what is not in the page cache takes its time. Any
// number can wait for their turn, without a buffer.
func (s *server) read(r *fuse.ReadRequest) {
	h := s.handles.get(r.Handle)
	switch {
	case h == nil:
		r.RespondError(syscall.EBADF)
	case r.Dir && h.dir != nil:
		path := h.dir.path()
		s.readLater(r, func(buf []byte, off int64) (int, error) { return s.readDir(h, path, buf, off) })
	case r.Dir || h.file == nil:
		r.RespondError(syscall.EBADF)
	default:
		sf := h.file.spool
		s.readLater(r, func(buf []byte, off int64) (int, error) {
			n, err := readFull(sf, buf, off)
			if err != nil {
				err = fmt.Errorf("read file %s at %d: %w", sf.Number(), off, err)
			}
			return n, err
		})
	}
}

// readBuffers are for as many reads as have a turn. What nobody used for a while is given
// back.
var readBuffers = sync.Pool{New: func() any { return new([]byte) }}

// readLater answers r with the n bytes that get reads.
func (s *server) readLater(r *fuse.ReadRequest, get func(buf []byte, off int64) (n int, err error)) {
	off, size := r.Offset, r.Size
	s.later(&r.Header, func(ctx context.Context, h *fuse.Header) {
		select {
		case s.reading <- struct{}{}:
			defer func() { <-s.reading }()
		case <-ctx.Done():
			errno := s.errnoOf(ctx, ctx.Err())
			s.answer(h.ID, func() { s.dev.RespondError(h.ID, errno) })
			return
		}
		b := readBuffers.Get().(*[]byte)
		defer readBuffers.Put(b)
		*b = slices.Grow((*b)[:0], size)[:size]
		n, err := get(*b, off)
		if err != nil {
			errno := s.errnoOf(ctx, err)
			s.answer(h.ID, func() { s.dev.RespondError(h.ID, errno) })
			return
		}
		s.answer(h.ID, func() { s.dev.RespondRead(h.ID, (*b)[:n]) })
	})
}

// readFull reads until buf is full or the file ends.
func readFull(f *spool.File, buf []byte, off int64) (n int, err error) {
	for n < len(buf) {
		k, err := f.ReadAt(buf[n:], off+int64(n))
		n += k
		if err == io.EOF {
			return n, nil
		}
		if err != nil {
			return n, err
		}
	}
	return n, nil
}

// readDir gives a piece of the listing that was taken when the directory was read at
// offset 0, so that changes meanwhile neither repeat nor hide another name. Offsets are
// bytes of the listing.
func (s *server) readDir(h *handle, path string, buf []byte, off int64) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if off == 0 || h.listing == nil { // nil: a predecessor read the beginning
		list, err := s.store.ReadDir(path)
		if err != nil {
			return 0, err
		}
		h.listing = fuse.AppendDirent(nil, fuse.Dirent{Name: ".", Type: fuse.DT_Dir, Inode: ^uint64(0)})
		h.listing = fuse.AppendDirent(h.listing, fuse.Dirent{Name: "..", Type: fuse.DT_Dir, Inode: ^uint64(0)})
		for _, e := range list {
			d := fuse.Dirent{Name: e.Name, Type: fuse.DT_File, Inode: fileInode(e.Number)}
			if e.Dir {
				d.Type, d.Inode = fuse.DT_Dir, dirInode(e.Inode)
			}
			h.listing = fuse.AppendDirent(h.listing, d)
		}
	}
	from := min(max(off, 0), int64(len(h.listing)))
	return copy(buf, h.listing[from:]), nil
}
