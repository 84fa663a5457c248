package forward

import (
	"context"
	"fmt"
	"maps"
	"strings"
	"sync"
	"time"

	"ftfuse/internal/batch"
	"ftfuse/queue"
)

// simDisk is what of a queue survives a crash.
type simDisk struct {
	node    batch.Node
	nextSeq uint64
	entries map[uint64]queue.Entry
	acked   map[string]map[uint64]bool // by cursor, of what is in entries
	taken   []simTaken                 // in order
	merged  map[batch.Lane]uint64
	kv      map[string][]byte
}

type simTaken struct {
	id  batch.ID
	crc uint32
}

func newSimDisk(node batch.Node) *simDisk {
	return &simDisk{
		node: node, nextSeq: 1, entries: map[uint64]queue.Entry{}, acked: map[string]map[uint64]bool{},
		merged: map[batch.Lane]uint64{}, kv: map[string][]byte{},
	}
}

// simQueue models a queue: group commit with a delay, cursors whose acks become durable
// with a later commit, the delivered set of the real one, and a crash at any moment.
type simQueue struct {
	disk   *simDisk
	delay  func() time.Duration
	mutant mutant
	slow   time.Duration // that reading a head takes
	unread bool          // nothing can be read for now

	mu       sync.Mutex
	dead     bool
	set      deliveredSet
	pending  []*simTxn
	full     bool // the disk is: only acks are stored
	soon     bool // a commit is coming
	later    bool // at the latest then
	kv       map[string][]byte
	cursors  []*simCursor
	onCommit func(queue.Entry) // called with mu held
}

type simTxn struct {
	entries []queue.Entry
	replace []uint64
	set     []queue.KV
	done    func(error)
}

func openSimQueue(d *simDisk, cursors []string, delay func() time.Duration, m mutant) *simQueue {
	q := &simQueue{disk: d, delay: delay, mutant: m, set: queue.NewDeliveredSet(), kv: maps.Clone(d.kv)}
	if m == mutantHighWater {
		q.set = highWater{}
	}
	for _, x := range d.taken {
		q.set.Add(x.id, x.crc)
	}
	for lane, below := range d.merged {
		q.set.Merge(lane, below)
	}
	for _, name := range cursors {
		c := &simCursor{q: q, name: name, next: 1, acked: maps.Clone(d.acked[name]), wake: make(chan struct{}, 1), fetched: map[uint64]int{}}
		if c.acked == nil {
			c.acked = map[uint64]bool{}
		}
		q.cursors = append(q.cursors, c)
	}
	return q
}

// crash ends the process that has the queue: what was not committed is gone.
func (q *simQueue) crash() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.dead = true
	for _, c := range q.cursors {
		signal(c.wake)
	}
}

// Submit takes a Txn; the commit comes a little later.
func (q *simQueue) Submit(ctx context.Context, t *queue.Txn) (queue.Status, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.dead {
		return queue.Fresh, queue.ErrClosed
	}
	x := &simTxn{set: t.Set, done: t.Done, replace: t.Replace}
	for _, e := range t.Entries {
		known, conflict := q.set.Look(e.Batch.ID, e.Batch.CRC)
		if conflict {
			return queue.Fresh, queue.ErrConflict
		}
		if !known || t.Again {
			x.entries = append(x.entries, e)
			q.set.Add(e.Batch.ID, e.Batch.CRC)
		}
	}
	for _, old := range t.Replace {
		if _, ok := q.disk.entries[old]; !ok {
			return queue.Fresh, queue.ErrGone
		}
	}
	for _, kv := range t.Set {
		if kv.Value == nil {
			delete(q.kv, kv.Key)
		} else {
			q.kv[kv.Key] = kv.Value
		}
	}
	status := queue.Fresh
	if len(t.Entries) > 0 && len(x.entries) == 0 {
		status = queue.Duplicate
		x.set = nil
	}
	q.pending = append(q.pending, x)
	q.commitSoon()
	return status, nil
}

// commitSoon commits after a while. The caller holds mu.
func (q *simQueue) commitSoon() {
	if !q.soon {
		q.soon = true
		time.AfterFunc(q.delay(), q.commit)
	}
}

// commit makes what is pending durable: the acks of all cursors with it.
func (q *simQueue) commit() {
	q.mu.Lock()
	q.soon, q.later = false, false
	if q.dead {
		q.mu.Unlock()
		return
	}
	txns := q.pending
	if q.full {
		txns = nil
	} else {
		q.pending = nil
	}
	d := q.disk
	for _, t := range txns {
		for i, e := range t.entries {
			seq := d.nextSeq
			d.nextSeq++
			d.entries[seq] = e
			d.taken = append(d.taken, simTaken{e.Batch.ID, e.Batch.CRC})
			if len(t.replace) > 0 {
				q.replaced(t.replace[i], seq)
			}
			if q.onCommit != nil {
				q.onCommit(e)
			}
		}
		for _, kv := range t.set {
			if kv.Value == nil {
				delete(d.kv, kv.Key)
			} else {
				d.kv[kv.Key] = kv.Value
			}
		}
	}
	q.persistAcks()
	for _, c := range q.cursors {
		signal(c.wake)
	}
	q.mu.Unlock()
	for _, t := range txns {
		if t.done != nil {
			t.done(nil)
		}
	}
}

// replaced gives seq the acks of old, and takes old away.
func (q *simQueue) replaced(old, seq uint64) {
	for _, c := range q.cursors {
		if c.acked[old] {
			c.acked[seq] = true
		}
		c.acked[old] = true
	}
}

