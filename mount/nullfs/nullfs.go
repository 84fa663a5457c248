// Package nullfs is a FUSE file system that throws every written byte away: the ceiling
// that `ftfuse bench` holds the real mount against. It pays what any daemon on
// bazil.org/fuse must pay for a write(2), one request read and one reply written by one
// loop, with direct I/O so that a write is one request, and nothing else.
//
// It is a reference for measurements, not a file system to keep anything on: any name
// can be created in its one directory and nothing can be read back.
package nullfs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync/atomic"
	"syscall"
	"time"

	"bazil.org/fuse"
)

// valid is how long the kernel may keep names and attributes: for ever, as seen from a
// benchmark run, so that nothing but writes is asked for while one is measured.
const valid = time.Hour

// FS is one mounted empty file system.
type FS struct {
	conn  *fuse.Conn
	dir   string
	nodes map[fuse.NodeID]uint64 // file sizes by node; owned by Serve's goroutine
	names map[string]fuse.NodeID
	next  fuse.NodeID
	bytes atomic.Uint64
}

// Mount mounts an empty file system on dir, which must exist. It execs fusermount3
// (Debian package fuse3). The caller must call Serve, which unmounts when it ends.
func Mount(dir string) (*FS, error) {
	conn, err := fuse.Mount(dir, fuse.FSName("ftfuse-null"), fuse.Subtype("ftfuse-null"))
	if err != nil {
		return nil, fmt.Errorf("mount the empty file system on %s (needs /dev/fuse and the Debian package fuse3): %w", dir, err)
	}
	return &FS{conn: conn, dir: dir, nodes: map[fuse.NodeID]uint64{}, names: map[string]fuse.NodeID{}, next: fuse.RootID + 1}, nil
}

// Bytes returns how many bytes were thrown away so far. Safe for concurrent use.
func (f *FS) Bytes() uint64 { return f.bytes.Load() }

// Serve answers requests in the calling goroutine until the file system is unmounted
// or ctx ends; it then unmounts (lazily where a file is still open) and returns nil.
func (f *FS) Serve(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { _ = f.Unmount() })
	defer stop()
	defer f.conn.Close()
	for {
		req, err := f.conn.ReadRequest()
		switch {
		case errors.Is(err, io.EOF), errors.Is(err, syscall.ENODEV):
			return nil
		case errors.Is(err, syscall.EINTR), errors.Is(err, syscall.ENOENT), errors.Is(err, syscall.EAGAIN):
			continue // the request was interrupted before it was read (fuse_dev_do_read)
		case err != nil:
			return fmt.Errorf("read a request of the empty file system on %s: %w", f.dir, err)
		}
		f.answer(req)
	}
}

// Unmount takes the file system away at once, even while files on it are open.
func (f *FS) Unmount() error {
	if err := syscall.Unmount(f.dir, syscall.MNT_DETACH); err != nil {
		return fmt.Errorf("unmount %s: %w", f.dir, err)
	}
	return nil
}

func (f *FS) answer(req fuse.Request) {
	switch r := req.(type) {
	case *fuse.WriteRequest:
		n := len(r.Data)
		if end := uint64(r.Offset) + uint64(n); end > f.nodes[r.Node] {
			f.nodes[r.Node] = end
		}
		f.bytes.Add(uint64(n))
		r.Respond(&fuse.WriteResponse{Size: n})
	case *fuse.LookupRequest:
		id, ok := f.names[r.Name]
		if !ok {
			r.RespondError(syscall.ENOENT)
			return
		}
		r.Respond(f.entry(id))
	case *fuse.CreateRequest:
		id := f.next
		f.next++
		f.names[r.Name], f.nodes[id] = id, 0
		r.Respond(&fuse.CreateResponse{LookupResponse: *f.entry(id), OpenResponse: fuse.OpenResponse{Flags: fuse.OpenDirectIO}})
	case *fuse.OpenRequest:
		if r.Dir {
			r.Respond(&fuse.OpenResponse{})
			return
		}
		r.Respond(&fuse.OpenResponse{Flags: fuse.OpenDirectIO})
	case *fuse.GetattrRequest:
		r.Respond(&fuse.GetattrResponse{Attr: f.attr(r.Node)})
	case *fuse.SetattrRequest:
		if r.Valid.Size() {
			f.nodes[r.Node] = r.Size
		}
		r.Respond(&fuse.SetattrResponse{Attr: f.attr(r.Node)})
	case *fuse.ReadRequest:
		r.Respond(&fuse.ReadResponse{})
	case *fuse.StatfsRequest:
		r.Respond(&fuse.StatfsResponse{Bsize: 4096, Namelen: 255})
	default:
		f.answerRest(req)
	}
}

// answerRest answers what is rare: calls that only need an empty reply, and refusals.
func (f *FS) answerRest(req fuse.Request) {
	switch r := req.(type) {
	case *fuse.FlushRequest:
		r.Respond()
	case *fuse.FsyncRequest:
		r.Respond()
	case *fuse.ReleaseRequest:
		r.Respond()
	case *fuse.ForgetRequest:
		r.Respond()
	case *fuse.BatchForgetRequest:
		r.Respond()
	case *fuse.InterruptRequest:
		r.Respond()
	case *fuse.DestroyRequest:
		r.Respond()
	case *fuse.AccessRequest:
		r.Respond()
	default:
		req.RespondError(syscall.ENOSYS)
	}
}

func (f *FS) entry(id fuse.NodeID) *fuse.LookupResponse {
	return &fuse.LookupResponse{Node: id, EntryValid: valid, Attr: f.attr(id)}
}

func (f *FS) attr(id fuse.NodeID) fuse.Attr {
	a := fuse.Attr{Valid: valid, Inode: uint64(id), Nlink: 1, Mode: 0o644, Uid: uint32(os.Getuid()), Gid: uint32(os.Getgid())}
	if id == fuse.RootID {
		a.Mode, a.Nlink = os.ModeDir|0o755, 2
		return a
	}
	a.Size = f.nodes[id]
	a.Blocks = (a.Size + 511) / 512
	return a
}
