// Package spool is the first home of every byte that a program writes below the
// mount: spool files on the source's own disk, a journal that remembers who wrote
// what, and the tree of names.
//
// A program's bytes are accepted once they are in the spool file, in the page cache,
// with a note in the journal: both survive kill -9 of every ftfuse process. The
// capture (package capture) reads them from there, commits them to the queue and
// gives the space back.
//
// Below its directory a Store keeps
//
//	spool/<number, 16 hex digits>   one file each; modes, owners, times and sizes live on its inode
//	tree/...                        the names: real directories, and a symlink per file whose target is the number
//	journal                         the ring of notes, mapped shared
//	paths                           the paths that handles were opened with
//	lock                            held while a Store is open
//
// so that creating, renaming, replacing and removing a name is one system call each,
// and nothing has to be repaired after a kill. File numbers and writer ids are never
// used twice.
package spool

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"ftfuse/internal/flock"
)

// Errors of Open.
var (
	// ErrLocked: another process has the store open.
	ErrLocked = errors.New("spool: in use by another process")
	// ErrJournal: the journal is not one of ours, or its header is damaged.
	ErrJournal = errors.New("spool: journal is unusable")
	// ErrTree: the tree of names holds what ftfuse never puts there.
	ErrTree = errors.New("spool: tree of names is not as ftfuse left it")
)

// Errors of writing. None of them leaves a byte or a note behind.
var (
	// ErrJournalFull: the ring, or the room for bytes not yet captured, is used up;
	// Changed tells when to try again.
	ErrJournalFull = errors.New("spool: journal is full")
	// ErrBusy: the file is reserved.
	ErrBusy = errors.New("spool: file is reserved")
	// ErrOverwrite: the write does not begin at or after the end of the file.
	ErrOverwrite = errors.New("spool: write over what the file has")
)

// ErrShort: a spool file is shorter than what is committed of it and cannot be made longer.
// What is written to it next would be taken for captured: nothing more may be accepted.
var ErrShort = errors.New("spool: file is shorter than its position")

// ErrOldLength: after power loss a file that was cut can be as long as before, so that nobody may
// believe in its new end: nothing more may be accepted, and the next start looks how long it is.
var ErrOldLength = errors.New("spool: the new length of a file may not be on the disk")

// Number names a spool file for ever. Numbers begin at 1.
type Number uint64

// String is the name of the spool file: 16 hexadecimal digits.
func (n Number) String() string { return fmt.Sprintf("%016x", uint64(n)) }

// Kind says what an entry of the journal notes.
type Kind uint8

const (
	// Void notes nothing: a note that was lost. It has no file and no bytes.
	Void Kind = iota
	// Write is one request to write: Len bytes of File at Off. Len is what was really
	// written and may be 0.
	Write
	// Release is the last close of the handle Writer, which wrote before. It ends the
	// writer's unfinished line. Len is 0.
	Release
	// Flush is a close(2) of one of the descriptors of the handle Writer, which wrote
	// since the last one. It matters in binary mode only. Len is 0.
	Flush
	// Opened says whose the bytes are from here on that the kernel writes to File without a
	// note: PID, UID and GID are those of the newest handle that the kernel serves, Path is
	// that of the oldest, Off is the size then.
	// What is below Off, and no note covers, is as the note before said. Len is 0.
	Opened
	// Grown says that everything below Off that no other note covers was written by the
	// kernel. Len is 0.
	Grown
)

// Flags of an Entry.
const (
	FlagKernel  uint32 = 1 << iota // of Opened: the kernel writes to the file
	FlagSeveral                    // of Opened: several processes have it open for writing
	FlagJoined                     // of Write: what lies between the note before and Off was written by the kernel, it is no hole
	FlagEnd                        // of Grown: no kernel writer is left
	FlagUnsure                     // of Write: it was in progress at a kill, and an orphan may have written what is in its place and before it
	FlagOrphan                     // of Grown: it was one of a connection that is gone; with it all unfinished lines of the file end
)

