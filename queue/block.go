package queue

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"sort"
)

// A block is what one sub-bucket of "batches" holds, under the seq of its first entry:
// one large entry, or several small ones that were committed together, since a
// sub-bucket costs bbolt about 25 us whatever its size. The value "h" has the entries'
// heads, each after its length (u32), the value "d" their data one after the other.

const (
	blockBytes   = 1 << 20 // a block of several entries is not larger
	blockEntries = 4096
	smallEntry   = 128 << 10 // an entry larger than this has a block of its own and is not copied
)

// blockSpan is a block of the active segment, for knowing when it can be deleted.
type blockSpan struct {
	first, last uint64
	passed      uint64
}

// splitBlocks cuts items into blocks.
func splitBlocks(items []*memItem) (blocks [][]*memItem) {
	start, size := 0, int64(0)
	for i, it := range items {
		if i > start && (it.size > smallEntry || items[start].size > smallEntry || size+it.size > blockBytes || i-start >= blockEntries) {
			blocks = append(blocks, items[start:i])
			start, size = i, 0
		}
		size += it.size
	}
	if start < len(items) {
		blocks = append(blocks, items[start:])
	}
	return blocks
}

// blockBuffers are what blocks of small entries are put together in, for one commit
// after the other.
type blockBuffers struct {
	bufs [][]byte
	used int
}

func (p *blockBuffers) get(size int) []byte {
	if p.used == len(p.bufs) {
		p.bufs = append(p.bufs, make([]byte, 0, blockBytes))
	}
	if cap(p.bufs[p.used]) < size {
		p.bufs[p.used] = make([]byte, 0, size)
	}
	p.used++
	return p.bufs[p.used-1][:0]
}

// encodeBlock returns the two values of a block, which hold until p is used for another
// commit. The data of a single entry is not copied.
func (p *blockBuffers) encodeBlock(items []*memItem) (heads, data []byte) {
	for _, it := range items {
		at := len(heads)
		heads = appendHead(append(heads, 0, 0, 0, 0), it.seq, &it.e)
		binary.LittleEndian.PutUint32(heads[at:], uint32(len(heads)-at-4))
	}
	if len(items) == 1 {
		return heads, items[0].e.Batch.Data
	}
	var size int
	for _, it := range items {
		size += len(it.e.Batch.Data)
	}
	data = p.get(size)
	for _, it := range items {
		data = append(data, it.e.Batch.Data...)
	}
	return heads, data
}

// block is a block as it stands in a file: the heads that could be read.
type block struct {
	first uint64
	heads []head  // in order of seq; seq 0 where a head is damaged
	at    []int64 // offset of each one's data in the value "d"
	data  pageItem
	cut   error // why heads are missing or damaged; nil if none is
}

// readBlock reads the heads of the block in it.
func readBlock(it pageItem, high uint64) (*block, error) {
	p := it.n.p
	if len(it.key) != 8 {
		return nil, p.bad(it.n.off, "block key %x", it.key)
	}
	sub, err := it.open(high)
	if err != nil {
		return nil, err
	}
	hv, ok, err := sub.find(keyHead)
	if err == nil && !ok {
		err = p.bad(it.n.off, "block %x has no heads", it.key)
	}
	if err != nil {
		return nil, err
	}
	raw, err := hv.value()
	if err != nil {
		return nil, err
	}
	b := &block{first: binary.BigEndian.Uint64(it.key)}
	b.parse(raw)
	for i := range b.heads {
		if h := &b.heads[i]; h.seq != 0 && h.seq != b.first+uint64(i) {
			b.cut = p.bad(it.n.off, "entry %d stands in the place of %d", h.seq, b.first+uint64(i))
			*h = head{}
		}
	}
	var found bool
	if b.data, found, err = sub.find(keyData); err == nil && !found {
		err = p.bad(it.n.off, "block %x has no data", it.key)
	}
	if b.cut == nil {
		b.cut = err
	}
	return b, nil
}

