package mount

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"bazil.org/fuse"

	"ftfuse/config"
	"ftfuse/internal/batch"
	"ftfuse/internal/control"
	"ftfuse/internal/forward"
	"ftfuse/internal/plugin"
	"ftfuse/internal/record"
	"ftfuse/internal/reload"
	"ftfuse/internal/service"
	"ftfuse/internal/sink"
	"ftfuse/internal/systemd"
	"ftfuse/mount/capture"
	"ftfuse/mount/holder"
	"ftfuse/mount/kernel"
	"ftfuse/mount/offline"
	"ftfuse/mount/procs"
	"ftfuse/mount/session"
	"ftfuse/mount/spool"
	"ftfuse/queue"
)

// memoryBase and what may be in flight is what the garbage collector aims to stay below: it
// keeps a role with one destination and its default window under 256 MiB at full load.
const memoryBase = 128 << 20

// gcPercent lets the heap grow further between collections than the default does, up to
// that: 12 % less CPU for each write of 10 bytes (BenchmarkAppend).
const gcPercent = 400

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
	if out == outLeave {
		r.leave()
		return nil
	}
	if out == outGone {
		r.settle()
		return nil
	}
	if out == outStop && r.drain() {
		r.leave()
		return nil
	}
	if out == outFailed {
		r.link.Failed(err) // first, should the rest hang
	}
	r.unmount()
	return err
}

// limitMemory sets memoryLimit for the process, unless the operator did.
func limitMemory(m *config.Mount) {
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(memoryLimit(m))
	}
}

// memoryLimit is memoryBase and the windows of the destinations that are used at once.
func memoryLimit(m *config.Mount) int64 {
	limit := int64(memoryBase)
	if len(m.RuleOutputs()) > 0 {
		limit += outputMemory
	}
	for i := range m.Forwards {
		f := &m.Forwards[i]
		limit += int64(f.Window) * int64(max(len(f.Primary), 1))
	}
	return limit
}

func (r *role) openParts(ctx context.Context) (err error) {
	dir := r.cfg.RoleDir(config.RoleMount)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make state directory: %w", err)
	}
	if r.taken.fd < 0 { // else it is mounted, and a look at it would wait for this worker
		if err := r.checkPoint(); err != nil {
			return err
		}
	}
	if err := r.openStore(); err != nil {
		return err
	}
	if r.sess, err = openSession(filepath.Join(dir, "session"), r.taken.fd >= 0, r.log); err != nil {
		return err
	}
	plugins := service.RulePlugins(r.m.Rules, pluginMember)
	if r.plugins, err = service.OpenPlugins(r.cfg, config.RoleMount, r.queue, plugins, r.log); err != nil {
		return err
	}
	if err := r.openForward(); err != nil {
		return err
	}
	if err := r.openOutputs(ctx); err != nil {
		return err
	}
	return r.openControl()
}

// openStore opens queue, spool and capture: what `ftfuse send` has, too, while no mount runs.
func (r *role) openStore() (err error) {
	dir := r.cfg.RoleDir(config.RoleMount)
	if err := r.openQueue(); err != nil {
		return err
	}
	if r.store, err = spool.Open(dir, spool.Options{Readback: int64(r.m.Readback), Logger: r.log, Failed: r.failed}); err != nil {
		return err
	}
	codec, err := record.ParseCodec(string(r.cfg.QueueFor(config.RoleMount).Compression))
	if err != nil {
		return fmt.Errorf("set up capture: compression: %w", err)
	}
	r.cap, err = capture.New(capture.Options{
		Store: r.store, Queue: r.queue, Rules: withRoutes(captureRules(r.m.Rules), r.byRule), Host: r.cfg.Host,
		Origin: batch.Origin(r.queue.Node()), Buckets: r.m.BucketCount(), Codec: codec, Logger: r.log, Processes: r.procs,
	})
	if err != nil {
		return fmt.Errorf("set up capture: %w", err)
	}
	return nil
}

var queuePolicy = map[config.FullPolicy]queue.Policy{
	config.FullBlock: queue.Block, config.FullError: queue.Error,
	config.FullDropOldest: queue.DropOldest, config.FullDropNewest: queue.DropNewest,
}

var fullPolicies = map[config.FullPolicy]fullPolicy{
	config.FullBlock: fullBlock, config.FullError: fullError,
	config.FullDropOldest: fullPass, config.FullDropNewest: fullPass,
}

func captureRules(rules []config.Rule) []capture.Rule {
	out := make([]capture.Rule, len(rules))
	for i, r := range rules {
		out[i] = capture.Rule{Path: r.Path, Transfer: r.Transfer || keepsHere(&r), MaxLine: int(r.MaxLine), Filter: lineFilter(&r), Ask: asks(&r)}
		if r.Mode == config.ModeBinary {
			out[i].Mode, out[i].MaxRecord = capture.ModeBinary, int64(r.MaxRecord)
		}
	}
	return out
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

// restAfter is how long nothing must have been written and the queue been empty before
// the memory of the last load is given back.
const restAfter = 3 * time.Second

// restMemory gives the heap back to the system once after each load.
func (r *role) restMemory(ctx context.Context) error {
	tick := time.NewTicker(restAfter)
	defer tick.Stop()
	freed, seen := r.store.Next(), r.store.Next()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		next := r.store.Next()
		if next == seen && next != freed && r.queue.Room() == int64(r.now.Load().QueueFor(config.RoleMount).MaxBytes) {
			debug.FreeOSMemory()
			freed = next
		}
		seen = next
	}
}

