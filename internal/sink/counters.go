package sink

import (
	"sync"
	"sync/atomic"

	"ftfuse/queue"
)

// counters is what a sink counts since it was opened.
type counters struct {
	unmatched      atomic.Uint64 // records that no output wanted ...
	unmatchedBytes atomic.Uint64 // ... and their bytes
	passed         atomic.Uint64 // batches without places: the queue had them before there was an output
	written        atomic.Uint64 // bytes put into output files by this run
	redone         atomic.Uint64 // bytes of an earlier run found in their place at the start
	doubles        atomic.Uint64 // extents that may stand twice
	generations    atomic.Uint64 // files that were replaced, shrunk or appended to by somebody else
	pieces         atomic.Uint64 // pieces of long lines that could not be joined
	checkpoints    atomic.Uint64
	synced         tally         // batches of which every byte is on disk
	retries        atomic.Uint64 // attempts to go on with a file that could not be written to

	rotations, rotatedPacked, rotatedRemoved, rotatedRemovedBytes, rotateErrors atomic.Uint64

	mu   sync.Mutex
	dead map[string]Dead
}

type tally struct{ batches, records, bytes atomic.Uint64 }

// Dead counts the dead letters of one reason.
type Dead struct{ Letters, Records, Bytes uint64 }

// Stats is a snapshot of what a sink did since it was opened.
type Stats struct {
	UnmatchedRecords, UnmatchedBytes  uint64
	PassedBatches                     uint64
	Synced                            queue.Tally // of which every byte is in the outputs, on disk
	WrittenBytes, RedoneBytes         uint64
	PossibleDoubles, Generations      uint64
	SplitPieces, Checkpoints, Retries uint64
	OpenFiles, HeldFiles              int
	Dead                              map[string]Dead // by reason

	Rotations, RotatedPacked            uint64 // files that were rotated by ftfuse; of them compressed
	RotatedRemoved, RotatedRemovedBytes uint64 // of them removed, by Rotate.Keep; bytes as they lay there
	RotateErrors                        uint64
}

func (c *counters) addDead(reason string, records uint64, bytes int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.dead == nil {
		c.dead = map[string]Dead{}
	}
	d := c.dead[reason]
	c.dead[reason] = Dead{d.Letters + 1, d.Records + records, d.Bytes + uint64(bytes)}
}

func (c *counters) snapshot() Stats {
	s := Stats{
		UnmatchedRecords: c.unmatched.Load(), UnmatchedBytes: c.unmatchedBytes.Load(),
		PassedBatches: c.passed.Load(),
		WrittenBytes:  c.written.Load(), RedoneBytes: c.redone.Load(),
		PossibleDoubles: c.doubles.Load(), Generations: c.generations.Load(),
		SplitPieces: c.pieces.Load(), Checkpoints: c.checkpoints.Load(), Retries: c.retries.Load(),
		Dead: map[string]Dead{},

		Rotations: c.rotations.Load(), RotatedPacked: c.rotatedPacked.Load(),
		RotatedRemoved: c.rotatedRemoved.Load(), RotatedRemovedBytes: c.rotatedRemovedBytes.Load(), RotateErrors: c.rotateErrors.Load(),
	}
	s.Synced = queue.Tally{Batches: c.synced.batches.Load(), Records: c.synced.records.Load(), Payload: c.synced.bytes.Load()}
	c.mu.Lock()
	defer c.mu.Unlock()
	for reason, d := range c.dead {
		s.Dead[reason] = d
	}
	return s
}
