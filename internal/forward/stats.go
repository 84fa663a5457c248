package forward

import (
	"time"

	"ftfuse/queue"
	"ftfuse/transport"
)

// Stats is a snapshot of a Forwarder.
type Stats struct {
	Groups []GroupStats
	// Skipped is what nodes further down dropped, by reason, since the start.
	Skipped map[string]queue.Tally
	// Relabelled batches have been sealed again under another id since the start.
	Relabelled uint64
}

// GroupStats is one group.
type GroupStats struct {
	Name  string
	Mode  Mode
	Lines []LineStats // one; with Broadcast one for each primary
}

// LineStats is what one cursor feeds.
type LineStats struct {
	Cursor string
	// Waiting is what the cursor has not passed: not with the next node, or, with
	// KeepFinal, not final.
	Waiting queue.Tally
	Oldest  time.Time // when the oldest of that was sealed; zero: none
	// Unfinal is what of Waiting the next node has: the distance between the hop position
	// and the final position. Zero without KeepFinal.
	Unfinal queue.Tally
	Refused int    // batches that every destination refused; they wait for a reconnect
	Acked   uint64 // batches that the next nodes took since the start
	Final   uint64 // batches that were reported final since the start
	// Doubtful batches were in flight to a destination that was left, and went to another.
	// Where both write output, they may stand at both.
	Doubtful     uint64
	Failovers    uint64 // flows that left a destination that failed
	Failbacks    uint64 // flows that went to a better one in order
	Destinations []DestinationStats
}

// DestinationStats is one destination of a line.
type DestinationStats struct {
	Address    string // as connected to
	Configured string // as configured, where that is a service
	Secondary  bool
	State      string    // connected, connecting, failed over, hold-down, stalled, draining
	Until      time.Time // end of the hold-down; zero: none
	Flows      int       // whose home it is
	Waiting    int       // batches that wait for room in its window
	Client     transport.ClientStats
}
