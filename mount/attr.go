package mount

import (
	"context"
	"errors"
	"os"
	"sync/atomic"
	"syscall"
	"time"

	"bazil.org/fuse"
	"golang.org/x/sys/unix"

	"ftfuse/mount/kernel"
	"ftfuse/mount/spool"
)

// Inode numbers that programs see: even ones for directories, odd ones for files. All
// nodes of a file share its number.
func dirInode(ino uint64) uint64          { return ino << 1 }
func fileInode(n spool.Number) uint64     { return uint64(n)<<1 | 1 }
func unixTime(ts unix.Timespec) time.Time { return time.Unix(ts.Unix()) }

// attrOf makes the kernel's attributes of a stat. They are valid for no time: the
// kernel asks again each time, since files grow by other ways than the asking node.
func attrOf(st *unix.Stat_t, inode uint64, nlink uint32) fuse.Attr {
	return fuse.Attr{
		Inode: inode, Size: uint64(st.Size), Blocks: uint64(st.Blocks),
		Atime: unixTime(st.Atim), Mtime: unixTime(st.Mtim), Ctime: unixTime(st.Ctim),
		Mode: goMode(st.Mode), Nlink: nlink, Uid: st.Uid, Gid: st.Gid, BlockSize: uint32(st.Blksize),
	}
}

// goMode is the mode of st_mode, unixMode the permissions of a mode as st_mode has them.
func goMode(mode uint32) os.FileMode {
	m := os.FileMode(mode & 0o777)
	if mode&unix.S_IFMT == unix.S_IFDIR {
		m |= os.ModeDir
	}
	if mode&unix.S_ISUID != 0 {
		m |= os.ModeSetuid
	}
	if mode&unix.S_ISGID != 0 {
		m |= os.ModeSetgid
	}
	if mode&unix.S_ISVTX != 0 {
		m |= os.ModeSticky
	}
	return m
}

func unixMode(m os.FileMode) uint32 { return kernel.UnixMode(m) &^ unix.S_IFMT }

// dirAttr returns the attributes of d, ENOENT where it was removed: what has its name now is another.
func (s *server) dirAttr(d *dirNode) (fuse.Attr, error) {
	if d.isRemoved() {
		return fuse.Attr{}, syscall.ENOENT
	}
	st, err := s.store.StatDir(d.path())
	if err != nil {
		return fuse.Attr{}, err
	}
	return attrOf(&st, dirInode(st.Ino), uint32(st.Nlink)), nil
}

func (s *server) fileAttr(f *file) (fuse.Attr, error) {
	var st unix.Stat_t
	var err error
	if f.spool != nil {
		st, err = f.spool.Stat()
	} else {
		st, err = s.store.StatFile(f.number)
	}
	if err != nil {
		return fuse.Attr{}, err
	}
	nlink := uint32(1)
	if f.unlinked {
		nlink = 0
	}
	return attrOf(&st, fileInode(f.number), nlink), nil
}

// stale is err, of a call on the file of a node that the kernel named, as the kernel is to hear
// it. A file can be removed between the LOOKUP that found it and what is asked of it next: for
// ESTALE the kernel looks the name up again, and the program gets what is there now.
func stale(err error) error {
	if errors.Is(err, unix.ENOENT) {
		return syscall.ESTALE
	}
	return err
}

// nodeAttr returns the attributes of whatever id is.
func (s *server) nodeAttr(id fuse.NodeID) (fuse.Attr, error) {
	if fn := s.fileNode(id); fn != nil {
		a, err := s.fileAttr(fn.file)
		return a, stale(err)
	}
	if d := s.dirNode(id); d != nil {
		return s.dirAttr(d)
	}
	return fuse.Attr{}, syscall.ESTALE
}

func (s *server) getattr(r *fuse.GetattrRequest) {
	a, err := s.nodeAttr(r.Node)
	if err != nil {
		r.RespondError(err)
		return
	}
	s.dev.RespondAttr(&r.Header, &a)
}

// setattr changes attributes, the length last, which takes its time.
func (s *server) setattr(r *fuse.SetattrRequest) {
	var err error
	fn, d := s.fileNode(r.Node), s.dirNode(r.Node)
	switch {
	case fn != nil && s.held(r, fn.file):
		return
	case fn != nil:
		err = stale(s.setFile(fn.file.number, r))
		if err == nil && r.Valid.Size() {
			s.truncate(r, fn.file)
			return
		}
	case d != nil:
		if _, err = s.dirAttr(d); err == nil {
			err = s.setDir(d.path(), r)
		}
	default:
		err = syscall.ESTALE
	}
	var a fuse.Attr
	if err == nil {
		a, err = s.nodeAttr(r.Node)
	}
	if err != nil {
		r.RespondError(err)
		return
	}
	_ = fpDone.setattr.Inject()
	s.dev.RespondAttr(&r.Header, &a)
}

