package capture

import (
	"bytes"
	"fmt"

	"ftfuse/internal/record"
	"ftfuse/mount/spool"
)

const (
	maxExtent = 1 << 20  // a longer extent is cut as several
	largeItem = 16 << 10 // read by itself; smaller ones are read together
	maxGap    = 64 << 10 // room before a read for the unfinished line that it ends
)

// cutFile cuts what waits of f, oldest first, until budget bytes were taken or the
// next item is newer than until. It returns what it took of the budget.
func (c *Capture) cutFile(f *file, budget int64, until uint64) (took int64, err error) {
	for took < budget && !f.frozen && !f.empty() && f.q[f.head].seq <= until {
		it := &f.q[f.head]
		n, k := int64(0), 1
		switch it.kind {
		case spool.Release:
			err = c.endWriter(f, it)
		case spool.Flush:
			err = c.endRecord(f, it)
		case spool.Write:
			n, k, err = c.cutWrites(f, until)
		case kindKernel:
			n, k, err = c.cutKernel(f)
		case spool.Opened:
			c.openedBy(f, it)
		case spool.Grown:
			err = c.kernelEnds(f, it)
		}
		if err != nil {
			return took, err
		}
		if k > 0 {
			f.seq = max(f.seq, f.q[f.head+k-1].seq)
		}
		c.dirtyFile(f)
		f.head += k
		c.queued -= k
		took += n + int64(k)*64
	}
	return took, nil
}

// cutWrites cuts the writes at the front of f's queue that one read can get. It
// returns their bytes and how many items are used up: 0 when there is more to cut of
// the first.
func (c *Capture) cutWrites(f *file, until uint64) (n int64, k int, err error) {
	it := &f.q[f.head]
	if more, err := c.reach(f, it, c.pathList[it.path]); !more {
		return 0, 1, err
	}
	k, total := c.run(f, until)
	if k == 0 { // a part of a long one
		part := *it
		part.n, part.off = uint32(total), f.pos
		return total, 0, c.cutItems(f, []item{part})
	}
	return total, k, c.cutItems(f, f.q[f.head:f.head+k])
}

// reach moves the position of f up to it, which was written by path p, and reports whether
// there is anything of it to cut, in the lane of p: not if all of it is before the position,
// nor if p is not transferred, which moves the position past it.
func (c *Capture) reach(f *file, it *item, p *path) (more bool, err error) {
	end := it.end()
	if it.n == 0 || end <= f.pos {
		return false, nil
	}
	if it.off > f.pos {
		if err := c.gap(f, it.off, c.lossy); err != nil {
			return false, err
		}
	}
	if p.skip {
		c.skip(p, uint64(end-f.pos))
		c.moveTo(f, end)
		return false, nil
	}
	c.turn(p)
	return true, nil
}

// run returns how many items from the front of f's queue are to be read at once, and
// their bytes from the position on. 0 items means: a part of the first.
func (c *Capture) run(f *file, until uint64) (k int, total int64) {
	q := f.q[f.head:]
	end := q[0].end()
	total = end - f.pos
	if total > maxExtent {
		return 0, maxExtent
	}
	if total >= largeItem {
		return 1, total
	}
	limit := int64(c.o.RunBytes)
	if free := int64(c.l.b.Free()); c.l.b.Records() > 0 {
		limit = min(limit, free)
	}
	for k = 1; k < len(q); k++ {
		it := &q[k]
		if it.kind != spool.Write || it.off != end || it.n == 0 || it.n >= largeItem || it.seq > until || it.path != q[0].path && c.pathList[it.path].skip {
			break
		}
		if total+int64(it.n)+int64(k)*12 > limit {
			break
		}
		total += int64(it.n)
		end += int64(it.n)
	}
	return k, total
}

