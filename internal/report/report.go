// Package report puts what the parts of a role count into the words of its status.
package report

import (
	"cmp"
	"slices"

	"ftfuse/internal/batch"
	"ftfuse/internal/forward"
	"ftfuse/internal/status"
	"ftfuse/queue"
	"ftfuse/transport"
)

// Tally is t without what the queue needs to store it.
func Tally(t queue.Tally) status.Tally {
	return status.Tally{Batches: t.Batches, Records: t.Records, Bytes: t.Payload}
}

// Losses are the reasons of m in alphabetical order.
func Losses(m map[string]queue.Tally) []status.Loss {
	var all []status.Loss
	for reason, t := range m {
		all = append(all, status.Loss{Reason: reason, Tally: Tally(t)})
	}
	slices.SortFunc(all, func(a, b status.Loss) int { return cmp.Compare(a.Reason, b.Reason) })
	return all
}

// Queue is q at this moment. It looks into the directory of the queue.
func Queue(q *queue.Queue) (status.Queue, []status.Loss) {
	s, d := q.Stats(), q.DeliveredStats()
	out := status.Queue{
		Bytes: int64(s.Live.Bytes), MaxBytes: s.MaxBytes, DiskBytes: s.DiskBytes, Segments: s.Segments,
		Quarantined: s.Quarantined, DiskFull: s.DiskFull, Unread: s.Unread,
		DeliveredLanes: d.Lanes, DeliveredRanges: d.Ranges, DeliveredBytes: d.Bytes,
	}
	for _, c := range s.Cursors {
		out.Cursors = append(out.Cursors, status.Cursor{Name: c.Name, Backlog: Tally(c.Waiting), Oldest: c.Oldest})
	}
	return out, Losses(s.Losses)
}

// Peers is who is connected to a server. refused counts batches by what they were refused
// for, beside those that the server refuses itself.
func Peers(s transport.ServerStats, refused map[string]uint64) *status.Peers {
	out := &status.Peers{
		Connections: []status.Peer{}, TurnedAway: s.TurnedAway, Denied: s.Denied, Failed: s.Failed, Evicted: s.Evicted, Slow: s.Slow,
		Pending: s.Pending, Refused: map[string]uint64{"denied": s.DeniedData, "lanes": s.DeniedLane},
	}
	for reason, n := range refused {
		out.Refused[reason] += n
	}
	for _, p := range s.Peers {
		out.Connections = append(out.Connections, status.Peer{
			Address: p.Peer.Addr, Host: p.Peer.Host, Role: p.Peer.Role, Names: p.Peer.Names, Since: p.Since, LastBatch: p.LastBatch,
			Batches: p.Batches, Bytes: p.Bytes, Refused: p.Refused, Blocked: p.Blocked,
		})
	}
	return out
}

// Forward adds to r what its forwarder says: the groups, what the next nodes took, what was
// dropped further on.
func Forward(r *status.Role, s forward.Stats) {
	for i := range s.Groups {
		g := group(&s.Groups[i])
		for _, l := range s.Groups[i].Lines {
			add(&r.Delivered, l.Acked)
		}
		r.Forward = append(r.Forward, g)
	}
	r.DroppedElsewhere = Losses(s.Skipped)
	r.Relabelled = s.Relabelled
}

func group(g *forward.GroupStats) status.Group {
	out := status.Group{Name: g.Name, Mode: string(g.Mode), Destinations: []status.Destination{}}
	for i := range g.Lines {
		l := &g.Lines[i]
		out.Cursors = append(out.Cursors, l.Cursor)
		add(&out.Acked, l.Acked)
		out.Final += l.Final
		add(&out.AwaitingFinal, l.Unfinal)
		out.FinalResent += l.Resent
		out.Resent += l.Doubtful
		for _, x := range l.DoubtfulIDs {
			out.ResentRanges = append(out.ResentRanges, Ranges(x.Lane, x.Ranges))
		}
		out.Failovers += l.Failovers
		out.Failbacks += l.Failbacks
		out.Refused += uint64(l.Refused)
		for j := range l.Destinations {
			out.Destinations = append(out.Destinations, destination(l.Cursor, &l.Destinations[j]))
		}
	}
	return out
}

// Ranges is a set of batch numbers of a lane.
func Ranges(lane batch.Lane, set batch.Ranges) status.LaneRanges {
	out := status.LaneRanges{Lane: lane.String()}
	for _, r := range set.All() {
		out.Ranges = append(out.Ranges, [2]uint64{r.First, r.Last})
	}
	return out
}

func add(to *status.Tally, t queue.Tally) {
	to.Batches += t.Batches
	to.Records += t.Records
	to.Bytes += t.Payload
}

func destination(cursor string, d *forward.DestinationStats) status.Destination {
	c := &d.Client
	return status.Destination{
		Address: d.Address, Configured: d.Configured, Cursor: cursor, Primary: !d.Secondary,
		State: d.State, Since: d.Since, HoldUntil: d.Until, Peer: c.Peer.Host, Flows: d.Flows, Waiting: d.Waiting,
		InFlight: c.InFlight, InFlightBytes: c.InFlightBytes, Window: c.Window, LastAck: c.LastAck, RTT: c.RTT.Seconds(),
		Connects: c.Connects, Failures: c.Failures, LastError: c.LastError,
		Sent: c.Sent, SentBytes: c.SentBytes, Resent: c.Resent, Acked: c.Acked, Refused: c.Refused,
	}
}
