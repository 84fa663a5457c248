package queue

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"ftfuse/internal/batch"
)

// RepairedKey is the key of the role's own state under which Repair leaves a RepairNote
// in JSON. A role that finds it at start moves its positions past what the note tells,
// and deletes it in the same Txn.
const RepairedKey = "repaired"

// RepairNote says from what state a queue goes on after Repair.
type RepairNote struct {
	Whole     bool // the newest commit was found whole: nothing is older or lost, and the role is not told
	Time      time.Time
	StateFrom string   // the segment file that the state was read from
	StateSeq  uint64   // the state is as of this entry ...
	NewestSeq uint64   // ... and entries up to this one were found: state that was set with those in between is gone
	OldValues []string // keys of the state that could not be read and have an older value, or none
	Lost      []string // ids of batches that are lost, as far as they are known
	LostCount int      // how many batches are lost
}

// Repair makes a queue whose newest state is damaged usable again. Where only the meta page
// of the last commit is lost, and all that it named is whole, the page is written anew and
// the queue is as it was. Else it goes on from the newest older state that is whole, keeps
// every batch that can be read, and tells the role with a RepairNote what it cannot know
// any more. Damaged files stay until nothing in them
// is needed, then they are set aside as .corrupt. A queue whose newest state is whole is
// left as it is: damaged batches in it are stepped over and counted when they are read.
func Repair(dir string) (Report, error) {
	x, err := inspect(dir)
	if err != nil {
		return Report{}, err
	}
	defer x.close()
	if x.report.State == nil {
		return x.report, nil
	}
	note, err := x.restoreMeta()
	if note != nil || err != nil {
		x.report.Repair = note
		return x.report, err
	}
	if err := x.repair(); err != nil {
		return x.report, fmt.Errorf("repair queue %s: %w", dir, err)
	}
	return x.report, nil
}

func (x *inspection) repair() error {
	st, note, err := x.olderState()
	if err != nil {
		return err
	}
	l, err := st.decode()
	if err != nil {
		return err
	}
	note.Time = time.Now().UTC()
	note.StateSeq = l.root.newest
	x.account(l)
	note.NewestSeq = l.root.newest
	x.judge(l)
	x.report.Node = l.root.node
	x.addLost(note)
	if err := x.writeRepaired(st, l, note); err != nil {
		return err
	}
	x.report.Repair = note
	return nil
}

// addLost names in note what is still needed and cannot be read.
func (x *inspection) addLost(note *RepairNote) {
	for _, s := range x.report.Segments {
		for _, b := range s.Bad {
			if !b.Needed {
				continue
			}
			note.LostCount++
			if b.ID.N != 0 {
				note.Lost = append(note.Lost, b.ID.String())
			}
		}
	}
}

// olderState returns the newest state that can be had: the one before the last commit,
// what is readable of the newest, or the last one of an older segment.
func (x *inspection) olderState() (*stored, *RepairNote, error) {
	var parts *stored
	var partsNote *RepairNote
	err := errors.New("there is no segment")
	for _, n := range slices.Backward(x.nums) {
		path := x.path(n)
		p, oerr := openPages(path)
		if isDamage(oerr) {
			err = errors.Join(err, oerr)
			continue
		} else if oerr != nil {
			return nil, nil, oerr
		}
		defer func() { _ = p.Close() }()
		for _, m := range p.metas {
			st, serr := p.readStored(m)
			if serr == nil {
				if _, serr = st.decode(); serr == nil && parts == nil {
					return st, &RepairNote{StateFrom: path}, nil
				}
			}
			if serr != nil && p.notRead() == nil {
				err = errors.Join(err, serr)
				continue
			} else if serr != nil {
				return nil, nil, serr
			}
			fillFrom(parts, st, partsNote)
			return parts, partsNote, nil
		}
		if parts == nil {
			if parts = p.salvageState(p.metas[0]); parts != nil {
				partsNote = &RepairNote{StateFrom: path}
			}
			if rerr := p.notRead(); rerr != nil {
				return nil, nil, rerr
			}
		}
	}
	if parts != nil {
		fillFrom(parts, newStored(), partsNote)
		return parts, partsNote, nil
	}
	return nil, nil, fmt.Errorf("no state can be read: %w", err)
}

// salvageState returns the values that are readable, or nil without those that all else
// hangs on: the root record and at least one cursor.
func (p *pageFile) salvageState(m pageMeta) *stored {
	b, err := p.bucket(m, bucketState)
	if err != nil {
		return nil
	}
	st := newStored()
	st.commit = b.seq
	cursors := 0
	_ = b.walk(func(it pageItem) error {
		key := string(it.key)
		v, err := it.value()
		if err != nil {
			return nil
		}
		if plain, err := decodeValue(key, v); err == nil && key != keySum && key != "" {
			st.put(key, plain)
			if key[0] == classCursor {
				cursors++
			}
		}
		return nil
	}, func(error) error { return nil })
	if _, ok := st.vals[keyRoot]; !ok || cursors == 0 {
		return nil
	}
	if _, err := st.decode(); err != nil { // a CRC chunk whose lane is gone, for one
		for k := range st.vals {
			if k[0] == classChunk {
				st.drop(k)
			}
		}
		if _, err := st.decode(); err != nil {
			return nil
		}
	}
	return st
}

