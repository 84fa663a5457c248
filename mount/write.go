package mount

import (
	"context"
	"syscall"
	"time"

	"bazil.org/fuse"

	"ftfuse/mount/spool"
)

// writeRequest answers a write inline if nothing can block: there is room, the ring has
// a place, it does not go over what the file has, and it need not be on disk.
//
// The path without a program's own bytes: note, one pwrite, correct the note, reply.
func (s *server) writeRequest(r *fuse.WriteRequest) {
	h := s.handles[r.Handle]
	switch {
	case h == nil || h.write == nil:
		r.RespondError(syscall.EBADF)
		return
	case s.closing.Load():
		r.RespondError(syscall.ESHUTDOWN)
		return
	case s.wantsSync(r) || (s.o.full != fullPass && !s.room.take(len(r.Data))):
		s.park(r, h)
		return
	}
	m := spool.Meta{Unique: uint64(r.ID), PID: r.Pid, UID: r.Uid, GID: r.Gid, Time: time.Now().UnixNano()}
	n, err := h.write.TryWrite(r.Data, r.Offset, r.FileFlags&fuse.OpenAppend != 0, &m)
	switch err {
	case nil:
		s.n.writes.Add(1)
		s.n.bytes.Add(int64(n))
		r.Respond(&fuse.WriteResponse{Size: n})
	case spool.ErrJournalFull, spool.ErrOverwrite, spool.ErrBusy:
		s.park(r, h)
	default:
		s.writeFailed(r, err)
	}
}

// wantsSync reports whether the write must be on disk before it returns: because the
// configuration says so, or the open (O_SYNC, O_DSYNC), or the call (RWF_DSYNC, which
// the kernel passes in the same flags).
func (s *server) wantsSync(r *fuse.WriteRequest) bool {
	return s.o.sync || r.FileFlags&(fuse.OpenSync|syscall.O_DSYNC) != 0
}

// park lets a write wait on a goroutine of its own. The request keeps its bytes until
// it is answered.
func (s *server) park(r *fuse.WriteRequest, h *handle) {
	s.n.parked.Add(1)
	s.later(&r.Header, func(ctx context.Context) {
		n, err := s.parkedWrite(ctx, r, h)
		s.answered(r.ID)
		if err != nil {
			errno := s.errnoOf(ctx, err)
			if errno == syscall.EAGAIN {
				s.tellWritable(h)
			}
			s.writeFailed(r, errno)
			return
		}
		s.n.writes.Add(1)
		s.n.bytes.Add(int64(n))
		r.Respond(&fuse.WriteResponse{Size: n})
	})
}

func (s *server) writeFailed(r *fuse.WriteRequest, err error) {
	switch err {
	case syscall.ENOSPC:
		s.n.refusedFull.Add(1)
	case syscall.EINTR:
		s.n.interrupted.Add(1)
	}
	r.RespondError(err)
}

// journalPatience is how long a write with O_NONBLOCK waits for the ring, which is full
// for a moment under load, before it counts as blocked.
const journalPatience = 50 * time.Millisecond

// parkedWrite waits for room, for the file and for the ring, then writes. An error
// means that not one byte was kept.
func (s *server) parkedWrite(ctx context.Context, r *fuse.WriteRequest, h *handle) (int, error) {
	nonblock := r.FileFlags&fuse.OpenNonblock != 0
	started := time.Now()
	for {
		if err := s.awaitRoom(ctx, len(r.Data), nonblock); err != nil {
			return 0, err
		}
		n, err := s.writeAlone(ctx, r, h)
		if err != spool.ErrJournalFull {
			return n, err
		}
		if nonblock && time.Since(started) > journalPatience {
			return 0, syscall.EAGAIN
		}
		if err := s.awaitJournal(ctx, len(r.Data), nonblock); err != nil {
			return 0, err
		}
	}
}

