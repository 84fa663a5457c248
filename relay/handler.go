package relay

import (
	"context"
	"errors"
	"log/slog"
	"sync/atomic"

	"ftfuse/internal/batch"
	"ftfuse/internal/failpoint"
	"ftfuse/internal/forward"
	"ftfuse/internal/record"
	"ftfuse/internal/sink"
	"ftfuse/internal/upstream"
	"ftfuse/queue"
	"ftfuse/transport"
)

var (
	fpTaken     = failpoint.New("relay/taken")     // the batch is submitted, perhaps not on disk
	fpCommitted = failpoint.New("relay/committed") // on disk, not acked
	fpFinal     = failpoint.New("relay/final")     // final at every group, not told upstream
)

// handler takes batches from the transport into the queue.
type handler struct {
	q       *queue.Queue
	sink    *sink.Sink // nil: no outputs
	forward *forward.Switch
	tell    *upstream.Teller
	server  *transport.Server
	log     *slog.Logger

	taken, resent tally         // see Stats
	duplicates    atomic.Uint64 // batches that were here already
	again         atomic.Uint64 // of those, taken again for the way they came
	conflicts     atomic.Uint64 // batches refused for another content under their id
	foreign       atomic.Uint64 // batches refused for records of a host not theirs
}

var _ transport.Handler = (*handler)(nil)

// Horizon passes on what is final at a lane's source, and tells a peer whose
// connection is new what else is.
func (h *handler) Horizon(_ transport.Peer, lane batch.Lane, below uint64, first bool) {
	h.forward.Horizon(lane, below)
	h.tell.Horizon(lane, below, first)
}

// Skip counts and passes on what was dropped upstream.
func (h *handler) Skip(p transport.Peer, lane batch.Lane, skips []transport.Skip) {
	if fresh := h.tell.Before(p, lane, skips); len(fresh) > 0 {
		h.forward.Skip(lane, fresh...)
	}
}

// final tells upstream what is final at every group.
func (h *handler) final(lane batch.Lane, ranges []batch.Range) {
	if err := fpFinal.Inject(); err != nil {
		h.log.Error("failpoint", "error", err)
		return
	}
	h.server.FinalRanges(lane, ranges...)
}

// Batch takes one batch; see transport.Handler.
func (h *handler) Batch(ctx context.Context, p transport.Peer, b batch.Sealed, reply func(transport.Verdict)) {
	t, v := h.txn(b, p)
	if t == nil {
		reply(v)
		return
	}
	if v, replied := h.commit(ctx, b, t, reply); !replied {
		reply(v)
	}
}

// txn returns what is to be committed for b, or the verdict on it.
func (h *handler) txn(b batch.Sealed, p transport.Peer) (*queue.Txn, transport.Verdict) {
	if h.sink == nil {
		return &queue.Txn{Entries: []queue.Entry{{Batch: b}}}, transport.Verdict{}
	}
	t, err := h.sink.Take(b, p.String())
	switch {
	case errors.Is(err, record.ErrVersion):
		return nil, transport.Verdict{Code: transport.Version, Text: err.Error()}
	case errors.Is(err, sink.ErrHost):
		h.foreign.Add(1)
		return nil, transport.Verdict{Code: transport.Denied, Text: err.Error()}
	case err != nil:
		h.log.Error("batch not taken", "batch", b.ID.String(), "error", err)
		return nil, transport.Verdict{Code: transport.Busy, Text: err.Error()}
	}
	return t, transport.Verdict{}
}

// commit submits t and returns true: reply follows when it is on disk; or the verdict.
//
// A copy that came by a way that no copy taken here came by is no duplicate: the one that
// was taken may be on its way to the very nodes that this one comes from. It is taken
// again, as one more copy with its own way, which ends where a node meets itself.
func (h *handler) commit(ctx context.Context, b batch.Sealed, t *queue.Txn, reply func(transport.Verdict)) (transport.Verdict, bool) {
	covered := h.forward.Covers(b.ID, b.Via)
	fresh, stored, prepare := false, false, t.Prepare
	t.Prepare = func(t *queue.Txn) error { // not called for a duplicate; before Done
		fresh, stored = true, len(t.Entries) > 0 // else a full queue drops it
		if prepare == nil || t.Healed {          // what was damaged has been copied, or is lost to the copy
			return nil
		}
		return prepare(t)
	}
	t.Done = func(err error) {
		switch {
		case err != nil || fresh:
			h.done(b, stored, err, reply)
		case covered:
			reply(transport.Verdict{Code: transport.Duplicate})
			h.tell.Again(b.ID) // what was dropped since is settled by a skip, which counts behind the ack
		}
	}
	status, err := h.q.Submit(ctx, t)
	if status == queue.Duplicate && err == nil && !covered {
		h.again.Add(1)
		// Without Prepare, and so without a place in outputs: the copy there is one.
		_, err = h.q.Submit(ctx, &queue.Txn{
			Entries: []queue.Entry{{Batch: b}}, Again: true, Done: func(err error) { h.done(b, true, err, reply) },
		})
	}
	switch {
	case errors.Is(err, queue.ErrConflict):
		h.conflicts.Add(1)
		h.log.Error("refused a batch whose id was taken with another content: its host was cloned, or a queue was restored; the sender labels it anew",
			"batch", b.ID.String(), "host", b.Host)
		return transport.Verdict{Code: transport.Conflict, Text: err.Error()}, false
	case err != nil:
		return transport.Verdict{Code: transport.Busy, Text: err.Error()}, false
	}
	h.account(b, status)
	if err := fpTaken.Inject(); err != nil {
		h.log.Error("failpoint", "error", err)
	}
	return transport.Verdict{}, true
}

// done answers for a batch that is on disk now (or that the queue's policy dropped, which is
// counted), or says why not.
func (h *handler) done(b batch.Sealed, stored bool, err error, reply func(transport.Verdict)) {
	if err == nil {
		err = fpCommitted.Inject()
	}
	if err != nil {
		reply(transport.Verdict{Code: transport.Busy, Text: err.Error()})
		return
	}
	if stored {
		h.forward.Took(b.ID, b.Via)
	}
	reply(transport.Verdict{Code: transport.Taken})
}

// account counts a batch, and tells a peer that may have missed it that one is final.
func (h *handler) account(b batch.Sealed, status queue.Status) {
	switch status {
	case queue.Duplicate:
		h.duplicates.Add(1)
		if final := h.forward.Finals(b.ID.Lane); final.Contains(b.ID.N) {
			h.server.Final(b.ID)
		}
	case queue.Fresh:
		h.taken.add(&b)
		if b.Flags&batch.FlagResent != 0 {
			h.resent.add(&b)
		}
	}
}
