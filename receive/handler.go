package receive

import (
	"context"
	"errors"
	"log/slog"
	"sync"

	"ftfuse/internal/batch"
	"ftfuse/internal/failpoint"
	"ftfuse/internal/record"
	"ftfuse/internal/sink"
	"ftfuse/queue"
	"ftfuse/transport"
)

var fpAssigned = failpoint.New("receive/assigned") // the batch is submitted, perhaps not on disk

// handler takes batches from the transport: the sink decides where every byte will
// stand, and that is committed with the batch.
type handler struct {
	q     *queue.Queue
	sink  *sink.Sink
	count *counters
	log   *slog.Logger

	final       func(...batch.ID)
	finalRanges func(batch.Lane, ...batch.Range)

	skipped transport.SkipSet // upstream, as it was heard

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
	delivered := h.q.Delivered(lane) // before the sink is asked: what it lets go in between is final
	if final := h.sink.Final(lane, &delivered, below); len(final) > 0 {
		h.finalRanges(lane, final...)
	}
}

// Skip logs what was dropped on the way here: nobody behind this node is to hear of it.
func (h *handler) Skip(p transport.Peer, lane batch.Lane, skips []transport.Skip) {
	for _, fresh := range h.skipped.Add(lane, skips...) {
		h.log.Warn("batches were dropped on their way here", "peer", p.String(), "lane", lane.String(), "batches", fresh.Ranges.String(),
			"reason", fresh.Reason, "records", fresh.Records, "bytes", fresh.Payload)
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
	t, err := h.sink.Take(b, p.String())
	switch {
	case errors.Is(err, record.ErrVersion):
		return transport.Verdict{Code: transport.Version, Text: err.Error()}, false
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
		if !h.sink.Expects(b.ID) { // the peer may have missed that it is final
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
