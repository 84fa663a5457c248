package forward

import (
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"sync"

	"ftfuse/internal/batch"
	"ftfuse/queue"
	"ftfuse/transport"
)

// prefixFinal begins the keys under which the queue keeps what is final: final/, the
// cursor's name without forward/, /, the lane in hexadecimal.
const prefixFinal = "final/"

// Bounds of what is kept of lanes that have nothing in the queue. What of one that is
// forgotten was not reported yet only leaves a few ranges in a delivered set.
const (
	keptEpochs = 16 // of each origin, route and bucket
	maxLanes   = 128 << 10
)

// finals is what is final of each lane, by line. It is safe for concurrent use.
type finals struct {
	origin batch.Origin // this node's own lanes
	names  []string     // of the lines
	wants  func(line int, lane batch.Lane) bool

	mu     sync.Mutex
	lanes  map[batch.Lane]*laneFinals
	epochs map[flowKey][]batch.Lane // the lanes that differ in nothing else
	drop   []queue.KV
	gone   map[string]laneSets // what was final at cursors that are configured no more, while it is read
}

// laneFinals is one lane.
type laneFinals struct {
	sets      []batch.Ranges // by line
	claims    []batch.Ranges // by line: told, and not proven
	hops      []batch.Ranges // by line: acked since the start and not final, for Stats
	ways      []way
	waysDirty bool
	wanted    []bool // by line
	dirty     []bool // not stored
	below     uint64 // what upstream announced
	tracked   int    // batches that lines have
}

func newFinals(origin batch.Origin, names []string, wants func(int, batch.Lane) bool) *finals {
	return &finals{
		origin: origin, names: names, wants: wants,
		lanes: map[batch.Lane]*laneFinals{}, epochs: map[flowKey][]batch.Lane{}, gone: map[string]laneSets{},
	}
}

// load reads what is stored.
func (f *finals) load(s store) error {
	var bad error
	s.Range(prefixFinal, func(key string, value []byte) bool {
		at := strings.LastIndexByte(key, '/')
		name, err := hex.DecodeString(key[at+1:])
		if err == nil {
			var lane batch.Lane
			if lane, err = batch.ParseLane(name); err == nil {
				err = f.restore(key[:at], lane, value)
			}
		}
		if err != nil {
			bad = fmt.Errorf("read %q of the queue: %w", key, err)
		}
		return bad == nil
	})
	return bad
}

// restore takes in one stored value. That of a cursor which is configured no more goes.
func (f *finals) restore(prefix string, lane batch.Lane, value []byte) error {
	set, _, err := batch.ParseRanges(value)
	if err != nil {
		return err
	}
	for i := range f.names {
		if f.prefix(i) == prefix {
			f.lane(lane).sets[i] = set
			f.lane(lane).dirty[i] = false
			return nil
		}
	}
	name := cursorPrefix + strings.TrimPrefix(prefix, prefixFinal)
	if f.gone[name] == nil {
		f.gone[name] = laneSets{}
	}
	f.gone[name][lane] = set
	f.drop = append(f.drop, queue.KV{Key: prefix + "/" + hex.EncodeToString(lane.Append(nil))})
	return nil
}

func (f *finals) prefix(line int) string {
	return prefixFinal + strings.TrimPrefix(f.names[line], cursorPrefix)
}

// lane returns what is known of a lane. One that is new is stored and announced, although
// nothing is final yet: a server tells what became final in between only for lanes that
// it was told of. The caller holds mu.
func (f *finals) lane(id batch.Lane) *laneFinals {
	lf := f.lanes[id]
	if lf == nil {
		n := len(f.names)
		lf = &laneFinals{sets: make([]batch.Ranges, n), claims: make([]batch.Ranges, n), hops: make([]batch.Ranges, n), wanted: make([]bool, n), dirty: make([]bool, n), below: 1}
		for i := range n {
			lf.wanted[i] = f.wants(i, id)
			lf.dirty[i] = lf.wanted[i]
		}
		f.lanes[id] = lf
		f.forget(id)
	}
	return lf
}

// begin calls fn with what is known of a lane, which fn may change. A lane that was
// forgotten takes no other's place.
func (f *finals) begin(lane batch.Lane, fn func(*laneFinals)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.lanes[lane] == nil && !f.room(lane) {
		return
	}
	fn(f.lane(lane))
}

// room reports whether a lane would be kept at the expense of none, or of an older one.
func (f *finals) room(lane batch.Lane) bool {
	like := f.epochs[keyOf(Any, lane)]
	return len(f.lanes) < maxLanes && (len(like) < keptEpochs ||
		slices.ContainsFunc(like, func(l batch.Lane) bool { return l.Epoch.Counter < lane.Epoch.Counter }))
}

// track counts a batch of lane that a line has read.
func (f *finals) track(lane batch.Lane) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.lane(lane).tracked++
}

func (f *finals) untrack(lane batch.Lane) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if lf := f.lanes[lane]; lf != nil {
		lf.tracked--
	}
}

// add notes what a line was told of: all that became final of lane, and what of that is
// proven to be. It returns what is final at every line that the lane goes to, and how many
// of the batches that acked named became final.
func (f *finals) add(line int, lane batch.Lane, told, proven []batch.Range) (everywhere []batch.Range, hops uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	lf := f.lane(lane)
	if lf.claims[line].Len() > 0 || !slices.Equal(told, proven) {
		lf.claims[line] = setOf(subtract(unite(lf.claims[line].All(), told), proven))
	}
	if len(proven) == 0 {
		return nil, 0
	}
	if n := lf.hops[line].Count(); n > 0 {
		lf.hops[line] = setOf(subtract(lf.hops[line].All(), proven))
		hops = n - lf.hops[line].Count()
	}
	for _, r := range proven {
		lf.sets[line].AddRange(r)
	}
	lf.dirty[line] = true
	lf.waysDirty = lf.waysDirty || len(lf.ways) > 0
	for i := range lf.sets {
		if i != line && lf.wanted[i] {
			proven = intersect(proven, lf.sets[i].All())
		}
	}
	return proven, hops
}

