package relay

import (
	"context"
	"errors"
	"fmt"
	"time"

	"ftfuse/config"
	"ftfuse/internal/forward"
	"ftfuse/internal/reload"
	"ftfuse/internal/service"
	"ftfuse/queue"
)

var _ reload.Role = (*Relay)(nil)

// Reload goes over to next; see reload.Role.
func (r *Relay) Reload(ctx context.Context, now, next *config.Config) (restart []string, err error) {
	restart = r.keepSink(next)
	was := service.Outputs(now.Relay.Outputs)
	if r.sink != nil {
		if err := r.sink.Reconfigure(service.Outputs(next.Relay.Outputs)); err != nil {
			return nil, err
		}
	}
	if err := r.reloadConsumers(ctx, now, next); err != nil {
		if r.sink != nil {
			err = errors.Join(err, r.sink.Reconfigure(was))
		}
		return nil, err
	}
	// Nothing below is refused: the configuration was checked.
	if err := r.secure.SetAllow(next.Relay.Allow); err != nil {
		return nil, err
	}
	limitMemory(next.Relay)
	r.shutdown.Store(int64(next.ShutdownTimeout))
	qc := next.QueueFor(config.RoleRelay)
	return restart, r.q.SetLimits(queue.Limits{
		CommitEvery: qc.CommitEvery, CommitBytes: int64(qc.CommitBytes), MaxBytes: int64(qc.MaxBytes),
		OnFull: policies[qc.OnFull], MaxAge: qc.MaxAge,
	})
}

// keepSink puts back the outputs where what writes them would have to come or go.
func (r *Relay) keepSink(next *config.Config) []string {
	if (r.sink != nil) == (len(service.Outputs(next.Relay.Outputs)) > 0) {
		return nil
	}
	next.Relay.Outputs = r.now.Load().Relay.Outputs
	return []string{"relay.output: the first output and the last one come and go with a restart"}
}

// reloadConsumers goes over to the groups and the plugins of next, or to nothing of it. Where the
// plugins have gone over that is not taken back: an error ends the role, and a start handles each
// step. Else the queue would be kept for groups that nobody sends to, or nothing would be sent.
func (r *Relay) reloadConsumers(ctx context.Context, now, next *config.Config) error {
	c := forward.Consumers{Queue: r.q, Copies: copies, Was: cursors(now), Now: cursors(next)}
	if err := c.Begin(); err != nil {
		return err
	}
	if err := r.plugins.Reconfigure(service.OutputPlugins(next.Relay.Outputs)); err != nil {
		return errors.Join(err, c.Undo())
	}
	defer r.now.Store(next)
	err := r.goOver(ctx, &c, now, next)
	if err != nil && ctx.Err() == nil {
		r.failed(fmt.Errorf("take over a configuration of which a part is in force: %w; the next start has all of it", err))
	}
	return err
}

// goOver has the groups of next sent to, and the queue kept for nobody else.
func (r *Relay) goOver(ctx context.Context, c *forward.Consumers, now, next *config.Config) error {
	if service.SameForward(now, next, config.RoleRelay) {
		return c.End()
	}
	return r.forward.Change(ctx, time.Duration(r.shutdown.Load()), r.forwardOptions(next), c.End)
}
