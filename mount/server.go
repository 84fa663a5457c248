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

	"ftfuse/mount/kernel"
	"ftfuse/mount/procs"
	"ftfuse/mount/session"
	"ftfuse/mount/spool"
)

// capturer is what the file system asks of the capture behind it. Its methods are safe
// for concurrent use and return ctx's error when ctx ends first.
type capturer interface {
	// Drain returns when everything accepted so far of file n is in the queue, on disk.
	Drain(ctx context.Context, n spool.Number) error
	// DrainNow does not wait for room in the queue.
	DrainNow(ctx context.Context, n spool.Number) error
	// BeginTruncate drains file n and commits that it is about to be cut to size.
	BeginTruncate(ctx context.Context, n spool.Number, size int64) error
	// FinishTruncate commits that it was, by the request unique.
	FinishTruncate(ctx context.Context, n spool.Number, size int64, unique uint64) error
	// Overwrite commits data, which is about to be written over bytes of file n that were
	// captured, as a record; the file then is captured up to end at least.
	Overwrite(ctx context.Context, n spool.Number, e spool.Entry, data []byte, end int64) error
	// Finished returns the request whose truncation or overwrite of file n was committed
	// last on this connection.
	Finished(n spool.Number) (unique uint64, ok bool)
}

// throttler slows down the programs for which the kernel writes.
type throttler interface {
	// Hold is asked with each change of a file's times by thread tid, in the request loop. nil:
	// it takes place. Else it does not, and is answered when the channel is closed: meanwhile
	// the kernel keeps everybody from writing to the file.
	Hold(tid uint32, n spool.Number) <-chan struct{}
}

// settings of a server.
type settings struct {
	limits
	sync     bool // every write(2) is on disk before it returns
	refuse   bool // a write over captured bytes gets EPERM
	umask    uint32
	uid, gid *uint32                // owner of new files; nil: who makes them
	one      func(path string) bool // whether the kernel may write to a file of this path by itself
	binary   func(path string) bool // whether close(2) ends a record of this path
	rules    *ruleView              // behind the three; nil in tests
	asks     func(path string) bool // whether records of this path tell of processes; nil: none does
}

// limits are what decides about a write when the queue is full. They may change.
type limits struct {
	full     fullPolicy
	maxBytes int64
}

type fullPolicy int

const (
	fullBlock fullPolicy = iota
	fullError
	fullPass // the queue drops
)

// server answers the kernel's requests: one loop reads them and answers what cannot
// block; everything else runs on goroutines of its own, which stop and leave wait for.
//
// mu guards names, nodes, handles and locks. The loop holds it over each request but
// WRITE, which needs none of it; a goroutine takes it for what it changes at its end.
type server struct {
	o        settings
	conn     *fuse.Conn
	dev      *kernel.Device
	store    *spool.Store
	capture  capturer
	session  *session.Session
	throttle throttler   // nil for none
	fail     func(error) // told of what the role must end for
	log      *slog.Logger
	room     room

	ctx     context.Context // ends when the server stops waiting for anything
	cancel  context.CancelFunc
	wg      sync.WaitGroup
	pending pending
	pollers pollers
	parking parking
	reading turns
	procs   *procs.Table  // with settings.asks
	point   string        // where it is mounted
	looking turns         // opens that wait for a look at their process
	closing atomic.Bool   // no write is accepted any more
	leaving atomic.Bool   // a successor takes over: nothing is answered any more
	served  chan struct{} // closed when the loop has ended

	progress progress // of the loop

	limits atomic.Pointer[limits]

	longestHold *atomic.Int64 // ns: the longest that the throttle kept a change of times, from request to answer

	handles handleTable

	mu            sync.Mutex
	nodes         *nodeTable
	looked        lookedUp
	written       map[*file]bool     // those with handles through which the kernel writes
	restored      map[uint64]*handle // handles of a predecessor, by the request that opened them
	backingFailed sync.Once

	n counters
}

// counters of a server; the loop and the slow operations add, anybody may read. slowFiles is a gauge
// (file.slow).
type counters struct {
	writes, bytes, parked, refusedFull, overwrites, refusedOver, interrupted, truncates, slowFiles atomic.Int64
}

// newServer makes the server of a connection. sess is that connection's; free says how many
// bytes may be accepted.
func newServer(conn *fuse.Conn, dev *kernel.Device, store *spool.Store, c capturer, sess *session.Session, free func() int64, o settings, log *slog.Logger) *server {
	s := &server{
		o: o, conn: conn, dev: dev, store: store, capture: c, session: sess, log: log,
		fail:        func(error) {},
		longestHold: new(atomic.Int64), nodes: newNodeTable(o.one), looked: lookedUp{}, written: map[*file]bool{}, served: make(chan struct{}),
	}
	s.limits.Store(&o.limits)
	s.room.free = free
	s.parking = parking{dir: store.Dir(), limit: parkedMemory}
	s.reading = make(turns, readTurns)
	s.looking = make(turns, lookTurns)
	s.ctx, s.cancel = context.WithCancel(context.Background())
	return s
}

// serve answers requests until the file system is unmounted, the connection closed or
// leave called. It may be called once.
func (s *server) serve() error {
	defer close(s.served)
	for {
		req, err := s.conn.ReadRequest()
		switch {
		case s.leaving.Load(): // a request that was read is the successor's: the kernel gives it again
			return nil
		case err == nil:
			s.progress.turn()
			if w, ok := req.(*fuse.WriteRequest); ok {
				s.writeRequest(w)
			} else {
				s.request(req)
			}
			s.progress.turn()
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
	s.mu.Lock()
	defer s.mu.Unlock()
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
		s.openAfterLook(r)
	case *fuse.CreateRequest:
		s.createAfterLook(r)
	case *fuse.ReadRequest:
		s.read(r)
	case *fuse.FlushRequest:
		s.flushAfterLook(r)
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

// fileHandle returns an open file, nil if id is none.
func (s *server) fileHandle(id fuse.HandleID) *handle {
	if h := s.handles.get(id); h != nil && h.file != nil {
		return h
	}
	return nil
}
