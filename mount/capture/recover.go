package capture

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"

	"ftfuse/internal/failpoint"
	"ftfuse/internal/record"
	"ftfuse/mount/procs"
	"ftfuse/mount/spool"
)

var (
	fpEpoch    = failpoint.New("capture/epoch")    // the new epoch is on disk, nothing was replayed
	fpReplayed = failpoint.New("capture/replayed") // all is replayed, the end of it not yet submitted
)

// recoverChunk is how much of a file without notes is one extent.
const recoverChunk = 512 << 10

// Recover takes up what an earlier run left: it opens a new epoch, reads the positions
// and unfinished lines from the queue, closes truncations that were under way, replays
// the journal behind what is committed, takes bytes that no note covers (the kernel's where
// it writes to the file, else as Recovered), ends unfinished lines, and returns when
// everything is in the queue, on disk. It must be called once, before Run and before
// anything is written to the spool.
//
// With live nil the connection to the kernel is a new one: all lines end. Else a connection
// is taken over, whose handles were restored in the spool; live tells of which writers, and
// their lines go on. Orphans are looked for in either case (spool.DetachOrphans), and their
// lines go on, too.
func (c *Capture) Recover(ctx context.Context, live func(writer uint64) bool) error {
	if _, err := c.o.Store.DetachOrphans(live != nil); err != nil {
		return fmt.Errorf("look for programs of an earlier mount that still write: %w", err)
	}
	c.live = live
	run, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() { defer close(done); c.completer(run) }()
	c.ctx = run
	err := c.recover(run)
	if err == nil {
		err = c.settled(run)
	}
	cancel()
	<-done
	c.ctx = nil
	if err == nil {
		err = c.failure()
	}
	if err != nil {
		return fmt.Errorf("recover what was written before: %w", err)
	}
	c.recovered = true
	return nil
}

func (c *Capture) recover(ctx context.Context) error {
	if err := c.newEpoch(); err != nil {
		return err
	}
	if err := c.submit(ctx, true); err != nil {
		return err
	}
	if err := c.o.Queue.Flush(ctx); err != nil {
		return err
	}
	if err := fpEpoch.Inject(); err != nil {
		return err
	}
	st, err := c.load()
	if err != nil {
		return err
	}
	for i := range st.files {
		if err := c.takeFile(&st.files[i], st); err != nil {
			return err
		}
	}
	st.dropGone(c)
	if err := c.skipBegun(); err != nil {
		return err
	}
	if err := c.replay(st); err != nil {
		return err
	}
	if err := c.endAll(st); err != nil {
		return err
	}
	c.endRepair(st)
	return fpReplayed.Inject()
}

// takeFile makes the state of one spool file, and has its position follow a file that
// is shorter: after power loss its last pages can be missing, and what is written next
// would be taken for captured. (With a connection that is taken over there was no power
// loss: the file follows its position.)
func (c *Capture) takeFile(info *spool.FileInfo, st *stored) error {
	f := c.fileOf(info.Number)
	p, known := st.pos[info.Number]
	f.pos, f.seq = p.pos, p.seq
	name := p.path
	if info.Path != "" || name == "" {
		name = info.Path
	}
	f.setPath(c.pathOf(0, name))
	f.uid, f.gid = info.UID, info.GID
	f.by, f.kernel, f.orphan = p.by, p.by.on, info.Orphan
	if f.by.on {
		f.by.path = c.pathOf(0, p.path)
		if e, ok := c.o.Store.KernelWriter(f.number); ok && e.PID == f.by.pid {
			f.by.who = procs.Opener{PID: e.PID, Time: e.Time}
		}
	}
	defer func() { f.known = f.pos }()
	if t, ok := st.cuts[info.Number]; ok {
		pos, err := c.closeCut(f, t, c.o.Store.Size(f.number))
		if err != nil {
			return err
		}
		f.pos = pos
		c.extra = append(c.extra, kv{Key: cutKey(f.number)})
		c.dirtyFile(f)
	}
	if f.pos > info.Size && c.live != nil {
		// Committed by an overwrite past the end and not written: the request comes again and
		// puts it there. No other write may have that place.
		if err := c.o.Store.Lengthen(info.Number, f.pos); err != nil {
			return fmt.Errorf("make room for an overwrite that was committed: %w", err)
		}
	} else if f.pos > info.Size {
		c.n.shrunk.Add(1)
		c.o.Logger.Warn("spool file is shorter than what was captured of it: bytes that were not on disk yet are in the queue; going on from its end",
			"file", f.number.String(), "path", name, "size", info.Size, "captured", f.pos)
		f.pos = info.Size
		c.dirtyFile(f)
	}
	if !known && info.Size > 0 {
		c.dirtyFile(f)
	}
	if st.repaired {
		if err := c.passHoles(f, info.Size); err != nil {
			return err
		}
	}
	delete(st.pos, info.Number)
	return nil
}

