package mount

import (
	"context"
	"fmt"

	"ftfuse/config"
	"ftfuse/internal/reload"
	"ftfuse/queue"
)

var _ reload.Role = (*role)(nil)

// Reload goes over to next; see reload.Role. Programs keep their files.
func (r *role) Reload(_ context.Context, now, next *config.Config) (restart []string, err error) {
	restart = append(restart, r.keepWay(now, next)...)
	r.now.Store(next)
	return restart, r.setLimits(next.QueueFor(config.RoleMount))
}

// keepWay puts back on_full where a file that is open would not obey it: the kernel writes
// to it and asks nobody.
func (r *role) keepWay(now, next *config.Config) []string {
	was, is := now.Mount.Queue.OnFull, next.Mount.Queue.OnFull
	if was == is || !r.kernelWrites() || was != config.FullError && is != config.FullError {
		return nil
	}
	next.Mount.Queue.OnFull = was
	return []string{fmt.Sprintf("mount.queue.on_full: %q stays in force; %q decides who writes to a file when it is opened, and needs a restart", was, is)}
}

func (r *role) setLimits(q config.Queue) error {
	err := r.queue.SetLimits(queue.Limits{
		CommitEvery: q.CommitEvery, CommitBytes: int64(q.CommitBytes), MaxBytes: int64(q.MaxBytes),
		OnFull: queuePolicy[q.OnFull], MaxAge: q.MaxAge,
	})
	if err != nil {
		return err
	}
	limits := limitsOf(q)
	r.srv.limits.Store(&limits)
	r.srv.room.wake()
	r.slow.setLimit(int64(q.MaxBytes))
	return nil
}

// Reopen opens all output files by their names again, as SIGUSR1 asks.
func (r *role) Reopen() error { return nil }
