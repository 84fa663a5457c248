package mount

import (
	"context"
	"errors"
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
	h := s.handles.get(r.Handle)
	switch {
	case h == nil || h.write == nil:
		r.RespondError(syscall.EBADF)
		return
	case s.closing.Load():
		r.RespondError(syscall.ESHUTDOWN)
		return
	case s.wantsSync(r) || isResent(r.ID) || (s.limits.Load().full != fullPass && !s.room.take(len(r.Data))):
		s.park(r, h)
		return
	}
	if h.asks {
		s.procs.Wrote(r.Pid)
	}
	m := spool.Meta{Unique: uint64(r.ID), PID: r.Pid, UID: r.Uid, GID: r.Gid, Time: time.Now().UnixNano()}
	n, err := h.write.TryWrite(r.Data, r.Offset, r.FileFlags&fuse.OpenAppend != 0, &m)
	switch err {
	case nil:
		s.n.writes.Add(1)
		s.n.bytes.Add(int64(n))
		_ = fpDone.write.Inject()
		r.Respond(&fuse.WriteResponse{Size: n})
	case spool.ErrJournalFull, spool.ErrOverwrite, spool.ErrBusy:
		s.park(r, h)
	default:
		s.countRefused(err)
		r.RespondError(err)
	}
}

// pwrite is a write that waits: a copy of what its request says.
type pwrite struct {
	fuse.Header
	handle *handle
	data   []byte
	off    int64
	flags  fuse.OpenFlags
}

func (w *pwrite) appends() bool  { return w.flags&fuse.OpenAppend != 0 }
func (w *pwrite) nonblock() bool { return w.flags&fuse.OpenNonblock != 0 }

// wantsSync reports whether the write must be on disk before it returns: because the
// configuration says so, or the open (O_SYNC, O_DSYNC), or the call (RWF_DSYNC, which
// the kernel passes in the same flags).
func (s *server) wantsSync(r *fuse.WriteRequest) bool { return s.syncs(r.FileFlags) }

func (s *server) syncs(flags fuse.OpenFlags) bool {
	return s.o.sync || flags&(fuse.OpenSync|syscall.O_DSYNC) != 0
}

// park lets a write wait on a goroutine of its own.
func (s *server) park(r *fuse.WriteRequest, h *handle) {
	data, free, err := s.parking.keep(r.Data)
	if err != nil {
		s.countRefused(err)
		r.RespondError(err)
		return
	}
	s.n.parked.Add(1)
	w := &pwrite{handle: h, data: data, off: r.Offset, flags: r.FileFlags}
	s.later(&r.Header, func(ctx context.Context, r *fuse.Header) {
		defer free()
		w.Header = *r
		s.parkedWrite(ctx, w)
	})
}

// wrote answers a write that waited.
func (s *server) wrote(ctx context.Context, w *pwrite, n int, err error) {
	if err == nil {
		s.n.writes.Add(1)
		s.n.bytes.Add(int64(n))
		_ = fpDone.write.Inject()
		s.answer(w.ID, func() { s.dev.RespondWrite(w.ID, n) })
		return
	}
	errno := s.errnoOf(ctx, err)
	s.countRefused(errno)
	s.answer(w.ID, func() {
		if errno == syscall.EAGAIN {
			s.tellWritable(w.handle)
		}
		s.dev.RespondError(w.ID, errno)
	})
}

func (s *server) countRefused(err error) {
	switch err {
	case syscall.ENOSPC:
		s.n.refusedFull.Add(1)
	case syscall.EINTR:
		s.n.interrupted.Add(1)
	}
}

// journalPatience is how long a write with O_NONBLOCK waits for the ring, which is full
// for a moment under load, before it counts as blocked.
const journalPatience = 50 * time.Millisecond

// sharedPatience is how long a write to a file with one node waits for room: the kernel
// keeps the file's other writers from doing anything meanwhile, even from dying. After
// that it is taken, and `max_bytes` exceeded, as by what the kernel writes.
//
// Tests shorten it.
var sharedPatience = 900 * time.Millisecond

// parkedWrite waits for room, for the file and for the ring, then writes and answers. An
// error means that not one byte was kept.
func (s *server) parkedWrite(ctx context.Context, w *pwrite) {
	if s.writtenBefore(ctx, w) {
		return
	}
	started := time.Now()
	shared := w.handle.file.one && !w.nonblock()
	for first := true; ; first = false {
		if first || !shared || s.limits.Load().full != fullBlock {
			if err := s.awaitRoom(ctx, w); err != nil {
				s.wrote(ctx, w, 0, err)
				return
			}
		}
		if s.writeAlone(ctx, w) {
			return
		}
		err := error(syscall.EAGAIN)
		switch {
		case shared:
			err = s.makeRoom(ctx, w, sharedPatience-time.Since(started))
		case !w.nonblock() || time.Since(started) <= journalPatience:
			err = s.awaitJournal(ctx, len(w.data), w.nonblock())
		}
		if err != nil {
			s.wrote(ctx, w, 0, err)
			return
		}
	}
}

