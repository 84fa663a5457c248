package forward

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"ftfuse/internal/batch"
	"ftfuse/queue"
	"ftfuse/transport"
)

// storeEvery is how often what became final is stored. A lost report is harmless: it is
// told again to whoever announces the lane.
const storeEvery = time.Second

// Forwarder sends the batches of a queue to groups of destinations. Its methods are safe
// for concurrent use.
type Forwarder struct {
	o        Options
	log      *slog.Logger
	store    store
	lines    []*line
	wants    func(line int, lane batch.Lane) bool
	finals   *finals
	relabels *relabels
	changes  *changes          // until they are stored
	skips    transport.SkipSet // told downstream
	dropped  transport.SkipSet // heard from downstream

	mu      sync.Mutex
	lost    map[string]queue.Tally // heard from downstream, by reason
	ctx     context.Context        // of Run, for what it starts
	group   sync.WaitGroup
	err     error // the first
	cancel  context.CancelFunc
	started bool
}

// New returns a Forwarder. It reads what is stored in the queue; nothing is sent
// before Run.
func New(o Options) (*Forwarder, error) {
	return newForwarder(o, realStore{o.Queue})
}

func newForwarder(o Options, s store) (*Forwarder, error) {
	o, err := o.withDefaults()
	if err != nil {
		return nil, err
	}
	f := &Forwarder{o: o, log: o.Logger, store: s, lost: map[string]queue.Tally{}}
	origin, cursors := batch.Origin(o.Identity.Node), Cursors(o.Groups)
	wants := Wants(o.Groups, o.Routes, origin)
	f.wants = func(line int, lane batch.Lane) bool { return wants(cursors[line], lane) }
	f.finals = newFinals(origin, cursors, f.wants)
	f.relabels = newRelabels(f, rand.Uint64())
	if f.changes, err = findChanges(s, cursors, &o); err != nil {
		return nil, err
	}
	if err := errors.Join(f.finals.load(s), f.finals.loadWays(s)); err != nil {
		return nil, err
	}
	f.changes.finals, f.finals.gone = f.finals.gone, nil
	if err := f.relabels.load(s, f.changes); err != nil {
		return nil, err
	}
	f.changes.begin(f)
	committed := s.Stats().Committed
	for i := range o.Groups {
		g := &o.Groups[i]
		for _, cfg := range g.lines() {
			c, err := s.Cursor(cfg.cursor)
			if err != nil {
				return nil, fmt.Errorf("open the cursor of group %q: %w", g.Name, err)
			}
			l := newLine(f, len(f.lines), g, cfg, c)
			sent := f.changes.sent[cfg.cursor]
			l.mark, l.suspect = newMark(s, cfg.cursor, sent), min(sent, committed)
			f.lines = append(f.lines, l)
		}
	}
	return f, nil
}

// Run forwards until ctx ends, and returns nil then, or why it could not go on. It
// returns when everything it started has ended. It may be called once.
func (f *Forwarder) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	f.mu.Lock()
	if f.started {
		f.mu.Unlock()
		return errors.New("forward: Run called twice")
	}
	f.started, f.ctx, f.cancel = true, ctx, cancel
	f.mu.Unlock()
	if err := f.settle(ctx); err != nil && ctx.Err() == nil {
		f.fail(err)
	}
	for _, l := range f.lines {
		if err := l.begin(); err != nil {
			f.fail(err)
			break
		}
		f.spawn("read the queue", l.read)
		f.spawn("watch over the destinations", l.clock)
		f.spawn("look destinations up", l.resolve)
	}
	f.spawn("store what is final", f.keep)
	f.spawn("relabel", f.relabels.run)
	<-ctx.Done()
	f.group.Wait()
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.err
}

// spawn runs a part until it ends; an error of its own ends the rest. It does nothing
// before Run and after it.
func (f *Forwarder) spawn(what string, part func(context.Context) error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.ctx == nil || f.ctx.Err() != nil {
		return
	}
	ctx := f.ctx
	f.group.Go(func() {
		if err := part(ctx); err != nil && ctx.Err() == nil {
			f.fail(fmt.Errorf("%s: %w", what, err))
		}
	})
}

