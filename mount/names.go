package mount

import (
	"os"
	"syscall"

	"bazil.org/fuse"

	"ftfuse/mount/spool"
)

func (s *server) lookup(r *fuse.LookupRequest) {
	parent := s.nodes.dirs[r.Node]
	if parent == nil {
		r.RespondError(syscall.ENOTDIR)
		return
	}
	resp, err := s.entry(parent, r.Name)
	if err != nil {
		r.RespondError(err)
		return
	}
	if !s.raw.entry(&r.Header, resp) {
		r.Respond(resp)
	}
}

// entry finds name in parent and counts a lookup of it.
func (s *server) entry(parent *dirNode, name string) (*fuse.LookupResponse, error) {
	dir, n, err := s.store.Lookup(parent.child(name))
	switch {
	case err != nil:
		return nil, err
	case dir:
		d := s.nodes.dir(parent, name)
		a, err := s.dirAttr(d)
		if err != nil {
			s.nodes.forget(d.id, 1)
			return nil, err
		}
		return &fuse.LookupResponse{Node: d.id, Attr: a}, nil
	}
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

// makeFile makes an empty file and counts a lookup of it. The file is acquired.
func (s *server) makeFile(h *fuse.Header, name string, mode os.FileMode) (*fuse.LookupResponse, *fileNode, *spool.File, error) {
	parent := s.nodes.dirs[h.Node]
	if parent == nil {
		return nil, nil, nil, syscall.ENOTDIR
	}
	uid, gid, _, err := s.owner(parent, h)
	if err != nil {
		return nil, nil, nil, err
	}
	sf, err := s.store.Create(parent.child(name), unixMode(mode)&^s.o.umask, uid, gid)
	if err != nil {
		return nil, nil, nil, err
	}
	fn := s.nodes.lookup(sf.Number(), parent, name)
	a, err := s.fileAttr(fn.file)
	if err != nil {
		s.nodes.forget(fn.id, 1)
		sf.Release()
		return nil, nil, nil, err
	}
	return &fuse.LookupResponse{Node: fn.id, Attr: a}, fn, sf, nil
}

func (s *server) create(r *fuse.CreateRequest) {
	resp, fn, sf, err := s.makeFile(&r.Header, r.Name, r.Mode)
	if err == syscall.EEXIST && r.Flags&fuse.OpenExclusive == 0 {
		err = syscall.ESTALE // somebody was faster: the kernel looks it up again and opens it
	}
	if err != nil {
		r.RespondError(err)
		return
	}
	h, err := s.openFile(fn, r.Flags)
	sf.Release()
	if err != nil {
		s.nodes.forget(fn.id, 1)
		r.RespondError(err)
		return
	}
	r.Respond(&fuse.CreateResponse{
		LookupResponse: *resp,
		OpenResponse:   fuse.OpenResponse{Handle: h.id, Flags: fuse.OpenDirectIO},
	})
}

func (s *server) mknod(r *fuse.MknodRequest) {
	if r.Mode&(os.ModeType&^os.ModeIrregular) != 0 {
		r.RespondError(syscall.EPERM)
		return
	}
	resp, _, sf, err := s.makeFile(&r.Header, r.Name, r.Mode)
	if err != nil {
		r.RespondError(err)
		return
	}
	sf.Release()
	if !s.raw.entry(&r.Header, resp) {
		r.Respond(resp)
	}
}

func (s *server) mkdir(r *fuse.MkdirRequest) {
	parent := s.nodes.dirs[r.Node]
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
	var resp *fuse.LookupResponse
	if err == nil {
		resp, err = s.entry(parent, r.Name)
	}
	if err != nil {
		r.RespondError(err)
		return
	}
	if !s.raw.entry(&r.Header, resp) {
		r.Respond(&fuse.MkdirResponse{LookupResponse: *resp})
	}
}

func (s *server) remove(r *fuse.RemoveRequest) {
	parent := s.nodes.dirs[r.Node]
	if parent == nil {
		r.RespondError(syscall.ENOTDIR)
		return
	}
	path := parent.child(r.Name)
	dir, n, err := s.store.Lookup(path)
	switch {
	case err != nil:
	case r.Dir && !dir:
		err = syscall.ENOTDIR
	case r.Dir:
		if err = s.store.Rmdir(path); err == nil {
			s.nodes.removed(parent, r.Name)
		}
	default:
		if err = s.store.Unlink(path); err == nil {
			s.nodes.unlinked(n)
		}
	}
	if err != nil {
		r.RespondError(err)
		return
	}
	r.Respond()
}

func (s *server) rename(r *fuse.RenameRequest) {
	if err := s.renameNames(r); err != nil {
		r.RespondError(err)
		return
	}
	r.Respond()
}

func (s *server) renameNames(r *fuse.RenameRequest) error {
	from, to := s.nodes.dirs[r.Node], s.nodes.dirs[r.NewDir]
	if from == nil || to == nil {
		return syscall.ENOTDIR
	}
	oldPath, newPath := from.child(r.OldName), to.child(r.NewName)
	if oldPath == newPath {
		return nil
	}
	dir, n, err := s.store.Lookup(oldPath)
	if err != nil {
		return err
	}
	overDir, over, overErr := s.store.Lookup(newPath)
	if err := s.store.Rename(oldPath, newPath); err != nil {
		return err
	}
	if overErr == nil && !overDir {
		s.nodes.unlinked(over)
	}
	s.nodes.renamed(n, dir, from, r.OldName, to, r.NewName)
	return nil
}
