package mount

import (
	"context"
	"fmt"
	"slices"

	"ftfuse/config"
	"ftfuse/internal/batch"
	"ftfuse/internal/forward"
	"ftfuse/internal/plugin"
	"ftfuse/internal/record"
	"ftfuse/internal/service"
	"ftfuse/internal/status"
	"ftfuse/queue"
	"ftfuse/transport"
)

// openQueue opens the queue and numbers the routes of the rules.
func (r *role) openQueue() (err error) {
	var routesErr error
	o := r.cfg.QueueFor(config.RoleMount)
	r.queue, err = queue.Open(r.cfg.QueueDir(config.RoleMount), queue.Options{
		CommitEvery: o.CommitEvery, CommitBytes: int64(o.CommitBytes), MaxBytes: int64(o.MaxBytes), MaxAge: o.MaxAge,
		OnFull: queuePolicy[o.OnFull], Logger: r.log, OnLoss: r.lost,
		Cursors: cursors(r.m), Copies: copies,
		Begin: func(q *queue.Queue) {
			if r.routes, routesErr = openRoutes(q, r.m.Forwards); routesErr == nil {
				r.byRule, routesErr = r.routes.number(r.m.Rules)
			}
			if r.routes == nil {
				r.routes = &routes{}
			}
			r.origin = batch.Origin(q.Node())
			r.useGroups(r.origin, r.m.Forwards)
		},
		Wants: r.wants,
	})
	if err != nil {
		return fmt.Errorf("open queue: %w", err)
	}
	if routesErr != nil {
		return routesErr
	}
	return r.routes.store(context.Background(), r.queue)
}

// copies are the cursors that pass nothing on, also when they are configured no more.
var copies = []string{outputCursor, plugin.CursorPrefix}

// cursors are the consumers that the configuration has.
func cursors(m *config.Mount) []string {
	return append(forward.Cursors(service.Groups(m.Forwards)), localCursors(m)...)
}

// useGroups has routes and cursors be those of groups.
func (r *role) useGroups(origin batch.Origin, groups []config.Forward) {
	wants := forward.Wants(service.Groups(groups), r.routes.of, origin)
	r.forGroup.Store(&wants)
	r.routes.use(groups)
}

// wants is queue.Options.Wants.
func (r *role) wants(cursor string, lane batch.Lane) bool {
	if isLocal(cursor) {
		return lane.Origin == r.origin && wantsLocally(cursor, r.routes.of(lane.Route)) // another host's route means nothing here
	}
	return (*r.forGroup.Load())(cursor, lane)
}

// openForward sets up what sends the queue's batches.
func (r *role) openForward() (err error) {
	defer r.wired()
	files := service.Files{Cert: r.cfg.TLS.Cert, Key: r.cfg.TLS.Key, CA: r.cfg.TLS.CA}
	if r.secure, err = service.OpenSecurity(files, nil, r.log); err != nil {
		return err
	}
	r.fwd, err = forward.NewSwitch(r.forwardOptions(r.cfg))
	if err != nil {
		return err
	}
	for _, lane := range r.queue.LostLanes() {
		if r.leaves(lane) {
			r.fwd.Skip(lane, losses(r.queue.LostRanges(lane))...)
		}
	}
	return nil
}

func (r *role) forwardOptions(c *config.Config) forward.Options {
	o := c.QueueFor(config.RoleMount)
	return forward.Options{
		Queue: r.queue, Groups: service.Groups(c.Mount.Forwards), Routes: r.routes.of,
		Identity:  transport.Identity{Node: r.queue.Node(), Host: r.cfg.Host, Role: string(config.RoleMount), Product: status.Product()},
		KeepFinal: o.KeepUntil == config.KeepUntilFinal, FinalTimeout: o.FinalTimeout,
		TLS: r.secure.Client(), Relabel: record.Relabel, OnConflict: r.cap.Conflict,
		ReconnectGrace: reconnectGrace, Logger: r.log,
	}
}

// leaves reports whether batches of a lane go to another node at all.
func (r *role) leaves(lane batch.Lane) bool {
	return lane.Origin != r.origin || slices.ContainsFunc(r.routes.of(lane.Route), func(member string) bool { return !isLocal(member) })
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
	<-r.wiring
	if r.fwd == nil {
		return // it is in the queue's account, which the next start tells
	}
	r.fwd.Dropped(l.Seq)
	if l.Copy || !r.leaves(l.ID.Lane) { // the next node has it, or none is to
		return
	}
	s := transport.Skip{Reason: l.Reason, Records: uint64(l.Records), Payload: l.Payload}
	s.Ranges.Add(l.ID.N)
	r.fwd.Skip(l.ID.Lane, s)
}
