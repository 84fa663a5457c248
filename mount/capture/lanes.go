package capture

import (
	"time"

	"ftfuse/internal/batch"
	"ftfuse/internal/record"
	"ftfuse/queue"
)

// Batches are numbered in lanes: one for each route, which the rules choose, and bucket, a
// hash of host and path. All lanes of a start share its epoch, and whatever they have goes
// into one transaction with the positions, so that nothing else depends on how many there
// are. A path is in one lane, and so its records are in order.

// lane is one of this start's lanes and its unfinished batch.
type lane struct {
	route  uint32
	bucket uint8
	b      *record.Builder
	number uint64 // of the newest batch sealed in this epoch
	seen   uint64 // number when giveBack looked last
}

type laneKey struct {
	route  uint32
	bucket uint8
}

// bucketOf is the bucket, of n, of a path of a host. It is the same on every machine and
// in every version: FNV-1a, 64 bits, of the host, a NUL and the path, halves folded.
func bucketOf(host, path string, n int) uint8 {
	h := uint64(14695981039346656037)
	add := func(s string) {
		for i := range len(s) {
			h = (h ^ uint64(s[i])) * 1099511628211
		}
	}
	add(host)
	add("\x00")
	add(path)
	return uint8((h ^ h>>32) & 0xffffffff % uint64(n))
}

// oneLane reports whether everything has route and bucket 0.
func oneLane(rules []Rule, buckets int) bool {
	for i := range rules {
		if rules[i].Route != 0 {
			return false
		}
	}
	return buckets == 1
}

// openLane returns the lane of that route and bucket.
func (c *Capture) openLane(key laneKey) *lane {
	l := c.laneBy[key]
	if l == nil {
		l = &lane{route: key.route, bucket: key.bucket, b: record.NewBuilder(c.o.BatchBytes)}
		l.b.Compress(c.o.Codec)
		c.laneBy[key] = l
		c.lanes = append(c.lanes, l)
	}
	return l
}

// turn makes the lane of p the one whose batch is read into.
func (c *Capture) turn(p *path) {
	if !c.single {
		c.l = c.laneOf(p)
	}
}

// laneOf is the lane of what is written by p.
func (c *Capture) laneOf(p *path) *lane {
	if p.lane == nil {
		p.lane = c.openLane(laneKey{p.route, bucketOf(c.o.Host, p.name, c.o.Buckets)})
	}
	return p.lane
}

// laneOfRecord is the lane of a record of w. A line that began when w had another path is
// that path's.
func (c *Capture) laneOfRecord(w *writer, a *record.Attr) *lane {
	switch {
	case c.single:
		return c.l
	case a.Path == w.path.name:
		return c.laneOf(w.path)
	}
	return c.laneOf(c.pathOf(0, a.Path))
}

// idleLane is after how long without a batch a lane gives its buffer back, which is of the
// size of a batch: with many routes and buckets those are many.
const idleLane = time.Second

// giveBack has lanes without a batch for idleLane give their buffers back. It reports whether
// others have one, and is to be called again then.
func (c *Capture) giveBack() bool {
	now := time.Now()
	if now.Sub(c.swept) < idleLane {
		return c.roomy
	}
	c.swept, c.roomy = now, false
	for _, l := range c.lanes {
		if l.number == l.seen && l.b.Records() == 0 {
			l.b.Release()
		}
		c.roomy = c.roomy || l.b.Held() > 0
		l.seen = l.number
	}
	return c.roomy
}

// filled reports whether there is a record that is in no sealed batch.
func (c *Capture) filled() bool {
	for _, l := range c.lanes {
		if l.b.Records() > 0 {
			return true
		}
	}
	return false
}

// overfull reports whether several lanes have enough for a transaction together.
func (c *Capture) overfull() bool {
	if c.single {
		return false
	}
	n := 0
	for i := range c.entries {
		n += len(c.entries[i].Batch.Data)
	}
	for _, l := range c.lanes {
		n += l.b.Len()
	}
	return n >= c.o.TxnBytes
}

// seal ends the batch of l, which is full. It submits it, too, with the state that goes
// with it and what the other lanes have; but not in an overwrite, nor as long as there
// would be no hurry and the others may fill their batches.
func (c *Capture) seal(l *lane) error {
	if c.collecting || !c.single && c.busy() && !c.overfull() {
		c.sealLane(l)
		return nil
	}
	return c.submit(c.ctx, false)
}

func (c *Capture) sealAll() {
	for _, l := range c.lanes {
		c.sealLane(l)
	}
}

func (c *Capture) sealLane(l *lane) {
	if l.b.Records() == 0 {
		return
	}
	if !c.collecting { // an overwrite may be undone
		c.leaveContested()
	}
	l.number++
	id := batch.ID{Lane: c.lane, N: l.number}
	id.Lane.Route, id.Lane.Bucket = l.route, l.bucket
	c.entries = append(c.entries, queue.Entry{Batch: l.b.Seal(id, c.now())})
}

// unseal forgets all batches that are not submitted, sealed or not.
func (c *Capture) unseal() {
	for i := range c.entries {
		id := &c.entries[i].Batch.ID
		c.laneBy[laneKey{id.Lane.Route, id.Lane.Bucket}].number--
	}
	c.entries = nil
	for _, l := range c.lanes {
		l.b.Reset()
	}
}
