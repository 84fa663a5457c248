package mount

import (
	"context"
	"io"
	"syscall"
	"time"

	"bazil.org/fuse"

	"ftfuse/mount/spool"
)

func (s *server) open(r *fuse.OpenRequest) {
	if r.Dir {
		d := s.nodes.dirs[r.Node]
		if d == nil {
			r.RespondError(syscall.ENOTDIR)
			return
		}
		r.Respond(&fuse.OpenResponse{Handle: s.addHandle(&handle{dir: d}).id})
		return
	}
	fn := s.nodes.fnode[r.Node]
	if fn == nil {
		r.RespondError(syscall.ESTALE)
		return
	}
	h, err := s.openFile(fn, r.Flags)
	if err != nil {
		r.RespondError(err)
		return
	}
	r.Respond(&fuse.OpenResponse{Handle: h.id, Flags: fuse.OpenDirectIO})
}

func (s *server) addHandle(h *handle) *handle {
	s.lastID++
	h.id = s.lastID
	s.handles[h.id] = h
	return h
}

// openFile makes a handle of a file. Every one is direct I/O: one write(2) is one
// request, and nothing is cached.
func (s *server) openFile(fn *fileNode, flags fuse.OpenFlags) (*handle, error) {
	f := fn.file
	sf, err := s.store.Acquire(f.number)
	if err != nil {
		s.log.Error("open", "path", f.path(), "err", err)
		return nil, syscall.EIO
	}
	h := &handle{file: f, node: fn}
	if !flags.IsReadOnly() {
		if h.write, err = s.store.OpenWriter(sf, f.path()); err != nil {
			sf.Release()
			s.log.Error("open for writing", "path", f.path(), "err", err)
			return nil, syscall.EIO
		}
		fn.writers++
	}
	f.spool = sf
	f.opens++
	return s.addHandle(h), nil
}

// read answers on another goroutine: what is not in the page cache takes its time.
func (s *server) read(r *fuse.ReadRequest) {
	h := s.handles[r.Handle]
	switch {
	case h == nil:
		r.RespondError(syscall.EBADF)
	case r.Dir:
		path := h.dir.path()
		s.wg.Go(func() { s.readDir(r, h, path) })
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
	if r.Offset == 0 {
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

// flushPatience bounds how long a close(2) waits for the journal: a process that is being
// killed closes its files without taking signals. In binary mode a record then ends later.
const flushPatience = 500 * time.Millisecond

// flush comes at every close(2) of a descriptor, of a forked child's too. It ends no
// line; binary mode ends a record there.
func (s *server) flush(r *fuse.FlushRequest) {
	h := s.handle(r.Handle)
	if h == nil {
		r.RespondError(syscall.EBADF)
		return
	}
	s.dropLocks(h.file, r.LockOwner, false)
	if h.write != nil {
		m := spool.Meta{Unique: uint64(r.ID), PID: r.Pid, UID: r.Uid, GID: r.Gid, Time: time.Now().UnixNano()}
		if h.write.Flush(&m) == spool.ErrJournalFull {
			s.later(&r.Header, func(ctx context.Context) {
				ctx, cancel := context.WithTimeout(ctx, flushPatience)
				defer cancel()
				s.noteLater(ctx, func() error { return h.write.Flush(&m) })
				s.answered(r.ID)
				r.Respond()
			})
			return
		}
	}
	r.Respond()
}

// noteLater repeats note until the ring has a place for it, or ctx ends.
func (s *server) noteLater(ctx context.Context, note func() error) {
	for {
		changed := s.store.Changed()
		if note() != spool.ErrJournalFull {
			return
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}

// release is the last close of a handle. Nobody waits for its reply, but the kernel sends
// it before close(2) returns: a later open finds it noted, or owed before its own notes.
func (s *server) release(r *fuse.ReleaseRequest) {
	h := s.handles[r.Handle]
	delete(s.handles, r.Handle)
	s.pollers.forget(r.Handle)
	if h == nil || h.dir != nil {
		r.Respond()
		return
	}
	f, sf := h.file, h.file.spool
	if r.ReleaseFlags&fuse.ReleaseFlockUnlock != 0 {
		s.dropLocks(f, r.LockOwner, true)
	}
	f.opens--
	if f.opens == 0 {
		f.spool = nil
	}
	if h.write != nil {
		h.node.writers--
		h.write.End(&spool.Meta{Unique: uint64(r.ID), PID: r.Pid, UID: r.Uid, GID: r.Gid, Time: time.Now().UnixNano()})
	}
	sf.Release()
	s.nodes.drop(h.node)
	r.Respond()
}

// fsync returns when what was accepted of the file is in the queue, on disk. For a
// directory its names are.
func (s *server) fsync(r *fuse.FsyncRequest) {
	h := s.handles[r.Handle]
	if h == nil {
		r.RespondError(syscall.EBADF)
		return
	}
	work := func(ctx context.Context) error { return s.capture.Drain(ctx, h.file.number) }
	if h.dir != nil {
		path := h.dir.path()
		work = func(context.Context) error { return s.store.SyncDir(path) }
	}
	s.later(&r.Header, func(ctx context.Context) {
		err := work(ctx)
		s.answered(r.ID)
		if err != nil {
			r.RespondError(s.errnoOf(ctx, err))
			return
		}
		r.Respond()
	})
}
