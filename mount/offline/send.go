package offline

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"ftfuse/mount/capture"
	"ftfuse/mount/spool"
	"ftfuse/queue"
)

// What `ftfuse send` hands over. Whoever reads the file asks where to go on (Begin), hands
// bytes over from there (Data), each call durable when it returns, and says when that was all
// (End). All of it can be repeated after an error: the position is kept with the bytes.

// Errors of sending.
var (
	// ErrPath: a path under which nothing can be sent.
	ErrPath = errors.New("no path to send under")
	// ErrOther: a stream of that name began otherwise.
	ErrOther = errors.New("another stream was sent under this name")
)

const (
	// MaxData is how many bytes Data takes at most.
	MaxData = 2 << 20
	// maxName is how long a name can be (NAME_MAX).
	maxName = 255
	// maxSent is how many files and streams are remembered; the oldest are forgotten.
	maxSent = 4096
	// staleStream is after how long without a word from its sender, who must have gone, a
	// stream without a name is forgotten.
	staleStream = time.Hour
	// endedStream is how long one that has ended is remembered: its sender may not have been
	// answered, and ends it again.
	endedStream = 5 * time.Minute
)

// Request says what is to be sent.
type Request struct {
	Path  string // below the mount point
	Name  string // of a stream; "": a file, which the rest identifies
	Dev   uint64
	Ino   uint64
	Birth int64
	Size  int64
	Head  []byte // the first capture.MaxBegin bytes
	Again bool   // from the beginning, whatever was sent of it
}

// is reports whether s is what r asks for. One of another device may have the same path and inode.
func (r *Request) is(s *capture.Source) bool {
	switch {
	case s.Path != r.Path:
		return false
	case r.Name != "":
		return s.Kind == capture.SourceStream && s.Name == r.Name
	}
	return s.Kind == capture.SourceSent && s.Ino == r.Ino && s.Birth == r.Birth &&
		Judge(s, r.Dev, r.Size, r.Head, thisBoot) != Another
}

// Begun is where to go on.
type Begun struct {
	ID   uint64
	Pos  int64
	Done bool   // all of it was sent: there is nothing behind Pos
	Head []byte // how what was sent began, of a stream
}

// Target takes what is sent. Its methods are safe for concurrent use. Data without bytes says
// that whoever sends is still there.
type Target interface {
	Begin(ctx context.Context, r Request) (Begun, error)
	Data(ctx context.Context, id uint64, off int64, data []byte, by capture.Fed) error
	End(ctx context.Context, id uint64) error
}

// FileRequest is the Request of an open file, but for Again.
func FileRequest(f *os.File, as string) (r Request, by capture.Fed, err error) {
	st, err := statOf(int(f.Fd()))
	if err != nil {
		return r, by, err
	}
	if !st.regular() {
		return r, by, errors.New("it is no file; give it to standard input")
	}
	head, err := Head(f)
	by = capture.Fed{PID: uint32(os.Getpid()), UID: st.uid, GID: st.gid, Time: st.mtime}
	return Request{Path: as, Dev: st.dev, Ino: st.ino, Birth: st.birth, Size: st.size, Head: head}, by, err
}

// Local is the Target of a capture in this process.
type Local struct {
	Capture Capture
	Matches func(path string) bool                // whether the rules transfer a path
	Room    func() bool                           // whether the queue has room to spare
	Wait    func(ctx context.Context) (err error) // until it may have; an error ends the sending
	Chunk   int                                   // bytes fed at once, at most what Room leaves; MaxData

	mu      sync.Mutex // one Begin at a time
	heardMu sync.Mutex
	heard   map[uint64]time.Time // of a source's sender last, in this process
}

var _ Target = (*Local)(nil)

// checkPath returns why nothing can be sent under a path.
func (l *Local) checkPath(p string) error {
	switch {
	case p == "", p == ".", p != path.Clean(p), path.IsAbs(p), p == "..", strings.HasPrefix(p, "../"), strings.ContainsRune(p, 0):
		return fmt.Errorf("%w: %.200q: write it as it would be below the mount point, such as logs/app.log", ErrPath, p)
	case len(p) > spool.MaxPath, slices.ContainsFunc(strings.Split(p, "/"), func(name string) bool { return len(name) > maxName }):
		return fmt.Errorf("%w: %.200q: no file can have it: a path has at most %d bytes, each name in it %d", ErrPath, p, spool.MaxPath, maxName)
	case !l.Matches(p):
		return fmt.Errorf("%w: %q: a [[mount.rule]] keeps it from being transferred", ErrPath, p)
	}
	return nil
}

