package session

import (
	"fmt"
	"hash/crc32"
	"sync/atomic"
	"unsafe"

	"ftfuse/internal/failpoint"
)

var fpStored = failpoint.New("session/stored") // a handle is in the table, the kernel does not know it yet

// Kind says what a handle is of.
type Kind uint8

// Kinds of handles.
const (
	Dir   Kind = iota + 1 // a directory
	Read                  // a file, not for writing
	Write                 // a file, for writing; Mode says how
)

// Handle is an open file or directory as the table keeps it.
type Handle struct {
	ID      uint64 // what the kernel calls it: the place in the table, and a counter
	Kind    Kind
	Mode    uint8  // of a Write: spool.OpenMode
	Reply   uint8  // the low bits of the flags (FOPEN_*) that the kernel was answered
	File    uint64 // number of the spool file; of a directory 0
	Node    uint64
	Writer  uint64 // id of the writer, of a Write
	Unique  uint64 // of the request that opened it
	Flags   uint32 // of open(2)
	Backing int32  // backing id that the kernel was answered, 0 for none
	PID     uint32
	UID     uint32
	GID     uint32
	Time    int64  // Unix nanoseconds
	Poll    uint64 // how the kernel wants to hear of it (kh), 0 if nobody polls it
	Path    string // as it was opened
}

// Offsets in a slot.
const (
	slotState   = 0 // 1 while it is in use, stored last
	slotCRC     = 4 // of bytes 8 to 119, and of the path
	slotID      = 8
	slotFile    = 16
	slotNode    = 24
	slotWriter  = 32
	slotUnique  = 40
	slotTime    = 48
	slotPath    = 56 // first cell
	slotPathLen = 60
	slotFlags   = 64
	slotPID     = 68
	slotUID     = 72
	slotGID     = 76
	slotBacking = 80
	slotKind    = 84
	slotMode    = 85
	slotReply   = 86
	slotPoll    = 120 // changes while the slot is in use
)

// Reserve takes a place in the table and returns the handle's id. Store or Unreserve must
// follow.
func (s *Session) Reserve() (uint64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	i, err := s.slots.take()
	if err != nil {
		return 0, err
	}
	// The counter in the upper half makes an id that was used before unlikely to come again:
	// a request that is late meets no other file.
	counter := le.Uint64(s.slots.bytes(i)[slotID:])>>32 + 1
	id := counter<<32 | uint64(i)
	le.PutUint64(s.slots.bytes(i)[slotID:], id)
	return id, nil
}

// Store keeps h, whose ID Reserve gave. When it returns, h survives a kill.
func (s *Session) Store(h *Handle) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	b := s.slots.bytes(Index(h.ID))
	cell, err := s.paths.acquire(h.Path)
	if err != nil {
		return err
	}
	le.PutUint64(b[slotFile:], h.File)
	le.PutUint64(b[slotNode:], h.Node)
	le.PutUint64(b[slotWriter:], h.Writer)
	le.PutUint64(b[slotUnique:], h.Unique)
	le.PutUint64(b[slotTime:], uint64(h.Time))
	le.PutUint64(b[slotPoll:], h.Poll)
	le.PutUint32(b[slotPath:], cell)
	le.PutUint32(b[slotPathLen:], uint32(len(h.Path)))
	le.PutUint32(b[slotFlags:], h.Flags)
	le.PutUint32(b[slotPID:], h.PID)
	le.PutUint32(b[slotUID:], h.UID)
	le.PutUint32(b[slotGID:], h.GID)
	le.PutUint32(b[slotBacking:], uint32(h.Backing))
	b[slotKind], b[slotMode], b[slotReply] = byte(h.Kind), h.Mode, h.Reply
	le.PutUint32(b[slotCRC:], slotSum(b, h.Path))
	atomic.StoreUint32(s.slots.state(Index(h.ID)), 1)
	return fpStored.Inject()
}

func slotSum(b []byte, path string) uint32 {
	return crc32.Update(crc32.Checksum(b[slotID:slotPoll], castagnoli), castagnoli, []byte(path))
}

// Index is the place in the table of the handle id: below MaxHandles for every id that
// Reserve gave.
func Index(id uint64) int { return int(id & (1<<32 - 1)) }

// Unreserve takes a Reserve back.
func (s *Session) Unreserve(id uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.slots.give(Index(id))
}