func (r *role) failed(err error) {
	select {
	case r.fail <- err:
	default: // the first one counts
	}
}

// checkPoint makes the mount point usable: it is made if it is missing, and what a
// killed predecessor left there is detached.
func (r *role) checkPoint() error {
	point := r.m.Point
	n, err := clearStale(point)
	if err != nil {
		return err
	}
	if n > 0 {
		r.log.Warn("detached the mount of a predecessor that was killed", "point", point)
	}
	if err := os.MkdirAll(point, 0o755); err != nil {
		return fmt.Errorf("%w: %w; make it, or choose another [mount] point", ErrMountPoint, err)
	}
	real, err := filepath.EvalSymlinks(point)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrMountPoint, err)
	}
	if real != point {
		return fmt.Errorf("%w: %s is a symbolic link on its way; write point = %q", ErrMountPoint, point, real)
	}
	st, err := os.Lstat(point)
	if err != nil || !st.IsDir() {
		return fmt.Errorf("%w: %s is not a directory", ErrMountPoint, point)
	}
	return nil
}

// mount mounts, or takes the mount over, and starts the request loop.
func (r *role) mount() (err error) {
	if err := r.chownRoot(); err != nil {
		return err
	}
	if r.taken.fd < 0 {
		r.taken.id = session.NewID()
	}
	if err := r.connect(); err != nil {
		return errors.Join(err, r.dismount())
	}
	if r.mounted {
		if err := r.sess.Begin(r.taken.id, r.store.Next()); err != nil {
			return errors.Join(err, r.dismount())
		}
	}
	if r.tried != 0 {
		r.sess.Opened(r.tried)
	}
	if err := r.announce(); err != nil {
		return errors.Join(err, r.dismount())
	}
	r.support = inForce(r.cfg, r.support)
	r.srv = newServer(r.conn, r.dev, r.store, r.cap, r.sess, r.free, serverSettings(r.cfg, r.support.Passthrough), r.log)
	r.srv.procs = r.procs
	r.srv.fail = r.failed
	if !r.mounted {
		if err := r.srv.resume(r.held); err != nil {
			return err
		}
		if err := r.dev.Resend(); err != nil {
			return err
		}
	}
	if q := r.cfg.QueueFor(config.RoleMount); r.kernelWrites() {
		r.slow = newThrottle(int64(q.MaxBytes), r.m.Point, r.freeBlocking, r.store, r.srv.kernelWritten, r.log)
		r.srv.throttle = r.slow
	}
	r.link.Watch(r.srv.alive)
	go func() {
		defer close(r.served)
		if err := r.srv.serve(); err != nil {
			r.failed(err)
		}
	}()
	if err := r.link.Ready(); err != nil {
		r.log.Warn("the holder is not told", "err", err) // it has died: see await
	}
	systemd.Tell(r.log, systemd.Ready()) // a worker is not asked: its holder is
	r.serving.Store(true)
	r.reload.Serve(r)
	r.log.Info("ready", append([]any{"point", r.m.Point, "pid", os.Getpid()}, captured(r.support)...)...)
	return nil
}

// kernelWrites reports whether the kernel may be writing: by this configuration, or for
// programs that opened their files under a predecessor's.
func (r *role) kernelWrites() bool {
	return r.support.Passthrough || !r.mounted && r.dev.Passthrough()
}

// dismount undoes a mount of this process that does not come to serve. One that was
// taken over is the holder's.
func (r *role) dismount() error {
	if !r.mounted {
		return nil
	}
	_, err := unmount(r.m.Point)
	if err == nil {
		r.link.Unmounted()
	}
	return err
}

// chownRoot gives the root of the mount the owner that is configured.
func (r *role) chownRoot() error {
	if r.m.UID == nil && r.m.GID == nil {
		return nil
	}
	uid, gid := ^uint32(0), ^uint32(0)
	if r.m.UID != nil {
		uid = *r.m.UID
	}
	if r.m.GID != nil {
		gid = *r.m.GID
	}
	if err := r.store.ChownDir("", uid, gid); err != nil {
		return fmt.Errorf("give the root of the mount to uid %d, gid %d: %w", uid, gid, err)
	}
	return nil
}

// leave ends this worker without touching the mount: a successor goes on, and does not wait
// for plugins that do not end at once.
func (r *role) leave() {
	r.plugins.Abandon()
	r.slow.leave()
	r.srv.leave()
	r.conn.Close()
	r.dev.Close()
}