// Begin finds out how much of it was sent before.
func (l *Local) Begin(ctx context.Context, r Request) (Begun, error) {
	if err := l.checkPath(r.Path); err != nil {
		return Begun{}, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	var id uint64
	var have capture.Source
	all := map[uint64]capture.Source{}
	err := l.Capture.Sources(func(n uint64, s capture.Source) {
		switch {
		case r.is(&s):
			id, have = n, s
		case s.Kind == capture.SourceSent || s.Kind == capture.SourceStream:
			all[n] = s
		}
	})
	if err != nil {
		return Begun{}, err
	}
	if id != 0 {
		l.hear(id)
		return l.resume(ctx, id, have, r)
	}
	if err := l.prune(ctx, all); err != nil {
		return Begun{}, err
	}
	s := capture.Source{Kind: capture.SourceSent, Path: r.Path, Name: r.Name, Dev: r.Dev, Ino: r.Ino, Birth: r.Birth}
	if r.Name != "" {
		s.Kind = capture.SourceStream
	}
	if id, err = l.Capture.AddSource(ctx, s); err != nil {
		return Begun{}, err
	}
	l.hear(id)
	return Begun{ID: id}, nil
}

// resume goes on with what was sent of a source before.
func (l *Local) resume(ctx context.Context, id uint64, s capture.Source, r Request) (Begun, error) {
	pos, begin := s.Pos, s.Begin
	switch {
	case r.Again:
		pos, begin = 0, nil
	case r.Name == "":
		switch Judge(&s, r.Dev, r.Size, r.Head, thisBoot) {
		case Anew:
			pos, begin = 0, nil
		case Shorter:
			pos, begin = r.Size, s.Begin[:min(int64(len(s.Begin)), r.Size)]
		}
	}
	if pos != s.Pos || s.Dev != r.Dev {
		err := l.Capture.ChangeSource(ctx, id, func(s *capture.Source) {
			s.Pos, s.Begin, s.Dev, s.Done = pos, bytes.Clone(begin), r.Dev, false
		})
		if err != nil {
			return Begun{}, err
		}
		s.Done = false
	}
	return Begun{ID: id, Pos: pos, Done: s.Done, Head: begin}, nil
}

// prune forgets the oldest of what was sent where there is too much of it, and streams that
// nobody can go on with.
func (l *Local) prune(ctx context.Context, all map[uint64]capture.Source) error {
	last := l.lastOf(all)
	ids := slices.Collect(maps.Keys(all))
	ids = slices.DeleteFunc(ids, func(id uint64) bool {
		s := all[id]
		silent := time.Since(last[id])
		return Anonymous(s.Name) && (silent > staleStream || s.Done && silent > endedStream)
	})
	if len(ids) >= maxSent {
		oldest := slices.MinFunc(ids, func(a, b uint64) int { return last[a].Compare(last[b]) })
		ids = slices.DeleteFunc(ids, func(id uint64) bool { return id == oldest })
	}
	for _, id := range ids {
		delete(all, id)
	}
	for id := range all {
		if err := l.Capture.DropSource(ctx, id); err != nil && !errors.Is(err, capture.ErrNoSource) {
			return err
		}
	}
	return nil
}

// hear notes that the sender of a source is there.
func (l *Local) hear(id uint64) {
	l.heardMu.Lock()
	defer l.heardMu.Unlock()
	if l.heard == nil {
		l.heard = map[uint64]time.Time{}
	}
	l.heard[id] = time.Now()
}

// lastOf returns when each source's sender was there last, as far as is known, and forgets the
// senders of others, which are no more.
func (l *Local) lastOf(all map[uint64]capture.Source) map[uint64]time.Time {
	l.heardMu.Lock()
	defer l.heardMu.Unlock()
	maps.DeleteFunc(l.heard, func(id uint64, _ time.Time) bool { return all[id].Kind == 0 })
	last := map[uint64]time.Time{}
	for id, s := range all {
		last[id] = time.Unix(0, s.Seen)
		if t := l.heard[id]; t.After(last[id]) {
			last[id] = t
		}
	}
	return last
}

// anonymous begins the name of a stream that has none.
const anonymous = "\x00"

// Anonymous reports whether name is one of AnonymousName.
func Anonymous(name string) bool { return strings.HasPrefix(name, anonymous) }

// AnonymousName is the name of a stream that only its sender can go on with.
func AnonymousName(random string) string { return anonymous + random }

// Data hands bytes over. It waits for room in the queue. Rules may have come into force that
// do not transfer the path: that is ErrPath, as for Begin.
func (l *Local) Data(ctx context.Context, id uint64, off int64, data []byte, by capture.Fed) error {
	l.hear(id)
	if len(data) == 0 {
		return nil
	}
	chunk := l.Chunk
	if chunk <= 0 {
		chunk = MaxData
	}
	for len(data) > chunk {
		if err := l.feed(ctx, id, off, data[:chunk], by); err != nil {
			return err
		}
		off, data = off+int64(chunk), data[chunk:]
	}
	return l.feed(ctx, id, off, data, by)
}

// feed hands over what is fed at once.
func (l *Local) feed(ctx context.Context, id uint64, off int64, data []byte, by capture.Fed) error {
	for {
		err := error(queue.ErrFull)
		if l.Room() {
			err = l.Capture.Feed(ctx, id, off, data, false, by)
		}
		if errors.Is(err, capture.ErrSkipped) {
			return fmt.Errorf("%w: %w", ErrPath, err)
		}
		if !errors.Is(err, queue.ErrFull) {
			return err
		}
		if err := l.Wait(ctx); err != nil {
			return err
		}
	}
}

// End says that nothing follows: an unfinished line ends. It waits for no room. What was sent
// is remembered: whoever is not answered begins again, and finds that all of it is there.
func (l *Local) End(ctx context.Context, id uint64) error {
	l.hear(id)
	return l.Capture.EndLine(ctx, id, true)
}