// fillFrom takes the values that st does not have from an older state, and names them.
func fillFrom(st, older *stored, note *RepairNote) {
	for k, enc := range older.vals {
		if _, ok := st.vals[k]; !ok && k[0] != classSegment && k[0] != classIDs {
			st.put(k, enc[4:])
			note.OldValues = append(note.OldValues, k)
		}
	}
	slices.Sort(note.OldValues)
}

// account brings the state's account of segments to what the files hold.
func (x *inspection) account(l *loaded) {
	byNum := map[uint64]*segment{}
	for _, s := range l.segs {
		byNum[s.num] = s
	}
	dedupe := len(l.delivered.lanes) > 0
	var segs []*segment
	var last uint64
	for _, n := range x.nums {
		sc := x.scans[n]
		seqs := slices.Sorted(maps.Keys(sc.heads))
		s := byNum[n]
		if s == nil {
			if len(seqs) == 0 && len(sc.bad) == 0 {
				continue
			}
			s = &segment{num: n, first: max(last, l.root.newest) + 1}
			if len(seqs) > 0 {
				s.first = min(s.first, seqs[0])
			}
			s.last = s.first - 1
		}
		if len(seqs) > 0 {
			s.last = max(s.last, seqs[len(seqs)-1])
		}
		s.path, s.damaged = x.path(n), s.damaged || len(sc.bad) > 0 || n == x.nums[len(x.nums)-1]
		s.ids, s.total, s.passed = idRunsOr(s.ids, sc, seqs), tally{}, tally{}
		for _, seq := range seqs {
			h := sc.heads[seq]
			t := entryTally(&h.e, h.size())
			s.total.add(t)
			if !l.needed(seq) {
				s.passed.add(t)
			}
			if dedupe && seq > l.root.newest {
				l.delivered.Add(h.e.Batch.ID, h.e.Batch.CRC)
				l.delivered.Claim(h.e.Batch.ID.Lane, h.e.Batch.Host)
			}
		}
		s.total.Batches, s.passed.Batches = s.count(), 0
		for seq := s.first; seq <= s.last; seq++ {
			if !l.needed(seq) {
				s.passed.Batches++
			}
		}
		last = s.last
		segs = append(segs, s)
	}
	l.segs = segs
	l.root.newest = max(l.root.newest, last)
}

// idRunsOr returns the ids of a segment: those that the state has, or those found.
func idRunsOr(known idRuns, sc *scan, seqs []uint64) (ids idRuns) {
	if len(known.runs) > 0 {
		return known
	}
	for _, seq := range seqs {
		ids.add(seq, sc.heads[seq].e.Batch.ID)
	}
	return ids
}

// writeRepaired begins a new segment with the state st, brought up to l.
func (x *inspection) writeRepaired(st *stored, l *loaded, note *RepairNote) error {
	for k := range st.vals {
		if k[0] == classSegment || k[0] == classIDs {
			st.drop(k)
		}
	}
	text, err := json.Marshal(note)
	if err != nil {
		return fmt.Errorf("encode the note: %w", err)
	}
	next := x.nums[len(x.nums)-1] + 1
	puts := map[string][]byte{keyRoot: l.root.encode(), string(classKV) + RepairedKey: text}
	for _, s := range l.segs {
		s.stored = s.passed
		puts[segmentKey(classSegment, s.num)] = s.encodeRecord()
		puts[segmentKey(classIDs, s.num)] = s.ids.encode()
	}
	l.delivered.encode(puts)
	x.q.node = l.root.node
	x.q.segs = l.segs
	for name, r := range l.cursors {
		c := newCursor(x.q, name)
		c.acked, c.unbegun, c.base = r.acked, r.unbegun, r.base
		for _, s := range l.segs {
			c.parts[s.num] = partOf(s, x.scans[s.num], r.acked)
		}
		puts[string(classCursor)+name] = c.encode()
	}
	s := &segment{num: next, first: l.root.newest + 1, last: l.root.newest}
	if err := x.q.bear(s, puts, st, true); err != nil {
		return err
	}
	if err := s.close(); err != nil {
		return fmt.Errorf("close the new segment: %w", err)
	}
	if st, err := x.q.lock.Stat(); err == nil && st.Size() == 0 {
		return x.q.markUsed()
	}
	return nil
}

// partOf counts what of s is acked.
func partOf(s *segment, sc *scan, acked batch.Ranges) (t tally) {
	for seq, h := range sc.heads {
		if acked.Contains(seq) {
			t.add(entryTally(&h.e, h.size()))
		}
	}
	t.Batches = 0
	if s.count() > 0 {
		t.Batches = countIn(acked, s.first, s.last)
	}
	return t
}
