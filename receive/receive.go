// Package receive is the role at the end of the way: it takes batches from the
// transport, decides where in which output file every byte will stand, commits that
// together with the batch, and then puts the bytes there.
//
// Server is the way from the transport to a durable queue and on to whoever writes what
// came, without the output files: what the role is built on, and what a receiver of
// somebody else's can be built on (experimental; see examples/countlines). The role:
//
//	transport.Server ─▶ handler: decode, match outputs, render lengths
//	                       │ queue.Submit: batch, delivered set and the place of
//	                       ▼ each byte in ONE transaction; then ACK
//	                     queue ─▶ cursor "apply" ─▶ applier ─▶ output files
//	                                 ▲                 │ every 64 MiB or half a second
//	                                 └── Ack ◀── checkpoint: fdatasync; then FINAL
//
// Outputs with a plugin are cursors "plugin/…" of their own over the same queue: copies,
// which hold nothing back and count for no FINAL (internal/plugin).
//
// The queue is the redo log of the output files: a receiver that was killed, or lost
// power, writes the same bytes to the same places again, and finds those that are there.
package receive

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"time"

	"ftfuse/config"
	"ftfuse/internal/control"
	"ftfuse/internal/plugin"
	"ftfuse/internal/queuetool"
	"ftfuse/internal/reload"
	"ftfuse/internal/service"
	"ftfuse/internal/sink"
	"ftfuse/internal/systemd"
	"ftfuse/queue"
)

const (
	cursorName = "apply"
	roleName   = string(config.RoleReceive)
)

// Options of a Receiver beyond the configuration; for tests and for the bench.
type Options struct {
	OpenFiles       int           // see sink.Options
	CheckpointEvery time.Duration // see sink.Options
	CheckpointBytes int64         // see sink.Options
	ForgetAfter     time.Duration // see sink.Options
	SegmentBytes    int64         // of the queue
	Ready           func(r *Receiver)
	Reload          *reload.Handle // nil: nobody reloads it
}

// Run is the role: it returns nil after ctx ended and what could be done by then was
// done, or the error that stopped it.
func Run(ctx context.Context, c *config.Config, log *slog.Logger, h *reload.Handle) error {
	return RunWith(ctx, c, log, Options{Reload: h, Ready: func(*Receiver) { systemd.Tell(log, systemd.Ready()) }})
}

// Receiver is a running role: a Server whose batches go to output files.
type Receiver struct {
	*Server
	c    *config.Config
	o    Options
	sink *sink.Sink
}

// Stats returns what it did since it started.
func (r *Receiver) Stats() Stats {
	s := r.Server.Stats()
	s.Stats = r.sink.Stats()
	return s
}

// RunWith is Run with options.
func RunWith(ctx context.Context, c *config.Config, log *slog.Logger, o Options) (err error) {
	if c.Receive == nil {
		return fmt.Errorf("receive: %s has no [receive]", c.File)
	}
	r := &Receiver{c: c, o: o}
	r.Server, err = openServer(ctx, r.plan(log))
	defer func() { err = errors.Join(err, r.Close()) }()
	if err != nil {
		return err
	}
	return r.serve(ctx)
}

// plan is the Server that the configuration describes.
func (r *Receiver) plan(log *slog.Logger) plan {
	return plan{
		dir: r.c.RoleDir(config.RoleReceive), queueDir: r.c.QueueDir(config.RoleReceive), host: r.c.Host, listen: r.c.Receive.Listen,
		files: service.Files{Cert: r.c.TLS.Cert, Key: r.c.TLS.Key, CA: r.c.TLS.CA}, allow: r.c.Receive.Allow,
		conns: r.c.Receive.MaxConnections, perAddr: r.c.Receive.MaxConnectionsPerAddress, shutdown: r.c.ShutdownTimeout,
		queue: r.queueOptions(r.c.QueueFor(config.RoleReceive)), log: log,
		engine: func(ctx context.Context, q *queue.Queue) (engine, error) { return r.openSink(ctx, q, log) },
		plugins: func(q *queue.Queue) (*plugin.Set, error) {
			return service.OpenPlugins(r.c, config.RoleReceive, q, service.OutputPlugins(r.c.Receive.Outputs), log)
		},
	}
}

// openSink takes the output directories and redoes what earlier runs left.
func (r *Receiver) openSink(ctx context.Context, q *queue.Queue, log *slog.Logger) (_ engine, err error) {
	r.sink, err = sink.Open(ctx, sink.Options{
		Queue: q, Cursor: cursorName, Outputs: service.Outputs(r.c.Receive.Outputs), DeadDir: r.c.DeadDir(config.RoleReceive),
		OpenFiles: r.o.OpenFiles, CheckpointEvery: r.o.CheckpointEvery, CheckpointBytes: r.o.CheckpointBytes, ForgetAfter: r.o.ForgetAfter, Logger: log,
	})
	if err != nil {
		return nil, err
	}
	return r.sink, nil
}

func (r *Receiver) queueOptions(qc config.Queue) queue.Options {
	return queue.Options{
		SegmentBytes: r.o.SegmentBytes,
		CommitEvery:  qc.CommitEvery, CommitBytes: int64(qc.CommitBytes), MaxBytes: int64(qc.MaxBytes),
		OnFull: policies[qc.OnFull], MaxAge: qc.MaxAge,
		Cursors: cursors(r.c), Copies: copies,
	}
}

var policies = map[config.FullPolicy]queue.Policy{
	config.FullBlock: queue.Block, config.FullError: queue.Error,
	config.FullDropOldest: queue.DropOldest, config.FullDropNewest: queue.DropNewest,
}

// serve listens until ctx ends or something fails.
func (r *Receiver) serve(ctx context.Context) (err error) {
	if err := r.begin(ctx); err != nil {
		return err
	}
	ctl, err := control.Start(control.Options{
		Dir: r.c.RoleDir(config.RoleReceive), Status: r.status, HTTP: r.c.HTTPFor(config.RoleReceive).Listen, Logger: r.log,
		Handlers: map[string]http.Handler{"/queue/": queuetool.Handler(r.q, r.importFrom)},
	})
	if err != nil {
		return errors.Join(err, r.ln.Close())
	}
	defer func() { err = errors.Join(err, ctl.Close()) }()
	return r.run(ctx, func() {
		r.log.Info("ready", "role", roleName, "listen", r.Addr().String(), "node", r.q.Node().String())
		r.o.Reload.Serve(r)
		if r.o.Ready != nil {
			r.o.Ready(r)
		}
	})
}
