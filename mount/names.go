package mount

import (
	"context"
	"os"
	"syscall"
	"time"

	"bazil.org/fuse"

	"ftfuse/internal/failpoint"
	"ftfuse/mount/kernel"
	"ftfuse/mount/spool"
)

func (s *server) lookup(r *fuse.LookupRequest) {
	parent := s.dirNode(r.Node)
	if parent == nil {
		r.RespondError(syscall.ENOTDIR)
		return
	}
	resp, err := s.entry(parent, r.Name)
	if err != nil {
		r.RespondError(err)
		return
	}
	if s.fileNode(resp.Node) != nil {
		s.looked.note(r.Pid, resp.Node, parent.child(r.Name))
	}
	s.dev.RespondEntry(&r.Header, resp)
}

// entry finds name in parent and counts a lookup of it.
func (s *server) entry(parent *dirNode, name string) (*fuse.LookupResponse, error) {
	dir, n, err := s.store.Lookup(parent.child(name))
	switch {
	case err != nil:
		return nil, err
	case dir:
		st, err := s.store.StatDir(parent.child(name))
		if err != nil {
			return nil, err
		}
		d := s.nodes.dir(parent, name, st.Ino, 1)
		return &fuse.LookupResponse{Node: d.id, Attr: attrOf(&st, dirInode(st.Ino), uint32(st.Nlink))}, nil
	}
	return s.fileEntry(n, parent, name)
}

// fileEntry counts a lookup of file n, which is name in parent.
func (s *server) fileEntry(n spool.Number, parent *dirNode, name string) (*fuse.LookupResponse, error) {
	fn := s.nodes.lookup(n, parent, name)
	a, err := s.fileAttr(fn.file)
	if err != nil {
		s.nodes.forget(fn.id, 1)
		return nil, err
	}
	return &fuse.LookupResponse{Node: fn.id, Attr: a}, nil
}

// owner says whose a new file in parent is: the configured owner's or the maker's, with
// the parent's group if the parent has the set-group-ID bit.
func (s *server) owner(parent *dirNode, h *fuse.Header) (uid, gid uint32, setgid bool, err error) {
	st, err := s.store.StatDir(parent.path())
	if err != nil {
		return 0, 0, false, err
	}
	uid, gid = h.Uid, h.Gid
	if st.Mode&syscall.S_ISGID != 0 {
		gid, setgid = st.Gid, true
	}
	if s.o.uid != nil {
		uid = *s.o.uid
	}
	if s.o.gid != nil {
		gid = *s.o.gid
	}
	return uid, gid, setgid, nil
}

// makeFile makes an empty file and counts a lookup of it. One that is there already is
// the request's own if that is resent: nobody else could make a name in between, since
// the kernel keeps the directory locked.
func (s *server) makeFile(h *fuse.Header, name string, mode os.FileMode) (*fuse.LookupResponse, *fileNode, error) {
	parent := s.dirNode(h.Node)
	if parent == nil {
		return nil, nil, syscall.ENOTDIR
	}
	uid, gid, _, err := s.owner(parent, h)
	if err != nil {
		return nil, nil, err
	}
	var n spool.Number
	sf, err := s.store.Create(parent.child(name), unixMode(mode)&^s.o.umask, uid, gid)
	switch {
	case err == nil:
		defer sf.Release()
		n = sf.Number()
	case err == syscall.EEXIST && isResent(h.ID):
		dir, there, lerr := s.store.Lookup(parent.child(name))
		if lerr != nil || dir {
			return nil, nil, err
		}
		n = there
	default:
		return nil, nil, err
	}
	resp, err := s.fileEntry(n, parent, name)
	if err != nil {
		return nil, nil, err
	}
	return resp, s.nodes.fnode[resp.Node], nil
}

