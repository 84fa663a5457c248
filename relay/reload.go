package relay

import (
	"context"

	"ftfuse/config"
	"ftfuse/internal/reload"
	"ftfuse/internal/service"
	"ftfuse/queue"
)

var _ reload.Role = (*Relay)(nil)

// Reload goes over to next; see reload.Role.
func (r *Relay) Reload(_ context.Context, _, next *config.Config) (restart []string, err error) {
	switch had, has := r.sink != nil, len(next.Relay.Outputs) > 0; {
	case had != has:
		restart = append(restart, "relay.output: the first and the last one come and go with a restart")
	case has:
		if err := r.sink.Reconfigure(service.Outputs(next.Relay.Outputs)); err != nil {
			return nil, err
		}
	}
	// Nothing below is refused: the configuration was checked.
	if err := r.secure.SetAllow(next.Relay.Allow); err != nil {
		return nil, err
	}
	r.shutdown.Store(int64(next.ShutdownTimeout))
	qc := next.QueueFor(config.RoleRelay)
	return restart, r.q.SetLimits(queue.Limits{
		CommitEvery: qc.CommitEvery, CommitBytes: int64(qc.CommitBytes), MaxBytes: int64(qc.MaxBytes),
		OnFull: policies[qc.OnFull], MaxAge: qc.MaxAge,
	})
}