// Entry is one note of the journal.
type Entry struct {
	Seq    uint64 // dense from 1, never used twice
	File   Number
	Writer uint64 // id of the open handle, never used twice
	Off    int64  // of a Release or Flush: the newest writer id that was given out then
	Len    uint32
	Path   string // below the mount, without a leading slash, as the handle was opened; "" if it is lost
	PathID uint32
	PID    uint32 // as the kernel gives it: of the thread
	UID    uint32
	GID    uint32
	Time   int64  // Unix nanoseconds
	Unique uint64 // the kernel's id of the request
	Kind   Kind
	Flags  uint32 // 24 bits
}

// maxWrite bounds the length in a note: more than any request can carry.
const maxWrite = 64 << 20

// Options of a Store. The zero value of each field means its default.
type Options struct {
	Entries       uint64 // capacity of a journal made now; DefaultEntries
	MaxUncaptured int64  // bytes accepted and not committed above which writes get ErrJournalFull; 64 MiB
	Readback      int64  // bytes before the committed position that Punch leaves to be read; 0 means none
	PunchEvery    int64  // granularity of punching under load; 4 MiB
	Logger        *slog.Logger
	Failed        func(error) // told when something could not be synced: nothing more may be accepted, see synced

	// How long DetachOrphans waits for a writer to go, since processes that were killed just
	// now still close their files, and how often an orphan is looked after; 200 ms.
	OrphanPatience, OrphanPoll time.Duration
}

// Store is an open spool. Its methods are safe for concurrent use, but Entries, Wait,
// Committed, Settled and TakeGone belong to one goroutine (the capture).
type Store struct {
	o       Options
	dir     string
	lock    *flock.File
	tree    *os.File // O_PATH of tree/
	spool   *os.File // O_PATH of spool/
	journal *journal
	paths   *pathTable

	mu      sync.Mutex
	files   map[Number]*File // those that are open or not settled
	leaving map[Number]*File // those that nobody uses and that wait for a commit
	owing   map[*File]bool   // those with notes that the ring had no place for; nil for none
	orphans map[Number]bool  // spool files that had no name at the start
	gone    []Number

	strays  atomic.Uint64 // see Strays
	longest atomic.Int64  // no path is longer: see fits

	naming sync.RWMutex // held while a name is made, for writing while names change
	looked int          // names that fits looked at since measure. Under naming
	names  int          // that measure looked at. Under naming

	followed   map[Number]*File // those with orphan writers
	stopFollow context.CancelFunc
	following  sync.WaitGroup

	numbers idRange
	writers idRange
	newest  atomic.Uint64 // writer id

	found []FileInfo // what Open found
	tidy  tidier
	watch watcher

	mostOwed int // see there
}

