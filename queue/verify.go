package queue

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"ftfuse/internal/batch"
)

// Report is what Verify or Repair found.
type Report struct {
	Dir      string
	Node     batch.Node
	State    error // nil: the newest state is whole
	Segments []SegmentReport
	Aside    []string    // damaged files of which nothing is needed any more; they are no damage
	Repair   *RepairNote // what Repair did; nil: there was nothing to repair
}

// SegmentReport is one segment file.
type SegmentReport struct {
	File   string
	Newest bool
	Good   Tally         // readable batches
	Bad    []DamagedItem // in order
}

// DamagedItem is one place in a segment that cannot be read.
type DamagedItem struct {
	Seq    uint64   // 0: not known
	ID     batch.ID // N is 0 where it is not known
	Needed bool     // some cursor has not acked it: it is lost
	Err    error
}

// Damaged says whether anything is wrong.
func (r Report) Damaged() bool {
	for _, s := range r.Segments {
		if len(s.Bad) > 0 {
			return true
		}
	}
	return r.State != nil
}

// Lost returns how many batches that are still needed cannot be read.
func (r Report) Lost() (n int) {
	for _, s := range r.Segments {
		for _, b := range s.Bad {
			if b.Needed {
				n++
			}
		}
	}
	return n
}

// Verify reads the whole queue in dir, which no process may have open, and says what of
// it is damaged. It changes nothing but unfinished segments, which it removes.
func Verify(dir string) (Report, error) {
	x, err := inspect(dir)
	if err != nil {
		return Report{}, err
	}
	defer x.close()
	return x.report, nil
}

// inspection is a closed queue being looked at.
type inspection struct {
	q      *Queue // only dir, lock, log and options
	nums   []uint64
	report Report
	state  *loaded // newest state; nil if damaged
	scans  map[uint64]*scan
}

// scan is what could be read of one segment's batches.
type scan struct {
	heads map[uint64]head // good entries by seq, without data
	bad   []DamagedItem
}

func inspect(dir string) (*inspection, error) {
	o, err := Options{Cursors: []string{"none"}}.withDefaults()
	if err != nil {
		return nil, err
	}
	lock, err := lockDir(dir)
	if err != nil {
		return nil, err
	}
	x := &inspection{q: &Queue{dir: dir, o: o, log: o.Logger, lock: lock}, scans: map[uint64]*scan{}, report: Report{Dir: dir}}
	if err := x.look(); err != nil {
		x.close()
		return nil, fmt.Errorf("verify queue %s: %w", dir, err)
	}
	return x, nil
}

func (x *inspection) close() { x.q.closeFiles() }

func (x *inspection) look() (err error) {
	if x.nums, err = segmentNumbers(x.q.dir); err != nil {
		return err
	}
	for _, n := range x.nums {
		if err := settle(x.path(n)); err != nil {
			return err
		}
		if x.scans[n], err = scanSegment(x.path(n)); err != nil {
			return err
		}
	}
	x.state, _, x.report.State = x.q.newest(x.nums)
	if err := x.report.State; err != nil && !errors.Is(err, ErrNewestDamaged) {
		return err
	}
	if x.report.State == nil {
		x.report.Node = x.state.root.node
	}
	x.judge(x.state)
	return nil
}

func (x *inspection) path(num uint64) string { return x.q.segmentPath(num) }

// judge fills the report's segments: what could not be read, and what must be there as
// of state and is not.
func (x *inspection) judge(state *loaded) {
	x.report.Segments = nil
	x.report.Aside = aside(x.q.dir)
	for i, n := range x.nums {
		sc := x.scans[n]
		r := SegmentReport{File: x.path(n), Newest: i == len(x.nums)-1}
		for _, h := range sc.heads {
			r.Good.add(entryTally(&h.e, h.size()))
		}
		r.Bad = sc.missing(state, n)
		x.report.Segments = append(x.report.Segments, r)
	}
}

// aside lists the damaged files of dir of which nothing is needed any more.
func aside(dir string) (files []string) {
	entries, _ := os.ReadDir(dir) // that it can be read has been seen
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), corruptExt) {
			files = append(files, filepath.Join(dir, e.Name()))
		}
	}
	return files
}

// missing names what is damaged in the scanned segment num.
func (sc *scan) missing(state *loaded, num uint64) []DamagedItem {
	bad := append([]DamagedItem(nil), sc.bad...)
	if state == nil {
		return bad
	}
	named := map[uint64]int{}
	for i, b := range bad {
		if b.Seq != 0 {
			named[b.Seq] = i
			bad[i].Needed = state.needed(b.Seq)
		}
	}
	for _, s := range state.segs {
		if s.num != num {
			continue
		}
		for seq := s.first; seq <= s.last; seq++ {
			_, good := sc.heads[seq]
			if _, known := named[seq]; good || known || !state.needed(seq) {
				continue
			}
			d := DamagedItem{Seq: seq, Needed: true, Err: fmt.Errorf("%w: the entry is not there", errDamaged)}
			d.ID, _ = s.ids.id(seq)
			bad = append(bad, d)
		}
	}
	return bad
}

// needed says whether some cursor has not acked seq.
func (l *loaded) needed(seq uint64) bool {
	for _, c := range l.cursors {
		if !c.acked.Contains(seq) {
			return true
		}
	}
	return len(l.cursors) == 0
}

// scanSegment reads all batches of a segment and checks their CRCs. An error is no damage.
func scanSegment(path string) (*scan, error) {
	p, err := openPages(path)
	if isDamage(err) {
		return &scan{bad: []DamagedItem{{Err: err}}}, nil
	} else if err != nil {
		return nil, err
	}
	defer func() { _ = p.Close() }()
	return p.scan(p.metas[0]), p.notRead()
}

// scan reads all batches as of m and checks their CRCs. What could not be read counts as bad:
// see notRead.
func (p *pageFile) scan(m pageMeta) *scan {
	sc := &scan{heads: map[uint64]head{}}
	note := func(err error) error {
		sc.bad = append(sc.bad, DamagedItem{Err: err})
		return nil
	}
	b, err := p.bucket(m, bucketBatches)
	if err != nil {
		_ = note(err)
		return sc
	}
	_ = b.walk(func(it pageItem) error {
		bl, err := readBlock(it, b.high)
		if err != nil {
			return note(err)
		}
		for i := range bl.heads {
			seq := bl.first + uint64(i)
			h, _, err := bl.entry(seq, false)
			if err != nil {
				sc.bad = append(sc.bad, DamagedItem{Seq: seq, ID: h.e.Batch.ID, Err: err})
				continue
			}
			h.e.Batch.Data = nil
			sc.heads[seq] = h
		}
		if bl.cut != nil {
			return note(bl.cut)
		}
		return nil
	}, note)
	return sc
}
