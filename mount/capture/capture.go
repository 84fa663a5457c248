package capture

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"ftfuse/internal/batch"
	"ftfuse/internal/record"
	"ftfuse/mount/spool"
	"ftfuse/queue"
)

var errShort = errors.New("fewer bytes than the journal says")

// Capture cuts what is written to a spool into batches and commits them to a queue.
// Make it with New, call Recover once, then Run. Drain, DrainAll, Overwrite,
// BeginTruncate, FinishTruncate and Stats are safe for concurrent use; before Run
// they wait for it.
type Capture struct {
	o    Options
	lane batch.Lane // that of route 0 and bucket 0
	n    counters

	// Run's goroutine.
	ctx        context.Context
	lanes      []*lane
	laneBy     map[laneKey]*lane
	single     bool  // there is but one lane
	l          *lane // whose batch is read into
	win        window
	attr       record.Attr // of what is cut now
	piecing    record.Attr // piece's
	adding     record.Attr // add's
	entries    []queue.Entry
	extra      []kv
	setSeq     uint64 // the journal's sequence number last stored
	taken      uint64 // the newest entry taken in
	queued     int    // entries taken in and not cut
	newest     uint64 // the newest writer id seen
	open       uint64 // the newest writer id when the line that end ends was ended
	in         []spool.Entry
	grown      []spool.Growth
	growing    []*file // may have bytes of the kernel that are not taken in
	one        [1]item
	files      map[spool.Number]*file
	lastFile   *file
	ready      []*file
	readyHead  int
	frozen     []*file
	paths      map[string]*path
	pathList   []*path
	lastPath   *path
	lastPathID uint32
	rules      atomic.Pointer[ruleSet] // replaced by Run's goroutine
	maxPending int64
	line       []byte // what is judged, where it is not in the window
	kept       []byte // what a filter leaves of the window's lines
	pendBytes  int64
	pendCount  int
	tally      tally
	lossy      bool                     // a start: the journal lost notes, so gaps may have bytes
	live       func(writer uint64) bool // of a start: see Recover
	collecting bool                     // an overwrite: sealed batches are kept together
	rewritten  int                      // bytes that a filter made of an overwrite's lines so far
	again      bool                     // a wake-up was used elsewhere
	dirtySince time.Time
	swept      time.Time // when giveBack looked last,
	roomy      bool      // and whether it left somebody a buffer
	timer      *time.Timer

	dirtyFiles   []*file
	dirtyWriters []*writer
	dirtyPaths   []*path

	arm      chan uint64
	arrived  chan struct{}
	armed    bool
	wake     chan struct{} // capacity 1: a request, a commit, a failure
	complete chan struct{} // capacity 1: a commit, for the completer

	contested atomic.Bool // there is something in conflicts

	settleMu sync.Mutex // file.gen, and acting on it

	mu        sync.Mutex
	requests  []*request
	waiters   []waiter
	finished  []*commit
	gone      []spool.Number
	inFlight  int64
	pace      pace
	submitted uint64
	committed uint64
	freed     uint64                  // committed, and what it made superfluous given back
	conflicts map[batch.Lane]struct{} // route and bucket 0, see Conflict
	hurry     func()                  // ends the wait of a submit for room, for a request that does not wait for that; or nil
	err       error                   // of the queue or the completer: everything stops
	lost      error                   // of the first commit that failed: neither it nor any later one counts
	stopped   error                   // Run has ended
	recovered bool
}

// New returns a Capture that has done nothing yet.
func New(o Options) (*Capture, error) {
	if err := o.setDefaults(); err != nil {
		return nil, err
	}
	c := &Capture{
		o: o, laneBy: map[laneKey]*lane{}, single: oneLane(o.Rules, o.Buckets), in: make([]spool.Entry, 0, 4096),
		files: map[spool.Number]*file{}, paths: map[string]*path{},
		arm: make(chan uint64), arrived: make(chan struct{}, 1),
		wake: make(chan struct{}, 1), complete: make(chan struct{}, 1),
		timer: time.NewTimer(time.Hour),
	}
	c.timer.Stop()
	if c.single {
		c.l = c.openLane(laneKey{})
	}
	c.setRules(o.Rules)
	return c, nil
}

// Lane returns the lane of this start's batches that have route and bucket 0; others differ
// in these alone. It is known once Recover returned, and changes only after a Conflict.
func (c *Capture) Lane() batch.Lane { return c.lane }

func poke(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

// fail stops everything for err.
func (c *Capture) fail(err error) {
	c.mu.Lock()
	if c.err == nil {
		c.err = err
	}
	c.mu.Unlock()
	poke(c.wake)
}

func (c *Capture) failure() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// Run captures until ctx ends, and then returns nil; what was accepted and not yet
// captured stays in the spool. To have it all in the queue call DrainAll before. Any
// error is final: the role must stop. Run's goroutines have ended when it returns.
func (c *Capture) Run(ctx context.Context) error {
	if !c.recovered {
		return errors.New("capture: Run before Recover")
	}
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() { c.completer(ctx) })
	wg.Go(func() { c.waiter(ctx) })
	c.ctx = ctx
	err := c.loop(ctx)
	if ctx.Err() != nil && (err == nil || errors.Is(err, ctx.Err())) {
		err = nil
	}
	cancel()
	wg.Wait()
	c.stop(err)
	return err
}

