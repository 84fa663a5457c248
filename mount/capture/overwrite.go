package capture

import (
	"context"
	"fmt"
	"math"
	"slices"

	"ftfuse/internal/failpoint"
	"ftfuse/internal/record"
	"ftfuse/mount/spool"
)

var (
	fpOverwrite = failpoint.New("capture/overwrite") // its record is on disk; the spool file is as before
	fpPunched   = failpoint.New("capture/punched")   // a file is drained and punched out, its intent is not on disk
	fpIntent    = failpoint.New("capture/intent")    // an intent is on disk; the file is as before
)

// Overwrite makes data, which a program writes over captured bytes of file n, a record
// flagged Overwrite (in line mode: its whole lines; the rest waits as an unfinished
// line of the writer) and returns nil when it is in the queue, on disk. The position
// is then at least newEnd, where the write ends. The caller pwrites to the spool file
// afterwards, and keeps other writers of n away meanwhile. Of e it uses Writer, Path,
// PathID, PID, UID, GID, Time and Unique, which Finished then knows. In a file of open mode
// newEnd must be at most its length: what was in the position but not in the file would be
// where a writer goes on that the kernel serves, after a kill. On an error nothing of data is ever delivered; ctx
// gives up as long as the queue has not taken it. data is not kept.
func (c *Capture) Overwrite(ctx context.Context, n spool.Number, e spool.Entry, data []byte, newEnd int64) error {
	r := &request{ctx: ctx, file: n}
	if c.o.Store.OpenMode(n) {
		r.beyond = true
		if size := c.o.Store.Size(n); newEnd > size {
			return fmt.Errorf("capture: overwrite of file %s up to %d, which has %d bytes: write what is behind the end by itself", n, newEnd, size)
		}
	}
	r.run = func() error { return c.overwrite(ctx, n, &e, data, newEnd) }
	if err := c.ask(r, fmt.Sprintf("overwrite %d bytes of file %s", len(data), n)); err != nil {
		return err
	}
	return fpOverwrite.Inject()
}

// undo is what an overwrite that the queue did not take must leave as it was.
type undo struct {
	extra   []kv
	file    file
	writer  *writer
	old     writer
	tail    tail
	pending int64
	count   int
	setSeq  uint64
	tally   tally
	rule    RuleStats
}

// overwrite cuts and submits data, with nothing else in the transaction.
func (c *Capture) overwrite(ctx context.Context, n spool.Number, e *spool.Entry, data []byte, newEnd int64) error {
	f := c.fileOf(n)
	it := c.itemOf(e)
	it.seq, it.kind, it.flags = 0, spool.Write, record.Overwrite
	p := c.pathList[it.path]
	f.setPath(p)
	c.newest = max(c.newest, it.writer)
	if p.skip {
		c.skip(p, uint64(len(data)))
		f.pos = max(f.pos, newEnd)
		f.known = max(f.known, f.pos)
		c.dirtyFile(f)
		c.finishes(f, e.Unique)
		return nil
	}
	w := f.writerOf(it.writer, p)
	c.leaveContested()
	u := undo{
		extra: slices.Clone(c.extra), file: *f, writer: w, old: *w, tail: p.tail,
		pending: c.pendBytes, count: c.pendCount, setSeq: c.setSeq, tally: c.tally,
	}
	if p.counts != nil {
		u.rule = p.counts.stats("")
	}
	u.old.pend = append([]byte(nil), w.pend...)
	u.old.chunks = append([]int64(nil), w.chunks...)
	c.collecting, c.rewritten = true, 0
	defer func() { c.collecting, c.rewritten = false, 0 }()
	err := c.cutOverwrite(w, &it, data)
	f.pos = max(u.file.pos, newEnd)
	f.known = max(f.known, f.pos)
	c.dirtyFile(f)
	c.finishes(f, e.Unique)
	if err == nil {
		err = c.submit(ctx, true)
	}
	if err != nil {
		c.undo(f, &u)
		return err
	}
	c.n.overwrites.Add(1)
	c.n.overwriteBytes.Add(uint64(len(data)))
	return nil
}

// cutOverwrite cuts bytes that are in memory. What goes wrong is undone by the caller.
func (c *Capture) cutOverwrite(w *writer, it *item, data []byte) error {
	for len(data) > 0 {
		n := min(len(data), maxExtent)
		c.win.buf, c.win.end, c.win.spilled = data[:n], 0, true
		if err := c.cutExtent(w, it, 0, n); err != nil {
			return err
		}
		data = data[n:]
	}
	c.win.buf = nil
	return nil
}

