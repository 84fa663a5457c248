package queue

import (
	"maps"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// Tally counts batches in the units that are reported. Payload is the bytes that
// programs wrote, Bytes what the queue stores for them.
type Tally = tally

// CursorStats is what a cursor has still to do.
type CursorStats struct {
	Name      string
	Waiting   Tally     // not acked yet
	Given     int       // of those, given by Next
	OldestSeq uint64    // oldest not acked; 0: none
	Oldest    time.Time // when that was sealed; zero: none, or not readable
}

// Stats is the queue at one moment.
type Stats struct {
	Live        Tally // what some cursor has not passed (uncommitted entries only in Bytes)
	MaxBytes    int64
	Committed   uint64 // newest seq on disk
	Segments    int
	DiskBytes   int64 // allocated by the segment files
	Cursors     []CursorStats
	Losses      map[string]Tally // by reason, since the queue was made
	Healed      Tally            // lost to damage and taken again from another node, since it was opened
	Quarantined int              // files set aside as .corrupt
	DiskFull    bool
	Unread      string // why something cannot be read for now, which is tried again; "": it can
}

// Room returns how many bytes there are until MaxBytes.
func (q *Queue) Room() int64 {
	q.mu.Lock()
	defer q.mu.Unlock()
	return max(0, q.o.MaxBytes-q.live)
}

// Stats returns the queue's counters. It looks into the directory and may read a
// batch's head from the disk.
func (q *Queue) Stats() Stats {
	s := q.counters()
	entries, _ := os.ReadDir(q.dir)
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), corruptExt) {
			s.Quarantined++
		}
		if filepath.Ext(e.Name()) == segmentExt {
			s.DiskBytes += diskBytes(e)
		}
	}
	return s
}

func (q *Queue) counters() Stats {
	q.mu.Lock()
	defer q.mu.Unlock()
	s := Stats{MaxBytes: q.o.MaxBytes, Committed: q.committed, Segments: len(q.segs), Losses: maps.Clone(q.losses), Healed: q.damaged.healed, DiskFull: q.diskFull, Unread: q.unread()}
	for _, seg := range q.segs {
		s.Live.add(seg.total.minus(seg.passed))
	}
	s.Live.Bytes = uint64(max(0, q.live))
	for _, c := range q.cursors {
		cs := CursorStats{Name: c.name, Given: len(c.given)}
		for _, seg := range q.segs {
			cs.Waiting.add(seg.total.minus(c.parts[seg.num]))
		}
		if seq := c.acked.Next(); seq <= q.committed {
			cs.OldestSeq = seq
			if g, ok := c.given[seq]; ok {
				cs.Oldest = time.Unix(0, g.time)
			} else if h, err := q.headOf(q.segmentOf(seq), seq); err == nil {
				cs.Oldest = time.Unix(0, h.e.Batch.Time)
			}
		}
		s.Cursors = append(s.Cursors, cs)
	}
	return s
}
