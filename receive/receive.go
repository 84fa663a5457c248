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
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"ftfuse/config"
	"ftfuse/internal/batch"
	"ftfuse/internal/control"
	"ftfuse/internal/queuetool"
	"ftfuse/internal/service"
	"ftfuse/internal/sink"
	"ftfuse/internal/status"
	"ftfuse/internal/systemd"
	"ftfuse/internal/upstream"
	"ftfuse/queue"
	"ftfuse/transport"
)

const cursorName = "apply"

// Options of a Receiver beyond the configuration; for tests and for the bench.
type Options struct {
	OpenFiles       int           // see sink.Options
	CheckpointEvery time.Duration // see sink.Options
	CheckpointBytes int64         // see sink.Options
	SegmentBytes    int64         // of the queue
	Ready           func(r *Receiver)
}

// Run is the role: it returns nil after ctx ended and what could be done by then was
// done, or the error that stopped it.
func Run(ctx context.Context, c *config.Config, log *slog.Logger) error {
	return RunWith(ctx, c, log, Options{Ready: func(*Receiver) { systemd.Tell(log, systemd.Ready()) }})
}

// Receiver is a running role.
type Receiver struct {
	c   *config.Config
	o   Options
	log *slog.Logger

	lock    *os.File
	q       *queue.Queue
	sink    *sink.Sink
	handler *handler
	tell    *upstream.Teller
	server  *transport.Server
	secure  *service.Security // nil: plain TCP
	count   *counters
	addr    net.Addr
	serving atomic.Bool
	wired   chan struct{} // closed when tell is set, or never will be
	unwired func()        // closes it
}

// Addr is where it listens.
func (r *Receiver) Addr() net.Addr { return r.addr }

// Stats returns what it did since it started.
func (r *Receiver) Stats() Stats {
	s := r.count.snapshot()
	s.Stats, s.ResentLanes, s.DroppedUpstream = r.sink.Stats(), r.handler.resent.all(), r.tell.DroppedUpstream()
	return s
}

// RunWith is Run with options.
func RunWith(ctx context.Context, c *config.Config, log *slog.Logger, o Options) (err error) {
	if c.Receive == nil {
		return fmt.Errorf("receive: %s has no [receive]", c.File)
	}
	r := &Receiver{c: c, o: o, log: log, count: &counters{}, wired: make(chan struct{})}
	r.unwired = sync.OnceFunc(func() { close(r.wired) })
	defer func() { err = errors.Join(err, r.close()) }()
	if err := r.open(ctx); err != nil {
		return err
	}
	return r.serve(ctx)
}

// open takes the locks, opens the queue and redoes what earlier runs left.
func (r *Receiver) open(ctx context.Context) error {
	var err error
	if r.lock, err = service.Lock(r.c.RoleDir(config.RoleReceive)); err != nil {
		return err
	}
	files := service.Files{Cert: r.c.TLS.Cert, Key: r.c.TLS.Key, CA: r.c.TLS.CA}
	if r.secure, err = service.OpenSecurity(files, r.c.Receive.Allow, r.log); err != nil {
		return err
	}
	qc := r.c.QueueFor(config.RoleReceive)
	if r.q, err = queue.Open(r.c.QueueDir(config.RoleReceive), r.queueOptions(qc)); err != nil {
		return err
	}
	r.sink, err = sink.Open(ctx, sink.Options{
		Queue: r.q, Cursor: cursorName, Outputs: sinkOutputs(r.c.Receive.Outputs), DeadDir: r.c.DeadDir(config.RoleReceive),
		OpenFiles: r.o.OpenFiles, CheckpointEvery: r.o.CheckpointEvery, CheckpointBytes: r.o.CheckpointBytes, Logger: r.log,
	})
	if err != nil {
		return err
	}
	r.tell = upstream.New(r.q, r.finals, r.log)
	r.unwired()
	resent, err := openResent(r.q)
	if err != nil {
		return err
	}
	r.handler = &handler{q: r.q, sink: r.sink, tell: r.tell, resent: resent, count: r.count, log: r.log}
	return nil
}

// finals returns what of lane, from below on, is in the output for good.
func (r *Receiver) finals(lane batch.Lane, below uint64) []batch.Range {
	delivered := r.q.Delivered(lane) // before the sink is asked: what it lets go in between is final
	for _, l := range r.q.LostRanges(lane) {
		for _, x := range l.Ranges.All() {
			delivered.RemoveRange(x)
		}
	}
	return r.sink.Final(lane, &delivered, below)
}

// lost tells the peers what the queue lost.
func (r *Receiver) lost(l queue.Loss) {
	<-r.wired
	if r.tell != nil {
		r.tell.Lost(l)
	}
}

