package receive

import (
	"context"
	"errors"
	"log/slog"

	"ftfuse/internal/batch"
	"ftfuse/internal/failpoint"
	"ftfuse/internal/record"
	"ftfuse/internal/sink"
	"ftfuse/internal/upstream"
	"ftfuse/queue"
	"ftfuse/transport"
)

var fpAssigned = failpoint.New("receive/assigned") // the batch is submitted, perhaps not on disk

// handler takes batches from the transport: the engine says what it must
// remember of each, and that is committed with the batch.
type handler struct {
	q      *queue.Queue
	engine engine
	tell   *upstream.Teller
	resent *resentAccount
	server *transport.Server
	count  *counters
	log    *slog.Logger
}

var _ transport.Handler = (*handler)(nil)

// Horizon notes what is final at a lane's source, and tells a peer whose
// connection is new what else is.
func (h *handler) Horizon(_ transport.Peer, lane batch.Lane, below uint64, first bool) {
	h.tell.Horizon(lane, below, first)
}

// Skip counts what was dropped upstream. It is no reason to wait, or not to take another
// copy.
func (h *handler) Skip(p transport.Peer, lane batch.Lane, skips []transport.Skip) {
	h.tell.Before(p, lane, skips)
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
	t, err := h.engine.Take(b, p.String())
	switch {
	case errors.Is(err, record.ErrVersion):
		return transport.Verdict{Code: transport.Version, Text: err.Error()}, false
	case errors.Is(err, sink.ErrHost):
		h.count.foreign.Add(1)
		return transport.Verdict{Code: transport.Denied, Text: err.Error()}, false
	case err != nil:
		h.log.Error("batch not taken", "batch", b.ID.String(), "error", err)
		return transport.Verdict{Code: transport.Busy, Text: err.Error()}, false
	}
	return h.commit(ctx, b, t, reply)
}

// commit submits t; reply follows when it is on disk.
func (h *handler) commit(ctx context.Context, b batch.Sealed, t *queue.Txn, reply func(transport.Verdict)) (transport.Verdict, bool) {
	code := transport.Duplicate // unless Prepare is called, which is before Done
	prepare := t.Prepare
	t.Prepare = func(t *queue.Txn) error {
		code = transport.Taken
		if b.Flags&batch.FlagResent != 0 && len(t.Entries) > 0 {
			t.Set = append(t.Set, h.resent.add(&b)...)
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
		h.count.conflicts.Add(1)
		h.log.Error("refused a batch whose id was taken with another content: its host was cloned, or a queue was restored; the sender labels it anew",
			"batch", b.ID.String(), "host", b.Host)
		return transport.Verdict{Code: transport.Conflict, Text: err.Error()}, false
	case err != nil:
		return transport.Verdict{Code: transport.Busy, Text: err.Error()}, false
	}
	switch status {
	case queue.Duplicate:
		h.count.duplicates.Add(1)
		if !h.engine.Expects(b.ID) && !h.tell.Again(b.ID) { // the peer may have missed that it is final
			h.server.Final(b.ID)
		}
	case queue.Fresh:
		h.count.batches.Add(1)
		h.count.records.Add(uint64(b.Records))
		h.count.bytes.Add(b.Payload)
		if b.Flags&batch.FlagResent != 0 {
			h.count.resent.add(b)
		}
	}
	if err := fpAssigned.Inject(); err != nil {
		h.log.Error("failpoint", "error", err)
	}
	return transport.Verdict{}, true
}
