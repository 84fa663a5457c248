package queue

import (
	"fmt"
	"hash/crc32"
)

// Names inside a segment file.
var (
	bucketMeta    = []byte("meta")
	bucketState   = []byte("state")
	bucketBatches = []byte("batches")
	keyFormat     = []byte("format")
	keyData       = []byte("d")
	keyHead       = []byte("h")
)

// bucket returns the top bucket called name as of m.
func (p *pageFile) bucket(m pageMeta, name []byte) (subBucket, error) {
	it, ok, err := p.rootBucket(m).find(name)
	if err != nil {
		return subBucket{}, err
	}
	if !ok {
		return subBucket{}, p.bad(0, "no bucket %q", name)
	}
	return it.open(m.high)
}

// readEntry reads the entry at seq from the bucket of batches: head and data are
// checked with their CRCs. found is false where there is none. Where the head was
// readable and the data was not, head is set beside the error.
func (s subBucket) readEntry(seq uint64, headOnly bool) (h head, found bool, err error) {
	it, found, err := s.find(seqKey(seq))
	if err != nil || !found {
		return h, found, err
	}
	h, err = readItem(it, s.high, headOnly)
	if err == nil && h.seq != seq {
		err = s.p.bad(it.n.off, "entry %d stands in the place of %d", h.seq, seq)
		h = head{}
	}
	return h, true, err
}

// readItem reads the entry in one element of the bucket of batches.
func readItem(it pageItem, high uint64, headOnly bool) (h head, err error) {
	p := it.n.p
	b, err := it.open(high)
	if err != nil {
		return h, err
	}
	hv, ok, err := b.find(keyHead)
	if err != nil {
		return h, err
	}
	if !ok {
		return h, p.bad(it.n.off, "entry %x has no head", it.key)
	}
	raw, err := hv.value()
	if err != nil {
		return h, err
	}
	if h, err = parseHead(raw); err != nil {
		return h, fmt.Errorf("%s, entry %x: %w", p.f.Name(), it.key, err)
	}
	if headOnly {
		return h, nil
	}
	dv, ok, err := b.find(keyData)
	if err != nil {
		return h, err
	}
	if !ok || dv.valueLen != int64(h.dataLen) {
		return h, p.bad(it.n.off, "batch %v has %d bytes, want %d", h.e.Batch.ID, dv.valueLen, h.dataLen)
	}
	data, err := dv.value()
	if err != nil {
		return h, err
	}
	if got := crc32.Checksum(data, castagnoli); got != h.e.Batch.CRC {
		return h, p.bad(dv.n.off+dv.valueAt, "batch %v has CRC %08x, want %08x", h.e.Batch.ID, got, h.e.Batch.CRC)
	}
	h.e.Batch.Data = data
	return h, nil
}
