package mount

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"ftfuse/config"
	"ftfuse/internal/batch"
	"ftfuse/internal/forward"
	"ftfuse/internal/reload"
	"ftfuse/internal/service"
	"ftfuse/queue"
)

var _ reload.Role = (*role)(nil)

// Reload goes over to next; see reload.Role. Programs keep their files: what they write is
// cut by the new rules from some moment on, and goes where those say.
func (r *role) Reload(ctx context.Context, now, next *config.Config) (restart []string, err error) {
	restart = r.keepAtStart(now, next)
	if err := r.reloadConsumers(ctx, now, next); err != nil {
		return nil, err
	}
	r.now.Store(next)
	limitMemory(next.Mount)
	r.under.Load().Look() // what was left by the rules of before
	r.srv.o.rules.set(next.Mount.Rules)
	return restart, r.setLimits(next.QueueFor(config.RoleMount))
}

// keepAtStart puts back what follows from other keys and cannot change, and says so.
func (r *role) keepAtStart(now, next *config.Config) (restart []string) {
	was, is := now.Mount.Queue.OnFull, next.Mount.Queue.OnFull
	if was != is && r.kernelWrites() && (was == config.FullError || is == config.FullError) {
		next.Mount.Queue.OnFull = was // a file that is open would not obey: the kernel writes to it and asks nobody
		restart = append(restart, fmt.Sprintf("mount.queue.on_full: %q stays in force; %q would decide who writes to a file when it is opened", was, is))
	}
	if had, wants := r.m.BucketCount(), next.Mount.BucketCount(); had != wants {
		restart = append(restart, fmt.Sprintf("mount.buckets: %d stay in force; the groups as they are now have use for %d", had, wants))
	}
	if why := daemonOnly(r.cfg); why != "" && daemonOnly(next) == "" {
		restart = append(restart, "mount.rule.attribution: the daemon goes on answering each write(2) itself, as it began because "+why+"; the kernel writes after a restart")
	}
	return restart
}

// reloadConsumers goes over to the rules of next and to those who get what they say, or to
// nothing of it. Who is new is there before the first batch for him; who goes gets what was
// captured for him before the rules changed.
func (r *role) reloadConsumers(ctx context.Context, now, next *config.Config) error {
	origin := batch.Origin(r.queue.Node())
	c := forward.Consumers{Queue: r.queue, Copies: copies, Was: cursors(now.Mount), Now: cursors(next.Mount), Wants: r.wants}
	r.useGroups(origin, slices.Concat(now.Mount.Forwards, next.Mount.Forwards))
	if err := r.begin(ctx, &c, next); err != nil {
		err = errors.Join(err, r.sink.Reconfigure(mountOutputs(now.Mount)))
		r.useGroups(origin, now.Mount.Forwards)
		return errors.Join(err, c.Undo())
	}
	err := r.goOver(ctx, &c, now, next)
	if err != nil && ctx.Err() == nil {
		r.failed(fmt.Errorf("take over a configuration of which a part is in force: %w; the next start has all of it", err))
	}
	return err
}

// begin is what may be refused. The rules are its last step: nothing is captured for who is new
// before all of it is sure, since what was could go nowhere.
func (r *role) begin(ctx context.Context, c *forward.Consumers, next *config.Config) error {
	if err := r.plugins.Check(service.RulePlugins(next.Mount.Rules, pluginMember)); err != nil {
		return err
	}
	if err := c.Begin(); err != nil {
		return err
	}
	if err := r.sink.Reconfigure(bothOutputs(r.now.Load().Mount, next.Mount)); err != nil {
		return err
	}
	return r.setRules(ctx, next)
}

// goOver is what follows when the rules of next are in force, and is not taken back: an error
// ends the role, and a start handles each step of it.
func (r *role) goOver(ctx context.Context, c *forward.Consumers, now, next *config.Config) error {
	if err := r.queue.Flush(ctx); err != nil { // what was captured before is there for who goes
		return err
	}
	if err := r.plugins.Reconfigure(service.RulePlugins(next.Mount.Rules, pluginMember)); err != nil {
		return err
	}
	if err := r.endOutputs(ctx, now, next); err != nil {
		return err
	}
	end := func() error {
		r.useGroups(batch.Origin(r.queue.Node()), next.Mount.Forwards)
		return c.End()
	}
	if service.SameForward(now, next, config.RoleMount) {
		return end()
	}
	return r.fwd.Change(ctx, now.ShutdownTimeout, r.forwardOptions(next), end)
}

// setRules has everything captured from now on go by the rules of c. On an error it goes by
// those of before.
func (r *role) setRules(ctx context.Context, c *config.Config) error {
	byRule, err := r.routes.number(c.Mount.Rules)
	if err != nil {
		return err
	}
	if err := r.routes.store(ctx, r.queue); err != nil {
		return err
	}
	return r.cap.SetRules(ctx, withRoutes(captureRules(c.Mount.Rules), byRule))
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
func (r *role) Reopen() error {
	r.plugins.Reopen()
	return r.sink.Reopen()
}
