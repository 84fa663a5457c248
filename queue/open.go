package queue

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"ftfuse/internal/batch"
	"ftfuse/internal/flock"
)

// Open opens the queue in dir, or makes it. It takes the lock of dir, drops what the page
// cache has of the segments, reads the newest state from the disk and begins a new
// segment: a file of an earlier run is never written again. What only cursors needed that are
// configured no more is dropped behind its back, as with SetCursors.
func Open(dir string, o Options) (*Queue, error) {
	o, err := o.withDefaults()
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the queue's directory: %w", err)
	}
	lock, err := lockDir(dir)
	if err != nil {
		return nil, err
	}
	q := newQueue(dir, o, lock)
	if err := q.load(); err != nil {
		q.closeFiles()
		return nil, fmt.Errorf("open queue %s: %w", dir, err)
	}
	q.changing <- struct{}{}
	go (&committer{q: q}).run()
	go func() {
		q.settleLeaving()
		<-q.changing
	}()
	if q.o.OnLoss != nil {
		go q.tellLosses()
	} else {
		close(q.tellDone)
	}
	return q, nil
}

func newQueue(dir string, o Options, lock *flock.File) *Queue {
	return &Queue{
		dir: dir, o: o, log: o.Logger, lock: lock,
		cache: &blockCache{}, damaged: newDamaged(), replacing: map[uint64]bool{}, submit: make(chan struct{}, 1), changing: make(chan struct{}, 1), room: make(chan struct{}),
		kick: make(chan struct{}, 1), stop: make(chan struct{}), done: make(chan struct{}), tellKick: make(chan struct{}, 1), tellDone: make(chan struct{}), failed: make(chan struct{}),
	}
}

func (q *Queue) load() error {
	nums, records, err := q.loadState()
	if err != nil {
		return err
	}
	q.loadCursors(records)
	if err := q.begin(nums); err != nil {
		return err
	}
	if q.o.Begin != nil {
		q.o.Begin(q)
	}
	if err := q.settleWants(); err != nil {
		return err
	}
	if err := q.beginAgain(q.unbegun()); err != nil {
		return err
	}
	q.remakeReserve()
	return nil
}

// loadState reads the newest state, all but the cursors, which it returns.
func (q *Queue) loadState() ([]uint64, map[string]cursorRecord, error) {
	nums, err := segmentNumbers(q.dir)
	if err != nil {
		return nil, nil, err
	}
	for _, n := range nums {
		if err := settle(q.segmentPath(n)); err != nil {
			return nil, nil, err
		}
	}
	l, st, err := q.newest(nums)
	if err != nil {
		return nil, nil, err
	}
	q.st, q.node = st, l.root.node
	q.kv, q.delivered, q.losses, q.lost = l.kv, l.delivered, l.losses, l.lost
	q.committed, q.nextSeq = l.root.newest, l.root.newest+1
	q.segs = l.segs
	for _, s := range q.segs {
		s.cache = q.cache
		q.live += int64(s.total.minus(s.passed).Bytes)
	}
	return nums, l.cursors, nil
}

func (q *Queue) segmentPath(num uint64) string { return filepath.Join(q.dir, segmentName(num)) }

// newest reads the newest state, or makes the first one.
func (q *Queue) newest(nums []uint64) (*loaded, *stored, error) {
	if len(nums) == 0 {
		if err := q.neverUsed(); err != nil {
			return nil, nil, err
		}
		l := &loaded{kv: map[string][]byte{}, delivered: NewDeliveredSet(), losses: losses{}, lost: newLostLanes()}
		if _, err := rand.Read(l.root.node[:]); err != nil {
			return nil, nil, fmt.Errorf("draw a node id: %w", err)
		}
		return l, newStored(), nil
	}
	path := q.segmentPath(nums[len(nums)-1])
	p, err := openPages(path)
	if err != nil {
		return nil, nil, newestDamaged(err)
	}
	defer func() { _ = p.Close() }()
	if err := p.checkFormat(p.metas[0], nums[len(nums)-1]); err != nil {
		return nil, nil, newestDamaged(err)
	}
	// The other meta page is the commit before this one or, if it cannot be read, perhaps
	// the one after: then what was acked may be missing here.
	if len(p.metas) < 2 {
		return nil, nil, newestDamaged(p.bad(0, "one of the two meta pages is damaged"))
	}
	st, err := p.readStored(p.metas[0])
	if err != nil {
		return nil, nil, newestDamaged(err)
	}
	l, err := st.decode()
	if err != nil {
		return nil, nil, newestDamaged(err)
	}
	return l, st, nil
}

