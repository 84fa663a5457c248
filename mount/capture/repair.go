package capture

import (
	"errors"
	"fmt"
	"io"
	"math"

	"ftfuse/queue"
)

// After `ftfuse queue repair` the stored state may be older than the batches in the queue:
// what was committed in between is captured again, under another id, because nobody knows
// any more where that commit ended. What of it was punched out of the spool was certainly
// committed. All of this can be done again: a start that is killed on the way leaves the
// note, and positions that are not older than before.

// repairNote reports whether the queue was repaired since the last start.
func (c *Capture) repairNote() bool {
	note, ok := c.o.Queue.Get(queue.RepairedKey)
	if ok {
		c.o.Logger.Warn("the queue was repaired: its state may be older than its batches, and what was captured since is captured again", "note", string(note))
	}
	return ok
}

// passHoles moves the position of f to the first byte that was not punched out, and counts
// what will be captured from there. Lines that were unfinished before such a hole end: what
// followed them is gone.
func (c *Capture) passHoles(f *file, size int64) error {
	at := size
	if f.pos < size {
		var err error
		if at, err = c.o.Store.SeekData(f.number, f.pos); errors.Is(err, io.EOF) {
			at = size
		} else if err != nil {
			return fmt.Errorf("look for the end of what was punched out of file %s: %w", f.number, err)
		}
		at = min(at, size)
	}
	for _, w := range f.writers {
		c.n.doubles.Add(uint64(len(w.pend)))
		if at > f.pos {
			if err := c.end(w, math.MaxUint64); err != nil {
				return err
			}
			if w.path.tail.mark != 0 { // nor does w itself go on in that line
				w.path.tail.writer = math.MaxUint64
			}
		}
	}
	if at > f.pos {
		c.moveTo(f, at)
	}
	c.n.doubles.Add(uint64(max(0, size-f.pos)))
	return nil
}

// giveUp forgets an unfinished line whose stored parts do not fit each other.
func (c *Capture) giveUp(w *writer, list []chunk, rest []byte, why error) {
	n := len(rest)
	key := pendKey(w.file.number, w.id)
	c.extra = append(c.extra, kv{Key: key + "h"})
	for _, k := range list {
		n += len(k.data)
		c.extra = append(c.extra, kv{Key: chunkKey(key, k.off)})
	}
	w.file.forget(w)
	c.n.lostPending.Add(uint64(max(n, 1)))
	c.o.Logger.Error("an unfinished line is lost: not all of it could be repaired in the queue", "file", w.file.number.String(), "bytes", n, "err", why)
}

// endRepair deletes the note, with the positions that it asked for.
func (c *Capture) endRepair(st *stored) {
	if !st.repaired {
		return
	}
	c.extra = append(c.extra, kv{Key: queue.RepairedKey})
	c.o.Logger.Warn("bytes captured after a repair may stand twice at the receiver", "bytes", c.n.doubles.Load(), "lost_of_unfinished_lines", c.n.lostPending.Load())
}