func (f *Forwarder) fail(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err == nil {
		f.err = err
	}
	f.cancel()
}

// keep stores what became final every now and then, until ctx ends.
func (f *Forwarder) keep(ctx context.Context) error {
	tick := time.NewTicker(storeEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if set := f.unstored(); len(set) > 0 {
			if _, err := f.store.Submit(ctx, &queue.Txn{Set: set, Aside: true}); err != nil {
				return err
			}
		}
	}
}

// unstored returns what to store, and counts it as stored: first which old ids need not be
// known any more, which was decided after they were noted as final.
func (f *Forwarder) unstored() []queue.KV {
	return slices.Concat(f.relabels.unstored(), f.finals.unstored())
}

// Horizon takes in what a peer upstream announced: all of lane below below is final at
// its source. It is announced downstream, and what is below counts as final here. It
// does not block.
func (f *Forwarder) Horizon(lane batch.Lane, below uint64) {
	for _, line := range f.finals.upstream(lane, below) {
		f.lines[line].final(lane, []batch.Range{{First: 1, Last: below - 1}}, false)
	}
	f.skips.Merge(lane, below)
	f.dropped.Merge(lane, below)
}

// Covers reports whether a relay that took id before may answer Duplicate to a copy that
// came by via: where the id is final, or was taken by a way that has every node of via.
// Otherwise the two copies may be sent to each other's nodes, and each be deleted on the
// strength of the other: it must be taken again, as one more copy.
func (f *Forwarder) Covers(id batch.ID, via []batch.Node) bool { return f.finals.covers(id, via) }

// Took notes that a batch is durable here that came by via.
func (f *Forwarder) Took(id batch.ID, via []batch.Node) { f.finals.took(id, via) }

// Finals returns what of lane is final at every group that it goes to: what a relay
// tells a peer that comes (back) and announces the lane.
func (f *Forwarder) Finals(lane batch.Lane) batch.Ranges { return f.finals.everywhere(lane) }

// Skip tells the nodes downstream that batches of lane were dropped, here or upstream,
// and will not come this way. It does not block.
func (f *Forwarder) Skip(lane batch.Lane, skips ...transport.Skip) { f.skips.Add(lane, skips...) }

// Dropped notes that the queue gave up the batch at seq. What the next node has of it, and
// was kept for the final ack, is kept no more.
func (f *Forwarder) Dropped(seq uint64) {
	for _, l := range f.lines {
		l.mu.Lock()
		if e := l.entries[seq]; e != nil && e.stage == unfinal && !l.cursor.Needs(seq) {
			l.drop(e)
		}
		l.mu.Unlock()
	}
}

// final passes on what became final at every line.
func (f *Forwarder) final(lane batch.Lane, ranges []batch.Range) {
	if len(ranges) > 0 && f.o.OnFinal != nil {
		f.o.OnFinal(lane, ranges)
	}
}

// heard counts and passes on what nodes downstream dropped, each batch once.
func (f *Forwarder) heard(lane batch.Lane, skips []transport.Skip) {
	fresh := f.dropped.Add(lane, skips...)
	if len(fresh) == 0 {
		return
	}
	f.mu.Lock()
	for i := range fresh {
		s := &fresh[i]
		reason := transport.CountedAs(f.lost, s.Reason)
		t := f.lost[reason]
		t.Batches += s.Batches()
		t.Records += s.Records
		t.Payload += s.Payload
		f.lost[reason] = t
		f.log.Warn("a node further down dropped batches", "lane", lane.String(), "numbers", s.Ranges.String(), "reason", s.Reason,
			"records", s.Records, "bytes", s.Payload)
	}
	f.mu.Unlock()
	if f.o.OnSkip != nil {
		f.o.OnSkip(lane, fresh)
	}
}

// conflict hears of a batch whose id a next node knows with another content.
func (f *Forwarder) conflict(seq uint64, id batch.ID) {
	if f.o.OnConflict != nil {
		f.o.OnConflict(id.Lane)
	}
	if f.o.Relabel != nil {
		f.relabels.add(seq, id)
	}
}
