package queue

import (
	"context"
	"errors"
	"fmt"
	"time"

	"ftfuse/internal/batch"
)

// Head is what is known of an entry without its bytes. Nobody may write to Via.
type Head struct {
	Seq     uint64
	ID      batch.ID
	Size    int64 // of the sealed bytes
	Records uint32
	Payload uint64
	Time    int64
	Flags   uint16
	Via     []batch.Node
	Host    string
}

func (h *head) public() Head {
	s := &h.e.Batch
	return Head{Seq: h.seq, ID: s.ID, Size: int64(h.dataLen), Records: s.Records, Payload: s.Payload, Time: s.Time, Flags: s.Flags, Via: s.Via, Host: s.Host}
}

func (it *memItem) head() head {
	return head{seq: it.seq, dataLen: uint32(len(it.e.Batch.Data)), e: it.e}
}

// NextHead is Next without the bytes: from the disk only the head is read. The entry
// counts as given, so that Ack takes it; but as long as Fetch has not read it, a full
// queue under DropOldest and MaxAge may take it.
func (c *Cursor) NextHead(ctx context.Context) (Head, error) {
	h, err := c.nextEntry(ctx, true)
	if err != nil {
		return Head{}, err
	}
	return h.public(), nil
}

// Fetch reads an entry that Next or NextHead gave and that is not acked: as often as it
// is needed, by any number of goroutines, beside Next. It returns false where the entry
// is gone meanwhile: acked, dropped, lost or replaced. From then on the entry is the
// consumer's: no policy drops it before Rewind or a restart.
func (c *Cursor) Fetch(ctx context.Context, seq uint64) (Item, bool, error) {
	for {
		if err := ctx.Err(); err != nil {
			return Item{}, false, err
		}
		x, ok, err := c.fetch(seq)
		switch {
		case errors.Is(err, errReopen):
		case passes(err):
			if err := c.q.awaitRead(ctx, err); err != nil {
				return Item{}, false, err
			}
		default:
			return x, ok, err
		}
	}
}

// fetch is Fetch, once.
func (c *Cursor) fetch(seq uint64) (Item, bool, error) {
	c.q.mu.Lock()
	it, seg, err := c.hold(seq)
	c.q.mu.Unlock()
	switch {
	case err != nil:
		return Item{}, false, err
	case it != nil:
		return Item{Seq: seq, Entry: it.e}, true, nil
	case seg == nil:
		return Item{}, false, nil
	}
	h, found, err := seg.read(seq, false)
	if errors.Is(err, errReopen) {
		return Item{}, false, err
	}
	return c.fetched(seg, seq, h, found, err)
}

// hold finds what Fetch is asked for and makes it the consumer's: an item in memory, or
// the segment to read it from, or neither. The caller holds mu.
func (c *Cursor) hold(seq uint64) (*memItem, *segment, error) {
	q := c.q
	if err := q.state(); err != nil {
		return nil, nil, err
	}
	g, ok := c.given[seq]
	if !ok || c.acked.Contains(seq) {
		return nil, nil, nil
	}
	seg := q.segmentOf(seq)
	if !g.held && q.expired(batch.Sealed{Time: g.time}, time.Now()) {
		return nil, nil, q.dropSeq(seq, LostExpired)
	}
	g.held, g.kept = true, false
	c.given[seq] = g
	if it := q.mem.get(seq); it != nil {
		return it, nil, nil
	}
	return nil, seg, nil
}

// fetched judges what was read for Fetch.
func (c *Cursor) fetched(seg *segment, seq uint64, h head, found bool, err error) (Item, bool, error) {
	q := c.q
	q.mu.Lock()
	defer q.mu.Unlock()
	if err := q.state(); err != nil {
		return Item{}, false, err
	}
	q.noteRead(seg, err)
	if c.acked.Contains(seq) { // its pages may be another's by now
		return Item{}, false, nil
	}
	if err = missing(seg, seq, found, err); err == nil {
		return Item{Seq: seq, Entry: h.e}, true, nil
	}
	return Item{}, false, q.unreadable(seg, seq, &h, err)
}

// missing makes an error of an entry that was not found.
func missing(seg *segment, seq uint64, found bool, err error) error {
	if err == nil && !found {
		return fmt.Errorf("%w: entry %d is not in %s", errDamaged, seq, seg.path)
	}
	return err
}

// unreadable counts an entry as lost that err, of reading it, says is damaged; another
// error is returned. h is its head, with seq 0 where that is not known. The caller holds mu.
func (q *Queue) unreadable(seg *segment, seq uint64, h *head, err error) error {
	if !isDamage(err) {
		return fmt.Errorf("read entry %d: %w", seq, err)
	}
	if h.seq == 0 {
		h = nil
	}
	q.loseEntry(seg, seq, h, LostCorrupt, err)
	return nil
}
