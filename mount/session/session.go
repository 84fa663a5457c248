// Package session keeps on disk what a daemon must know to go on with a connection to
// the kernel that a predecessor began: the open handles and the locks.
//
// The kernel names an open file by the handle that the daemon gave it, and goes on using
// that name after the daemon was killed, as long as somebody holds the connection's
// descriptor. So every handle stands in a file mapped shared before the kernel hears of
// it: what was stored there is in the page cache and survives kill -9. It says nothing
// after the machine stopped, and nothing about another connection; Resume refuses both.
//
// The bytes are in docs/protocol.md, "The session".
package session

import (
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"sync"
	"sync/atomic"
	"unsafe"

	"ftfuse/internal/bootid"

	"golang.org/x/sys/unix"
)

// Errors of this package.
var (
	// ErrFormat: the file is not a session, is damaged, or is of another version.
	ErrFormat = errors.New("session: file is unusable")
	// ErrOther: the file belongs to another connection, or to the time before the
	// machine started.
	ErrOther = errors.New("session: of another connection")
	// ErrHandles: the table of handles, or the room for their paths, is full (ENFILE).
	ErrHandles = errors.New("session: too many open files")
	// ErrLocks: the table of locks is full (ENOLCK).
	ErrLocks = errors.New("session: too many locks")
)

// Sizes of the file (docs/protocol.md). The tables are sparse: space is allocated in
// chunks as it is needed.
const (
	version    = 1
	headerSize = 4096
	slotSize   = 128
	lockSize   = 64
	cellSize   = 32 // the unit of the room for paths

	chunk = 128 << 10 // bytes of a table that are allocated at once

	// MaxHandles is how many files can be open at the same time.
	MaxHandles = 1 << 18
	// MaxLocks is how many locks can be held at the same time.
	MaxLocks = 1 << 16
	maxPaths = 64 << 20 // bytes of paths of open files

	slotsAt  = headerSize
	locksAt  = slotsAt + MaxHandles*slotSize
	pathsAt  = locksAt + MaxLocks*lockSize
	fileSize = pathsAt + maxPaths
)

// Offsets in the header.
const (
	hdrVersion  = 8
	hdrSlotSize = 12
	hdrLockSize = 16
	hdrBoot     = 24 // 16 bytes
	hdrID       = 40 // 16 bytes
	hdrSince    = 56
	hdrCRC      = 64 // of bytes 0 to 63
	hdrNewest   = 72 // the newest backing id that the kernel gave
	hdrClosing  = 76 // a backing id that is being closed, or 0
	hdrSlots    = 80 // bytes of each table that are allocated
	hdrLocks    = 84
	hdrPaths    = 88
)

var (
	magic      = [8]byte{'F', 'T', 'F', 'U', 'S', 'E', 'S', 0}
	castagnoli = crc32.MakeTable(crc32.Castagnoli)
	le         = binary.LittleEndian
)

// ID names a connection to the kernel.
type ID [16]byte

// NewID draws the name of a new connection.
func NewID() (id ID) {
	rand.Read(id[:])
	return id
}

func (id ID) String() string { return hex.EncodeToString(id[:]) }

// Session is the table of one connection. Its methods are safe for concurrent use, but
// Begin and Resume, one of which comes first, and Close, which comes last.
type Session struct {
	path string
	f    *os.File
	mem  []byte

	mu    sync.Mutex
	slots space
	locks space
	paths heap

	byFile map[uint64][]heldLock // locks by file
}

// Open opens the session file at path, which it makes if there is none. A file that is
// not a session of this version is an error: nobody but ftfuse writes there.
func Open(path string) (*Session, error) {
	if err := create(path); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("open session: %w", err)
	}
	s := &Session{path: path, f: f}
	if err := s.mapFile(); err != nil {
		f.Close()
		return nil, err
	}
	return s, nil
}

