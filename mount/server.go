package mount

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"
	"syscall"

	"bazil.org/fuse"

	"ftfuse/mount/spool"
)

// capturer is what the file system asks of the capture behind it. Its methods are safe
// for concurrent use and return ctx's error when ctx ends first.
type capturer interface {
	// Drain returns when everything accepted so far of file n is in the queue, on disk.
	Drain(ctx context.Context, n spool.Number) error
	// BeginTruncate drains file n and commits that it is about to be cut to size.
	BeginTruncate(ctx context.Context, n spool.Number, size int64) error
	// FinishTruncate commits that it was.
	FinishTruncate(ctx context.Context, n spool.Number, size int64, unique uint64) error
	// Overwrite commits data, which is about to be written over bytes of file n that were
	// captured, as a record; the file then is captured up to end at least.
	Overwrite(ctx context.Context, n spool.Number, e spool.Entry, data []byte, end int64) error
}

// settings of a server.
type settings struct {
	full     fullPolicy
	sync     bool // every write(2) is on disk before it returns
	refuse   bool // a write over captured bytes gets EPERM
	umask    uint32
	uid, gid *uint32 // owner of new files; nil: who makes them
	maxBytes int64
}

type fullPolicy int

const (
	fullBlock fullPolicy = iota
	fullError
	fullPass // the queue drops
)

// server answers the kernel's requests: one loop reads them and answers what cannot
// block; everything else runs on goroutines of its own, which Serve waits for. The
// node table and the handles belong to the loop.
type server struct {
	o       settings
	conn    *fuse.Conn
	raw     rawConn
	store   *spool.Store
	capture capturer
	log     *slog.Logger
	room    room

	ctx     context.Context // ends when the server stops waiting for anything
	cancel  context.CancelFunc
	wg      sync.WaitGroup
	pending pending
	pollers pollers
	closing atomic.Bool // no write is accepted any more

	nodes   *nodeTable
	handles map[fuse.HandleID]*handle
	lastID  fuse.HandleID

	n counters
}

// counters of a server; the loop and the slow operations add, anybody may read.
type counters struct {
	writes, bytes, parked, refusedFull, overwrites, refusedOver, interrupted, truncates atomic.Int64
}

// handle is an open file or directory.
type handle struct {
	id    fuse.HandleID
	file  *file         // nil for a directory
	node  *fileNode     //
	write *spool.Handle // nil if it is not open for writing

	dir     *dirNode // nil for a file
	mu      sync.Mutex
	listing []byte // what READDIR gives, from the newest read at offset 0
}

func newServer(conn *fuse.Conn, store *spool.Store, c capturer, free func() int64, o settings, log *slog.Logger) *server {
	s := &server{
		o: o, conn: conn, store: store, capture: c, log: log,
		raw: rawConn{-1}, nodes: newNodeTable(), handles: map[fuse.HandleID]*handle{},
	}
	s.room.free = free
	s.ctx, s.cancel = context.WithCancel(context.Background())
	return s
}

// serve answers requests until the file system is unmounted or the connection closed.
func (s *server) serve() error {
	for {
		req, err := s.conn.ReadRequest()
		switch {
		case err == nil:
			if w, ok := req.(*fuse.WriteRequest); ok {
				s.writeRequest(w)
			} else {
				s.request(req)
			}
		case err == io.EOF, err == syscall.ENODEV, err == syscall.EBADF:
			return nil
		case err == syscall.EINTR, err == syscall.EAGAIN, err == syscall.ENOENT: // ENOENT: given up before it was read
		case errors.As(err, new(syscall.Errno)):
			return fmt.Errorf("read a request from the kernel: %w", err)
		default: // a request that the library cannot decode: it is not answered
			s.log.Error("request not understood", "err", err)
		}
	}
}

// stop makes everything that waits give up, and returns when it has.
func (s *server) stop() {
	s.cancel()
	s.wg.Wait()
}

func (s *server) request(req fuse.Request) {
	switch r := req.(type) {
	case *fuse.LookupRequest:
		s.lookup(r)
	case *fuse.ForgetRequest:
		s.nodes.forget(r.Node, r.N)
		r.Respond()
	case *fuse.BatchForgetRequest:
		for _, f := range r.Forget {
			s.nodes.forget(f.NodeID, f.N)
		}
		r.Respond()
	case *fuse.GetattrRequest:
		s.getattr(r)
	case *fuse.SetattrRequest:
		s.setattr(r)
	case *fuse.OpenRequest:
		s.open(r)
	case *fuse.CreateRequest:
		s.create(r)
	case *fuse.ReadRequest:
		s.read(r)
	case *fuse.FlushRequest:
		s.flush(r)
	case *fuse.ReleaseRequest:
		s.release(r)
	case *fuse.FsyncRequest:
		s.fsync(r)
	case *fuse.InterruptRequest:
		id := r.IntrID
		r.Respond()
		s.pending.interrupt(id)
	default:
		s.rareRequest(req)
	}
}

func (s *server) rareRequest(req fuse.Request) {
	switch r := req.(type) {
	case *fuse.MkdirRequest:
		s.mkdir(r)
	case *fuse.RemoveRequest:
		s.remove(r)
	case *fuse.RenameRequest:
		s.rename(r)
	case *fuse.MknodRequest:
		s.mknod(r)
	case *fuse.StatfsRequest:
		s.statfs(r)
	case *fuse.LockRequest:
		s.lock(r)
	case *fuse.LockWaitRequest:
		s.lockWait(r)
	case *fuse.UnlockRequest:
		s.unlock(r)
	case *fuse.QueryLockRequest:
		s.queryLock(r)
	case *fuse.PollRequest:
		s.poll(r)
	case *fuse.FAllocateRequest:
		s.allocate(r)
	case *fuse.SymlinkRequest, *fuse.LinkRequest:
		req.RespondError(syscall.EPERM) // what file systems without links say (symlink(2), link(2))
	case *fuse.DestroyRequest:
		r.Respond()
	default: // xattrs, RENAME2, LSEEK, IOCTL and the like: the kernel does without
		req.RespondError(syscall.ENOSYS)
	}
}

func (s *server) handle(id fuse.HandleID) *handle {
	h := s.handles[id]
	if h == nil || h.file == nil {
		return nil
	}
	return h
}
