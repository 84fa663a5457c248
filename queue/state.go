package queue

import (
	"encoding/binary"
	"fmt"
	"sort"

	"ftfuse/internal/batch"
)

// The first byte of a key in the bucket "state" says what it holds.
const (
	classCursor  = 'c' // + name: what a cursor has acked
	classIDs     = 'i' // + segment: which ids a closed segment holds, in order
	classKV      = 'k' // + key: the role's own state
	classLane    = 'l' // + lane: delivered set
	classLost    = 'n' // + lane: what was lost of it
	classLosses  = 'o' // losses by reason
	classRoot    = 'r' // node id, newest seq
	classSegment = 's' // + segment: what a segment holds and what is passed of it
	classChunk   = 'x' // + lane index, chunk: CRCs of the delivered set
	classSum     = '~' // commit number, count and sum of all other values
)

const (
	keyRoot   = string(classRoot)
	keyLosses = string(classLosses)
	keySum    = string(classSum)
)

// tally counts batches in the four units that are reported.
type tally struct {
	Batches, Records, Payload, Bytes uint64
}

func (t *tally) add(o tally) {
	t.Batches += o.Batches
	t.Records += o.Records
	t.Payload += o.Payload
	t.Bytes += o.Bytes
}

// minus returns t less o; no field goes below zero.
func (t tally) minus(o tally) tally {
	sub := func(a, b uint64) uint64 { return a - min(a, b) }
	return tally{sub(t.Batches, o.Batches), sub(t.Records, o.Records), sub(t.Payload, o.Payload), sub(t.Bytes, o.Bytes)}
}

func entryTally(e *Entry, size int64) tally {
	return tally{1, uint64(e.Batch.Records), e.Batch.Payload, uint64(size)}
}

// stored is the state as the newest segment holds it: the encoded values by key. The
// committer owns it.
type stored struct {
	vals   map[string][]byte
	commit uint64 // number of the newest commit
	sum    uint64 // of the CRCs of all values
}

func newStored() *stored { return &stored{vals: map[string][]byte{}} }

func (s *stored) put(key string, value []byte) []byte {
	enc := encodeValue(key, value)
	s.drop(key)
	s.vals[key] = enc
	s.sum += uint64(binary.LittleEndian.Uint32(enc))
	return enc
}

func (s *stored) drop(key string) {
	if old, ok := s.vals[key]; ok {
		s.sum -= uint64(binary.LittleEndian.Uint32(old))
		delete(s.vals, key)
	}
}

func (s *stored) sumValue() []byte {
	b := binary.LittleEndian.AppendUint64(nil, s.commit)
	b = binary.LittleEndian.AppendUint64(b, uint64(len(s.vals)))
	return binary.LittleEndian.AppendUint64(b, s.sum)
}

// readStored reads the state as of m and checks every value, their number and sum.
func (p *pageFile) readStored(m pageMeta) (*stored, error) {
	b, err := p.bucket(m, bucketState)
	if err != nil {
		return nil, err
	}
	s := newStored()
	var sum []byte
	err = b.walk(func(it pageItem) error {
		v, err := it.value()
		if err != nil {
			return err
		}
		key := string(it.key)
		plain, err := decodeValue(key, v)
		if err != nil {
			return fmt.Errorf("%s: %w", p.f.Name(), err)
		}
		if key == keySum {
			sum = plain
			return nil
		}
		s.put(key, plain)
		return nil
	}, func(err error) error { return err })
	if err != nil {
		return nil, err
	}
	s.commit = b.seq
	if got := s.sumValue(); string(got) != string(sum) {
		return nil, p.bad(0, "state of %d values at commit %d does not add up: % x, want % x", len(s.vals), s.commit, got, sum)
	}
	return s, nil
}

// loaded is a stored state, decoded.
type loaded struct {
	root      rootRecord
	kv        map[string][]byte
	delivered *DeliveredSet
	losses    losses
	lost      lostLanes
	cursors   map[string]cursorRecord
	segs      []*segment // ascending
}

// rootRecord is the value of keyRoot.
type rootRecord struct {
	node   batch.Node
	newest uint64 // seq of the newest entry committed
}

func (r rootRecord) encode() []byte {
	return binary.LittleEndian.AppendUint64(append([]byte(nil), r.node[:]...), r.newest)
}

