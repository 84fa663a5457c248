package mount

import (
	"context"

	"bazil.org/fuse"

	"ftfuse/internal/failpoint"
	"ftfuse/mount/kernel"
	"ftfuse/mount/spool"
)

// A request that a predecessor read and did not answer comes again to its successor
// (FUSE_NOTIFY_RESEND), with a bit in its id. Whether it was done already shows in what is
// on disk; what each kind of request does about it is in docs/architecture.md, "The mount
// outlives its daemon".

// isResent reports whether a predecessor has read the request.
func isResent(id fuse.RequestID) bool { return uint64(id)&kernel.Resent != 0 }

// uniqueOf is the id of a request as it was first.
func uniqueOf(id fuse.RequestID) uint64 { return uint64(id) &^ kernel.Resent }

// restoredHandle returns the handle that a predecessor made for the request, if any.
func (s *server) restoredHandle(id fuse.RequestID) *handle {
	if !isResent(id) {
		return nil
	}
	h := s.restored[uniqueOf(id)]
	if h == nil || s.handles.get(h.id) != h {
		return nil
	}
	return h
}

// finishedBefore reports whether a predecessor committed all of the truncation or
// overwrite that the request is.
func (s *server) finishedBefore(id fuse.RequestID, n spool.Number) bool {
	if !isResent(id) {
		return false
	}
	unique, ok := s.capture.Finished(n)
	return ok && unique == uniqueOf(id)
}

// writtenBefore answers a resent write of which a predecessor kept bytes, and reports
// whether it did.
func (s *server) writtenBefore(ctx context.Context, w *pwrite) bool {
	if !isResent(w.ID) {
		return false
	}
	e, noted := s.store.FindUnique(uniqueOf(w.ID), s.session.Since())
	if noted = noted && e.Len > 0 && e.File == w.handle.file.number; !noted {
		e = spool.Entry{}
	}
	over := s.finishedBefore(w.ID, w.handle.file.number)
	if !noted && !over {
		return false
	}
	n := int(e.Len)
	if over {
		// Whoever has the file meanwhile, and whatever signal comes: what is delivered is not
		// denied, and the file must get as long as its position says.
		done := overwritten(w, &e)
		n += done
		_ = s.alone(s.ctx, w.handle.file.gate, func() { n = s.finishWrite(ctx, w, done, &e) })
	}
	var err error
	if s.syncs(w.flags) {
		err = s.awaitDisk(ctx, w.handle, w.Pid)
	}
	s.wrote(ctx, w, n, err)
	return true
}

// overwritten is how many bytes of a write went over bytes that the file had: all before
// e, which is its note, if it has one.
func overwritten(w *pwrite, e *spool.Entry) int {
	switch {
	case e.Len > 0:
		return int(e.Off - w.off)
	case w.handle.file.one:
		return int(min(int64(len(w.data)), w.handle.write.Size()-w.off))
	}
	return len(w.data)
}

// finishWrite does what is left of a write that a predecessor began, whose first done
// bytes are committed and perhaps written, and returns its count. e is its note, if it has
// one.
func (s *server) finishWrite(ctx context.Context, w *pwrite, done int, e *spool.Entry) int {
	s.putOver(w, w.data[:done])
	if e.Len > 0 {
		return done + int(e.Len)
	}
	m := metaOf(&w.Header)
	return done + s.appendRest(ctx, w, done, &m)
}

// fpDone are places between what a request does and its reply.
var fpDone = struct {
	open, create, mknod, mkdir, unlink, rmdir, rename, setattr, truncate, allocate *failpoint.Point
	write, flush, fsync, release, lock                                             *failpoint.Point
}{
	open: done("open"), create: done("create"), mknod: done("mknod"), mkdir: done("mkdir"), unlink: done("unlink"),
	rmdir: done("rmdir"), rename: done("rename"), setattr: done("setattr"), truncate: done("truncate"), allocate: done("allocate"),
	write: done("write"), flush: done("flush"), fsync: done("fsync"), release: done("release"), lock: done("lock"),
}

func done(request string) *failpoint.Point { return failpoint.New("mount/done-" + request) }

var fpReleased = failpoint.New("mount/released") // the release is noted, the handle still in the session