func (s *server) create(r *fuse.CreateRequest) {
	if h := s.restoredHandle(r.ID); h != nil {
		s.createdBefore(r, h)
		return
	}
	resp, fn, err := s.makeFile(&r.Header, r.Name, r.Mode)
	if err == syscall.EEXIST && r.Flags&fuse.OpenExclusive == 0 {
		err = syscall.ESTALE // somebody was faster: the kernel looks it up again and opens it
	}
	if err != nil {
		r.RespondError(err)
		return
	}
	h, err := s.openFile(&r.Header, fn, r.Flags)
	if err != nil {
		s.nodes.forget(fn.id, 1)
		r.RespondError(err)
		return
	}
	s.replyCreate(r, resp, h)
}

func (s *server) replyCreate(r *fuse.CreateRequest, e *fuse.LookupResponse, h *handle) {
	_ = fpDone.create.Inject()
	if s.dev.RespondCreate(&r.Header, e, uint64(h.id), h.reply, h.backing()) != nil {
		s.closeHandle(h, &spool.Meta{Time: time.Now().UnixNano()}) // its opener is gone, no RELEASE comes
		s.nodes.forget(e.Node, 1)
	}
}

// createdBefore answers a CREATE that a predecessor had done and not answered.
func (s *server) createdBefore(r *fuse.CreateRequest, h *handle) {
	a, err := s.fileAttr(h.file)
	if err != nil {
		r.RespondError(err)
		return
	}
	h.node.lookups++
	s.replyCreate(r, &fuse.LookupResponse{Node: h.node.id, Attr: a}, h)
}

func (s *server) mknod(r *fuse.MknodRequest) {
	if r.Mode&(os.ModeType&^os.ModeIrregular) != 0 {
		r.RespondError(syscall.EPERM)
		return
	}
	resp, _, err := s.makeFile(&r.Header, r.Name, r.Mode)
	if err != nil {
		r.RespondError(err)
		return
	}
	_ = fpDone.mknod.Inject()
	s.dev.RespondEntry(&r.Header, resp)
}

func (s *server) mkdir(r *fuse.MkdirRequest) {
	parent := s.dirNode(r.Node)
	if parent == nil {
		r.RespondError(syscall.ENOTDIR)
		return
	}
	uid, gid, setgid, err := s.owner(parent, &r.Header)
	if err == nil {
		mode := unixMode(r.Mode) &^ s.o.umask
		if setgid {
			mode |= syscall.S_ISGID
		}
		err = s.store.Mkdir(parent.child(r.Name), mode, uid, gid)
	}
	if err == syscall.EEXIST && isResent(r.ID) {
		err = nil // as with makeFile
	}
	var resp *fuse.LookupResponse
	if err == nil {
		s.noteDead(parent, r.Name)
		resp, err = s.entry(parent, r.Name)
	}
	if err != nil {
		r.RespondError(err)
		return
	}
	_ = fpDone.mkdir.Inject()
	s.dev.RespondEntry(&r.Header, resp)
}

// drainPatience bounds how long a change of names waits for the capture: the kernel keeps
// the directory locked meanwhile. What is not captured then is captured later; only that
// it comes before what is written under the new name is not certain any more.
const drainPatience = time.Second

// inFolder stands for all files below a directory that gets another name.
const inFolder spool.Number = 0

// changeNames does change, which takes the names of files n away, and answers. What the
// kernel has written to those that are open so far is in the queue before, if that does not
// take too long: it is delivered under the path that its handle was opened by in any case,
// since a note says that. Where the ring had no place for that note yet the name stays
// (EBUSY): a start would take the bytes by the new one.
func (s *server) changeNames(h *fuse.Header, n []spool.Number, done *failpoint.Point, change func() error) {
	var drain []spool.Number
	for _, one := range n {
		if f := s.nodes.files[one]; f != nil && len(f.kernel) > 0 {
			drain = append(drain, one)
		}
	}
	if len(drain) == 0 && len(s.unnoted(n)) == 0 {
		err := change()
		_ = done.Inject()
		s.dev.RespondError(kernel.Forgo(h).ID, errno(err))
		return
	}
	s.later(h, func(ctx context.Context, h *fuse.Header) {
		s.drainNames(ctx, drain, n)
		// A signal ends the wait only: no program expects EINTR of rename(2) or unlink(2).
		if s.ctx.Err() != nil {
			s.answer(h.ID, func() { s.dev.RespondError(h.ID, syscall.ESHUTDOWN) })
			return
		}
		s.mu.Lock()
		err := error(syscall.EBUSY)
		if left := s.unnoted(n); len(left) == 0 {
			err = change()
		} else {
			s.log.Warn("a file keeps its name (EBUSY): who opened it is not noted yet, since the capture is behind", "file", left[0].String())
		}
		s.mu.Unlock()
		_ = done.Inject()
		s.answer(h.ID, func() { s.dev.RespondError(h.ID, errno(err)) })
	})
}

