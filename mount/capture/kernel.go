package capture

import (
	"ftfuse/internal/record"
	"ftfuse/mount/procs"
	"ftfuse/mount/spool"
)

// What the kernel writes (FUSE passthrough) comes without notes: "the file grew". It is
// told from what the daemon wrote by position. All that the daemon writes to a file has a
// note with its offset, and says in it whether what lies before it is the kernel's or a
// hole; so the kernel's bytes are those between notes and behind the last of them.
//
// For the upper end: first the size is looked at, then all notes are taken in that there
// are. What was noted after the size was looked at was also written after that. So below
// that size everything is the kernel's but what a note taken in covers, or one that is
// still in progress: there it ends, until that one is complete.

// The kind of items that no entry of the journal is.
const kindKernel spool.Kind = 0x80 // bytes of the kernel

// lines of the kernel's writers share one id, see spool.Shared.

// opened says whose the bytes are that the kernel writes.
type opened struct {
	on       bool // the kernel writes to the file
	writer   uint64
	path     *path
	pid      uint32
	uid, gid uint32
	flags    uint16 // of the record
	who      procs.Opener
}

// minPiece is the least room in a batch that is worth filling with a part of a long extent.
const minPiece = 64 << 10

// sizes looks for files that kernel writers made longer. It comes before the entries.
func (c *Capture) sizes() {
	for _, f := range c.growing {
		f.size = c.o.Store.Size(f.number)
	}
	c.grown = c.o.Store.Poll(c.grown[:0])
	for _, g := range c.grown {
		f := c.fileOf(g.File)
		f.size = g.Size
		c.grow(f)
	}
}

// grow adds f to those that may have bytes of the kernel to be taken in.
func (c *Capture) grow(f *file) {
	if !f.growing {
		f.growing = true
		c.growing = append(c.growing, f)
	}
}

// takeKernel takes in what the kernel wrote, after sizes and the entries, and reports
// whether there was anything.
func (c *Capture) takeKernel() bool {
	any := false
	kept := c.growing[:0]
	for _, f := range c.growing {
		known := f.known
		if c.takeGrown(f) {
			f.growing = false
		} else {
			kept = append(kept, f)
		}
		any = any || f.known > known
	}
	clear(c.growing[len(kept):])
	c.growing = kept
	return any
}

// takeGrown takes in what f has up to the size that was looked at, and reports whether
// that was all of it.
func (c *Capture) takeGrown(f *file) bool {
	owes := f.kernel && c.o.Store.Owes(f.number) // before Next: what was owed is a note by then
	all := c.taken+1 >= c.o.Store.Next()
	switch {
	case f.frozen:
		return true
	case f.size < 0:
		return false // growAgain: not looked at yet
	case f.size <= f.known:
		return true
	case owes:
		return false // perhaps the opening of who wrote them
	case !f.kernel:
		return all // else its note may be among the rest
	}
	to := f.size
	if !all {
		low, ok := c.o.Store.Lowest(f.number, c.taken+1, to)
		if !ok {
			return false
		}
		to = low
	}
	c.kernelBytes(f, to, c.taken)
	return to >= f.size
}

// kernelBytes puts what lies between what is known of f and to into its queue. All entries
// of f up to seq are in it.
func (c *Capture) kernelBytes(f *file, to int64, seq uint64) {
	const most = 1 << 30 // an item's length has 32 bits
	for f.known < to {
		n := min(to-f.known, most)
		if last := f.lastItem(); last != nil && last.kind == kindKernel && last.end() == f.known && int64(last.n)+n <= most {
			last.n += uint32(n)
			last.seq = seq
		} else {
			f.push(item{seq: seq, off: f.known, n: uint32(n), time: c.now(), kind: kindKernel})
			c.queued++
		}
		f.known += n
		c.wait(f)
	}
}

// now is the time of what is taken in.
func (c *Capture) now() int64 { return c.o.Now().UnixNano() }

// wait makes f one of those that have something to be cut.
func (c *Capture) wait(f *file) {
	if !f.ready && !f.frozen {
		f.ready = true
		c.ready = append(c.ready, f)
	}
}

func (f *file) lastItem() *item {
	if f.empty() {
		return nil
	}
	return &f.q[len(f.q)-1]
}

