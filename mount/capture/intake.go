package capture

import (
	"ftfuse/mount/spool"
)

// intake moves completed entries from the journal, and what the kernel wrote, to the
// queues of their files, and reports whether there was any.
func (c *Capture) intake() bool {
	c.sizes()
	any := c.entriesIn()
	if len(c.growing) > 0 {
		any = c.takeKernel() || any
	}
	return any
}

func (c *Capture) entriesIn() bool {
	any := false
	for c.queued < c.o.IntakeMax {
		c.in = c.o.Store.Entries(c.in[:0], c.taken+1)
		if len(c.in) == 0 {
			break
		}
		for i := range c.in {
			c.enqueue(&c.in[i])
		}
		c.taken = c.in[len(c.in)-1].Seq
		any = true
		if len(c.in) < cap(c.in) {
			break
		}
	}
	return any
}

// enqueue puts one entry into the queue of its file.
func (c *Capture) enqueue(e *spool.Entry) {
	if e.Kind == spool.Void || e.Kind == spool.Write && e.Len == 0 {
		return
	}
	f := c.lastFile
	if f == nil || f.number != e.File {
		f = c.files[e.File]
		if f == nil {
			if e.Kind != spool.Write && e.Kind != spool.Opened {
				return // nothing of this file waits for an end
			}
			f = c.fileOf(e.File)
		}
		c.lastFile = f
	}
	if e.Seq <= f.seq {
		return // a start: used up before
	}
	it := c.itemOf(e)
	if e.Kind != spool.Write { // a write's flags are the record's, and it has none
		it.flags = uint16(e.Flags)
	}
	if e.Path == "" && f.path != nil { // its name was lost
		it.path = f.path.id
	}
	c.newest = max(c.newest, e.Writer)
	if e.Kind == spool.Release {
		it.off = max(it.off, int64(c.newest))
	}
	if e.Kind != spool.Grown {
		f.setPath(c.pathList[it.path])
	}
	c.noteKernel(f, e)
	f.push(it)
	c.queued++
	c.wait(f)
}

func (c *Capture) itemOf(e *spool.Entry) item {
	return item{
		seq: e.Seq, writer: e.Writer, off: e.Off, n: e.Len, time: e.Time, path: c.pathOf(e.PathID, e.Path).id,
		pid: e.PID, uid: e.UID, gid: e.GID, kind: e.Kind,
	}
}

// fileOf returns the state of file n, new with position 0 if there is none.
func (c *Capture) fileOf(n spool.Number) *file {
	f := c.files[n]
	if f == nil {
		f = &file{number: n, key: posKey(n)}
		c.files[n] = f
	}
	return f
}

// fill cuts what waits, each file's turn being QuantumBytes, until about a batch is
// done or nothing waits. It reports whether there was anything.
func (c *Capture) fill() (bool, error) {
	before := c.readyHead < len(c.ready)
	for budget := int64(c.o.BatchBytes); budget > 0 && c.readyHead < len(c.ready); {
		f := c.ready[c.readyHead]
		quantum := min(c.o.QuantumBytes, budget)
		err := c.cutTurn(f, quantum, allEntries)
		if err != nil {
			return before, err
		}
		budget -= quantum
		c.ready[c.readyHead] = nil
		c.readyHead++
		if f.empty() || f.frozen {
			f.ready = false
		} else {
			c.ready = append(c.ready, f)
		}
		if c.readyHead > 64 && c.readyHead > len(c.ready)/2 {
			c.ready = c.ready[:copy(c.ready, c.ready[c.readyHead:])]
			c.readyHead = 0
		}
	}
	if c.readyHead == len(c.ready) {
		c.ready, c.readyHead = c.ready[:0], 0
	}
	if c.overfull() {
		return before, c.submit(c.ctx, false)
	}
	return before, nil
}
