package capture

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"

	"ftfuse/internal/failpoint"
	"ftfuse/internal/record"
	"ftfuse/mount/spool"
)

// A source is what comes neither from the kernel nor from a handle of the mount: a file that
// was written below the mount point while nothing was mounted, or what `ftfuse send` hands
// over. Somebody else reads it and feeds it; what is kept here is how far it got. The
// position of a source stands in the transaction that has its bytes, so a kill at any point
// loses and doubles nothing as long as whoever feeds goes on at the position that is stored.
//
// In the cutter a source is a file with one writer, whose number has the top bit set; numbers
// of spool files never do.

// Errors of sources.
var (
	// ErrNoSource: there is no source of that id.
	ErrNoSource = errors.New("capture: no such source")
	// ErrAhead: bytes were fed that lie behind the position, with something between.
	ErrAhead = errors.New("capture: bytes ahead of the source's position")
	// ErrSkipped: the rule of the source's path does not transfer. The position is as before.
	ErrSkipped = errors.New("capture: a rule keeps the source from being transferred")
)

// SourceKind says who feeds a source.
type SourceKind uint8

// Kinds of sources. Their numbers are stored.
const (
	SourceFile   SourceKind = 2 // a file below the mount point
	SourceSent   SourceKind = 3 // a file of `ftfuse send`
	SourceStream SourceKind = 4 // standard input of `ftfuse send`, which Name identifies
)

// MaxBegin is how many bytes of its beginning a source is known by.
const MaxBegin = 512

// maxSourceText bounds Path and Name.
const maxSourceText = record.MaxString - 1

// Source is what is stored of a source.
type Source struct {
	Kind  SourceKind
	Path  string // of its records
	Name  string
	Dev   uint64
	Ino   uint64
	Birth int64    // of the file, Unix nanoseconds; 0: not known
	Boot  [16]byte // of the machine, at the newest change
	Seen  int64    // Unix nanoseconds, of the newest change; for people and to forget the oldest
	Begin []byte   // the first bytes of what was fed, up to MaxBegin
	Pos   int64    // everything before it is in the queue
	Done  bool     // `ftfuse send` has sent all of it
}

// Fed says whose the bytes are that are fed.
type Fed struct {
	PID, UID, GID uint32
	Time          int64 // Unix nanoseconds
}

const sourceBit spool.Number = 1 << 63

func isSource(n spool.Number) bool { return n&sourceBit != 0 }

var fpFed = failpoint.New("capture/fed") // bytes of a source are on disk; whoever fed them does not know

// Sources calls fn with every source, in the order of their ids, as the queue has them: what
// Feed returned for is in it. It waits for nothing, and may be called at any time after New.
func (c *Capture) Sources(fn func(id uint64, s Source)) error {
	return c.eachFile(prefixSrc, func(n spool.Number, key string, v []byte) error {
		s, err := parseSource(key, v)
		if err == nil {
			fn(uint64(n&^sourceBit), s)
		}
		return err
	})
}

// AddSource makes a source and returns its id once that is on disk. Its 63 bits are random: no
// id is used again, so that who feeds a source that was forgotten does not reach another one.
func (c *Capture) AddSource(ctx context.Context, s Source) (id uint64, err error) {
	if len(s.Path) > maxSourceText || len(s.Name) > maxSourceText || len(s.Begin) > MaxBegin {
		return 0, fmt.Errorf("capture: source %.40q: path of %d bytes, name of %d, the limit is %d", s.Path, len(s.Path), len(s.Name), maxSourceText)
	}
	err = c.askSource(ctx, 0, "add a source", func() error {
		for id == 0 || c.sourceOf(id) != nil {
			id = uint64(rand.Int64())
		}
		c.setSource(c.fileOf(sourceBit|spool.Number(id)), s)
		return nil
	})
	return id, err
}

// setSource makes f the source s.
func (c *Capture) setSource(f *file, s Source) {
	s.Begin = bytes.Clone(s.Begin)
	f.key, f.src, f.pos = sourceKey(f.number), &s, s.Pos
	c.dirtyFile(f)
}

// ChangeSource changes what is stored of a source; its position only where its unfinished
// line is to end, as that of a file that was written anew.
func (c *Capture) ChangeSource(ctx context.Context, id uint64, change func(s *Source)) error {
	return c.askSource(ctx, id, "change a source", func() error {
		f := c.sourceOf(id)
		s := *f.src
		s.Pos = f.pos
		change(&s)
		if s.Pos != f.pos {
			if err := c.endSource(f); err != nil {
				return err
			}
		}
		c.setSource(f, s)
		return nil
	})
}

