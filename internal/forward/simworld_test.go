package forward

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"ftfuse/internal/batch"
	"ftfuse/queue"
	"ftfuse/transport"
)

// mutant is a way in which the code under test is broken on purpose.
type mutant string

const (
	mutantNone      mutant = ""
	mutantEarlyAck  mutant = "ack before commit"
	mutantHighWater mutant = "mark instead of set"
	mutantNewID     mutant = "resend under a new id"
	mutantStrength  mutant = "a duplicate however it came"
	mutantNoMark    mutant = "a restart forgets what may have been sent"
)

// world is the nodes of one schedule, and what the checker knows of them. The checker
// looks at contents, never at ids or delivered sets.
type world struct {
	rng    *rand.Rand
	mu     sync.Mutex
	net    *simNet
	mutant mutant
	commit time.Duration // the longest that a group commit takes
	nodes  []*simNode
	log    *slog.Logger

	accepted []string
	output   map[string]map[string][]uint16 // by receiver and content: the flags of each copy
}

func (w *world) random(n int) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.rng.IntN(n)
}

func (w *world) within(from, to time.Duration) time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	return from + time.Duration(w.rng.Int64N(int64(to-from)))
}

// simNode is one role on one host: a process that is killed and started again, and a disk.
type simNode struct {
	w         *world
	name      string
	role      string
	disk      *simDisk
	groups    []GroupConfig
	keepFinal bool
	timeout   time.Duration
	epoch     uint64
	batches   atomic.Int64 // that a mount still makes

	q      *simQueue
	f      *Forwarder
	server *transport.Server
	cancel context.CancelFunc
	ended  chan struct{}                // nil: it is down
	finals map[batch.Lane]*batch.Ranges // of a receiver
	fmu    sync.Mutex
}

func (n *simNode) id(k byte) (id batch.Node) {
	copy(id[:], n.name)
	id[15] = k
	return id
}

// start starts the process.
func (n *simNode) start() {
	w := n.w
	ctx, cancel := context.WithCancel(context.Background())
	n.cancel, n.ended = cancel, make(chan struct{})
	n.q = openSimQueue(n.disk, Cursors(n.groups), func() time.Duration { return w.within(time.Millisecond, w.commit) }, w.mutant)
	identity := transport.Identity{Node: n.disk.node, Host: n.name, Role: n.role, Product: "simulation"}
	var wg sync.WaitGroup
	if n.role != "receive" {
		n.startForwarder(ctx, &wg, identity)
	}
	if n.role != "mount" {
		n.startServer(ctx, &wg, identity)
	} else {
		wg.Go(func() { n.write(ctx) })
	}
	ended := n.ended
	go func() {
		wg.Wait()
		close(ended)
	}()
}

func (n *simNode) startForwarder(ctx context.Context, wg *sync.WaitGroup, id transport.Identity) {
	f, err := newForwarder(Options{
		Groups: n.groups, Identity: id, KeepFinal: n.keepFinal, FinalTimeout: n.timeout, Logger: n.w.log.With("node", n.name),
		Dial: func(ctx context.Context, _, address string) (net.Conn, error) {
			return n.w.net.dial(ctx, n.name, strings.TrimSuffix(address, simPort))
		},
		OnFinal: func(lane batch.Lane, r []batch.Range) {
			if n.server != nil {
				n.server.FinalRanges(lane, r...)
			}
		},
	}, n.q)
	if err != nil {
		panic(err)
	}
	if n.w.mutant == mutantNoMark {
		for _, l := range f.lines {
			l.suspect = 0
		}
	}
	n.f = f
	wg.Go(func() {
		if err := f.Run(ctx); err != nil && !errors.Is(err, queue.ErrClosed) {
			panic(err)
		}
	})
}

func (n *simNode) startServer(ctx context.Context, wg *sync.WaitGroup, id transport.Identity) {
	n.server = transport.NewServer(transport.ServerOptions{Identity: id, Logger: n.w.log.With("node", n.name)}, &simHandler{n: n, q: n.q, f: n.f})
	if n.role == "receive" {
		n.fmu.Lock()
		n.finals = map[batch.Lane]*batch.Ranges{}
		n.fmu.Unlock()
		for _, x := range n.disk.taken { // a start does again what was committed
			n.addFinal(x.id)
		}
		n.q.onCommit = n.output(n.q, n.server)
	}
	ln := n.w.net.listen(n.name)
	server := n.server
	wg.Go(func() { _ = server.Serve(ctx, ln) })
}

// output writes each committed batch to the receiver's file: bytes and delivered set are
// one transaction. It becomes final a little later.
func (n *simNode) output(q *simQueue, s *transport.Server) func(queue.Entry) {
	return func(e queue.Entry) {
		w := n.w
		w.mu.Lock()
		content := string(e.Batch.Data)
		w.output[n.name][content] = append(w.output[n.name][content], e.Batch.Flags)
		w.mu.Unlock()
		id := e.Batch.ID
		time.AfterFunc(w.within(time.Millisecond, 500*time.Millisecond), func() {
			q.mu.Lock()
			dead := q.dead
			q.mu.Unlock()
			if !dead {
				n.addFinal(id)
				s.Final(id)
			}
		})
	}
}

