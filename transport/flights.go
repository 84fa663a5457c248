package transport

import (
	"context"
	"sync"
	"time"

	"ftfuse/internal/batch"
)

// flight is one batch that was taken from the Source and not answered.
type flight struct {
	seq     uint64
	b       batch.Sealed
	sent    bool      // at least once, on whatever connection
	session uint64    // the connection it was last written to
	first   time.Time // when it was written first
	badCRC  bool      // refused once for its CRC
	done    bool
}

// cost is what a flight counts for in the window.
func (f *flight) cost() int64 { return int64(len(f.b.Data)) + batchOverhead }

// flights are the batches in flight, in the order of the Source.
type flights struct {
	mu      sync.Mutex
	order   []*flight            // done ones in front are cut off
	byID    map[batch.ID]*flight // the recalled ones not
	bytes   int64
	changed chan struct{} // holds a token after each change that someone may wait for

	recalled map[batch.ID]*flight // they may still be acked on this connection
	next     context.Context      // of the call of Next
	stopNext context.CancelFunc
	pulling  bool                // Next was called and what it gives is not added yet
	backAll  bool                // it is to go back, whatever it is
	back     map[uint64]struct{} // it is to go back, if it is one of these
}

func (f *flights) init() {
	f.byID, f.recalled = make(map[batch.ID]*flight), make(map[batch.ID]*flight)
	f.changed = make(chan struct{}, 1)
}

func (f *flights) size() (n int, bytes int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.byID), f.bytes
}

// pull notes that Next is about to be called, and returns the context for it, which ends
// with ctx or when something is recalled.
func (f *flights) pull(ctx context.Context) context.Context {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.pulling = true
	if f.next == nil || f.next.Err() != nil {
		f.next, f.stopNext = context.WithCancel(ctx)
	}
	return f.next
}

// unpull notes that Next gave nothing.
func (f *flights) unpull() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.pulling, f.backAll, f.back = false, false, nil
}

// endPull frees what pull made for a connection that is over.
func (f *flights) endPull() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.stopNext != nil {
		f.stopNext()
	}
	f.next, f.stopNext = nil, nil
}

// What add found.
type added int

const (
	isNew    added = iota
	isDouble       // in flight already
	isBack         // recalled since pull
)

// add takes what was pulled.
func (f *flights) add(fl *flight) added {
	f.mu.Lock()
	defer f.mu.Unlock()
	_, back := f.back[fl.seq]
	back = back || f.backAll
	f.pulling, f.backAll, f.back = false, false, nil
	switch {
	case f.byID[fl.b.ID] != nil:
		return isDouble
	case back:
		return isBack
	}
	if old := f.recalled[fl.b.ID]; old != nil { // given back to this client
		fl.sent, fl.first = true, old.first
		delete(f.recalled, fl.b.ID)
	}
	f.byID[fl.b.ID] = fl
	f.order = append(f.order, fl)
	f.bytes += fl.cost()
	return isNew
}

// oldest is when the oldest batch without an answer was written first; zero: there is
// none.
func (f *flights) oldest() (t time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, fl := range f.order {
		if !fl.done {
			return fl.first // what is behind it was written later
		}
	}
	return t
}

// left returns what is not answered, in order.
func (f *flights) left() []*flight {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []*flight
	for _, fl := range f.order {
		if !fl.done {
			out = append(out, fl)
		}
	}
	return out
}

// mark notes that fl is about to be written to a connection. It returns what to write,
// or send false when an answer has come meanwhile.
func (f *flights) mark(fl *flight, session uint64) (b batch.Sealed, send bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	b = fl.b
	if fl.done {
		return b, false
	}
	if fl.sent {
		b.Flags |= batch.FlagResent
	}
	if fl.first.IsZero() {
		fl.first = time.Now()
	}
	fl.sent, fl.session = true, session
	return b, true
}

