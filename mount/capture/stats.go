package capture

import "sync/atomic"

// Stats is a copy of the counters since the start. Bytes are as programs wrote them.
type Stats struct {
	Writes, Bytes         uint64 // taken in: entries that had bytes, and those
	Records, RecordBytes  uint64 // put into batches
	Batches, BatchBytes   uint64 // sealed, with their encoding
	Commits               uint64 // transactions submitted
	Holes, HoleBytes      uint64 // skipped: nobody wrote them
	Overwrites            uint64 // writes over captured bytes
	OverwriteBytes        uint64
	LongLines             uint64      // travelled in pieces
	Unterminated          uint64      // lines that ended without a line end
	Breaks                uint64      // records that must not go on in another writer's line
	Recovered             uint64      // bytes whose attributes were lost
	Shrunk                uint64      // files found shorter than their position at a start
	PossibleDoubles       uint64      // captured again after a repair of the queue, perhaps for the second time
	LostPending           uint64      // of unfinished lines that a repair of the queue could not read
	Offline               uint64      // bytes of sources: of files that were written while nothing was mounted, and of `ftfuse send`
	Pending, PendingBytes int64       // unfinished lines now
	InFlight              int64       // bytes given to the queue and not committed now
	Rules                 []RuleStats // those in force, in their order
}

// RuleStats is what one rule did. Bytes are with line ends.
type RuleStats struct {
	Path                           string // the rule's
	SkippedWrites, SkippedBytes    uint64 // Transfer is false
	DeniedLines, DeniedBytes       uint64 // by its filter
	UnmatchedLines, UnmatchedBytes uint64 // that its filter drops by default
	ReplacedLines                  uint64 // that its filter rewrote
	OvergrownLines                 uint64 // those of them that would have become too long: what matched was taken out
}

// counters are written by Run's goroutine and read by any.
type counters struct {
	writes, bytes, records, recordBytes, batches, batchBytes, commits atomic.Uint64
	holes, holeBytes, overwrites, overwriteBytes, longLines           atomic.Uint64
	unterminated, breaks, recovered, shrunk, doubles, lostPending     atomic.Uint64
	offline                                                           atomic.Uint64
	pending, pendingBytes                                             atomic.Int64
}

// ruleCounts are written by Run's goroutine and read by any.
type ruleCounts struct {
	skippedWrites, skippedBytes                              atomic.Uint64
	deniedLines, deniedBytes, unmatchedLines, unmatchedBytes atomic.Uint64
	replacedLines, overgrownLines                            atomic.Uint64
}

func (n *ruleCounts) stats(path string) RuleStats {
	return RuleStats{
		Path: path, SkippedWrites: n.skippedWrites.Load(), SkippedBytes: n.skippedBytes.Load(),
		DeniedLines: n.deniedLines.Load(), DeniedBytes: n.deniedBytes.Load(),
		UnmatchedLines: n.unmatchedLines.Load(), UnmatchedBytes: n.unmatchedBytes.Load(),
		ReplacedLines: n.replacedLines.Load(), OvergrownLines: n.overgrownLines.Load(),
	}
}

// restore sets the counters back: what they counted since is undone.
func (n *ruleCounts) restore(s RuleStats) {
	n.skippedWrites.Store(s.SkippedWrites)
	n.skippedBytes.Store(s.SkippedBytes)
	n.deniedLines.Store(s.DeniedLines)
	n.deniedBytes.Store(s.DeniedBytes)
	n.unmatchedLines.Store(s.UnmatchedLines)
	n.unmatchedBytes.Store(s.UnmatchedBytes)
	n.replacedLines.Store(s.ReplacedLines)
	n.overgrownLines.Store(s.OvergrownLines)
}

// tally is what Run's goroutine counted since it last published.
type tally struct{ writes, bytes, records, recordBytes uint64 }

func (c *Capture) publish() {
	t, n := &c.tally, &c.n
	n.writes.Add(t.writes)
	n.bytes.Add(t.bytes)
	n.records.Add(t.records)
	n.recordBytes.Add(t.recordBytes)
	n.pending.Store(int64(c.pendCount))
	n.pendingBytes.Store(c.pendBytes)
	*t = tally{}
}

// Stats returns the counters. It is safe for concurrent use; the parts may be of
// moments a millisecond apart.
func (c *Capture) Stats() Stats {
	n := &c.n
	s := Stats{
		Writes: n.writes.Load(), Bytes: n.bytes.Load(), Records: n.records.Load(), RecordBytes: n.recordBytes.Load(),
		Batches: n.batches.Load(), BatchBytes: n.batchBytes.Load(), Commits: n.commits.Load(),
		Holes: n.holes.Load(), HoleBytes: n.holeBytes.Load(),
		Overwrites: n.overwrites.Load(), OverwriteBytes: n.overwriteBytes.Load(),
		LongLines: n.longLines.Load(), Unterminated: n.unterminated.Load(), Breaks: n.breaks.Load(),
		Recovered: n.recovered.Load(), Shrunk: n.shrunk.Load(),
		PossibleDoubles: n.doubles.Load(), LostPending: n.lostPending.Load(), Offline: n.offline.Load(),
		Pending: n.pending.Load(), PendingBytes: n.pendingBytes.Load(),
	}
	c.mu.Lock()
	s.InFlight = c.inFlight
	c.mu.Unlock()
	set := c.rules.Load()
	for i, counts := range set.counts {
		s.Rules = append(s.Rules, counts.stats(set.rules[i].Path))
	}
	return s
}
