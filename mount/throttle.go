package mount

import (
	"context"
	"log/slog"
	"math"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"ftfuse/mount/spool"
)

// The kernel writes for programs that append, and asks nobody whether there is room. What
// can stop such a program is the lock of the file's inode, which the kernel holds while a
// change of attributes is with the daemon (fs/open.c, notify_change; fs/fuse/passthrough.c
// takes it for each write). So near max_bytes a helper process changes the times of the
// files that grow, again and again, and the daemon takes its time to answer.
//
// Who waits for the lock cannot be killed meanwhile, so no answer takes longer than
// longestHold. Between two of them each program that waits gets one write(2) in: the
// limit is soft, by that and by what is written until it is noticed.

const (
	throttleFrom = 0.9 // of max_bytes: from here programs are slowed down
	// With askAhead and askLate on top, a program waits for less than a second.
	longestHold  = 550 * time.Millisecond
	slowHold     = 100 * time.Millisecond // before the limit is reached
	shortestHold = 4 * time.Millisecond
	// askAhead is how long before the end of a hold the next one is asked for: the helper
	// then sleeps in the lock's queue, behind the programs that wait, when it is released.
	// One that came at that moment could take the lock before any of them woke up
	// (rwsem_optimistic_spin), and they would wait for twice as long, or more.
	askAhead   = 300 * time.Millisecond
	askLate    = 100 * time.Millisecond // the hold is longer by this if the helper is not there yet
	longestGap = 4 * time.Millisecond
	// throttleSpeed is how fast programs are taken to write together, in bytes a second,
	// when the next look at the room is planned.
	throttleSpeed = 4 << 30
	throttleLook  = time.Millisecond      // while programs are slowed down
	throttleNap   = 20 * time.Millisecond // from here the thread's own sleep is not needed
	throttleSleep = time.Second           // at most
	throttleFiles = 256                   // held at a time, each a thread of the helper
	// throttlePatience is how long the helper may take to get at a file, which is first
	// when its writers let it: a lock that is waited for is handed over after 4 ms
	// (kernel/locking/rwsem.c).
	throttlePatience = 2 * time.Second
	throttleQuiet    = 3           // holds without a write after which a file is left alone
	throttleCalm     = time.Second // without pressure until the log says so
	helperAgain      = time.Second // between two attempts to start the helper
)

// throttle slows down the programs for which the kernel writes. nil is one that does not.
type throttle struct {
	limit   atomic.Int64 // max_bytes
	free    func() int64 // until the limit; negative beyond it
	busy    func([]spool.BusyFile) []spool.BusyFile
	written func() []kernelFile
	point   string
	log     *slog.Logger

	cancel  context.CancelFunc
	wg      sync.WaitGroup
	leaving atomic.Bool
	said    sync.Once

	mu       sync.Mutex
	pressure float64 // 0: none, 1 and more: the limit is reached
	files    map[spool.Number]*slowed
	helper   *throttleHelper // nil: none runs yet
	told     bool            // the log says that there is
	calm     time.Time       // when there was any
	worst    int64           // bytes beyond the limit, the most since told
}

// slowed is a file that is held, again and again.
type slowed struct {
	state slowState
	until time.Time // when the state ends at the latest
	free  chan struct{}
	ahead bool // the next hold is asked for
	there bool // and the helper about to wait for the lock
	grew  bool // since its newest hold began
	quiet int  // holds since it last grew
}

type slowState uint8

const (
	slowRest slowState = iota // its programs write
	slowAsked
	slowHeld
)

// newThrottle starts a throttle, which close ends.
func newThrottle(limit int64, point string, free func() int64, store *spool.Store, written func() []kernelFile, log *slog.Logger) *throttle {
	ctx, cancel := context.WithCancel(context.Background())
	t := &throttle{
		free: free, busy: store.Busy, written: written, point: point, log: log,
		cancel: cancel, files: map[spool.Number]*slowed{},
	}
	t.limit.Store(limit)
	t.look(time.Now(), free(), nil) // for what a predecessor's helper waits for
	t.wg.Go(func() { t.run(ctx) })
	t.wg.Go(func() { t.keepHelper(ctx) })
	return t
}

// setLimit changes max_bytes.
func (t *throttle) setLimit(limit int64) {
	if t != nil {
		t.limit.Store(limit)
	}
}

