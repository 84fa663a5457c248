package spool

import "sync/atomic"

// Recovery says what Begin found in the journal.
type Recovery struct {
	OtherBoot bool   // the notes are from before the machine started: bytes and notes may be missing
	Entries   int    // notes above the committed one
	Lost      int    // sequence numbers among them whose note does not fit its CRC; they come as Void
	Clipped   int    // writes in progress at the kill, or longer than what their file has
	From, To  uint64 // first and last sequence number to replay; From > To: none
}

// top returns the highest sequence number that fits, 0 for none.
func (j *journal) top() uint64 {
	var top uint64
	for slot := range j.cap {
		b := j.ring[slot*entrySize:]
		seq := leUint64(b[entSeq:])
		if seq > top && seq%j.cap == slot {
			if _, ok := j.load(seq, true); ok {
				top = seq
			}
		}
	}
	return top
}

// begin takes up the ring after a start. Entries above committed are clipped by
// size, which returns how many bytes a file has, and become complete.
func (j *journal) begin(committed uint64, size func(Number) int64) Recovery {
	top := j.top()
	r := Recovery{OtherBoot: j.otherBoot, From: committed + 1, To: top}
	if top > committed && top-committed > j.cap {
		r.From = top - j.cap + 1
	}
	for seq := r.From; seq <= top; seq++ {
		e, ok := j.load(seq, true)
		if !ok || e.Len > maxWrite {
			r.Lost++
			j.store(seq, &Entry{Kind: Void})
			atomic.StoreUint32(j.result(seq), 1)
			continue
		}
		r.Entries++
		n := max(0, min(int64(e.Len), size(e.File)-e.Off))
		if e.Kind != Write {
			n = 0
		}
		if have := size(e.File); (e.Kind == Opened || e.Kind == Grown) && e.Off > have {
			// The file was truncated since, or lost its end with the power. What is written to
			// it now begins there.
			e.Off = have
			j.store(seq, &e)
		}
		inProgress := atomic.LoadUint32(j.result(seq)) == 0
		if inProgress && e.Kind == Write && e.Flags&FlagUnsure == 0 {
			e.Flags |= FlagUnsure
			j.store(seq, &e)
		}
		if inProgress || n != int64(e.Len) {
			if e.Kind == Write {
				r.Clipped++
			}
			atomic.StoreUint32(j.result(seq), uint32(n)+1)
		}
		j.uncaptured.Add(n)
	}
	j.done.Store(r.From - 1)
	j.next.Store(max(top, committed) + 1)
	return r
}
