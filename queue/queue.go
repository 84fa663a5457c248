// Package queue is the durable FIFO of sealed batches that every role shares: bounded
// bbolt segment files, group commit, named cursors, the delivered set, and a small
// key-value room for the role's own state, all committed in one transaction.
//
//	Submit ──> pending ──> committer ──> newest segment (bbolt, fdatasync) ──> Done
//	              │                          ▲ deletes what every cursor acked
//	              └──> memory window ──> Cursor.Next ... Cursor.Ack
//	                         ▲ misses: segment files, CRC checked
//
// What it promises:
//   - A Txn is on disk whole or not at all; Done is called after fdatasync returned.
//   - A batch that Next gives has the CRC it was submitted with, wherever it was read.
//   - Damage is found, set aside, counted and named; what is undamaged goes on.
//   - After a failed commit nothing is tried again: Failed is closed, Err says why.
//
// All methods are safe for concurrent use, but for Cursor.Next and NextHead: one
// goroutine at a time for each cursor. The formats are described in docs/protocol.md.
package queue

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"ftfuse/internal/batch"
	"ftfuse/internal/flock"
)

// Errors of opening.
var (
	// ErrLocked is returned by Open, Verify and Repair where another process has the queue.
	ErrLocked = errors.New("queue is in use by another process")
	// ErrNewestDamaged is returned by Open where the newest state cannot be read whole.
	ErrNewestDamaged = errors.New("the queue's newest state is damaged: run `ftfuse queue verify`, then `ftfuse queue repair`")
	// ErrVersion is returned for a queue written in a format that this version does not know.
	ErrVersion = errors.New("queue format version not known")
	// ErrOptions is returned by Open for options that cannot be.
	ErrOptions = errors.New("queue options")
)

// Errors of a running queue.
var (
	// ErrFull is returned by Submit under the policy Error.
	ErrFull = errors.New("queue is full")
	// ErrConflict is returned by Submit for an id that was taken before with another CRC.
	ErrConflict = errors.New("batch id was taken before with another content")
	// ErrClosed is returned by every call after Close.
	ErrClosed = errors.New("queue is closed")
	// ErrFailed is wrapped by every error after a failed commit.
	ErrFailed = errors.New("queue has stopped after a failed commit")
	// ErrNoCursor is returned by Cursor for a name that Options.Cursors does not have.
	ErrNoCursor = errors.New("no such cursor")
)

// KV is one change of the role's own state. A nil Value deletes the key.
type KV struct {
	Key   string
	Value []byte
}

// Entry is a batch with the role's private note, which is kept beside it.
type Entry struct {
	Batch batch.Sealed
	Note  []byte
}

// Item is an entry as a cursor gives it. Nobody may write to its bytes.
type Item struct {
	Seq uint64 // position in the queue, dense from 1
	Entry
}

// Status is what became of a Txn.
type Status int

// Values of Status.
const (
	Fresh     Status = iota // it will be committed
	Duplicate               // every entry's id was taken before; nothing of it is committed again
	Dropped                 // DropNewest took its entries, counted; Set is committed
)

// String names the status.
func (s Status) String() string {
	return [...]string{"fresh", "duplicate", "dropped"}[s]
}

