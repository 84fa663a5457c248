package queue

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"syscall"
	"time"
)

// encodeAcks puts what changed of cursors, losses and segments into puts. It returns the
// closed segments that nobody needs any more. The caller holds mu.
func (q *Queue) encodeAcks(puts map[string][]byte) (drained []*segment) {
	q.ackSince = time.Time{}
	for _, s := range q.segs[:len(q.segs)-1] {
		switch {
		case s.drained():
			// What is left of its totals could not be read: now it can be counted.
			if rest := s.total.minus(s.passed); rest.Records+rest.Payload+rest.Bytes > 0 {
				rest.Batches = 0
				q.live -= int64(rest.Bytes)
				q.lose(LostCorrupt, rest)
				q.ackSince = time.Time{}
			}
			s.passed = s.total
			puts[segmentKey(classSegment, s.num)] = nil
			puts[segmentKey(classIDs, s.num)] = nil
			drained = append(drained, s)
		case s.dirty:
			s.stored = s.passed
			puts[segmentKey(classSegment, s.num)] = s.encodeRecord()
			s.dirty = false
		}
	}
	q.active().stored = q.active().passed
	for _, c := range q.stayingAndLeaving() {
		if c.dirty {
			puts[string(classCursor)+c.name] = c.encode()
			c.dirty = false
		}
	}
	for _, c := range q.retired {
		puts[string(classCursor)+c.name] = nil
	}
	q.retired = nil
	puts[keyLosses] = q.losses.encode()
	q.lost.encode(puts)
	return drained
}

// publish makes what was committed visible and calls the Dones of g.
func (c *committer) publish(g *group, newest uint64) {
	q := c.q
	q.commits.Add(1)
	q.mu.Lock()
	q.committed = newest
	q.mem.evict(q.o.MemoryBytes, q.committed)
	if g != nil {
		q.taking = 0
		q.lastWork = time.Now()
		q.moreRoom()
		for _, cur := range q.cursors {
			cur.signal()
		}
	}
	q.mu.Unlock()
	if g != nil {
		c.held = nil
		c.finish(g, nil)
	}
}

func (c *committer) finish(g *group, err error) {
	for _, t := range g.txns {
		if t.Done != nil {
			t.Done(err)
		}
	}
	if len(g.items) == 0 && err == nil {
		c.q.mu.Lock()
		c.q.taking = 0
		c.q.mu.Unlock()
	}
}

// fail stops the queue for ever: nothing is tried again, since after a failed fdatasync
// the next one tells nothing.
func (c *committer) fail(err error) {
	q := c.q
	q.mu.Lock()
	q.err = fmt.Errorf("%w: %w", ErrFailed, err)
	g := q.pending
	q.pending = group{}
	close(q.failed)
	q.moreRoom()
	for _, cur := range q.cursors {
		cur.signal()
	}
	q.mu.Unlock()
	q.log.Error("the queue stops: a commit failed; a restart reads what the disk has", slog.String("dir", q.dir), slog.Any("error", err))
	if c.held != nil {
		c.finish(c.held, q.err)
	}
	c.finish(&g, q.err)
}

// remove gives the files of drained segments back, after the commit that forgot them.
func (c *committer) remove(drained []*segment) error {
	if len(drained) == 0 {
		return nil
	}
	q := c.q
	gone := make(map[*segment]bool, len(drained))
	for _, s := range drained {
		gone[s] = true
	}
	q.mu.Lock()
	keep := q.segs[:0]
	for _, s := range q.segs {
		if !gone[s] {
			keep = append(keep, s)
			continue
		}
		for _, cur := range q.stayingAndLeaving() {
			delete(cur.parts, s.num)
		}
	}
	clear(q.segs[len(keep):])
	q.segs = keep
	q.mu.Unlock()
	for _, s := range drained {
		if err := s.close(); err != nil {
			q.log.Warn("a drained segment could not be closed", slog.String("segment", s.path), slog.Any("error", err))
		}
		if err := fpUnlink.Inject(); err != nil {
			return err
		}
		if err := q.discard(s); err != nil {
			q.log.Warn("a drained segment could not be removed; the next start tries again", slog.String("segment", s.path), slog.Any("error", err))
		}
	}
	c.retryAt = time.Time{} // there may be room now
	q.mu.Lock()
	full := q.diskFull
	q.mu.Unlock()
	if !full { // else when what waits has got its room
		q.remakeReserve()
	}
	return nil
}

// discard removes the file of a drained segment, or sets a damaged one aside.
func (q *Queue) discard(s *segment) error {
	var err error
	if s.damaged {
		q.log.Warn("a damaged segment is set aside", slog.String("file", s.path+corruptExt))
		err = os.Rename(s.path, s.path+corruptExt)
	} else {
		err = os.Remove(s.path)
	}
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// full notes that the disk has no room for the held group.
func (c *committer) full(err error) {
	q := c.q
	c.retryAt = time.Now().Add(retryEvery)
	q.mu.Lock()
	first := !q.diskFull
	q.diskFull = true
	if first {
		q.moreRoom() // who waits must look at the policy again
	}
	q.mu.Unlock()
	if first {
		q.log.Error("the disk is full: the queue takes nothing until there is room, and goes on draining", slog.String("dir", q.dir), slog.Any("error", err))
	}
}

func (c *committer) roomAgain() {
	q := c.q
	q.mu.Lock()
	was := q.diskFull
	q.diskFull = false
	q.mu.Unlock()
	if was {
		q.log.Info("the disk has room again", slog.String("dir", q.dir))
		q.makeReserve()
	}
}

func isFull(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}