// create makes an empty session beside path and renames it there.
func create(path string) error {
	if _, err := os.Lstat(path); err == nil || !errors.Is(err, os.ErrNotExist) {
		return err
	}
	tmp := path + ".new"
	f, err := os.OpenFile(tmp, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("make session: %w", err)
	}
	defer f.Close()
	head := make([]byte, headerSize)
	copy(head, magic[:])
	le.PutUint32(head[hdrVersion:], version)
	le.PutUint32(head[hdrSlotSize:], slotSize)
	le.PutUint32(head[hdrLockSize:], lockSize)
	seal(head)
	if _, err := f.WriteAt(head, 0); err != nil {
		return fmt.Errorf("write session %s: %w", tmp, err)
	}
	if err := f.Truncate(fileSize); err != nil {
		return fmt.Errorf("size session %s: %w", tmp, err)
	}
	if err := os.Rename(tmp, path); err != nil {
		return fmt.Errorf("name session: %w", err)
	}
	return nil
}

func seal(head []byte) { le.PutUint32(head[hdrCRC:], crc32.Checksum(head[:hdrCRC], castagnoli)) }

func (s *Session) mapFile() error {
	st, err := s.f.Stat()
	if err != nil {
		return fmt.Errorf("stat session: %w", err)
	}
	var head [headerSize]byte
	if _, err := s.f.ReadAt(head[:], 0); err != nil {
		return s.bad("read its header: %v", err)
	}
	switch {
	case [8]byte(head[:8]) != magic:
		return s.bad("it does not begin with the session's magic")
	case le.Uint32(head[hdrCRC:]) != crc32.Checksum(head[:hdrCRC], castagnoli):
		return s.bad("header CRC does not fit")
	case le.Uint32(head[hdrVersion:]) != version, le.Uint32(head[hdrSlotSize:]) != slotSize, le.Uint32(head[hdrLockSize:]) != lockSize:
		return s.bad("version %d with slots of %d and %d bytes, this program writes version %d with %d and %d",
			le.Uint32(head[hdrVersion:]), le.Uint32(head[hdrSlotSize:]), le.Uint32(head[hdrLockSize:]), version, slotSize, lockSize)
	case st.Size() != fileSize:
		return s.bad("%d bytes, want %d", st.Size(), fileSize)
	}
	s.mem, err = unix.Mmap(int(s.f.Fd()), 0, fileSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return fmt.Errorf("map session %s: %w", s.path, err)
	}
	return nil
}

// bad is an error about the file, which it names, with what helps.
func (s *Session) bad(format string, args ...any) error {
	return fmt.Errorf("%w: %s: %s; stop the mount and remove the file: no byte is in it, but programs that have files open lose them", ErrFormat, s.path, fmt.Sprintf(format, args...))
}

// Begin starts the table of a new connection, empty. since is the journal's next
// sequence number: what is below it was written over older connections.
func (s *Session) Begin(id ID, since uint64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.clear(); err != nil {
		return err
	}
	boot := bootid.ID()
	copy(s.mem[hdrBoot:], boot[:])
	copy(s.mem[hdrID:], id[:])
	le.PutUint64(s.mem[hdrSince:], since)
	seal(s.mem)
	return nil
}

// End forgets everything: the connection is gone.
func (s *Session) End() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.clear()
}

// clear gives the tables' space back. The id goes first, so that a kill meanwhile leaves
// nothing that could be resumed.
func (s *Session) clear() error {
	clear(s.mem[hdrBoot:hdrCRC])
	seal(s.mem)
	if err := unix.Fallocate(int(s.f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, headerSize, fileSize-headerSize); err != nil {
		for at := headerSize; at < fileSize; at += chunk { // a file system without holes
			for _, b := range s.mem[at:min(at+chunk, fileSize)] {
				if b != 0 {
					clear(s.mem[at:min(at+chunk, fileSize)])
					break
				}
			}
		}
	}
	clear(s.mem[hdrNewest:headerSize])
	s.slots = space{s: s, word: hdrSlots, at: slotsAt, size: slotSize, max: MaxHandles, full: ErrHandles}
	s.locks = space{s: s, word: hdrLocks, at: locksAt, size: lockSize, max: MaxLocks, full: ErrLocks}
	s.paths = heap{s: s, byName: map[string]*name{}}
	s.byFile = map[uint64][]heldLock{}
	return nil
}

// Resume reads the table of the connection id, which a predecessor left. A session of
// another connection is ErrOther, a damaged one ErrFormat; neither can be gone on with.
func (s *Session) Resume(id ID) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if boot := bootid.ID(); [16]byte(s.mem[hdrBoot:]) != boot || [16]byte(s.mem[hdrID:]) != id || id == (ID{}) {
		return fmt.Errorf("%w: %s is of %x, the connection is %s", ErrOther, s.path, s.mem[hdrID:hdrID+16], id)
	}
	s.slots = space{s: s, word: hdrSlots, at: slotsAt, size: slotSize, max: MaxHandles, full: ErrHandles}
	s.locks = space{s: s, word: hdrLocks, at: locksAt, size: lockSize, max: MaxLocks, full: ErrLocks}
	s.paths = heap{s: s, byName: map[string]*name{}}
	s.byFile = map[uint64][]heldLock{}
	for _, sp := range []*space{&s.slots, &s.locks} {
		if err := sp.load(); err != nil {
			return err
		}
	}
	if err := s.loadHandles(); err != nil {
		return err
	}
	return s.loadLocks()
}

