package transport

import (
	"sync"
	"time"
)

// logEvery is how often one kind of trouble with one peer is logged.
const logEvery = 10 * time.Second

// logLimit keeps what hostile or broken peers can cause as often as they like from
// filling the log. The zero value is ready for use; safe for concurrent use.
type logLimit struct {
	mu   sync.Mutex
	seen map[string]*logged
}

type logged struct {
	at      time.Time // of the first line of this logEvery
	n       int       // lines since
	without int       // left out since
}

// allow reports whether to log about key now, of which there may be most lines in each
// logEvery, and how often it was left out before.
func (l *logLimit) allow(key string, most int) (without int, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	e := l.seen[key]
	if e != nil && now.Sub(e.at) < logEvery {
		if e.n >= most {
			e.without++
			return 0, false
		}
		e.n++
		return 0, true
	}
	if e == nil {
		if l.seen == nil || len(l.seen) >= 1024 {
			l.seen = make(map[string]*logged)
		}
		e = &logged{}
		l.seen[key] = e
	}
	without, e.without, e.at, e.n = e.without, 0, now, 1
	return without, true
}
