package forward

import (
	"context"
	"slices"
	"strings"
	"time"

	"ftfuse/queue"
)

// pause gives the destinations nothing more, and returns when all that they were given is
// answered, or ctx ends. What is not answered then is sent again by who comes next, with
// the mark that it may stand at two places.
func (f *Forwarder) pause(ctx context.Context) {
	for _, l := range f.lines {
		l.mu.Lock()
		l.paused = true
		l.mu.Unlock()
	}
	tick := time.NewTicker(drainPoll)
	defer tick.Stop()
	for _, l := range f.lines {
		for l.connected() && l.owed() > 0 {
			select {
			case <-tick.C:
			case <-ctx.Done():
				return
			}
		}
	}
}

// owed is how many batches the destinations were given and have not answered.
func (l *line) owed() (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, d := range l.dests {
		n += d.out
	}
	return n
}

// sendOff waits until the lines whose cursors are not in stay have sent what is in the queue
// for them now, or until ctx ends.
func (f *Forwarder) sendOff(ctx context.Context, stay []string) {
	upTo := f.store.Stats().Committed
	tick := time.NewTicker(drainPoll)
	defer tick.Stop()
	for _, l := range f.lines {
		for !slices.Contains(stay, l.cfg.cursor) && l.oldest() <= upTo {
			select {
			case <-tick.C:
			case <-ctx.Done():
				return
			}
		}
	}
}

// oldest is the seq of what the line has to send first; beyond all there are, if nothing.
func (l *line) oldest() uint64 {
	for _, c := range l.f.store.Stats().Cursors {
		if c.Name == l.cfg.cursor && c.OldestSeq > 0 {
			return c.OldestSeq
		}
	}
	return ^uint64(0)
}

// successor makes the Forwarder that goes on with o, over the same queue, when f.Run has
// returned. It begins as a start would, but for what f knew and has not stored yet, and its
// counters. The caller keeps everybody from calling f meanwhile.
func (f *Forwarder) successor(o Options) (*Forwarder, error) {
	unstored := f.unstored()
	next, err := newForwarder(o, &overlay{store: f.store, kv: latest(unstored)})
	if err != nil {
		return nil, err
	}
	next.setStore(f.store)
	next.changes.set = append(unstored, next.changes.set...)
	for _, l := range f.skips.All() {
		next.skips.Add(l.Lane, l.Skips...)
	}
	for _, l := range f.dropped.All() {
		next.dropped.Add(l.Lane, l.Skips...)
	}
	f.mu.Lock()
	next.lost = f.lost
	f.mu.Unlock()
	f.relabels.mu.Lock()
	next.relabels.count = f.relabels.count
	f.relabels.mu.Unlock()
	f.finals.mu.Lock()
	for lane, lf := range f.finals.lanes {
		next.finals.upstream(lane, lf.below)
	}
	f.finals.mu.Unlock()
	for _, l := range next.lines {
		l.cursor.Rewind()
		i := slices.IndexFunc(f.lines, func(was *line) bool { return was.cfg.cursor == l.cfg.cursor })
		if i >= 0 {
			l.inherit(f.lines[i])
		}
	}
	return next, nil
}

// setStore has everything use s.
func (f *Forwarder) setStore(s store) {
	f.store = s
	for _, l := range f.lines {
		l.mark.s = s
	}
}

// inherit goes on with the counters of was.
func (l *line) inherit(was *line) {
	was.mu.Lock()
	defer was.mu.Unlock()
	l.count, l.doubtful = was.count, was.doubtful
	l.count.unfinal = queue.Tally{} // those are read again
}

// overlay is a store with changes that are not submitted yet.
type overlay struct {
	store
	kv map[string][]byte // nil: deleted
}

// latest are the values that hold after kv.
func latest(kv []queue.KV) map[string][]byte {
	all := make(map[string][]byte, len(kv))
	for _, x := range kv {
		all[x.Key] = x.Value
	}
	return all
}

func (o *overlay) Get(key string) ([]byte, bool) {
	if v, ok := o.kv[key]; ok {
		return v, v != nil
	}
	return o.store.Get(key)
}

func (o *overlay) Range(prefix string, fn func(key string, value []byte) bool) {
	more := true
	for key, v := range o.kv {
		if more && v != nil && strings.HasPrefix(key, prefix) {
			more = fn(key, v)
		}
	}
	if !more {
		return
	}
	o.store.Range(prefix, func(key string, value []byte) bool {
		if _, changed := o.kv[key]; changed {
			return true
		}
		return fn(key, value)
	})
}
