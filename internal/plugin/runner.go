package plugin

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"syscall"
	"time"

	"ftfuse/internal/failpoint"
	"ftfuse/queue"
)

// Bounds of what is offered to a plugin and not taken yet.
const (
	maxOfferedBytes = 4 << 20
	maxOffered      = 1024 // units
)

const (
	firstPoll = time.Millisecond // between looks at how much a child has read,
	lastPoll  = 100 * time.Millisecond
	lookEvery = time.Second // at the name of the output file
	steadyRun = 10 * time.Second
)

var (
	fpGiven = failpoint.New("plugin/given") // the first unit is in the pipe, or part of it
	fpTaken = failpoint.New("plugin/taken") // the plugin has taken a batch, its ack is not in the queue
	fpAcked = failpoint.New("plugin/acked") // acked to the queue, perhaps not on disk
)

// offered is a unit that is not taken yet.
type offered struct {
	*unit
	place int   // in the order of the queue
	put   bool  // all of it is in the pipe
	ok    bool  // the plugin said so
	end   int64 // where it ends in the child's input, once put
	since time.Time
}

// runner is one plugin. Its fields but those of mu belong to the goroutine of run.
type runner struct {
	p     Plugin
	label string // Rule, made unique
	set   *Set
	log   *slog.Logger
	cur   *queue.Cursor
	count *counters
	feed  *feed
	out   *target
	logs  *lineLog

	acksLog limiter // of what is wrong on descriptor 3

	cancel context.CancelFunc
	look   chan struct{} // the output file may have changed
	finish chan struct{} // closed: end the child, start no other
	once   sync.Once
	ended  chan struct{} // closed when run has returned
	more   chan struct{} // something was taken, or the child's state changed

	child   *child // nil: none runs
	window  []*offered
	bytes   int64 // of window
	handed  int   // units of window that the child was given
	writing bool  // the child's writer has a unit
	places  int   // given out
	refs    map[uint64]int

	unsynced      []*offered // taken, to be acked when the output is synced
	unsyncedBytes int64
	spoilt        string // why the output of this child could not be synced; it is to end
	failed        error  // of a sync: the role is to end

	ending    bool // the child is to end
	finishing bool // and none to follow
	left      bool // the child is left to itself
	failures  int  // in a row, for the backoff
	moved     bool // the child has taken something
	started   time.Time
	progress  time.Time // when it last took something
	read      int64     // bytes of its input, as far as it was seen
	poll      time.Duration
	restartAt, pollAt, syncAt, lookAt,
	termAt, killAt time.Time // zero: not due
	killed time.Time // when it got SIGKILL

	mu    sync.Mutex
	state state
}

// state is what others may see of a runner.
type state struct {
	pid     int // 0: none runs
	since   time.Time
	next    time.Time // of the next start
	why     string    // the last child ended, or could not be started
	waiting int       // units offered and not taken
	held    int       // with waiting 0: batches that wait for the rest of a line
	killed  time.Time // when the child got SIGKILL; zero: it did not
	earlier int       // process of an earlier run that is waited for; 0: none
	awaited time.Time // since when
}

func newRunner(s *Set, p Plugin, label string) (*runner, error) {
	r := &runner{
		p: p, label: label, set: s, log: s.o.Logger, count: &counters{}, refs: map[uint64]int{},
		look: make(chan struct{}, 1), finish: make(chan struct{}), ended: make(chan struct{}), more: make(chan struct{}, 1),
	}
	if p.Ack != AckPipe && p.Ack != AckLine {
		return nil, fmt.Errorf("ack %q, want %q or %q", p.Ack, AckPipe, AckLine)
	}
	var err error
	if r.feed, err = newFeed(&r.p, s.zone, r.count, s.o.Logger); err != nil {
		return nil, err
	}
	if r.out, err = newTarget(&r.p, s.zone); err != nil {
		return nil, err
	}
	r.acksLog = newLimiter()
	r.logs = newLineLog(s.o.Logger, label, r.count)
	return r, nil
}

// run starts the child again and again, and gives it what comes, until ctx or finish ends
// it. It returns an error when the queue fails, or a sync of the output.
func (r *runner) run(ctx context.Context) error {
	defer close(r.ended)
	defer r.out.end()
	defer func() {
		if !r.left {
			r.set.forgetPID(r)
		}
	}()
	r.awaitPredecessor(ctx)
	r.cur.Rewind() // another runner may have had it before
	units := make(chan *unit)
	var fetched error
	var fetching sync.WaitGroup
	fctx, stop := context.WithCancel(ctx)
	lost := make(chan struct{})
	fetching.Go(func() {
		if fetched = r.feed.run(fctx, r.cur, units); fetched != nil {
			close(lost)
		}
	})
	defer fetching.Wait()
	defer stop()
	r.restartAt = time.Now()
	r.loop(ctx, units, lost)
	r.flushAcks()
	stop()
	fetching.Wait()
	return errors.Join(fetched, r.failed)
}

