package queue

import (
	"fmt"
	"time"

	"ftfuse/internal/failpoint"
)

var (
	fpCommitBefore = failpoint.New("queue/commit-before")
	fpCommitAfter  = failpoint.New("queue/commit-after")
	fpRollCreated  = failpoint.New("queue/roll-created")
	fpRollCopied   = failpoint.New("queue/roll-copied")
	fpRollNamed    = failpoint.New("queue/roll-named")
	fpUnlink       = failpoint.New("queue/unlink")
)

const (
	ackEvery   = 500 * time.Millisecond // an ack waits no longer for a commit
	smallGroup = 16 << 10               // bytes of a group that waits less; see groupWait
	retryEvery = 200 * time.Millisecond // how often a full disk is tried again
	ageEvery   = time.Second
)

// committer is the one goroutine that writes. All of its fields are its own.
type committer struct {
	q         *Queue
	held      *group // taken, and waiting for room on the disk
	lastStart time.Time
	lastTook  time.Duration // of the last commit
	retryAt   time.Time
	ageAt     time.Time
	rollAt    time.Time // not before this: the disk was full
	unbornAt  time.Time // no segment is begun before this: it could not be; zero: it could
	ackedAt   time.Time // acks were written
	ackAt     time.Time // acks are not written before this: not even they fit
}

// ackLater notes that acks, losses or a horizon wait for a commit. The caller holds mu.
func (q *Queue) ackLater() {
	if q.ackSince.IsZero() {
		q.ackSince = time.Now()
		q.wakeCommitter()
	}
}

func (c *committer) run() {
	q := c.q
	defer close(q.done)
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		q.mu.Lock()
		wait, ok := c.plan(time.Now())
		closing := q.closed
		q.mu.Unlock()
		if closing && (!ok || wait > 0) {
			c.end()
			return
		}
		if ok && wait <= 0 {
			if err := c.step(); err != nil {
				c.fail(err)
				return
			}
			continue
		}
		if !ok {
			wait = time.Hour
		}
		timer.Reset(wait)
		select {
		case <-q.kick:
		case <-timer.C:
		case <-q.stop:
		}
	}
}

// end calls what is still waiting when the queue is closed: nothing, or what a full
// disk did not take.
func (c *committer) end() {
	q := c.q
	q.mu.Lock()
	g := q.pending
	q.pending = group{}
	q.mu.Unlock()
	err := fmt.Errorf("%w: the disk is full, what was submitted last is not stored", ErrClosed)
	if c.held != nil {
		c.finish(c.held, err)
	}
	c.finish(&g, err)
}

// plan says how long to wait until something is due; false: until a kick. The caller
// holds mu.
func (c *committer) plan(now time.Time) (time.Duration, bool) {
	q := c.q
	due, any := time.Time{}, false
	at := func(t time.Time) {
		if !any || t.Before(due) {
			due, any = t, true
		}
	}
	switch p := &q.pending; {
	case c.held != nil:
		at(c.retryAt)
	case len(p.txns) == 0:
	case p.sync || q.closed || p.bytes >= q.o.CommitBytes:
		at(now)
	default:
		at(c.lastStart.Add(c.groupWait(p.bytes)))
	}
	if !q.ackSince.IsZero() {
		due := now
		switch {
		case q.closed:
		case q.diskFull: // acks give space back
			due = q.ackSince.Add(q.o.CommitEvery)
		default:
			due = q.ackSince.Add(ackEvery)
		}
		if c.ackAt.After(due) && !q.closed {
			due = c.ackAt
		}
		at(due)
	}
	if q.closed {
		if !any {
			return 0, false
		}
		return due.Sub(now), true
	}
	if q.o.MaxAge > 0 && q.low() <= q.committed {
		at(c.ageAt)
	}
	if t, ok := c.rollDue(); ok {
		at(t)
	}
	if !any {
		return 0, false
	}
	return due.Sub(now), true
}

// groupWait is how long after the last commit began a pending group of so many bytes is
// committed. Waiting gathers more for one sync, which pays where there is much; a few lines
// only come later for it. So those wait no longer than leaves the disk idle half of the
// time. (A line of 1,000 a second is at its destination in 6 ms instead of 12, p99 in 9
// instead of 18, with two queues on its way.)
func (c *committer) groupWait(bytes int64) time.Duration {
	if bytes < smallGroup {
		return min(2*c.lastTook, c.q.o.CommitEvery)
	}
	return c.q.o.CommitEvery
}

// rollDue says when the active segment is to be left: at once if it is damaged, and
// after some idle time if it is large and drained. The caller holds mu.
func (c *committer) rollDue() (at time.Time, due bool) {
	q := c.q
	switch a := q.active(); {
	case c.held != nil:
		return at, false
	case a.damaged:
		return c.rollAt, true
	case a.high-a.born > q.o.IdleBytes && q.low() == q.nextSeq:
		at = q.lastWork.Add(q.o.IdleAfter)
		if c.rollAt.After(at) {
			at = c.rollAt
		}
		return at, true
	}
	return at, false
}