func newestDamaged(err error) error {
	if errors.Is(err, ErrVersion) || errors.Is(err, os.ErrPermission) || passes(err) {
		return err
	}
	return fmt.Errorf("%w: %w", ErrNewestDamaged, err)
}

// begin closes the account of the newest segment and makes a new one.
func (q *Queue) begin(nums []uint64) error {
	next := uint64(1)
	puts := map[string][]byte{keyRoot: rootRecord{q.node, q.committed}.encode()}
	have := map[uint64]bool{}
	for _, n := range nums {
		have[n] = true
		next = n + 1
	}
	known := map[uint64]bool{}
	damaged := map[uint64]bool{}
	keep := q.segs[:0]
	for _, s := range q.segs {
		s.path = q.segmentPath(s.num)
		damaged[s.num] = s.damaged
		if s.drained() && s.passed == s.total {
			puts[segmentKey(classSegment, s.num)] = nil
			puts[segmentKey(classIDs, s.num)] = nil
			continue
		}
		keep = append(keep, s)
		known[s.num] = true
		if !have[s.num] && !s.drained() {
			s.damaged = true
			q.log.Error("a segment with batches is missing; they will be counted as lost", slog.String("segment", s.path))
		}
	}
	q.segs = keep
	if len(q.segs) > 0 {
		last := q.segs[len(q.segs)-1]
		if len(last.ids.runs) == 0 {
			var err error
			if last.ids, err = q.scanIDs(last); err != nil {
				return err
			}
		}
		puts[segmentKey(classIDs, last.num)] = last.ids.encode()
	}
	for _, c := range q.cursors {
		c.dirty = true
	}
	s := &segment{num: next, first: q.nextSeq, last: q.committed, cache: q.cache}
	if err := q.bear(s, puts, q.st, true); err != nil {
		return err
	}
	q.segs = append(q.segs, s)
	for _, n := range nums {
		if !known[n] { // drained, and a kill came before it was removed
			if err := q.discard(&segment{path: q.segmentPath(n), damaged: damaged[n]}); err != nil {
				return fmt.Errorf("remove a drained segment: %w", err)
			}
		}
	}
	q.ackLater()
	return q.markUsed()
}

// scanIDs reads which ids stand in the segment that was the active one. Those that are damaged
// are left out: they are lost without a name when they are read. An error is no damage.
func (q *Queue) scanIDs(s *segment) (ids idRuns, err error) {
	damage := func(err error) error {
		q.log.Error("ids in a segment cannot be read; what of it is lost is counted without them", slog.String("segment", s.path), slog.Any("error", err))
		return nil
	}
	p, err := openPages(s.path)
	if isDamage(err) {
		return ids, damage(err)
	} else if err != nil {
		return ids, err
	}
	defer func() { _ = p.Close() }()
	b, err := p.bucket(p.metas[0], bucketBatches)
	if err != nil {
		return ids, errors.Join(damage(err), p.notRead())
	}
	_ = b.walk(func(it pageItem) error {
		bl, err := readBlock(it, b.high)
		if err != nil {
			return damage(err)
		}
		for _, h := range bl.heads {
			if h.seq != 0 {
				ids.add(h.seq, h.e.Batch.ID)
			}
		}
		return nil
	}, damage)
	return ids, p.notRead()
}