// close lets everybody go and ends the helper. Hold answers at once from then on.
func (t *throttle) close() {
	if t == nil {
		return
	}
	t.cancel()
	t.wg.Wait()
}

// leave ends the throttle and answers nothing: who is held stays so until a successor
// answers, and writes nothing while there is none. The helper dies with this process.
func (t *throttle) leave() {
	if t == nil {
		return
	}
	t.leaving.Store(true)
	t.close()
}

func (t *throttle) run(ctx context.Context) {
	urgent() // programs at full speed leave it no CPU else
	var busy []spool.BusyFile
	for ctx.Err() == nil {
		begun := time.Now()
		free := t.free()
		busy = t.busy(busy[:0])
		if asks := t.look(begun, free, busy); len(asks) > 0 {
			t.ask(asks)
		}
		// With thousands of files a look takes its time: a tenth of a CPU at most.
		nap(ctx, max(t.next(free), 9*time.Since(begun)))
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.leaving.Load() {
		t.letGo()
	}
}

// nap sleeps for d, a long one until ctx ends. A short one is not a timer's, which another
// thread would have to serve; a long one is, since a thread that sleeps by itself keeps the
// runtime awake.
func nap(ctx context.Context, d time.Duration) {
	if d < throttleNap {
		ts := unix.NsecToTimespec(int64(d))
		_ = unix.Nanosleep(&ts, nil)
		return
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// next is how long nothing needs to be looked at.
func (t *throttle) next(free int64) time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.pressure > 0 {
		return throttleLook
	}
	until := float64(free) - (1-throttleFrom)*float64(t.limit.Load())
	return min(throttleSleep, max(throttleLook, time.Duration(until/throttleSpeed*float64(time.Second))))
}

// slice is how long a file is held and how long its programs then write, by pressure.
// Below the limit they go on at a hundredth of their speed at least, so that it is reached.
func slice(pressure float64) (hold, gap time.Duration) {
	left := 1 - pressure
	if left <= 0 {
		return longestHold, 0
	}
	hold = min(slowHold, time.Duration(float64(shortestHold)/left))
	return hold, max(throttleLook, time.Duration(float64(longestGap)*left))
}

// look takes notice of the room and of the files that grew, ends holds that are over, and
// returns the files for which the next hold is to be asked for.
func (t *throttle) look(now time.Time, free int64, busy []spool.BusyFile) (asks []spool.Number) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.pressure = max(0, (1-throttleFrom-float64(free)/float64(t.limit.Load()))/(1-throttleFrom))
	if t.pressure == 0 {
		if t.told && now.Sub(t.calm) > throttleCalm {
			t.told = false
			t.log.Info("there is room in the queue again; nobody is slowed down", "most_beyond_max_bytes", t.worst)
		}
		t.letGo()
		return nil
	}
	if !t.told {
		t.told, t.worst = true, 0
		t.log.Warn("the queue is nearly full; programs that append are slowed down", "free", free, "max_bytes", t.limit.Load())
	}
	t.calm, t.worst = now, max(t.worst, -free)
	for _, b := range busy {
		f := t.files[b.Number]
		if f == nil {
			if len(t.files) >= throttleFiles {
				continue
			}
			f = &slowed{until: now}
			t.files[b.Number] = f
		}
		f.grew = true
	}
	for n, f := range t.files {
		if t.over(now, n, f) {
			asks = append(asks, n)
		}
	}
	return asks
}

// over ends the state of a file when its time has come, and reports whether the next hold
// is to be asked for.
func (t *throttle) over(now time.Time, n spool.Number, f *slowed) (ask bool) {
	late := !now.Before(f.until)
	_, gap := slice(t.pressure)
	switch {
	case f.state == slowHeld && late && f.ahead && !f.there && now.Before(f.until.Add(askLate)):
		return false
	case f.state == slowHeld && !late:
		if gap > 0 || f.ahead || f.quiet+1 >= throttleQuiet && !f.grew || f.until.Sub(now) > askAhead {
			return false
		}
		f.ahead, f.there = true, false
		return true
	case !late:
		return false
	case f.state == slowRest:
		f.state, f.until = slowAsked, now.Add(throttlePatience)
		return true
	case f.state == slowAsked: // the helper cannot get at it, or it was closed
		delete(t.files, n)
		return false
	}
	close(f.free)
	f.free = nil
	if f.quiet++; f.grew {
		f.quiet = 0
	}
	f.grew = false
	switch {
	case f.ahead:
		f.state, f.until, f.ahead = slowAsked, now.Add(throttlePatience), false
	case f.quiet >= throttleQuiet:
		delete(t.files, n)
	default:
		f.state, f.until = slowRest, now.Add(gap)
	}
	return false
}

// keepHelper starts the helper, at the start and when it has ended: it needs some 20 ms,
// in which programs write megabytes, so it is there before it is needed.
func (t *throttle) keepHelper(ctx context.Context) {
	for ctx.Err() == nil {
		if t.free() == math.MaxInt64 { // nobody is to be slowed down; a reload may change that
			nap(ctx, helperAgain)
			continue
		}
		h, err := startThrottleHelper(t.point, t.heard)
		if err != nil {
			t.said.Do(func() { t.log.Error("programs cannot be slowed down near max_bytes; said once", "err", err) })
		} else {
			t.mu.Lock()
			t.helper = h
			t.mu.Unlock()
			select {
			case <-h.done:
			case <-ctx.Done():
				if !t.leaving.Load() {
					h.end()
				}
			}
		}
		again := time.NewTimer(helperAgain)
		select {
		case <-again.C:
		case <-ctx.Done():
		}
		again.Stop()
	}
}

// letGo ends every hold.
func (t *throttle) letGo() {
	for n, f := range t.files {
		if f.free != nil {
			close(f.free)
		}
		delete(t.files, n)
	}
}

// ask has the helper change the times of files.
func (t *throttle) ask(numbers []spool.Number) {
	files := map[spool.Number]kernelFile{}
	for _, k := range t.written() { // takes the server's lock, under which Hold is called
		files[k.Number] = k
	}
	t.mu.Lock()
	h := t.helper
	t.mu.Unlock()
	for _, n := range numbers {
		k, ok := files[n]
		if !ok || h == nil || h.touch(touch{Number: n, Inode: fileInode(n), Path: k.Path, PIDs: k.PIDs}) != nil {
			t.forget(n)
		}
	}
}

// forget lets the programs of a file go.
func (t *throttle) forget(n spool.Number) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if f := t.files[n]; f != nil {
		if f.free != nil {
			close(f.free)
		}
		delete(t.files, n)
	}
}