// Since is what Begin was told.
func (s *Session) Since() uint64 { return le.Uint64(s.mem[hdrSince:]) }

// Close unmaps the file. What is in it stays.
func (s *Session) Close() error {
	err := unix.Munmap(s.mem)
	s.mem = nil
	return errors.Join(err, s.f.Close())
}

func (s *Session) word(at int) *uint32 { return (*uint32)(unsafe.Pointer(&s.mem[at])) }

// allocate makes sure that bytes from to end of the file have space on the disk: a store
// to a mapping whose page cannot be allocated would be SIGBUS.
func (s *Session) allocate(from, end int) error {
	for {
		err := unix.Fallocate(int(s.f.Fd()), unix.FALLOC_FL_KEEP_SIZE, int64(from), int64(end-from))
		switch err {
		case nil:
			return nil
		case unix.EINTR:
			continue
		case unix.EOPNOTSUPP:
			if _, err := s.f.WriteAt(make([]byte, end-from), int64(from)); err != nil {
				return fmt.Errorf("allocate %d bytes of session %s: %w", end-from, s.path, err)
			}
			return nil
		}
		return fmt.Errorf("allocate %d bytes of session %s: %w", end-from, s.path, err)
	}
}

// space is a table of records of one size, the first word of which is 0 while it is free.
type space struct {
	s    *Session
	word int // of the header: how many bytes are allocated
	at   int
	size int
	max  int
	full error

	have int   // records that are allocated
	free []int // those of them that are free
}

func (sp *space) bytes(i int) []byte {
	at := sp.at + i*sp.size
	return sp.s.mem[at : at+sp.size : at+sp.size]
}

func (sp *space) state(i int) *uint32 { return sp.s.word(sp.at + i*sp.size) }

// take returns a free record.
func (sp *space) take() (int, error) {
	if len(sp.free) == 0 {
		if sp.have >= sp.max {
			return 0, fmt.Errorf("%w: all %d places are taken", sp.full, sp.max)
		}
		from := sp.have * sp.size
		if err := sp.s.allocate(sp.at+from, sp.at+from+chunk); err != nil {
			return 0, fmt.Errorf("%w: %w", sp.full, err)
		}
		atomic.StoreUint32(sp.s.word(sp.word), uint32(from+chunk))
		more := chunk / sp.size
		for i := sp.have + more - 1; i >= sp.have; i-- {
			sp.free = append(sp.free, i)
		}
		sp.have += more
	}
	i := sp.free[len(sp.free)-1]
	sp.free = sp.free[:len(sp.free)-1]
	return i, nil
}

// give frees a record.
func (sp *space) give(i int) {
	atomic.StoreUint32(sp.state(i), 0)
	sp.free = append(sp.free, i)
}

// load finds the free records of a table that a predecessor filled.
func (sp *space) load() error {
	bytes := int(atomic.LoadUint32(sp.s.word(sp.word)))
	if bytes%chunk != 0 || bytes > sp.max*sp.size {
		return sp.s.bad("%d bytes of a table are in use, which cannot be", bytes)
	}
	sp.have = bytes / sp.size
	for i := sp.have - 1; i >= 0; i-- {
		if atomic.LoadUint32(sp.state(i)) == 0 {
			sp.free = append(sp.free, i)
		}
	}
	return nil
}
