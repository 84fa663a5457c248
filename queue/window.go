package queue

// window holds the newest entries in memory: the uncommitted ones, and as many of the
// committed ones as fit into a limit, for cursors that keep up.
type window struct {
	items []*memItem // contiguous seqs; nil where every cursor has passed
	first uint64     // seq of items[0]
	bytes int64
}

// memItem is an entry with its place.
type memItem struct {
	seq  uint64
	size int64
	e    Entry

	replaces replacement
}

// memItemCost is what an item costs in memory beside its bytes.
const memItemCost = 256

func (w *window) push(it *memItem) {
	if len(w.items) == 0 {
		w.first = it.seq
	}
	w.items = append(w.items, it)
	w.bytes += it.size + memItemCost
}

func (w *window) get(seq uint64) *memItem {
	if seq < w.first || seq-w.first >= uint64(len(w.items)) {
		return nil
	}
	return w.items[seq-w.first]
}

// drop forgets seq.
func (w *window) drop(seq uint64) {
	it := w.get(seq)
	if it == nil {
		return
	}
	w.bytes -= it.size + memItemCost
	w.items[seq-w.first] = nil
	w.trim()
}

// evict forgets the oldest committed items until limit is kept.
func (w *window) evict(limit int64, committed uint64) {
	for w.bytes > limit && len(w.items) > 0 && w.first <= committed {
		w.bytes -= w.items[0].size + memItemCost
		w.items[0] = nil
		w.trim()
	}
}

func (w *window) trim() {
	n := 0
	for n < len(w.items) && w.items[n] == nil {
		n++
	}
	w.items = w.items[n:]
	w.first += uint64(n)
	if len(w.items) == 0 {
		w.items = nil
	}
}
