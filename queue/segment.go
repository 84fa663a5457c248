package queue

import (
	"errors"
	"fmt"
	"os"
	"runtime/debug"
	"sync"
	"time"

	"go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"
	"golang.org/x/sys/unix"
)

// segment is one segment file. Only the newest is written, through bbolt; the others
// are read with pageFile. Fields are guarded by Queue.mu unless they say otherwise.
type segment struct {
	num         uint64
	path        string
	first, last uint64 // seqs it was given; last < first: none
	total       tally
	passed      tally // of what every cursor acked or lost
	ids         idRuns
	damaged     bool  // something of it could not be read
	unread      error // it cannot be read for now, for that
	dirty       bool  // the stored record is behind
	stored      tally // passed, as the record has it: that goes with the cursors'

	io    sync.RWMutex // held to read, and locked to change the three below
	db    *bbolt.DB    // nil unless it is the active one
	pages *pageFile    // opened at the first read
	root  *subBucket   // bucket of batches of a closed segment
	cache *blockCache

	// Committer only, active segment only.
	blocks []blockSpan // ascending; Queue.mu
	file   *os.File    // bbolt's, which closes it
	high   int64       // end of what bbolt has used
	born   int64       // that, when all it held was the state
	alloc  int64       // end of what the file system has promised
	stuck  bool        // bbolt panicked in a commit and holds its lock: Close would wait for ever
}

const (
	segmentExt = ".seg"
	corruptExt = ".corrupt"
	tempExt    = ".tmp"
	allocStep  = 16 << 20

	// segmentPage is bbolt's page size. With 4 KiB the free list costs twice as much for
	// a large batch; a commit of one line writes about 7 pages, so 16 KiB would send a
	// quiet host's disk 115 KB for it instead of 57, without a gain that can be measured.
	segmentPage = 8 << 10

	slackBytes = 512 << 10 // promised beyond every commit, so that acks fit on a full disk
	boltWait   = 5 * time.Second
)

func segmentName(num uint64) string { return fmt.Sprintf("%016x%s", num, segmentExt) }

func (s *segment) encodeRecord() []byte {
	damaged := uint64(0)
	if s.damaged {
		damaged = 1
	}
	return appendFields(nil, s.first, s.last, damaged,
		s.total.Batches, s.total.Records, s.total.Payload, s.total.Bytes,
		s.stored.Batches, s.stored.Records, s.stored.Payload, s.stored.Bytes)
}

func (s *segment) parseRecord(b []byte) error {
	var damaged uint64
	_, err := readFields(b, &s.first, &s.last, &damaged,
		&s.total.Batches, &s.total.Records, &s.total.Payload, &s.total.Bytes,
		&s.passed.Batches, &s.passed.Records, &s.passed.Payload, &s.passed.Bytes)
	s.damaged, s.stored = damaged != 0, s.passed
	return err
}

// count is how many seqs it was given.
func (s *segment) count() uint64 { return s.last + 1 - s.first }

func (s *segment) drained() bool { return s.passed.Batches >= s.count() }

// guard runs fn, which uses bbolt, and makes an error of a panic and of a fault in the
// mapped file (a damaged structure, a file that was cut, an I/O error on the disk).
func guard(path string, fn func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("%w: %s: bbolt panicked: %v", errDamaged, path, r)
		}
	}()
	return fn()
}

// createSegment makes the file of s under a temporary name.
func (q *Queue) createSegment(s *segment, need int64) error {
	s.path = q.segmentPath(s.num)
	temp := s.path + tempExt
	if err := os.Remove(temp); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove what an earlier start left: %w", err)
	}
	return guard(temp, func() error {
		db, err := bbolt.Open(temp, 0o600, &bbolt.Options{
			Timeout:        boltWait,
			PageSize:       segmentPage,
			NoFreelistSync: true,
			FreelistType:   bbolt.FreelistMapType,
			NoGrowSync:     true, // growBy allocates the space itself
			OpenFile: func(name string, flag int, mode os.FileMode) (f *os.File, err error) {
				f, err = os.OpenFile(name, flag, mode)
				s.file = f
				return f, err
			},
			InitialMmapSize: int(q.o.SegmentBytes + q.o.SegmentBytes/2 + 4*q.o.PendingBytes + 64<<20),
		})
		if err != nil {
			return fmt.Errorf("create segment %s: %w", temp, err)
		}
		s.db = db
		st, err := os.Stat(temp)
		if err != nil {
			return fmt.Errorf("stat segment: %w", err)
		}
		s.high = st.Size()
		return s.growBy(need, slackBytes)
	})
}