func (n *simNode) addFinal(id batch.ID) {
	n.fmu.Lock()
	defer n.fmu.Unlock()
	n.finals[id.Lane] = withNumber(n.finals[id.Lane], id.N)
}

// known returns what of lane is final here, from below on.
func (n *simNode) known(lane batch.Lane, f *Forwarder) []batch.Range {
	if f != nil {
		set := f.Finals(lane)
		return set.All()
	}
	n.fmu.Lock()
	defer n.fmu.Unlock()
	if set := n.finals[lane]; set != nil {
		return set.All()
	}
	return nil
}

// kill ends the process as kill -9 does.
func (n *simNode) kill() {
	if n.ended == nil {
		return
	}
	n.q.crash()
	n.w.net.kill(n.name)
	n.cancel()
	<-n.ended
	n.ended = nil
}

// stop ends it in order.
func (n *simNode) stop() {
	if n.ended == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if n.server != nil {
		_ = n.server.Shutdown(ctx)
	}
	if n.f != nil {
		_ = n.f.Drain(ctx)
	}
	n.kill()
}

// write makes the batches of a mount: a new epoch at each start, several buckets.
func (n *simNode) write(ctx context.Context) {
	w := n.w
	n.epoch++
	epoch := batch.Epoch{Counter: n.epoch, Random: uint64(w.random(1 << 30))}
	var next [4]uint64
	for n.batches.Load() > 0 {
		select {
		case <-ctx.Done():
			return
		case <-time.After(w.within(time.Millisecond, 400*time.Millisecond)):
		}
		t := &queue.Txn{}
		var contents []string
		for range 1 + w.random(3) {
			bucket := w.random(len(next))
			next[bucket]++
			id := batch.ID{Lane: batch.Lane{Origin: batch.Origin(n.disk.node), Epoch: epoch, Bucket: uint8(bucket)}, N: next[bucket]}
			data := fmt.Sprintf("%s %d/%d/%d", n.name, n.epoch, bucket, next[bucket])
			contents = append(contents, data)
			t.Entries = append(t.Entries, queue.Entry{Batch: batch.Sealed{
				ID: id, CRC: batch.Checksum([]byte(data)), Host: n.name, Records: 1, Payload: uint64(len(data)), Data: []byte(data),
			}})
		}
		n.batches.Add(-int64(len(contents)))
		t.Done = func(err error) {
			if err == nil {
				w.mu.Lock()
				w.accepted = append(w.accepted, contents...)
				w.mu.Unlock()
			}
		}
		if _, err := n.q.Submit(ctx, t); err != nil {
			return
		}
	}
}

// simHandler takes batches at a relay or receiver.
type simHandler struct {
	n *simNode
	q *simQueue
	f *Forwarder // nil: receiver
}

// Batch commits a batch, then replies.
func (h *simHandler) Batch(ctx context.Context, _ transport.Peer, b batch.Sealed, reply func(transport.Verdict)) {
	early := h.n.w.mutant == mutantEarlyAck
	again := h.f != nil && !h.f.Covers(b.ID, b.Via) && h.n.w.mutant != mutantStrength
	status, err := h.q.Submit(ctx, &queue.Txn{Entries: []queue.Entry{{Batch: b}}, Again: again, Done: func(error) {
		if h.f != nil {
			h.f.Took(b.ID, b.Via)
		}
		if !early {
			reply(transport.Verdict{Code: transport.Taken})
		}
	}})
	switch {
	case errors.Is(err, queue.ErrConflict):
		reply(transport.Verdict{Code: transport.Conflict, Text: err.Error()})
	case err != nil:
		reply(transport.Verdict{Code: transport.Busy, Text: err.Error()})
	case early:
		reply(transport.Verdict{Code: transport.Taken})
	}
	if status == queue.Duplicate {
		for _, r := range h.n.known(b.ID.Lane, h.f) {
			if b.ID.N >= r.First && b.ID.N <= r.Last {
				h.n.server.Final(b.ID)
			}
		}
	}
}

// Horizon tells what is final here, and passes the horizon on.
func (h *simHandler) Horizon(_ transport.Peer, lane batch.Lane, below uint64, _ bool) {
	h.q.Merge(lane, below)
	if h.f != nil {
		h.f.Horizon(lane, below)
	}
	if r := h.n.known(lane, h.f); len(r) > 0 {
		h.n.server.FinalRanges(lane, r...)
	}
}

// Skip passes a skip on.
func (h *simHandler) Skip(_ transport.Peer, lane batch.Lane, s []transport.Skip) {
	if h.f != nil {
		h.f.Skip(lane, s...)
	}
}
