package mount

import (
	"context"
	"os"
	"syscall"
	"time"

	"bazil.org/fuse"
	"golang.org/x/sys/unix"

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

// goMode and unixMode translate between st_mode and os.FileMode.
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

func unixMode(m os.FileMode) uint32 {
	mode := uint32(m & os.ModePerm)
	if m&os.ModeSetuid != 0 {
		mode |= unix.S_ISUID
	}
	if m&os.ModeSetgid != 0 {
		mode |= unix.S_ISGID
	}
	if m&os.ModeSticky != 0 {
		mode |= unix.S_ISVTX
	}
	return mode
}

func (s *server) dirAttr(d *dirNode) (fuse.Attr, error) {
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

// nodeAttr returns the attributes of whatever id is.
func (s *server) nodeAttr(id fuse.NodeID) (fuse.Attr, error) {
	if fn := s.nodes.fnode[id]; fn != nil {
		return s.fileAttr(fn.file)
	}
	if d := s.nodes.dirs[id]; d != nil {
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
	if !s.raw.attr(&r.Header, &a) {
		r.Respond(&fuse.GetattrResponse{Attr: a})
	}
}

// setattr changes attributes, the length last, which takes its time.
func (s *server) setattr(r *fuse.SetattrRequest) {
	var err error
	fn, d := s.nodes.fnode[r.Node], s.nodes.dirs[r.Node]
	switch {
	case fn != nil:
		err = s.setFile(fn.file.number, r)
		if err == nil && r.Valid.Size() {
			s.truncate(r, fn.file)
			return
		}
	case d != nil:
		err = s.setDir(d.path(), r)
	default:
		err = syscall.ESTALE
	}
	s.setattrReply(r, err)
}

func (s *server) setattrReply(r *fuse.SetattrRequest, err error) {
	var a fuse.Attr
	if err == nil {
		a, err = s.nodeAttr(r.Node)
	}
	if err != nil {
		r.RespondError(err)
		return
	}
	s.setattrDone(r, a)
}

func (s *server) setattrDone(r *fuse.SetattrRequest, a fuse.Attr) {
	if !s.raw.attr(&r.Header, &a) {
		r.Respond(&fuse.SetattrResponse{Attr: a})
	}
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
	sf, err := s.store.Acquire(f.number)
	if err != nil {
		s.log.Error("truncate", "err", err)
		r.RespondError(syscall.EIO)
		return
	}
	sf.Reserve()
	unlinked := f.unlinked
	s.later(&r.Header, func(ctx context.Context) {
		err := s.resize(ctx, f.gate, sf, int64(r.Size))
		var st unix.Stat_t
		if err == nil {
			st, err = sf.Stat()
		}
		sf.Unreserve()
		sf.Release()
		s.answered(r.ID)
		if err != nil {
			r.RespondError(s.errnoOf(ctx, err))
			return
		}
		s.n.truncates.Add(1)
		nlink := uint32(1)
		if unlinked {
			nlink = 0
		}
		s.setattrDone(r, attrOf(&st, fileInode(sf.Number()), nlink))
	})
}

// resize does what truncate says, with the file reserved. Once the intent is committed
// it goes through with it: an INTERRUPT does not stop it any more.
func (s *server) resize(ctx context.Context, g gate, f *spool.File, size int64) error {
	if err := g.enter(ctx); err != nil {
		return err
	}
	defer g.leave()
	if f.Size() == size {
		return nil
	}
	if err := s.capture.BeginTruncate(ctx, f.Number(), size); err != nil {
		return err
	}
	err := f.Truncate(size)
	if err != nil {
		size = f.Size() // the intent is closed where the file is
	}
	if ferr := s.capture.FinishTruncate(s.ctx, f.Number(), size, 0); ferr != nil && err == nil {
		err = ferr
	}
	return err
}

// allocate is fallocate(2): what makes the file longer is a truncation, the rest is not
// for an append-only file (and posix_fallocate(3) does without).
func (s *server) allocate(r *fuse.FAllocateRequest) {
	h := s.handle(r.Handle)
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
	s.later(&r.Header, func(ctx context.Context) {
		var err error
		if end := int64(r.Offset + r.Length); end > sf.Size() {
			err = s.resize(ctx, f.gate, sf, end)
		}
		sf.Unreserve()
		s.answered(r.ID)
		if err != nil {
			r.RespondError(s.errnoOf(ctx, err))
			return
		}
		r.Respond()
	})
}

func (s *server) statfs(r *fuse.StatfsRequest) {
	st, err := s.store.Statfs()
	if err != nil {
		r.RespondError(err)
		return
	}
	const block = 4096
	free := uint64(max(0, s.room.free())) / block
	if disk := st.Bavail * uint64(st.Bsize) / block; disk < free {
		free = disk
	}
	r.Respond(&fuse.StatfsResponse{
		Blocks: uint64(s.o.maxBytes) / block, Bfree: free, Bavail: free,
		Files: st.Files, Ffree: st.Ffree, Bsize: block, Frsize: block, Namelen: 255,
	})
}
