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
	return queue.Options{
		SegmentBytes: r.o.SegmentBytes,
		CommitEvery:  qc.CommitEvery, CommitBytes: int64(qc.CommitBytes), MaxBytes: int64(qc.MaxBytes),
		OnFull: policies[qc.OnFull], MaxAge: qc.MaxAge,
		Dedupe: true, OneHost: r.secure != nil, Cursors: cursors(r.c), Copies: copies,
		OnLoss: r.lost, Logger: r.log,
	}
}

// copies are the cursors that pass nothing on, also when they are configured no more.
var copies = []string{copyCursor, plugin.CursorPrefix}

// cursors are the consumers that the configuration has.
func cursors(c *config.Config) []string {
	all := forward.Cursors(service.Groups(c.Relay.Forwards))
	if len(service.Outputs(c.Relay.Outputs)) > 0 {
		all = append(all, copyCursor)
	}
	return append(all, service.PluginCursors(service.OutputPlugins(c.Relay.Outputs))...)
}

func (r *Relay) forwardOptions(c *config.Config) forward.Options {
	qc := c.QueueFor(config.RoleRelay)
	return forward.Options{
		Queue: r.q, Groups: service.Groups(c.Relay.Forwards), Identity: r.identity(),
		KeepFinal: qc.KeepUntil == config.KeepUntilFinal, FinalTimeout: qc.FinalTimeout,
		TLS: r.secure.Client(), Relabel: record.Relabel,
		OnFinal: func(lane batch.Lane, ranges []batch.Range) { r.handler.final(lane, ranges) },
		OnSkip:  r.behind,
		Logger:  r.log,
	}
}
