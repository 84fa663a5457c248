package transport

import (
	"slices"
	"strings"
	"time"
)

// PeerStats is one connection in ServerStats.
type PeerStats struct {
	Peer      Peer
	Since     time.Time // when the handshake was done
	LastBatch time.Time // zero: none yet
	Batches   uint64    // received, refused ones included
	Bytes     uint64    // of their sealed bytes
	Refused   uint64    // batches, denied ones included
	Denied    uint64    // batches of hosts that it may not speak for, or of too many new lanes
	Pending   int64     // batches that have begun to come or are with the Handler, and are not answered
	Blocked   bool      // not read now, because the Handler or MaxPending holds it up
}

// ServerStats is a snapshot.
type ServerStats struct {
	Peers      []PeerStats // by address
	TurnedAway uint64      // connections above MaxConns or MaxConnsPerAddress
	Evicted    uint64      // connections that gave way to others before their handshake was done
	Failed     uint64      // handshakes that failed, those of denied peers included
	Denied     uint64      // handshakes of peers that are not admitted
	DeniedData uint64      // batches of hosts that their peer may not speak for
	DeniedLane uint64      // batches of too many new lanes
	HeldLane   uint64      // horizons of too many new lanes, which wait for their first batch
	Slow       uint64      // connections ended because their batch came slowly while others waited for room
	Pending    int64       // bytes of batches coming in, or given to the Handler and not answered
}

// Stats returns a snapshot.
func (s *Server) Stats() ServerStats {
	st := ServerStats{
		TurnedAway: s.turnedAway.Load(), Evicted: s.evicted.Load(), Failed: s.failed.Load(), Denied: s.deniedPeers.Load(),
		DeniedData: s.deniedBatches.Load(), DeniedLane: s.deniedLanes.Load(), HeldLane: s.heldHorizons.Load(),
	}
	st.Pending, st.Slow = s.pending.size()
	for _, c := range s.all() {
		st.Peers = append(st.Peers, c.stats())
	}
	slices.SortFunc(st.Peers, func(a, b PeerStats) int { return strings.Compare(a.Peer.Addr, b.Peer.Addr) })
	return st
}