// Txn is what is committed together, whole or not at all.
type Txn struct {
	// Entries are appended in this order. With Options.Dedupe, entries whose id is in
	// the delivered set already are taken out before Prepare is called.
	Entries []Entry
	// Replace is empty, or has for each of Entries the seq of an entry whose place it takes,
	// in the same commit: which cursors need it is what then holds for the old one, and
	// none of them needs that any more. Those of Options.Copies keep the old one and never get
	// the new one: they tell nobody an id, and have what follows in its order. All ids must be
	// new. The old entries must have been committed; Submit returns ErrGone where no cursor that
	// passes on needs one any more. A cursor that was given the old one may still ack it, which
	// counts for the new one. Without Prepare it waits for nobody and no limit: what waits for
	// room may wait for this.
	Replace []uint64
	// Set is applied in this order. The queue keeps the values; the caller must not
	// write to them again.
	Set []KV
	// Prepare is optional. It is called once inside Submit, in commit order, for a Txn
	// that will be committed. It may fill Set and the Notes, from the state as of all
	// earlier Txns. It must call nothing of the queue but Get and Range. An error
	// takes the Txn back: Submit returns it.
	Prepare func(t *Txn) error
	// Sync asks for a commit as soon as possible instead of with the group.
	Sync bool
	// Beyond takes the Entries though MaxBytes are there already: they were accepted
	// before, and whoever would make room may wait for them. A full disk holds them.
	Beyond bool
	// Again takes Entries although their ids are in the delivered set (with another CRC it is
	// ErrConflict still), and waits while the queue is full, whatever OnFull says.
	Again bool
	// Healed is set by Submit, before Prepare: some of Entries were taken before, and were lost
	// to damage since (LostCorrupt, or TakeAgain), so that they are no duplicates.
	Healed bool
	// Aside lets a Txn without Entries and Prepare pass those that wait for room: state of
	// its own, without which nobody could make room.
	Aside bool
	// Acks has every Ack that was made before Submit committed no later than this Txn: when
	// Done is called with nil, a restart gives none of those entries again.
	Acks bool
	// Done is optional. It is called once from the committer's goroutine, in commit
	// order, with nil when the commit is on disk, or with the error that stopped the
	// queue. It must not block. For a duplicate it comes not before the original is
	// durable.
	Done func(err error)
}

// Policy says what Submit does while the queue is full.
type Policy int

// Values of Policy.
const (
	Block Policy = iota
	Error
	DropOldest
	DropNewest
)

// Defaults of Options.
const (
	DefaultSegmentBytes = 256 << 20
	DefaultCommitEvery  = 5 * time.Millisecond
	DefaultCommitBytes  = 1 << 20
	DefaultMaxBytes     = 8 << 30
	DefaultMemoryBytes  = 64 << 20
	DefaultPendingBytes = 8 << 20
	DefaultReserveBytes = 8 << 20
	DefaultIdleBytes    = 16 << 20
	DefaultIdleAfter    = time.Second
)

// CursorWants says whether a cursor wants a lane; see Options.Wants.
type CursorWants = func(cursor string, lane batch.Lane) bool

// maxCursors is how many consumers a queue has at most.
const maxCursors = 64

// Options of Open. A zero field takes its default.
type Options struct {
	SegmentBytes int64         // size at which a segment is closed and a new one begun
	CommitEvery  time.Duration // longest wait for a group while commits follow each other
	CommitBytes  int64         // a group of this size does not wait
	PendingBytes int64         // Submit waits while this much is not yet committed
	MaxBytes     int64         // limit of what no cursor has passed yet
	OnFull       Policy
	MaxAge       time.Duration // batches older than this expire; 0 is never
	MemoryBytes  int64         // newest batches kept in memory for cursors
	ReserveBytes int64         // file given back to a full disk so that draining can commit
	IdleBytes    int64         // a drained segment larger than this is given back ...
	IdleAfter    time.Duration // ... once nothing was committed for this long
	Dedupe       bool          // keep a delivered set and refuse what is in it
	OneHost      bool          // with Dedupe: a batch of a lane of which another host's was taken is ErrConflict
	// Cursors are the names; at least one. One that is new begins with the oldest batch that
	// some cursor still needed: with nothing queued it gets new batches only, and a group
	// that was renamed loses none. What a cursor that is gone alone needed is dropped and
	// counted as LostNoCursor.
	Cursors []string
	Logger  *slog.Logger

	// Copies names cursors that only make a copy of what the others pass on: what is dropped
	// for them alone is a Loss with Copy set, and not in LostRanges; they keep what is
	// replaced (Txn.Replace). A name that ends in a
	// slash stands for all that begin with it, also for such as are configured no more.
	Copies []string

	cheapRanges int // see there; tests set it
	portion     int // portionEntries; tests set it

	// Wants is optional: false for a lane that a cursor does not want, which counts as acked
	// by it when it is committed. What nobody wants is dropped, and counted as LostNoCursor.
	// It is called with the queue's locks held and must call nothing of it.
	Wants CursorWants

	// Begin is optional. Open calls it once the state of earlier runs is read, before Wants
	// is asked for the first time. q answers Node, Get and Range then, and nothing else.
	Begin func(q *Queue)

	// OnLoss is optional. It is called for every batch that is given up and whose id is
	// known, in order, from a goroutine of its own, once the loss is on disk. Close waits
	// for it: it must not call Close.
	OnLoss func(Loss)
}

