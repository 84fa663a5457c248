// Package receive is the role at the end of the way: it takes batches from the
// transport, decides where in which output file every byte will stand, commits that
// together with the batch, and then puts the bytes there.
//
//	transport.Server ─▶ handler: decode, match outputs, render lengths
//	                       │ queue.Submit: batch, delivered set and the place of
//	                       ▼ each byte in ONE transaction; then ACK
//	                     queue ─▶ cursor "apply" ─▶ applier ─▶ output files
//	                                 ▲                 │ every 64 MiB or half a second
//	                                 └── Ack ◀── checkpoint: fdatasync; then FINAL
//
// The queue is the redo log of the output files: a receiver that was killed, or lost
// power, writes the same bytes to the same places again, and finds those that are there.
package receive

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"ftfuse/config"
	"ftfuse/internal/batch"
	"ftfuse/internal/output"
	"ftfuse/queue"
	"ftfuse/transport"
)

const cursorName = "apply"

// ErrLocked is returned where another process has the state directory.
var ErrLocked = errors.New("another ftfuse receive uses this state_dir")

// Options of a Receiver beyond the configuration; for tests and for the bench.
type Options struct {
	OpenFiles       int           // descriptors kept open; default output.DefaultOpenFiles
	CheckpointEvery time.Duration // default 500 ms
	CheckpointBytes int64         // default 64 MiB
	SegmentBytes    int64         // of the queue
	Ready           func(r *Receiver)
}

// Run is the role: it returns nil after ctx ended and what could be done by then was
// done, or the error that stopped it.
func Run(ctx context.Context, c *config.Config, log *slog.Logger) error {
	return RunWith(ctx, c, log, Options{})
}

// Receiver is a running role.
type Receiver struct {
	c   *config.Config
	o   Options
	log *slog.Logger

	lock    *os.File
	q       *queue.Queue
	roots   *roots
	table   *table
	applier *applier
	handler *handler
	server  *transport.Server
	count   *counters
	addr    net.Addr
}

// Addr is where it listens.
func (r *Receiver) Addr() net.Addr { return r.addr }

// Stats returns what it did since it started.
func (r *Receiver) Stats() Stats {
	s := r.count.snapshot()
	s.OpenFiles = r.table.cache.Len()
	r.applier.mu.Lock()
	s.HeldFiles = len(r.applier.held)
	r.applier.mu.Unlock()
	return s
}

// RunWith is Run with options.
func RunWith(ctx context.Context, c *config.Config, log *slog.Logger, o Options) (err error) {
	if c.Receive == nil {
		return fmt.Errorf("receive: %s has no [receive]", c.File)
	}
	if o.CheckpointEvery == 0 {
		o.CheckpointEvery = checkpointEvery
	}
	if o.CheckpointBytes == 0 {
		o.CheckpointBytes = checkpointBytes
	}
	r := &Receiver{c: c, o: o, log: log, count: &counters{}}
	defer func() { err = errors.Join(err, r.close()) }()
	if err := r.open(ctx); err != nil {
		return err
	}
	return r.serve(ctx)
}

// open takes the locks, opens the queue and redoes what earlier runs left.
func (r *Receiver) open(ctx context.Context) error {
	if err := r.lockState(); err != nil {
		return err
	}
	s, err := newSet(r.c.Receive.Outputs)
	if err != nil {
		return err
	}
	r.roots = &roots{open: map[string]*output.Root{}}
	for _, o := range s.outputs {
		if _, err := r.roots.get(o.Dir); err != nil {
			return err
		}
	}
	qc := r.c.QueueFor(config.RoleReceive)
	if r.q, err = queue.Open(r.c.QueueDir(config.RoleReceive), r.queueOptions(qc)); err != nil {
		return err
	}
	cur, err := r.q.Cursor(cursorName)
	if err != nil {
		return err
	}
	dead := &deadDir{dir: r.c.DeadDir(config.RoleReceive), count: r.count}
	if n, err := dead.kept(); err != nil {
		return err
	} else if n > 0 {
		r.log.Warn("there are dead letters", "count", n, "dir", dead.dir)
	}
	r.table = newTable(r.roots, output.NewCache(r.o.OpenFiles, evicted), r.count)
	r.applier = newApplier(r.q, cur, r.table, dead, r.count, r.log)
	r.applier.limit = max(1, min(r.o.CheckpointBytes, int64(qc.MaxBytes)/8))
	r.applier.sets[s.id], r.applier.current = s, s.id
	r.handler = &handler{q: r.q, set: s, table: r.table, applier: r.applier, dead: dead, count: r.count, log: r.log, told: map[batch.Lane]string{}}
	r.handler.planners.New = func() any { return newPlanner(s) }
	return r.applier.redoAll(ctx, r.q)
}

func (r *Receiver) queueOptions(qc config.Queue) queue.Options {
	return queue.Options{
		SegmentBytes: r.o.SegmentBytes,
		CommitEvery:  qc.CommitEvery, CommitBytes: int64(qc.CommitBytes), MaxBytes: int64(qc.MaxBytes),
		OnFull: policies[qc.OnFull], MaxAge: qc.MaxAge,
		Dedupe: true, Cursors: []string{cursorName}, Logger: r.log,
	}
}

var policies = map[config.FullPolicy]queue.Policy{
	config.FullBlock: queue.Block, config.FullError: queue.Error,
	config.FullDropOldest: queue.DropOldest, config.FullDropNewest: queue.DropNewest,
}