func (s *stored) decode() (*loaded, error) {
	l := &loaded{kv: map[string][]byte{}, delivered: NewDeliveredSet(), losses: losses{}, lost: newLostLanes(), cursors: map[string]cursorRecord{}}
	keys := make([]string, 0, len(s.vals))
	for k := range s.vals {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	byIx := map[uint32]*laneSet{}
	bySeg := map[uint64]*segment{}
	for _, k := range keys {
		if err := l.take(k, s.vals[k][4:], byIx, bySeg); err != nil {
			return nil, err
		}
	}
	if _, ok := s.vals[keyRoot]; !ok {
		return nil, fmt.Errorf("%w: state without a root record", errDamaged)
	}
	sort.Slice(l.segs, func(i, j int) bool { return l.segs[i].num < l.segs[j].num })
	return l, nil
}

func (l *loaded) take(k string, v []byte, byIx map[uint32]*laneSet, bySeg map[uint64]*segment) (err error) {
	seg := func() (*segment, error) {
		if len(k) != 9 {
			return nil, fmt.Errorf("%w: segment key %x", errDamaged, k)
		}
		num := binary.BigEndian.Uint64([]byte(k[1:]))
		if bySeg[num] == nil {
			bySeg[num] = &segment{num: num}
		}
		return bySeg[num], nil
	}
	switch k[0] {
	case classKV:
		l.kv[k[1:]] = v
	case classLane, classChunk:
		return l.delivered.load(k, v, byIx)
	case classLost:
		return l.lost.load(k, v)
	case classLosses:
		return l.losses.parse(v)
	case classCursor:
		var r cursorRecord
		if err := r.parse(v); err != nil {
			return fmt.Errorf("cursor %q: %w", k[1:], err)
		}
		l.cursors[k[1:]] = r
	case classRoot:
		if len(v) < batch.NodeSize+8 {
			return fmt.Errorf("%w: root record of %d bytes", errDamaged, len(v))
		}
		copy(l.root.node[:], v)
		l.root.newest = binary.LittleEndian.Uint64(v[batch.NodeSize:])
	case classSegment:
		s, err := seg()
		if err != nil {
			return err
		}
		l.segs = append(l.segs, s)
		return s.parseRecord(v)
	case classIDs:
		s, err := seg()
		if err != nil {
			return err
		}
		return s.ids.parse(v)
	default:
		return fmt.Errorf("%w: state key %q", ErrVersion, k)
	}
	return nil
}

func segmentKey(class byte, num uint64) string {
	return string(binary.BigEndian.AppendUint64([]byte{class}, num))
}

// idRuns says which id each seq of a segment has, as runs of one lane whose numbers go
// up by one. It names what a damaged segment lost.
type idRuns struct {
	runs []idRun
	full bool // there were more runs than are kept
}

type idRun struct {
	seq, count uint64
	first      batch.ID
}

// maxRuns bounds what the runs of one segment cost (about 64 bytes each).
const maxRuns = 16384

func (r *idRuns) add(seq uint64, id batch.ID) {
	if k := len(r.runs); k > 0 {
		l := &r.runs[k-1]
		if seq == l.seq+l.count && id.Lane == l.first.Lane && id.N == l.first.N+l.count {
			l.count++
			return
		}
	}
	if len(r.runs) >= maxRuns {
		r.full = true
		return
	}
	r.runs = append(r.runs, idRun{seq, 1, id})
}

// id returns the id of seq, if it is known.
func (r *idRuns) id(seq uint64) (batch.ID, bool) {
	i := sort.Search(len(r.runs), func(i int) bool { return r.runs[i].seq > seq }) - 1
	if i < 0 || seq >= r.runs[i].seq+r.runs[i].count {
		return batch.ID{}, false
	}
	id := r.runs[i].first
	id.N += seq - r.runs[i].seq
	return id, true
}

func (r *idRuns) encode() []byte {
	var lanes []byte
	index := map[batch.Lane]uint64{}
	var b []byte
	for _, run := range r.runs {
		ix, ok := index[run.first.Lane]
		if !ok {
			ix = uint64(len(index))
			index[run.first.Lane] = ix
			lanes = run.first.Lane.Append(lanes)
		}
		b = appendFields(b, run.seq, run.count, ix, run.first.N)
	}
	full := uint64(0)
	if r.full {
		full = 1
	}
	out := appendFields(nil, full, uint64(len(index)), uint64(len(r.runs)))
	return append(append(out, lanes...), b...)
}

func (r *idRuns) parse(b []byte) error {
	var full, lanes, runs uint64
	b, err := readFields(b, &full, &lanes, &runs)
	if err != nil || lanes > uint64(len(b))/batch.LaneSize || runs > maxRuns {
		return fmt.Errorf("%w: id runs", errDamaged)
	}
	names := make([]batch.Lane, lanes)
	for i := range names {
		if names[i], err = batch.ParseLane(b); err != nil {
			return fmt.Errorf("%w: id runs: %w", errDamaged, err)
		}
		b = b[batch.LaneSize:]
	}
	*r = idRuns{full: full != 0}
	for range runs {
		var run idRun
		var ix uint64
		if b, err = readFields(b, &run.seq, &run.count, &ix, &run.first.N); err != nil || ix >= lanes {
			return fmt.Errorf("%w: id runs", errDamaged)
		}
		run.first.Lane = names[ix]
		r.runs = append(r.runs, run)
	}
	return nil
}
