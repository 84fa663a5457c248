// Package upstream is what a role that takes batches tells those who sent them beside
// its answers: what is final, and what was dropped, here or further down. Relay and
// receive use it alike.
package upstream

import (
	"log/slog"
	"maps"
	"sync"
	"time"

	"ftfuse/internal/batch"
	"ftfuse/queue"
	"ftfuse/transport"
)

// Server is what a Teller needs of a transport.Server.
type Server interface {
	FinalRanges(lane batch.Lane, ranges ...batch.Range)
	Skip(lane batch.Lane, skips ...transport.Skip)
}

// Queue is what a Teller needs of a queue.Queue.
type Queue interface {
	Merge(lane batch.Lane, below uint64)
	LostRanges(lane batch.Lane) []queue.LaneLoss
}

// Teller tells peers what became of their batches. All methods are safe for concurrent use.
type Teller struct {
	q     Queue
	final func(lane batch.Lane, below uint64) []batch.Range
	log   *slog.Logger

	before, behind transport.SkipSet // dropped by nodes upstream, and downstream

	mu       sync.Mutex
	server   Server    // nil: not yet
	logged   time.Time // when the newest logEvery began
	lines    int       // since then
	without  int       // left out of the log
	dropped  map[string]queue.Tally
	dropping map[string]queue.Tally
}

// New returns a Teller. final says what of lane, from below on, is final at this node.
func New(q Queue, final func(lane batch.Lane, below uint64) []batch.Range, log *slog.Logger) *Teller {
	return &Teller{
		q: q, final: final, log: log,
		dropped: map[string]queue.Tally{}, dropping: map[string]queue.Tally{},
	}
}

// Attach gives the server by which peers are told. What was lost before is told to each
// peer when its Horizon comes.
func (t *Teller) Attach(s Server) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.server = s
}

func (t *Teller) attached() Server {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.server
}

// Horizon notes that all of lane below below is final at its source. The first one on a
// connection is answered with what else is, and what never will be.
func (t *Teller) Horizon(lane batch.Lane, below uint64, first bool) {
	t.q.Merge(lane, below)
	t.before.Merge(lane, below)
	t.behind.Merge(lane, below)
	server := t.attached()
	if !first || server == nil {
		return
	}
	if final := t.final(lane, below); len(final) > 0 {
		server.FinalRanges(lane, final...)
	}
	if skips := append(t.behind.Lane(lane), Losses(t.q, lane)...); len(skips) > 0 {
		server.Skip(lane, skips...)
	}
}

// Losses returns what q's own account says of lane.
func Losses(q Queue, lane batch.Lane) []transport.Skip {
	var skips []transport.Skip
	for _, l := range q.LostRanges(lane) {
		skips = append(skips, transport.Skip{Reason: l.Reason, Ranges: l.Ranges, Records: l.Records, Payload: l.Payload})
	}
	return skips
}

// Before takes in what p says was dropped before it came here, counts it, and returns
// what of it is new.
func (t *Teller) Before(p transport.Peer, lane batch.Lane, skips []transport.Skip) []transport.Skip {
	fresh := t.before.Add(lane, skips...)
	t.count(t.dropped, fresh)
	for i := range fresh {
		without, ok := t.mayLog(time.Now())
		if !ok {
			continue
		}
		s := &fresh[i]
		t.log.Warn("batches were dropped upstream and will not come this way", "peer", p.String(), "lane", lane.String(),
			"batches", s.Ranges.String(), "reason", s.Reason, "records", s.Records, "bytes", s.Payload, "more", without)
	}
	return fresh
}

// A peer can make up as many skips as it likes: the log has so many of them at most.
const (
	logEvery = 10 * time.Second
	logLines = 100
)

// mayLog reports whether to log a skip, and how many were left out before.
func (t *Teller) mayLog(now time.Time) (without int, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if now.Sub(t.logged) >= logEvery {
		t.logged, t.lines = now, 0
	}
	if t.lines++; t.lines > logLines {
		t.without++
		return 0, false
	}
	without, t.without = t.without, 0
	return without, true
}

// Behind takes in what nodes further down dropped, counts it, and tells it to the peers.
func (t *Teller) Behind(lane batch.Lane, skips []transport.Skip) {
	fresh := t.behind.Add(lane, skips...)
	t.count(t.dropping, fresh)
	if server := t.attached(); server != nil && len(fresh) > 0 {
		server.Skip(lane, fresh...)
	}
}

// Lost tells the peers that this node's own queue lost a batch, and returns what to tell
// the nodes downstream; false where only the copy for an output is lost.
func (t *Teller) Lost(l queue.Loss) (transport.Skip, bool) {
	if l.Copy {
		return transport.Skip{}, false
	}
	s := transport.Skip{Reason: l.Reason, Records: uint64(l.Records), Payload: l.Payload}
	s.Ranges.Add(l.ID.N)
	if server := t.attached(); server != nil {
		server.Skip(l.ID.Lane, s)
	}
	return s, true
}

// Again tells once more that id was dropped, if it was, which it reports: to a peer that sent
// it again, and waits for it to be final.
func (t *Teller) Again(id batch.ID) (dropped bool) {
	server := t.attached()
	for _, s := range append(t.behind.Lane(id.Lane), Losses(t.q, id.Lane)...) {
		if !s.Ranges.Contains(id.N) {
			continue
		}
		dropped = true
		if server != nil {
			server.Skip(id.Lane, s)
		}
	}
	return dropped
}

func (t *Teller) count(sums map[string]queue.Tally, fresh []transport.Skip) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for i := range fresh {
		s := &fresh[i]
		reason := transport.CountedAs(sums, s.Reason)
		sum := sums[reason]
		sum.Batches += s.Batches()
		sum.Records += s.Records
		sum.Payload += s.Payload
		sums[reason] = sum
	}
}

// DroppedUpstream returns what was dropped before it came here, by reason, as far as it
// was heard of since the start.
func (t *Teller) DroppedUpstream() map[string]queue.Tally {
	t.mu.Lock()
	defer t.mu.Unlock()
	return maps.Clone(t.dropped)
}

// DroppedDownstream is the same of what nodes further down dropped.
func (t *Teller) DroppedDownstream() map[string]queue.Tally {
	t.mu.Lock()
	defer t.mu.Unlock()
	return maps.Clone(t.dropping)
}