func (o Options) withDefaults() (Options, error) {
	def := func(p *int64, v int64) {
		if *p == 0 {
			*p = v
		}
	}
	def(&o.SegmentBytes, DefaultSegmentBytes)
	def(&o.CommitBytes, DefaultCommitBytes)
	def(&o.PendingBytes, DefaultPendingBytes)
	def(&o.MaxBytes, DefaultMaxBytes)
	def(&o.MemoryBytes, DefaultMemoryBytes)
	def(&o.ReserveBytes, DefaultReserveBytes)
	def(&o.IdleBytes, DefaultIdleBytes)
	if o.cheapRanges == 0 {
		o.cheapRanges = cheapRanges
	}
	if o.portion == 0 {
		o.portion = portionEntries
	}
	if o.CommitEvery == 0 {
		o.CommitEvery = DefaultCommitEvery
	}
	if o.IdleAfter == 0 {
		o.IdleAfter = DefaultIdleAfter
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	for _, v := range []int64{o.SegmentBytes, o.CommitBytes, o.PendingBytes, o.MaxBytes, o.MemoryBytes, o.ReserveBytes, o.IdleBytes, int64(o.CommitEvery), int64(o.MaxAge), int64(o.IdleAfter)} {
		if v < 0 {
			return o, fmt.Errorf("%w: a size or time below zero", ErrOptions)
		}
	}
	if len(o.Cursors) == 0 || len(o.Cursors) > maxCursors {
		return o, fmt.Errorf("%w: %d cursors, want 1 to %d", ErrOptions, len(o.Cursors), maxCursors)
	}
	if o.OnFull < Block || o.OnFull > DropNewest {
		return o, fmt.Errorf("%w: policy %d", ErrOptions, o.OnFull)
	}
	return o, nil
}

// Queue is an open queue. Make one with Open.
//
// Lock order: changing, submit, mu, kvMu. The committer holds none of them while it writes.
type Queue struct {
	dir  string
	o    Options
	log  *slog.Logger
	lock *flock.File

	submit   chan struct{} // held by the one Submit that decides; orders all Txns
	changing chan struct{} // held by a SetCursors, until what it began is done; by Close in the end

	mu        sync.Mutex
	node      batch.Node
	nextSeq   uint64 // of the next entry submitted
	committed uint64 // newest seq on disk
	pending   group  // submitted, not yet taken by the committer
	taking    int64  // bytes taken by the committer, not yet on disk
	mem       window
	cache     *blockCache
	segs      []*segment      // ascending; the last is the active one
	cursors   []*Cursor       // in order of Options.Cursors
	leaving   []*Cursor       // removed; until what only they needed is dropped
	retired   []*Cursor       // stored, and not configured any more; until that is stored
	replacing map[uint64]bool // entries in whose place others were submitted
	delivered *DeliveredSet
	losses    losses
	lost      lostLanes
	damaged   damaged
	untold    []Loss        // not durable yet
	told      []Loss        // durable, OnLoss was not called yet
	live      int64         // bytes that some cursor has not passed; submitted ones included
	deletes   []uint64      // blocks of the active segment that every cursor passed
	room      chan struct{} // closed and replaced when there is more room
	diskFull  bool
	closed    bool
	lastWork  time.Time // newest commit that held a Txn
	ackSince  time.Time // oldest ack that is not durable; zero: none

	kvMu sync.RWMutex
	kv   map[string][]byte // as of the newest submitted Txn

	commits atomic.Uint64 // bbolt transactions, for the benchmark's sync cadence

	st   *stored      // committer only: what the newest segment's state holds
	bufs blockBuffers // committer only

	kick               chan struct{} // something for the committer
	stop               chan struct{} // closed by Close
	done               chan struct{} // closed when the committer ended
	tellKick, tellDone chan struct{} // something for tellLosses; it has ended
	failed             chan struct{}
	err                error // set before failed is closed
}

// Node returns the id drawn when the queue was made.
func (q *Queue) Node() batch.Node { return q.node }

// Failed is closed after a failed commit. The role must then stop.
func (q *Queue) Failed() <-chan struct{} { return q.failed }

// Err returns nil, or why Failed was closed.
func (q *Queue) Err() error {
	select {
	case <-q.failed:
		return q.err
	default:
		return nil
	}
}

// Get returns the value of key as of the newest submitted Txn. Nobody may write to it.
func (q *Queue) Get(key string) ([]byte, bool) {
	q.kvMu.RLock()
	defer q.kvMu.RUnlock()
	v, ok := q.kv[key]
	return v, ok
}

// Cursor returns the cursor called name.
func (q *Queue) Cursor(name string) (*Cursor, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.cursorOf(name)
}

// cursorOf is Cursor. The caller holds mu, or has the queue for itself.
func (q *Queue) cursorOf(name string) (*Cursor, error) {
	for _, c := range q.cursors {
		if c.name == name {
			return c, nil
		}
	}
	return nil, fmt.Errorf("%w: %q, this queue has %q", ErrNoCursor, name, q.o.Cursors)
}

// Delivered returns a copy of the delivered set of lane.
func (q *Queue) Delivered(lane batch.Lane) batch.Ranges {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.delivered.Ranges(lane)
}

// Host returns the host that sealed the first batch taken of lane; "": none was taken.
func (q *Queue) Host(lane batch.Lane) string {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.delivered.Host(lane)
}

// KnowsLane reports whether the delivered set has something of lane.
func (q *Queue) KnowsLane(lane batch.Lane) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.delivered.lanes[lane] != nil
}