// step does what is due: one commit at most.
func (c *committer) step() error {
	q := c.q
	c.lastStart = time.Now()
	q.mu.Lock()
	if q.o.MaxAge > 0 && !c.lastStart.Before(c.ageAt) {
		c.ageAt = c.lastStart.Add(min(ageEvery, max(q.o.MaxAge/4, time.Millisecond)))
		q.expire(c.lastStart)
	}
	if c.held == nil && len(q.pending.txns) > 0 {
		c.held = q.takePending()
	}
	rollAt, idle := c.rollDue()
	idle = idle && !q.closed && !c.lastStart.Before(rollAt)
	acks := !q.ackSince.IsZero() && (q.closed || !c.lastStart.Before(c.ackAt))
	q.mu.Unlock()
	if c.held == nil && !acks && !idle {
		return nil
	}
	if idle {
		return c.idle()
	}
	g := c.held
	if g != nil && g.empty() && !g.acks && !acks {
		c.held = nil
		c.finish(g, nil)
		return nil
	}
	err := c.room(g)
	if g != nil && isFull(err) {
		c.full(err)
		if rolled, err := c.rollDrained(); rolled || err != nil || !acks {
			return err
		}
		g, err = nil, c.room(nil) // acks and deletes still fit
	}
	switch {
	case g == nil && isFull(err): // or not even they: a lost ack is only a repeat
		c.full(err)
		c.postponeAcks()
		return nil
	case err != nil:
		return err
	}
	return c.commit(g)
}

// postponeAcks has acks wait for room; a queue that is being closed gives them up.
func (c *committer) postponeAcks() {
	c.ackAt = c.lastStart.Add(retryEvery)
	c.q.mu.Lock()
	defer c.q.mu.Unlock()
	if c.q.closed {
		c.q.ackSince = time.Time{}
	}
}

func (g *group) empty() bool { return len(g.items) == 0 && len(g.puts) == 0 }

// takePending makes the pending group the one to commit. The caller holds mu.
func (q *Queue) takePending() *group {
	g := q.pending
	q.pending = group{}
	q.taking = g.bytes
	g.puts = make(map[string][]byte, len(g.kv)+2)
	for k, v := range g.kv {
		g.puts[string(classKV)+k] = v
	}
	q.delivered.encode(g.puts)
	return &g
}

// commit writes g (which may be nil) in one transaction, with all acks where they are due.
func (c *committer) commit(g *group) error {
	q := c.q
	q.mu.Lock()
	a := q.active()
	ch := &change{puts: map[string][]byte{}}
	newest := q.committed
	acks := c.acksNow(g)
	if acks {
		ch.deletes, q.deletes = q.deletes, nil // not those of blocks that this commit makes
	}
	if g != nil {
		newest = q.place(a, g, ch)
	} else if c.held == nil && len(q.pending.txns) == 0 {
		q.delivered.encode(ch.puts) // horizons; no Txn is in between
	}
	var drained []*segment
	var told []Loss
	if acks {
		c.ackedAt = time.Now()
		told, q.untold = q.untold, nil
		drained = q.encodeAcks(ch.puts)
	}
	ch.puts[segmentKey(classSegment, a.num)] = a.encodeRecord()
	ch.puts[keyRoot] = rootRecord{q.node, newest}.encode()
	q.mu.Unlock()

	if err := q.write(a, ch, q.st); err != nil {
		return err
	}
	c.lastTook = time.Since(c.lastStart)
	c.publish(g, newest)
	q.tell(told)
	return c.remove(drained)
}

// place puts the entries of g into segment a, and all of g into ch. It returns the newest
// seq. The caller holds mu.
func (q *Queue) place(a *segment, g *group, ch *change) (newest uint64) {
	newest = q.committed
	ch.entries = g.items
	a.addBlocks(g.items)
	for k, v := range g.puts {
		ch.puts[k] = v
	}
	for _, it := range g.items {
		a.total.add(entryTally(&it.e, it.size))
		a.ids.add(it.seq, it.e.Batch.ID)
		newest = it.seq
	}
	a.last = max(a.last, newest)
	q.healNow(g.items)
	q.settleNew(a, g.items)
	return newest
}

// cheapRanges is how many ranges of acks are written with every commit. A cursor whose
// destinations go at different speeds has a range for every batch that one of them took
// before the others; written each time they would be more than the batches.
const cheapRanges = 1024

// acksNow says whether the acks go with the commit of g. Then all that hangs on them does:
// deletes, losses, what segments have passed. The caller holds mu.
func (c *committer) acksNow(g *group) bool {
	q := c.q
	if g == nil || g.acks || g.replaces || g.heals || q.closed || q.diskFull || len(q.retired) > 0 || time.Since(c.ackedAt) >= ackEvery {
		return true
	}
	ranges := 0
	for _, cur := range q.stayingAndLeaving() {
		if cur.dirty {
			ranges += cur.acked.Len()
		}
	}
	return ranges <= q.o.cheapRanges
}