func sinkOutputs(outputs []config.Output) []sink.Output {
	all := make([]sink.Output, len(outputs))
	for i, o := range outputs {
		all[i] = sink.Output{Hosts: o.Hosts, Path: o.Path, Dir: o.Dir, File: o.File, Format: o.Format, Time: o.Time}
	}
	return all
}

func (r *Receiver) queueOptions(qc config.Queue) queue.Options {
	return queue.Options{
		SegmentBytes: r.o.SegmentBytes,
		CommitEvery:  qc.CommitEvery, CommitBytes: int64(qc.CommitBytes), MaxBytes: int64(qc.MaxBytes),
		OnFull: policies[qc.OnFull], MaxAge: qc.MaxAge,
		Dedupe: true, OneHost: r.secure != nil, Cursors: []string{cursorName}, OnLoss: r.lost, Logger: r.log,
	}
}

var policies = map[config.FullPolicy]queue.Policy{
	config.FullBlock: queue.Block, config.FullError: queue.Error,
	config.FullDropOldest: queue.DropOldest, config.FullDropNewest: queue.DropNewest,
}

// serve listens until ctx ends or something fails.
func (r *Receiver) serve(ctx context.Context) (err error) {
	var lc net.ListenConfig
	ln, err := lc.Listen(ctx, "tcp", r.c.Receive.Listen)
	if err != nil {
		return fmt.Errorf("listen for batches: %w", err)
	}
	r.addr = ln.Addr()
	r.server = transport.NewServer(transport.ServerOptions{
		Identity: transport.Identity{Node: r.q.Node(), Host: r.c.Host, Role: string(config.RoleReceive), Product: status.Product()},
		MaxConns: r.c.Receive.MaxConnections, MaxConnsPerAddress: r.c.Receive.MaxConnectionsPerAddress,
		TLS: r.secure.Server(), Admission: r.secure.Admission(), LaneHost: r.q.Host, KnowsLane: r.q.KnowsLane,
		Logger: r.log,
	}, r.handler)
	r.handler.server = r.server
	r.tell.Attach(r.server)

	ctl, err := control.Start(control.Options{
		Dir: r.c.RoleDir(config.RoleReceive), Status: r.status, HTTP: r.c.HTTPFor(config.RoleReceive).Listen, Logger: r.log,
		Handlers: map[string]http.Handler{"/queue/": queuetool.Handler(r.q, r.importFrom)},
	})
	if err != nil {
		return errors.Join(err, ln.Close())
	}
	defer func() { err = errors.Join(err, ctl.Close()) }()

	p := service.NewParts()
	p.Start("serve", func(ctx context.Context) error { return r.server.Serve(ctx, ln) })
	p.Start("apply", r.sink.Apply)
	p.Start("resent", func(ctx context.Context) error { return r.handler.resent.run(ctx, r.log) })
	p.Start("certificates", r.secure.Watch)
	p.Start("checkpoint", func(ctx context.Context) error {
		return r.sink.Checkpoints(ctx, r.server.Final)
	})
	r.serving.Store(true)
	r.log.Info("ready", "role", string(config.RoleReceive), "listen", r.addr.String(), "node", r.q.Node().String())
	if r.o.Ready != nil {
		r.o.Ready(r)
	}
	select {
	case <-ctx.Done():
		r.serving.Store(false)
		r.drain(p)
	case <-r.q.Failed():
		p.Fail(r.q.Err())
	case <-p.Failed():
	}
	// In this order: what is taken is written as far as drain got, and synced last.
	p.Stop("serve", "apply", "checkpoint", "resent", "certificates")
	return p.Err()
}

// drain stops taking and waits, as long as shutdown_timeout lets it, until what was
// taken is written. What remains stays in the queue.
func (r *Receiver) drain(p *service.Parts) {
	limited, done := context.WithTimeout(context.Background(), r.c.ShutdownTimeout)
	defer done()
	ctx, cancel := p.Until(limited)
	defer cancel()
	if err := r.server.Shutdown(ctx); err != nil {
		r.log.Warn("peers were cut off: they did not end in time", "error", err)
	}
	if err := r.q.Flush(ctx); err != nil {
		r.log.Warn("stopping before everything was committed", "error", err)
		return
	}
	if err := r.sink.Drain(ctx); err != nil {
		r.log.Warn("stopping before everything was written: the rest stays in the queue")
	}
}

// close gives everything back, in the order that keeps it safe.
func (r *Receiver) close() error {
	r.unwired()
	var errs []error
	if r.q != nil {
		errs = append(errs, r.q.Close())
	}
	if r.sink != nil {
		errs = append(errs, r.sink.Close())
	}
	if r.lock != nil {
		errs = append(errs, r.lock.Close())
	}
	return errors.Join(errs...)
}
