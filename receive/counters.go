package receive

import (
	"sync/atomic"

	"ftfuse/internal/sink"
)

// counters is what the role counts since it started, beside its sink.
type counters struct {
	batches, records, bytes atomic.Uint64 // taken and committed
	duplicates              atomic.Uint64 // batches that were here already
}

// Stats is a snapshot of what a receiver did since it started.
type Stats struct {
	Batches, Records, Bytes uint64
	Duplicates              uint64
	sink.Stats
}

func (c *counters) snapshot() Stats {
	return Stats{
		Batches: c.batches.Load(), Records: c.records.Load(), Bytes: c.bytes.Load(),
		Duplicates: c.duplicates.Load(),
	}
}
