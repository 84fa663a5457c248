package capture

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"ftfuse/internal/batch"
	"ftfuse/internal/record"
	"ftfuse/mount/procs"
	"ftfuse/mount/spool"
	"ftfuse/queue"
)

// Errors of this package.
var (
	// ErrStopped is returned to callers of Drain and the like when Run has ended.
	ErrStopped = errors.New("capture: stopped")
	// ErrState is returned by Recover for a value in the queue that it cannot read.
	ErrState = errors.New("capture: stored state is malformed")
)

// Store is what capture uses of the spool; package spool has the meaning of each.
type Store interface {
	Begin(committed uint64) spool.Recovery
	Entries(dst []spool.Entry, from uint64) []spool.Entry
	Wait(ctx context.Context, from uint64) error
	Next() uint64
	Committed(seq uint64)

	ReadAt(n spool.Number, p []byte, off int64) (int, error)
	Size(n spool.Number) int64
	SeekData(n spool.Number, off int64) (int64, error)
	Punch(n spool.Number, upto int64)
	Settled(n spool.Number, pos int64)
	TakeGone() []spool.Number
	Files(fn func(f spool.FileInfo) bool) error

	// What the kernel writes.
	Poll(dst []spool.Growth) []spool.Growth
	NextPoll() (time.Duration, bool)
	Growing() <-chan struct{}
	Lowest(n spool.Number, from uint64, none int64) (int64, bool)
	OpenMode(n spool.Number) bool
	Owes(n spool.Number) bool
	KernelWriter(n spool.Number) (spool.Entry, bool)
	DetachOrphans(taken bool) (int, error)
	PunchAll(n spool.Number, size int64) (spool.Cut, error)
	Unpunch(n spool.Number)
	Lengthen(n spool.Number, size int64) error
}

// Queue is what capture uses of the queue.
type Queue interface {
	Submit(ctx context.Context, t *queue.Txn) (queue.Status, error)
	Flush(ctx context.Context) error
	Get(key string) ([]byte, bool)
	Range(prefix string, fn func(key string, value []byte) bool)
}

// Processes tells what is known of a process; package procs has the meaning.
type Processes interface {
	Of(pid uint32, ask procs.Ask, fresh bool) *record.Process
	OfOpener(o *procs.Opener, ask procs.Ask) *record.Process
}

// Options configure a Capture. Store and Queue must be set; a zero in any other
// field means its default.
type Options struct {
	Store  Store
	Queue  Queue
	Rules  []Rule       // until SetRules
	Host   string       // attribute of every record
	Origin batch.Origin // of the lanes; the queue's node id

	Processes Processes // for Rule.Ask; nil: records tell nothing of processes

	Codec        record.Codec  // of the batches; none
	Buckets      int           // lanes of a route among which paths are spread, 1 to 16; 1
	BatchBytes   int           // payload of one batch, 1 MiB
	TxnBytes     int           // of several lanes together that make a transaction, twice BatchBytes
	InFlight     int64         // most bytes given to the queue and not yet committed, 8 MiB; see pace
	MaxLine      int           // for rules that name none, 1 MiB
	MaxHold      int           // an unfinished line longer than this goes out in pieces as it comes, 16 MiB
	MaxRewritten int           // what a filter's replacements may make of a line, 16 MiB or twice its MaxLine; more, and matches are taken out instead
	MaxPending   int64         // all unfinished lines together, 64 MiB, or twice the longest Rule.MaxLine
	LazyCommit   time.Duration // a commit without batches may wait so long, 10 ms
	FullRetry    time.Duration // between attempts while the queue says ErrFull, 20 ms
	RunBytes     int           // largest read of small writes, 256 KiB
	QuantumBytes int64         // of one file before the next has its turn, 256 KiB
	IntakeMax    int           // entries taken out of the journal and not yet cut, 65,536
	Now          func() time.Time
	Logger       *slog.Logger
}

// DefaultMaxLine is the longest line that travels in one piece.
const DefaultMaxLine = 1 << 20

func (o *Options) setDefaults() error {
	if o.Store == nil || o.Queue == nil {
		return errors.New("capture: Options need a Store and a Queue")
	}
	setDefault(&o.Buckets, 1)
	if o.Buckets > batch.MaxBuckets {
		return fmt.Errorf("capture: %d buckets, want 1 to %d", o.Buckets, batch.MaxBuckets)
	}
	setDefault(&o.BatchBytes, 1<<20)
	setDefault(&o.TxnBytes, 2*o.BatchBytes)
	setDefault(&o.InFlight, 8<<20)
	setDefault(&o.MaxLine, DefaultMaxLine)
	setDefault(&o.MaxHold, 16<<20)
	setDefault(&o.MaxRewritten, 16<<20)
	setDefault(&o.MaxPending, 64<<20)
	setDefault(&o.LazyCommit, 10*time.Millisecond)
	setDefault(&o.FullRetry, 20*time.Millisecond)
	setDefault(&o.RunBytes, 256<<10)
	setDefault(&o.QuantumBytes, 256<<10)
	setDefault(&o.IntakeMax, 1<<16)
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return checkRules(o.Rules)
}

func setDefault[T int | int64 | time.Duration](v *T, def T) {
	if *v <= 0 {
		*v = def
	}
}