// growBy has the file system promise need bytes beyond what is used, and slack for the
// acks of a full disk. A file system that cannot promise (EOPNOTSUPP) is let be.
func (s *segment) growBy(need, slack int64) error {
	want := s.high + need + slack
	if want <= s.alloc {
		return nil
	}
	step := min(max(want/4, 1<<20), allocStep)
	exact := want
	want = (want + step - 1) / step * step
	err := s.promise(want)
	if isFull(err) { // a little less may fit
		want = exact
		err = s.promise(want)
	}
	if err != nil {
		return err
	}
	s.alloc = want
	return nil
}

// promise has the file system promise the first n bytes of the file.
func (s *segment) promise(n int64) error {
	err := unix.Fallocate(int(s.file.Fd()), 0, 0, n)
	if err != nil && !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.ENOSYS) {
		return fmt.Errorf("allocate %d bytes for %s: %w", n, s.path, err)
	}
	return nil
}

// change is what one bbolt transaction does to the active segment.
type change struct {
	entries []*memItem
	deletes []uint64          // blocks by their first seq
	puts    map[string][]byte // state values, nil deletes
	whole   bool              // a new segment: write the format and all of the state
}

// write commits c. st is brought to what is then on disk; after an error it and the
// segment are of no more use.
func (q *Queue) write(s *segment, c *change, st *stored) error {
	s.stuck = true
	return guard(s.path, func() error {
		err := q.transact(s, c, st)
		s.stuck = false
		return err
	})
}

func (q *Queue) transact(s *segment, c *change, st *stored) error {
	tx, err := s.db.Begin(true)
	if err != nil {
		return fmt.Errorf("begin a commit in %s: %w", s.path, err)
	}
	if err := q.fill(tx, s, c, st); err != nil {
		return errors.Join(err, tx.Rollback())
	}
	if err := fpCommitBefore.Inject(); err != nil {
		return errors.Join(err, tx.Rollback())
	}
	if err := c.commit(tx, s.file); err != nil {
		return fmt.Errorf("commit to %s: %w", s.path, err)
	}
	if err := fpCommitAfter.Inject(); err != nil {
		return err
	}
	return s.db.View(func(tx *bbolt.Tx) error { s.high = tx.Size(); return nil })
}

func (c *change) commit(tx *bbolt.Tx, f *os.File) error {
	var size int64
	for _, it := range c.entries {
		size += it.size
	}
	defer startWriteback(f, size)()
	return tx.Commit()
}

func (q *Queue) fill(tx *bbolt.Tx, s *segment, c *change, st *stored) error {
	if c.whole {
		if err := q.fillFormat(tx, s); err != nil {
			return err
		}
	}
	b := tx.Bucket(bucketBatches)
	b.FillPercent = 0.9
	for _, seq := range c.deletes {
		if err := b.DeleteBucket(seqKey(seq)); err != nil && !errors.Is(err, berrors.ErrBucketNotFound) {
			return fmt.Errorf("delete block %d: %w", seq, err)
		}
	}
	q.bufs.used = 0
	for _, items := range splitBlocks(c.entries) {
		heads, data := q.bufs.encodeBlock(items)
		sub, err := b.CreateBucket(seqKey(items[0].seq))
		if err == nil {
			err = sub.Put(keyData, data)
		}
		if err == nil {
			err = sub.Put(keyHead, heads)
		}
		if err != nil {
			return fmt.Errorf("store entries from %d on: %w", items[0].seq, err)
		}
	}
	return fillState(tx.Bucket(bucketState), c, st)
}

