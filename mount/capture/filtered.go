package capture

import (
	"bytes"

	"ftfuse/internal/filter"
	"ftfuse/internal/record"
)

// A rule with a filter has each line judged once: when its end comes, when its writer ends
// it unterminated, or, where it is too long to be held, when its first piece goes out. What
// is dropped moves the position like what is kept, in the same transaction. A line that is
// rewritten goes into one transaction: no position stands for a place inside of it. So there
// is a limit to what it may become.

// keptRun is how much of what a filter leaves is one record.
const keptRun = 256 << 10

// filtered is what a run of lines of the window becomes.
type filtered struct {
	w       *writer
	it      *item
	start   int  // the lines from here on are not records yet
	from    int  // those from here on are kept as they are, and not in Capture.kept
	changed bool // Capture.kept has what the lines from start to from became
}

// cutFiltered cuts whole lines that a filter looks at: neighbours that are kept are one record.
func (c *Capture) cutFiltered(w *writer, it *item, a, b int) error {
	r := filtered{w: w, it: it, start: a, from: a}
	c.kept = c.kept[:0]
	for at := a; at < b; {
		next := at + bytes.IndexByte(c.win.buf[at:b], '\n') + 1
		if next-at-1 > w.path.maxLine {
			if err := c.keptTo(&r, at); err != nil {
				return err
			}
			w.attr = *c.attrOf(w, it)
			if err := c.finish(w, at, next); err != nil {
				return err
			}
			r.start, r.from, at = next, next, next
			c.kept = c.kept[:0]
			continue
		}
		if err := c.filterLine(&r, at, next); err != nil {
			return err
		}
		at = next
		if len(c.kept)+at-r.from >= keptRun {
			if err := c.keptTo(&r, at); err != nil {
				return err
			}
		}
	}
	return c.keptTo(&r, b)
}

// filterLine judges the line at to next of the window.
func (c *Capture) filterLine(r *filtered, at, next int) error {
	line := c.win.buf[at:next]
	content := filter.Content(line)
	v, rewrite := r.w.path.judge(content, len(line))
	if v == filter.Keep && rewrite == nil {
		return nil
	}
	c.kept = append(c.kept, c.win.buf[r.from:at]...)
	r.from, r.changed = next, true
	if rewrite == nil {
		return nil
	}
	before := len(c.kept)
	c.kept = append(c.rewrite(r.w.path, rewrite, c.kept, content), line[len(content):]...)
	if len(c.kept)-before <= keptRun {
		return nil
	}
	long := append(c.line[:0], c.kept[before:]...) // by itself: it may need pieces
	c.line, c.kept = long, c.kept[:before]
	if err := c.keptTo(r, at); err != nil {
		return err
	}
	c.win.spill(next)
	if err := c.addWhole(r.w, c.attrOf(r.w, r.it), 0, long); err != nil {
		return err
	}
	c.moveTo(r.w.file, r.w.file.pos+int64(next-at))
	r.start, r.from, r.changed = next, next, false
	return nil
}

// keptTo makes what was left of the lines up to at a record, and moves the position past them.
func (c *Capture) keptTo(r *filtered, at int) error {
	if r.start == at {
		return nil
	}
	if err := c.emitKept(r, at); err != nil {
		return err
	}
	c.moveTo(r.w.file, r.w.file.pos+int64(at-r.start))
	r.start, r.from, r.changed = at, at, false
	c.kept = c.kept[:0]
	return nil
}

func (c *Capture) emitKept(r *filtered, at int) error {
	attr := c.attrOf(r.w, r.it)
	if !r.changed {
		return c.emit(r.w, attr, nil, r.start, at)
	}
	if r.from < at {
		c.kept = append(c.kept, c.win.buf[r.from:at]...)
	}
	switch n := len(c.kept); {
	case n == 0:
		return nil
	case n <= at-r.start && !c.win.spilled: // where the lines were
		copy(c.win.buf[r.start:], c.kept)
		return c.emit(r.w, attr, nil, r.start, r.start+n)
	}
	c.win.spill(at)
	return c.add(r.w, attr, c.kept)
}

// judge asks the filter about content, and counts; n bytes are dropped or kept with it.
func (p *path) judge(content []byte, n int) (filter.Verdict, *filter.Rewrite) {
	v, rewrite := p.filter.Judge(content)
	switch {
	case v == filter.Denied:
		p.counts.deniedLines.Add(1)
		p.counts.deniedBytes.Add(uint64(n))
	case v == filter.Unmatched:
		p.counts.unmatchedLines.Add(1)
		p.counts.unmatchedBytes.Add(uint64(n))
	case rewrite != nil:
		p.counts.replacedLines.Add(1)
	}
	return v, rewrite
}

// rewrite appends what r makes of content, a line of p, to dst, as far as that is not too long,
// and counts where it is. The lines of an overwrite are in one transaction, too, and have the
// limit together.
func (c *Capture) rewrite(p *path, r *filter.Rewrite, dst, content []byte) []byte {
	most := max(p.rewritten-c.rewritten, len(content))
	out, whole := r.Append(dst, content, most)
	if !whole {
		p.counts.overgrownLines.Add(1)
	}
	if c.collecting {
		c.rewritten += len(out) - len(dst)
	}
	return out
}

