package forward

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"ftfuse/internal/batch"
	"ftfuse/queue"
	"ftfuse/transport"
)

// Bounds of what a line keeps in memory.
const (
	maxAhead     = 128 << 10 // batches that no next node has
	maxUnfinal   = 512 << 10 // batches that wait for their final ack, with KeepFinal
	abreastAfter = 100 * time.Millisecond
	idleFlows    = 10 * time.Second
)

// line feeds the destinations of a group from one cursor: all of them, or, with
// Broadcast, one primary and its stand-in. Its lock is taken before that of finals and
// those of queue and client.
type line struct {
	f       *Forwarder
	index   int // in f.lines
	group   *GroupConfig
	cfg     lineConfig
	cursor  cursor
	log     *slog.Logger
	start   time.Time
	mark    *mark
	suspect uint64 // what is at or below it may have been sent before this start

	mu       sync.Mutex
	paused   bool // nothing more is given to a destination
	peers    peers
	dests    []*destination
	seen     []seen // of each destination, when the flows were last steered
	flows    map[flowKey]*flow
	lanes    map[batch.Lane]*laneEntries
	entries  map[uint64]*entry
	ahead    int // entries that are not unfinal
	parked   map[*entry]struct{}
	held     map[uint64]bool // being relabelled; true: acked meanwhile
	unfinal  unfinalSet
	lost     []*lost
	room     chan struct{} // for the reader
	kick     chan struct{} // for the clock: there may be an earlier deadline
	count    counts
	doubtful []transport.LaneRanges // for Stats, see remember
	known    bool                   // everything in the queue was read, not long ago
	upTo     uint64                 // it is when this was read
	behind   time.Duration          // when it was last looked who stays behind
	swept    time.Duration
}

// laneEntries are the batches of one lane that a line tracks. An id may be there more
// than once: copies that came different ways, see Forwarder.Covers.
type laneEntries struct {
	lane batch.Lane
	byN  map[uint64]*entry // the others follow at twin
}

func (le *laneEntries) add(e *entry) {
	e.twin = le.byN[e.n]
	le.byN[e.n] = e
}

func (le *laneEntries) remove(e *entry) {
	at := le.byN[e.n]
	if at == e {
		if e.twin == nil {
			delete(le.byN, e.n)
		} else {
			le.byN[e.n] = e.twin
		}
		return
	}
	for at.twin != e {
		at = at.twin
	}
	at.twin = e.twin
}

// counts are what Stats shows of a line.
type counts struct {
	acked queue.Tally

	final, doubtful, resent, failovers, failbacks uint64
	unfinal                                       queue.Tally
}

func newLine(f *Forwarder, index int, g *GroupConfig, cfg lineConfig, c cursor) *line {
	return &line{
		f: f, index: index, group: g, cfg: cfg, cursor: c, log: f.log.With("group", g.Name), start: time.Now(),
		flows: map[flowKey]*flow{}, lanes: map[batch.Lane]*laneEntries{}, entries: map[uint64]*entry{},
		parked: map[*entry]struct{}{}, held: map[uint64]bool{}, room: make(chan struct{}, 1), kick: make(chan struct{}, 1),
	}
}

// now is the time since the line began, by the monotonic clock.
func (l *line) now() time.Duration { return time.Since(l.start) }

// signal leaves a token for whoever waits for one.
func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// read reads the heads of the cursor, until ctx ends.
func (l *line) read(ctx context.Context) error {
	l.fallBehind()
	for {
		if err := l.awaitRoom(ctx); err != nil {
			return err
		}
		h, err := l.nextHead(ctx)
		if err != nil {
			return err
		}
		if !l.f.wants(l.index, h.ID.Lane) {
			l.cursor.Ack(h.Seq)
			continue
		}
		l.add(h)
		if l.reached(h.Seq) {
			l.catchUp()
		}
	}
}

// nextHead waits for the next head. When there is none for a moment, everything in the
// queue is known here.
func (l *line) nextHead(ctx context.Context) (queue.Head, error) {
	if l.abreast() {
		return l.cursor.NextHead(ctx)
	}
	short, cancel := context.WithTimeout(ctx, abreastAfter)
	defer cancel()
	h, err := l.cursor.NextHead(short)
	if err == nil || ctx.Err() != nil || short.Err() == nil {
		return h, err
	}
	if !errors.Is(err, queue.ErrUnread) { // else there is more, and nobody knows what
		l.catchUp()
	}
	return l.cursor.NextHead(ctx)
}

