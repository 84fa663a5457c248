// Package relay is the role in the middle of the way: it takes batches from those before
// it, keeps them in its queue, and sends the sealed bytes on, unopened, to groups of
// destinations.
//
//	transport.Server ─▶ handler ─▶ queue.Submit: dedupe, batch, delivered set
//	      ▲                            │ fdatasync; then ACK
//	      │                            ├─▶ cursors "forward/…" ─▶ forward.Forwarder ─▶ next nodes
//	      │                            ├─▶ cursor "apply" ─▶ sink: copies ([[relay.output]])
//	      │                            └─▶ cursors "plugin/…" ─▶ plugins of outputs
//	      └──────── FINAL, SKIP ◀──────────────── FINAL, SKIP from the next nodes
//
// What is final upstream is what is final at every group. A copy is one more cursor over
// the same queue: it holds back neither forwarding nor acks until the queue is full, and
// counts for no final. Without outputs nothing is decoded.
package relay

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"ftfuse/config"
	"ftfuse/internal/batch"
	"ftfuse/internal/control"
	"ftfuse/internal/flock"
	"ftfuse/internal/forward"
	"ftfuse/internal/plugin"
	"ftfuse/internal/queuetool"
	"ftfuse/internal/reload"
	"ftfuse/internal/service"
	"ftfuse/internal/sink"
	"ftfuse/internal/status"
	"ftfuse/internal/systemd"
	"ftfuse/internal/upstream"
	"ftfuse/queue"
	"ftfuse/transport"
)

// copyCursor is the queue's cursor of the outputs.
const copyCursor = "apply"

// Options of a Relay beyond the configuration; for tests and for the bench.
type Options struct {
	CheckpointEvery time.Duration // see sink.Options
	SegmentBytes    int64         // of the queue
	Ready           func(r *Relay)
	Reload          *reload.Handle // nil: nobody reloads it
}

// Run is the role: it returns nil after ctx ended and what could be done by then was
// done, or the error that stopped it.
func Run(ctx context.Context, c *config.Config, log *slog.Logger, h *reload.Handle) error {
	return RunWith(ctx, c, log, Options{Reload: h, Ready: func(*Relay) { systemd.Tell(log, systemd.Ready()) }})
}

// Relay is a running role.
type Relay struct {
	c   *config.Config
	o   Options
	log *slog.Logger

	shutdown atomic.Int64                  // nanoseconds: how long a stop may drain
	now      atomic.Pointer[config.Config] // in force; c is what it started with

	lock    *flock.File
	q       *queue.Queue
	sink    *sink.Sink // nil: no outputs with files
	plugins *plugin.Set
	forward *forward.Switch
	tell    *upstream.Teller
	handler *handler
	server  *transport.Server
	secure  *service.Security // nil: plain TCP
	addr    net.Addr
	serving atomic.Bool
	wired   chan struct{} // closed when forward and tell are set, or never will be
	unwired func()        // closes it
	failed  func(error)   // ends the role; set before it is asked to reload
}

// Addr is where it listens.
func (r *Relay) Addr() net.Addr { return r.addr }

// RunWith is Run with options.
func RunWith(ctx context.Context, c *config.Config, log *slog.Logger, o Options) (err error) {
	switch {
	case c.Relay == nil:
		return fmt.Errorf("relay: %s has no [relay]", c.File)
	case len(c.Relay.Forwards) == 0:
		return errors.New("no destination: add [[relay.forward]] with primary = [\"HOST:PORT\"]")
	}
	limitMemory(c.Relay)
	r := &Relay{c: c, o: o, log: log, wired: make(chan struct{})}
	r.shutdown.Store(int64(c.ShutdownTimeout))
	r.now.Store(c)
	r.unwired = sync.OnceFunc(func() { close(r.wired) })
	defer func() { err = errors.Join(err, r.close()) }()
	if err := r.open(ctx); err != nil {
		return err
	}
	return r.serve(ctx)
}

// open takes the locks, opens the queue and redoes what earlier runs left of the copies.
func (r *Relay) open(ctx context.Context) error {
	var err error
	if r.lock, err = service.Lock(r.c.RoleDir(config.RoleRelay)); err != nil {
		return err
	}
	files := service.Files{Cert: r.c.TLS.Cert, Key: r.c.TLS.Key, CA: r.c.TLS.CA}
	if r.secure, err = service.OpenSecurity(files, r.c.Relay.Allow, r.log); err != nil {
		return err
	}
	if r.q, err = queue.Open(r.c.QueueDir(config.RoleRelay), r.queueOptions()); err != nil {
		return err
	}
	if outputs := service.Outputs(r.c.Relay.Outputs); len(outputs) > 0 {
		r.sink, err = sink.Open(ctx, sink.Options{
			Queue: r.q, Cursor: copyCursor, Outputs: outputs, DeadDir: r.c.DeadDir(config.RoleRelay),
			CheckpointEvery: r.o.CheckpointEvery, Logger: r.log,
		})
		if err != nil {
			return err
		}
	}
	if r.plugins, err = service.OpenPlugins(r.c, config.RoleRelay, r.q, service.OutputPlugins(r.c.Relay.Outputs), r.log); err != nil {
		return err
	}
	r.tell = upstream.New(r.q, r.finals, r.log)
	if r.forward, err = forward.NewSwitch(r.forwardOptions(r.c)); err != nil {
		return err
	}
	r.unwired()
	for _, lane := range r.q.LostLanes() {
		r.forward.Skip(lane, upstream.Losses(r.q, lane)...)
	}
	r.handler = &handler{q: r.q, sink: r.sink, forward: r.forward, tell: r.tell, log: r.log}
	return nil
}

