package receive

import (
	"context"
	"errors"
	"log/slog"
	"sync"

	"ftfuse/internal/batch"
	"ftfuse/internal/output"
	"ftfuse/internal/record"
	"ftfuse/queue"
	"ftfuse/transport"
)

// handler takes batches from the transport: it decides where every byte will stand and
// commits that with the batch.
type handler struct {
	q        *queue.Queue
	set      *set
	table    *table
	applier  *applier
	dead     *deadDir
	count    *counters
	log      *slog.Logger
	planners sync.Pool

	final       func(...batch.ID)
	finalRanges func(batch.Lane, ...batch.Range)

	mu   sync.Mutex
	told map[batch.Lane]string // address of the connection that was told what is final
}

var _ transport.Handler = (*handler)(nil)

// Horizon notes that all of lane below below is final at its source, and tells a peer
// that is new on its connection what else is.
func (h *handler) Horizon(p transport.Peer, lane batch.Lane, below uint64) {
	h.q.Merge(lane, below)
	h.mu.Lock()
	known := h.told[lane] == p.Addr
	h.told[lane] = p.Addr
	h.mu.Unlock()
	if known {
		return
	}
	delivered := h.q.Delivered(lane) // before the applier is asked: what it lets go in between is final
	if final := h.applier.written(lane, &delivered, below); len(final) > 0 {
		h.finalRanges(lane, final...)
	}
}

// Batch takes one batch; see transport.Handler.
func (h *handler) Batch(ctx context.Context, p transport.Peer, b batch.Sealed, reply func(transport.Verdict)) {
	v, replied := h.take(ctx, p, b, reply)
	if !replied {
		reply(v)
	}
}

// take returns a verdict, or true where reply is called when the batch is on disk.
func (h *handler) take(ctx context.Context, p transport.Peer, b batch.Sealed, reply func(transport.Verdict)) (transport.Verdict, bool) {
	pl := h.planners.Get().(*planner)
	pn, err := pl.build(b)
	h.planners.Put(pl)
	switch {
	case errors.Is(err, record.ErrVersion):
		return transport.Verdict{Code: transport.Version, Text: err.Error()}, false
	case err != nil:
		return h.bury(ctx, p, b, err, reply)
	}
	return h.submit(ctx, b, pn, reply)
}

// bury makes a dead letter of a batch that can never be read, and takes it.
func (h *handler) bury(ctx context.Context, p transport.Peer, b batch.Sealed, why error, reply func(transport.Verdict)) (transport.Verdict, bool) {
	h.log.Error("dead letter: a batch that cannot be read", "batch", b.ID.String(), "peer", p.String(), "error", why)
	l := letter{Reason: reasonMalformed, Error: why.Error(), Content: contentBatch, Host: p.Host, Records: uint64(b.Records)}
	if err := h.dead.put(b.ID, -1, l, b.Data); err != nil {
		h.log.Error("batch not taken", "batch", b.ID.String(), "error", err)
		return transport.Verdict{Code: transport.Busy, Text: err.Error()}, false
	}
	n := note{kind: noteDead}
	return h.commit(ctx, b, &queue.Txn{Entries: []queue.Entry{{Batch: b, Note: n.append(nil)}}, Prepare: nothing}, reply)
}

func nothing(*queue.Txn) error { return nil }

// submit finds the output files and commits the batch with its extents.
func (h *handler) submit(ctx context.Context, b batch.Sealed, pn *plan, reply func(transport.Verdict)) (transport.Verdict, bool) {
	n := note{set: h.set.id, extents: make([]extent, len(pn.files))}
	files := make([]*file, len(pn.files))
	for i := range pn.files {
		pf := &pn.files[i]
		n.extents[i].check = pathCheck(pf.path)
		f, err := h.table.file(pf.out.Dir, pf.name, pf.path)
		if err == nil {
			err = h.table.touch(f)
		}
		switch {
		case errors.Is(err, output.ErrRefused):
			if err := h.refuse(b.ID, i, pf, err); err != nil {
				h.log.Error("batch not taken", "batch", b.ID.String(), "error", err)
				return transport.Verdict{Code: transport.Busy, Text: err.Error()}, false
			}
			n.extents[i].dead = true
		case err != nil:
			h.log.Error("batch not taken", "batch", b.ID.String(), "error", err)
			return transport.Verdict{Code: transport.Busy, Text: err.Error()}, false
		default:
			files[i] = f
		}
	}
	t := &queue.Txn{Entries: []queue.Entry{{Batch: b}}}
	t.Prepare = func(t *queue.Txn) error {
		if len(t.Entries) == 0 { // the queue drops it
			return nil
		}
		for i, f := range files {
			if f != nil {
				check := n.extents[i].check
				n.extents[i] = h.table.assign(f, &pn.files[i])
				n.extents[i].check = check
				h.count.pieces.Add(pn.files[i].split)
			}
		}
		t.Entries[0].Note = n.append(nil)
		if _, ok := h.q.Get(setKey(n.set)); !ok {
			t.Set = append(t.Set, queue.KV{Key: setKey(n.set), Value: h.set.raw})
		}
		h.count.unmatched.Add(pn.noMatch)
		h.count.unmatchedBytes.Add(pn.noBytes)
		h.applier.plans.put(b.ID, pn)
		return nil
	}
	return h.commit(ctx, b, t, reply)
}

// refuse makes a dead letter of one file's part of a batch.
func (h *handler) refuse(id batch.ID, part int, pf *planFile, why error) error {
	h.log.Warn("dead letter: an output file that is refused", "batch", id.String(), "error", why)
	return h.dead.put(id, part, refusedLetter(pf, why), pf.segs...)
}

// commit submits t; reply follows when it is on disk.
func (h *handler) commit(ctx context.Context, b batch.Sealed, t *queue.Txn, reply func(transport.Verdict)) (transport.Verdict, bool) {
	code := transport.Duplicate // unless Prepare is called, which is before Done
	prepare := t.Prepare
	t.Prepare = func(t *queue.Txn) error {
		code = transport.Taken
		if len(t.Entries) > 0 {
			h.applier.expect(b.ID)
		}
		return prepare(t)
	}
	t.Done = func(err error) {
		if err != nil {
			reply(transport.Verdict{Code: transport.Busy, Text: err.Error()})
			return
		}
		reply(transport.Verdict{Code: code})
	}
	status, err := h.q.Submit(ctx, t)
	switch {
	case errors.Is(err, queue.ErrConflict):
		h.log.Error("refused a batch whose id was taken with another content", "batch", b.ID.String())
		return transport.Verdict{Code: transport.Conflict, Text: err.Error()}, false
	case err != nil:
		return transport.Verdict{Code: transport.Busy, Text: err.Error()}, false
	}
	switch status {
	case queue.Duplicate:
		h.count.duplicates.Add(1)
		if !h.applier.expects(b.ID) { // the peer may have missed that it is final
			h.final(b.ID)
		}
	case queue.Fresh:
		h.count.batches.Add(1)
		h.count.records.Add(uint64(b.Records))
		h.count.bytes.Add(b.Payload)
	}
	if err := fpAssigned.Inject(); err != nil {
		h.log.Error("failpoint", "error", err)
	}
	return transport.Verdict{}, true
}