// awaitRoom waits until one more entry may be read.
func (l *line) awaitRoom(ctx context.Context) error {
	for waited := false; ; waited = true {
		l.mu.Lock()
		ok := l.ahead < maxAhead && len(l.entries)-l.ahead < maxUnfinal
		l.mu.Unlock()
		if ok && !waited {
			return nil
		}
		l.fallBehind() // now, and up to what came meanwhile
		if ok {
			return nil
		}
		select {
		case <-l.room:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// add takes in a batch that the cursor gave.
func (l *line) add(h queue.Head) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.now()
	l.f.finals.track(h.ID.Lane)
	e := &entry{
		seq: h.Seq, n: h.ID.N, lane: l.lane(h.ID.Lane), flow: l.flow(keyOf(l.group.Mode, h.ID.Lane)), read: now,
		size: h.Size, records: h.Records, payload: h.Payload, resent: h.Seq <= l.suspect,
	}
	l.entries[e.seq] = e
	e.lane.add(e)
	e.flow.tracked++
	l.ahead++
	if _, held := l.held[e.seq]; held {
		l.park(e)
	} else {
		l.place(e)
	}
	if l.ahead == 1 {
		signal(l.kick)
	}
}

func (l *line) lane(id batch.Lane) *laneEntries {
	le := l.lanes[id]
	if le == nil {
		le = &laneEntries{lane: id, byN: map[uint64]*entry{}}
		l.lanes[id] = le
	}
	return le
}

// flow returns the flow of k. One that is new goes where a restart would send it too.
func (l *line) flow(k flowKey) *flow {
	fl := l.flows[k]
	if fl == nil {
		fl = newFlow(k)
		fl.home = l.peers.pick(k, nowhere, nil)
		l.flows[k] = fl
	}
	return fl
}

// place makes e wait: in its flow, or, where it was refused at home, as a stray at the
// best destination that did not refuse it; else it is parked.
func (l *line) place(e *entry) {
	e.stage, e.at = waits, nil
	delete(l.parked, e)
	fl := e.flow
	if e.refused == nil || fl.home != nowhere && !l.refusedBy(e, fl.home) {
		fl.insert(e)
		l.update(fl)
		return
	}
	to := l.peers.pick(fl.key, nowhere, func(i int) bool { return l.refusedBy(e, i) })
	if to == nowhere {
		l.park(e)
		return
	}
	d := l.dests[to]
	e.at = d
	d.addStray(e)
	signal(d.wake)
}

// park lays e aside: nobody takes it, and the policies of the queue may.
func (l *line) park(e *entry) {
	e.stage, e.at = parked, nil
	l.parked[e] = struct{}{}
	l.cursor.Return(e.seq)
}

// refusedBy reports whether a destination said no to e, and that still stands: a loop as
// long as that node is there, all else for the same connection.
func (l *line) refusedBy(e *entry, dest int) bool {
	d := l.dests[dest]
	r, ok := e.refused[d]
	return ok && (r.conn == d.conns || r.code == transport.Loop && r.node == d.node)
}

// update puts a flow where its home finds it.
func (l *line) update(fl *flow) {
	if fl.home == nowhere {
		return
	}
	d := l.dests[fl.home]
	d.ready.update(fl)
	if fl.at >= 0 {
		signal(d.wake)
	}
}

// drop forgets an entry: it is settled, or the queue gave it up.
func (l *line) drop(e *entry) {
	if e.stage == unfinal {
		l.count.unfinal = minus(l.count.unfinal, e)
	} else {
		l.ahead--
	}
	e.stage = gone
	delete(l.parked, e)
	delete(l.entries, e.seq)
	e.lane.remove(e)
	if len(e.lane.byN) == 0 {
		delete(l.lanes, e.lane.lane)
	}
	l.f.finals.untrack(e.lane.lane)
	if e.flow.tracked--; e.flow.tracked == 0 {
		e.flow.idle = l.now()
	}
	signal(l.room)
}

// out ends what destination and flow owe for e, which is fetching or given.
func (l *line) out(e *entry) {
	d, now := e.at, l.now()
	d.out--
	l.peers.health[d.i].owes(now, d.out > 0)
	if e.counted {
		e.counted = false
		e.flow.out--
		l.arrive(e.flow)
	}
	for t := e.lane.byN[e.n]; t != nil; t = t.twin {
		if t != e && t.stage == parked {
			l.unpark(t)
		}
	}
}

// sweep forgets flows that had nothing for a while, and what the queue dropped of what
// everybody refused.
func (l *line) sweep(now time.Duration) {
	if now-l.swept < idleFlows {
		return
	}
	l.swept = now
	for _, d := range l.dests {
		if l.peers.removed[d.i] && d.out == 0 {
			d.end()
		}
	}
	l.forgetDropped()
	for k, fl := range l.flows {
		if fl.tracked == 0 && now-fl.idle > idleFlows && now >= fl.pinUntil {
			delete(l.flows, k)
		}
	}
}

// forgetDropped drops what is parked and is in the queue no more. The rest is found when it
// is read for a destination.
func (l *line) forgetDropped() {
	for e := range l.parked {
		if _, held := l.held[e.seq]; !held && !l.cursor.Needs(e.seq) {
			l.drop(e)
		}
	}
}

func plus(t queue.Tally, e *entry) queue.Tally {
	t.Batches++
	t.Records += uint64(e.records)
	t.Payload += e.payload
	t.Bytes += uint64(e.size)
	return t
}

func minus(t queue.Tally, e *entry) queue.Tally {
	t.Batches--
	t.Records -= uint64(e.records)
	t.Payload -= e.payload
	t.Bytes -= uint64(e.size)
	return t
}
