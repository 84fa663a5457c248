package forward

import (
	"slices"

	"ftfuse/internal/batch"
	"ftfuse/queue"
	"ftfuse/transport"
)

// sendAgain hears that nodes from d on lost batches of lane to damage. A copy that is still
// here makes that good: what was kept for the final ack goes out again, at once, and whoever
// lost it takes it (queue.Txn.Healed). Once, that is; if that does not help, what is not final
// after its time is sent again as ever. It returns what of skips is lost here, too: not what
// is final by now, of which a peer may speak that does not know yet. The caller holds mu.
func (l *line) sendAgain(d *destination, lane batch.Lane, skips []transport.Skip) []transport.Skip {
	if !slices.ContainsFunc(skips, func(s transport.Skip) bool { return s.Reason == queue.LostCorrupt }) {
		return skips
	}
	kept, again := l.f.finals.setOf(l.index, lane), batch.Ranges{}
	var all map[uint64]*entry
	if le := l.lanes[lane]; le != nil {
		all = le.byN
	}
	for i := range skips {
		if skips[i].Reason != queue.LostCorrupt {
			continue
		}
		for _, r := range skips[i].Ranges.All() {
			eachIn(all, r, func(e *entry) {
				kept.Add(e.n)
				if e.stage == unfinal && e.at == d && !e.damaged {
					e.damaged = true
					l.resend(e)
					again.Add(e.n)
				}
			})
		}
	}
	if again.Len() > 0 {
		l.log.Warn("batches were damaged further down and are sent again: they are kept here until they are final",
			"address", d.address, "peer", d.host, "lane", lane.String(), "batches", again.String())
	}
	var known transport.SkipSet
	known.Add(lane, transport.Skip{Ranges: kept})
	return known.Add(lane, skips...)
}

// setOf returns what of lane is final at a line.
func (f *finals) setOf(line int, lane batch.Lane) batch.Ranges {
	f.mu.Lock()
	defer f.mu.Unlock()
	if lf := f.lanes[lane]; lf != nil {
		return lf.sets[line].Clone()
	}
	return batch.Ranges{}
}
