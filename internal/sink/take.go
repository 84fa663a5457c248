package sink

import (
	"errors"

	"ftfuse/internal/batch"
	"ftfuse/internal/output"
	"ftfuse/internal/record"
	"ftfuse/queue"
)

// ErrHost is returned by Take for a batch that holds records of another host than the one
// that its envelope names: whoever may speak for the one need not speak for the other.
var ErrHost = errors.New("sink: records of a host that the batch does not speak for")

// Take decodes b, opens or looks at the files that it will go to, and returns the
// transaction that commits b together with the place of each of its bytes. from is who
// gave it, for the log. The caller sets Done and submits it to the sink's queue; Prepare
// may be wrapped, and must be called.
//
// A batch that can never be read, and the part of one that goes to a file that is
// refused, become dead letters, on disk when Take returns; the transaction takes the
// batch then. An error takes nothing: record.ErrVersion is for a batch that another
// build may read, ErrHost for one that nobody is to take, any other for one to be sent
// again later.
func (s *Sink) Take(b batch.Sealed, from string) (*queue.Txn, error) {
	now := s.current.Load()
	pl := now.planners.Get().(*planner)
	pn, err := pl.build(b)
	now.planners.Put(pl)
	switch {
	case errors.Is(err, record.ErrVersion), errors.Is(err, ErrHost):
		return nil, err
	case err != nil:
		return s.bury(b, from, err)
	}
	return s.place(b, pn, now.set)
}

// bury makes a dead letter of a batch that can never be read.
func (s *Sink) bury(b batch.Sealed, from string, why error) (*queue.Txn, error) {
	s.log.Error("dead letter: a batch that cannot be read", "batch", b.ID.String(), "peer", from, "error", why)
	if err := s.dead.put(b.ID, -1, malformed(b, from, why), b.Data); err != nil {
		return nil, err
	}
	n := note{kind: noteDead}
	return &queue.Txn{
		Entries: []queue.Entry{{Batch: b, Note: n.append(nil)}},
		Prepare: func(t *queue.Txn) error {
			if len(t.Entries) > 0 {
				s.applier.expect(b.ID)
			}
			return nil
		},
	}, nil
}

// place finds the output files of a plan that was made by a set; the bytes get their places in commit order.
func (s *Sink) place(b batch.Sealed, pn *plan, by *set) (*queue.Txn, error) {
	n := note{set: by.id, extents: make([]extent, len(pn.files))}
	files := make([]*file, len(pn.files))
	for i := range pn.files {
		pf := &pn.files[i]
		n.extents[i].check = pathCheck(pf.path)
		f, err := s.table.file(pf.out.Dir, pf.name, pf.path, &pf.out.Files)
		if err == nil {
			err = s.table.touch(f)
		}
		switch {
		case errors.Is(err, output.ErrRefused):
			if err := s.refuse(b.ID, i, pf, err); err != nil {
				return nil, err
			}
			n.extents[i].dead = true
		case err != nil:
			return nil, err
		default:
			files[i] = f
		}
	}
	return &queue.Txn{
		Entries: []queue.Entry{{Batch: b}},
		Prepare: func(t *queue.Txn) error { s.assign(t, b.ID, pn, by, files, &n); return nil },
	}, nil
}

// assign gives every byte of a plan its place, and notes the places in t.
func (s *Sink) assign(t *queue.Txn, id batch.ID, pn *plan, by *set, files []*file, n *note) {
	if len(t.Entries) == 0 { // the queue drops it
		return
	}
	var to []*generation
	for i, f := range files {
		if f != nil {
			check := n.extents[i].check
			var g *generation
			n.extents[i], g = s.table.assign(f, &pn.files[i])
			to = append(to, g)
			if kv, ok := s.rotor.register(f, pn.files[i].out); ok {
				t.Set = append(t.Set, kv)
			}
			n.extents[i].check = check
			s.count.pieces.Add(pn.files[i].split)
		}
	}
	s.applier.expect(id, to...)
	if t.Healed {
		s.count.doubles.Add(uint64(len(files)))
		s.log.Warn("bytes may stand twice: their batch was damaged in the queue, perhaps after it was written, and came again",
			"batch", id.String(), "files", len(files), "bytes", t.Entries[0].Batch.Payload)
	}
	t.Entries[0].Note = n.append(nil)
	if _, ok := s.o.Queue.Get(setKey(n.set)); !ok {
		t.Set = append(t.Set, queue.KV{Key: setKey(n.set), Value: by.raw})
	}
	s.count.unmatched.Add(pn.noMatch)
	s.count.unmatchedBytes.Add(pn.noBytes)
	s.applier.plans.put(id, pn)
}

// refuse makes a dead letter of one file's part of a batch. What letters of one file have makes,
// one after the other, what the file would have got.
func (s *Sink) refuse(id batch.ID, part int, pf *planFile, why error) error {
	s.log.Warn("dead letter: an output file that is refused", "batch", id.String(), "error", why)
	front, _, _ := pf.join(pf.expected())
	return s.dead.put(id, part, refusedLetter(pf, why), append([][]byte{front}, pf.segs...)...)
}
