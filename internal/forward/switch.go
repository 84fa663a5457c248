package forward

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"ftfuse/internal/batch"
	"ftfuse/internal/failpoint"
	"ftfuse/queue"
	"ftfuse/transport"
)

// Steps of a change.
var (
	fpAdded    = failpoint.New("forward/added")    // the queue has the new cursors, too, and nobody has begun with them
	fpPaused   = failpoint.New("forward/paused")   // nothing is sent; the queue has the old cursors and the new ones
	fpCursors  = failpoint.New("forward/cursors")  // it has the new ones, on disk with the next commit
	fpReplaced = failpoint.New("forward/replaced") // the next Forwarder is about to run
)

// pauseLimit is how long a change waits for what destinations were given.
const pauseLimit = 2 * time.Second

// Switch is a Forwarder whose groups change while it runs. Its methods are those of
// Forwarder, and safe for concurrent use.
type Switch struct {
	one sync.Mutex // held by Change

	mu    sync.RWMutex // held for writing while one takes the other's place
	f     *Forwarder
	o     Options
	stop  context.CancelFunc // ends the Run of f; nil: not begun
	ended chan struct{}      // closed when that returned; nil: f does not run yet
	again chan struct{}      // closed when another f is to be run
	begun chan struct{}      // closed when f runs
	going chan struct{}      // closed at the end of the change that ends f; nil: there is none
}

// NewSwitch is New.
func NewSwitch(o Options) (*Switch, error) {
	f, err := New(o)
	if err != nil {
		return nil, err
	}
	return &Switch{f: f, o: o, begun: make(chan struct{})}, nil
}

// Run forwards until ctx ends; see Forwarder.Run.
func (s *Switch) Run(ctx context.Context) error {
	for {
		run, stop := context.WithCancel(ctx)
		s.mu.Lock()
		f, ended, again := s.f, make(chan struct{}), make(chan struct{})
		s.stop, s.ended, s.again = stop, ended, again
		close(s.begun)
		s.mu.Unlock()
		err := f.Run(run)
		asked := run.Err() != nil // Change, or ctx
		stop()
		close(ended)
		if err != nil || ctx.Err() != nil || !asked {
			return err
		}
		select {
		case <-again:
		case <-ctx.Done():
			return nil
		}
	}
}

// Change goes over to o, whose queue, identity and callbacks are those of before. It gives
// the groups that go so much patience to send what is in the queue for them; then nothing is sent for a moment, while cursors makes the queue's cursors
// those of o.Groups (an error of it changes nothing). Groups that stay go on where they were.
// Nothing is lost; what a destination did not answer in time is sent again, flagged, to it or
// to the one in its place.
//
// The queue has the cursors of the new groups already, and of the old ones still.
func (s *Switch) Change(ctx context.Context, patience time.Duration, o Options, cursors func() error) error {
	s.one.Lock()
	defer s.one.Unlock()
	if _, err := o.withDefaults(); err != nil {
		return err
	}
	f, stop, ended, err := s.running(ctx)
	if err != nil {
		return err
	}
	short, cancel := context.WithTimeout(ctx, patience)
	f.sendOff(short, Cursors(o.Groups))
	cancel()
	defer s.goOver()()
	short, cancel = context.WithTimeout(context.Background(), pauseLimit)
	f.pause(short)
	cancel()
	stop()
	<-ended
	if err := fpPaused.Inject(); err != nil {
		return errors.Join(err, s.replace(s.o))
	}
	if err = cursors(); err == nil {
		err = fpCursors.Inject()
	}
	if err != nil {
		o = s.o
	}
	return errors.Join(err, s.replace(o))
}

// goOver says that a change ends f, until the function that it returns is called.
func (s *Switch) goOver() (done func()) {
	going := make(chan struct{})
	set := func(c chan struct{}) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.going = c
	}
	set(going)
	return func() {
		set(nil)
		close(going)
	}
}

// running returns what runs. It waits, until ctx ends, for one that another change has just put there.
func (s *Switch) running(ctx context.Context) (f *Forwarder, stop context.CancelFunc, ended chan struct{}, err error) {
	s.mu.RLock()
	begun, never := s.begun, s.stop == nil
	s.mu.RUnlock()
	if never {
		return nil, nil, nil, errors.New("change the groups of destinations: they do not run yet")
	}
	select {
	case <-begun:
	case <-ctx.Done():
		return nil, nil, nil, fmt.Errorf("change the groups of destinations: wait for those of the last change to run: %w", ctx.Err())
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.f, s.stop, s.ended, nil
}

// replace puts a successor into the place of the Forwarder that has ended, and has it run.
func (s *Switch) replace(o Options) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	f, err := s.f.successor(o)
	if err != nil {
		return fmt.Errorf("change the groups of destinations: %w; nothing is sent until a restart", err)
	}
	s.f, s.o, s.begun, s.ended = f, o, make(chan struct{}), nil
	close(s.again)
	return fpReplaced.Inject()
}

