package forward

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"maps"
	"slices"
	"sync"
	"time"

	"ftfuse/internal/batch"
	"ftfuse/queue"
)

// prefixRelabel begins the keys that hold, until the new one is final, under which id a
// batch came that had to be sealed again: relabel/, the new id in hexadecimal. The value
// is the old id, and for each cursor that needs the new one a length u8 and its name: the
// others had passed the old one on.
const prefixRelabel = "relabel/"

// relabelAgain is how long a batch waits that cannot be relabelled yet.
const relabelAgain = time.Second

// relabels seals batches again whose id a next node knows with another content. It is
// safe for concurrent use.
type relabels struct {
	f *Forwarder

	mu    sync.Mutex
	queue []conflict
	asked map[uint64]struct{} // by seq: in queue, or being relabelled
	wake  chan struct{}
	next  map[batch.Lane]uint64    // number of the newest batch made of each new lane
	fresh uint64                   // the random part of the epochs of this start
	olds  map[batch.ID]*relabelled // by new id
	drop  []queue.KV
	count uint64
	made  map[content]batch.ID // not long ago
}

// content is one content that went under an id. A relay may have several copies of it,
// which came different ways: they get the same new id, or it would stand twice.
type content struct {
	id   batch.ID
	crc  uint32
	host string
}

// maxMade bounds relabels.made.
const maxMade = 64 << 10

// relabelled is what is known of a new id.
type relabelled struct {
	old  batch.ID
	owed map[int]bool // lines that send the new one, where it is not final
}

// conflict is a batch to relabel.
type conflict struct {
	seq uint64
	id  batch.ID
}

func newRelabels(f *Forwarder, fresh uint64) *relabels {
	return &relabels{
		f: f, asked: map[uint64]struct{}{}, wake: make(chan struct{}, 1), next: map[batch.Lane]uint64{}, fresh: fresh,
		olds: map[batch.ID]*relabelled{}, made: map[content]batch.ID{},
	}
}

// load reads what is stored.
func (r *relabels) load(s store, c *changes) error {
	var bad error
	s.Range(prefixRelabel, func(key string, value []byte) bool {
		name, err := hex.DecodeString(key[len(prefixRelabel):])
		if err == nil {
			var to, from batch.ID
			if to, err = batch.ParseID(name); err == nil {
				if from, err = batch.ParseID(value); err == nil {
					r.restore(c, to, from, value[batch.IDSize:])
				}
			}
		}
		if err != nil {
			bad = fmt.Errorf("read %q of the queue: %w", key, err)
		}
		return bad == nil
	})
	return bad
}

// restore takes in one stored value. Where a cursor is owed the new id that is configured
// no more, those are that came in its place.
func (r *relabels) restore(c *changes, to, from batch.ID, names []byte) {
	x := &relabelled{old: from, owed: map[int]bool{}}
	gone := false
	for len(names) > 0 && len(names) > int(names[0]) {
		name := string(names[1 : 1+int(names[0])])
		names = names[1+len(name):]
		switch i := slices.Index(r.f.finals.names, name); {
		case i < 0:
			gone = true
		case r.f.finals.at(i, to): // the old one is too; perhaps that is not stored yet
			r.f.finals.know(i, from)
		default:
			x.owed[i] = true
		}
	}
	changed := gone
	for _, i := range c.fresh {
		if open := c.open[i][to.Lane]; r.f.wants(i, to.Lane) && (gone || open.Contains(to.N)) {
			x.owed[i], changed = true, true
		}
	}
	switch {
	case len(x.owed) == 0:
		r.drop = append(r.drop, queue.KV{Key: relabelKey(to)})
		return
	case changed:
		c.set = append(c.set, r.stored(to, x))
	}
	r.olds[to] = x
}

// stored is what to store of a new id.
func (r *relabels) stored(id batch.ID, x *relabelled) queue.KV {
	value := x.old.Append(nil)
	for line := range x.owed {
		name := r.f.finals.names[line]
		value = append(append(value, byte(len(name))), name...)
	}
	return queue.KV{Key: relabelKey(id), Value: value}
}

// add asks for a batch to be relabelled: once, however often it is refused meanwhile.
func (r *relabels) add(seq uint64, id batch.ID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, asked := r.asked[seq]; asked {
		return
	}
	r.asked[seq] = struct{}{}
	r.queue = append(r.queue, conflict{seq, id})
	signal(r.wake)
}

// run relabels, until ctx ends.
func (r *relabels) run(ctx context.Context) error {
	again := time.NewTimer(time.Hour)
	defer again.Stop()
	for {
		select {
		case <-r.wake:
		case <-again.C:
		case <-ctx.Done():
			return ctx.Err()
		}
		r.mu.Lock()
		todo := r.queue
		r.queue = nil
		r.mu.Unlock()
		for _, c := range todo {
			done, err := r.relabel(ctx, c)
			if err != nil {
				return err
			}
			if r.ended(c, done); !done {
				again.Reset(relabelAgain)
			}
		}
	}
}

// ended notes what came of relabelling c: done, or it is tried again.
func (r *relabels) ended(c conflict, done bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if done {
		delete(r.asked, c.seq)
	} else {
		r.queue = append(r.queue, c)
	}
}

