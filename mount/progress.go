package mount

import (
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// hangAfter is how long the request loop may be in one request before this worker stops
// answering its holder, which then has another take over. A loop under load ends a request
// in microseconds; seconds are a disk's.
//
// Tests shorten it.
var hangAfter = 30 * time.Second

// progress tells a request loop that goes on, or has nothing to do, from one that is in one
// request all the time. The loop pays for it with two stores a request.
type progress struct {
	turns atomic.Uint64 // odd while a request is served. The loop's

	mu    sync.Mutex
	seen  uint64    // turns at the last look
	since time.Time // when that was seen first
	said  bool
}

// turn is called by the loop before and after each request.
func (p *progress) turn() { p.turns.Store(p.turns.Load() + 1) }

// inOne returns for how long the loop has been in the same request, as far as calls of
// inOne have seen it.
func (p *progress) inOne(now time.Time) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := p.turns.Load()
	if n%2 == 0 || n != p.seen {
		p.seen, p.since, p.said = n, now, false
		return 0
	}
	return now.Sub(p.since)
}

// once reports whether it is the first call about the request that inOne has seen.
func (p *progress) once() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	said := p.said
	p.said = true
	return !said
}

// alive reports whether the request loop goes on. One that waits for a disk does: another
// worker would wait for the same, and a kill takes no effect before the disk answers.
func (s *server) alive() bool {
	d := s.progress.inOne(time.Now())
	if d < hangAfter || waitsForDisk("/proc/self/task") {
		return true
	}
	if s.progress.once() {
		stacks := make([]byte, 64<<10)
		s.log.Error("the request loop hangs in one request: the holder is not answered any more, so that another worker takes over; please report this",
			"for", d.Round(time.Millisecond), "stacks", string(stacks[:runtime.Stack(stacks, true)]))
	}
	return false
}

// waitsForDisk reports whether any thread of a process, whose /proc/PID/task is given, is in
// an uninterruptible wait.
func waitsForDisk(task string) bool {
	list, err := os.ReadDir(task)
	for _, e := range list {
		text, _ := os.ReadFile(filepath.Join(task, e.Name(), "stat"))
		name := strings.LastIndex(string(text), ") ") // proc_pid_stat(5): it may hold anything
		if name >= 0 && strings.HasPrefix(string(text[name:]), ") D") {
			return true
		}
	}
	return err != nil
}
