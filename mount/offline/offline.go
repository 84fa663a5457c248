// Package offline takes in what programs write below the mount point while nothing is
// mounted there, and what they go on writing to such files afterwards.
//
//	directory below the mount point ──▶ Taker ── Feed ──▶ capture ──▶ queue
//	  (a descriptor from before the mount)  │                 │ position and bytes: one transaction
//	                                        └── punch, unlink ◀┘ only behind what is committed
//
// A file is a source of the capture, which keeps how far it was taken. It is known again by
// inode, birth time and its first bytes (identify.go), so that neither a reused inode nor a
// file that was written anew is mistaken for it. docs/architecture.md lists what is on disk
// at each step and what a start does with it.
package offline

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync/atomic"
	"time"

	"ftfuse/internal/failpoint"
	"ftfuse/mount/capture"
)

// Capture is what a Taker uses of the capture; *capture.Capture has the meaning of each.
type Capture interface {
	Sources(fn func(id uint64, s capture.Source)) error
	AddSource(ctx context.Context, s capture.Source) (id uint64, err error)
	ChangeSource(ctx context.Context, id uint64, change func(s *capture.Source)) error
	Feed(ctx context.Context, id uint64, off int64, data []byte, hole bool, by capture.Fed) error
	EndLine(ctx context.Context, id uint64, done bool) error
	DropSource(ctx context.Context, id uint64) error
}

var _ Capture = (*capture.Capture)(nil)

// ErrNoRoom is returned where the queue has no room to spare. What is not taken stays where
// it is.
var ErrNoRoom = errors.New("the queue has no room to spare")

// Steps that a kill can come between; the capture has those of a commit.
var (
	fpTaken    = failpoint.New("offline/taken")    // bytes of a file are committed; nothing of it was punched
	fpWhole    = failpoint.New("offline/whole")    // a file is taken to its end; nobody was asked whether somebody writes to it
	fpPunching = failpoint.New("offline/punching") // they are compared, for the last time before they are punched out
	fpPunched  = failpoint.New("offline/punched")  // they are punched out
	fpRemoved  = failpoint.New("offline/removed")  // a file is removed; the queue still knows it
)

// Options of a Taker. Dir, Capture and Matches must be set.
type Options struct {
	Dir     *os.File               // the directory below the mount point; the Taker closes it
	Capture Capture                // runs as long as the Taker does
	Matches func(path string) bool // whether the rules transfer what is written by that path
	Room    func() bool            // whether the queue has room to spare; nil: always
	Chunk   int                    // bytes fed at once, 1 MiB
	Keep    bool                   // files are neither punched nor removed
	Logger  *slog.Logger
}

// Taker takes files in. New, then TakeAll before the mount, Serving after it, Run until the
// mount ends; one after the other. Stats and Look are safe for concurrent use.
type Taker struct {
	o       Options
	root    stat
	buf     []byte
	files   map[uint64]*known // by id of the source
	inodes  map[inode]*known
	writers map[*known]bool // taken to their end, and somebody has them open for writing
	removed []*removed
	watch   *watcher
	serving bool
	said    map[string]bool // once each

	bytes, gone atomic.Uint64
	open        atomic.Int64
}

// known is a file that is a source.
type known struct {
	id      uint64
	s       capture.Source
	at      string // where it was seen last
	punched int64  // everything from keptHead on below is a hole
	ended   int64  // the position at which its line was ended; -1: none
	size    int64  // of the file, when it was taken to its end
	seen    bool   // in the pass that is under way
	missed  int    // whole passes in a row that did not see it
	stays   bool   // it cannot be removed
}

// Stats are what a Taker did since it was made.
type Stats struct {
	Bytes   uint64 // taken in
	Removed uint64 // files that were removed, all of them taken
	Open    int64  // files taken to their end that somebody still has open for writing
}

