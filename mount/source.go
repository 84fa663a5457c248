package mount

import (
	"context"
	"encoding/hex"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"ftfuse/internal/batch"
	"ftfuse/queue"
	"ftfuse/transport"
)

// forwardCursor is the queue's cursor of the one group of destinations.
const forwardCursor = "forward"

// prefixFinal begins the keys under which the queue keeps what of a lane is final.
const prefixFinal = "final/"

// keptLanes is how many lanes' finals are kept: one lane is made at each start. What of
// older ones was never reported only leaves a few ranges at the receiver.
const keptLanes = 64

// finalEvery is how often what became final is stored. A lost report is harmless.
const finalEvery = time.Second

// source gives a transport client the batches of the queue and takes what becomes of
// them. A batch that the next node refuses stays in the queue and is offered again
// after a reconnect.
type source struct {
	q      *queue.Queue
	cursor *queue.Cursor
	log    *slog.Logger

	conflict func(batch.Lane) // optional: the next node has another content under an id of this lane

	mu      sync.Mutex
	given   map[uint64]batch.Lane // seqs with the client
	refused map[uint64]transport.Verdict
	lanes   map[batch.Lane]*finals
	changed bool // what is final, since it was stored

	skipped transport.SkipSet // downstream, as it was heard
}

type finals struct {
	set   batch.Ranges
	dirty bool
}

func newSource(q *queue.Queue, log *slog.Logger) (*source, error) {
	c, err := q.Cursor(forwardCursor)
	if err != nil {
		return nil, fmt.Errorf("open the forward cursor: %w", err)
	}
	s := &source{
		q: q, cursor: c, log: log, given: map[uint64]batch.Lane{}, refused: map[uint64]transport.Verdict{},
		lanes: map[batch.Lane]*finals{},
	}
	return s, s.load()
}

func (s *source) load() error {
	var bad error
	s.q.Range(prefixFinal, func(key string, value []byte) bool {
		name, err := hex.DecodeString(key[len(prefixFinal):])
		if err == nil {
			var lane batch.Lane
			if lane, err = batch.ParseLane(name); err == nil {
				var set batch.Ranges
				if set, _, err = batch.ParseRanges(value); err == nil {
					s.lanes[lane] = &finals{set: set}
				}
			}
		}
		if err != nil {
			bad = fmt.Errorf("read %q of the queue: %w", key, err)
		}
		return bad == nil
	})
	return bad
}

// Next returns the next batch of the queue that the client has not got.
func (s *source) Next(ctx context.Context) (uint64, batch.Sealed, error) {
	for {
		it, err := s.cursor.Next(ctx)
		if err != nil {
			return 0, batch.Sealed{}, err
		}
		s.mu.Lock()
		_, again := s.given[it.Seq]
		s.given[it.Seq] = it.Batch.ID.Lane
		s.finals(it.Batch.ID.Lane)
		s.mu.Unlock()
		if !again { // else the cursor was rewound for a refused one
			return it.Seq, it.Batch, nil
		}
	}
}

// finals returns what is final of lane. One that is new is stored and announced, although
// nothing is final yet: the server tells what became final in between only for lanes that
// it was told of. The caller holds mu.
func (s *source) finals(lane batch.Lane) *finals {
	f := s.lanes[lane]
	if f == nil {
		f = &finals{dirty: true}
		s.lanes[lane], s.changed = f, true
	}
	return f
}

// Acked lets the queue forget a batch: the next node has it on its disk.
func (s *source) Acked(seq uint64) {
	s.mu.Lock()
	delete(s.given, seq)
	s.mu.Unlock()
	s.cursor.Ack(seq)
}

// Refused keeps a batch for the next connection.
func (s *source) Refused(seq uint64, v transport.Verdict) {
	s.mu.Lock()
	lane := s.given[seq]
	delete(s.given, seq)
	s.refused[seq] = v
	s.mu.Unlock()
	if v.Code == transport.Conflict && s.conflict != nil {
		s.conflict(lane)
	}
	s.log.Error("the next node refused a batch; it stays queued and is offered again after a reconnect", "seq", seq, "code", v.Code.String(), "text", v.Text)
}

// connected is called after each handshake: what was refused is offered again.
func (s *source) connected(transport.Peer) {
	s.mu.Lock()
	again := len(s.refused) > 0
	clear(s.refused)
	s.mu.Unlock()
	if again {
		s.cursor.Rewind()
	}
}

// Final notes what the last node has in its output.
func (s *source) Final(lane batch.Lane, r []batch.Range) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f := s.finals(lane)
	for _, one := range r {
		f.set.AddRange(one)
	}
	f.dirty, s.changed = true, true
}

// Skipped is for the log: with one destination nobody waits for what was dropped there.
func (s *source) Skipped(lane batch.Lane, skips []transport.Skip) {
	for i := range skips {
		for _, fresh := range s.skipped.Add(lane, skips[i]) {
			s.log.Warn("batches were dropped on their way", "lane", lane.String(), "batches", fresh.Ranges.String(), "reason", fresh.Reason,
				"records", fresh.Records, "bytes", fresh.Payload)
		}
	}
}

// Skips says nothing yet.
func (s *source) Skips() []transport.LaneSkips { return nil }

// stuck reports whether nothing is left in the queue but batches that were refused.
func (s *source) stuck() bool {
	s.mu.Lock()
	given, refused := len(s.given), uint64(len(s.refused))
	s.mu.Unlock()
	if given > 0 || refused == 0 {
		return false
	}
	for _, c := range s.q.Stats().Cursors {
		if c.Name == forwardCursor {
			return c.Waiting.Batches <= refused
		}
	}
	return false
}

// Horizon says below which number all of a lane is final, for every lane that is known.
func (s *source) Horizon() []transport.LaneHorizon {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make([]transport.LaneHorizon, 0, len(s.lanes))
	for lane, f := range s.lanes {
		all = append(all, transport.LaneHorizon{Lane: lane, Below: f.set.Next()})
	}
	return all
}

// keep stores what became final every now and then, until ctx ends.
func (s *source) keep(ctx context.Context) error {
	tick := time.NewTicker(finalEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if set := s.unstored(); len(set) > 0 {
			if _, err := s.q.Submit(ctx, &queue.Txn{Set: set}); err != nil && ctx.Err() == nil {
				return fmt.Errorf("store what is final: %w", err)
			}
		}
	}
}

func (s *source) unstored() []queue.KV {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.changed {
		return nil
	}
	s.changed = false
	var set []queue.KV
	key := func(l batch.Lane) string { return prefixFinal + hex.EncodeToString(l.Append(nil)) }
	for len(s.lanes) > keptLanes {
		oldest := s.oldest()
		delete(s.lanes, oldest)
		set = append(set, queue.KV{Key: key(oldest)})
	}
	for lane, f := range s.lanes {
		if f.dirty {
			f.dirty = false
			set = append(set, queue.KV{Key: key(lane), Value: f.set.Append(nil)})
		}
	}
	return set
}

func (s *source) oldest() (oldest batch.Lane) {
	first := true
	for lane := range s.lanes {
		if first || lane.Epoch.Counter < oldest.Epoch.Counter {
			oldest, first = lane, false
		}
	}
	return oldest
}

var _ transport.Source = (*source)(nil)