// Lanes returns the lanes of the delivered set, in no order.
func (q *Queue) Lanes() []batch.Lane {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.delivered.Lanes()
}

// DeliveredStats says how large the delivered set is.
func (q *Queue) DeliveredStats() DeliveredStats {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.delivered.Stats()
}

// Merge notes the final horizon of a lane: every number below is final, and its part of
// the delivered set becomes one range. It is durable within a second.
func (q *Queue) Merge(lane batch.Lane, below uint64) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if below > 1 {
		q.delivered.Merge(lane, below)
		q.lost.merge(lane, below)
		q.damaged.merge(lane, below)
		q.ackLater()
	}
}

// Flush returns when everything submitted before is on disk.
func (q *Queue) Flush(ctx context.Context) error {
	done := make(chan error, 1)
	if _, err := q.Submit(ctx, &Txn{Sync: true, Aside: true, Done: func(err error) { done <- err }}); err != nil {
		return err
	}
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return fmt.Errorf("flush the queue: %w", ctx.Err())
	}
}

// Close commits what was submitted and waits for the queue's goroutines. It returns the
// error that stopped the queue, if one did.
func (q *Queue) Close() error {
	q.mu.Lock()
	again := q.closed
	q.closed = true
	q.mu.Unlock()
	if !again {
		close(q.stop)
	}
	<-q.done
	<-q.tellDone
	if again {
		return q.Err()
	}
	q.changing <- struct{}{}
	q.closeFiles()
	return q.Err()
}