// outstanding is how many batches a connection was given and has not answered.
func (f *flights) outstanding(session uint64) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := 0
	for _, fl := range f.byID {
		if fl.session == session {
			n++
		}
	}
	return n
}

// settle ends the flights of lane in set and appends their numbers in the Source to
// seqs. Numbers that are not in flight, an answer that came twice, are nothing.
func (f *flights) settle(lane batch.Lane, set batch.Ranges, seqs []uint64) []uint64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, r := range set.All() {
		each(f.byID, lane, r, func(fl *flight) {
			seqs = append(seqs, fl.seq)
			f.end(fl)
		})
		each(f.recalled, lane, r, func(fl *flight) {
			seqs = append(seqs, fl.seq)
			delete(f.recalled, fl.b.ID)
		})
	}
	f.signal()
	return seqs
}

// each calls fn for what of all is of lane and in r. fn may delete it.
func each(all map[batch.ID]*flight, lane batch.Lane, r batch.Range, fn func(*flight)) {
	if r.Last-r.First >= uint64(len(all)) { // wider than all there is: look from the other side
		for id, fl := range all {
			if id.Lane == lane && id.N >= r.First && id.N <= r.Last {
				fn(fl)
			}
		}
		return
	}
	for n := r.First; ; n++ {
		if fl := all[batch.ID{Lane: lane, N: n}]; fl != nil {
			fn(fl)
		}
		if n == r.Last {
			return
		}
	}
}

// recall takes back the flights that want names. Those that were never written are
// forgotten; of the others only an ack is still looked for.
func (f *flights) recall(want func(*flight) bool) (out []RecalledBatch) {
	for _, fl := range f.order {
		if fl.done || !want(fl) {
			continue
		}
		out = append(out, RecalledBatch{Seq: fl.seq, Sent: fl.sent})
		fl.done = true
		f.bytes -= fl.cost()
		delete(f.byID, fl.b.ID)
		fl.b.Data = nil
		if fl.sent {
			f.recalled[fl.b.ID] = fl
		}
	}
	f.trim()
	f.signal()
	return out
}

func (f *flights) recallAll() []RecalledBatch {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.pulling {
		f.backAll = true
		f.stopNext()
	}
	return f.recall(func(*flight) bool { return true })
}

func (f *flights) recallThese(seqs []uint64) []RecalledBatch {
	set := make(map[uint64]struct{}, len(seqs))
	for _, seq := range seqs {
		set[seq] = struct{}{}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	out := f.recall(func(fl *flight) bool { _, ok := set[fl.seq]; return ok })
	for _, r := range out {
		delete(set, r.Seq)
	}
	if f.pulling && len(set) > 0 {
		f.stopNext()
		if f.back == nil {
			f.back = set
		}
		for seq := range set {
			f.back[seq] = struct{}{}
		}
	}
	return out
}

// forget ends the wait for acks of what was recalled; nil is for all of it.
func (f *flights) forget(seqs map[uint64]struct{}) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for id, fl := range f.recalled {
		if _, ok := seqs[fl.seq]; ok || seqs == nil {
			delete(f.recalled, id)
		}
	}
}

// isDone reports whether fl was answered.
func (f *flights) isDone(fl *flight) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return fl.done
}

// find returns the flight of id, or nil.
func (f *flights) find(id batch.ID) *flight {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.byID[id]
}

// drop ends one flight without an ack.
func (f *flights) drop(fl *flight) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !fl.done {
		f.end(fl)
	}
	f.signal()
}

func (f *flights) end(fl *flight) {
	fl.done = true
	f.bytes -= fl.cost()
	delete(f.byID, fl.b.ID)
	fl.b.Data = nil // the bytes may go now
	f.trim()
}

// trim cuts off what is done in front.
func (f *flights) trim() {
	n := 0
	for n < len(f.order) && f.order[n].done {
		f.order[n] = nil
		n++
	}
	f.order = f.order[n:]
}

func (f *flights) signal() {
	select {
	case f.changed <- struct{}{}:
	default:
	}
}
