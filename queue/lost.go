package queue

import (
	"encoding/binary"
	"fmt"
	"math"
	"math/bits"
	"slices"
	"sort"
	"strings"

	"ftfuse/internal/batch"
)

// Loss is one batch that the queue gave up, or did not take.
type Loss struct {
	Seq     uint64 // 0: it was not taken (LostDropNewest)
	ID      batch.ID
	Reason  string // one of the Lost constants
	Records uint32 // 0 where the head could not be read, as for Payload
	Payload uint64
	Copy    bool // only cursors of Options.Copies, or that had released it, had not passed it
}

// LaneLoss is what the queue lost of one lane for one reason.
type LaneLoss struct {
	Reason  string
	Ranges  batch.Ranges // not below the lane's horizon, see Merge; the highest maxLostRanges
	Batches uint64       // these count what is in Ranges; in proportion, where others were forgotten
	Records uint64
	Payload uint64
}

// dropBelow forgets the numbers below below, and their share of what is counted. It
// reports whether there were any.
func (b *LaneLoss) dropBelow(below uint64) bool {
	return b.shrink(func(r *batch.Ranges) { r.DropBelow(below) })
}

// shrink takes out what forget takes, and its share of what is counted.
func (b *LaneLoss) shrink(forget func(*batch.Ranges)) bool {
	before := b.Ranges.Count()
	forget(&b.Ranges)
	after := b.Ranges.Count()
	if after == before {
		return false
	}
	for _, n := range []*uint64{&b.Batches, &b.Records, &b.Payload} {
		hi, lo := bits.Mul64(*n, after)
		*n, _ = bits.Div64(hi, lo, before)
	}
	return true
}

// Bounds of what is kept by name. Losses are counted in Stats whatever these are.
const (
	maxLostLanes  = 4096 // the lane that lost something longest ago is forgotten
	maxLostRanges = 4096 // of one lane and reason: the lowest are forgotten
)

// lostLanes names what was lost, by lane.
type lostLanes struct {
	lanes map[batch.Lane]*laneLosses
	dirty map[batch.Lane]bool
	clock uint64 // counts losses
}

type laneLosses struct {
	at uint64 // clock of its newest loss
	by []LaneLoss
}

func newLostLanes() lostLanes {
	return lostLanes{lanes: map[batch.Lane]*laneLosses{}, dirty: map[batch.Lane]bool{}}
}

// add notes that id was lost.
func (l *lostLanes) add(id batch.ID, reason string, t tally) {
	l.clock++
	x := l.lanes[id.Lane]
	if x == nil {
		if len(l.lanes) >= maxLostLanes {
			l.forgetOldest()
		}
		x = &laneLosses{}
		l.lanes[id.Lane] = x
	}
	x.at = l.clock
	i := slices.IndexFunc(x.by, func(b LaneLoss) bool { return b.Reason == reason })
	if i < 0 {
		x.by = append(x.by, LaneLoss{Reason: reason})
		sort.Slice(x.by, func(i, j int) bool { return x.by[i].Reason < x.by[j].Reason })
		i = slices.IndexFunc(x.by, func(b LaneLoss) bool { return b.Reason == reason })
	}
	b := &x.by[i]
	if b.Ranges.Add(id.N) {
		b.Batches++
		b.Records += t.Records
		b.Payload += t.Payload
	}
	if b.Ranges.Len() > maxLostRanges {
		b.dropBelow(b.Ranges.At(1).First)
	}
	l.dirty[id.Lane] = true
}

func (l *lostLanes) forgetOldest() {
	var oldest batch.Lane
	at := uint64(math.MaxUint64)
	for lane, x := range l.lanes {
		if x.at < at {
			oldest, at = lane, x.at
		}
	}
	delete(l.lanes, oldest)
	l.dirty[oldest] = true
}

// merge forgets what is below a lane's horizon: another copy of it is final.
func (l *lostLanes) merge(lane batch.Lane, below uint64) {
	x := l.lanes[lane]
	if x == nil {
		return
	}
	kept := x.by[:0]
	for _, b := range x.by {
		if b.dropBelow(below) {
			l.dirty[lane] = true
		}
		if b.Ranges.Len() > 0 {
			kept = append(kept, b)
		}
	}
	if x.by = kept; len(kept) == 0 {
		delete(l.lanes, lane)
		l.dirty[lane] = true
	}
}

