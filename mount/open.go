package mount

import (
	"context"
	"errors"
	"syscall"
	"time"

	"bazil.org/fuse"

	"ftfuse/mount/kernel"
	"ftfuse/mount/session"
	"ftfuse/mount/spool"
	"ftfuse/queue"
)

func metaOf(h *fuse.Header) spool.Meta {
	return spool.Meta{Unique: uniqueOf(h.ID), PID: h.Pid, UID: h.Uid, GID: h.Gid, Time: time.Now().UnixNano()}
}

func (s *server) open(r *fuse.OpenRequest) {
	h, err := s.restoredHandle(r.ID), error(nil)
	switch fn := s.fileNode(r.Node); {
	case h != nil: // a predecessor has done it
	case r.Dir:
		h, err = s.openDir(r)
	case fn == nil:
		err = syscall.ESTALE
	default:
		h, err = s.openFile(&r.Header, fn, r.Flags)
	}
	if err != nil {
		r.RespondError(err)
		return
	}
	_ = fpDone.open.Inject()
	m := metaOf(&r.Header)
	if s.dev.RespondOpen(&r.Header, uint64(h.id), h.reply, h.backing()) != nil {
		s.closeHandle(h, &m) // its opener is gone, no RELEASE comes
	}
}

func (s *server) openDir(r *fuse.OpenRequest) (*handle, error) {
	d := s.dirNode(r.Node)
	if d == nil {
		return nil, syscall.ENOTDIR
	}
	h := &handle{dir: d, flags: r.Flags, pid: r.Pid, path: d.path()}
	m := metaOf(&r.Header)
	if err := s.keep(h, &m); err != nil {
		return nil, err
	}
	return h, nil
}

// backing is the backing id that the kernel is answered for h.
func (h *handle) backing() int32 {
	if h.reply&kernel.OpenPassthrough == 0 {
		return 0
	}
	return h.file.backing
}

// openFile makes a handle of a file. Nothing is ever cached: either the kernel writes to
// the spool file for it, or one write(2) is one request (direct I/O).
func (s *server) openFile(r *fuse.Header, fn *fileNode, flags fuse.OpenFlags) (*handle, error) {
	f := fn.file
	sf, err := s.acquire(f.number, "open", f.path())
	if err != nil {
		return nil, err
	}
	mode, reply := s.how(f, sf, flags)
	m := metaOf(r)
	if mode == spool.Kernel {
		m.PID = processOf(r.Pid)
	}
	h := &handle{file: f, node: fn, reply: reply, flags: flags, pid: m.PID, path: s.looked.take(r.Pid, fn.id, f.path())}
	h.asks = s.asksOf(flags, func() string { return h.path })
	if !flags.IsReadOnly() {
		if h.write, err = s.store.OpenHandle(sf, h.path, mode, &m); err != nil {
			s.log.Error("open for writing", "path", h.path, "err", err)
			err = syscall.EIO
		}
	}
	if err == nil {
		s.guard(h)
		err = s.keep(h, &m)
	}
	if err != nil {
		if h.write != nil {
			s.unguard(h)
			h.write.End(&m)
		}
		s.closeBacking(f, func() {})
		sf.Release()
		return nil, err
	}
	f.spool = sf
	s.count(h)
	return h, nil
}

// acquire opens file n for a program. An error is what it is told: see stale, and ENFILE where this
// process has no descriptor left, which is none of the program's own limits.
func (s *server) acquire(n spool.Number, what, path string) (*spool.File, error) {
	sf, err := s.store.Acquire(n)
	if err = stale(err); err == nil || err == syscall.ESTALE {
		return sf, err
	}
	s.log.Error(what, "path", path, "err", err)
	if errors.Is(err, syscall.ENFILE) {
		return nil, syscall.ENFILE
	}
	return nil, syscall.EIO
}

// keep stores h in the session and gives it its id: the kernel may hear of it.
func (s *server) keep(h *handle, m *spool.Meta) error {
	id, err := s.session.Reserve()
	if err == nil {
		h.id = fuse.HandleID(id)
		if err = s.session.Store(storedHandle(h, m)); err != nil {
			s.session.Unreserve(id)
		}
	}
	if err != nil {
		s.log.Error("open", "path", h.path, "err", err)
		if errors.Is(err, session.ErrHandles) {
			return syscall.ENFILE
		}
		return syscall.EIO
	}
	s.handles.put(h)
	return nil
}

func storedHandle(h *handle, m *spool.Meta) *session.Handle {
	k := &session.Handle{
		ID: uint64(h.id), Kind: session.Dir, Reply: uint8(h.reply), Unique: m.Unique, Flags: uint32(h.flags),
		PID: m.PID, UID: m.UID, GID: m.GID, Time: m.Time, Path: h.path,
	}
	if h.dir != nil {
		k.Node = uint64(h.dir.id)
		return k
	}
	k.Kind, k.File, k.Node, k.Backing = session.Read, uint64(h.file.number), uint64(h.node.id), h.backing()
	if h.write != nil {
		k.Kind, k.Mode, k.Writer = session.Write, uint8(h.write.Mode()), h.write.Writer
	}
	return k
}

