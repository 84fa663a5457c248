package receive

import (
	"errors"
	"fmt"
	"io"
	"time"

	"ftfuse/internal/batch"
	"ftfuse/internal/record"
	"ftfuse/internal/sink"
	"ftfuse/queue"
)

// Batch is what one mount sealed together: records of one host, in the order in which they
// were captured. It is good during the call of Handler.Batch that it is given to, and not
// safe for concurrent use.
type Batch struct {
	Seq     uint64    // place in the server's queue; grows from batch to batch, with gaps
	ID      string    // names this batch for ever, wherever it goes
	Host    string    // whose mount sealed it
	Sealed  time.Time // when, by that host's clock
	Records int       // how many there are
	Payload uint64    // bytes that programs wrote
	// Resent says that this copy was sent elsewhere before, so that another receiver may
	// have it too. (This one has it once.)
	Resent bool
	// Healed says that the batch had been taken before and the disk damaged it then: what
	// the Handler did with it, if it was given it at all, stands already.
	Healed bool

	r   *record.Reader
	err error
}

// Record is one write(2), or the complete lines in it. Data is not to be written to, and,
// like Host and Path, may be kept.
type Record struct {
	Host, Path    string // Path below the mount point, without a leading slash
	PID, UID, GID uint32
	Time          time.Time // by the clock of the host; for people, never for order
	Exe, Cgroup   string    // of the writing process, where its rule asks for them; else ""
	Flags         Flags
	Data          []byte // as written: with line ends, and not altered in any way
}

// Flags say what is peculiar about a record.
type Flags uint16

// Flags of a Record (docs/protocol.md, "Record").
const (
	Unterminated = Flags(record.Unterminated) // the bytes end without the end of their line
	Break        = Flags(record.Break)        // what stands before was another writer's: end its line first
	PieceFirst   = Flags(record.PieceFirst)   // the first piece of a line longer than max_line
	PieceMiddle  = Flags(record.PieceMiddle)
	PieceLast    = Flags(record.PieceLast)
	Recovered    = Flags(record.Recovered) // PID and Time are not known
	Offline      = Flags(record.Offline)   // written while nothing was mounted
	Overwrite    = Flags(record.Overwrite) // written over bytes that had been captured before
	Binary       = Flags(record.Binary)    // the bytes are not lines
	Opener       = Flags(record.Opener)    // PID, UID and GID are those of who opened the file
	Several      = Flags(record.Several)   // several processes had it open
)

// newBatch makes the batch of a queue's item. An error says that it can never be read.
func newBatch(item queue.Item, r *record.Reader) (*Batch, error) {
	if err := checkBatch(r, item.Batch); err != nil {
		return nil, err
	}
	if err := r.Reset(item.Batch); err != nil {
		return nil, err
	}
	return &Batch{
		Seq: item.Seq, ID: item.Batch.ID.String(), Host: item.Batch.Host,
		Sealed: time.Unix(0, item.Batch.Time), Records: int(item.Batch.Records), Payload: item.Batch.Payload, r: r,
	}, nil
}

// Next returns the next record, or io.EOF behind the last. (A batch is read whole before a
// Handler is given it: there is no other error.)
func (b *Batch) Next() (Record, error) {
	if b.err != nil {
		return Record{}, b.err
	}
	r, err := b.r.Next()
	if err != nil {
		if !errors.Is(err, io.EOF) {
			err = fmt.Errorf("read batch %s: %w", b.ID, err)
		}
		b.err = err
		return Record{}, err
	}
	return Record{
		Host: r.Host, Path: r.Path, PID: r.PID, UID: r.UID, GID: r.GID,
		Time: time.Unix(0, r.Time), Exe: r.Exe(), Cgroup: r.Cgroup(), Flags: Flags(r.Flags), Data: r.Data,
	}, nil
}

// checkBatch reads all of s: every record must be of the host that the batch speaks for.
func checkBatch(r *record.Reader, s batch.Sealed) error {
	if err := r.Reset(s); err != nil {
		return err
	}
	for {
		rec, err := r.Next()
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		case rec.Host != s.Host:
			return fmt.Errorf("%w: batch %v of %q holds a record of %q", sink.ErrHost, s.ID, s.Host, rec.Host)
		}
	}
}