// Open opens the spool in dir, which it makes if there is none. Before the first
// write Begin must be called.
func Open(dir string, o Options) (*Store, error) {
	if o.Entries == 0 {
		o.Entries = DefaultEntries
	}
	if o.MaxUncaptured == 0 {
		o.MaxUncaptured = 64 << 20
	}
	if o.PunchEvery == 0 {
		o.PunchEvery = 4 << 20
	}
	if o.Failed == nil {
		o.Failed = func(error) {}
	}
	if o.OrphanPatience == 0 {
		o.OrphanPatience = 200 * time.Millisecond
	}
	if o.OrphanPoll == 0 {
		o.OrphanPoll = 200 * time.Millisecond
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	s := &Store{o: o, dir: dir, mostOwed: mostOwed, files: map[Number]*File{}, leaving: map[Number]*File{}, orphans: map[Number]bool{}}
	s.followed = map[Number]*File{}
	s.watch = watcher{s: s, wake: make(chan struct{}, 1)}
	if err := s.open(); err != nil {
		s.closeFiles()
		return nil, err
	}
	s.tidy.start(s)
	return s, nil
}

func (s *Store) open() (err error) {
	for _, d := range []string{s.dir, filepath.Join(s.dir, "spool")} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return fmt.Errorf("make spool directory: %w", err)
		}
	}
	if err := os.Mkdir(filepath.Join(s.dir, "tree"), 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("make tree of names: %w", err)
	}
	if s.lock, err = lockFile(filepath.Join(s.dir, "lock")); err != nil {
		return err
	}
	if s.tree, err = openDir(filepath.Join(s.dir, "tree")); err != nil {
		return err
	}
	if s.spool, err = openDir(filepath.Join(s.dir, "spool")); err != nil {
		return err
	}
	if s.journal, err = openJournal(filepath.Join(s.dir, "journal"), s.o.Entries); err != nil {
		return err
	}
	if s.paths, err = openPaths(filepath.Join(s.dir, "paths")); err != nil {
		return err
	}
	highest, err := s.checkTree()
	if err != nil {
		return err
	}
	s.numbers = idRange{word: s.journal.mem[hdrNumbers:], step: 1 << 10, sync: s.syncHeader}
	s.writers = idRange{word: s.journal.mem[hdrWriters:], step: 1 << 16, sync: s.syncHeader}
	s.numbers.begin(uint64(highest) + 1)
	s.writers.begin(1)
	return nil
}

// idRange gives out ids that are never used twice: the word on disk is ahead of every
// id given out, and synced before one above the old word is.
type idRange struct {
	word []byte
	step uint64
	sync func() error
	next uint64
}

func (r *idRange) begin(least uint64) {
	r.next = max(least, binary.LittleEndian.Uint64(r.word))
}

// take needs Store.mu.
func (r *idRange) take() (uint64, error) {
	if limit := binary.LittleEndian.Uint64(r.word); r.next >= limit {
		binary.LittleEndian.PutUint64(r.word, r.next+r.step)
		if err := r.sync(); err != nil {
			binary.LittleEndian.PutUint64(r.word, limit)
			return 0, err
		}
	}
	r.next++
	return r.next - 1, nil
}

func (s *Store) syncHeader() error { return s.synced(fpSyncHeader, s.journal.syncHeader) }

func (j *journal) syncHeader() error {
	if err := unix.Msync(j.mem[:headerSize], unix.MS_SYNC); err != nil {
		return fmt.Errorf("sync journal header %s: %w", j.f.Name(), err)
	}
	return nil
}

// Begin takes up the journal after a start: committed is the sequence number up to
// which the queue has everything. Entries above it are clipped to what their files
// have and can be read with Entries. It must be called once, before anything is
// written.
func (s *Store) Begin(committed uint64) Recovery {
	r := s.journal.begin(committed, s.Size)
	s.hold(r)
	if r.From > r.To {
		if err := s.paths.compact(nil); err != nil {
			s.o.Logger.Warn("path table not compacted", "err", err)
		}
	}
	if len(s.followed) > 0 {
		var ctx context.Context
		ctx, s.stopFollow = context.WithCancel(context.Background())
		s.following.Go(func() { s.follow(ctx) })
	}
	return r
}

// hold keeps the files of entries that are not committed open.
func (s *Store) hold(r Recovery) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for seq := r.From; seq <= r.To; seq++ {
		e, ok := s.journal.load(seq, false)
		if !ok || e.File == 0 {
			continue
		}
		if f, err := s.get(e.File); err == nil {
			f.last.Store(seq)
			s.leaving[e.File] = f
		}
	}
}

// Close stops the store's goroutine and closes its files. What was accepted stays.
func (s *Store) Close() error {
	if s.stopFollow != nil {
		s.stopFollow()
	}
	s.following.Wait()
	s.tidy.stop()
	s.watch.stop()
	return s.closeFiles()
}

