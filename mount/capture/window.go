package capture

import (
	"bytes"
	"fmt"

	"ftfuse/internal/record"
)

// maxPiece bounds a record that capture cuts itself; record.MaxRecord is larger.
const maxPiece = 1 << 20

// window holds the bytes of one read while they are cut.
//
// They are read straight into the buffer of their lane's builder, behind the last record, and
// become records where they are: a run of whole lines is not copied again. buf[:end]
// belongs to records; what is cut lies at or behind end, so a record is moved down
// only where something before it went elsewhere (into an unfinished line). When
// something does not fit that way the rest is spilled: copied aside, and added by
// copying from there.
type window struct {
	buf     []byte
	end     int
	spilled bool
	aside   []byte // spill's buffer, kept
}

// spill copies what lies from index from on aside. Indices stay what they are.
func (v *window) spill(from int) {
	if v.spilled {
		return
	}
	if cap(v.aside) < len(v.buf) {
		v.aside = make([]byte, len(v.buf), max(len(v.buf), 256<<10))
	}
	v.aside = v.aside[:len(v.buf)]
	copy(v.aside[from:], v.buf[from:])
	v.buf, v.spilled = v.aside, true
}

// emit makes pend and behind it the window's bytes a to b one record of w.
func (c *Capture) emit(w *writer, at *record.Attr, pend []byte, a, b int) error {
	v := &c.win
	if v.spilled || len(pend) > a-v.end || c.laneOfRecord(w, at) != c.l {
		v.spill(a)
		return c.add(w, at, pend, v.buf[a:b])
	}
	flags := at.Flags
	at.Flags |= c.breakFlag(w)
	n := len(pend) + b - a
	ok := c.l.b.AddSpace(at, n)
	if !ok {
		at.Flags = flags
		v.spill(a)
		return c.add(w, at, pend, v.buf[a:b])
	}
	if len(pend) > 0 {
		copy(v.buf[v.end:], pend)
	}
	if m := v.end + len(pend); m != a {
		copy(v.buf[m:], v.buf[a:b])
	}
	v.end += n
	c.added(w, at, n)
	at.Flags = flags
	return nil
}

// add makes the parts one record of w, and seals the batch before it when it is full:
// the state of w and its file must be as before the record. The window, if any is in
// use, must be spilled.
func (c *Capture) add(w *writer, at *record.Attr, parts ...[]byte) error {
	own := &c.adding // at may be w's, which a seal stores
	*own = *at
	own.Flags |= c.breakFlag(w)
	l := c.laneOfRecord(w, own)
	for !l.b.Add(own, parts...) {
		if l.b.Records() == 0 {
			return fmt.Errorf("capture: add record of file %s, path %q: it does not fit an empty batch", w.file.number, at.Path)
		}
		if err := c.seal(l); err != nil {
			return err
		}
	}
	n := 0
	for _, p := range parts {
		n += len(p)
	}
	c.added(w, own, n)
	return nil
}

// breakFlag is Break when the path's last record ended inside a line of another
// writer that was open at the same time.
func (c *Capture) breakFlag(w *writer) uint16 {
	if t := &w.path.tail; t.mark != 0 && t.writer != w.id && w.id <= t.mark && !w.path.binary {
		return record.Break
	}
	return 0
}

// added counts a record and notes where it left the path's output.
func (c *Capture) added(w *writer, at *record.Attr, n int) {
	c.tally.records++
	c.tally.recordBytes += uint64(n)
	const inside = record.Unterminated | record.PieceFirst | record.PieceMiddle
	p := w.path
	if at.Flags&(inside|record.Break) == 0 && p.tail.mark == 0 {
		return
	}
	if at.Flags&record.Unterminated != 0 {
		c.n.unterminated.Add(1)
	}
	if at.Flags&record.Break != 0 {
		if n == 0 && at.Flags&record.PieceLast != 0 { // its line was cut off there: the other writer's goes on
			return
		}
		c.n.breaks.Add(1)
	}
	t := tail{}
	switch {
	case p.binary:
	case at.Flags&record.Unterminated != 0:
		t = tail{w.id, c.open}
	case at.Flags&inside != 0:
		t = tail{w.id, ^uint64(0)}
	}
	if t != p.tail {
		p.tail = t
		c.dirtyPath(p)
	}
}

// lastNewline is the index of the last newline in p, -1 for none. The usual case is
// near the end; where there is none the search goes by blocks at the speed of
// IndexByte.
func lastNewline(p []byte) int {
	for end := len(p); end > 0; {
		from := max(0, end-512)
		if i := bytes.LastIndexByte(p[from:end], '\n'); i >= 0 {
			return from + i
		}
		for end = from; end > 0; end = from {
			from = max(0, end-16<<10)
			if bytes.IndexByte(p[from:end], '\n') >= 0 {
				break
			}
		}
		if end > 0 {
			return from + bytes.LastIndexByte(p[from:end], '\n')
		}
	}
	return -1
}
