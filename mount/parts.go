package mount

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"ftfuse/config"
	"ftfuse/internal/batch"
	"ftfuse/internal/record"
	"ftfuse/internal/service"
	"ftfuse/mount/capture"
	"ftfuse/mount/spool"
	"ftfuse/queue"
)

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