// heard is told that the helper is about to wait for the lock of a file, or why it cannot.
func (t *throttle) heard(n spool.Number, why string) {
	if why == "" {
		t.mu.Lock()
		defer t.mu.Unlock()
		if f := t.files[n]; f != nil {
			f.there = true
		}
		return
	}
	t.log.Debug("a file cannot be held", "file", n.String(), "err", why)
	t.mu.Lock()
	defer t.mu.Unlock()
	if f := t.files[n]; f != nil && f.state == slowAsked {
		f.state, f.until = slowRest, time.Now().Add(100*time.Millisecond)
	}
}

// Hold is asked by the server for each change of times by thread tid.
func (t *throttle) Hold(tid uint32, n spool.Number) <-chan struct{} {
	t.mu.Lock()
	defer t.mu.Unlock()
	f := t.files[n]
	if t.helper == nil || !t.helper.has(tid) {
		if f != nil || t.pressure < 1 || !isHelper(tid, t.point) {
			return nil
		}
		// A predecessor's: this hold goes on until the own helper is there.
		f = &slowed{state: slowAsked}
		t.files[n] = f
	}
	if f == nil || f.state != slowAsked || f.free != nil {
		return released
	}
	hold, _ := slice(t.pressure)
	f.state, f.until, f.free = slowHeld, time.Now().Add(hold), make(chan struct{})
	return f.free
}

// released is the channel of a hold that does not happen.
var released = func() chan struct{} {
	c := make(chan struct{})
	close(c)
	return c
}()

// has reports whether thread tid is one of the helper's.
func (h *throttleHelper) has(tid uint32) bool {
	_, err := os.Stat("/proc/" + strconv.Itoa(h.pid) + "/task/" + strconv.FormatUint(uint64(tid), 10))
	return err == nil
}
