package transport

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"sync"
	"time"
)

// A batch comes slowly when in the last second or so less than 16 KiB of it came, or less
// than an eighth of what came of others on the average: where a line is full, all of them
// take long, and to cut some off would only have them sent again.
const (
	slowAfter = time.Second
	slowRate  = 16 << 10 // bytes a second
	slowPart  = 8
)

// budget bounds the bytes of batches that are in memory: those that are coming in and
// those in the hands of the Handler.
//
// Everybody gets something, whoever came first: a connection may have no more than what
// would be left if its peer had twice what it has. One peer with one connection can so
// take a third of all; each one more leaves some for the next. Who waits is served by how
// little its peer holds.
//
// Batches that come slowly hold room for long. While somebody waits, no more than a
// quarter of all is theirs: the slowest of whoever has most of it are cut off.
type budget struct {
	limit     int64
	slowAfter time.Duration

	mu      sync.Mutex
	used    int64
	peers   map[string]int64
	conns   map[*serverConn]int64
	waiting []*share            // by arrival
	coming  map[*share]struct{} // whose bytes are coming in
	looked  time.Time           // at coming
	cut     uint64              // batches cut off for being slow
}

// share is what one batch takes of a budget.
type share struct {
	b    *budget
	conn *serverConn
	n    int64
	got  chan struct{} // closed when it is taken

	since, marked time.Time // its bytes come since; read was mark at
	mark          int64
	rate          float64 // bytes a second, lately; below 0: it has just begun
	isCut         bool
}

func newBudget(limit int64) *budget {
	return &budget{
		limit: limit, slowAfter: slowAfter,
		peers: make(map[string]int64), conns: make(map[*serverConn]int64), coming: make(map[*share]struct{}),
	}
}

// take takes n bytes for a batch of c, waiting for them. A batch that is larger than all
// there is gets it when nobody else has anything.
func (b *budget) take(ctx context.Context, c *serverConn, n int64) (*share, error) {
	s := &share{b: b, conn: c, n: n, got: make(chan struct{})}
	b.mu.Lock()
	b.waiting = append(b.waiting, s)
	b.serve()
	b.mu.Unlock()
	select { // mostly
	case <-s.got:
		return s, nil
	default:
	}
	look := time.NewTicker(b.slowAfter / 4)
	defer look.Stop()
	for {
		select {
		case <-s.got:
			return s, nil
		case <-look.C:
			b.cutSlow(time.Now())
		case <-ctx.Done():
			if b.withdraw(s) {
				return nil, context.Cause(ctx)
			}
			return s, nil // it came just now
		}
	}
}

// serve gives to those who wait, in their order, what there is. The caller holds mu.
func (b *budget) serve() {
	for len(b.waiting) > 0 {
		s := slices.MinFunc(b.waiting, func(x, y *share) int { // the first of equals
			return cmp.Or(cmp.Compare(b.peers[x.conn.key], b.peers[y.conn.key]), cmp.Compare(b.conns[x.conn], b.conns[y.conn]))
		})
		if !b.fits(s) {
			return // nor goes anybody past it: it would never fit
		}
		b.leave(s)
		b.used += s.n
		b.peers[s.conn.key] += s.n
		b.conns[s.conn] += s.n
		close(s.got)
	}
}

func (b *budget) fits(s *share) bool {
	return b.used == 0 || b.conns[s.conn]+s.n <= b.limit-b.used-b.peers[s.conn.key]
}

// leave takes s out of those who wait.
func (b *budget) leave(s *share) (waited bool) {
	i := slices.Index(b.waiting, s)
	if i < 0 {
		return false
	}
	b.waiting = slices.Delete(b.waiting, i, i+1)
	return true
}

// withdraw ends the wait of s; false if it has been served.
func (b *budget) withdraw(s *share) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.leave(s) {
		return false
	}
	b.serve() // others may have waited behind it
	return true
}

// comes notes that the bytes of s begin to come in.
func (s *share) comes() {
	b := s.b
	b.mu.Lock()
	defer b.mu.Unlock()
	s.since = time.Now()
	s.marked, s.mark, s.rate = s.since, s.conn.wire.count.Load(), -1
	b.coming[s] = struct{}{}
}

// came notes that they are all there, or that no more will come.
func (s *share) came() {
	s.b.mu.Lock()
	defer s.b.mu.Unlock()
	delete(s.b.coming, s)
}

// give returns the bytes.
func (s *share) give() {
	b := s.b
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.coming, s)
	b.used -= s.n
	lower(b.peers, s.conn.key, s.n)
	lower(b.conns, s.conn, s.n)
	b.serve()
}

func lower[K comparable](m map[K]int64, key K, n int64) {
	if m[key] -= n; m[key] == 0 {
		delete(m, key)
	}
}

// cutSlow ends connections until the batches that come slowly have no more than their part.
func (b *budget) cutSlow(now time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if now.Sub(b.looked) < b.slowAfter/8 {
		return // somebody else who waits just did
	}
	b.looked = now
	slow := b.slow(now)
	var all int64
	of := make(map[string]int64)
	for _, s := range slow {
		all += s.n
		of[s.conn.key] += s.n
	}
	for all > b.limit/4 {
		s := slices.MinFunc(slow, func(x, y *share) int {
			return cmp.Or(cmp.Compare(of[y.conn.key], of[x.conn.key]), cmp.Compare(x.rate, y.rate), x.since.Compare(y.since))
		})
		slow = slices.DeleteFunc(slow, func(x *share) bool { return x == s })
		all, of[s.conn.key] = all-s.n, of[s.conn.key]-s.n
		s.isCut = true
		b.cut++
		s.conn.cancel(fmt.Errorf("%w: others wait for the room that a batch of %d bytes has, which comes since %v, now with %.0f bytes a second",
			ErrSlow, s.n-batchOverhead, now.Sub(s.since).Round(time.Millisecond), s.rate))
	}
}

// slow returns the batches that come slowly. The caller holds mu.
func (b *budget) slow(now time.Time) []*share {
	var rated []*share
	var sum float64
	for s := range b.coming {
		if d := now.Sub(s.marked); d >= b.slowAfter {
			count := s.conn.wire.count.Load()
			s.rate, s.marked, s.mark = float64(count-s.mark)/d.Seconds(), now, count
		}
		if s.rate >= 0 && !s.isCut {
			rated = append(rated, s)
			sum += s.rate
		}
	}
	least := max(slowRate, sum/float64(max(len(rated), 1))/slowPart)
	return slices.DeleteFunc(rated, func(s *share) bool { return s.rate >= least })
}

// size is how much is taken, and how many batches were cut off.
func (b *budget) size() (used int64, cut uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.used, b.cut
}