// relabel puts a batch that is sealed under a fresh id in the place of c, in one
// transaction. Its note goes with the old one: it is for who makes a copy, and keeps that. It returns false where another line has it in flight: what that is
// answered must count first.
func (r *relabels) relabel(ctx context.Context, c conflict) (done bool, err error) {
	over := false // the old one is not in the queue any more
	defer func() {
		for _, l := range r.f.lines {
			l.letGo(c.seq, over)
		}
	}()
	owed, resent, ok := r.hold(c.seq)
	if !ok {
		return false, nil
	}
	it, ok, err := r.f.lines[0].cursor.Fetch(ctx, c.seq)
	for i := 1; i < len(r.f.lines) && err == nil && !ok; i++ {
		it, ok, err = r.f.lines[i].cursor.Fetch(ctx, c.seq)
	}
	if err != nil {
		return false, fmt.Errorf("read a batch to relabel: %w", err)
	}
	if !ok {
		over = true
		return true, nil
	}
	id, again := r.newID(content{c.id, it.Batch.CRC, it.Batch.Host})
	b, err := r.f.o.Relabel(it.Batch, id)
	if err != nil {
		r.f.log.Error("a batch whose id is taken cannot be sealed again; it stays queued, refused", "batch", c.id.String(), "error", err)
		return true, nil
	}
	if b.Flags |= it.Batch.Flags & batch.FlagResent; resent {
		b.Flags |= batch.FlagResent // under its old id
	}
	err = r.replace(ctx, c, again, owed, queue.Entry{Batch: b})
	switch {
	case errors.Is(err, queue.ErrGone):
		over = true
		return true, nil
	case err != nil:
		return false, fmt.Errorf("relabel batch %v: %w", c.id, err)
	}
	over = true
	for _, l := range r.f.lines {
		acked := l.letGo(c.seq, true)
		if (!owed[l.index] || acked) && r.f.wants(l.index, id.Lane) { // nothing will come there
			l.final(id.Lane, []batch.Range{{First: id.N, Last: id.N}}, true)
		}
	}
	r.f.log.Error("two contents went under one id: is this host a clone, or its queue restored from a copy? the batch here is relabelled and both are kept",
		"old", c.id.String(), "new", id.String())
	return true, nil
}

// replace commits e in the place of c; again: another copy has its id already. To owed, the lines
// that send e, it adds those that send that copy.
func (r *relabels) replace(ctx context.Context, c conflict, again bool, owed map[int]bool, e queue.Entry) error {
	id := e.Batch.ID
	r.mu.Lock()
	was := r.olds[id]
	if was != nil {
		maps.Copy(owed, was.owed)
	}
	x := &relabelled{old: c.id, owed: maps.Clone(owed)} // which changes as soon as e is sent
	set := []queue.KV{r.stored(id, x)}
	r.olds[id] = x // before it can be sent
	r.mu.Unlock()
	committed := make(chan error, 1)
	_, err := r.f.store.Submit(ctx, &queue.Txn{
		Entries: []queue.Entry{e}, Replace: []uint64{c.seq}, Again: again, Sync: true,
		Set:  set,
		Done: func(err error) { committed <- err },
	})
	if err == nil {
		err = <-committed
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if err != nil {
		if delete(r.olds, id); was != nil {
			r.olds[id] = was
		}
		return err
	}
	r.count++
	return nil
}

func relabelKey(id batch.ID) string { return prefixRelabel + hex.EncodeToString(id.Append(nil)) }

// newID gives out the next number of this node's own lane for c; again: it was given to
// another copy. Each host has lanes of its own, or others could not tell who may speak for
// one.
func (r *relabels) newID(c content) (id batch.ID, again bool) {
	lane := c.id.Lane
	if r.f.o.Routes != nil && lane.Origin != batch.Origin(r.f.o.Identity.Node) {
		lane.Route = 0 // that of another host, which means nothing here: every group, as before
	}
	lane.Origin = batch.Origin(r.f.o.Identity.Node)
	sum := fnv.New64a()
	_, _ = io.WriteString(sum, c.host)
	lane.Epoch.Random = r.fresh ^ sum.Sum64()
	r.mu.Lock()
	defer r.mu.Unlock()
	if id, again = r.made[c]; again {
		return id, true
	}
	if len(r.made) >= maxMade {
		clear(r.made)
	}
	r.next[lane]++
	id = batch.ID{Lane: lane, N: r.next[lane]}
	r.made[c] = id
	return id, false
}

// final returns which new ids, with their old ones, became final of a lane at a line: the
// old ones are final there too. They are kept until done.
func (r *relabels) final(line int, lane batch.Lane, ranges []batch.Range) (olds map[batch.ID]batch.ID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for id, x := range r.olds { // few, if any
		if id.Lane != lane || !x.owed[line] || !slices.ContainsFunc(ranges, func(a batch.Range) bool { return id.N >= a.First && id.N <= a.Last }) {
			continue
		}
		if olds == nil {
			olds = map[batch.ID]batch.ID{}
		}
		olds[id] = x.old
	}
	return olds
}

// done forgets that a line owes a new id: it is noted that the old one is final there.
func (r *relabels) done(line int, id batch.ID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	x := r.olds[id]
	if x == nil || !x.owed[line] {
		return
	}
	if delete(x.owed, line); len(x.owed) == 0 {
		delete(r.olds, id)
		r.drop = append(r.drop, queue.KV{Key: relabelKey(id)})
	}
}

// oldsOf returns the numbers of lane that become final with their new ids at a line.
func (r *relabels) oldsOf(line int, lane batch.Lane) []batch.Range {
	var set batch.Ranges
	r.withhold(line, lane, &set)
	return set.All()
}

// withhold adds to not the numbers of lane that were relabelled and whose new id is not
// final at a line.
func (r *relabels) withhold(line int, lane batch.Lane, not *batch.Ranges) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, x := range r.olds { // few, if any
		if x.old.Lane == lane && x.owed[line] {
			not.Add(x.old.N)
		}
	}
}

// unstored returns what to store, and counts it as stored.
func (r *relabels) unstored() []queue.KV {
	r.mu.Lock()
	defer r.mu.Unlock()
	set := r.drop
	r.drop = nil
	return set
}