// encode puts what changed since the last call into puts (nil: delete).
func (l *lostLanes) encode(puts map[string][]byte) {
	for lane := range l.dirty {
		key := lostKey(lane)
		if x := l.lanes[lane]; x == nil {
			puts[key] = nil
		} else {
			puts[key] = x.encode()
		}
	}
	clear(l.dirty)
}

func (x *laneLosses) encode() []byte {
	b := appendFields(nil, x.at, uint64(len(x.by)))
	for _, r := range x.by {
		b = append(appendFields(b, uint64(len(r.Reason))), r.Reason...)
		b = appendFields(b, r.Batches, r.Records, r.Payload)
		b = r.Ranges.Append(b)
	}
	return b
}

// load takes one stored value.
func (l *lostLanes) load(key string, v []byte) error {
	lane, err := batch.ParseLane([]byte(key[1:]))
	if err != nil {
		return fmt.Errorf("%w: losses: %w", errDamaged, err)
	}
	x := &laneLosses{}
	var count uint64
	if v, err = readFields(v, &x.at, &count); err != nil {
		return err
	}
	for range count {
		var r LaneLoss
		n, k := binary.Uvarint(v)
		if k <= 0 || n > uint64(len(v)-k) {
			return fmt.Errorf("%w: losses of lane %v: reason", errDamaged, lane)
		}
		r.Reason = string(v[k : k+int(n)])
		if v, err = readFields(v[k+int(n):], &r.Batches, &r.Records, &r.Payload); err != nil {
			return err
		}
		if r.Ranges, v, err = batch.ParseRanges(v); err != nil {
			return fmt.Errorf("%w: losses of lane %v: %w", errDamaged, lane, err)
		}
		x.by = append(x.by, r)
	}
	l.lanes[lane] = x
	l.clock = max(l.clock, x.at)
	return nil
}

func lostKey(lane batch.Lane) string { return string(lane.Append([]byte{classLost})) }

// LostRanges returns what was lost of lane since the queue was made, sorted by reason,
// without what Merge said is final. It outlives restarts.
func (q *Queue) LostRanges(lane batch.Lane) []LaneLoss {
	q.mu.Lock()
	defer q.mu.Unlock()
	x := q.lost.lanes[lane]
	if x == nil {
		return nil
	}
	out := slices.Clone(x.by)
	for i := range out {
		out[i].Ranges = out[i].Ranges.Clone()
	}
	return out
}

// LostLanes returns the lanes of which LostRanges has something, in no order.
func (q *Queue) LostLanes() []batch.Lane {
	q.mu.Lock()
	defer q.mu.Unlock()
	lanes := make([]batch.Lane, 0, len(q.lost.lanes))
	for l := range q.lost.lanes {
		lanes = append(lanes, l)
	}
	return lanes
}

// loseID counts t, and names it as l. The caller holds mu.
func (q *Queue) loseID(l Loss, t tally) {
	q.lose(l.Reason, t)
	if !l.Copy {
		q.lost.add(l.ID, l.Reason, t)
	}
	if q.o.OnLoss != nil {
		l.Records, l.Payload = uint32(t.Records), t.Payload
		q.untold = append(q.untold, l)
	}
}

// copyOnly says whether c is one of Options.Copies.
func (q *Queue) copyOnly(c *Cursor) bool {
	return slices.ContainsFunc(q.o.Copies, func(name string) bool {
		return name == c.name || strings.HasSuffix(name, "/") && strings.HasPrefix(c.name, name)
	})
}

// tell hands on losses that are durable.
func (q *Queue) tell(l []Loss) {
	if len(l) == 0 {
		return
	}
	q.mu.Lock()
	q.told = append(q.told, l...)
	q.mu.Unlock()
	select {
	case q.tellKick <- struct{}{}:
	default:
	}
}

// tellLosses calls OnLoss for each durable loss, until the committer has ended and all
// are told.
func (q *Queue) tellLosses() {
	defer close(q.tellDone)
	for ended := false; ; {
		q.mu.Lock()
		l := q.told
		q.told = nil
		q.mu.Unlock()
		for _, x := range l {
			q.o.OnLoss(x)
		}
		if len(l) > 0 {
			continue
		}
		if ended {
			return
		}
		select {
		case <-q.tellKick:
		case <-q.done:
			ended = true
		}
	}
}