// free is how many bytes may be accepted until max_bytes. What is on its way from the
// spool into the queue counts twice until its commit: at most 8 MiB, for milliseconds.
func (r *role) free() int64 { return r.queue.Room() - r.store.Uncaptured() }

// freeBlocking is free where who finds no room has to wait; else there is no end of it.
func (r *role) freeBlocking() int64 {
	if r.now.Load().QueueFor(config.RoleMount).OnFull != config.FullBlock {
		return math.MaxInt64
	}
	return r.free()
}

// reconnectGrace is how long a stopping role waits for a connection that is not there.
// Tests, whose destination never is, shorten it.
var reconnectGrace = forward.DefaultGrace

// drain accepts no more writes and sends what there is until shutdown_timeout. What
// remains stays queued. It returns true, early, where the worker of another holder has
// taken the connection meanwhile.
func (r *role) drain() (adopted bool) {
	ctx, cancel := context.WithTimeout(context.Background(), r.now.Load().ShutdownTimeout)
	defer cancel()
	over := make(chan struct{})
	go func() {
		defer close(over)
		select {
		case <-r.offer.Adopted():
			r.log.Info("leaving the mount to the worker of another holder", "pid", os.Getpid())
			adopted = true
			cancel()
		case <-ctx.Done():
		}
	}()
	r.srv.closing.Store(true)
	r.stopUnder()
	r.sendAll(ctx)
	cancel()
	<-over
	return adopted
}

// sendAll waits until everything that was accepted is with the next node, or says why it
// waits no longer.
func (r *role) sendAll(ctx context.Context) {
	if err := r.cap.DrainAll(ctx); err != nil {
		r.log.Warn("not everything is in the queue; the rest stays in the spool", "err", err)
		return
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		if err := r.plugins.Drain(ctx); err != nil {
			r.log.Warn("stopping before every plugin has taken what there is and has ended; the rest stays queued")
		}
	})
	if err := r.fwd.Drain(ctx); err != nil {
		r.log.Warn("stopping before everything is sent; the rest stays queued", "err", err)
	}
	if err := r.sink.Drain(ctx); err != nil {
		r.log.Warn("stopping before all local outputs are written; the rest stays queued", "err", err)
	}
}

// unmount takes the mount away. Where programs still hold files open it is detached
// and their connection dropped: they get ENOTCONN from then on.
func (r *role) unmount() {
	r.slow.close() // while its requests are answered
	r.srv.closing.Store(true)
	r.srv.stop()
	busy, err := unmount(r.m.Point)
	switch {
	case err != nil:
		r.log.Error("the mount point cannot be unmounted; it answers ENOTCONN until `umount -l`", "point", r.m.Point, "err", err)
	case busy:
		r.log.Warn("programs still use the mount; it is detached and their open files answer ENOTCONN", "point", r.m.Point)
	}
	if err == nil {
		r.link.Unmounted()
	}
	if busy && os.Geteuid() != 0 || err != nil {
		r.abandoned = true // the loop still reads; the end of the process ends it
		return
	}
	r.disconnect()
}

// settle ends a role whose mount somebody has taken away: nobody can write, and what was
// accepted is sent until shutdown_timeout.
func (r *role) settle() {
	r.link.Unmounted() // the holder has nothing more to keep
	systemd.Tell(r.log, systemd.Stopping())
	r.slow.close()
	r.srv.closing.Store(true)
	r.srv.stop()
	ctx, cancel := context.WithTimeout(context.Background(), r.now.Load().ShutdownTimeout)
	defer cancel()
	r.sendAll(ctx)
	r.disconnect()
}

// lingers is how long an unmounted connection may have requests. Its end takes milliseconds.
const lingers = time.Second

// disconnect waits for the end of the request loop and closes the connection. It goes on where
// another mount namespace, a container's or a sandboxed service's, has a copy of the mount,
// which nobody here can unmount: it is ended there with the last descriptor.
func (r *role) disconnect() {
	late := time.NewTimer(lingers)
	defer late.Stop()
	select {
	case <-r.served:
	case <-late.C:
		r.log.Warn("another mount namespace (a container, a service with PrivateTmp or the like) still has the mount; programs there get ENOTCONN from now on", "point", r.m.Point)
		r.srv.leave()
		<-r.served
	}
	r.srv.wg.Wait()
	if err := r.sess.End(); err != nil {
		r.log.Warn("the session of the mount that ended is left; the next start clears it", "err", err)
	}
	r.conn.Close()
	r.dev.Close()
}

// closeParts closes what openParts opened, the last one first.
func (r *role) closeParts() error {
	if r.abandoned {
		return nil
	}
	r.wired()
	errs := []error{r.ctl.Close(), r.under.Load().Close()}
	if r.sess != nil {
		errs = append(errs, r.sess.Close())
	}
	if r.store != nil {
		errs = append(errs, r.store.Close())
	}
	if r.queue != nil {
		errs = append(errs, r.queue.Close())
	}
	r.procs.Close()
	if r.sink != nil {
		errs = append(errs, r.sink.Close())
	}
	return errors.Join(errs...)
}
