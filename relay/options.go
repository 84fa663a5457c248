package relay

import (
	"ftfuse/config"
	"ftfuse/internal/batch"
	"ftfuse/internal/forward"
	"ftfuse/internal/plugin"
	"ftfuse/internal/record"
	"ftfuse/internal/service"
	"ftfuse/queue"
)

var policies = map[config.FullPolicy]queue.Policy{
	config.FullBlock: queue.Block, config.FullError: queue.Error,
	config.FullDropOldest: queue.DropOldest, config.FullDropNewest: queue.DropNewest,
}

func (r *Relay) queueOptions() queue.Options {
	qc := r.c.QueueFor(config.RoleRelay)
	o := queue.Options{
		SegmentBytes: r.o.SegmentBytes,
		CommitEvery:  qc.CommitEvery, CommitBytes: int64(qc.CommitBytes), MaxBytes: int64(qc.MaxBytes),
		OnFull: policies[qc.OnFull], MaxAge: qc.MaxAge,
		Dedupe: true, OneHost: r.secure != nil, Cursors: forward.Cursors(service.Groups(r.c.Relay.Forwards)),
		Copies: []string{copyCursor, plugin.CursorPrefix}, // also when they are configured no more
		OnLoss: r.lost, Logger: r.log,
	}
	if len(service.Outputs(r.c.Relay.Outputs)) > 0 {
		o.Cursors = append(o.Cursors, copyCursor)
	}
	o.Cursors = append(o.Cursors, service.PluginCursors(service.OutputPlugins(r.c.Relay.Outputs))...)
	return o
}

func (r *Relay) forwardOptions() forward.Options {
	qc := r.c.QueueFor(config.RoleRelay)
	return forward.Options{
		Queue: r.q, Groups: service.Groups(r.c.Relay.Forwards), Identity: r.identity(),
		KeepFinal: qc.KeepUntil == config.KeepUntilFinal, FinalTimeout: qc.FinalTimeout,
		TLS: r.secure.Client(), Relabel: record.Relabel,
		OnFinal: func(lane batch.Lane, ranges []batch.Range) { r.handler.final(lane, ranges) },
		OnSkip:  r.behind,
		Logger:  r.log,
	}
}
