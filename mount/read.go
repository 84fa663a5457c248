package mount

import (
	"io"
	"syscall"

	"bazil.org/fuse"

	"ftfuse/mount/spool"
)

// read answers on another goroutine: what is not in the page cache takes its time.
func (s *server) read(r *fuse.ReadRequest) {
	h := s.handles.get(r.Handle)
	switch {
	case h == nil:
		r.RespondError(syscall.EBADF)
	case r.Dir && h.dir != nil:
		path := h.dir.path()
		s.wg.Go(func() { s.readDir(r, h, path) })
	case r.Dir || h.file == nil:
		r.RespondError(syscall.EBADF)
	default:
		sf := h.file.spool
		s.wg.Go(func() {
			buf := make([]byte, r.Size)
			n, err := readFull(sf, buf, r.Offset)
			if err != nil {
				s.log.Error("read", "file", sf.Number(), "err", err)
				r.RespondError(syscall.EIO)
				return
			}
			r.Respond(&fuse.ReadResponse{Data: buf[:n]})
		})
	}
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
func (s *server) readDir(r *fuse.ReadRequest, h *handle, path string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if r.Offset == 0 || h.listing == nil { // nil: a predecessor read the beginning
		list, err := s.store.ReadDir(path)
		if err != nil {
			r.RespondError(err)
			return
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
	from := min(max(r.Offset, 0), int64(len(h.listing)))
	end := min(from+int64(r.Size), int64(len(h.listing)))
	r.Respond(&fuse.ReadResponse{Data: h.listing[from:end]})
}