// acked notes that a line let go of id. It reports whether the line was told before that
// id is final.
func (f *finals) acked(line int, id batch.ID) (final bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	lf := f.lane(id.Lane)
	lf.hops[line].Add(id.N)
	return lf.claims[line].Contains(id.N) || lf.sets[line].Contains(id.N)
}

// at reports whether id is final at a line.
func (f *finals) at(line int, id batch.ID) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	lf := f.lanes[id.Lane]
	return lf != nil && lf.sets[line].Contains(id.N)
}

// know notes that id is final at a line.
func (f *finals) know(line int, id batch.ID) {
	f.mu.Lock()
	defer f.mu.Unlock()
	lf := f.lane(id.Lane)
	lf.sets[line].Add(id.N)
	lf.dirty[line] = true
}

// claims returns what a line was told is final without proof.
func (f *finals) claims(line int) map[batch.Lane][]batch.Range {
	f.mu.Lock()
	defer f.mu.Unlock()
	all := map[batch.Lane][]batch.Range{}
	for lane, lf := range f.lanes {
		if lf.claims[line].Len() > 0 {
			all[lane] = lf.claims[line].All()
		}
	}
	return all
}

// everywhere returns what of lane is final at every line that it goes to.
func (f *finals) everywhere(lane batch.Lane) (set batch.Ranges) {
	f.mu.Lock()
	defer f.mu.Unlock()
	lf := f.lanes[lane]
	if lf == nil {
		return set
	}
	return setOf(lf.everywhere())
}

// everywhere is what is final at every line.
func (lf *laneFinals) everywhere() (all []batch.Range) {
	first := true
	for i := range lf.sets {
		switch {
		case !lf.wanted[i]:
		case first:
			all, first = lf.sets[i].All(), false
		default:
			all = intersect(all, lf.sets[i].All())
		}
	}
	return all
}

// upstream takes in a horizon that a peer announced, and returns the lines to which it
// says anything new.
func (f *finals) upstream(lane batch.Lane, below uint64) (lines []int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	lf := f.lane(lane)
	if below <= lf.below || lane.Origin == f.origin {
		return nil
	}
	lf.below = below
	for i := range lf.sets {
		if lf.wanted[i] && lf.sets[i].Next() < below {
			lines = append(lines, i)
		}
	}
	return lines
}

// horizons lists what a line announces.
func (f *finals) horizons(line int) []transport.LaneHorizon {
	f.mu.Lock()
	defer f.mu.Unlock()
	all := make([]transport.LaneHorizon, 0, len(f.lanes))
	for lane, lf := range f.lanes {
		if !lf.wanted[line] {
			continue
		}
		below := lf.below
		if lane.Origin == f.origin {
			below = lf.next()
		}
		all = append(all, transport.LaneHorizon{Lane: lane, Below: below})
	}
	return all
}

// next is the first number that is not final at every line.
func (lf *laneFinals) next() uint64 {
	next := ^uint64(0)
	for i := range lf.sets {
		if lf.wanted[i] {
			next = min(next, lf.sets[i].Next())
		}
	}
	return next
}

// unstored returns what to store, and counts it as stored.
func (f *finals) unstored() []queue.KV {
	f.mu.Lock()
	defer f.mu.Unlock()
	set := f.drop
	f.drop = nil
	for lane, lf := range f.lanes {
		for i := range lf.dirty {
			if lf.dirty[i] {
				lf.dirty[i] = false
				set = append(set, queue.KV{Key: f.key(i, lane), Value: lf.sets[i].Append(nil)})
			}
		}
		if lf.waysDirty {
			set = append(set, lf.storedWays(lane))
		}
	}
	return set
}

func (f *finals) key(line int, lane batch.Lane) string {
	return f.prefix(line) + "/" + hex.EncodeToString(lane.Append(nil))
}

// forget makes room where there are too many epochs of the like of added, or far too many
// lanes: one that has nothing in the queue goes.
func (f *finals) forget(added batch.Lane) {
	k := keyOf(Any, added)
	f.epochs[k] = append(f.epochs[k], added)
	if len(f.epochs[k]) > keptEpochs {
		f.forgetOldest(k, added)
	}
	if len(f.lanes) <= maxLanes {
		return
	}
	looked := 0
	for lane, lf := range f.lanes { // in no order
		if lf.tracked == 0 && lane != added {
			f.remove(lane)
			return
		}
		if looked++; looked == 64 {
			return
		}
	}
}

func (f *finals) forgetOldest(k flowKey, added batch.Lane) {
	oldest, found := batch.Lane{}, false
	for _, lane := range f.epochs[k] {
		if lane != added && f.lanes[lane].tracked == 0 && (!found || lane.Epoch.Counter < oldest.Epoch.Counter) {
			oldest, found = lane, true
		}
	}
	if found {
		f.remove(oldest)
	}
}

func (f *finals) remove(lane batch.Lane) {
	for i := range f.names {
		f.drop = append(f.drop, queue.KV{Key: f.key(i, lane)})
	}
	f.drop = append(f.drop, queue.KV{Key: waysKey(lane)})
	delete(f.lanes, lane)
	k := keyOf(Any, lane)
	f.epochs[k] = slices.DeleteFunc(f.epochs[k], func(l batch.Lane) bool { return l == lane })
	if len(f.epochs[k]) == 0 {
		delete(f.epochs, k)
	}
}