// drainNames waits until what was written to the files drain, and to those among n of which
// it is not noted who opened them, is in the queue, for drainPatience at most.
func (s *server) drainNames(ctx context.Context, drain, n []spool.Number) {
	wait, cancel := context.WithTimeout(ctx, drainPatience)
	defer cancel()
	for list := append(drain, s.unnoted(n)...); len(list) > 0 && wait.Err() == nil; list = s.unnoted(n) {
		for _, one := range list {
			if err := s.capture.DrainNow(wait, one); err != nil && s.ctx.Err() == nil {
				s.log.Warn("not all that was written to a file is captured when its name changes; the rest follows", "file", one.String(), "err", err)
			}
		}
	}
}

// unnoted returns the files among n of which it is not noted yet who opened them.
func (s *server) unnoted(n []spool.Number) (list []spool.Number) {
	for _, one := range n {
		list = append(list, s.store.OwesOpening(one)...)
	}
	return list
}

// errno is what a program gets for an error of the store's calls on names, which are bare.
func errno(err error) syscall.Errno {
	if err == nil {
		return 0
	}
	if e, ok := err.(syscall.Errno); ok {
		return e
	}
	return syscall.EIO
}

func (s *server) remove(r *fuse.RemoveRequest) {
	parent := s.dirNode(r.Node)
	if parent == nil {
		r.RespondError(syscall.ENOTDIR)
		return
	}
	dir, n, err := s.store.Lookup(parent.child(r.Name))
	if err == syscall.ENOENT && isResent(r.ID) {
		r.Respond() // done before
		return
	}
	if err == nil && r.Dir && !dir {
		err = syscall.ENOTDIR
	}
	if err != nil {
		r.RespondError(err)
		return
	}
	if r.Dir {
		s.changeNames(&r.Header, nil, fpDone.rmdir, func() error {
			err := s.store.Rmdir(parent.child(r.Name))
			if err == nil {
				s.nodes.removed(parent, r.Name)
			}
			return err
		})
		return
	}
	s.changeNames(&r.Header, []spool.Number{n}, fpDone.unlink, func() error {
		err := s.store.Unlink(parent.child(r.Name))
		if err == nil {
			s.nodes.unlinked(n)
		}
		return err
	})
}

func (s *server) rename(r *fuse.RenameRequest) {
	from, to := s.dirNode(r.Node), s.dirNode(r.NewDir)
	if from == nil || to == nil {
		r.RespondError(syscall.ENOTDIR)
		return
	}
	oldPath, newPath := from.child(r.OldName), to.child(r.NewName)
	dir, n, err := s.store.Lookup(oldPath)
	_, over, overErr := s.store.Lookup(newPath)
	if oldPath == newPath || err == syscall.ENOENT && overErr == nil && isResent(r.ID) {
		r.Respond() // nothing to do, or done before
		return
	}
	if err != nil {
		r.RespondError(err)
		return
	}
	files := []spool.Number{n}
	if dir {
		files[0] = inFolder
	}
	if overErr == nil && over != 0 {
		files = append(files, over)
	}
	s.changeNames(&r.Header, files, fpDone.rename, func() error {
		err := s.store.Rename(from.child(r.OldName), to.child(r.NewName))
		if err != nil {
			return err
		}
		if overErr == nil && over != 0 {
			s.nodes.unlinked(over)
		}
		s.nodes.renamed(n, dir, from, r.OldName, to, r.NewName)
		return nil
	})
}