// Feed makes data, which stands at off of source id, records flagged Offline, by the rules of
// the source's path, and returns when they are in the queue, on disk, and the position with
// them. What lies before the position was fed before and is passed over; off behind it is
// ErrAhead, unless hole says that nobody wrote what lies between. A path that is not
// transferred is ErrSkipped: only here it is known for certain, while rules change. An unfinished line waits
// for the rest. After an error the same bytes may be fed again. data is not kept. Of all that
// is done with sources this alone waits for room in the queue, and no longer than ctx: what is
// cut by then goes beyond the queue's limit.
func (c *Capture) Feed(ctx context.Context, id uint64, off int64, data []byte, hole bool, by Fed) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("feed a source: %w", err) // else one piece after another would go beyond it
	}
	r := &request{ctx: ctx, yields: true}
	err := c.askOf(r, id, "feed a source", func() error {
		f := c.sourceOf(id)
		end := off + int64(len(data))
		switch {
		case end <= f.pos && off <= f.pos:
			return nil
		case off > f.pos && !hole:
			return fmt.Errorf("%w: at %d, position %d", ErrAhead, off, f.pos)
		case c.pathOf(0, f.src.Path).skip:
			return fmt.Errorf("%w: path %q", ErrSkipped, f.src.Path)
		case off > f.pos:
			c.hole(off - f.pos)
			c.moveTo(f, off)
		default:
			data = data[f.pos-off:]
		}
		return c.cutFed(f, data, by)
	})
	if err != nil {
		return err
	}
	return fpFed.Inject()
}

// cutFed cuts what stands at f's position.
func (c *Capture) cutFed(f *file, data []byte, by Fed) error {
	s := f.src
	if f.pos < MaxBegin && int64(len(s.Begin)) == f.pos {
		s.Begin = append(s.Begin, data[:min(len(data), MaxBegin-len(s.Begin))]...)
	}
	s.Done = false
	p := c.pathOf(0, s.Path)
	c.leaveContested()
	c.turn(p)
	w := f.writerOf(uint64(f.number), p)
	it := item{
		writer: w.id, time: by.Time, path: p.id, pid: by.PID, uid: by.UID, gid: by.GID, flags: record.Offline, kind: spool.Write,
	}
	c.tally.writes++
	c.tally.bytes += uint64(len(data))
	c.n.offline.Add(uint64(len(data)))
	return c.cutOverwrite(w, &it, data)
}

// EndLine ends the unfinished line of a source: nobody will go on with it, or its binary
// record is whole. With done the source is noted as sent.
func (c *Capture) EndLine(ctx context.Context, id uint64, done bool) error {
	return c.askSource(ctx, id, "end a line", func() error {
		f := c.sourceOf(id)
		if done && !f.src.Done {
			f.src.Done = true
			c.dirtyFile(f)
		}
		return c.endSource(f)
	})
}

// endSource ends f's unfinished line. Those that were open with it are others' and do not go
// on in it, whoever opens later may.
func (c *Capture) endSource(f *file) error {
	for _, w := range f.writers {
		if err := c.end(w, c.newest); err != nil {
			return err
		}
	}
	return nil
}

// DropSource ends the unfinished line of a source and forgets the source.
func (c *Capture) DropSource(ctx context.Context, id uint64) error {
	return c.askSource(ctx, id, "forget a source", func() error { return c.dropSource(c.sourceOf(id)) })
}

func (c *Capture) dropSource(f *file) error {
	if err := c.endSource(f); err != nil {
		return err
	}
	for _, w := range f.writers {
		if p := w.path; p.files == 0 && p.tail.writer == w.id { // nobody is left who was open then
			p.tail = tail{}
			c.dirtyPath(p)
		}
		if w.dirty {
			c.extra = w.save(c.extra)
			c.dirtyWriters = slices.DeleteFunc(c.dirtyWriters, func(x *writer) bool { return x == w })
		}
	}
	if f.dirty {
		f.dirty = false
		c.dirtyFiles = slices.DeleteFunc(c.dirtyFiles, func(x *file) bool { return x == f })
	}
	c.extra = append(c.extra, kv{Key: sourceKey(f.number)})
	delete(c.files, f.number)
	if c.lastFile == f {
		c.lastFile = nil
	}
	return nil
}

// sourceOf returns a source that askSource has found.
func (c *Capture) sourceOf(id uint64) *file { return c.files[sourceBit|spool.Number(id)] }

// askSource has do done by Run's goroutine, and what it changed committed. An id other than
// 0 has to be a source's. It waits for no room in the queue: that may come only with the mount
// that whoever asks is about to make, and what is added, unfinished lines, is there already.
func (c *Capture) askSource(ctx context.Context, id uint64, what string, do func() error) error {
	return c.askOf(&request{ctx: ctx, beyond: true}, id, what, do)
}

// askOf is askSource with a request of which nothing else is set than how it waits.
func (c *Capture) askOf(r *request, id uint64, what string, do func() error) error {
	r.file = sourceBit | spool.Number(id)
	r.run = func() error {
		if id != 0 && c.sourceOf(id) == nil {
			return ErrNoSource
		}
		err := do()
		if err != nil && !errors.Is(err, ErrAhead) && !errors.Is(err, ErrSkipped) {
			c.fail(err) // something of it may be in a batch
		}
		return err
	}
	return c.ask(r, what)
}
