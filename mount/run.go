package mount

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime/debug"
	"sync"
	"sync/atomic"

	"bazil.org/fuse"

	"ftfuse/config"
	"ftfuse/internal/batch"
	"ftfuse/internal/control"
	"ftfuse/internal/forward"
	"ftfuse/internal/plugin"
	"ftfuse/internal/reload"
	"ftfuse/internal/service"
	"ftfuse/internal/sink"
	"ftfuse/mount/capture"
	"ftfuse/mount/holder"
	"ftfuse/mount/kernel"
	"ftfuse/mount/offline"
	"ftfuse/mount/procs"
	"ftfuse/mount/session"
	"ftfuse/mount/spool"
	"ftfuse/queue"
)

// role is a running mount: the parts and how they hang together.
//
//	kernel ── server ── spool ──> capture ──> queue ──> forwarder ──> groups of destinations
//	                                            └─────> plugins of rules
type role struct {
	cfg   *config.Config
	m     *config.Mount
	log   *slog.Logger
	queue *queue.Queue
	store *spool.Store
	cap   *capture.Capture
	conn  *fuse.Conn
	srv   *server
	sess  *session.Session
	held  []heldFile // open files of a predecessor
	tried int32      // the newest backing id of the connection, before any file is open; 0: none

	procs    *procs.Table
	routes   *routes
	origin   batch.Origin                      // of this host's lanes
	byRule   []uint32                          // the route of each rule, at the start
	forGroup atomic.Pointer[queue.CursorWants] // whether the cursor of a group wants a lane
	fwd      *forward.Switch
	plugins  *plugin.Set
	sink     *sink.Sink        // the local outputs
	secure   *service.Security // nil: plain TCP
	ctl      *control.Server
	serving  atomic.Bool
	wiring   chan struct{} // closed when fwd is set, or never will be
	wired    func()        // closes it

	o         Options
	under     atomic.Pointer[offline.Taker] // nil: files below the mount point are left alone
	stopUnder context.CancelFunc

	link    *holder.Link                  // nil: no holder
	reload  *reload.Handle                // nil: nobody reloads it
	now     atomic.Pointer[config.Config] // in force; cfg is what it started with
	taken   taken
	dev     *kernel.Device
	support kernel.Support
	mounted bool // by this process
	offer   *holder.Offer
	slow    *throttle // nil: nobody is slowed down near max_bytes

	longestHold atomic.Int64 // server.longestHold

	abandoned bool // the request loop could not be stopped and still uses the parts

	fail   chan error // capacity 1: the first part that stopped by itself
	wg     sync.WaitGroup
	served chan struct{} // closed when the request loop has ended
}

// Run is the role mount: it mounts, captures and sends until ctx ends, then drains
// until shutdown_timeout, unmounts and returns nil. It returns an error where a part
// failed; the connection to the kernel is dropped then, so that no program waits for
// a daemon that cannot keep its promises.
//
// With a holder it takes over the connection that the holder has, if it has one, and
// leaves it, mounted, to a successor when it is told to.
func Run(ctx context.Context, cfg *config.Config, log *slog.Logger, w Worker) (err error) {
	limitMemory(cfg.Mount)
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
	r := &role{
		cfg: cfg, m: cfg.Mount, log: log.With("role", "mount"), o: w.Options, link: w.Link, reload: w.Reload,
		stopUnder: func() {}, procs: procs.New(), fail: make(chan error, 1), served: make(chan struct{}), wiring: make(chan struct{}),
	}
	r.now.Store(cfg)
	r.wired = sync.OnceFunc(func() { close(r.wiring) })
	defer func() { r.link.Failed(err) }()
	defer func() { r.offer.Close() }() // an adopter waits for it: everything else is closed
	if err := r.enter(ctx, w); err != nil {
		return err
	}
	if err := r.openParts(ctx); err != nil {
		return errors.Join(err, r.closeParts())
	}
	defer func() { err = errors.Join(err, r.closeParts()) }()
	pctx, cancel := context.WithCancel(context.Background())
	defer r.wg.Wait()
	defer cancel()
	r.startForward(pctx) // before the rest: what it sends makes room on a full disk
	r.startOutputs(pctx)
	live, err := r.takeSession()
	if err != nil {
		return err
	}
	if err := r.cap.Recover(ctx, live); err != nil {
		return fmt.Errorf("recover the spool: %w", err)
	}
	r.start(pctx, "capture", r.cap.Run)
	r.start(pctx, "memory", r.restMemory)
	if err := r.underneath(ctx); err != nil && ctx.Err() == nil {
		return err
	}
	if err := r.mount(); err != nil {
		return err
	}
	r.watchUnderneath(pctx)
	out, err := r.await(ctx)
	r.serving.Store(false)
	return r.end(out, err)
}

// end leaves the mount or takes it away, as out asks for. It returns err where something failed.
func (r *role) end(out outcome, err error) error {
	switch {
	case out == outLeave, out == outStop && r.drain():
		r.leave()
		return nil
	case out == outGone:
		r.settle()
		return nil
	case out == outFailed:
		r.link.Failed(err) // first, should the rest hang
	}
	r.unmount()
	return err
}

// start runs a part. Whichever ends by itself ends the role.
func (r *role) start(ctx context.Context, what string, f func(context.Context) error) {
	r.wg.Go(func() {
		if err := f(ctx); err != nil && ctx.Err() == nil {
			r.failed(fmt.Errorf("%s: %w", what, err))
		}
	})
}

// startForward starts what needs neither the capture nor the mount.
func (r *role) startForward(ctx context.Context) {
	r.start(ctx, "forward", r.fwd.Run)
	r.start(ctx, "plugins", r.plugins.Run)
	r.start(ctx, "certificates", r.secure.Watch)
	r.start(ctx, "queue", func(ctx context.Context) error {
		select {
		case <-ctx.Done():
			return nil
		case <-r.queue.Failed():
			return r.queue.Err()
		}
	})
}

func (r *role) failed(err error) {
	select {
	case r.fail <- err:
	default: // the first one counts
	}
}
