package capture

import (
	"sort"

	"ftfuse/internal/filter"
	"ftfuse/internal/record"
)

// pendChunk is the size from which a part of an unfinished line is stored once, under
// a key of its own. What is below it is stored again at each commit that sees more of
// the line, so that is what a commit writes twice at most for each writer.
const pendChunk = 4 << 10

// hold keeps the window's bytes a to b, which have no line end, as w's unfinished
// line. It carries the attributes of the write that began it.
func (c *Capture) hold(w *writer, it *item, a, b int) error {
	if w.dropped != filter.Keep {
		c.moveTo(w.file, w.file.pos+int64(b-a))
		w.path.countMore(w.dropped, b-a)
		return nil
	}
	if !w.open() {
		w.attr = *c.attrOf(w, it)
	}
	if len(w.pend) == 0 {
		c.pendCount++
	}
	w.pend = append(w.pend, c.win.buf[a:b]...)
	c.moveTo(w.file, w.file.pos+int64(b-a))
	c.pendBytes += int64(b - a)
	c.dirtyWriter(w)
	limit := max(c.o.MaxHold, w.path.maxLine)
	if w.inPiece {
		limit = w.path.piece
	}
	if len(w.pend) <= limit && c.pendBytes <= c.maxPending {
		return nil
	}
	c.win.spill(b)
	if len(w.pend) > limit {
		if err := c.shed(w, w.path.piece); err != nil {
			return err
		}
	}
	return c.boundPending()
}

// shed sends w's unfinished line out in pieces until fewer than least bytes are left, or a carriage
// return: it may belong to the line's end, which is formatted by itself and has to be whole.
func (c *Capture) shed(w *writer, least int) error {
	if done, err := c.judgeBeginning(w); done || err != nil {
		return err
	}
	for len(w.pend) >= max(least, 1) {
		n := min(len(w.pend), w.path.piece)
		if n == len(w.pend) && w.pend[n-1] == '\r' {
			n--
		}
		if n == 0 {
			break
		}
		if err := c.piece(w, pieceFlag(w.inPiece), w.pend[:n], nil); err != nil {
			return err
		}
		w.drop(c, n)
	}
	return nil
}

// piece adds one piece of w's line.
func (c *Capture) piece(w *writer, flag uint16, parts ...[]byte) error {
	c.piecing = w.attr
	c.piecing.Flags |= flag
	if err := c.add(w, &c.piecing, parts...); err != nil {
		return err
	}
	if flag&record.PieceFirst != 0 {
		c.n.longLines.Add(1)
	}
	w.inPiece = flag&(record.PieceFirst|record.PieceMiddle) != 0
	c.dirtyWriter(w)
	return nil
}

// boundPending sends the longest unfinished lines out while all together are too
// long, and some more, so that this is not to be done again at once.
func (c *Capture) boundPending() error {
	if c.pendBytes <= c.maxPending || c.collecting {
		return nil
	}
	var all []*writer
	for _, f := range c.files {
		for _, w := range f.writers {
			if len(w.pend) > 0 {
				all = append(all, w)
			}
		}
	}
	sort.Slice(all, func(i, j int) bool {
		if len(all[i].pend) != len(all[j].pend) {
			return len(all[i].pend) > len(all[j].pend)
		}
		return all[i].id < all[j].id
	})
	for _, w := range all {
		if c.pendBytes <= c.maxPending*3/4 {
			break
		}
		if err := c.shed(w, 1); err != nil {
			return err
		}
	}
	return nil
}

// finish makes w's unfinished line and the window's bytes a to b, which end it, a
// record, or pieces if it is longer than max_line. The position of the file moves
// past b.
func (c *Capture) finish(w *writer, a, b int) error {
	f := w.file
	if done, err := c.judgeEnded(w, a, b); done || err != nil {
		return err
	}
	if !w.inPiece && len(w.pend)+b-a-1 <= w.path.piece {
		if err := c.emit(w, &w.attr, w.pend, a, b); err != nil {
			return err
		}
		c.moveTo(f, f.pos+int64(b-a))
		w.ended(c)
		return nil
	}
	c.win.spill(a)
	for len(w.pend)+b-a-1 > w.path.piece {
		x := min(len(w.pend), w.path.piece)
		y := min(b-a, w.path.piece-x)
		if err := c.piece(w, pieceFlag(w.inPiece), w.pend[:x], c.win.buf[a:a+y]); err != nil {
			return err
		}
		w.drop(c, x)
		a += y
		c.moveTo(f, f.pos+int64(y))
	}
	if err := c.piece(w, record.PieceLast, w.pend, c.win.buf[a:b]); err != nil {
		return err
	}
	c.moveTo(f, f.pos+int64(b-a))
	w.ended(c)
	return nil
}

