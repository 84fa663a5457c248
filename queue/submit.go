package queue

import (
	"context"
	"fmt"
	"math"

	"ftfuse/internal/batch"
)

// group is what is committed in one bbolt transaction.
type group struct {
	txns     []*Txn
	items    []*memItem
	kv       map[string][]byte // nil: delete
	bytes    int64
	sync     bool
	acks     bool              // all acks go with it
	replaces bool              // an entry takes another's place
	heals    bool              // an entry is another copy of one that was damaged
	puts     map[string][]byte // set when the group is taken: kv, and the delivered set
}

// Submit appends t to what will be committed. Txns are committed in the order in which
// Submit takes them. On an error nothing of t happens and Done is not called.
//
// The queue keeps Batch.Data, Notes and values by reference until no reader needs them:
// the caller must not write to them again.
func (q *Queue) Submit(ctx context.Context, t *Txn) (Status, error) {
	if err := checkEntries(t.Entries); err != nil {
		return Fresh, err
	}
	if t.Prepare == nil && (len(t.Replace) > 0 || t.Aside && len(t.Entries) == 0) {
		return Fresh, q.aside(t)
	}
	select {
	case q.submit <- struct{}{}:
		defer func() { <-q.submit }()
	case <-ctx.Done():
		return Fresh, fmt.Errorf("submit to the queue: %w", ctx.Err())
	case <-q.failed:
		return Fresh, q.err
	case <-q.stop:
		return Fresh, ErrClosed
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if err := q.state(); err != nil {
		return Fresh, err
	}
	fresh, err := q.dedupe(t)
	if err != nil {
		return Fresh, err
	}
	if len(fresh) == 0 && len(t.Entries) > 0 && len(t.Replace) == 0 {
		q.enqueue(&Txn{Done: t.Done, Sync: t.Sync}, nil)
		return Duplicate, nil
	}
	status, err := q.admit(ctx, fresh, t)
	if err == nil {
		err = q.state() // it may have waited
	}
	if err != nil {
		return Fresh, err
	}
	return status, q.take(t, fresh, status)
}

// take makes t part of the queue, with the entries that are new, or without them where
// they are dropped. On an error t is as it was. The caller holds mu, which Prepare does not.
func (q *Queue) take(t *Txn, fresh []Entry, status Status) error {
	replaces, err := q.checkReplace(t, len(fresh))
	if err != nil {
		return err
	}
	was := t.Entries
	t.Entries = fresh
	if status == Dropped {
		t.Entries = nil
	}
	if err := q.prepare(t); err != nil {
		t.Entries = was
		return err
	}
	if status == Dropped {
		for i := range fresh {
			q.dropNew(&fresh[i])
		}
	}
	q.append(t, replaces)
	return nil
}

// aside takes a Txn that has nothing but state, or whose entries take the places of others,
// whoever waits for room: that may be waiting for this.
func (q *Queue) aside(t *Txn) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if err := q.state(); err != nil {
		return err
	}
	fresh, err := q.dedupe(t)
	if err != nil {
		return err
	}
	return q.take(t, fresh, Fresh)
}

// checkEntries refuses what could not be stored or found again.
func checkEntries(entries []Entry) error {
	for i := range entries {
		s := &entries[i].Batch
		if s.ID.N == 0 || s.ID.Lane.Bucket >= batch.MaxBuckets {
			return fmt.Errorf("submit batch %v: %w", s.ID, batch.ErrName)
		}
		if len(s.Via) > maxVia || len(s.Host) > batch.MaxHost || len(s.Data) > math.MaxInt32 || len(entries[i].Note) > math.MaxInt32 {
			return fmt.Errorf("submit batch %v: %w: %d bytes, %d bytes of note, %d nodes, host of %d bytes", s.ID, ErrOptions, len(s.Data), len(entries[i].Note), len(s.Via), len(s.Host))
		}
	}
	return nil
}

// state returns why the queue takes no more calls. The caller holds mu.
func (q *Queue) state() error {
	if err := q.Err(); err != nil {
		return err
	}
	if q.closed {
		return ErrClosed
	}
	return nil
}

// dedupe returns the entries whose ids are new.
func (q *Queue) dedupe(t *Txn) ([]Entry, error) {
	entries := t.Entries
	if !q.o.Dedupe || len(entries) == 0 {
		return entries, nil
	}
	fresh := make([]Entry, 0, len(entries))
	var own map[batch.ID]uint32
	if len(entries) > 1 {
		own = make(map[batch.ID]uint32, len(entries))
	}
	for i := range entries {
		s := &entries[i].Batch
		if host := q.delivered.Host(s.ID.Lane); q.o.OneHost && host != "" && host != s.Host {
			return nil, fmt.Errorf("submit batch %v of host %q: its lane is of host %q: %w", s.ID, s.Host, host, ErrConflict)
		}
		known, conflict := q.delivered.Look(s.ID, s.CRC)
		crc, twice := own[s.ID]
		if twice {
			known, conflict = true, crc != s.CRC
		}
		if conflict {
			return nil, fmt.Errorf("submit batch %v with CRC %08x: %w", s.ID, s.CRC, ErrConflict)
		}
		again := known && !twice && q.welcome(s.ID)
		if !known || t.Again || again {
			t.Healed = t.Healed || again
			fresh = append(fresh, entries[i])
			if own != nil {
				own[s.ID] = s.CRC
			}
		}
	}
	return fresh, nil
}

