package queue

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// need estimates the bytes that committing g writes.
func (g *group) need() int64 {
	n := int64(16 * segmentPage) // bbolt's own pages
	if g == nil {
		return n
	}
	for _, it := range g.items {
		n += it.size + 64
	}
	n += int64(len(splitBlocks(g.items))) * 2 * segmentPage
	for k, v := range g.puts {
		n += int64(2*len(k)+2*len(v)) + 64
	}
	return n
}

// room makes sure that the active segment has room for g, and begins a new one where it
// has become too large. It returns ENOSPC where the disk has none.
func (c *committer) room(g *group) error {
	q := c.q
	a := q.active() // only the committer changes which one it is
	need := g.need()
	if g != nil && a.high+need > q.o.SegmentBytes && a.count() > 0 {
		if free := int64(a.db.Stats().FreePageN) * segmentPage; free < 2*need {
			if err := c.rollIfCan(); err != nil {
				return err
			}
			a = q.active()
		}
	}
	if g == nil { // the slack of the last commit is for this
		if err := a.growBy(need, 0); !isFull(err) || !q.dropReserve() {
			return err
		}
		err := a.growBy(need, 0)
		q.makeReserve() // of what is left: the next segment may need it
		return err
	}
	err := a.growBy(need, slackBytes)
	if err == nil {
		c.roomAgain()
	}
	return err
}

// errUnborn is why no new segment was begun, and nothing has changed.
var errUnborn = errors.New("begin a segment")

// waits says whether no segment was begun for want of something that comes back.
func waits(err error) bool { return errors.Is(err, errUnborn) && passes(err) }

// rollIfCan is roll; for want of descriptors, say, the old segment becomes larger instead.
func (c *committer) rollIfCan() error {
	if time.Now().Before(c.unbornAt) {
		return nil
	}
	err := c.roll(false)
	if !waits(err) {
		c.unbornAt = time.Time{}
		return err
	}
	if c.unbornAt.IsZero() {
		c.q.log.Error("the queue cannot begin a segment for now; the last one becomes larger, and it is tried again", "error", err)
	}
	c.unbornAt = time.Now().Add(retryEvery)
	return nil
}

// idle gives back a large drained segment, or leaves a damaged one.
func (c *committer) idle() error {
	err := c.roll(false)
	if isFull(err) || waits(err) { // it can wait
		c.rollAt = time.Now().Add(retryEvery)
		return nil
	}
	return err
}

// rollDrained leaves an active segment that holds nothing any more for a group that the
// full disk has no room for: its pages are free, and perhaps not in one piece where the
// group needs them; its file gives them all back. It reports whether it did.
func (c *committer) rollDrained() (bool, error) {
	q := c.q
	q.mu.Lock()
	a := q.active()
	drained := q.low() == q.committed+1 && a.high-a.born > minReserve
	q.mu.Unlock()
	if !drained {
		return false, nil
	}
	if err := c.roll(true); !isFull(err) && !waits(err) {
		c.retryAt = time.Time{}
		return err == nil, err
	}
	return false, nil
}

// roll begins a new segment with a copy of all state. On ENOSPC nothing has changed; with
// reserve it gives that up first.
func (c *committer) roll(reserve bool) error {
	q := c.q
	q.mu.Lock()
	old := q.active()
	s := &segment{num: old.num + 1, first: q.committed + 1, last: q.committed, cache: q.cache}
	puts := map[string][]byte{segmentKey(classIDs, old.num): old.ids.encode()}
	q.mu.Unlock()

	st := &stored{vals: maps.Clone(q.st.vals), commit: q.st.commit, sum: q.st.sum}
	if err := q.bear(s, puts, st, reserve); err != nil {
		return err
	}
	q.st = st
	q.mu.Lock()
	q.segs = append(q.segs, s)
	q.deletes = nil // they are in a closed segment now, which goes as a whole
	old.dirty = true
	q.ackLater()
	q.mu.Unlock()
	err := old.close() // reads open it anew
	if err != nil {
		return fmt.Errorf("close segment %s: %w", old.path, err)
	}
	return nil
}

// bear makes the segment file of s with the state st changed by puts, under a temporary
// name until it is whole on disk. On ENOSPC it may give up the reserve and try again.
func (q *Queue) bear(s *segment, puts map[string][]byte, st *stored, reserve bool) error {
	puts[segmentKey(classSegment, s.num)] = s.encodeRecord()
	need := int64(256 << 10)
	for _, m := range []map[string][]byte{puts, st.vals} {
		for k, v := range m {
			need += int64(2*(len(k)+len(v)) + 64)
		}
	}
	err := q.createSegment(s, need)
	if isFull(err) && reserve && q.dropReserve() {
		q.abandon(s)
		err = q.createSegment(s, need)
	}
	if err != nil {
		q.abandon(s)
		return fmt.Errorf("%w: %w", errUnborn, err)
	}
	if err := fpRollCreated.Inject(); err != nil {
		return err
	}
	if err := q.write(s, &change{puts: puts, whole: true}, st); err != nil {
		return err
	}
	s.born = s.high
	if err := fpRollCopied.Inject(); err != nil {
		return err
	}
	if err := os.Rename(s.path+tempExt, s.path); err != nil {
		return fmt.Errorf("name the new segment: %w", err)
	}
	if err := syncDir(q.dir); err != nil {
		return err
	}
	return fpRollNamed.Inject()
}

// abandon removes what createSegment made.
func (q *Queue) abandon(s *segment) {
	_ = s.close()
	_ = os.Remove(s.path + tempExt)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("open directory to sync it: %w", err)
	}
	err = d.Sync()
	if cerr := d.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return fmt.Errorf("sync directory %s: %w", dir, err)
	}
	return nil
}

// The reserve is a file whose space a full disk gets back for what draining needs: the
// first segment of a start, and acks. Batches never get it.

func (q *Queue) reservePath() string { return filepath.Join(q.dir, "reserve") }

// makeReserve allocates the reserve, or a smaller one where there is less room.
func (q *Queue) makeReserve() {
	f, err := os.OpenFile(q.reservePath(), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		q.log.Warn("no reserve for a full disk", "error", err)
		return
	}
	for size := q.o.ReserveBytes; ; size -= size / 4 {
		err = unix.Fallocate(int(f.Fd()), 0, 0, size)
		if !isFull(err) || size < minReserve {
			break
		}
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		q.log.Warn("no reserve for a full disk", "file", q.reservePath(), "error", err)
		_ = os.Remove(q.reservePath())
	}
}

// remakeReserve makes the reserve if it was given up.
func (q *Queue) remakeReserve() {
	if _, err := os.Stat(q.reservePath()); err != nil {
		q.makeReserve()
	}
}

// minReserve is too little for the smallest segment.
const minReserve = 1 << 20

// dropReserve gives the reserve to the disk; false where there is none.
func (q *Queue) dropReserve() bool {
	return os.Remove(q.reservePath()) == nil
}
