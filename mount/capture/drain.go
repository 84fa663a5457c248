package capture

import (
	"context"
	"fmt"
	"slices"
	"sync/atomic"

	"ftfuse/mount/spool"
)

// request is something that another goroutine wants of Run's. It is taken up once all
// entries up to until are cut: of one file, or of all.
type request struct {
	ctx    context.Context
	file   spool.Number
	all    bool
	until  uint64
	must   bool // goes on when its caller has gone, and while the queue is full
	inside bool // a part of the truncation for which the file is frozen
	// The queue takes what it needs beyond its limit: the bytes are in the spool already,
	// and whoever waits holds a lock of the kernel.
	beyond  bool
	yields  bool         // is beyond once its ctx ends: what it cut cannot be taken back
	owed    bool         // a note of before is not in the journal yet: until is to be looked up again
	looked  bool         // targets are known
	targets []target     // how far the kernel's bytes have to be cut
	run     func() error // done in Run's goroutine; what it changes is committed
	state   atomic.Int32 // waiting, taken, left
	res     chan error   // capacity 1
	once    atomic.Bool  // answered
}

// target is a position that a file has to reach, unless it is truncated before.
type target struct {
	f   *file
	gen uint64
	pos int64
}

// drainTurn is how much of a file a drain cuts before others have their turn.
const drainTurn = 2 << 20

const (
	waiting int32 = iota
	taken
	left
)

// waiter is a request whose transaction is on its way.
type waiter struct {
	r   *request
	txn uint64
}

func (r *request) answer(err error) {
	if r.once.CompareAndSwap(false, true) {
		r.res <- err
	}
}

// Drain returns nil when everything that was accepted of file n before the call is in
// the queue, on disk. When ctx ends first it returns its error; nothing is lost then.
// It returns queue.ErrFull where the queue is full and does not block.
func (c *Capture) Drain(ctx context.Context, n spool.Number) error {
	return c.ask(&request{ctx: ctx, file: n}, fmt.Sprintf("drain file %s", n))
}

// DrainNow is Drain for a caller who holds up programs that cannot be killed meanwhile: it
// does not wait for room in a full queue, since the bytes are in the spool already.
func (c *Capture) DrainNow(ctx context.Context, n spool.Number) error {
	return c.ask(&request{ctx: ctx, file: n, beyond: true}, fmt.Sprintf("drain file %s", n))
}

// DrainAll is Drain for all files.
func (c *Capture) DrainAll(ctx context.Context) error {
	return c.ask(&request{ctx: ctx, all: true}, "drain all files")
}

// ask posts r and waits for its answer, or until ctx ends.
func (c *Capture) ask(r *request, what string) error {
	if err := c.post(r); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	var err error
	select {
	case err = <-r.res:
	case <-r.ctx.Done():
		switch {
		case r.must, r.run == nil:
			err = r.ctx.Err()
		case r.state.CompareAndSwap(waiting, left):
			err = r.ctx.Err()
		default:
			c.press(r)
			err = <-r.res // it is being submitted under ctx, or on its way to the disk
		}
	}
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}

// press has r, which yields, not wait for room any longer.
func (c *Capture) press(r *request) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if r.yields {
		r.beyond = true
		c.hurryUp()
	}
}

// hurryUp ends the wait of a submit for room, and needs c.mu.
func (c *Capture) hurryUp() {
	if c.hurry != nil {
		c.hurry()
	}
	poke(c.wake)
}

// post has r done, and nobody has to wait for it.
func (c *Capture) post(r *request) error {
	r.res = make(chan error, 1)
	r.owed = c.o.Store.Owes(r.file) // of all for 0
	r.until = c.o.Store.Next() - 1
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.stopped != nil {
		return c.stopped
	}
	c.requests = append(c.requests, r)
	if r.beyond {
		c.hurryUp()
	} else {
		poke(c.wake)
	}
	return nil
}

// urgent reports whether somebody waits who does not wait for room. It needs c.mu.
func (c *Capture) urgent() bool {
	for _, r := range c.requests {
		if r.beyond && !r.once.Load() && r.state.Load() != left {
			return true
		}
	}
	return false
}