// held lets the throttle have a change of a file's times that it asked for itself, and
// reports whether it did: it is answered when the throttle says so.
func (s *server) held(r *fuse.SetattrRequest, f *file) bool {
	if s.throttle == nil || r.Valid.Size() || r.Valid.Mode() || r.Valid.Uid() || r.Valid.Gid() {
		return false
	}
	began := time.Now()
	free := s.throttle.Hold(r.Pid, f.number)
	if free == nil {
		return false
	}
	s.later(&r.Header, func(ctx context.Context, h *fuse.Header) {
		select {
		case <-free:
		case <-ctx.Done():
		}
		s.mu.Lock()
		a, err := s.fileAttr(f)
		s.mu.Unlock()
		s.answer(h.ID, func() { s.replyAttr(h, &a, err) })
		raise(s.longestHold, int64(time.Since(began)))
	})
	return true
}

// raise makes v at least n.
func raise(v *atomic.Int64, n int64) {
	for old := v.Load(); n > old && !v.CompareAndSwap(old, n); old = v.Load() {
	}
}

func (s *server) replyAttr(h *fuse.Header, a *fuse.Attr, err error) {
	if err != nil {
		s.dev.RespondError(h.ID, errno(err))
		return
	}
	s.dev.RespondAttr(h, a)
}

// owners returns what chown gets: ^0 for an id that stays.
func owners(r *fuse.SetattrRequest) (uid, gid uint32, any bool) {
	uid, gid = ^uint32(0), ^uint32(0)
	if r.Valid.Uid() {
		uid = r.Uid
	}
	if r.Valid.Gid() {
		gid = r.Gid
	}
	return uid, gid, r.Valid.Uid() || r.Valid.Gid()
}

// times returns what utimensat gets.
func times(r *fuse.SetattrRequest) (atime, mtime unix.Timespec, any bool) {
	pick := func(set, now bool, t time.Time) unix.Timespec {
		switch {
		case now:
			return unix.Timespec{Nsec: unix.UTIME_NOW}
		case set:
			any = true
			return unix.NsecToTimespec(t.UnixNano())
		}
		return unix.Timespec{Nsec: unix.UTIME_OMIT}
	}
	atime = pick(r.Valid.Atime(), r.Valid.AtimeNow(), r.Atime)
	mtime = pick(r.Valid.Mtime(), r.Valid.MtimeNow(), r.Mtime)
	return atime, mtime, any || r.Valid.AtimeNow() || r.Valid.MtimeNow()
}

func (s *server) setFile(n spool.Number, r *fuse.SetattrRequest) error {
	if uid, gid, any := owners(r); any {
		if err := s.store.Chown(n, uid, gid); err != nil {
			return err
		}
	}
	if r.Valid.Mode() {
		if err := s.store.Chmod(n, unixMode(r.Mode)); err != nil {
			return err
		}
	}
	if atime, mtime, any := times(r); any {
		return s.store.Utimens(n, atime, mtime)
	}
	return nil
}

func (s *server) setDir(path string, r *fuse.SetattrRequest) error {
	if uid, gid, any := owners(r); any {
		if err := s.store.ChownDir(path, uid, gid); err != nil {
			return err
		}
	}
	if r.Valid.Mode() {
		if err := s.store.ChmodDir(path, unixMode(r.Mode)); err != nil {
			return err
		}
	}
	if atime, mtime, any := times(r); any {
		return s.store.UtimensDir(path, atime, mtime)
	}
	return nil
}

// truncate sets the length of a file: what it has is drained and committed, with the
// intent, before it takes effect, and the new position after. Writes of the file wait
// meanwhile.
func (s *server) truncate(r *fuse.SetattrRequest, f *file) {
	if int64(r.Size) < 0 {
		r.RespondError(syscall.EFBIG)
		return
	}
	sf, err := s.acquire(f.number, "truncate", f.path())
	if err != nil {
		r.RespondError(err)
		return
	}
	sf.Reserve()
	size := int64(r.Size)
	marks := size == 0 || r.Valid.Handle() // not truncate(2), which cannot be told from O_TRUNC where that is to 0
	s.later(&r.Header, func(ctx context.Context, h *fuse.Header) {
		err := s.alone(ctx, f.gate, func() {
			if marks && sf.Size() == size {
				s.truncated(ctx, h, f, sf, s.modified(sf))
				return
			}
			err := s.resizeOnce(ctx, h.ID, sf, size)
			s.truncated(ctx, h, f, sf, err)
		})
		if err != nil {
			s.truncated(ctx, h, f, sf, err)
		}
		sf.Unreserve()
		sf.Release()
	})
}

