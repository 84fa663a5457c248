package transport

import (
	"fmt"
	"sync"
	"time"
)

// laneRate is how many lanes may be opened at once, and one more after each interval.
type laneRate struct {
	most  int
	every time.Duration
}

// Every lane that something was taken of is kept for ever, in memory too, so nobody is to
// make them up at will. A host opens one for each bucket that it uses (16 at most) and
// route at each start: 4,096 are 16 routes and 16 starts, with all buckets. A relay brings
// those of many hosts, and a node that is new knows none of them yet. The known ones cost
// nothing, and whoever had too many gets on with time.
var (
	lanesOfPeer = laneRate{1 << 16, time.Second}
	lanesOfHost = laneRate{1 << 12, 10 * time.Second} // as one peer brings them
)

// laneRetry is how long after a lane was refused its peer is asked to connect anew, and so
// to offer it again.
const laneRetry = time.Minute

// laneLimit counts the lanes that peers opened. It is safe for concurrent use.
type laneLimit struct {
	peer, host laneRate

	mu      sync.Mutex
	opened  map[laneKey]*lanesOpened
	sweepAt int // entries
}

type laneKey struct{ peer, host string } // host "": all of them

type lanesOpened struct {
	n  float64 // less what time forgave
	at time.Time
}

func newLaneLimit() *laneLimit {
	return &laneLimit{peer: lanesOfPeer, host: lanesOfHost, opened: make(map[laneKey]*lanesOpened), sweepAt: 1024}
}

// open counts a lane that peer opens with a batch of host ("" if that is not known), or
// says why it may not.
func (l *laneLimit) open(peer, host string, now time.Time) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.sweep(now)
	all := l.at(laneKey{peer, ""}, l.peer, now)
	if all.n+1 > float64(l.peer.most) {
		return fmt.Errorf("is of a lane that is new here, and this peer (%s) has opened too many of them: %d at once, then one every %v", peer, l.peer.most, l.peer.every)
	}
	if host != "" {
		of := l.at(laneKey{peer, host}, l.host, now)
		if of.n+1 > float64(l.host.most) {
			return fmt.Errorf("is of a lane that is new here, and too many of host %q came from this peer (%s): %d at once, then one every %v", host, peer, l.host.most, l.host.every)
		}
		of.n++
	}
	all.n++
	return nil
}

// at returns the count of key at this time. The caller holds mu.
func (l *laneLimit) at(key laneKey, rate laneRate, now time.Time) *lanesOpened {
	o := l.opened[key]
	if o == nil {
		o = &lanesOpened{at: now}
		l.opened[key] = o
	}
	o.n = max(0, o.n-float64(now.Sub(o.at))/float64(rate.every))
	o.at = now
	return o
}

// sweep forgets, from time to time, whoever has nothing left to be forgiven.
func (l *laneLimit) sweep(now time.Time) {
	if len(l.opened) < l.sweepAt {
		return
	}
	for key, o := range l.opened {
		rate := l.peer
		if key.host != "" {
			rate = l.host
		}
		if float64(now.Sub(o.at)) >= o.n*float64(rate.every) {
			delete(l.opened, key)
		}
	}
	l.sweepAt = max(1024, 2*len(l.opened))
}