// loop runs until no child is left and none is to follow.
func (r *runner) loop(ctx context.Context, units <-chan *unit, lost <-chan struct{}) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	done, finish := ctx.Done(), (<-chan struct{})(r.finish)
	for (!r.finishing || r.child != nil) && !r.left {
		in := units
		if r.full() || r.finishing {
			in = nil
		}
		var events <-chan event
		if r.child != nil {
			events = r.child.events
		}
		timer.Reset(r.untilDue(time.Now()))
		select {
		case u := <-in:
			r.take(u)
		case e := <-events:
			r.handle(e)
		case <-r.set.abandoned:
			r.left = true
			continue
		case <-r.look:
			r.lookAt = time.Now()
		case <-finish:
			finish, r.finishing = nil, true
			r.end(time.Time{})
		case <-lost:
			lost, r.finishing = nil, true
			r.end(time.Now().Add(r.set.o.ExitGrace))
		case <-done:
			done, r.finishing = nil, true
			r.end(time.Now().Add(r.set.o.ExitGrace))
		case <-timer.C:
		}
		r.due(time.Now())
		r.hand()
		r.show()
	}
}

// untilDue is how long nothing has to be done.
func (r *runner) untilDue(now time.Time) time.Duration {
	next := now.Add(time.Hour)
	for _, at := range []time.Time{r.restartAt, r.pollAt, r.syncAt, r.lookAt, r.termAt, r.killAt, r.stuckAt(), r.leaveAt()} {
		if !at.IsZero() && at.Before(next) {
			next = at
		}
	}
	return max(0, next.Sub(now))
}

// stuckAt is when the child counts as stuck; zero: it does not.
func (r *runner) stuckAt() time.Time {
	if r.p.Timeout == 0 || r.child == nil || r.handed == 0 || !r.killAt.IsZero() || !r.killed.IsZero() {
		return time.Time{}
	}
	at := r.window[0].since
	if r.progress.After(at) {
		at = r.progress
	}
	return at.Add(r.p.Timeout)
}

// due does what is due.
func (r *runner) due(now time.Time) {
	is := func(at time.Time) bool { return !at.IsZero() && !at.After(now) }
	if is(r.restartAt) && !r.finishing {
		r.restartAt = time.Time{}
		r.begin(now)
	}
	if is(r.pollAt) {
		r.pollInput(now)
	}
	if is(r.syncAt) {
		r.flushAcks()
	}
	if is(r.lookAt) {
		r.lookAtOutput(now)
	}
	if r.child == nil {
		return
	}
	if is(r.stuckAt()) {
		r.count.timeouts.Add(1)
		r.log.Error("a plugin takes nothing; it is killed and started again", "plugin", r.label, "pid", r.child.cmd.Process.Pid, "plugin_timeout", r.p.Timeout)
		r.kill(now)
	}
	if is(r.termAt) {
		r.log.Warn("a plugin does not end by itself; it gets SIGTERM", "plugin", r.label, "pid", r.child.cmd.Process.Pid)
		r.child.signal(syscall.SIGTERM)
		r.termAt, r.killAt = time.Time{}, now.Add(r.set.o.ExitGrace/2)
	}
	if is(r.killAt) {
		r.log.Error("a plugin does not end; it is killed", "plugin", r.label, "pid", r.child.cmd.Process.Pid)
		r.kill(now)
	}
	if is(r.leaveAt()) {
		r.leave()
	}
}

// show makes the state known.
func (r *runner) show() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.state.waiting = len(r.window) + len(r.unsynced)
	r.state.held = len(r.refs)
	r.state.killed = r.killed
}

// finishNow has the child end once it has read what it was given, and starts no other.
func (r *runner) finishNow() { r.once.Do(func() { close(r.finish) }) }

// stop ends the runner, by force after ExitGrace.
func (r *runner) stop() {
	r.finishNow()
	if r.cancel == nil {
		return // never started
	}
	timer := time.NewTimer(r.set.o.ExitGrace)
	defer timer.Stop()
	select {
	case <-r.ended:
	case <-timer.C:
		r.cancel()
		<-r.ended
	}
}

// settle waits until the plugin has taken all that the queue has for it, its child has
// ended by itself, or ctx ends.
func (r *runner) settle(ctx context.Context) {
	tick := time.NewTicker(50 * time.Millisecond) // for what was committed meanwhile
	defer tick.Stop()
	for !r.settled() {
		select {
		case <-r.more:
		case <-tick.C:
		case <-r.ended:
			return
		case <-ctx.Done():
			return
		}
	}
}

func (r *runner) settled() bool {
	r.mu.Lock()
	s := r.state
	r.mu.Unlock()
	if s.pid == 0 {
		return s.why != "" // else it is about to be started
	}
	for _, c := range r.set.o.Queue.Stats().Cursors {
		if c.Name == r.p.Cursor {
			return s.waiting == 0 && c.Waiting.Batches <= uint64(s.held)
		}
	}
	return true
}

// env is the environment of a plugin.
func (s *Set) env(p *Plugin) []string {
	path := os.Getenv("PATH")
	if path == "" {
		path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	}
	return []string{"PATH=" + path, "FTFUSE_HOST=" + s.o.Host, "FTFUSE_ROLE=" + s.o.Role, "FTFUSE_RULE=" + p.Rule}
}
