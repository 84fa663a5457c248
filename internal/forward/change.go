package forward

import (
	"cmp"
	"context"
	"encoding/binary"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"time"

	"ftfuse/internal/batch"
	"ftfuse/queue"
)

// What a changed configuration means. A line that is new gets what is in the queue for it
// and what comes; it was never owed what had passed by then. So that this does not keep a
// batch from being final for ever, such a line begins with what had passed as final: final
// at every line is then what is final at those that were there before.
//
// That says nothing where a line is gone in the same start. What it had passed may be on its
// way still, behind it, and a horizon above it would make whoever gets it last refuse it as a
// duplicate. So a new line begins only with what was final at those that are gone, too. The
// rest becomes final when the next node says so (a line that was only renamed has the same
// one), or by being sent again: a relay takes it again when it comes (see finals.covers),
// and the new line sends it.

// changes is what a start finds to be different from the last one.
type changes struct {
	fresh  []int                         // lines that never ran
	gone   []string                      // names of cursors whose lines ran and are configured no more
	before uint64                        // what is at or below it may have been sent by a line that is gone
	sent   map[string]uint64             // by the cursors of this start that ran before
	open   map[int]laneSets              // by fresh line: what is in the queue for it
	set    []queue.KV                    // to store before anything is sent
	finals map[string]laneSets           // by what is gone
	wanted func(string, batch.Lane) bool // whether a cursor, of now or then, was for a lane
}

type laneSets map[batch.Lane]batch.Ranges

// findChanges reads which lines ran before.
func findChanges(s store, cursors []string, o *Options) (*changes, error) {
	c := &changes{sent: map[string]uint64{}, open: map[int]laneSets{}, finals: map[string]laneSets{}, wanted: wantedBy(o)}
	var bad error
	s.Range(prefixSent, func(key string, value []byte) bool {
		if len(value) != 8 {
			bad = fmt.Errorf("read %q of the queue: %d bytes, want 8", key, len(value))
			return false
		}
		name, sent := cursorPrefix+key[len(prefixSent):], binary.LittleEndian.Uint64(value)
		switch {
		case slices.Contains(cursors, name):
			c.sent[name] = sent
			return true
		case name != cursorPrefix:
			c.gone = append(c.gone, name)
			c.set = append(c.set, queue.KV{Key: key})
		}
		c.before = max(c.before, sent)
		return true
	})
	if bad != nil {
		return nil, bad
	}
	for i, name := range cursors {
		if _, ran := c.sent[name]; ran {
			continue
		}
		c.fresh = append(c.fresh, i)
		c.sent[name] = c.before
		c.set = append(c.set, sentKV(name, c.before))
		open := laneSets{}
		err := s.List(context.Background(), name, func(l queue.Listed) error {
			set := open[l.ID.Lane]
			set.Add(l.ID.N)
			open[l.ID.Lane] = set
			return nil
		})
		if err != nil {
			return nil, fmt.Errorf("read what is in the queue for cursor %q, which is new: %w", name, err)
		}
		c.open[i] = open
	}
	if len(c.gone) > 0 {
		c.set = append(c.set, sentKV(cursorPrefix, c.before))
	}
	return c, nil
}

// wantedBy returns what says whether a cursor was for a lane: as Wants, but for a cursor
// that is configured no more, too.
func wantedBy(o *Options) func(string, batch.Lane) bool {
	origin, routes := batch.Origin(o.Identity.Node), o.Routes
	return func(cursor string, lane batch.Lane) bool {
		return routes == nil || lane.Origin != origin || slices.ContainsFunc(routes(lane.Route), func(group string) bool {
			rest, ok := strings.CutPrefix(cursor, cursorPrefix+group)
			return ok && (rest == "" || rest[0] == '/')
		})
	}
}