// judgeEnded judges w's unfinished line, which the window's bytes a to b end. It reports
// whether that was all: the line is dropped, or was rewritten and is a record.
func (c *Capture) judgeEnded(w *writer, a, b int) (done bool, err error) {
	if w.dropped != filter.Keep {
		c.moveTo(w.file, w.file.pos+int64(b-a))
		w.path.countMore(w.dropped, b-a)
		w.ended(c)
		return true, nil
	}
	if w.path.filter == nil || w.inPiece {
		return false, nil
	}
	c.line = append(append(c.line[:0], w.pend...), c.win.buf[a:b]...)
	out, done := c.judgeLine(w, c.line)
	if !done {
		return false, nil
	}
	if len(out) > 0 {
		c.win.spill(b)
		if err := c.addWhole(w, &w.attr, 0, out); err != nil {
			return true, err
		}
	}
	c.moveTo(w.file, w.file.pos+int64(b-a))
	w.ended(c)
	return true, nil
}

// judgeUnterminated judges w's unfinished line, which its writer leaves as it is. It reports
// as judgeEnded does.
func (c *Capture) judgeUnterminated(w *writer) (done bool, err error) {
	if w.dropped != filter.Keep {
		w.ended(c)
		return true, nil
	}
	if w.path.filter == nil || w.inPiece || w.path.binary {
		return false, nil
	}
	out, done := c.judgeLine(w, w.pend)
	if !done {
		return false, nil
	}
	if len(out) > 0 {
		if err := c.addWhole(w, &w.attr, record.Unterminated, out); err != nil {
			return true, err
		}
	}
	w.ended(c)
	return true, nil
}

// judgeLine judges a line, by its first max_line bytes where it is longer. It reports whether
// it is something else now: out, or nothing.
func (c *Capture) judgeLine(w *writer, line []byte) (out []byte, changed bool) {
	content := filter.Content(line)
	if len(content) > w.path.maxLine {
		content = content[:w.path.maxLine]
	}
	v, rewrite := w.path.judge(content, len(line))
	switch {
	case v != filter.Keep:
		return nil, true
	case rewrite == nil:
		return nil, false
	}
	c.kept = append(c.rewrite(w.path, rewrite, c.kept[:0], content), line[len(content):]...)
	return c.kept, true
}

// judgeBeginning judges w's unfinished line, whose first piece is about to go out, by what there
// is of it. It reports whether the line is dropped; what was rewritten is sent.
func (c *Capture) judgeBeginning(w *writer) (dropped bool, err error) {
	if w.path.filter == nil || w.inPiece || w.path.binary || len(w.pend) == 0 {
		return false, nil
	}
	head := w.pend[:min(len(w.pend), w.path.maxLine)]
	v, rewrite := w.path.judge(head, len(w.pend))
	if v != filter.Keep {
		w.drop(c, len(w.pend))
		w.inPiece, w.dropped = true, v
		return true, nil
	}
	if rewrite == nil {
		return false, nil
	}
	c.kept = c.rewrite(w.path, rewrite, c.kept[:0], head)
	if err := c.addPieces(w, &w.attr, record.PieceMiddle, c.kept); err != nil {
		return false, err
	}
	w.drop(c, len(head))
	w.inPiece = true
	return false, nil
}

// addWhole makes out, which a line of w became, a record, or pieces. flags are those of the
// last one.
func (c *Capture) addWhole(w *writer, at *record.Attr, flags uint16, out []byte) error {
	if len(out) > maxPiece {
		return c.addPieces(w, at, record.PieceLast|flags, out)
	}
	own := *at
	own.Flags |= flags
	return c.add(w, &own, out)
}

// addPieces makes out the pieces of a line that begins with them; last are the flags of the
// last one. All of them go into one transaction.
func (c *Capture) addPieces(w *writer, at *record.Attr, last uint16, out []byte) error {
	was := c.collecting
	c.collecting = true
	defer func() { c.collecting = was }()
	flags := record.PieceFirst
	for {
		n := min(len(out), maxPiece)
		own := *at
		if n == len(out) && flags != record.PieceFirst {
			flags = last
		}
		own.Flags |= flags
		if err := c.add(w, &own, out[:n]); err != nil {
			return err
		}
		if out = out[n:]; len(out) == 0 {
			break
		}
		flags = record.PieceMiddle
	}
	c.n.longLines.Add(1)
	return nil
}

// countMore counts n more bytes of a line that is being dropped.
func (p *path) countMore(v filter.Verdict, n int) {
	switch {
	case p.counts == nil: // another set of rules dropped it
	case v == filter.Denied:
		p.counts.deniedBytes.Add(uint64(n))
	default:
		p.counts.unmatchedBytes.Add(uint64(n))
	}
}
