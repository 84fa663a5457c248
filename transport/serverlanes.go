package transport

import (
	"time"

	"ftfuse/internal/batch"
)

// Lanes that connections are told of by name. A connection may have the first few in any
// case, more as long as all together have no more than the sum; one that wants still more
// is told of all lanes.
const (
	ownLanes = 1 << 10
	maxLanes = 1 << 16 // of a connection
	sumLanes = 1 << 19 // beyond which there are only the first few
)

// laneState is what a connection knows of a lane.
type laneState struct {
	claim     uint64 // the horizon that the peer claims and that nobody was told of yet
	announced bool   // the Handler was told of a horizon
	open      bool   // it counts for nothing in the limit of new lanes
}

// horizon passes on what the peer says is final of a lane, if it may speak for it. What it
// says of a lane of which nothing was taken here waits for its first batch, see claims;
// without an Admission only where the peer opened too many.
func (c *serverConn) horizon(lh LaneHorizon) {
	if c.mayLane(lh.Lane) {
		var err error
		if lh.Below > 1 { // else it says nothing that would be noted
			err = c.open(lh.Lane, "")
		}
		if err == nil {
			c.announce(lh)
			return
		}
		c.s.heldHorizons.Add(1)
		if without, ok := c.s.limit.allow("lanes "+c.address, 1); ok {
			c.s.log.Warn("what a peer says is final waits for the first batch of its lane", "peer", c.peer.String(),
				"lane", lh.Lane.String(), "reason", "it "+err.Error(), "more", without)
		}
	}
	c.s.claimsWait.Store(true)
	c.interested(lh.Lane, lh.Below)
}

// announce tells the Handler of a horizon.
func (c *serverConn) announce(lh LaneHorizon) {
	c.interested(lh.Lane, 0) // before: it is to hear what the Handler tells
	c.mu.Lock()
	st, ok := c.lanes[lh.Lane]
	first := !st.announced
	if ok {
		st.announced = true
		c.lanes[lh.Lane] = st
	}
	c.mu.Unlock()
	c.s.h.Horizon(c.peer, lh.Lane, lh.Below, first)
}

// mayLane reports whether the peer is believed what it says of lane.
func (c *serverConn) mayLane(lane batch.Lane) bool {
	a := c.s.admission()
	if a == nil {
		return true
	}
	host := c.s.laneHost(lane)
	return host != "" && c.may.speak(a, c.peer, host)
}

// open returns nil if lane is known here, or may become so with a batch of host.
func (c *serverConn) open(lane batch.Lane, host string) error {
	c.mu.Lock()
	st, ok := c.lanes[lane]
	c.mu.Unlock()
	if st.open {
		return nil
	}
	if !c.s.knowsLane(lane) {
		if err := c.s.lanes.open(c.key, host, time.Now()); err != nil {
			if c.retry == nil { // it is to offer it again, when some are forgiven
				c.retry = time.AfterFunc(c.s.laneRetry, c.drain)
			}
			return err
		}
	}
	if ok || c.interested(lane, 0) {
		c.mu.Lock()
		st = c.lanes[lane]
		st.open = true
		c.lanes[lane] = st
		c.mu.Unlock()
	}
	return nil
}

// interested notes that the peer is to hear of lane, and the horizon that it claims and
// that nobody was told of yet. It returns false where there is no room to note it.
func (c *serverConn) interested(lane batch.Lane, claim uint64) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	st, ok := c.lanes[lane]
	if !ok {
		n := len(c.lanes)
		if n >= ownLanes && (n >= maxLanes || c.s.named.Load() >= sumLanes) {
			c.allLanes = true
			return false
		}
		c.s.named.Add(1)
	}
	st.claim = max(st.claim, claim)
	c.lanes[lane] = st
	return true
}

// forgetLanes gives back the room of a connection that is over.
func (c *serverConn) forgetLanes() {
	if c.retry != nil {
		c.retry.Stop()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.s.named.Add(-int64(len(c.lanes)))
	c.lanes, c.allLanes = nil, false
}

// hears reports whether the peer is to hear of lane.
func (c *serverConn) hears(lane batch.Lane) bool {
	c.mu.Lock()
	_, ok := c.lanes[lane]
	all := c.allLanes
	c.mu.Unlock()
	if ok || !all {
		return ok
	}
	a := c.s.admission() // lanes of others are nothing for it, not even their names
	return a == nil || a.May(c.peer, c.s.laneHost(lane))
}

// claimed is the horizon of lane that the peer claims, if it may speak for host.
func (c *serverConn) claimed(a *Admission, lane batch.Lane, host string) (below uint64) {
	c.mu.Lock()
	below = c.lanes[lane].claim
	c.mu.Unlock()
	if below > 1 && a.May(c.peer, host) {
		return below
	}
	return 0
}

// claims passes on what peers said was final of lane before its first batch was taken, a
// batch of host that is about to be.
func (s *Server) claims(lane batch.Lane, host string) {
	if !s.claimsWait.Load() {
		return
	}
	a := s.admission()
	if a != nil && s.laneHost(lane) != "" || a == nil && s.knowsLane(lane) {
		return
	}
	for _, c := range s.all() {
		if below := c.claimed(a, lane, host); below > 0 {
			c.announce(LaneHorizon{lane, below})
		}
	}
}

func (s *Server) laneHost(lane batch.Lane) string {
	if s.o.LaneHost == nil {
		return ""
	}
	return s.o.LaneHost(lane)
}

func (s *Server) knowsLane(lane batch.Lane) bool { return s.o.KnowsLane != nil && s.o.KnowsLane(lane) }
