package queue

import (
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// bbolt's meta, behind the page header: magic, version, page size, flags, root, the root's
// sequence, freelist, high-water mark, transaction, FNV-64a of what is before.
const (
	metaBytes = 64
	metaSum   = 56
)

// restoreMeta looks for the commit whose meta page is damaged. bbolt writes the pages of a
// commit, syncs them, and only then writes its meta page, over that of the commit before
// the last one: when just that page is damaged, all that it named is still in the file.
// Its root page is known by the number of the commit, which stands in it, and is believed
// only if everything below it is whole: the state by its sum, the new batches by their
// CRCs. A commit of which the meta page was never written can be found too: nobody was
// told of it, so that it may as well have happened.
//
// Nil without an error means that it cannot be found; nothing is changed then. With an error
// nothing is known of it.
func (x *inspection) restoreMeta() (*RepairNote, error) {
	if len(x.nums) == 0 {
		return nil, nil
	}
	num := x.nums[len(x.nums)-1]
	path := x.path(num)
	p, err := openPages(path)
	if isDamage(err) { // what is left is not enough
		return nil, nil
	} else if err != nil {
		return nil, fmt.Errorf("repair queue %s: %w", x.q.dir, err)
	}
	defer func() { _ = p.Close() }()
	if len(p.metas) != 1 {
		return nil, nil
	}
	m, newest, ok := p.lostCommit(num)
	if err := p.notRead(); err != nil {
		return nil, fmt.Errorf("repair queue %s: %w", x.q.dir, err)
	}
	if !ok {
		return nil, nil
	}
	if err := p.writeMeta(m); err != nil {
		return nil, fmt.Errorf("repair queue %s: %w", x.q.dir, err)
	}
	l, _, err := x.q.newest(x.nums)
	if err != nil {
		return nil, fmt.Errorf("repair queue %s: the meta page was written anew: %w", x.q.dir, err)
	}
	if x.scans[num], err = scanSegment(path); err != nil {
		return nil, fmt.Errorf("repair queue %s: the meta page was written anew: %w", x.q.dir, err)
	}
	x.judge(l)
	x.report.Node = l.root.node
	note := &RepairNote{Whole: true, Time: time.Now().UTC(), StateFrom: path, StateSeq: newest, NewestSeq: newest}
	x.addLost(note)
	return note, nil
}

// lostCommit returns the meta of the commit after the one that is left in segment num, if
// exactly one whole commit of that number is in the file, and the newest entry as of it. What
// could not be read counts as damaged: see notRead.
func (p *pageFile) lostCommit(num uint64) (m pageMeta, newest uint64, ok bool) {
	left := p.metas[0]
	var before *rootRecord
	var commit uint64
	if !p.unused(left) {
		st, err := p.readStored(left)
		if err != nil {
			return m, 0, false
		}
		l, err := st.decode()
		if err != nil {
			return m, 0, false
		}
		before, commit = &l.root, st.commit
	}
	old := p.scan(left)
	found := 0
	high := uint64(p.size.Load() / p.pageSize)
	for id := uint64(2); id < high; id++ {
		if n, isRoot := p.rootPage(id, high); !isRoot || before != nil && n != commit+1 {
			continue
		}
		c := pageMeta{root: id, high: high, txid: left.txid + 1}
		if n, whole := p.wholeCommit(c, num, before, old); whole {
			m, newest = c, n
			found++
		}
	}
	return m, newest, found == 1
}

// unused says whether m is the second page of a new bbolt file, which the first commit
// leaves as it is.
func (p *pageFile) unused(m pageMeta) bool {
	n, err := p.node(m.root, m.high)
	return err == nil && m.txid == 1 && n.leaf && n.count == 0
}

// rootPage says whether the page id is the root of a segment, and of which commit.
func (p *pageFile) rootPage(id, high uint64) (commit uint64, ok bool) {
	var h [pageHeader]byte // id, flags, count, pages that follow
	if p.readAt(h[:], int64(id)*p.pageSize) != nil || binary.LittleEndian.Uint64(h[:]) != id ||
		binary.LittleEndian.Uint64(h[8:]) != flagLeaf|3<<16 { // a leaf of one page with three buckets
		return 0, false
	}
	it, found, err := subBucket{p: p, high: high, root: id}.find(bucketState)
	if err != nil || !found {
		return 0, false
	}
	b, err := it.open(high)
	return b.seq, err == nil
}

// wholeCommit says whether all is there that m names and that is needed, and returns the
// newest entry. The commit before has the root record before (nil: there is none) and the
// batches old.
func (p *pageFile) wholeCommit(m pageMeta, num uint64, before *rootRecord, old *scan) (newest uint64, ok bool) {
	if err := p.checkFormat(m, num); err != nil {
		return 0, false
	}
	if _, err := p.bucket(m, bucketBatches); err != nil {
		return 0, false
	}
	st, err := p.readStored(m)
	if err != nil {
		return 0, false
	}
	l, err := st.decode()
	if err != nil || before != nil && (before.newest > l.root.newest || before.node != l.root.node) {
		return 0, false
	}
	now := p.scan(m)
	missing := func(seq uint64) bool {
		_, good := now.heads[seq]
		return !good && l.needed(seq)
	}
	for seq := range old.heads {
		if missing(seq) {
			return 0, false
		}
	}
	if before == nil { // the first commit of a segment holds no batches
		return l.root.newest, true
	}
	for seq := before.newest + 1; seq <= l.root.newest; seq++ {
		if missing(seq) {
			return 0, false
		}
	}
	return l.root.newest, true
}

// writeMeta writes the meta page of m, which is damaged, and syncs it.
func (p *pageFile) writeMeta(m pageMeta) error {
	b := make([]byte, pageHeader+metaBytes)
	if _, err := p.f.ReadAt(b, int64(p.metas[0].txid%2)*p.pageSize); err != nil {
		return fmt.Errorf("read a meta page of %s: %w", p.f.Name(), err)
	}
	slot := m.txid % 2 // as bbolt has it
	binary.LittleEndian.PutUint64(b, slot)
	meta := b[pageHeader:]
	binary.LittleEndian.PutUint64(meta[16:], m.root)
	binary.LittleEndian.PutUint64(meta[40:], m.high)
	binary.LittleEndian.PutUint64(meta[48:], m.txid)
	sum := fnv.New64a()
	sum.Write(meta[:metaSum])
	binary.LittleEndian.PutUint64(meta[metaSum:], sum.Sum64())
	f, err := os.OpenFile(p.f.Name(), os.O_WRONLY, 0)
	if err != nil {
		return fmt.Errorf("open segment: %w", err)
	}
	_, err = f.WriteAt(b, int64(slot)*p.pageSize)
	if err == nil {
		err = unix.Fdatasync(int(f.Fd()))
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return fmt.Errorf("write a meta page of %s: %w", p.f.Name(), err)
	}
	return nil
}