// awaitRoom does what on_full says while there is no room. Bytes on their way from the
// spool into the queue may count twice for a moment, so that nobody is refused before
// the next commit.
func (s *server) awaitRoom(ctx context.Context, w *pwrite) error {
	started := time.Now()
	if s.limits.Load().full == fullBlock && !w.nonblock() && w.handle.file.one {
		short, cancel := context.WithTimeout(ctx, sharedPatience)
		defer cancel()
		if err := s.roomOrTurn(short, w); err != nil {
			return ctx.Err() // the time is up: nil
		}
		return nil
	}
	for {
		changed := s.store.Changed()
		full := s.limits.Load().full // it may change meanwhile
		if full == fullPass || s.room.take(len(w.data)) {
			return nil
		}
		if full == fullBlock && !w.nonblock() {
			if err := s.room.wait(ctx); err != nil {
				return err
			}
			continue
		}
		left := journalPatience - time.Since(started)
		if s.store.Uncaptured() == 0 || left <= 0 {
			if full == fullError {
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

// roomOrTurn waits until there is room, or returns ctx's error.
func (s *server) roomOrTurn(ctx context.Context, w *pwrite) error {
	for s.limits.Load().full != fullPass && !s.room.take(len(w.data)) {
		if err := s.room.wait(ctx); err != nil {
			return err
		}
	}
	return nil
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

// makeRoom waits until the journal takes w, for a file with one node. After patience what
// is in the journal goes into the queue beyond its limit: a queue that stays full must not
// keep the file's other writers waiting.
func (s *server) makeRoom(ctx context.Context, w *pwrite, patience time.Duration) error {
	changed := s.store.Changed()
	if s.store.HasRoom(len(w.data)) {
		return nil
	}
	if patience > 0 {
		late := time.NewTimer(patience)
		defer late.Stop()
		select {
		case <-changed:
			return nil
		case <-late.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return s.capture.DrainNow(ctx, w.handle.file.number)
}

// writeAlone writes while nothing else has the file for itself, and answers. It reports
// false, and nothing happened, if the ring has no place.
func (s *server) writeAlone(ctx context.Context, w *pwrite) bool {
	h, g := w.handle, w.handle.file.gate
	if err := g.enter(ctx); err != nil {
		s.wrote(ctx, w, 0, err)
		return true
	}
	m := metaOf(&w.Header)
	n, err := h.write.Write(w.data, w.off, w.appends(), &m)
	switch err {
	case spool.ErrJournalFull:
		g.leave()
		return false
	case spool.ErrOverwrite:
		// It is answered while nothing else can be done to the file: see alone.
		defer g.leave()
		n, err = s.overwrite(ctx, w, &m)
		s.wrote(ctx, w, n, err)
		return true
	}
	g.leave()
	if err == nil && s.syncs(w.flags) {
		err = s.awaitDisk(ctx, h, w.Pid)
	}
	s.wrote(ctx, w, n, err)
	return true
}

// overwrite commits the bytes before it writes over those that were captured. The gate is
// held, and the file reserved, so that no write comes in between.
func (s *server) overwrite(ctx context.Context, w *pwrite, m *spool.Meta) (int, error) {
	if s.o.refuse {
		s.n.refusedOver.Add(1)
		return 0, syscall.EPERM
	}
	h := w.handle
	h.write.Reserve()
	defer h.write.Unreserve()
	over := w.data
	if size := h.write.Size(); h.file.one && w.off+int64(len(over)) > size {
		over = over[:size-w.off] // a position behind the end would be taken for captured should the kernel go on there
	}
	e := spool.Entry{
		File: h.file.number, Writer: h.write.Writer, Off: w.off, Len: uint32(len(over)), PathID: h.write.PathID,
		Path: h.write.Path, PID: m.PID, UID: m.UID, GID: m.GID, Time: m.Time, Unique: m.Unique, Kind: spool.Write,
	}
	if err := s.capture.Overwrite(ctx, h.file.number, e, over, w.off+int64(len(over))); err != nil {
		return 0, err
	}
	s.n.overwrites.Add(1)
	s.putOver(w, over)
	return len(over) + s.appendRest(ctx, w, len(over), m), nil
}

// putOver writes bytes over others that are committed: they are delivered whatever
// happens now. Where the file cannot even be made as long as its position is, the role ends:
// what is written next would be taken for captured.
func (s *server) putOver(w *pwrite, over []byte) {
	h := w.handle
	if n, err := h.write.Overwrite(over, w.off); n < len(over) {
		s.log.Error("bytes that are delivered cannot be read back", "path", h.write.Path, "offset", w.off, "written", n, "want", len(over), "err", err)
		if errors.Is(err, spool.ErrShort) {
			s.fail(err)
		}
	}
}

// appendRest writes what of an overwrite goes beyond the end of the file, from byte done
// on, and returns how much was: a program that gets a short count goes on from there.
func (s *server) appendRest(ctx context.Context, w *pwrite, done int, m *spool.Meta) int {
	for done < len(w.data) {
		n, err := w.handle.write.Write(w.data[done:], w.off+int64(done), false, m)
		if err == nil {
			return n
		}
		if err != spool.ErrJournalFull || s.awaitJournal(ctx, len(w.data)-done, false) != nil {
			return 0
		}
	}
	return 0
}

// awaitDisk returns when what h wrote is on disk. A signal does not end the wait, since
// the bytes will be delivered and an error would deny it; that its thread is being
// killed does. Bytes that cannot get into the queue now are made durable in the spool,
// for the same reason; those of a file with one node do not wait for longer than an
// fsync(2) of it does.
func (s *server) awaitDisk(ctx context.Context, h *handle, tid uint32) error {
	done := make(chan error, 1)
	s.wg.Go(func() {
		wait, cancel := s.ctx, context.CancelFunc(func() {})
		if h.file.one {
			wait, cancel = context.WithTimeout(s.ctx, fsyncPatience)
		}
		defer cancel()
		err := s.capture.Drain(wait, h.file.number)
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
