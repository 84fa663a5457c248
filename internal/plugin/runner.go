package plugin

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"slices"
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

	cancel context.CancelFunc
	look   chan struct{} // the output file may have changed
	finish chan struct{} // closed: end the child, start no other
	once   sync.Once
	ended  chan struct{} // closed when run has returned
	more   chan struct{} // something was taken, or the child's state changed

	child    *child // nil: none runs
	window   []*offered
	bytes    int64 // of window
	handed   int   // units of window that the child was given
	writing  bool  // the child's writer has a unit
	refs     map[uint64]int
	unsynced []uint64 // taken, to be acked when the output is synced

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
	r.logs = newLineLog(s.o.Logger, label, r.count)
	return r, nil
}

// run starts the child again and again, and gives it what comes, until ctx or finish ends
// it. It returns an error when the queue fails.
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
	return fetched
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

// full reports whether no more units are to be taken in.
func (r *runner) full() bool { return r.bytes >= maxOfferedBytes || len(r.window) >= maxOffered }

// untilDue is how long nothing has to be done.
func (r *runner) untilDue(now time.Time) time.Duration {
	next := now.Add(time.Hour)
	for _, at := range []time.Time{r.restartAt, r.pollAt, r.syncAt, r.lookAt, r.termAt, r.killAt, r.stuckAt()} {
		if !at.IsZero() && at.Before(next) {
			next = at
		}
	}
	return max(0, next.Sub(now))
}

// stuckAt is when the child counts as stuck; zero: it does not.
func (r *runner) stuckAt() time.Time {
	if r.p.Timeout == 0 || r.child == nil || r.handed == 0 || !r.killAt.IsZero() {
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
		r.ending = true
		r.child.signal(syscall.SIGKILL)
		r.killAt = now.Add(time.Hour) // a process in the kernel may not go at once
	}
	if is(r.termAt) {
		r.log.Warn("a plugin does not end by itself; it gets SIGTERM", "plugin", r.label, "pid", r.child.cmd.Process.Pid)
		r.child.signal(syscall.SIGTERM)
		r.termAt, r.killAt = time.Time{}, now.Add(r.set.o.ExitGrace/2)
	}
	if is(r.killAt) {
		r.log.Error("a plugin does not end; it is killed", "plugin", r.label, "pid", r.child.cmd.Process.Pid)
		r.child.signal(syscall.SIGKILL)
		r.killAt = now.Add(time.Hour)
	}
}

// begin starts a child.
func (r *runner) begin(now time.Time) {
	stdout, err := r.out.open(now)
	var c *child
	if err == nil {
		c, err = startChild(&r.p, r.set.env(&r.p), stdout, r.logs)
	}
	r.count.starts.Add(1)
	if err != nil {
		r.log.Error("a plugin cannot be started; it is tried again", "plugin", r.label, "error", err)
		r.down(now, err.Error())
		return
	}
	pid := c.cmd.Process.Pid
	r.set.notePID(r, pid)
	r.log.Info("plugin started", "plugin", r.label, "pid", pid)
	r.child, r.started, r.progress, r.moved = c, now, now, false
	r.handed, r.writing, r.ending, r.read = 0, false, false, 0
	r.pollAt, r.termAt, r.killAt, r.lookAt = time.Time{}, time.Time{}, time.Time{}, time.Time{}
	if stdout != nil {
		r.lookAt = now.Add(lookEvery)
	}
	for _, o := range r.window {
		o.put, o.end = false, 0
	}
	r.mu.Lock()
	r.state.pid, r.state.since, r.state.next, r.state.why = pid, now, time.Time{}, ""
	r.mu.Unlock()
	signal(r.more)
}

// down notes that no child runs, and when the next one starts.
func (r *runner) down(now time.Time, why string) {
	wait := r.set.o.MinBackoff
	for range min(r.failures, 30) {
		wait = min(2*wait, r.set.o.MaxBackoff)
	}
	r.failures++
	r.restartAt = now.Add(wait)
	r.mu.Lock()
	r.state.pid, r.state.since, r.state.next, r.state.why = 0, now, r.restartAt, why
	r.mu.Unlock()
	signal(r.more)
}

