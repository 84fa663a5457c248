package capture

import (
	"context"
	"errors"
	"fmt"
	"time"

	"ftfuse/internal/failpoint"
	"ftfuse/mount/spool"
	"ftfuse/queue"
)

type kv = queue.KV

var (
	fpSeal      = failpoint.New("capture/seal")      // before a transaction is given to the queue
	fpCommitted = failpoint.New("capture/committed") // it is on disk; nothing was freed yet
	fpFreed     = failpoint.New("capture/freed")     // journal slots are free; nothing was punched yet
)

func (c *Capture) dirtyFile(f *file) {
	if !f.dirty {
		f.dirty = true
		c.dirtyFiles = append(c.dirtyFiles, f)
	}
}

// moveTo moves the position of f. It goes with what is cut, record by record, so that
// whatever a transaction ends with, its position is that of its last record.
func (c *Capture) moveTo(f *file, pos int64) {
	f.pos = pos
	c.dirtyFile(f)
}

func (c *Capture) dirtyWriter(w *writer) {
	if !w.dirty {
		w.dirty = true
		c.dirtyWriters = append(c.dirtyWriters, w)
	}
}

func (c *Capture) dirtyPath(p *path) {
	if !p.dirty {
		p.dirty = true
		c.dirtyPaths = append(c.dirtyPaths, p)
	}
}

// isDirty reports whether a transaction would have anything in it.
func (c *Capture) isDirty() bool {
	return c.filled() || len(c.entries) > 0 || c.stateDirty()
}

func (c *Capture) stateDirty() bool {
	return len(c.dirtyFiles) > 0 || len(c.dirtyWriters) > 0 || len(c.dirtyPaths) > 0 || len(c.extra) > 0 || c.usedUp() != c.setSeq
}

// usedUp is the sequence number up to which all entries are used up.
func (c *Capture) usedUp() uint64 {
	seq := c.taken
	low := func(f *file) {
		if f.empty() {
			return
		}
		switch it := &f.q[f.head]; {
		case it.kind == kindKernel: // no entry
			seq = min(seq, it.seq)
		case it.seq > 0:
			seq = min(seq, it.seq-1)
		}
	}
	for i := c.readyHead; i < len(c.ready); i++ {
		low(c.ready[i])
	}
	for _, f := range c.frozen {
		low(f)
	}
	return seq
}

// settle is what may be given back once a transaction is on disk.
type settle struct {
	file *file
	pos  int64
	gen  uint64
}

// commit is a transaction on its way.
type commit struct {
	seq    uint64 // of the journal
	bytes  int64
	settle []settle
	err    error
}

// submit gives the queue one transaction with all batches and all state that changed.
// It waits while too much is in flight and while the queue is full. On an error
// nothing of it happened.
func (c *Capture) submit(ctx context.Context, sync bool) error {
	c.sealAll()
	t := &queue.Txn{Entries: c.entries, Sync: sync}
	cm := &commit{}
	t.Set = c.state(cm)
	for i := range t.Entries {
		cm.bytes += int64(len(t.Entries[i].Batch.Data))
	}
	for i := range t.Set {
		cm.bytes += int64(len(t.Set[i].Value))
	}
	if err := c.awaitRoom(ctx, cm.bytes); err != nil {
		return err
	}
	if err := fpSeal.Inject(); err != nil {
		return fmt.Errorf("submit a batch: %w", err)
	}
	t.Done = func(err error) { c.done(cm, err) }
	c.mu.Lock()
	if c.inFlight == 0 {
		c.pace.begin(time.Now())
	}
	c.inFlight += cm.bytes
	c.submitted++
	c.mu.Unlock()
	if err := c.give(ctx, t); err != nil {
		c.mu.Lock()
		c.inFlight -= cm.bytes
		c.submitted--
		c.mu.Unlock()
		return err
	}
	c.n.commits.Add(1)
	for i := range c.entries {
		c.n.batches.Add(1)
		c.n.batchBytes.Add(uint64(len(c.entries[i].Batch.Data)))
	}
	c.entries = nil
	c.publish()
	return nil
}

// give submits t, again and again while a queue that does not block is full.
func (c *Capture) give(ctx context.Context, t *queue.Txn) error {
	for {
		err := c.giveOnce(ctx, t)
		switch {
		case err == nil:
			return nil
		case errors.Is(err, errHurry):
			continue
		case !errors.Is(err, queue.ErrFull) || c.collecting:
			return fmt.Errorf("submit a batch to the queue: %w", err)
		}
		c.refuse(err)
		timer := time.NewTimer(c.o.FullRetry)
		select {
		case <-timer.C:
		case <-c.wake: // perhaps somebody who does not wait for room
			c.again = true
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		}
		timer.Stop()
	}
}

var errHurry = errors.New("somebody does not wait for room")

// giveOnce submits t, beyond the queue's limit where that is asked for: at a start, since
// those who make room, or need the mount, wait for the start; and for a request that says
// so. Such a request ends the wait of a submit that is waiting for room.
func (c *Capture) giveOnce(ctx context.Context, t *queue.Txn) error {
	c.mu.Lock()
	t.Beyond = !c.recovered || c.urgent()
	if t.Beyond {
		c.mu.Unlock()
		_, err := c.o.Queue.Submit(ctx, t)
		return err
	}
	wait, hurry := context.WithCancel(ctx)
	defer hurry()
	c.hurry = hurry
	c.mu.Unlock()
	_, err := c.o.Queue.Submit(wait, t)
	c.mu.Lock()
	c.hurry = nil
	c.mu.Unlock()
	if err != nil && wait.Err() != nil && ctx.Err() == nil {
		return errHurry
	}
	return err
}