func (q *Queue) fillFormat(tx *bbolt.Tx, s *segment) error {
	m, err := tx.CreateBucket(bucketMeta)
	if err != nil {
		return fmt.Errorf("create bucket: %w", err)
	}
	if err := m.Put(keyFormat, encodeValue(string(keyFormat), appendFormat(s.num, q.node))); err != nil {
		return fmt.Errorf("store format: %w", err)
	}
	for _, name := range [][]byte{bucketBatches, bucketState} {
		if _, err := tx.CreateBucket(name); err != nil {
			return fmt.Errorf("create bucket: %w", err)
		}
	}
	return nil
}

func fillState(b *bbolt.Bucket, c *change, st *stored) error {
	put := func(k string, enc []byte) error {
		if err := b.Put([]byte(k), enc); err != nil {
			return fmt.Errorf("store state %q: %w", k, err)
		}
		return nil
	}
	for k, v := range c.puts {
		if v == nil {
			st.drop(k)
			if err := b.Delete([]byte(k)); err != nil {
				return fmt.Errorf("delete state %q: %w", k, err)
			}
			continue
		}
		if enc := st.put(k, v); !c.whole {
			if err := put(k, enc); err != nil {
				return err
			}
		}
	}
	if c.whole {
		for k, enc := range st.vals {
			if err := put(k, enc); err != nil {
				return err
			}
		}
	}
	st.commit++
	if err := b.SetSequence(st.commit); err != nil {
		return fmt.Errorf("number the commit: %w", err)
	}
	return put(keySum, encodeValue(keySum, st.sumValue()))
}

// read returns the entry at seq. head and data are checked with their CRCs. found is
// false where there is none. Where the head was readable and the data was not, the head
// is returned beside the error; else its seq is 0.
func (s *segment) read(seq uint64, headOnly bool) (h head, found bool, err error) {
	if err := s.openPages(); err != nil {
		return h, false, err
	}
	s.io.RLock()
	defer s.io.RUnlock()
	if s.db == nil {
		if s.root == nil { // closed in between
			return h, false, errReopen
		}
		return s.lookup(*s.root, seq, headOnly)
	}
	err = guard(s.path, func() error {
		return s.db.View(func(tx *bbolt.Tx) error { // pins the pages while they are read
			b := subBucket{p: s.pages, high: uint64(tx.Size() / s.pages.pageSize)}
			if b.root = uint64(tx.Bucket(bucketBatches).Root()); b.root == 0 {
				return nil
			}
			s.pages.grown(tx.Size())
			var err error
			h, found, err = s.lookup(b, seq, headOnly)
			return err
		})
	})
	return h, found, err
}

// lookup reads seq from its block.
func (s *segment) lookup(b subBucket, seq uint64, headOnly bool) (head, bool, error) {
	bl := s.cache.find(s.num, seq)
	if bl == nil {
		var err error
		if bl, err = b.findBlock(seq); err != nil || bl == nil {
			return head{}, false, err
		}
		s.cache.put(s.num, bl)
	}
	return bl.entry(seq, headOnly)
}

var errReopen = errors.New("segment is being closed")

func (s *segment) openPages() error {
	s.io.Lock()
	defer s.io.Unlock()
	if s.pages == nil {
		p, err := openPages(s.path)
		if err != nil {
			return err
		}
		s.pages = p
	}
	if s.db == nil && s.root == nil {
		b, err := s.pages.bucket(s.pages.metas[0], bucketBatches)
		if err != nil {
			return err
		}
		s.root = &b
	}
	return nil
}

// close ends writing (if it was active) and forgets the open files.
func (s *segment) close() (err error) {
	s.io.Lock()
	defer s.io.Unlock()
	if s.db != nil {
		if !s.stuck {
			err = guard(s.path, s.db.Close)
		}
		s.db = nil
	}
	if s.pages != nil {
		err = errors.Join(err, s.pages.Close())
		s.pages, s.root = nil, nil
		s.cache.drop(s.num)
	}
	return err
}