func (c *Capture) undo(f *file, u *undo) {
	w, p := u.writer, u.writer.path
	f.pos, f.seq, f.known, f.finished = u.file.pos, u.file.seq, u.file.known, u.file.finished
	*w = u.old
	p.tail = u.tail
	f.dirty, w.dirty, p.dirty = false, false, false
	c.pendBytes, c.pendCount, c.setSeq, c.tally = u.pending, u.count, u.setSeq, u.tally
	if p.counts != nil {
		p.counts.restore(u.rule)
	}
	c.unseal()
	c.extra = u.extra
	c.dirtyFiles, c.dirtyWriters, c.dirtyPaths = c.dirtyFiles[:0], c.dirtyWriters[:0], c.dirtyPaths[:0]
}

// BeginTruncate prepares for file n to get newSize: all of it is in the queue, it is
// punched out (spool.PunchAll), and the intent is in the queue too, when it returns nil.
// The caller then truncates the spool file and calls FinishTruncate, and lets nobody write
// to n from before BeginTruncate until FinishTruncate returned. On an error there is no
// intent.
func (c *Capture) BeginTruncate(ctx context.Context, n spool.Number, newSize int64) error {
	what := fmt.Sprintf("begin to truncate file %s to %d", n, newSize)
	beyond := c.o.Store.OpenMode(n)
	r := &request{ctx: ctx, file: n, beyond: beyond}
	r.run = func() error {
		f := c.fileOf(n)
		c.renew(f)
		f.frozen = true
		c.frozen = append(c.frozen, f)
		return nil
	}
	if err := c.ask(r, what); err != nil {
		return err
	}
	t, err := c.o.Store.PunchAll(n, newSize)
	if err == nil {
		err = fpPunched.Inject()
	}
	if err == nil {
		err = c.intend(ctx, n, t, beyond, what)
	}
	if err != nil {
		c.o.Store.Unpunch(n)
		c.post(&request{ctx: context.Background(), file: n, must: true, beyond: beyond, run: func() error {
			c.thaw(c.fileOf(n))
			return nil
		}})
		return err
	}
	return fpIntent.Inject()
}

// intend commits the intent of a truncation.
func (c *Capture) intend(ctx context.Context, n spool.Number, t spool.Cut, beyond bool, what string) error {
	r := &request{ctx: ctx, file: n, inside: true, beyond: beyond}
	r.run = func() error {
		c.extra = append(c.extra, kv{Key: cutKey(n), Value: appendCut(nil, t)})
		return nil
	}
	return c.ask(r, what)
}

// FinishTruncate ends what BeginTruncate began: file n has newSize bytes, or, where the
// truncation failed, the size that the caller gives. Its position is there from now
// on, and Finished knows unique, unless that is 0. Once called it happens, even if ctx
// ends before it returns.
func (c *Capture) FinishTruncate(ctx context.Context, n spool.Number, newSize int64, unique uint64) error {
	r := &request{ctx: ctx, file: n, must: true, beyond: c.o.Store.OpenMode(n)}
	r.run = func() error {
		f := c.fileOf(n)
		c.renew(f)
		if newSize > f.pos {
			c.hole(newSize - f.pos)
		}
		f.pos, f.known = newSize, newSize
		c.dirtyFile(f)
		c.extra = append(c.extra, kv{Key: cutKey(n)})
		c.finishes(f, unique)
		c.thaw(f)
		return nil
	}
	return c.ask(r, fmt.Sprintf("finish to truncate file %s to %d", n, newSize))
}

// finishes stores unique as the newest request that changed what f had.
func (c *Capture) finishes(f *file, unique uint64) {
	if unique == 0 {
		return
	}
	f.finished = unique
	c.extra = append(c.extra, kv{Key: doneKey(f.number), Value: appendSeq(nil, unique)})
}

// Finished returns the kernel's id of the newest overwrite or truncation of file n on this
// connection that is in the queue, on disk: what of it is left to be done can be done
// again. It is for requests that a connection sends again to a worker that took it over,
// and to be called before Run.
func (c *Capture) Finished(n spool.Number) (unique uint64, ok bool) {
	v, ok := c.o.Queue.Get(doneKey(n))
	if !ok || checkValue(doneKey(n), v, 9) != nil {
		return 0, false
	}
	return le.Uint64(v[1:]), true
}

// thaw lets f be cut again.
func (c *Capture) thaw(f *file) {
	f.frozen = false
	c.frozen = slices.DeleteFunc(c.frozen, func(g *file) bool { return g == f })
	if !f.empty() {
		c.wait(f)
	}
	c.growAgain(f)
}

// renew makes the completer leave f alone for what was committed until now: its
// positions mean nothing once the file was truncated.
func (c *Capture) renew(f *file) {
	c.settleMu.Lock()
	f.gen++
	c.settleMu.Unlock()
}

// hole counts bytes that nobody wrote.
func (c *Capture) hole(n int64) {
	c.n.holes.Add(1)
	c.n.holeBytes.Add(uint64(n))
}

const allEntries = math.MaxUint64
