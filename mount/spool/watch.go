package spool

import (
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"ftfuse/internal/failpoint"
	"ftfuse/internal/inotify"
)

var fpArm = failpoint.New("spool/arm") // the size was looked at, there is no watch yet

// Noticing what the kernel writes.
//
// A file at rest has a one-shot inotify watch (IN_ONESHOT: the first write takes it away,
// so that it costs a writer nothing beyond that one). From then on its size is polled,
// every PollEvery; after idleRounds without growth it gets a watch again and its size is
// looked at once more, since a write may have come in between. So a thousand open files
// that nobody writes to cost nothing, and a busy one a stat a millisecond. One goroutine
// reads the events of all files.
const (
	PollEvery  = time.Millisecond
	idleRounds = 20
	// pollMany is how many busy files are polled every PollEvery; with more the rounds are
	// rarer, so that the cost stays where it is.
	pollMany = 256
	// slowPoll is how often a file is looked at that gets no watch.
	slowPoll = 50 * time.Millisecond
)

// Growth tells that a file that the kernel writes to has another size than at the last Poll.
type Growth struct {
	File Number
	Size int64
}

// watched is what the watcher knows of a file. Its fields are under watcher.mu.
type watched struct {
	on       bool
	busy     bool  // in watcher.busy
	slow     bool  // in watcher.slow: no watch was to be had
	wd       int32 // 0: none
	idle     int   // rounds without growth
	seen     int64 // size at the last look
	captured int64 // committed position
	told     int64 // size at the last Busy
	path     string
	by       struct { // the newest handle
		path string
		pid  uint32
	}
}

// watcher notices what the kernel writes to spool files.
type watcher struct {
	s    *Store
	mu   sync.Mutex
	fd   int
	in   *os.File // nil: no inotify, everything is polled slowly
	byWD map[int32]*File
	all  map[*File]bool
	left map[*File]bool // not in all any more, but not all of it is committed
	busy []*File
	slow []*File

	polled     time.Time // the last round
	polledSlow time.Time
	wake       chan struct{} // capacity 1: a file at rest was written to
	said       bool          // that there are no watches
	wg         sync.WaitGroup
}

// start needs w.mu: the first file is added.
func (w *watcher) start() {
	w.byWD, w.all, w.left = map[int32]*File{}, map[*File]bool{}, map[*File]bool{}
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		w.noWatch(fmt.Errorf("inotify_init1: %w; raise fs.inotify.max_user_instances", err))
		return
	}
	w.fd, w.in = fd, os.NewFile(uintptr(fd), "inotify")
	in := w.in
	w.wg.Go(func() { w.read(in) })
}

func (w *watcher) stop() {
	w.mu.Lock()
	in := w.in
	w.in = nil
	w.mu.Unlock()
	if in != nil {
		in.Close()
	}
	w.wg.Wait()
}

// noWatch says once that files are polled.
func (w *watcher) noWatch(err error) {
	if !w.said {
		w.said = true
		w.s.o.Logger.Warn("files at rest are looked at every 50 ms, since they cannot be watched", "err", err)
	}
}

// add begins to watch f, busy at first.
func (w *watcher) add(f *File) {
	size := f.end()
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.all == nil {
		w.start()
	}
	v := &f.watch
	if v.path == "" {
		v.path = w.s.spool.Name() + "/" + f.number.String()
	}
	v.on, v.busy, v.idle, v.seen, v.told = true, true, idleRounds-1, size, size
	if !w.left[f] {
		v.captured = size
	}
	delete(w.left, f)
	w.all[f] = true
	w.busy = append(w.busy, f)
	w.poke()
}

// remove ends the watching of f, which has size bytes.
func (w *watcher) remove(f *File, size int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	v := &f.watch
	delete(w.all, f)
	w.disarm(f)
	drop := func(list []*File) []*File {
		for i, g := range list {
			if g == f {
				list[i] = list[len(list)-1]
				list[len(list)-1] = nil
				return list[:len(list)-1]
			}
		}
		return list
	}
	if v.busy {
		w.busy = drop(w.busy)
	}
	if v.slow {
		w.slow = drop(w.slow)
	}
	*v = watched{path: v.path, seen: size, captured: v.captured}
	if v.captured < size {
		w.left[f] = true
	}
}

// forget is told that f is closed, since all of it is committed.
func (w *watcher) forget(f *File) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.left, f)
}

// truncated tells that f has another size, which is no growth.
func (w *watcher) truncated(f *File, size int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f.watch.seen, f.watch.captured, f.watch.told = size, size, size
	delete(w.left, f)
}

// opened tells who opened f last.
func (w *watcher) opened(f *File, path string, pid uint32) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f.watch.by.path, f.watch.by.pid = path, pid
}

// captured tells that everything below pos is committed, and reports whether that was news.
func (w *watcher) captured(f *File, pos int64) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	news := (f.watch.on || w.left[f]) && f.watch.captured != pos
	if news {
		f.watch.captured = pos
	}
	if pos >= f.watch.seen {
		delete(w.left, f)
	}
	return news
}

func (w *watcher) poke() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// read takes events until in is closed.
func (w *watcher) read(in *os.File) {
	if err := inotify.Read(in, w.events); err != nil {
		w.s.o.Logger.Error("read inotify events", "err", err)
	}
}

// events takes what one read gave.
func (w *watcher) events(b []byte) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for e := range inotify.Events(b) {
		switch {
		case e.Mask&unix.IN_Q_OVERFLOW != 0: // events of any file may be among the lost
			for f := range w.all {
				w.disarm(f) // its watch may be gone with its event
				w.rouse(f)
			}
		case e.Mask&unix.IN_MODIFY != 0:
			if f := w.byWD[e.Watch]; f != nil {
				delete(w.byWD, e.Watch)
				f.watch.wd = 0
				w.rouse(f)
			}
		}
	}
	w.poke()
}