func (s *Store) closeFiles() error {
	var errs []error
	for n, f := range s.files {
		errs = append(errs, f.close())
		delete(s.files, n)
	}
	if s.paths != nil {
		errs = append(errs, s.paths.close())
	}
	if s.journal != nil {
		errs = append(errs, s.journal.close())
	}
	for _, f := range []*os.File{s.spool, s.tree} {
		if f != nil {
			errs = append(errs, f.Close())
		}
	}
	if s.lock != nil {
		errs = append(errs, s.lock.Close())
	}
	return errors.Join(errs...)
}

// Entries appends the completed entries from seq on to dst, in order, until dst's
// capacity, and stops before one in progress.
func (s *Store) Entries(dst []Entry, from uint64) []Entry {
	old := len(dst)
	dst = s.journal.entries(dst, from)
	s.paths.fill(dst[old:])
	return dst
}

// Wait returns when the entry of seq is complete, or with ctx's error. A caller that
// wants many entries at once lingers after it, since a wake-up costs the writer.
func (s *Store) Wait(ctx context.Context, seq uint64) error { return s.journal.wait(ctx, seq) }

// Next is the sequence number that the next note gets: everything below is noted.
func (s *Store) Next() uint64 { return s.journal.next.Load() }

// Committed says that the queue has all entries up to seq on disk: their places in the
// ring are free, and whoever waits for room is woken.
func (s *Store) Committed(seq uint64) {
	s.journal.committed(seq)
	s.payOwed()
	s.mu.Lock()
	for _, f := range s.leaving {
		s.retire(f)
	}
	s.mu.Unlock()
	if s.paths.full() {
		s.compactPaths()
	}
}

func (s *Store) compactPaths() {
	live := map[uint32]bool{}
	for seq := s.journal.done.Load() + 1; seq < s.journal.next.Load(); seq++ {
		e, _ := s.journal.load(seq, false)
		live[e.PathID] = true
	}
	if err := s.paths.compact(live); err != nil {
		s.o.Logger.Warn("path table not compacted", "err", err)
	}
}

// CommittedSeq is what Committed last said.
func (s *Store) CommittedSeq() uint64 { return s.journal.done.Load() }

// Changed returns a channel that is closed when the next bytes or notes were committed.
func (s *Store) Changed() <-chan struct{} { return s.journal.changed() }

// HasRoom reports whether the ring has a place and a write of n bytes would fit.
func (s *Store) HasRoom(n int) bool {
	j := s.journal
	return j.next.Load()-j.done.Load() <= j.cap && j.fits(n, s.o.MaxUncaptured)
}

// Uncaptured is how many bytes are accepted and not committed, those that the kernel wrote
// included.
func (s *Store) Uncaptured() int64 { return max(0, s.journal.uncaptured.Load()) + s.watch.pending() }

// Dir is the directory of the store.
func (s *Store) Dir() string { return s.dir }

func lockFile(path string) (*flock.File, error) {
	f, err := flock.Open(path, 0o600)
	if errors.Is(err, flock.ErrHeld) {
		return nil, fmt.Errorf("%w: %s; is a mount with the same state_dir running?", ErrLocked, path)
	}
	if err != nil {
		return nil, fmt.Errorf("take the spool: %w", err)
	}
	return f, nil
}

func openDir(path string) (*os.File, error) {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open directory", Path: path, Err: err}
	}
	return os.NewFile(uintptr(fd), path), nil
}

func syncDirOf(path string) error {
	d, err := os.Open(filepath.Dir(path))
	if err != nil {
		return fmt.Errorf("sync directory: %w", err)
	}
	defer d.Close()
	if err := d.Sync(); err != nil {
		return fmt.Errorf("sync directory %s: %w", d.Name(), err)
	}
	return nil
}

func leUint64(b []byte) uint64 { return binary.LittleEndian.Uint64(b) }
func le32(b []byte) uint32     { return binary.LittleEndian.Uint32(b) }
