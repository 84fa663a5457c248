package queue

import "sync"

// cachedBlocks is how many blocks' heads are kept: readers stand in a few places at once
// (each cursor, each destination that sends something again).
const cachedBlocks = 16

// blockCache keeps the blocks read last, of all segments. A block's place in its file does
// not change while one of its entries is needed. The nil cache keeps nothing.
type blockCache struct {
	mu   sync.Mutex
	kept [cachedBlocks]cachedBlock
	next int // the one to give up
}

type cachedBlock struct {
	seg uint64
	b   *block
}

// find returns the block of segment seg that holds seq, or nil.
func (c *blockCache) find(seg, seq uint64) *block {
	if c == nil {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, k := range c.kept {
		if k.b != nil && k.seg == seg && seq >= k.b.first && seq-k.b.first < uint64(len(k.b.heads)) {
			return k.b
		}
	}
	return nil
}

func (c *blockCache) put(seg uint64, b *block) {
	if c == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.kept[c.next] = cachedBlock{seg, b}
	c.next = (c.next + 1) % cachedBlocks
}

// drop forgets the blocks of segment seg: they read from its open file.
func (c *blockCache) drop(seg uint64) {
	if c == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for i, k := range c.kept {
		if k.seg == seg {
			c.kept[i] = cachedBlock{}
		}
	}
}
