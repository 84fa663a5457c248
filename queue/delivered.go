package queue

import (
	"encoding/binary"
	"fmt"
	"math/bits"

	"ftfuse/internal/batch"
)

// keepCRCs is how many of the newest numbers of a lane keep their CRC.
const keepCRCs = 1024

// chunkSize is how many CRCs are stored in one value, so that a commit writes little.
const chunkSize = 64

// DeliveredSet is the set of batches that a node has taken: ranges by lane, and the CRCs
// of the newest numbers of each, so that a second content under one id is noticed. It is
// what a queue opened with Options.Dedupe keeps; by itself it stores nothing. It is not
// safe for concurrent use.
type DeliveredSet struct {
	lanes  map[batch.Lane]*laneSet
	nextIx uint32
	dirty  map[batch.Lane]*laneSet
}

// laneSet is the part of one lane.
type laneSet struct {
	ix     uint32 // names the lane in the keys of its chunks
	host   string // of the first batch taken of it; "": none was, or before that was kept
	ids    batch.Ranges
	newest uint64
	chunks map[uint64]*crcChunk // by n / chunkSize
	gone   []uint64             // chunks to delete at the next commit
}

// crcChunk holds the CRCs of the numbers of one chunk that are known.
type crcChunk struct {
	known uint64 // bit i: crc[i] is set
	crc   [chunkSize]uint32
	dirty bool
}

// NewDeliveredSet returns the empty set.
func NewDeliveredSet() *DeliveredSet {
	return &DeliveredSet{lanes: map[batch.Lane]*laneSet{}, dirty: map[batch.Lane]*laneSet{}}
}

// Look says whether id is in the set, and whether its CRC there is another one.
func (d *DeliveredSet) Look(id batch.ID, crc uint32) (known, conflict bool) {
	l := d.lanes[id.Lane]
	if l == nil || !l.ids.Contains(id.N) {
		return false, false
	}
	c := l.chunks[id.N/chunkSize]
	if c == nil || c.known&(1<<(id.N%chunkSize)) == 0 {
		return true, false
	}
	return true, c.crc[id.N%chunkSize] != crc
}

func (d *DeliveredSet) lane(lane batch.Lane) *laneSet {
	l := d.lanes[lane]
	if l == nil {
		l = &laneSet{ix: d.nextIx, chunks: map[uint64]*crcChunk{}}
		d.nextIx++
		d.lanes[lane] = l
	}
	d.dirty[lane] = l
	return l
}

// Add puts id into the set.
func (d *DeliveredSet) Add(id batch.ID, crc uint32) {
	l := d.lane(id.Lane)
	l.ids.Add(id.N)
	if id.N > l.newest {
		l.newest = id.N
		l.forget()
	} else if id.N/chunkSize < l.oldestChunk() {
		return
	}
	k := id.N / chunkSize
	c := l.chunks[k]
	if c == nil {
		c = &crcChunk{}
		l.chunks[k] = c
	}
	c.known |= 1 << (id.N % chunkSize)
	c.crc[id.N%chunkSize] = crc
	c.dirty = true
}

// Claim notes that a batch of lane was taken that host sealed. The first counts: lanes
// are of one host each.
func (d *DeliveredSet) Claim(lane batch.Lane, host string) {
	if l := d.lanes[lane]; host != "" && (l == nil || l.host == "") {
		d.lane(lane).host = host
	}
}

// Host returns the host of lane, see Claim; "": nobody claimed it.
func (d *DeliveredSet) Host(lane batch.Lane) string {
	if l := d.lanes[lane]; l != nil {
		return l.host
	}
	return ""
}

func (l *laneSet) oldestChunk() uint64 {
	if l.newest < keepCRCs {
		return 0
	}
	return (l.newest - keepCRCs) / chunkSize
}

// forget drops the chunks that hold none of the newest numbers.
func (l *laneSet) forget() {
	if len(l.chunks) <= keepCRCs/chunkSize {
		return
	}
	for k := range l.chunks {
		if k < l.oldestChunk() {
			delete(l.chunks, k)
			l.gone = append(l.gone, k)
		}
	}
}

// Merge notes that every number of lane below below is final: their part becomes one range.
func (d *DeliveredSet) Merge(lane batch.Lane, below uint64) {
	if l := d.lanes[lane]; below <= 1 || l != nil && l.ids.Next() >= below {
		return
	}
	l := d.lane(lane)
	l.ids.AddRange(batch.Range{First: 1, Last: below - 1})
	if below-1 > l.newest {
		l.newest = below - 1
		l.forget()
	}
}

// Ranges returns a copy of what the set has of lane.
func (d *DeliveredSet) Ranges(lane batch.Lane) batch.Ranges {
	if l := d.lanes[lane]; l != nil {
		return l.ids.Clone()
	}
	return batch.Ranges{}
}