// modified gives f the time of now: O_TRUNC and ftruncate(2) mark a file as changed also where
// they leave its length, and the kernel leaves that to who serves it (fs/fuse/dir.c, update_mtime).
func (s *server) modified(f *spool.File) error {
	return s.store.Utimens(f.Number(), unix.Timespec{Nsec: unix.UTIME_OMIT}, unix.Timespec{Nsec: unix.UTIME_NOW})
}

// alone runs work while nothing else has the file for itself. What is answered there is
// answered before anything else of the file is done: a resent request then is the last
// that was.
func (s *server) alone(ctx context.Context, g gate, work func()) error {
	if err := g.enter(ctx); err != nil {
		return err
	}
	defer g.leave()
	work()
	return nil
}

// truncated answers the truncation h of f, which ended with err.
func (s *server) truncated(ctx context.Context, h *fuse.Header, f *file, sf *spool.File, err error) {
	var st unix.Stat_t
	if err == nil {
		st, err = sf.Stat()
	}
	if err != nil {
		errno := s.errnoOf(ctx, err)
		s.answer(h.ID, func() { s.dev.RespondError(h.ID, errno) })
		return
	}
	s.n.truncates.Add(1)
	nlink := uint32(1)
	s.mu.Lock()
	if f.unlinked {
		nlink = 0
	}
	s.mu.Unlock()
	a := attrOf(&st, fileInode(sf.Number()), nlink)
	_ = fpDone.truncate.Inject()
	s.answer(h.ID, func() { s.dev.RespondAttr(h, &a) })
}

// resizeOnce is resize, unless a predecessor has done it for the same request.
func (s *server) resizeOnce(ctx context.Context, id fuse.RequestID, f *spool.File, size int64) error {
	if s.finishedBefore(id, f.Number()) {
		return nil
	}
	return s.resize(ctx, id, f, size)
}

// resize does what truncate says, with the file reserved and alone. Once the intent is
// committed it goes through with it: an INTERRUPT does not stop it any more.
func (s *server) resize(ctx context.Context, id fuse.RequestID, f *spool.File, size int64) error {
	if f.Size() == size {
		return nil
	}
	if err := s.capture.BeginTruncate(ctx, f.Number(), size); err != nil {
		return err
	}
	err := f.Truncate(size)
	if errors.Is(err, spool.ErrOldLength) {
		return err
	}
	if err != nil {
		size = f.Size() // the intent is closed where the file is
	}
	if ferr := s.capture.FinishTruncate(s.ctx, f.Number(), size, uniqueOf(id)); ferr != nil && err == nil {
		err = ferr
	}
	return err
}

// allocate is fallocate(2): what makes the file longer is a truncation, the rest is not
// for an append-only file (and posix_fallocate(3) does without).
func (s *server) allocate(r *fuse.FAllocateRequest) {
	h := s.fileHandle(r.Handle)
	switch {
	case h == nil || h.write == nil:
		r.RespondError(syscall.EBADF)
	case r.Mode != 0:
		r.RespondError(syscall.EOPNOTSUPP)
	case int64(r.Offset+r.Length) < 0:
		r.RespondError(syscall.EFBIG)
	default:
		s.extend(r, h.file)
	}
}

func (s *server) extend(r *fuse.FAllocateRequest, f *file) {
	sf := f.spool
	sf.Reserve()
	end := int64(r.Offset + r.Length)
	s.later(&r.Header, func(ctx context.Context, h *fuse.Header) {
		var err error
		aerr := s.alone(ctx, f.gate, func() {
			if end > sf.Size() {
				err = s.resize(ctx, h.ID, sf, end)
			}
		})
		sf.Unreserve()
		if aerr != nil {
			err = aerr
		}
		errno := s.errnoOf(ctx, err)
		_ = fpDone.allocate.Inject()
		s.answer(h.ID, func() { s.dev.RespondError(h.ID, errno) })
	})
}

func (s *server) statfs(r *fuse.StatfsRequest) {
	st, err := s.store.Statfs()
	if err != nil {
		r.RespondError(err)
		return
	}
	total, free := capacity(s.limits.Load().maxBytes, s.room.free(), int64(st.Bavail)*st.Bsize)
	r.Respond(&fuse.StatfsResponse{
		Blocks: total, Bfree: free, Bavail: free,
		Files: st.Files, Ffree: st.Ffree, Bsize: statfsBlock, Frsize: statfsBlock, Namelen: 255,
	})
}

// statfsBlock is the unit in which df is answered.
const statfsBlock = 4096

// capacity is what df shows, in blocks. In use is what the queue holds; free is what can still
// be accepted: the room up to max_bytes, or what the disk has, if that is less. The size is
// their sum, so that a disk smaller than max_bytes does not look used.
func capacity(maxBytes, room, disk int64) (total, free uint64) {
	used := uint64(max(0, maxBytes-room)+statfsBlock-1) / statfsBlock
	free = uint64(max(0, min(room, disk))) / statfsBlock
	return used + free, free
}