// New returns a Taker that knows what an earlier one took.
func New(o Options) (*Taker, error) {
	if o.Chunk <= 0 {
		o.Chunk = 1 << 20
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	t := &Taker{
		o: o, files: map[uint64]*known{}, inodes: map[inode]*known{}, writers: map[*known]bool{}, said: map[string]bool{},
	}
	var err error
	if t.root, err = statOf(int(o.Dir.Fd())); err != nil {
		return nil, errors.Join(fmt.Errorf("look at the directory below the mount point: %w", err), o.Dir.Close())
	}
	if err := t.load(); err != nil {
		return nil, errors.Join(err, o.Dir.Close())
	}
	t.watch = newWatcher(o.Logger)
	return t, nil
}

// load reads what the queue knows.
func (t *Taker) load() error {
	err := t.o.Capture.Sources(func(id uint64, s capture.Source) {
		if s.Kind == capture.SourceFile {
			t.know(&known{id: id, s: s, at: s.Path, punched: keptHead, ended: -1})
		}
	})
	if err != nil {
		return fmt.Errorf("read how far files were taken in: %w", err)
	}
	return nil
}

func (t *Taker) know(k *known) {
	t.files[k.id] = k
	t.inodes[inode{k.s.Ino, k.s.Birth}] = k
}

// forget drops a source whose file is gone.
func (t *Taker) forget(ctx context.Context, k *known) error {
	if err := t.o.Capture.DropSource(ctx, k.id); err != nil {
		return err
	}
	delete(t.files, k.id)
	delete(t.writers, k)
	t.open.Store(int64(len(t.writers)))
	if key := (inode{k.s.Ino, k.s.Birth}); t.inodes[key] == k {
		delete(t.inodes, key)
	}
	return nil
}

// Stats returns the counters.
func (t *Taker) Stats() Stats {
	if t == nil {
		return Stats{}
	}
	return Stats{Bytes: t.bytes.Load(), Removed: t.gone.Load(), Open: t.open.Load()}
}

// little is what a pass may find for TakeAll to be done.
const little = 256 << 10

// TakeAll takes in what there is, until a pass over all files finds little that is new:
// programs may go on writing meanwhile. It returns ErrNoRoom where the queue has none to spare, and
// the error of ctx; Run goes on with the rest.
func (t *Taker) TakeAll(ctx context.Context) error {
	for {
		before := t.bytes.Load()
		if err := t.pass(ctx); err != nil || t.bytes.Load()-before < little {
			return err
		}
	}
}

// Serving says that the mount is there, so that nobody finds the files below it by name any
// more: those that are taken may be removed.
func (t *Taker) Serving() { t.serving = true }

const (
	// again is how long after a file could not be done with it is looked at again.
	again = 200 * time.Millisecond
	// looks is how often everything is looked at where directories cannot be watched, and
	// those files that somebody still has open.
	looks = time.Second
	// calm is the least time between two looks at files that are written to.
	calm = 10 * time.Millisecond
)

// Run takes in what programs go on writing, and removes what is done, until ctx ends; it
// then returns nil.
func (t *Taker) Run(ctx context.Context) error {
	all := true
	for ctx.Err() == nil {
		look := t.some
		if all {
			look = t.pass
		}
		err := look(ctx)
		if err == nil {
			err = t.letGo(ctx)
		}
		wait := looks
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, ErrNoRoom):
			t.once(ErrNoRoom.Error(), "what is not taken in stays below the mount point, and follows when there is room", "err", err)
			wait = again
		case err != nil:
			return err
		}
		if all = t.sleep(ctx, wait, err != nil); all {
			t.watch.take()
		}
	}
	return nil
}

// sleep waits for something to do, and reports whether everything has to be looked at. full
// is a queue without room.
func (t *Taker) sleep(ctx context.Context, wait time.Duration, full bool) (all bool) {
	var tick <-chan time.Time
	wake := t.watch.wake
	if full || !t.watch.works() || len(t.writers)+len(t.removed) > 0 {
		timer := time.NewTimer(wait)
		defer timer.Stop()
		tick = timer.C
	}
	if full {
		wake = nil
	}
	select {
	case <-ctx.Done():
		return false
	case <-tick:
		return t.watch.wantsAll() || full || !t.watch.works()
	case <-wake:
	}
	select {
	case <-ctx.Done():
	case <-time.After(calm): // what is written meanwhile is looked at once
	}
	return t.watch.wantsAll()
}

// Look has everything looked at again, as where Matches says otherwise from now on. It waits
// for nothing and is safe for concurrent use.
func (t *Taker) Look() {
	if t != nil {
		t.watch.everything()
	}
}

// once warns of what once.
func (t *Taker) once(what, msg string, args ...any) {
	if !t.said[what] {
		t.said[what] = true
		t.o.Logger.Warn(msg, args...)
	}
}

// Close gives everything back. Run has ended.
func (t *Taker) Close() error {
	if t == nil {
		return nil
	}
	t.watch.close()
	for _, r := range t.removed {
		r.file.Close()
	}
	return t.o.Dir.Close()
}