// now calls fn with the Forwarder, which no other replaces meanwhile.
func (s *Switch) now(fn func(*Forwarder)) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	fn(s.f)
}

// Drain is Forwarder.Drain, of whatever groups a change has put there meanwhile. It ends with
// Run, too.
func (s *Switch) Drain(ctx context.Context) error {
	for {
		s.mu.RLock()
		f, ended, going := s.f, s.ended, s.going
		s.mu.RUnlock()
		if going != nil {
			select {
			case <-going:
				continue
			case <-ctx.Done():
				return fmt.Errorf("the groups of destinations are being changed, and batches stay queued: %w", ctx.Err())
			}
		}
		err := f.drainWhile(ctx, ended)
		s.mu.RLock()
		same := s.f == f && s.going == nil
		s.mu.RUnlock()
		if same || ctx.Err() != nil {
			return err
		}
	}
}

// drainWhile is Drain until ended is closed (nil: never).
func (f *Forwarder) drainWhile(ctx context.Context, ended <-chan struct{}) error {
	ctx, cancel := context.WithCancel(ctx)
	over := make(chan struct{})
	defer func() { cancel(); <-over }()
	go func() {
		defer close(over)
		select {
		case <-ended:
			cancel()
		case <-ctx.Done():
		}
	}()
	return f.Drain(ctx)
}

// Horizon is Forwarder.Horizon.
func (s *Switch) Horizon(lane batch.Lane, below uint64) {
	s.now(func(f *Forwarder) { f.Horizon(lane, below) })
}

// Covers is Forwarder.Covers.
func (s *Switch) Covers(id batch.ID, via []batch.Node) (covers bool) {
	s.now(func(f *Forwarder) { covers = f.Covers(id, via) })
	return covers
}

// Took is Forwarder.Took.
func (s *Switch) Took(id batch.ID, via []batch.Node) { s.now(func(f *Forwarder) { f.Took(id, via) }) }

// Finals is Forwarder.Finals.
func (s *Switch) Finals(lane batch.Lane) (all batch.Ranges) {
	s.now(func(f *Forwarder) { all = f.Finals(lane) })
	return all
}

// Skip is Forwarder.Skip.
func (s *Switch) Skip(lane batch.Lane, skips ...transport.Skip) {
	s.now(func(f *Forwarder) { f.Skip(lane, skips...) })
}

// Dropped is Forwarder.Dropped.
func (s *Switch) Dropped(seq uint64) { s.now(func(f *Forwarder) { f.Dropped(seq) }) }

// Stats is Forwarder.Stats.
func (s *Switch) Stats() (st Stats) {
	s.now(func(f *Forwarder) { st = f.Stats() })
	return st
}

// union is a and what of b is not in it.
func union(a, b []string) []string {
	all := slices.Clone(a)
	for _, x := range b {
		if !slices.Contains(all, x) {
			all = append(all, x)
		}
	}
	return all
}

// Consumers are the cursors of a role before and after a change of who consumes its queue:
// Begin, then the parts that consume go over (Change among them), then End, or Undo.
type Consumers struct {
	Queue  *queue.Queue
	Copies []string
	// Was and Now are the queue's cursors before and after.
	Was, Now []string
	// Wants is queue.Options.Wants of the old and the new ones.
	Wants queue.CursorWants
}

// Begin adds the cursors that are new: what is committed from then on is for them too.
func (c *Consumers) Begin() error {
	err := c.Queue.SetCursors(queue.CursorSet{Cursors: union(c.Was, c.Now), Copies: c.Copies, Wants: c.Wants, Later: c.fresh()})
	if err != nil {
		return err
	}
	return fpAdded.Inject()
}

// End removes those that are gone. The lines of groups that are new begin; other consumers
// have begun already.
func (c *Consumers) End() error {
	return c.Queue.SetCursors(queue.CursorSet{Cursors: c.Now, Copies: c.Copies, Wants: c.Wants, Again: c.fresh()})
}

// fresh are the cursors of the lines of groups that are new.
func (c *Consumers) fresh() (names []string) {
	for _, name := range c.Now {
		if strings.HasPrefix(name, cursorPrefix) && !slices.Contains(c.Was, name) {
			names = append(names, name)
		}
	}
	return names
}

// Undo takes Begin back, before a consumer of what is new has begun: what the old ones have
// passed meanwhile has been where it was to go, and none of it is lost.
func (c *Consumers) Undo() error {
	return c.Queue.SetCursors(queue.CursorSet{Cursors: c.Was, Copies: c.Copies, Wants: c.Wants, Unbegun: true})
}