func newApplier(q store, cur cursor, t *table, d *deadDir, n *counters, log *slog.Logger) *applier {
	return &applier{
		q: q, cur: cur, table: t, dead: d, count: n, log: log,
		sets: map[uint64]*set{}, planners: map[uint64]*planner{}, plans: &planCache{plans: map[batch.ID]*plan{}},
		held: map[*generation]struct{}{}, known: map[uint64]bool{}, ids: map[batch.ID]struct{}{},
		kick: make(chan struct{}, 1), full: make(chan struct{}, 1), more: make(chan struct{}, 1),
		limit: checkpointBytes,
	}
}

// lockState makes <state_dir>/receive and locks it.
func (r *Receiver) lockState() error {
	dir := r.c.RoleDir(config.RoleReceive)
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return fmt.Errorf("make the state directory: %w", err)
	}
	path := filepath.Join(dir, "lock")
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o640)
	if err != nil {
		return fmt.Errorf("lock the state directory: %w", err)
	}
	r.lock = f
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		if errors.Is(err, unix.EWOULDBLOCK) {
			return fmt.Errorf("%w: %s", ErrLocked, dir)
		}
		return fmt.Errorf("lock %q: %w", path, err)
	}
	return nil
}

// serve listens until ctx ends or something fails.
func (r *Receiver) serve(ctx context.Context) error {
	var lc net.ListenConfig
	ln, err := lc.Listen(ctx, "tcp", r.c.Receive.Listen)
	if err != nil {
		return fmt.Errorf("listen for batches: %w", err)
	}
	r.addr = ln.Addr()
	r.server = transport.NewServer(transport.ServerOptions{
		Identity: transport.Identity{Node: r.q.Node(), Host: r.c.Host, Role: string(config.RoleReceive), Product: "ftfuse"},
		Logger:   r.log,
	}, r.handler)
	r.handler.final, r.handler.finalRanges = r.server.Final, r.server.FinalRanges

	p := newParts()
	p.start("serve", func(ctx context.Context) error { return r.server.Serve(ctx, ln) })
	p.start("apply", r.applier.run)
	p.start("checkpoint", func(ctx context.Context) error {
		return r.applier.checkpoints(ctx, r.o.CheckpointEvery, r.server.Final)
	})
	r.log.Info("ready", "role", string(config.RoleReceive), "listen", r.addr.String(), "node", r.q.Node().String())
	if r.o.Ready != nil {
		r.o.Ready(r)
	}
	select {
	case <-ctx.Done():
		r.drain(p)
	case <-r.q.Failed():
		p.fail(r.q.Err())
	case <-p.failed:
	}
	// In this order: what is taken is written as far as drain got, and synced last.
	p.stop("serve", "apply", "checkpoint")
	return p.err()
}

// drain stops taking and waits, as long as shutdown_timeout lets it, until what was
// taken is written. What remains stays in the queue.
func (r *Receiver) drain(p *parts) {
	ctx, cancel := context.WithTimeout(context.Background(), r.c.ShutdownTimeout)
	defer cancel()
	if err := r.server.Shutdown(ctx); err != nil {
		r.log.Warn("peers were cut off: they did not end in time", "error", err)
	}
	if err := r.q.Flush(ctx); err != nil {
		r.log.Warn("stopping before everything was committed", "error", err)
		return
	}
	for !r.applier.settled(r.q) && !r.applier.holds() {
		select {
		case <-r.applier.more:
		case <-ctx.Done():
			r.log.Warn("stopping before everything was written: the rest stays in the queue")
			return
		case <-p.failed:
			return
		}
	}
}

// close gives everything back, in the order that keeps it safe.
func (r *Receiver) close() error {
	var errs []error
	if r.q != nil {
		errs = append(errs, r.q.Close())
	}
	if r.table != nil {
		errs = append(errs, r.table.cache.Close())
	}
	if r.roots != nil {
		errs = append(errs, r.roots.close())
	}
	if r.lock != nil {
		errs = append(errs, r.lock.Close())
	}
	return errors.Join(errs...)
}

// parts are the goroutines of a role: each with a context of its own, so that they can
// be stopped one after the other.
type parts struct {
	failed chan struct{} // closed at the first error
	once   sync.Once
	mu     sync.Mutex
	errs   []error
	all    map[string]part
}

type part struct {
	cancel context.CancelFunc
	done   chan struct{}
}

func newParts() *parts { return &parts{failed: make(chan struct{}), all: map[string]part{}} }

func (p *parts) start(name string, run func(context.Context) error) {
	ctx, cancel := context.WithCancel(context.Background())
	t := part{cancel: cancel, done: make(chan struct{})}
	p.all[name] = t
	go func() {
		defer close(t.done)
		if err := run(ctx); err != nil && ctx.Err() == nil {
			p.fail(fmt.Errorf("%s: %w", name, err))
		} else if err != nil && !errors.Is(err, context.Canceled) {
			p.fail(fmt.Errorf("stop %s: %w", name, err))
		}
	}()
}

func (p *parts) fail(err error) {
	p.mu.Lock()
	p.errs = append(p.errs, err)
	p.mu.Unlock()
	p.once.Do(func() { close(p.failed) })
}

// stop ends the parts one after the other, and waits for each.
func (p *parts) stop(names ...string) {
	for _, name := range names {
		p.all[name].cancel()
		<-p.all[name].done
	}
}

func (p *parts) err() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return errors.Join(p.errs...)
}
