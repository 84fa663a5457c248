package mount

import (
	"context"
	"fmt"
	"slices"

	"ftfuse/config"
	"ftfuse/internal/batch"
	"ftfuse/internal/service"
	"ftfuse/internal/sink"
	"ftfuse/internal/status"
)

// outputMemory is what the outputs may hold of batches between reading and writing them.
const outputMemory = 64 << 20

// mountOutputs are the outputs of the rules, each for the routes that it is a member of.
func mountOutputs(m *config.Mount) []sink.Output {
	all := m.RuleOutputs()
	out := service.Outputs(all)
	for i := range out {
		out[i].Name = outputMember(all[i].Name)
	}
	return out
}

// openOutputs takes the directories of the outputs and writes again what a predecessor may not
// have brought to disk. A mount without outputs has a sink, too, which gets nothing.
func (r *role) openOutputs(ctx context.Context) (err error) {
	r.sink, err = sink.Open(ctx, sink.Options{
		Queue: r.queue, Cursor: outputCursor, Outputs: mountOutputs(r.m), DeadDir: r.cfg.DeadDir(config.RoleMount), Logger: r.log,
		Late: true, Members: r.routes.of,
	})
	if err != nil {
		return fmt.Errorf("open outputs: %w", err)
	}
	return nil
}

// startOutputs starts what writes to the outputs. When ctx ends, what is written is brought to
// disk, and then the queue forgets it.
func (r *role) startOutputs(ctx context.Context) {
	r.start(ctx, "outputs", r.sink.Apply)
	r.start(ctx, "outputs' checkpoint", func(ctx context.Context) error {
		return r.sink.Checkpoints(ctx, func(...batch.ID) {}) // a copy is no final output
	})
}

// bothOutputs are those of next, and those that only now has, which get what was captured
// for them.
func bothOutputs(now, next *config.Mount) []sink.Output {
	all := mountOutputs(next)
	for _, o := range mountOutputs(now) {
		if !slices.ContainsFunc(all, func(p sink.Output) bool { return p.Name == o.Name }) {
			all = append(all, o)
		}
	}
	return all
}

// endOutputs takes the outputs away that next has not, once what was captured for them has its
// places, or shutdown_timeout is over. What has them is written, whatever takes how long.
func (r *role) endOutputs(ctx context.Context, now, next *config.Config) error {
	outputs := mountOutputs(next.Mount)
	if len(bothOutputs(now.Mount, next.Mount)) > len(outputs) {
		short, cancel := context.WithTimeout(ctx, now.ShutdownTimeout)
		defer cancel()
		if err := r.sink.Placed(short); err != nil {
			r.log.Warn("an output is taken away before all that was captured for it has its place in a file; the rest is dropped and counted", "err", err)
		}
	}
	return r.sink.Reconfigure(outputs)
}

// reportOutputs adds what the outputs did to the role's status, if there are any.
func (r *role) reportOutputs(s *status.Role) {
	st := r.sink.Stats()
	if len(r.now.Load().Mount.RuleOutputs()) == 0 && st.Synced.Batches == 0 {
		return
	}
	s.Counters = append(s.Counters, st.Counters()...)
	if st.HeldFiles > 0 {
		s.Trouble = append(s.Trouble, "local outputs cannot be written to some files for now; the log names them")
	}
}