// rouse makes f one of the busy. It needs w.mu.
func (w *watcher) rouse(f *File) {
	v := &f.watch
	v.idle = 0
	if !v.busy && !v.slow {
		v.busy = true
		w.busy = append(w.busy, f)
	}
}

// disarm takes the watch of f away, which may have fired. It needs w.mu.
func (w *watcher) disarm(f *File) {
	v := &f.watch
	if v.wd > 0 && w.in != nil {
		_, _ = unix.InotifyRmWatch(w.fd, uint32(v.wd))
	}
	delete(w.byWD, v.wd)
	v.wd = 0
}

// arm gives f a watch, with w.mu held. False: there is none to be had.
func (w *watcher) arm(f *File) bool {
	if w.in == nil {
		return false
	}
	if f.watch.wd > 0 {
		return true
	}
	_ = fpArm.Inject()
	wd, err := unix.InotifyAddWatch(w.fd, f.watch.path, unix.IN_MODIFY|unix.IN_ONESHOT)
	if err != nil {
		if err == unix.ENOSPC {
			err = fmt.Errorf("%w: raise fs.inotify.max_user_watches", err)
		}
		w.noWatch(fmt.Errorf("watch spool file %s: %w", f.number, err))
		return false
	}
	f.watch.wd = int32(wd)
	w.byWD[int32(wd)] = f
	return true
}

// Growing is poked when there is something to Poll again.
func (s *Store) Growing() <-chan struct{} { return s.watch.wake }

// NextPoll is how long from now Poll has work, and false while every file is at rest.
func (s *Store) NextPoll() (time.Duration, bool) {
	w := &s.watch
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case len(w.busy) > 0:
		return max(0, w.every()-time.Since(w.polled)), true
	case len(w.slow) > 0:
		return max(0, slowPoll-time.Since(w.polledSlow)), true
	}
	return 0, false
}

// every is the time from one round to the next.
func (w *watcher) every() time.Duration {
	return PollEvery * time.Duration(1+len(w.busy)/pollMany)
}

// Poll appends those files whose size changed since the last Poll to dst, if it is time to
// look. It belongs to the capture's goroutine.
func (s *Store) Poll(dst []Growth) []Growth {
	w := &s.watch
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.busy) > 0 && time.Since(w.polled) >= w.every() {
		dst = w.round(dst)
	}
	if len(w.slow) > 0 && time.Since(w.polledSlow) >= slowPoll {
		dst = w.slowRound(dst)
	}
	return dst
}

// look reports whether f has another size than at the last look.
func (w *watcher) look(f *File) bool {
	size := f.end()
	if size == f.watch.seen {
		return false
	}
	f.watch.seen, f.watch.idle = size, 0
	return true
}

func (w *watcher) round(dst []Growth) []Growth {
	kept := w.busy[:0]
	for _, f := range w.busy {
		v := &f.watch
		switch {
		case w.look(f):
			dst = append(dst, Growth{f.number, v.seen})
			kept = append(kept, f)
		case v.idle+1 < idleRounds:
			v.idle++
			kept = append(kept, f)
		case !w.arm(f):
			v.busy, v.slow = false, true
			w.slow = append(w.slow, f)
		case w.look(f): // written to between the look and the watch
			dst = append(dst, Growth{f.number, v.seen})
			kept = append(kept, f)
		default:
			v.busy = false
		}
	}
	clear(w.busy[len(kept):])
	w.busy = kept
	w.polled = time.Now()
	return dst
}

// slowRound looks at the files without a watch; those that are written to are polled like
// others for a while.
func (w *watcher) slowRound(dst []Growth) []Growth {
	kept := w.slow[:0]
	for _, f := range w.slow {
		if w.look(f) {
			dst = append(dst, Growth{f.number, f.watch.seen})
			f.watch.busy, f.watch.slow = true, false
			w.busy = append(w.busy, f)
			continue
		}
		kept = append(kept, f)
	}
	clear(w.slow[len(kept):])
	w.slow = kept
	w.polledSlow = time.Now()
	return dst
}

// pending is how many bytes kernel writers have written that are not committed. Bytes that
// the daemon wrote to such a file count as well, until they are.
func (w *watcher) pending() int64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	var sum int64
	for f := range w.all {
		end := f.watch.seen
		if f.watch.busy {
			end = max(end, f.end())
		}
		sum += max(0, end-f.watch.captured)
	}
	for f := range w.left {
		sum += max(0, f.watch.seen-f.watch.captured)
	}
	return sum
}

// BusyFile is a file that the kernel writes to and that grew.
type BusyFile struct {
	Number Number
	Path   string // as the oldest handle that the kernel serves was opened
	PID    uint32 // who opened the newest
	Size   int64
	Grown  int64 // bytes since the last call of Busy
}

// Busy appends the files to dst that kernel writers made longer since its last call. It is
// for one caller, who wants to know whom to slow down.
func (s *Store) Busy(dst []BusyFile) []BusyFile {
	w := &s.watch
	w.mu.Lock()
	defer w.mu.Unlock()
	for f := range w.all {
		v := &f.watch
		end := v.seen
		if v.busy {
			end = max(end, f.end())
		}
		if end > v.told {
			dst = append(dst, BusyFile{Number: f.number, Path: v.by.path, PID: v.by.pid, Size: end, Grown: end - v.told})
		}
		v.told = end
	}
	return dst
}