// parse reads the heads. The place of an entry's data is known only while all heads
// before it are good.
func (b *block) parse(raw []byte) {
	var at int64
	for len(raw) > 0 && b.cut == nil {
		if len(raw) < 4 || uint64(binary.LittleEndian.Uint32(raw)) > uint64(len(raw)-4) {
			b.cut = fmt.Errorf("%w: block %d: a head is cut short", errDamaged, b.first)
			return
		}
		n := binary.LittleEndian.Uint32(raw)
		h, err := parseHead(raw[4 : 4+n])
		if err != nil {
			b.cut = fmt.Errorf("block %d: %w", b.first, err)
			return
		}
		b.heads, b.at = append(b.heads, h), append(b.at, at)
		at += int64(h.dataLen)
		raw = raw[4+n:]
	}
}

// entry returns the entry at seq, as subBucket.readEntry does.
func (b *block) entry(seq uint64, headOnly bool) (h head, found bool, err error) {
	i := int(seq - b.first)
	if seq < b.first || seq-b.first >= uint64(len(b.heads)) {
		return h, false, b.cut
	}
	if h = b.heads[i]; h.seq == 0 {
		return head{}, true, b.cut
	}
	if headOnly {
		return h, true, nil
	}
	if b.data.n == nil {
		return h, true, b.cut
	}
	p, id := b.data.n.p, h.e.Batch.ID
	if b.at[i]+int64(h.dataLen) > b.data.valueLen {
		return h, true, p.bad(b.data.n.off, "batch %v ends outside of its block", id)
	}
	data, err := b.data.n.bytes(b.data.valueAt+b.at[i], int64(h.dataLen))
	if err != nil {
		return h, true, err
	}
	if got := crc32.Checksum(data, castagnoli); got != h.e.Batch.CRC {
		return h, true, p.bad(b.data.n.off+b.data.valueAt+b.at[i], "batch %v has CRC %08x, want %08x", id, got, h.e.Batch.CRC)
	}
	h.e.Batch.Data = data
	return h, true, nil
}

// findBlock returns the block that would hold seq: the last one that begins at or
// before it.
func (s subBucket) findBlock(seq uint64) (*block, error) {
	it, ok, err := s.floor(seqKey(seq))
	if err != nil || !ok {
		return nil, err
	}
	return readBlock(it, s.high)
}

// floor returns the last element of the leaf under which key stands that is not above
// key.
func (s subBucket) floor(key []byte) (it pageItem, found bool, err error) {
	n, err := s.leaf(key)
	if err != nil {
		return it, false, err
	}
	i := sort.Search(n.count, func(i int) bool {
		x, e := n.item(i)
		if e != nil {
			err = e
		}
		return bytes.Compare(x.key, key) > 0
	})
	if err != nil || i == 0 {
		return it, false, err
	}
	it, err = n.item(i - 1)
	return it, err == nil, err
}

// addBlocks notes what is committed to the active segment.
func (s *segment) addBlocks(items []*memItem) {
	for _, b := range splitBlocks(items) {
		s.blocks = append(s.blocks, blockSpan{first: b[0].seq, last: b[len(b)-1].seq})
	}
}

// passBlock notes that every cursor has passed seq; true with the name of its block once
// all of that is passed.
func (s *segment) passBlock(seq uint64) (first uint64, done bool) {
	i := sort.Search(len(s.blocks), func(i int) bool { return s.blocks[i].last >= seq })
	if i == len(s.blocks) || s.blocks[i].first > seq {
		return 0, false
	}
	b := &s.blocks[i]
	if b.passed++; b.passed < b.last-b.first+1 {
		return 0, false
	}
	first = b.first
	if i == 0 {
		s.blocks = s.blocks[1:]
	} else {
		s.blocks = append(s.blocks[:i], s.blocks[i+1:]...)
	}
	return first, true
}
