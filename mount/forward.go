package mount

import (
	"context"
	"fmt"

	"ftfuse/config"
	"ftfuse/internal/batch"
	"ftfuse/internal/forward"
	"ftfuse/internal/record"
	"ftfuse/internal/service"
	"ftfuse/internal/status"
	"ftfuse/queue"
	"ftfuse/transport"
)

// openQueue opens the queue and numbers the routes of the rules.
func (r *role) openQueue() (err error) {
	groups := service.Groups(r.m.Forwards)
	r.routes = newRoutes(r.m)
	var wants func(string, batch.Lane) bool
	o := r.cfg.QueueFor(config.RoleMount)
	r.queue, err = queue.Open(r.cfg.QueueDir(config.RoleMount), queue.Options{
		CommitEvery: o.CommitEvery, CommitBytes: int64(o.CommitBytes), MaxBytes: int64(o.MaxBytes), MaxAge: o.MaxAge,
		OnFull: queuePolicy[o.OnFull], Cursors: forward.Cursors(groups), Logger: r.log, OnLoss: r.lost,
		Begin: func(q *queue.Queue) {
			r.routes.begin(q, r.m.Rules)
			wants = forward.Wants(groups, r.routes.of, batch.Origin(q.Node()))
		},
		Wants: func(cursor string, lane batch.Lane) bool { return wants(cursor, lane) },
	})
	if err != nil {
		return fmt.Errorf("open queue: %w", err)
	}
	if r.routes.err != nil || len(r.routes.fresh) == 0 {
		return r.routes.err
	}
	// In the queue's order this is before any batch of theirs.
	if _, err := r.queue.Submit(context.Background(), &queue.Txn{Set: r.routes.fresh}); err != nil {
		return fmt.Errorf("store the routes of the rules: %w", err)
	}
	return nil
}

// openForward sets up what sends the queue's batches.
func (r *role) openForward() (err error) {
	defer r.wired()
	files := service.Files{Cert: r.cfg.TLS.Cert, Key: r.cfg.TLS.Key, CA: r.cfg.TLS.CA}
	if r.secure, err = service.OpenSecurity(files, nil, r.log); err != nil {
		return err
	}
	o := r.cfg.QueueFor(config.RoleMount)
	r.fwd, err = forward.New(forward.Options{
		Queue: r.queue, Groups: service.Groups(r.m.Forwards), Routes: r.routes.of,
		Identity:  transport.Identity{Node: r.queue.Node(), Host: r.cfg.Host, Role: string(config.RoleMount), Product: status.Product()},
		KeepFinal: o.KeepUntil == config.KeepUntilFinal, FinalTimeout: o.FinalTimeout,
		TLS: r.secure.Client(), Relabel: record.Relabel, OnConflict: r.cap.Conflict,
		ReconnectGrace: reconnectGrace, Logger: r.log,
	})
	if err != nil {
		return err
	}
	for _, lane := range r.queue.LostLanes() {
		r.fwd.Skip(lane, losses(r.queue.LostRanges(lane))...)
	}
	return nil
}

// losses are what the queue lost of a lane in the words of the next node.
func losses(lost []queue.LaneLoss) []transport.Skip {
	skips := make([]transport.Skip, len(lost))
	for i, l := range lost {
		skips[i] = transport.Skip{Reason: l.Reason, Ranges: l.Ranges, Records: l.Records, Payload: l.Payload}
	}
	return skips
}

// lost tells the next nodes what the queue lost and will never come.
func (r *role) lost(l queue.Loss) {
	if l.Copy {
		return // the next node has it
	}
	<-r.wiring
	if r.fwd == nil {
		return // it is in the queue's account, which the next start tells
	}
	s := transport.Skip{Reason: l.Reason, Records: uint64(l.Records), Payload: l.Payload}
	s.Ranges.Add(l.ID.N)
	r.fwd.Skip(l.ID.Lane, s)
}
