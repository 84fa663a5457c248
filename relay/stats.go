package relay

import (
	"sync/atomic"

	"ftfuse/internal/batch"
	"ftfuse/internal/forward"
	"ftfuse/internal/sink"
	"ftfuse/queue"
	"ftfuse/transport"
)

// Stats is a snapshot of what a relay did since it started.
type Stats struct {
	Taken      queue.Tally // and committed
	Duplicates uint64      // batches that were here already
	Again      uint64      // of those, taken again for the way they came
	Conflicts  uint64      // batches refused for another content under their id
	Foreign    uint64      // batches refused for records of a host that they do not speak for
	Resent     queue.Tally // of Taken: in flight to another node before
	// What other nodes dropped, by reason, as far as it was heard of.
	DroppedUpstream, DroppedDownstream map[string]queue.Tally

	Server  transport.ServerStats
	Forward forward.Stats
	Sink    *sink.Stats // nil: no outputs
}

// Stats returns a snapshot. It looks into the queue's directory.
func (r *Relay) Stats() Stats {
	h := r.handler
	s := Stats{
		Taken:      h.taken.load(),
		Duplicates: h.duplicates.Load(), Again: h.again.Load(), Conflicts: h.conflicts.Load(), Foreign: h.foreign.Load(), Resent: h.resent.load(),
		DroppedUpstream: r.tell.DroppedUpstream(), DroppedDownstream: r.tell.DroppedDownstream(),
		Server: r.server.Stats(), Forward: r.forward.Stats(),
	}
	if r.sink != nil {
		st := r.sink.Stats()
		s.Sink = &st
	}
	return s
}

// tally counts batches.
type tally struct{ batches, records, bytes atomic.Uint64 }

func (t *tally) add(b *batch.Sealed) {
	t.batches.Add(1)
	t.records.Add(uint64(b.Records))
	t.bytes.Add(b.Payload)
}

func (t *tally) load() queue.Tally {
	return queue.Tally{Batches: t.batches.Load(), Records: t.records.Load(), Payload: t.bytes.Load()}
}
