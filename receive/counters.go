package receive

import (
	"sync/atomic"

	"ftfuse/internal/batch"
	"ftfuse/internal/sink"
	"ftfuse/queue"
)

// counters is what the role counts since it started, beside its sink.
type counters struct {
	batches, records, bytes atomic.Uint64 // taken and committed
	duplicates              atomic.Uint64 // batches that were here already
	conflicts               atomic.Uint64 // batches refused for another content under their id
	foreign                 atomic.Uint64 // batches refused for records of a host not theirs
	resent                  flagged
}

// flagged counts batches that may stand at another receiver too.
type flagged struct{ batches, records, bytes atomic.Uint64 }

func (f *flagged) add(b batch.Sealed) {
	f.batches.Add(1)
	f.records.Add(uint64(b.Records))
	f.bytes.Add(b.Payload)
}

// Stats is a snapshot of what a receiver did since it started.
type Stats struct {
	Batches, Records, Bytes uint64
	Duplicates              uint64
	Conflicts               uint64      // batches refused for another content under their id
	Foreign                 uint64      // batches refused for records of a host that they do not speak for
	Resent                  queue.Tally // taken since the start with the mark that another receiver may have them too
	ResentLanes             []Resent    // which, since the queue was made
	// What other nodes dropped before it came here, by reason.
	DroppedUpstream map[string]queue.Tally
	sink.Stats      // zero without output files
}

// Stats returns what it did since it was opened.
func (s *Server) Stats() Stats {
	st := s.count.snapshot()
	st.ResentLanes, st.DroppedUpstream = s.handler.resent.all(), s.tell.DroppedUpstream()
	return st
}

func (c *counters) snapshot() Stats {
	return Stats{
		Batches: c.batches.Load(), Records: c.records.Load(), Bytes: c.bytes.Load(),
		Duplicates: c.duplicates.Load(), Conflicts: c.conflicts.Load(), Foreign: c.foreign.Load(),
		Resent: queue.Tally{Batches: c.resent.batches.Load(), Records: c.resent.records.Load(), Payload: c.resent.bytes.Load()},
	}
}
