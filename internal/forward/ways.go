package forward

import (
	"encoding/hex"
	"fmt"
	"slices"

	"ftfuse/internal/batch"
	"ftfuse/queue"
)

// prefixWays begins the keys under which a relay keeps by which ways it took what is not
// final: ways/, the lane in hexadecimal. The value is for each way: the number of nodes
// u8, the nodes, the set of numbers.
const prefixWays = "ways/"

// maxWays bounds what is kept of a lane. A batch whose way is forgotten is taken again.
const maxWays = 32

// way is the numbers of a lane that were taken by one way.
type way struct {
	via  []batch.Node
	took batch.Ranges
}

// took notes a batch that is durable here.
func (f *finals) took(id batch.ID, via []batch.Node) {
	f.mu.Lock()
	defer f.mu.Unlock()
	lf := f.lane(id.Lane)
	lf.waysDirty = true
	for i := range lf.ways {
		if slices.Equal(lf.ways[i].via, via) {
			lf.ways[i].took.Add(id.N)
			return
		}
	}
	if len(lf.ways) == maxWays {
		lf.ways = slices.Delete(lf.ways, 0, 1)
	}
	w := way{via: slices.Clone(via)}
	w.took.Add(id.N)
	lf.ways = append(lf.ways, w)
}

// covers is Forwarder.Covers.
func (f *finals) covers(id batch.ID, via []batch.Node) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	lf := f.lanes[id.Lane]
	if lf == nil {
		return false
	}
	for i := range lf.ways {
		if lf.ways[i].took.Contains(id.N) && contains(lf.ways[i].via, via) {
			return true
		}
	}
	return lf.final(id.N)
}

// final reports whether n is final at every line, of which there must be one.
func (lf *laneFinals) final(n uint64) bool {
	some := false
	for i := range lf.sets {
		if lf.wanted[i] {
			if !lf.sets[i].Contains(n) {
				return false
			}
			some = true
		}
	}
	return some
}

// trimWays forgets the ways of what is final. The caller holds mu.
func (lf *laneFinals) trimWays() {
	below := max(lf.next(), lf.below)
	for i := range lf.ways {
		lf.ways[i].took.DropBelow(below)
	}
	lf.ways = slices.DeleteFunc(lf.ways, func(w way) bool { return w.took.Len() == 0 })
}

// storedWays is what to store of a lane's ways. The caller holds mu.
func (lf *laneFinals) storedWays(lane batch.Lane) queue.KV {
	lf.trimWays()
	lf.waysDirty = false
	kv := queue.KV{Key: waysKey(lane)}
	for _, w := range lf.ways {
		kv.Value = append(kv.Value, byte(len(w.via)))
		for _, n := range w.via {
			kv.Value = append(kv.Value, n[:]...)
		}
		kv.Value = w.took.Append(kv.Value)
	}
	return kv
}

func waysKey(lane batch.Lane) string { return prefixWays + hex.EncodeToString(lane.Append(nil)) }

// loadWays reads what is stored.
func (f *finals) loadWays(s store) error {
	var bad error
	s.Range(prefixWays, func(key string, value []byte) bool {
		name, err := hex.DecodeString(key[len(prefixWays):])
		if err == nil {
			var lane batch.Lane
			if lane, err = batch.ParseLane(name); err == nil {
				f.lane(lane).ways, err = parseWays(value)
			}
		}
		if err != nil {
			bad = fmt.Errorf("read %q of the queue: %w", key, err)
		}
		return bad == nil
	})
	return bad
}

func parseWays(b []byte) (all []way, err error) {
	for len(b) > 0 {
		n := int(b[0])
		if b = b[1:]; len(b) < n*batch.NodeSize {
			return nil, fmt.Errorf("%w: a way of %d nodes in %d bytes", batch.ErrShort, n, len(b))
		}
		w := way{via: make([]batch.Node, n)}
		for i := range w.via {
			copy(w.via[i][:], b[i*batch.NodeSize:])
		}
		if w.took, b, err = batch.ParseRanges(b[n*batch.NodeSize:]); err != nil {
			return nil, err
		}
		all = append(all, w)
	}
	return all, nil
}