// noteKernel takes in an entry that tells of what the kernel does.
func (c *Capture) noteKernel(f *file, e *spool.Entry) {
	switch e.Kind {
	case spool.Write:
		if f.kernel && e.Off > f.known && (e.Flags&spool.FlagJoined != 0 || e.Flags&spool.FlagUnsure != 0 && c.written(f, e.Off)) {
			c.kernelBytes(f, e.Off, e.Seq-1)
		}
		f.known = max(f.known, e.Off+int64(e.Len))
		return
	case spool.Opened:
		if f.kernel {
			c.kernelBytes(f, e.Off, e.Seq-1)
		}
		f.known = max(f.known, e.Off)
		f.kernel = e.Flags&spool.FlagKernel != 0
		c.growAgain(f)
	case spool.Grown:
		if f.kernel {
			c.kernelBytes(f, e.Off, e.Seq-1)
		}
		if e.Flags&spool.FlagEnd != 0 {
			f.kernel = false
		}
	}
}

// written reports whether there is anything between what is known of f and to, which a
// write would have left as a hole that was in progress when everything was killed: then it
// was not done, and an orphan has written there.
func (c *Capture) written(f *file, to int64) bool {
	zero, err := c.zeros(f, f.known, to)
	if err != nil {
		c.fail(err)
	}
	return !zero
}

// growAgain has f looked at in the next round: what it grew by may have been found before
// it was known that the kernel writes to it.
func (c *Capture) growAgain(f *file) {
	f.size = -1
	c.grow(f)
	c.again = true
}

// openedBy makes the entry's opener the one of the bytes that follow.
func (c *Capture) openedBy(f *file, it *item) {
	f.by = opened{
		on: true, writer: it.writer, path: c.pathList[it.path], pid: it.pid, uid: it.uid, gid: it.gid, flags: record.Opener,
		who: procs.Opener{PID: it.pid, Time: it.time},
	}
	if it.flags&uint16(spool.FlagSeveral) != 0 {
		f.by.flags |= record.Several
	}
	c.dirtyFile(f)
}

// kernelEnds takes note that the kernel does not write to f any more.
func (c *Capture) kernelEnds(f *file, it *item) error {
	if it.flags&uint16(spool.FlagEnd) == 0 {
		return nil
	}
	f.by = opened{}
	c.dirtyFile(f)
	if it.flags&uint16(spool.FlagOrphan) == 0 {
		return nil
	}
	for _, w := range f.writers {
		if err := c.end(w, c.newest); err != nil {
			return err
		}
		c.dirtyWriter(w)
		f.forget(w)
	}
	return nil
}

// cutKernel cuts a piece of the kernel's bytes at the front of f's queue: what the batch
// has room for, up to maxExtent.
func (c *Capture) cutKernel(f *file) (n int64, k int, err error) {
	it := &f.q[f.head]
	p := f.by.path
	if p == nil {
		p = f.path
	}
	if more, err := c.reach(f, it, p); !more {
		return 0, 1, err
	}
	end := it.end()
	n = min(end-f.pos, maxExtent)
	if c.l.b.Records() > 0 {
		free := int64(c.l.b.Free() - len(p.name) - len(c.o.Host) - 64)
		if p.ask != 0 {
			free -= 2 * record.MaxProcess
		}
		if w := f.writers[f.by.writer]; w != nil {
			free -= int64(len(w.pend))
		}
		if free >= minPiece {
			n = min(n, free)
		}
	}
	part := &c.one[0]
	*part = *it
	part.off, part.n, part.path = f.pos, uint32(n), p.id
	part.writer, part.pid, part.uid, part.gid, part.flags = f.by.writer, f.by.pid, f.by.uid, f.by.gid, f.by.flags
	part.kind = spool.Write
	if !f.by.on { // an orphan's whose opening was not noted
		part.uid, part.gid, part.flags = f.uid, f.gid, record.Recovered
	}
	if c.lossy { // a hole among them is what power loss left
		return n, 0, c.gap(f, f.pos+n, true)
	}
	err = c.cutItems(f, c.one[:])
	if f.pos >= end {
		k = 1
	}
	return n, k, err
}