// serve listens until ctx ends or something fails.
func (r *Relay) serve(ctx context.Context) (err error) {
	var lc net.ListenConfig
	ln, err := lc.Listen(ctx, "tcp", r.c.Relay.Listen)
	if err != nil {
		return fmt.Errorf("listen for batches: %w", err)
	}
	r.addr = ln.Addr()
	r.server = transport.NewServer(transport.ServerOptions{
		Identity: r.identity(), MaxConns: r.c.Relay.MaxConnections, MaxConnsPerAddress: r.c.Relay.MaxConnectionsPerAddress,
		TLS: r.secure.Server(), Admission: r.secure.Admission(), LaneHost: r.q.Host, KnowsLane: r.q.KnowsLane, Logger: r.log,
	}, r.handler)
	r.handler.server = r.server
	r.tell.Attach(r.server)

	ctl, err := control.Start(control.Options{
		Dir: r.c.RoleDir(config.RoleRelay), Status: r.status, HTTP: r.c.HTTPFor(config.RoleRelay).Listen, Logger: r.log,
		Handlers: map[string]http.Handler{"/queue/": queuetool.Handler(r.q, r.q.Import)},
	})
	if err != nil {
		return errors.Join(err, ln.Close())
	}
	defer func() { err = errors.Join(err, ctl.Close()) }()

	p := service.NewParts()
	r.failed = p.Fail
	p.Start("certificates", r.secure.Watch)
	p.Start("forward", r.forward.Run)
	p.Start("serve", func(ctx context.Context) error { return r.server.Serve(ctx, ln) })
	p.Start("plugins", r.plugins.Run)
	all := []string{"serve", "forward", "plugins", "certificates"}
	if r.sink != nil {
		p.Start("apply", r.sink.Apply)
		p.Start("checkpoint", func(ctx context.Context) error {
			return r.sink.Checkpoints(ctx, func(...batch.ID) {}) // a copy is no final output
		})
		all = append(all, "apply", "checkpoint")
	}
	r.serving.Store(true)
	r.log.Info("ready", "role", string(config.RoleRelay), "listen", r.addr.String(), "node", r.q.Node().String())
	r.o.Reload.Serve(r)
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
	p.Stop(all...) // in this order: what is taken is sent and written as far as drain got
	return p.Err()
}

// drain stops taking and waits, as long as shutdown_timeout lets it, until what was
// taken is with the next nodes and copied. What remains stays in the queue.
func (r *Relay) drain(p *service.Parts) {
	limited, done := context.WithTimeout(context.Background(), time.Duration(r.shutdown.Load()))
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
	if err := r.forward.Drain(ctx); err != nil {
		r.log.Warn("stopping before everything was sent: the rest stays in the queue", "error", err)
	}
	if r.sink != nil {
		if err := r.sink.Drain(ctx); err != nil {
			r.log.Warn("stopping before every copy was written: the rest stays in the queue")
		}
	}
	if err := r.plugins.Drain(ctx); err != nil {
		r.log.Warn("stopping before every plugin has taken what there is and has ended: the rest stays in the queue")
	}
}

// close gives everything back, in the order that keeps it safe.
func (r *Relay) close() error {
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

// identity is how the relay names itself to both sides.
func (r *Relay) identity() transport.Identity {
	return transport.Identity{Node: r.q.Node(), Host: r.c.Host, Role: string(config.RoleRelay), Product: status.Product()}
}

// finals returns what of lane, from below on, is final at every group.
func (r *Relay) finals(lane batch.Lane, below uint64) []batch.Range {
	all := r.forward.Finals(lane)
	var above []batch.Range
	for _, x := range all.All() {
		if x.First = max(x.First, below); x.First <= x.Last {
			above = append(above, x)
		}
	}
	return above
}

// behind tells those before what nodes further down dropped. What a disk there lost is to be
// had from whoever keeps it until it is final, and must then not be a duplicate here.
func (r *Relay) behind(lane batch.Lane, skips []transport.Skip) {
	for i := range skips {
		if skips[i].Reason == queue.LostCorrupt {
			r.q.TakeAgain(lane, skips[i].Ranges.All()...)
		}
	}
	r.tell.Behind(lane, skips)
}

// lost tells both sides what the queue lost.
func (r *Relay) lost(l queue.Loss) {
	<-r.wired
	if r.forward == nil {
		return // it is in the queue's account, which the next start tells
	}
	r.forward.Dropped(l.Seq)
	if final := r.forward.Finals(l.ID.Lane); final.Contains(l.ID.N) {
		return // one copy of several
	}
	if s, ok := r.tell.Lost(l); ok {
		r.forward.Skip(l.ID.Lane, s)
	}
}