// end has the child end: its input ends when the unit that is being written is in it. It
// gets SIGTERM at by; zero: it may take as long as it likes.
func (r *runner) end(by time.Time) {
	if r.child == nil {
		return
	}
	r.ending = true
	if r.killAt.IsZero() {
		r.termAt = by
	}
	if !r.writing {
		r.child.endInput()
	}
}

// take takes a unit in.
func (r *runner) take(u *unit) {
	if u.seq != 0 {
		r.refs[u.seq] += u.holds
	}
	if u.bytes == 0 && len(u.releases) == 0 {
		r.settleBatch(u)
		return
	}
	if u.seq != 0 {
		r.refs[u.seq]++
	}
	r.window = append(r.window, &offered{unit: u})
	r.bytes += u.bytes
}

// settleBatch acks the batches of which u was the last part.
func (r *runner) settleBatch(u *unit) {
	if u.seq != 0 && r.refs[u.seq] == 0 {
		r.ack(u.seq)
	}
	for _, seq := range u.releases {
		r.deref(seq)
	}
}

func (r *runner) deref(seq uint64) {
	if r.refs[seq]--; r.refs[seq] == 0 {
		r.ack(seq)
	}
}

// ack tells the queue, with AckLine not before the output is on disk.
func (r *runner) ack(seq uint64) {
	delete(r.refs, seq)
	if r.out.file == nil || r.p.Ack != AckLine {
		r.cur.Ack(seq)
		_ = fpAcked.Inject() // a kill is all that can be here
		signal(r.more)
		return
	}
	if r.unsynced = append(r.unsynced, seq); r.syncAt.IsZero() {
		r.syncAt = time.Now().Add(r.set.o.SyncEvery)
	}
}

// flushAcks brings the output to disk and acks what waited for that. After an error the
// bytes may be gone: what waited is given again.
func (r *runner) flushAcks() {
	r.syncAt = time.Time{}
	if len(r.unsynced) == 0 {
		return
	}
	if err := r.out.sync(); err != nil {
		r.log.Error("what a plugin printed may be lost; it gets the batches again at the next start of the role", "plugin", r.label, "batches", len(r.unsynced), "error", err)
		r.unsynced = nil
		return
	}
	for _, seq := range r.unsynced {
		r.cur.Ack(seq)
	}
	_ = fpAcked.Inject()
	r.unsynced = r.unsynced[:0]
	signal(r.more)
}

// hand gives the child the next unit, if it can take one.
func (r *runner) hand() {
	if r.child == nil || r.writing || r.ending || r.handed == len(r.window) {
		return
	}
	o := r.window[r.handed]
	r.handed++
	r.writing, o.since = true, time.Now()
	r.child.give(o.unit)
	if r.p.Ack == AckPipe && r.pollAt.IsZero() {
		r.pollAt = o.since.Add(lastPoll)
	}
	_ = fpGiven.Inject()
}

// handle does what an event of the child asks for.
func (r *runner) handle(e event) {
	now := time.Now()
	switch {
	case e.exit != nil:
		r.gone(e.exit, now)
	case e.err != nil:
		r.writing = false
		if !r.ending {
			r.log.Warn("a plugin closed its input", "plugin", r.label, "pid", r.child.cmd.Process.Pid, "error", e.err)
		}
		r.end(now.Add(r.set.o.ExitGrace))
	case e.wrote != nil:
		r.wrote(e.wrote, now)
	case e.bad != "":
		r.count.badAcks.Add(1)
		r.log.Warn("a plugin wrote to descriptor 3 what is not \"ok N\"", "plugin", r.label, "line", escape(e.bad))
	default:
		r.acked(e.ack, now)
	}
}

// wrote notes that all of a unit is in the pipe.
func (r *runner) wrote(u *unit, now time.Time) {
	r.writing = false
	i := slices.IndexFunc(r.window, func(o *offered) bool { return o.unit == u })
	if i < 0 {
		return
	}
	o := r.window[i]
	o.put, o.end = true, r.child.put.Load()
	r.count.given.add(u)
	if r.p.Ack == AckPipe {
		r.poll, r.pollAt = firstPoll, now
	} else {
		r.dropTaken(now)
	}
	if r.ending {
		r.child.endInput()
	}
}