// lockDir takes the lock of dir; it holds until the file is closed.
func lockDir(dir string) (*flock.File, error) {
	path := filepath.Join(dir, "lock")
	f, err := flock.Open(path, 0o600)
	if errors.Is(err, flock.ErrHeld) {
		return nil, fmt.Errorf("lock %s: %w", path, ErrLocked)
	}
	if err != nil {
		return nil, fmt.Errorf("take the queue: %w", err)
	}
	return f, nil
}

// neverUsed refuses a directory whose segments are gone: to begin anew there would
// forget the delivered set.
func (q *Queue) neverUsed() error {
	b, err := os.ReadFile(q.lock.Name())
	if err != nil {
		return fmt.Errorf("read the queue's lock: %w", err)
	}
	if len(b) > 0 {
		return fmt.Errorf("%w: no segment is left of the queue of node %s", ErrNewestDamaged, strings.TrimSpace(string(b)))
	}
	return nil
}

// markUsed writes the node id into the lock file, once.
func (q *Queue) markUsed() error {
	st, err := q.lock.Stat()
	if err == nil && st.Size() == 0 {
		if _, err = q.lock.WriteAt([]byte(q.node.String()+"\n"), 0); err == nil {
			err = q.lock.Sync()
		}
	}
	if err != nil {
		return fmt.Errorf("mark the queue as used: %w", err)
	}
	return nil
}

// segmentNumbers lists the segments, ascending, and removes unfinished ones.
func segmentNumbers(dir string) ([]uint64, error) {
	names, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("list segments: %w", err)
	}
	var nums []uint64
	for _, e := range names {
		if strings.HasSuffix(e.Name(), segmentExt+tempExt) {
			if err := os.Remove(filepath.Join(dir, e.Name())); err != nil {
				return nil, fmt.Errorf("remove an unfinished segment: %w", err)
			}
			continue
		}
		base, ok := strings.CutSuffix(e.Name(), segmentExt)
		if n, err := strconv.ParseUint(base, 16, 64); ok && err == nil && e.Name() == segmentName(n) {
			nums = append(nums, n)
		}
	}
	sort.Slice(nums, func(i, j int) bool { return nums[i] < nums[j] })
	return nums, nil
}

// settle has the disk take what a killed process left in the page cache, then drops the
// cache: pages of a write that failed are clean and wrong there (after a failed fsync).
func settle(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("open segment: %w", err)
	}
	err = unix.Fdatasync(int(f.Fd()))
	if err == nil {
		err = unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return fmt.Errorf("sync segment %s and drop it from the page cache: %w", path, err)
	}
	return nil
}

func appendFormat(num uint64, node batch.Node) []byte {
	b := binary.LittleEndian.AppendUint32(nil, formatVersion)
	b = binary.LittleEndian.AppendUint64(b, num)
	return append(b, node[:]...)
}

// checkFormat checks that the file is the segment num in a known format.
func (p *pageFile) checkFormat(m pageMeta, num uint64) error {
	b, err := p.bucket(m, bucketMeta)
	if err != nil {
		return err
	}
	it, ok, err := b.find(keyFormat)
	if err != nil {
		return err
	}
	if !ok {
		return p.bad(0, "no format record")
	}
	raw, err := it.value()
	if err != nil {
		return err
	}
	v, err := decodeValue(string(keyFormat), raw)
	if err != nil {
		return err
	}
	if len(v) < 4 || binary.LittleEndian.Uint32(v) != formatVersion {
		return fmt.Errorf("%w: %s: format % x, this ftfuse reads version %d", ErrVersion, p.f.Name(), v, formatVersion)
	}
	if len(v) < 12 || binary.LittleEndian.Uint64(v[4:]) != num {
		return p.bad(0, "it says it is another segment")
	}
	return nil
}

func (q *Queue) closeFiles() {
	for _, s := range q.segs {
		_ = s.close()
	}
	if q.lock != nil {
		_ = q.lock.Close()
	}
}