// awaitRoom does what on_full says while there is no room. Bytes on their way from the
// spool into the queue may count twice for a moment, so that nobody is refused before
// the next commit.
func (s *server) awaitRoom(ctx context.Context, n int, nonblock bool) error {
	if s.o.full == fullPass {
		return nil
	}
	started := time.Now()
	for {
		changed := s.store.Changed()
		if s.room.take(n) {
			return nil
		}
		if s.o.full == fullBlock && !nonblock {
			if err := s.room.wait(ctx); err != nil {
				return err
			}
			continue
		}
		left := journalPatience - time.Since(started)
		if s.store.Uncaptured() == 0 || left <= 0 {
			if s.o.full == fullError {
				return syscall.ENOSPC
			}
			return syscall.EAGAIN
		}
		select {
		case <-changed:
		case <-time.After(left):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// awaitJournal waits for the next commit, unless the journal takes n bytes now.
func (s *server) awaitJournal(ctx context.Context, n int, nonblock bool) error {
	changed := s.store.Changed()
	if s.store.HasRoom(n) {
		return nil
	}
	var patience <-chan time.Time
	if nonblock {
		patience = time.After(journalPatience)
	}
	select {
	case <-changed:
	case <-patience:
	case <-ctx.Done():
		return ctx.Err()
	}
	return nil
}

// writeAlone writes while nothing else has the file for itself.
func (s *server) writeAlone(ctx context.Context, r *fuse.WriteRequest, h *handle) (int, error) {
	g := h.file.gate
	if err := g.enter(ctx); err != nil {
		return 0, err
	}
	m := spool.Meta{Unique: uint64(r.ID), PID: r.Pid, UID: r.Uid, GID: r.Gid, Time: time.Now().UnixNano()}
	n, err := h.write.Write(r.Data, r.Offset, r.FileFlags&fuse.OpenAppend != 0, &m)
	if err == spool.ErrOverwrite {
		defer g.leave()
		return s.overwrite(ctx, r, h, &m)
	}
	g.leave()
	if err == nil && s.wantsSync(r) {
		err = s.awaitDisk(ctx, h, r.Pid)
	}
	return n, err
}

// overwrite commits the bytes before it writes over those that were captured. The gate is
// held, and the file reserved, so that no write comes in between.
func (s *server) overwrite(ctx context.Context, r *fuse.WriteRequest, h *handle, m *spool.Meta) (int, error) {
	if s.o.refuse {
		s.n.refusedOver.Add(1)
		return 0, syscall.EPERM
	}
	h.write.Reserve()
	defer h.write.Unreserve()
	e := spool.Entry{
		File: h.file.number, Writer: h.write.Writer, Off: r.Offset, Len: uint32(len(r.Data)), PathID: h.write.PathID,
		Path: h.write.Path, PID: m.PID, UID: m.UID, GID: m.GID, Time: m.Time, Unique: m.Unique, Kind: spool.Write,
	}
	if err := s.capture.Overwrite(ctx, h.file.number, e, r.Data, r.Offset+int64(len(r.Data))); err != nil {
		return 0, err
	}
	s.n.overwrites.Add(1)
	// They are delivered whatever happens now.
	if n, err := h.write.Overwrite(r.Data, r.Offset); n < len(r.Data) {
		s.log.Error("bytes that are delivered cannot be read back", "path", h.write.Path, "offset", r.Offset, "written", n, "want", len(r.Data), "err", err)
	}
	return len(r.Data), nil
}

// awaitDisk returns when what h wrote is on disk. A signal does not end the wait, since
// the bytes will be delivered and an error would deny it; that its thread is being
// killed does. Bytes that cannot get into the queue now are made durable in the spool,
// for the same reason.
func (s *server) awaitDisk(ctx context.Context, h *handle, tid uint32) error {
	done := make(chan error, 1)
	s.wg.Go(func() {
		err := s.capture.Drain(s.ctx, h.file.number)
		if err != nil {
			err = h.write.Sync()
		}
		done <- err
	})
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
	}
	tick := time.NewTicker(killPoll)
	defer tick.Stop()
	for !beingKilled(tid) {
		select {
		case err := <-done:
			return err
		case <-tick.C:
		}
	}
	return nil
}