// admit waits for room or does what the policy says. The caller holds mu, which is
// given up while waiting.
func (q *Queue) admit(ctx context.Context, entries []Entry, t *Txn) (Status, error) {
	beyond := t.Beyond || len(t.Replace) > 0
	var size int64
	for i := range entries {
		size += entries[i].size()
	}
	if size == 0 {
		return Fresh, nil
	}
	for {
		busy := q.pending.bytes + q.taking
		full := !beyond && q.live > 0 && q.live+size > q.o.MaxBytes
		late := busy > 0 && busy+size > q.o.PendingBytes
		if !full && !late {
			return Fresh, nil
		}
		if full || q.diskFull {
			policy := q.o.OnFull               // it may change while this waits
			if t.Again || len(q.leaving) > 0 { // what they needed makes room
				policy = Block
			}
			switch {
			case policy == Error:
				return Fresh, fmt.Errorf("submit %d bytes: %w: %d of %d bytes are waiting", size, ErrFull, q.live, q.o.MaxBytes)
			case policy == DropNewest && len(t.Replace) == 0:
				return Dropped, nil
			case policy == DropOldest && q.dropOldest(LostDropOldest):
				continue
			}
		}
		if err := q.waitRoom(ctx); err != nil {
			return Fresh, err
		}
	}
}

func (q *Queue) waitRoom(ctx context.Context) error {
	room := q.room
	q.mu.Unlock()
	defer q.mu.Lock()
	select {
	case <-room:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for room in the queue: %w", ctx.Err())
	case <-q.failed:
		return q.err
	case <-q.stop:
		return ErrClosed
	}
}

// prepare lets the role fill t. It may call Get, so that kvMu is free.
func (q *Queue) prepare(t *Txn) error {
	if t.Prepare == nil {
		return nil
	}
	// mu stays free for acks and readers; the submit lock keeps the order.
	q.mu.Unlock()
	err := t.Prepare(t)
	q.mu.Lock()
	if err == nil {
		err = q.state()
	}
	return err
}

// append makes t part of the queue. The caller holds mu.
func (q *Queue) append(t *Txn, replaces []replacement) {
	items := make([]*memItem, len(t.Entries))
	for i := range t.Entries {
		e := &t.Entries[i]
		it := &memItem{seq: q.nextSeq, size: e.size(), e: *e}
		if replaces != nil {
			it.replaces = replaces[i]
			q.replacing[it.replaces.seq] = true
			q.pending.replaces = true
		}
		q.nextSeq++
		q.mem.push(it)
		q.live += it.size
		items[i] = it
		q.pending.bytes += it.size
		if q.o.Dedupe {
			q.heals(&e.Batch)
			q.delivered.Add(e.Batch.ID, e.Batch.CRC)
			q.delivered.Claim(e.Batch.ID.Lane, e.Batch.Host)
		}
	}
	q.enqueue(t, items)
}

func (q *Queue) enqueue(t *Txn, items []*memItem) {
	p := &q.pending
	p.txns = append(p.txns, t)
	p.items = append(p.items, items...)
	if len(t.Set) > 0 {
		if p.kv == nil {
			p.kv = map[string][]byte{}
		}
		q.kvMu.Lock()
		for _, kv := range t.Set {
			p.kv[kv.Key] = kv.Value
			p.bytes += int64(len(kv.Key) + len(kv.Value))
			if kv.Value == nil {
				delete(q.kv, kv.Key)
			} else {
				q.kv[kv.Key] = kv.Value
			}
		}
		q.kvMu.Unlock()
	}
	p.sync, p.acks = p.sync || t.Sync, p.acks || t.Acks
	if p.sync || p.bytes >= q.o.CommitBytes || len(p.txns) == 1 {
		q.wakeCommitter()
	}
}

func (q *Queue) wakeCommitter() {
	select {
	case q.kick <- struct{}{}:
	default:
	}
}

// Range calls fn for each key with the prefix, in no order, as of the newest submitted
// Txn, until fn returns false. fn must not call Submit.
func (q *Queue) Range(prefix string, fn func(key string, value []byte) bool) {
	q.kvMu.RLock()
	defer q.kvMu.RUnlock()
	for k, v := range q.kv {
		if len(k) >= len(prefix) && k[:len(prefix)] == prefix && !fn(k, v) {
			return
		}
	}
}