// state collects what changed since the last transaction.
func (c *Capture) state(cm *commit) []kv {
	set := c.extra
	c.extra = nil
	if seq := c.usedUp(); seq != c.setSeq {
		c.setSeq = seq
		set = append(set, kv{Key: keyJournal, Value: appendSeq(nil, seq)})
	}
	cm.seq = c.setSeq
	for _, f := range c.dirtyFiles {
		f.dirty = false
		if f.src != nil {
			set = append(set, kv{Key: f.key, Value: f.appendSource(nil)})
			continue
		}
		set = append(set, kv{Key: f.key, Value: appendPos(nil, f)})
		cm.settle = append(cm.settle, settle{f, f.pos, f.gen})
	}
	for _, w := range c.dirtyWriters {
		set = w.save(set)
	}
	for _, p := range c.dirtyPaths {
		p.dirty = false
		v := kv{Key: prefixTail + p.name}
		if p.tail.mark != 0 {
			v.Value = p.tail.append(nil)
		}
		set = append(set, v)
	}
	c.dirtyFiles, c.dirtyWriters, c.dirtyPaths = c.dirtyFiles[:0], c.dirtyWriters[:0], c.dirtyPaths[:0]
	return set
}

// awaitRoom waits until n more bytes may be in flight, or nothing is.
func (c *Capture) awaitRoom(ctx context.Context, n int64) error {
	for {
		c.mu.Lock()
		ok := c.inFlight == 0 || c.inFlight+n <= c.pace.limit(c.o.InFlight)
		err := c.err
		c.mu.Unlock()
		if err != nil {
			return err
		}
		if ok {
			return nil
		}
		select {
		case <-c.wake:
			c.again = true
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// done is called by the queue's committer.
func (c *Capture) done(cm *commit, err error) {
	cm.err = err
	c.mu.Lock()
	c.inFlight -= cm.bytes
	c.pace.done(cm.bytes, time.Now())
	c.committed++
	if err != nil && c.lost == nil {
		c.lost = fmt.Errorf("commit a batch: %w", err)
		if c.err == nil {
			c.err = c.lost
		}
	}
	c.finished = append(c.finished, cm)
	kept := c.waiters[:0]
	for _, w := range c.waiters {
		if w.txn <= c.committed {
			w.r.answer(c.lost) // whatever else failed: it is on disk, or not
		} else {
			kept = append(kept, w)
		}
	}
	clear(c.waiters[len(kept):])
	c.waiters = kept
	c.mu.Unlock()
	poke(c.wake)
	poke(c.complete)
}

// completer frees what committed transactions no longer need, until ctx ends.
func (c *Capture) completer(ctx context.Context) {
	for {
		c.mu.Lock()
		list := c.finished
		c.finished = nil
		c.mu.Unlock()
		for _, cm := range list {
			if cm.err != nil {
				return
			}
		}
		if len(list) > 0 {
			if err := c.free(list); err != nil {
				c.fail(err)
				return
			}
			continue
		}
		select {
		case <-c.complete:
		case <-ctx.Done():
			return
		}
	}
}

// free gives back what the transactions of list made superfluous.
func (c *Capture) free(list []*commit) error {
	if err := fpCommitted.Inject(); err != nil {
		return fmt.Errorf("after a commit: %w", err)
	}
	c.o.Store.Committed(list[len(list)-1].seq)
	if err := fpFreed.Inject(); err != nil {
		return fmt.Errorf("after freeing the journal: %w", err)
	}
	c.settleMu.Lock()
	for _, cm := range list {
		for _, s := range cm.settle {
			if s.gen == s.file.gen {
				c.o.Store.Punch(s.file.number, s.pos)
				c.o.Store.Settled(s.file.number, s.pos)
			}
		}
	}
	c.settleMu.Unlock()
	gone := c.o.Store.TakeGone()
	c.mu.Lock()
	c.gone = append(c.gone, gone...)
	c.freed += uint64(len(list))
	c.mu.Unlock()
	if len(gone) > 0 || !c.recovered {
		poke(c.wake)
	}
	return nil
}

// forgetGone drops the state of files that were removed.
func (c *Capture) forgetGone() {
	c.mu.Lock()
	gone := c.gone
	c.gone = nil
	c.mu.Unlock()
	for _, n := range gone {
		f := c.files[n]
		if f != nil && !c.forgettable(f) {
			c.mu.Lock()
			c.gone = append(c.gone, n)
			c.mu.Unlock()
			continue
		}
		c.forgetFile(n, f)
	}
}

// forgettable reports whether nothing of a removed file is still to be done.
func (c *Capture) forgettable(f *file) bool {
	if !f.empty() || f.dirty {
		return false
	}
	for _, w := range f.writers {
		if w.open() || w.dirty {
			return false
		}
	}
	return true
}

func (c *Capture) forgetFile(n spool.Number, f *file) {
	if f != nil {
		if f.finished != 0 {
			c.extra = append(c.extra, kv{Key: doneKey(n)})
		}
		delete(c.files, n)
		if c.lastFile == f {
			c.lastFile = nil
		}
		p := f.path
		f.setPath(nil)
		if p != nil && p.files == 0 && p.tail.mark != 0 { // nobody is left who was open then
			p.tail = tail{}
			c.dirtyPath(p)
		}
		c.sweepPaths()
	}
	c.extra = append(c.extra, kv{Key: posKey(n)})
}