// persistAcks stores what is acked, and drops what every cursor acked.
func (q *simQueue) persistAcks() {
	d := q.disk
	for seq := range d.entries {
		all := true
		for _, c := range q.cursors {
			all = all && c.acked[seq]
		}
		if all {
			delete(d.entries, seq)
			for _, c := range q.cursors {
				delete(c.acked, seq)
			}
		}
	}
	clear(d.acked) // a cursor that is configured no more is nobody's
	for _, c := range q.cursors {
		d.acked[c.name] = maps.Clone(c.acked)
	}
}

// Merge notes a horizon; it becomes durable at once, which the real one may take a second for.
func (q *simQueue) Merge(lane batch.Lane, below uint64) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.dead || below < 2 {
		return
	}
	q.set.Merge(lane, below)
	q.disk.merged[lane] = max(q.disk.merged[lane], below)
}

// Get, Range, Stats and Cursor are those of store.
func (q *simQueue) Get(key string) ([]byte, bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	v, ok := q.kv[key]
	return v, ok
}

// Range calls fn for each key with the prefix.
func (q *simQueue) Range(prefix string, fn func(string, []byte) bool) {
	q.mu.Lock()
	all := maps.Clone(q.kv)
	q.mu.Unlock()
	for k, v := range all {
		if strings.HasPrefix(k, prefix) && !fn(k, v) {
			return
		}
	}
}

// Stats counts what each cursor has not acked.
func (q *simQueue) Stats() queue.Stats {
	q.mu.Lock()
	defer q.mu.Unlock()
	st := queue.Stats{Committed: q.disk.nextSeq - 1}
	for _, c := range q.cursors {
		cs := queue.CursorStats{Name: c.name}
		for seq := range q.disk.entries {
			if !c.acked[seq] {
				cs.Waiting.Batches++
			}
		}
		st.Cursors = append(st.Cursors, cs)
	}
	return st
}

// empty reports whether every cursor has acked everything.
func (q *simQueue) empty() bool {
	for _, c := range q.Stats().Cursors {
		if c.Waiting.Batches > 0 {
			return false
		}
	}
	return true
}

// Cursor returns a cursor by its name.
func (q *simQueue) Cursor(name string) (cursor, error) {
	for _, c := range q.cursors {
		if c.name == name {
			return c, nil
		}
	}
	return nil, queue.ErrNoCursor
}

// simCursor is a cursor of a simQueue.
type simCursor struct {
	q       *simQueue
	name    string
	next    uint64
	acked   map[uint64]bool
	wake    chan struct{}
	fetched map[uint64]int

	released batch.Ranges
	asked    int // calls of Needs
}

// NextHead waits for the next entry.
func (c *simCursor) NextHead(ctx context.Context) (queue.Head, error) {
	time.Sleep(c.q.slow)
	for {
		c.q.mu.Lock()
		if c.q.dead {
			c.q.mu.Unlock()
			return queue.Head{}, queue.ErrClosed
		}
		if c.q.unread {
			c.q.mu.Unlock()
			<-ctx.Done()
			return queue.Head{}, fmt.Errorf("%w: %w", ctx.Err(), queue.ErrUnread)
		}
		for ; c.next < c.q.disk.nextSeq; c.next++ {
			e, ok := c.q.disk.entries[c.next]
			if !ok || c.acked[c.next] {
				continue
			}
			b := e.Batch
			h := queue.Head{
				Seq: c.next, ID: b.ID, Size: int64(len(b.Data)), Records: b.Records, Payload: b.Payload, Time: b.Time,
				Flags: b.Flags, Via: b.Via, Host: b.Host,
			}
			c.next++
			c.q.mu.Unlock()
			return h, nil
		}
		c.q.mu.Unlock()
		select {
		case <-c.wake:
		case <-ctx.Done():
			return queue.Head{}, ctx.Err()
		}
	}
}

// Fetch reads an entry again.
func (c *simCursor) Fetch(ctx context.Context, seq uint64) (queue.Item, bool, error) {
	c.q.mu.Lock()
	defer c.q.mu.Unlock()
	if c.q.dead {
		return queue.Item{}, false, queue.ErrClosed
	}
	e, ok := c.q.disk.entries[seq]
	if !ok || c.acked[seq] {
		return queue.Item{}, false, nil
	}
	if c.fetched[seq]++; c.fetched[seq] > 1 && c.q.mutant == mutantNewID {
		e.Batch.ID.N += uint64(c.fetched[seq]) << 32
	}
	return queue.Item{Seq: seq, Entry: e}, true, nil
}

// Ack becomes durable with a later commit.
func (c *simCursor) Ack(seq uint64) {
	c.q.mu.Lock()
	defer c.q.mu.Unlock()
	if _, ok := c.q.disk.entries[seq]; ok && !c.q.dead {
		c.acked[seq] = true
		c.q.commitLater()
	}
}

// Release notes what a policy may take.
func (c *simCursor) Release(seq uint64) {
	c.q.mu.Lock()
	defer c.q.mu.Unlock()
	c.released.Add(seq)
}

// Return notes that a policy may take it, and none does.
func (c *simCursor) Return(uint64) {}

// Needs reports whether an entry is there, and not acked.
func (c *simCursor) Needs(seq uint64) bool {
	c.q.mu.Lock()
	defer c.q.mu.Unlock()
	c.asked++
	_, ok := c.q.disk.entries[seq]
	return ok && !c.acked[seq]
}

// Rewind begins again with the oldest entry that was not acked.
func (c *simCursor) Rewind() {
	c.q.mu.Lock()
	defer c.q.mu.Unlock()
	c.next = 1
}

// commitLater commits within a second.
func (q *simQueue) commitLater() {
	if !q.soon && !q.later {
		q.later = true
		time.AfterFunc(q.delay()*20, q.commit)
	}
}