// acked notes "ok n".
func (r *runner) acked(n uint64, now time.Time) {
	i := slices.IndexFunc(r.window[:r.handed], func(o *offered) bool { return o.seq == n && !o.ok })
	if i < 0 {
		r.count.badAcks.Add(1)
		r.log.Warn("a plugin acknowledged a batch that it was not offered, or twice", "plugin", r.label, "batch", n)
		return
	}
	r.window[i].ok = true
	r.dropTaken(now)
}

// dropTaken lets the units go that are written and acknowledged.
func (r *runner) dropTaken(now time.Time) {
	kept := r.window[:0]
	for _, o := range r.window {
		if !o.ok || !o.put {
			kept = append(kept, o)
			continue
		}
		r.handed-- // none is acknowledged that was not handed over
		r.taken(o, now)
	}
	clear(r.window[len(kept):])
	r.window = kept
}

// taken notes that the plugin has taken a unit.
func (r *runner) taken(o *offered, now time.Time) {
	_ = fpTaken.Inject()
	r.bytes -= o.bytes
	r.progress, r.moved = now, true
	r.count.taken.add(o.unit)
	if o.seq != 0 {
		r.deref(o.seq)
	}
	for _, seq := range o.releases {
		r.deref(seq)
	}
}

// pollInput looks how much the child has read.
func (r *runner) pollInput(now time.Time) {
	r.pollAt = time.Time{}
	if r.child == nil {
		return
	}
	n := r.child.taken()
	if n > r.read {
		r.read, r.progress = n, now
	}
	if r.readTo(n, now) {
		r.poll = firstPoll
	}
	if r.handed > 0 {
		r.pollAt = now.Add(r.poll)
		r.poll = min(2*r.poll, lastPoll)
	}
}

// readTo lets the units go that end at or before n of the child's input.
func (r *runner) readTo(n int64, now time.Time) (moved bool) {
	k := 0
	for ; k < len(r.window) && r.window[k].put && r.window[k].end <= n; k++ {
		r.taken(r.window[k], now)
	}
	if k == 0 {
		return false
	}
	r.window = slices.Delete(r.window, 0, k)
	r.handed -= k
	return true
}

// gone notes the end of the child.
func (r *runner) gone(e *exit, now time.Time) {
	if r.p.Ack == AckPipe {
		r.readTo(e.taken, now)
	}
	r.flushAcks()
	pid, asked := r.child.cmd.Process.Pid, r.ending && r.killAt.IsZero()
	r.set.forgetPID(r)
	r.child, r.handed, r.writing, r.ending = nil, 0, false, false
	r.pollAt, r.termAt, r.killAt, r.lookAt = time.Time{}, time.Time{}, time.Time{}, time.Time{}
	r.out.close()
	again := 0
	for _, o := range r.window {
		if o.put {
			again++
		}
		o.ok = false
	}
	level := slog.LevelWarn
	if asked && e.good {
		level = slog.LevelInfo
	}
	r.log.Log(context.Background(), level, "plugin ended", "plugin", r.label, "pid", pid, "state", e.state, "batches_not_taken", again)
	if asked && !r.finishing {
		r.failures = 0
		r.restartAt = now
		return
	}
	if e.good && r.moved || now.Sub(r.started) >= steadyRun {
		r.failures = 0
	}
	r.down(now, e.state)
}

// lookAtOutput has the child end where another output file is due.
func (r *runner) lookAtOutput(now time.Time) {
	r.lookAt = time.Time{}
	if r.child == nil || r.ending {
		return
	}
	if r.out.stale(now) {
		r.log.Info("the output file of a plugin is another one now; it is started again", "plugin", r.label, "file", r.out.now)
		r.end(now.Add(max(r.set.o.ExitGrace, r.p.Timeout)))
		return
	}
	if r.out.file != nil {
		r.lookAt = now.Add(lookEvery)
	}
}

// show makes the state known.
func (r *runner) show() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.state.waiting = len(r.window)
	r.state.held = len(r.refs)
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