// cutItems reads the bytes of contiguous extents from the position on and cuts them.
func (c *Capture) cutItems(f *file, items []item) error {
	c.turn(c.pathList[items[0].path])
	last := &items[len(items)-1]
	total := int(last.end() - f.pos)
	gap := 0
	if w := f.writers[items[0].writer]; w != nil && len(w.pend) <= maxGap {
		gap = len(w.pend)
	}
	buf := c.l.b.Space(gap + total)
	if buf == nil && c.l.b.Records() > 0 {
		if err := c.seal(c.l); err != nil {
			return err
		}
		buf = c.l.b.Space(gap + total)
	}
	if buf == nil {
		return fmt.Errorf("capture: room for %d bytes in a batch: the limit is %d", gap+total, record.MaxBatch)
	}
	start := f.pos
	if n, err := c.o.Store.ReadAt(f.number, buf[gap:], start); err != nil || n != total {
		return fmt.Errorf("read %d bytes of spool file %s at %d for capture: got %d: %w; was the file changed by hand?", total, f.number, start, n, orShort(err))
	}
	c.win.buf, c.win.end, c.win.spilled = buf, 0, false
	for i := range items {
		it := &items[i]
		a := gap + int(max(it.off, start)-start)
		b := gap + int(it.end()-start)
		c.tally.writes++
		c.tally.bytes += uint64(b - a)
		if err := c.cutExtent(f.writerOf(it.writer, c.pathList[it.path]), it, a, b); err != nil {
			return err
		}
	}
	c.win.buf = nil
	return nil
}

// cutExtent cuts the bytes a to b of the window, which w wrote, and moves the position
// of its file past them.
func (c *Capture) cutExtent(w *writer, it *item, a, b int) error {
	if w.path.binary {
		return c.cutBinary(w, it, a, b)
	}
	if w.open() {
		i := bytes.IndexByte(c.win.buf[a:b], '\n')
		if i < 0 {
			return c.hold(w, it, a, b)
		}
		if err := c.finish(w, a, a+i+1); err != nil {
			return err
		}
		if a += i + 1; a == b {
			return nil
		}
	}
	if i := lastNewline(c.win.buf[a:b]); i >= 0 {
		if err := c.cutLines(w, it, a, a+i+1); err != nil {
			return err
		}
		if a += i + 1; a == b {
			return nil
		}
	}
	return c.hold(w, it, a, b)
}

// cutLines cuts whole lines.
func (c *Capture) cutLines(w *writer, it *item, a, b int) error {
	switch p := w.path; {
	case p.filter != nil:
		return c.cutFiltered(w, it, a, b)
	case b-a-1 > p.maxLine:
		return c.cutLong(w, it, a, b)
	}
	if err := c.emit(w, c.attrOf(w, it), nil, a, b); err != nil {
		return err
	}
	c.moveTo(w.file, w.file.pos+int64(b-a))
	return nil
}

// cutLong cuts whole lines of which some may be longer than max_line.
func (c *Capture) cutLong(w *writer, it *item, a, b int) error {
	whole := func(from, to int) error {
		if from == to {
			return nil
		}
		if err := c.emit(w, c.attrOf(w, it), nil, from, to); err != nil {
			return err
		}
		c.moveTo(w.file, w.file.pos+int64(to-from))
		return nil
	}
	from := a // of lines that are short enough
	for at := a; at < b; {
		next := at + bytes.IndexByte(c.win.buf[at:b], '\n') + 1
		if next-at-1 > w.path.maxLine {
			if err := whole(from, at); err != nil {
				return err
			}
			w.attr = *c.attrOf(w, it)
			if err := c.finish(w, at, next); err != nil {
				return err
			}
			from = next
		}
		at = next
	}
	return whole(from, b)
}

func pieceFlag(inPiece bool) uint16 {
	if inPiece {
		return record.PieceMiddle
	}
	return record.PieceFirst
}

// attrOf fills the attributes of an extent of w. They are good until the next call.
func (c *Capture) attrOf(w *writer, it *item) *record.Attr {
	a := &c.attr
	a.Host, a.Path = c.o.Host, w.path.name
	a.PID, a.UID, a.GID = it.pid, it.uid, it.gid
	a.Time, a.Flags = it.time, it.flags
	a.Process = nil
	if w.path.ask != 0 {
		a.Process = c.processOf(w, it)
	}
	return a
}

// processOf is what is known of who wrote it. At a start with a new connection nothing is:
// the process may be gone, and its pid another one's.
func (c *Capture) processOf(w *writer, it *item) *record.Process {
	pid, by := it.pid, &w.file.by
	switch {
	case !c.recovered && c.live == nil || it.flags&(record.Recovered|record.Offline) != 0:
		pid = 0
	case it.flags&record.Opener != 0 && by.who.PID == pid:
		return c.o.Processes.OfOpener(&by.who, w.path.ask)
	}
	return c.o.Processes.Of(pid, w.path.ask, true)
}

// skip counts bytes that a rule keeps from being transferred.
func (c *Capture) skip(p *path, n uint64) {
	p.counts.skippedWrites.Add(1)
	p.counts.skippedBytes.Add(n)
}

func orShort(err error) error {
	if err == nil {
		return errShort
	}
	return err
}