// serve takes up the requests whose bytes are there.
func (c *Capture) serve() error {
	c.mu.Lock()
	list := slices.Clone(c.requests)
	c.mu.Unlock()
	if len(list) == 0 {
		return nil
	}
	done := map[*request]bool{}
	var err error
	for _, r := range list {
		if done[r], err = c.serveOne(r); err != nil {
			break
		}
	}
	c.mu.Lock()
	c.requests = slices.DeleteFunc(c.requests, func(r *request) bool { return done[r] })
	c.mu.Unlock()
	return err
}

// serveOne reports whether r needs no more looking at.
func (c *Capture) serveOne(r *request) (bool, error) {
	if r.once.Load() || r.state.Load() == left || (r.ctx.Err() != nil && !r.must && r.run == nil) {
		return true, nil
	}
	f := c.files[r.file]
	if r.owed && (f == nil || !f.frozen) {
		if c.o.Store.Owes(r.file) {
			return false, nil
		}
		r.owed, r.until = false, c.o.Store.Next()-1
	}
	if c.taken < r.until || f != nil && f.frozen && !r.must && !r.inside && !r.all {
		return false, nil
	}
	if !r.looked && !c.look(r, f) {
		return false, nil
	}
	if f != nil && !r.all && !f.frozen {
		if err := c.cutTurn(f, drainTurn, c.taken); err != nil {
			return false, err
		}
		if f.next() <= r.until || !r.reached() {
			c.again = true
			return false, nil
		}
	}
	if r.all && (c.usedUp() < r.until || !r.reached()) {
		return false, nil
	}
	if r.run == nil {
		return c.submitFor(r, true)
	}
	// Records of others go first: the queue may have no room for them, and then the
	// caller can still leave.
	if ok, err := c.submitFor(nil, false); !ok || err != nil {
		return false, err
	}
	if !r.state.CompareAndSwap(waiting, taken) {
		return true, nil
	}
	if err := r.run(); err != nil {
		r.answer(err)
		return true, c.failure()
	}
	return c.submitFor(r, true)
}

// look finds out up to where the kernel's bytes have to be cut for r, and takes them in.
// False: that is not known yet.
func (c *Capture) look(r *request, f *file) bool {
	one := func(f *file) bool {
		if !f.kernel || f.frozen {
			return true
		}
		f.size = c.o.Store.Size(f.number)
		size := f.size
		if !c.takeGrown(f) {
			c.grow(f)
			return false
		}
		r.targets = append(r.targets, target{f, f.gen, size})
		return true
	}
	r.targets = r.targets[:0]
	switch {
	case r.all:
		for _, f := range c.files {
			if !one(f) {
				return false
			}
		}
	case f != nil && !one(f):
		return false
	}
	r.looked = true
	return true
}

// reached reports whether the kernel's bytes are cut that r waits for.
func (r *request) reached() bool {
	for len(r.targets) > 0 {
		t := &r.targets[len(r.targets)-1]
		if t.f.pos < t.pos && t.gen == t.f.gen && !t.f.empty() {
			return false
		}
		r.targets = r.targets[:len(r.targets)-1]
	}
	return true
}

// submitFor submits what there is, and answers r when it is on disk.
func (c *Capture) submitFor(r *request, sync bool) (bool, error) {
	if c.isDirty() {
		if err := c.submit(c.ctx, sync); err != nil {
			return false, err
		}
	}
	if r != nil {
		c.await(r)
	}
	return true, nil
}

// await answers r once the newest transaction is on disk.
func (c *Capture) await(r *request) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.committed >= c.submitted {
		r.answer(c.lost)
		return
	}
	c.waiters = append(c.waiters, waiter{r, c.submitted})
}

// refuse answers those who wait for room in a queue that does not block.
func (c *Capture) refuse(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	kept := c.requests[:0]
	for _, r := range c.requests {
		if r.must || r.beyond {
			kept = append(kept, r)
		} else {
			r.answer(err)
		}
	}
	c.requests = kept
}
