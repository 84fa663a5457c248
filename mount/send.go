package mount

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"ftfuse/config"
	"ftfuse/internal/control"
	"ftfuse/mount/holder"
	"ftfuse/mount/offline"
	"ftfuse/mount/procs"
	"ftfuse/mount/spool"
)

// roomEvery is how often a sender that waits for room in the queue is tried again.
const roomEvery = 50 * time.Millisecond

// sendTarget takes what `ftfuse send` hands over while the mount runs.
func (r *role) sendTarget() *offline.Local {
	chunk := int(min(r.roomToSpare(), offline.MaxData))
	return &offline.Local{Capture: r.cap, Matches: r.transfers, Room: r.spareRoom, Chunk: chunk, Wait: func(ctx context.Context) error {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(roomEvery):
			return nil
		}
	}}
}

// roomToSpare is how much room of the queue is left to the programs on the mount.
func (r *role) roomToSpare() int64 {
	return min(int64(r.cfg.QueueFor(config.RoleMount).MaxBytes)/8, offlineRoom)
}

// spareRoom reports whether the queue has more room than that.
func (r *role) spareRoom() bool { return r.free() >= r.roomToSpare() }

// FindSend returns what takes the bytes of `ftfuse send`: the mount that runs by cfg, or,
// while none does, its queue, which is this process's until leave is called; whatever the next
// mount would take over is in the queue then, too.
// A mount that wants to start has it given back.
func FindSend(ctx context.Context, cfg *config.Config, log *slog.Logger) (f offline.Found, err error) {
	dir := cfg.RoleDir(config.RoleMount)
	switch _, _, err := control.Status(ctx, dir); {
	case err == nil:
		return offline.Found{Target: offline.Remote{Client: control.Client(dir)}, Leave: func() error { return nil }}, nil
	case !errors.Is(err, control.ErrNotRunning):
		return f, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return f, fmt.Errorf("make state directory: %w", err)
	}
	// A holder that is about to start a worker keeps this process out, and the other way round.
	only, err := holder.Exclude(dir)
	if err != nil {
		return f, fmt.Errorf("open the queue of the mount: %w", err)
	}
	t, closeAll, err := openSend(ctx, cfg, log)
	if err != nil {
		return f, errors.Join(err, only.Close())
	}
	return offline.Found{
		Target: t, Wanted: only.Wanted(), Leave: func() error { return errors.Join(closeAll(), only.Close()) },
	}, nil
}

// openSend is a mount's queue and capture without the mount.
func openSend(ctx context.Context, cfg *config.Config, log *slog.Logger) (offline.Target, func() error, error) {
	r := &role{
		cfg: cfg, m: cfg.Mount, log: log, stopUnder: func() {}, procs: procs.New(), fail: make(chan error, 1), wiring: make(chan struct{}),
	}
	r.taken.fd = -1
	r.now.Store(cfg)
	r.wired = sync.OnceFunc(func() { close(r.wiring) })
	r.wired() // nobody is told of losses but the queue's own account
	if err := r.openStore(); err != nil {
		err = errors.Join(err, r.closeParts())
		if errors.Is(err, spool.ErrLocked) {
			err = fmt.Errorf("open the queue of the mount: %w: a mount is starting, or stopping", err)
		}
		return nil, nil, err
	}
	if err := r.cap.Recover(ctx, nil); err != nil {
		return nil, nil, errors.Join(fmt.Errorf("recover the spool: %w", err), r.closeParts())
	}
	run, cancel := context.WithCancel(context.Background())
	r.start(run, "capture", r.cap.Run)
	t := r.sendTarget()
	t.Wait = func(context.Context) error {
		return fmt.Errorf("%w: the queue of the mount is nearly full; start the mount, then send again", offline.ErrNoRoom)
	}
	return t, func() error {
		cancel()
		r.wg.Wait()
		err := r.closeParts()
		select {
		case failed := <-r.fail:
			err = errors.Join(failed, err)
		default:
		}
		return err
	}, nil
}