// begin gives the lines that are new what is final at them from the beginning.
func (c *changes) begin(f *Forwarder) {
	if len(c.fresh) == 0 {
		return
	}
	for _, lane := range c.lanes(f) {
		delivered := f.store.Delivered(lane)
		f.finals.begin(lane, func(lf *laneFinals) {
			for _, i := range c.fresh {
				if lf.wanted[i] {
					c.beginAt(f, i, lane, lf, delivered.All())
				}
			}
		})
	}
	c.open = nil
}

// lanes returns all lanes of which anything is known, the newest epochs first.
func (c *changes) lanes(f *Forwarder) []batch.Lane {
	all := map[batch.Lane]bool{}
	for _, lane := range f.store.Lanes() {
		all[lane] = true
	}
	f.finals.mu.Lock()
	for lane := range f.finals.lanes {
		all[lane] = true
	}
	f.finals.mu.Unlock()
	for _, sets := range c.finals {
		for lane := range sets {
			all[lane] = true
		}
	}
	return slices.SortedFunc(maps.Keys(all), func(a, b batch.Lane) int { return cmp.Compare(b.Epoch.Counter, a.Epoch.Counter) })
}

// beginAt is begin for one line and lane, of which taken was taken here.
func (c *changes) beginAt(f *Forwarder, line int, lane batch.Lane, lf *laneFinals, taken []batch.Range) {
	open := c.open[line][lane]
	if len(taken) == 0 && lane.Origin == f.finals.origin { // a source takes nothing, and numbers from 1
		taken = c.numbered(lane, lf, open)
	}
	passed := subtract(taken, open.All())
	olds := f.relabels.oldsOf(line, lane)
	base, others := subtract(passed, olds), false
	for i := range lf.wanted {
		others = others || lf.wanted[i] && !slices.Contains(c.fresh, i)
	}
	for _, name := range c.gone {
		if c.wanted(name, lane) {
			set := c.finals[name][lane]
			base, others = intersect(base, set.All()), true
		}
	}
	if !others {
		base = nil
	}
	for _, r := range base {
		lf.sets[line].AddRange(r)
	}
	lf.dirty[line] = true
	if again := subtract(subtract(passed, base), olds); len(again) > 0 && len(lf.ways) > 0 {
		for i := range lf.ways {
			lf.ways[i].took = setOf(subtract(lf.ways[i].took.All(), again))
		}
		lf.waysDirty = true
	}
}

// numbered returns the numbers of an own lane that are known to have been given out.
func (c *changes) numbered(lane batch.Lane, lf *laneFinals, open batch.Ranges) []batch.Range {
	last := uint64(0)
	see := func(set batch.Ranges) {
		if all := set.All(); len(all) > 0 {
			last = max(last, all[len(all)-1].Last)
		}
	}
	see(open)
	for i := range lf.sets {
		see(lf.sets[i])
	}
	for _, sets := range c.finals {
		see(sets[lane])
	}
	if last == 0 {
		return nil
	}
	return []batch.Range{{First: 1, Last: last}}
}

// settle stores what this start found to be different, before anything is sent: one that
// is killed before finds everything as it was.
func (f *Forwarder) settle(ctx context.Context) error {
	if len(f.changes.set) == 0 {
		return nil
	}
	committed := make(chan error, 1)
	_, err := f.store.Submit(ctx, &queue.Txn{
		Set: append(f.changes.set, f.unstored()...), Aside: true, Sync: true,
		Done: func(err error) { committed <- err },
	})
	if err != nil {
		return fmt.Errorf("store which groups there are: %w", err)
	}
	f.changes = nil
	select {
	case err := <-committed:
		return err
	case <-time.After(markWait):
		f.log.Warn("which groups there are cannot be stored now; sending all the same", slog.Duration("after", markWait))
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func sentKV(cursor string, seq uint64) queue.KV {
	return queue.KV{Key: sentKey(cursor), Value: binary.LittleEndian.AppendUint64(nil, seq)}
}

func sentKey(cursor string) string { return prefixSent + strings.TrimPrefix(cursor, cursorPrefix) }