// Lanes returns the lanes of which the set has something, in no order.
func (d *DeliveredSet) Lanes() []batch.Lane {
	lanes := make([]batch.Lane, 0, len(d.lanes))
	for l := range d.lanes {
		lanes = append(lanes, l)
	}
	return lanes
}

// DeliveredStats says how large a delivered set is.
type DeliveredStats struct {
	Lanes  int
	Ranges int
	CRCs   int   // numbers whose CRC is kept
	Bytes  int64 // of all keys and values, as they are stored
}

// Stats returns the size of the set.
func (d *DeliveredSet) Stats() (s DeliveredStats) {
	const sum = 4 // of each stored value
	for _, l := range d.lanes {
		s.Lanes++
		s.Ranges += l.ids.Len()
		s.Bytes += int64(1 + batch.LaneSize + sum + 12 + len(l.ids.Append(nil)) + 1 + len(l.host))
		for _, c := range l.chunks {
			known := bits.OnesCount64(c.known)
			s.CRCs += known
			s.Bytes += int64(13 + sum + 8 + 4*known)
		}
	}
	return s
}

// encode puts what changed since the last call into puts (nil: delete).
func (d *DeliveredSet) encode(puts map[string][]byte) {
	for lane, l := range d.dirty {
		l.encode(lane, puts)
	}
	clear(d.dirty)
}

func (l *laneSet) encode(lane batch.Lane, puts map[string][]byte) {
	v := binary.LittleEndian.AppendUint32(nil, l.ix)
	v = binary.LittleEndian.AppendUint64(v, l.newest)
	v = append(l.ids.Append(v), byte(len(l.host))) // at most batch.MaxHost
	puts[laneKey(lane)] = append(v, l.host...)
	for _, k := range l.gone {
		puts[chunkKey(l.ix, k)] = nil
	}
	l.gone = l.gone[:0]
	for k, c := range l.chunks {
		if c.dirty {
			puts[chunkKey(l.ix, k)] = c.encode()
			c.dirty = false
		}
	}
}

func (c *crcChunk) encode() []byte {
	b := binary.LittleEndian.AppendUint64(nil, c.known)
	for i, crc := range c.crc {
		if c.known&(1<<i) != 0 {
			b = binary.LittleEndian.AppendUint32(b, crc)
		}
	}
	return b
}

func parseChunk(b []byte) (*crcChunk, error) {
	if len(b) < 8 {
		return nil, fmt.Errorf("%w: CRC chunk of %d bytes", errDamaged, len(b))
	}
	c := &crcChunk{known: binary.LittleEndian.Uint64(b)}
	b = b[8:]
	for i := range c.crc {
		if c.known&(1<<i) == 0 {
			continue
		}
		if len(b) < 4 {
			return nil, fmt.Errorf("%w: CRC chunk is cut short", errDamaged)
		}
		c.crc[i], b = binary.LittleEndian.Uint32(b), b[4:]
	}
	return c, nil
}

// load takes one stored value of the set. Lanes must come before their chunks, which
// the order of the keys ('l' before 'x') gives; byIx collects them.
func (d *DeliveredSet) load(key string, v []byte, byIx map[uint32]*laneSet) error {
	switch key[0] {
	case classLane:
		lane, err := batch.ParseLane([]byte(key[1:]))
		if err != nil {
			return fmt.Errorf("%w: delivered set: %w", errDamaged, err)
		}
		if len(v) < 12 {
			return fmt.Errorf("%w: delivered set of lane %v has %d bytes", errDamaged, lane, len(v))
		}
		l := &laneSet{ix: binary.LittleEndian.Uint32(v), newest: binary.LittleEndian.Uint64(v[4:]), chunks: map[uint64]*crcChunk{}}
		var rest []byte
		if l.ids, rest, err = batch.ParseRanges(v[12:]); err != nil {
			return fmt.Errorf("%w: delivered set of lane %v: %w", errDamaged, lane, err)
		}
		if len(rest) == 0 || len(rest) != 1+int(rest[0]) {
			return fmt.Errorf("%w: delivered set of lane %v: host is cut short", errDamaged, lane)
		}
		l.host = string(rest[1:])
		d.lanes[lane] = l
		d.nextIx = max(d.nextIx, l.ix+1)
		byIx[l.ix] = l
	case classChunk:
		if len(key) != 13 {
			return fmt.Errorf("%w: CRC chunk key %x", errDamaged, key)
		}
		l := byIx[binary.BigEndian.Uint32([]byte(key[1:]))]
		c, err := parseChunk(v)
		if err != nil {
			return err
		}
		if l == nil {
			return fmt.Errorf("%w: CRC chunk %x of no lane", errDamaged, key)
		}
		l.chunks[binary.BigEndian.Uint64([]byte(key[5:]))] = c
	}
	return nil
}

func laneKey(l batch.Lane) string { return string(l.Append([]byte{classLane})) }

func chunkKey(ix uint32, chunk uint64) string {
	b := binary.BigEndian.AppendUint32([]byte{classChunk}, ix)
	return string(binary.BigEndian.AppendUint64(b, chunk))
}