// Free forgets a handle that was stored with path.
func (s *Session) Free(id uint64, path string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.slots.give(Index(id))
	s.paths.release(path)
}

// SetPoll keeps how the kernel wants to hear of a handle that is stored.
func (s *Session) SetPoll(id, kh uint64) {
	atomic.StoreUint64((*uint64)(unsafe.Pointer(&s.slots.bytes(Index(id))[slotPoll])), kh)
}

// Handles returns all handles that are stored.
func (s *Session) Handles() ([]Handle, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []Handle
	for i := range s.slots.have {
		if atomic.LoadUint32(s.slots.state(i)) == 0 {
			continue
		}
		h, err := s.handle(i)
		if err != nil {
			return nil, err
		}
		all = append(all, h)
	}
	return all, nil
}

// handle reads the slot i, which is in use.
func (s *Session) handle(i int) (Handle, error) {
	b := s.slots.bytes(i)
	path, ok := s.paths.read(le.Uint32(b[slotPath:]), le.Uint32(b[slotPathLen:]))
	if !ok || le.Uint32(b[slotCRC:]) != slotSum(b, path) || Index(le.Uint64(b[slotID:])) != i {
		return Handle{}, s.bad("handle %d: CRC does not fit", i)
	}
	return Handle{
		ID: le.Uint64(b[slotID:]), Kind: Kind(b[slotKind]), Mode: b[slotMode], Reply: b[slotReply],
		File: le.Uint64(b[slotFile:]), Node: le.Uint64(b[slotNode:]), Writer: le.Uint64(b[slotWriter:]),
		Unique: le.Uint64(b[slotUnique:]), Time: int64(le.Uint64(b[slotTime:])), Flags: le.Uint32(b[slotFlags:]),
		PID: le.Uint32(b[slotPID:]), UID: le.Uint32(b[slotUID:]), GID: le.Uint32(b[slotGID:]),
		Backing: int32(le.Uint32(b[slotBacking:])), Poll: le.Uint64(b[slotPoll:]), Path: path,
	}, nil
}

// loadHandles finds the paths that are in use, and checks every slot.
func (s *Session) loadHandles() error {
	for i := range s.slots.have {
		if atomic.LoadUint32(s.slots.state(i)) == 0 {
			continue
		}
		h, err := s.handle(i)
		if err != nil {
			return err
		}
		if h.Kind < Dir || h.Kind > Write {
			return s.bad("handle %d is of kind %d", i, h.Kind)
		}
		s.paths.keep(h.Path, le.Uint32(s.slots.bytes(i)[slotPath:]))
	}
	return s.paths.load()
}

// Live returns a function that reports whether a writer's handle was open when the
// predecessor ended.
func (s *Session) Live() (func(writer uint64) bool, error) {
	all, err := s.Handles()
	if err != nil {
		return nil, fmt.Errorf("live writers: %w", err)
	}
	live := map[uint64]bool{}
	for _, h := range all {
		if h.Kind == Write {
			live[h.Writer] = true
		}
	}
	return func(w uint64) bool { return live[w] }, nil
}

// Backing ids belong to the connection: one whose handle is nowhere would keep its spool
// file's space until the end. So the newest one that the kernel gave and one that is
// being closed are kept outside the handles.

// Opened keeps id, which the kernel has just given.
func (s *Session) Opened(id int32) { atomic.StoreUint32(s.word(hdrNewest), uint32(id)) }

// Closing keeps id, whose last handle is about to be freed; 0: it is closed.
func (s *Session) Closing(id int32) { atomic.StoreUint32(s.word(hdrClosing), uint32(id)) }

// Stray returns backing ids that no handle has and that may be open. The one after the
// newest is among them: the kernel may have given it without anybody's noting it.
func (s *Session) Stray() ([]int32, error) {
	all, err := s.Handles()
	if err != nil {
		return nil, err
	}
	used := map[int32]bool{0: true}
	for _, h := range all {
		used[h.Backing] = true
	}
	newest := int32(atomic.LoadUint32(s.word(hdrNewest)))
	var stray []int32
	for _, id := range []int32{int32(atomic.LoadUint32(s.word(hdrClosing))), newest, newest + 1} {
		if !used[id] {
			stray = append(stray, id)
			used[id] = true
		}
	}
	return stray, nil
}