// replay cuts the journal's entries behind the committed one, then what no entry
// covers.
func (c *Capture) replay(st *stored) error {
	rec := c.o.Store.Begin(st.seq)
	c.setSeq, c.taken = st.seq, rec.From-1
	c.lossy = rec.Lost > 0 || rec.OtherBoot || rec.From > st.seq+1 || st.repaired
	if rec.Lost > 0 || rec.From > st.seq+1 {
		c.o.Logger.Warn("notes of writes were lost; their bytes are delivered without pid and time", "lost", rec.Lost, "from", rec.From, "committed", st.seq)
	}
	for {
		took := c.entriesIn()
		cut, err := c.fill()
		if err != nil {
			return err
		}
		if !took && !cut {
			break
		}
	}
	if want := c.o.Store.Next() - 1; c.taken < want {
		return fmt.Errorf("%w: journal gives entries up to %d, has %d", ErrState, c.taken, want)
	}
	for i := range st.files {
		f := c.files[st.files[i].Number]
		c.writtenNow(f)
		if c.tailCanWait(f) {
			c.growAgain(f)
		} else if err := c.takeTail(f); err != nil {
			return err
		}
	}
	c.lossy = false
	return nil
}

// writtenNow has f be one that the kernel writes to if it is, though no note says so: the
// note was owed when everything stopped.
func (c *Capture) writtenNow(f *file) {
	e, ok := c.o.Store.KernelWriter(f.number)
	if !ok || f.kernel && f.by.on {
		return
	}
	f.kernel = true
	if e.Kind == spool.Opened {
		it := c.itemOf(&e)
		it.flags = uint16(e.Flags)
		c.openedBy(f, &it)
	}
}

// tailCanWait reports whether what the kernel wrote to f behind the last entry is Run's to
// take: of a file that the connection which is taken over still writes to. A program that
// writes faster than it is captured would make every takeover longer than the last, with
// nobody to slow it down.
func (c *Capture) tailCanWait(f *file) bool {
	return c.live != nil && !c.lossy && f.kernel && f.by.on && !f.orphan && c.live(f.by.writer)
}

// takeTail takes what is behind the last entry of f: the kernel's bytes, or what lost
// notes were about. Of an orphan's file that is still written to the rest comes later.
func (c *Capture) takeTail(f *file) error {
	size := c.o.Store.Size(f.number)
	if size <= f.pos {
		return nil
	}
	c.dirtyFile(f)
	if !f.kernel {
		err := c.gap(f, size, true)
		f.known = f.pos
		return err
	}
	c.kernelBytes(f, size, c.taken)
	for !f.empty() {
		if err := c.cutTurn(f, maxExtent, allEntries); err != nil {
			return err
		}
	}
	return nil
}

// gap moves the position of f to where, which nothing that is known has written: a
// hole, or, where notes may have been lost, bytes to be recovered.
func (c *Capture) gap(f *file, to int64, lossy bool) error {
	if !lossy {
		c.hole(to - f.pos)
		c.moveTo(f, to)
		return nil
	}
	for f.pos < to {
		at, err := c.o.Store.SeekData(f.number, f.pos)
		if err != nil && !errors.Is(err, io.EOF) {
			return fmt.Errorf("look for data in file %s: %w", f.number, err)
		}
		if err != nil || at > to {
			at = to
		}
		if at > f.pos {
			c.hole(at - f.pos)
			c.moveTo(f, at)
			continue
		}
		end, err := c.dataEnd(f, min(to, f.pos+recoverChunk))
		if err != nil {
			return err
		}
		it := c.recoveredItem(f, end-f.pos)
		if p := c.pathList[it.path]; p.skip {
			c.skip(p, uint64(it.n))
			c.moveTo(f, f.pos+int64(it.n))
			continue
		}
		c.n.recovered.Add(uint64(it.n))
		if err := c.cutItems(f, []item{it}); err != nil {
			return err
		}
	}
	return nil
}

