package forward

import (
	"maps"
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
	Acked   queue.Tally // what the next nodes took since the start
	Refused int         // batches that every destination refused; they wait for a reconnect
	Final   uint64      // of these, those that became final
	// Doubtful batches were in flight to a destination that was left, and went to another.
	// Where both write output, they may stand at both.
	Doubtful     uint64
	DoubtfulIDs  []transport.LaneRanges // which those are; of the newest lanes, as far as they are remembered
	Resent       uint64                 // batches sent again because they did not become final
	Failovers    uint64                 // flows that left a destination that failed
	Failbacks    uint64                 // flows that went to a better one in order
	Destinations []DestinationStats
}

// DestinationStats is one destination of a line.
type DestinationStats struct {
	Address    string // as connected to
	Configured string // as configured: of a service, that
	Secondary  bool
	// State is connecting, connected, reconnecting, hold-down, stalled, draining or
	// failed over.
	State   string
	Since   time.Time // of State
	Until   time.Time // end of the hold-down; zero: none
	Flows   int       // whose home it is
	Waiting int       // batches that wait for room in its window
	Client  transport.ClientStats
}

// Stats returns a snapshot. It looks into the queue's directory.
func (f *Forwarder) Stats() Stats {
	cursors := map[string]queue.CursorStats{}
	for _, c := range f.store.Stats().Cursors {
		cursors[c.Name] = c
	}
	st := Stats{}
	for _, l := range f.lines {
		ls := l.stats()
		c := cursors[ls.Cursor]
		ls.Waiting, ls.Oldest = c.Waiting, c.Oldest
		if n := len(st.Groups); n == 0 || st.Groups[n-1].Name != l.group.Name {
			st.Groups = append(st.Groups, GroupStats{Name: l.group.Name, Mode: l.group.Mode})
		}
		g := &st.Groups[len(st.Groups)-1]
		g.Lines = append(g.Lines, ls)
	}
	f.mu.Lock()
	st.Skipped = maps.Clone(f.lost)
	f.mu.Unlock()
	f.relabels.mu.Lock()
	st.Relabelled = f.relabels.count
	f.relabels.mu.Unlock()
	return st
}

func (l *line) stats() LineStats {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.now()
	c := &l.count
	st := LineStats{
		Cursor: l.cfg.cursor, Unfinal: c.unfinal, Refused: len(l.parked), Acked: c.acked, Final: c.final,
		Doubtful: c.doubtful, Resent: c.resent, Failovers: c.failovers, Failbacks: c.failbacks,
	}
	for _, lane := range l.doubtful {
		st.DoubtfulIDs = append(st.DoubtfulIDs, transport.LaneRanges{Lane: lane.Lane, Ranges: lane.Ranges.Clone()})
	}
	homes, waiting := make([]int, len(l.dests)), make([]int, len(l.dests))
	for _, fl := range l.flows {
		if fl.home != nowhere {
			homes[fl.home]++
			waiting[fl.home] += len(fl.waiting)
		}
	}
	for i, d := range l.dests {
		h := &l.peers.health[i]
		if l.peers.removed[i] && d.out == 0 {
			continue
		}
		ds := DestinationStats{
			Address: d.address, Configured: d.configured, Secondary: h.secondary, State: h.state.String(), Since: d.since,
			Flows: homes[i], Waiting: waiting[i] + len(d.strays), Client: d.client.Stats(),
		}
		if h.state == stateHold {
			ds.Until = time.Now().Add(h.until - now)
		}
		st.Destinations = append(st.Destinations, ds)
	}
	return st
}