// count adds an open handle to its file and node.
func (s *server) count(h *handle) {
	h.file.handles++
	h.node.handles++
	if h.write == nil {
		return
	}
	h.file.writers++
	s.countSlow(h, 1)
	if h.write.Mode() == spool.Kernel {
		h.file.kernel = append(h.file.kernel, h)
		s.written[h.file] = true
	}
}

// flushPatience bounds how long a close(2) waits for the journal: a process that is being
// killed closes its files without taking signals. In binary mode a record then ends later.
const flushPatience = 500 * time.Millisecond

// flush comes at every close(2) of a descriptor, of a forked child's too. It ends no
// line; binary mode ends a record there.
func (s *server) flush(r *fuse.FlushRequest) {
	h := s.fileHandle(r.Handle)
	if h == nil {
		r.RespondError(syscall.EBADF)
		return
	}
	s.dropLocks(h.file, r.LockOwner, false)
	if h.write != nil && s.endsRecords(h) {
		m := metaOf(&r.Header)
		if h.write.Flush(&m) == spool.ErrJournalFull {
			s.later(&r.Header, func(ctx context.Context, r *fuse.Header) {
				ctx, cancel := context.WithTimeout(ctx, flushPatience)
				defer cancel()
				s.noteLater(ctx, func() error { return h.write.Flush(&m) })
				s.answer(r.ID, func() { s.dev.RespondError(r.ID, 0) })
			})
			return
		}
	}
	_ = fpDone.flush.Inject()
	r.Respond()
}

// endsRecords reports whether a close(2) of h means anything to the capture: what the kernel
// wrote goes by the path of the oldest handle that it serves. A note that nobody needs would
// wait for a place in the journal, and cost a commit.
func (s *server) endsRecords(h *handle) bool {
	return s.o.binary(h.write.Path) || len(h.file.kernel) > 0 && s.o.binary(h.file.kernel[0].write.Path)
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
// A handle that is not there was released before a takeover.
func (s *server) release(r *fuse.ReleaseRequest) {
	if h := s.handles.get(r.Handle); h != nil {
		if h.file != nil && r.ReleaseFlags&fuse.ReleaseFlockUnlock != 0 {
			s.dropLocks(h.file, r.LockOwner, true)
		}
		m := metaOf(&r.Header)
		s.closeHandle(h, &m)
	}
	_ = fpDone.release.Inject()
	r.Respond()
}

// closeHandle ends a handle: its note first, then its place in the session.
func (s *server) closeHandle(h *handle, m *spool.Meta) {
	s.handles.remove(h)
	s.pollers.forget(h.id)
	if h.dir != nil {
		s.session.Free(uint64(h.id), h.path)
		return
	}
	s.dropHandle(h)
	f, sf := h.file, h.file.spool
	f.handles--
	h.node.handles--
	if h.write != nil {
		f.writers--
		s.countSlow(h, -1)
		if h.write.Mode() == spool.Kernel {
			f.kernel.remove(h)
			if len(f.kernel) == 0 {
				delete(s.written, f)
			}
		}
		s.unguard(h)
		h.write.End(m)
	}
	_ = fpReleased.Inject()
	s.closeBacking(f, func() { s.session.Free(uint64(h.id), h.path) })
	if f.handles == 0 {
		f.spool = nil
	}
	sf.Release()
	s.nodes.drop(h.node)
}

// fsyncPatience is how long fsync(2) of a file with one node waits for the queue: the
// kernel keeps all its writers waiting for that long. What is not in the queue then is
// made durable in the spool, where the next start finds it.
const fsyncPatience = 500 * time.Millisecond

// fsync returns when what was accepted of the file is on disk. For a directory its names
// are.
func (s *server) fsync(r *fuse.FsyncRequest) {
	h := s.handles.get(r.Handle)
	if h == nil {
		r.RespondError(syscall.EBADF)
		return
	}
	var work func(ctx context.Context) error
	if h.dir != nil {
		path := h.dir.path()
		work = func(context.Context) error {
			if err := s.store.SyncDir(path); err != syscall.ENOENT { // it was removed: nothing of it is to be synced
				return err
			}
			return nil
		}
	} else {
		f, sf := h.file, h.file.spool
		work = func(ctx context.Context) error { return s.syncFile(ctx, f, sf) }
	}
	s.later(&r.Header, func(ctx context.Context, r *fuse.Header) {
		err := work(ctx)
		errno := s.errnoOf(ctx, err)
		_ = fpDone.fsync.Inject()
		s.answer(r.ID, func() { s.dev.RespondError(r.ID, errno) })
	})
}

// syncFile makes what was accepted of f durable: in the queue, or where it waits for that. A full
// queue that does not block refuses it, but it was accepted and will be delivered: an error would
// deny that.
func (s *server) syncFile(ctx context.Context, f *file, sf *spool.File) error {
	if !f.one {
		err := s.capture.Drain(ctx, f.number)
		if errors.Is(err, queue.ErrFull) {
			err = sf.Sync()
		}
		return err
	}
	wait, cancel := context.WithTimeout(ctx, fsyncPatience)
	defer cancel()
	err := s.capture.Drain(wait, f.number)
	if err != nil && ctx.Err() == nil {
		err = sf.Sync()
	}
	return err
}