// stop answers everybody who still waits, but for what is on its way to the disk and was
// made for a request: only its commit tells whether that happened.
func (c *Capture) stop(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.stopped = ErrStopped
	if err != nil {
		c.stopped = fmt.Errorf("%w: %w", ErrStopped, err)
	}
	for _, r := range c.requests {
		r.answer(c.stopped)
	}
	kept := c.waiters[:0]
	for _, w := range c.waiters {
		if w.r.run == nil {
			w.r.answer(c.stopped)
		} else {
			kept = append(kept, w)
		}
	}
	clear(c.waiters[len(kept):])
	c.requests, c.waiters = nil, kept
}

func (c *Capture) loop(ctx context.Context) error {
	for ctx.Err() == nil {
		if err := c.failure(); err != nil {
			return err
		}
		c.again = false
		c.forgetGone()
		took := c.intake()
		if err := c.serve(); err != nil {
			return err
		}
		cut, err := c.fill()
		if err != nil {
			return err
		}
		if c.readyHead < len(c.ready) {
			continue
		}
		sent, err := c.submitIfDue()
		if err != nil {
			return err
		}
		if took || cut || sent || c.again {
			continue
		}
		c.sleep(ctx)
	}
	return ctx.Err()
}

// submitIfDue submits what there is unless a transaction is on its way: then it waits
// for that, and the batch goes on filling. State without batches waits a while for
// company.
func (c *Capture) submitIfDue() (bool, error) {
	if !c.isDirty() {
		return false, nil
	}
	if c.busy() {
		return false, nil
	}
	if !c.filled() {
		now := time.Now()
		if c.dirtySince.IsZero() {
			c.dirtySince = now
		}
		if now.Sub(c.dirtySince) < c.o.LazyCommit && c.usedUp()-c.setSeq < 4096 {
			return false, nil
		}
	}
	c.dirtySince = time.Time{}
	return true, c.submit(c.ctx, false)
}

// busy reports whether a transaction is on its way.
func (c *Capture) busy() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.submitted > c.committed
}

// busyPoll is how often new entries are looked for while a transaction is on its way:
// waiting for each would cost its writer a wake-up, and the batch cannot go anyway.
const busyPoll = time.Millisecond

// sleep waits for an entry, for a file to grow, a request or a commit.
func (c *Capture) sleep(ctx context.Context) {
	busy := c.busy()
	wait := time.Duration(-1)
	var arrived <-chan struct{}
	if busy {
		wait = busyPoll
	} else {
		if c.isDirty() {
			wait = c.o.LazyCommit
		}
		if !c.armed {
			select {
			case c.arm <- c.taken + 1:
				c.armed = true
			case <-ctx.Done():
				return
			}
		}
		arrived = c.arrived
	}
	if d, ok := c.nextLook(); ok && (wait < 0 || d < wait) {
		wait = d
	}
	if c.giveBack() && wait < 0 {
		wait = idleLane
	}
	var timer <-chan time.Time
	if wait >= 0 {
		c.timer.Reset(wait)
		timer = c.timer.C
	}
	select {
	case <-arrived:
		c.armed = false
	case <-c.o.Store.Growing():
	case <-c.wake:
	case <-timer:
	case <-ctx.Done():
	}
	c.timer.Stop()
}

// nextLook is how long from now sizes of files have to be looked at, if any have to.
func (c *Capture) nextLook() (time.Duration, bool) {
	if len(c.growing) > 0 {
		return spool.PollEvery, true
	}
	return c.o.Store.NextPoll()
}

// waiter waits for journal entries in Run's stead.
func (c *Capture) waiter(ctx context.Context) {
	for {
		select {
		case seq := <-c.arm:
			if c.o.Store.Wait(ctx, seq) != nil {
				return
			}
			poke(c.arrived)
		case <-ctx.Done():
			return
		}
	}
}

// Conflict tells that the next node has another content under an id of lane: a copy of this
// source gave out the same ids. If lane is of the current epoch, batches go on under a new one.
// What was sealed before keeps its id.
func (c *Capture) Conflict(lane batch.Lane) {
	lane.Route, lane.Bucket = 0, 0
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.conflicts == nil {
		c.conflicts = map[batch.Lane]struct{}{}
	}
	c.conflicts[lane] = struct{}{}
	c.contested.Store(true)
}

// isContested reports whether Conflict was called for the current epoch. No other one comes
// back: it is asked once for each.
func (c *Capture) isContested() bool {
	if !c.contested.Load() {
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	_, current := c.conflicts[c.lane]
	clear(c.conflicts)
	c.contested.Store(false)
	return current
}

// leaveContested begins a new epoch between two batches if Conflict asked for it. It is
// stored with the next one.
func (c *Capture) leaveContested() {
	if !c.isContested() {
		return
	}
	was := c.lane
	if err := c.newEpoch(); err != nil {
		c.fail(err)
		return
	}
	for _, l := range c.lanes {
		l.number = 0
	}
	c.o.Logger.Error("batch ids of this epoch were taken with another content: going on under a new epoch; was this machine or its state_dir copied?",
		"lane", was.String(), "new", c.lane.String())
}

// newEpoch stores a raised counter with fresh random bits before the first batch, so
// that no batch id is ever given out twice, also by a clone or a restored copy.
func (c *Capture) newEpoch() error {
	e := batch.Epoch{Counter: 1}
	if v, ok := c.o.Queue.Get(keyEpoch); ok {
		if err := checkValue(keyEpoch, v, 17); err != nil {
			return err
		}
		e.Counter = le.Uint64(v[1:]) + 1
	}
	var random [8]byte
	rand.Read(random[:])
	e.Random = le.Uint64(random[:])
	v := le.AppendUint64(le.AppendUint64([]byte{kvVersion}, e.Counter), e.Random)
	c.extra = append(c.extra, kv{Key: keyEpoch, Value: v})
	c.lane = batch.Lane{Origin: c.o.Origin, Epoch: e}
	return nil
}