// endWriter ends w's unfinished line at its last release, and forgets the writer.
func (c *Capture) endWriter(f *file, it *item) error {
	w := f.writers[it.writer]
	if w == nil {
		return nil
	}
	if err := c.end(w, uint64(it.off)); err != nil {
		return err
	}
	f.forget(w)
	return nil
}

// end ends w's unfinished line or binary record where it is. Writers up to newest were
// open then.
func (c *Capture) end(w *writer, newest uint64) error {
	if !w.open() {
		return nil
	}
	c.open = newest
	if done, err := c.judgeUnterminated(w); done || err != nil {
		return err
	}
	flag := uint16(0)
	if w.path.binary {
		flag = record.Binary
	} else {
		flag = record.Unterminated
	}
	for len(w.pend) > w.path.piece {
		if err := c.piece(w, pieceFlag(w.inPiece), w.pend[:w.path.piece], nil); err != nil {
			return err
		}
		w.drop(c, w.path.piece)
	}
	if w.inPiece {
		flag |= record.PieceLast
	}
	if err := c.piece(w, flag, w.pend, nil); err != nil {
		return err
	}
	w.ended(c)
	return nil
}

// endRecord ends a binary record at a flush. In line mode a flush means nothing.
func (c *Capture) endRecord(f *file, it *item) error {
	if w := f.writers[it.writer]; w != nil && w.path.binary {
		return c.end(w, 0)
	}
	return nil
}

// drop takes the first n bytes off the unfinished line: a piece has them.
func (w *writer) drop(c *Capture, n int) {
	w.pend = w.pend[n:]
	w.base += int64(n)
	c.pendBytes -= int64(n)
	if len(w.pend) == 0 && n > 0 {
		w.pend = nil
		c.pendCount--
	}
	c.dirtyWriter(w)
}

// ended empties w: its line is in a record.
func (w *writer) ended(c *Capture) {
	n := len(w.pend)
	if n > 0 {
		c.pendCount--
	}
	w.base += int64(n)
	c.pendBytes -= int64(n)
	if cap(w.pend) > 64<<10 {
		w.pend = nil
	} else {
		w.pend = w.pend[:0]
	}
	if cap(c.line)+cap(c.kept) > 4<<20 {
		c.line, c.kept = nil, nil
	}
	w.inPiece, w.dropped, w.length = false, filter.Keep, 0
	c.dirtyWriter(w)
}

// save appends what changes in the queue's room for w's unfinished line.
func (w *writer) save(set []kv) []kv {
	w.dirty = false
	if w.key == "" {
		w.key = pendKey(w.file.number, w.id)
	}
	if !w.open() {
		for _, off := range w.chunks {
			set = append(set, kv{Key: chunkKey(w.key, off)})
		}
		if w.saved {
			set = append(set, kv{Key: w.key + "h"})
		}
		w.chunks, w.saved, w.stored = w.chunks[:0], false, w.base
		return set
	}
	w.stored = max(w.stored, w.base)
	for len(w.chunks) > 0 && (len(w.chunks) > 1 && w.chunks[1] <= w.base || len(w.chunks) == 1 && w.stored == w.base) {
		set = append(set, kv{Key: chunkKey(w.key, w.chunks[0])})
		w.chunks = w.chunks[1:]
	}
	end := w.base + int64(len(w.pend))
	for end-w.stored >= pendChunk {
		n := min(end-w.stored, maxPiece)
		from := w.stored - w.base
		set = append(set, kv{Key: chunkKey(w.key, w.stored), Value: append([]byte(nil), w.pend[from:from+n]...)})
		w.chunks = append(w.chunks, w.stored)
		w.stored += n
	}
	w.saved = true
	return append(set, kv{Key: w.key + "h", Value: w.appendHead(nil)})
}
