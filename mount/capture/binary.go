package capture

import (
	"ftfuse/internal/filter"
	"ftfuse/internal/record"
)

// A binary record ends at a flush, at the last close, or when it has as many bytes as its
// rule allows. Its bytes go out as they come, in pieces.

// cutBinary makes the bytes a record, or a piece of one.
func (c *Capture) cutBinary(w *writer, it *item, a, b int) error {
	if w.dropped != filter.Keep || len(w.pend) > 0 { // a line that began under another rule
		c.win.spill(a)
		if err := c.end(w, 0); err != nil {
			return err
		}
	}
	for a < b {
		n, ends := w.binaryPart(b - a)
		at := c.attrOf(w, it)
		at.Flags |= record.Binary
		switch {
		case !ends:
			at.Flags |= pieceFlag(w.inPiece)
		case w.inPiece:
			at.Flags |= record.PieceLast
		}
		if err := c.emit(w, at, nil, a, a+n); err != nil {
			return err
		}
		if !w.inPiece && !ends {
			w.attr = *at
			w.attr.Flags = it.flags
		}
		if w.length += int64(n); ends {
			w.length = 0
		}
		if w.inPiece != !ends || w.path.most > 0 {
			c.dirtyWriter(w)
		}
		w.inPiece = !ends
		a += n
		c.moveTo(w.file, w.file.pos+int64(n))
	}
	return nil
}

// binaryPart is how many of n bytes go into the next piece of w's record, and whether the
// record ends with it.
func (w *writer) binaryPart(n int) (part int, ends bool) {
	part = min(n, maxPiece)
	if w.path.most == 0 {
		return part, false
	}
	left := max(w.path.most-w.length, 1) // a rule of before allowed more
	return int(min(int64(part), left)), int64(part) >= left
}