// dataEnd returns where the data at f's position ends, limit at most, to a block. (A
// file system tells data from holes by blocks, so that zeros around what was written
// far behind the end can come with it.)
func (c *Capture) dataEnd(f *file, limit int64) (int64, error) {
	const block = 4096
	for end := f.pos/block*block + block; end < limit; end += block {
		at, err := c.o.Store.SeekData(f.number, end)
		if err != nil && !errors.Is(err, io.EOF) {
			return 0, fmt.Errorf("look for data in file %s: %w", f.number, err)
		}
		if err != nil || at > end {
			return end, nil
		}
	}
	return limit, nil
}

// recoveredItem is the extent of n bytes at f's position that no note covers. Where one
// writer has an unfinished line in f, it went on with it.
func (c *Capture) recoveredItem(f *file, n int64) item {
	it := item{
		off: f.pos, n: uint32(n), time: c.o.Now().UnixNano(), path: f.path.id, kind: spool.Write,
		uid: f.uid, gid: f.gid, flags: record.Recovered,
	}
	if f.by.on { // the kernel's, with what power loss left between
		it.writer, it.path, it.pid, it.uid, it.gid, it.flags = f.by.writer, f.by.path.id, f.by.pid, f.by.uid, f.by.gid, f.by.flags
		return it
	}
	open := 0
	for _, w := range f.writers {
		if w.open() {
			open++
			it.writer, it.path = w.id, w.path.id
		}
	}
	if open != 1 {
		it.writer, it.path = 0, f.path.id
	}
	return it
}

// endAll ends every unfinished line of a writer that is not alive. Those of one path were
// open together, so that the second must not go on in the line of the first; who opens
// later may.
func (c *Capture) endAll(st *stored) error {
	var open []*writer
	for _, f := range c.files {
		if f.src != nil {
			continue // its line goes on
		}
		c.newest = max(c.newest, f.by.writer)
		for _, w := range f.writers {
			c.newest = max(c.newest, w.id)
			if w.open() && !c.alive(w) {
				open = append(open, w)
			}
		}
	}
	slices.SortFunc(open, func(a, b *writer) int {
		return cmp.Or(cmp.Compare(a.attr.Time, b.attr.Time), cmp.Compare(a.id, b.id))
	})
	for _, w := range open {
		if err := c.end(w, max(c.newest, 1)); err != nil {
			return err
		}
	}
	for _, f := range c.files {
		if f.src != nil {
			continue
		}
		c.endFile(f)
		if st.orphans[f.number] {
			delete(c.files, f.number)
		}
	}
	return nil
}

// alive reports whether w may go on writing.
func (c *Capture) alive(w *writer) bool {
	return w.file.orphan && w.id == w.file.by.writer || c.live != nil && c.live(w.id)
}

// endFile forgets the writers of f that are gone, and that the kernel writes to it unless
// somebody is left.
func (c *Capture) endFile(f *file) {
	for _, w := range f.writers {
		if !c.alive(w) {
			f.forget(w)
		}
	}
	if f.by.on && !f.orphan && (c.live == nil || !c.live(f.by.writer)) {
		f.by, f.kernel = opened{}, false
		c.dirtyFile(f)
	}
	if c.live == nil && f.finished != 0 {
		f.finished = 0
		c.extra = append(c.extra, kv{Key: doneKey(f.number)})
	}
}

// settled submits the rest, waits for the disk and tells the store.
func (c *Capture) settled(ctx context.Context) error {
	if c.isDirty() {
		if err := c.submit(ctx, true); err != nil {
			return err
		}
	}
	if err := c.o.Queue.Flush(ctx); err != nil {
		return err
	}
	for {
		c.mu.Lock()
		pending := c.freed < c.submitted
		err := c.err
		c.mu.Unlock()
		if err != nil {
			return err
		}
		if !pending {
			break
		}
		select {
		case <-c.wake:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	c.settleMu.Lock()
	defer c.settleMu.Unlock()
	for _, f := range c.files {
		if f.src == nil {
			c.o.Store.Settled(f.number, f.pos)
		}
	}
	gone := c.o.Store.TakeGone()
	c.mu.Lock()
	c.gone = append(c.gone, gone...)
	c.mu.Unlock()
	return nil
}
