package receive

import (
	"context"

	"ftfuse/config"
	"ftfuse/internal/reload"
	"ftfuse/internal/service"
	"ftfuse/queue"
)

var _ reload.Role = (*Receiver)(nil)

// Reload goes over to next; see reload.Role. What was taken before stays assigned to the
// files of the old outputs.
func (r *Receiver) Reload(_ context.Context, _, next *config.Config) ([]string, error) {
	if err := r.sink.Reconfigure(service.Outputs(next.Receive.Outputs)); err != nil {
		return nil, err
	}
	// Nothing below is refused: the configuration was checked.
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
