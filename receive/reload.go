package receive

import (
	"context"
	"errors"

	"ftfuse/config"
	"ftfuse/internal/forward"
	"ftfuse/internal/plugin"
	"ftfuse/internal/reload"
	"ftfuse/internal/service"
	"ftfuse/queue"
)

var _ reload.Role = (*Receiver)(nil)

// cursors are the consumers that the configuration has.
func cursors(c *config.Config) []string {
	return append([]string{cursorName}, service.PluginCursors(service.OutputPlugins(c.Receive.Outputs))...)
}

// copies are the cursors whose batches are final without them, also when they are
// configured no more.
var copies = []string{plugin.CursorPrefix}

// Reload goes over to next; see reload.Role. What was taken before stays assigned to the
// files of the old outputs.
func (r *Receiver) Reload(_ context.Context, now, next *config.Config) ([]string, error) {
	c := forward.Consumers{Queue: r.q, Copies: copies, Was: cursors(now), Now: cursors(next)}
	if err := c.Begin(); err != nil {
		return nil, err
	}
	if err := r.sink.Reconfigure(service.Outputs(next.Receive.Outputs)); err != nil {
		return nil, errors.Join(err, c.Undo())
	}
	if err := r.plugins.Reconfigure(service.OutputPlugins(next.Receive.Outputs)); err != nil {
		return nil, errors.Join(err, c.Undo(), r.sink.Reconfigure(service.Outputs(now.Receive.Outputs)))
	}
	// Nothing below is refused: the configuration was checked.
	if err := c.End(); err != nil {
		return nil, err
	}
	if err := r.secure.SetAllow(next.Receive.Allow); err != nil {
		return nil, err
	}
	r.shutdown.Store(int64(next.ShutdownTimeout))
	qc := next.QueueFor(config.RoleReceive)
	return nil, r.q.SetLimits(queue.Limits{
		CommitEvery: qc.CommitEvery, CommitBytes: int64(qc.CommitBytes), MaxBytes: int64(qc.MaxBytes),
		OnFull: policies[qc.OnFull], MaxAge: qc.MaxAge,
	})
}
