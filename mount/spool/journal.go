package spool

import (
	"context"
	"encoding/binary"
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

// Sizes of the journal file (docs/protocol.md, "The journal").
const (
	entrySize  = 80
	headerSize = 4096
	// DefaultEntries is the capacity of the ring: 65,536 notes, 5 MiB.
	DefaultEntries = 1 << 16

	// journalVersion 2 has notes that a reader of version 1 would pass over in silence
	// (Opened, Grown) and flags of writes; the notes of version 1 are the same in it.
	journalVersion    = 2
	oldJournalVersion = 1
)

var journalMagic = [8]byte{'F', 'T', 'F', 'U', 'S', 'E', 'J', 0}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Offsets inside the header.
const (
	hdrVersion   = 8
	hdrEntrySize = 12
	hdrCapacity  = 16
	hdrBoot      = 24 // 16 bytes
	hdrCRC       = 40 // of bytes 0 to 39
	hdrNumbers   = 48 // file numbers below this may have been given out
	hdrWriters   = 56 // writer ids below this may have been given out
)

// Offsets inside an entry.
const (
	entSeq    = 0
	entFile   = 8
	entWriter = 16
	entOff    = 24
	entTime   = 32
	entUnique = 40
	entLen    = 48
	entPath   = 52
	entPID    = 56
	entUID    = 60
	entGID    = 64
	entKind   = 68
	entCRC    = 72 // of bytes 0 to 71
	entResult = 76 // 0 while the write is in progress, then 1 + the bytes that were written
)

// journal is the MAP_SHARED ring of notes. A note is in the page cache once it is
// stored, so it survives kill -9; after power loss an entry counts only if its CRC
// and its sequence number fit.
//
// note and complete may be called from any goroutine; entries, wait and committed
// belong to the capture.
type journal struct {
	f    *os.File
	mem  []byte // header and ring
	ring []byte
	cap  uint64

	mu   sync.Mutex    // orders note
	next atomic.Uint64 // the next sequence number; all below it are noted
	done atomic.Uint64 // everything up to here is committed

	uncaptured atomic.Int64 // bytes noted and not committed

	waiting atomic.Bool   // the capture sleeps in wait
	wake    chan struct{} // capacity 1

	roomMu sync.Mutex
	room   chan struct{} // closed and replaced when done moves; nil while nobody waits

	otherBoot bool
}

// openJournal maps the ring at path, which it makes if there is none. The space of
// the file is allocated, so that a store never meets a full disk.
func openJournal(path string, entries uint64) (*journal, error) {
	if err := makeJournal(path, entries); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("open journal: %w", err)
	}
	j := &journal{f: f, wake: make(chan struct{}, 1)}
	if err := j.mapFile(path); err != nil {
		f.Close()
		return nil, err
	}
	return j, nil
}

func (j *journal) mapFile(path string) error {
	st, err := j.f.Stat()
	if err != nil {
		return fmt.Errorf("stat journal: %w", err)
	}
	var head [hdrCRC + 4]byte
	if _, err := j.f.ReadAt(head[:], 0); err != nil {
		return fmt.Errorf("%w: %s: read its header: %w", ErrJournal, path, err)
	}
	le := binary.LittleEndian
	j.cap = le.Uint64(head[hdrCapacity:])
	version := le.Uint32(head[hdrVersion:])
	switch {
	case [8]byte(head[:8]) != journalMagic:
		return fmt.Errorf("%w: %s: it does not begin with the journal's magic; if another program wrote it, move it away (notes of writes not yet captured are in it)", ErrJournal, path)
	case le.Uint32(head[hdrCRC:]) != crc32.Checksum(head[:hdrCRC], castagnoli):
		return fmt.Errorf("%w: %s: header CRC does not fit; move the file away to go on (bytes not yet captured are then delivered without their writers' attributes)", ErrJournal, path)
	case version != journalVersion && version != oldJournalVersion || le.Uint32(head[hdrEntrySize:]) != entrySize:
		return fmt.Errorf("%w: %s: version %d with entries of %d bytes, this program writes version %d with %d; start the version that wrote it once to drain it",
			ErrJournal, path, version, le.Uint32(head[hdrEntrySize:]), journalVersion, entrySize)
	case j.cap == 0 || j.cap > 1<<30 || st.Size() != headerSize+int64(j.cap)*entrySize:
		return fmt.Errorf("%w: %s: %d bytes, want %d for its %d entries; move the file away to go on", ErrJournal, path, st.Size(), headerSize+int64(j.cap)*entrySize, j.cap)
	}
	j.mem, err = unix.Mmap(int(j.f.Fd()), 0, int(st.Size()), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return fmt.Errorf("map journal %s: %w", path, err)
	}
	j.ring = j.mem[headerSize:]
	boot := bootid.ID()
	j.otherBoot = [16]byte(head[hdrBoot:]) != boot
	copy(head[hdrBoot:], boot[:])
	le.PutUint32(head[hdrVersion:], journalVersion)
	le.PutUint32(head[hdrCRC:], crc32.Checksum(head[:hdrCRC], castagnoli))
	// In one write, which a kill does not cut in the middle.
	if _, err := j.f.WriteAt(head[:], 0); err != nil {
		return fmt.Errorf("write journal header %s: %w", path, err)
	}
	if version != journalVersion { // no note of the new version may be on disk below the old one
		return j.syncHeader()
	}
	return nil
}

// makeJournal writes an empty journal beside path and renames it there.
func makeJournal(path string, entries uint64) error {
	if _, err := os.Lstat(path); err == nil || !errors.Is(err, os.ErrNotExist) {
		return err
	}
	tmp := path + ".new"
	f, err := os.OpenFile(tmp, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("make journal: %w", err)
	}
	defer f.Close()
	head := make([]byte, headerSize)
	copy(head, journalMagic[:])
	le := binary.LittleEndian
	le.PutUint32(head[hdrVersion:], journalVersion)
	le.PutUint32(head[hdrEntrySize:], entrySize)
	le.PutUint64(head[hdrCapacity:], entries)
	boot := bootid.ID()
	copy(head[hdrBoot:], boot[:])
	le.PutUint32(head[hdrCRC:], crc32.Checksum(head[:hdrCRC], castagnoli))
	le.PutUint64(head[hdrNumbers:], 1)
	le.PutUint64(head[hdrWriters:], 1)
	size := headerSize + int64(entries)*entrySize
	if err := unix.Fallocate(int(f.Fd()), 0, 0, size); err != nil {
		if err != unix.EOPNOTSUPP {
			return fmt.Errorf("allocate %d bytes for the journal %s: %w", size, tmp, err)
		}
		if err := f.Truncate(size); err != nil {
			return fmt.Errorf("size journal: %w", err)
		}
	}
	if _, err := f.WriteAt(head, 0); err != nil {
		return fmt.Errorf("write journal header: %w", err)
	}
	if err := f.Sync(); err != nil {
		return fmt.Errorf("sync journal %s: %w", tmp, err)
	}
	if err := os.Rename(tmp, path); err != nil {
		return fmt.Errorf("name journal: %w", err)
	}
	return syncDirOf(path)
}

func (j *journal) close() error {
	err := unix.Munmap(j.mem)
	j.mem, j.ring = nil, nil
	return errors.Join(err, j.f.Close())
}

func (j *journal) slot(seq uint64) []byte {
	at := (seq % j.cap) * entrySize
	return j.ring[at : at+entrySize : at+entrySize]
}

func (j *journal) result(seq uint64) *uint32 {
	return (*uint32)(unsafe.Pointer(&j.ring[(seq%j.cap)*entrySize+entResult]))
}

// fits reports whether n more bytes may be accepted. One write always may.
func (j *journal) fits(n int, limit int64) bool {
	have := j.uncaptured.Load()
	return have <= 0 || have+int64(n) <= limit
}

// note stores e with the next sequence number and returns it, or ErrJournalFull.
// The entry is in progress until complete.
func (j *journal) note(e *Entry) (uint64, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	seq := j.next.Load()
	if seq-j.done.Load() > j.cap {
		return 0, ErrJournalFull
	}
	j.store(seq, e)
	j.uncaptured.Add(int64(e.Len))
	j.next.Store(seq + 1)
	return seq, nil
}

// store writes e's bytes for seq. The old result goes first and the CRC last, so
// that a kill in between leaves an entry that does not fit.
func (j *journal) store(seq uint64, e *Entry) {
	atomic.StoreUint32(j.result(seq), 0)
	b := j.slot(seq)
	le := binary.LittleEndian
	le.PutUint64(b[entSeq:], seq)
	le.PutUint64(b[entFile:], uint64(e.File))
	le.PutUint64(b[entWriter:], e.Writer)
	le.PutUint64(b[entOff:], uint64(e.Off))
	le.PutUint64(b[entTime:], uint64(e.Time))
	le.PutUint64(b[entUnique:], e.Unique)
	le.PutUint32(b[entLen:], e.Len)
	le.PutUint32(b[entPath:], e.PathID)
	le.PutUint32(b[entPID:], e.PID)
	le.PutUint32(b[entUID:], e.UID)
	le.PutUint32(b[entGID:], e.GID)
	le.PutUint32(b[entKind:], uint32(e.Kind)|e.Flags<<8)
	sum := crc32.Checksum(b[:entCRC], castagnoli)
	atomic.StoreUint32((*uint32)(unsafe.Pointer(&b[entCRC])), sum)
}

// complete corrects the note of seq, of length noted, to the n bytes that were
// written, and wakes the capture.
func (j *journal) complete(seq uint64, noted, n uint32) {
	if n != noted {
		j.uncaptured.Add(int64(n) - int64(noted))
	}
	atomic.StoreUint32(j.result(seq), n+1)
	if j.waiting.Load() && j.waiting.CompareAndSwap(true, false) {
		select {
		case j.wake <- struct{}{}:
		default:
		}
	}
}

// load reads the entry of seq; ok is false if the slot holds another or does not
// fit its CRC.
func (j *journal) load(seq uint64, check bool) (e Entry, ok bool) {
	b := j.slot(seq)
	le := binary.LittleEndian
	if le.Uint64(b[entSeq:]) != seq {
		return e, false
	}
	if check && le.Uint32(b[entCRC:]) != crc32.Checksum(b[:entCRC], castagnoli) {
		return e, false
	}
	kind := le.Uint32(b[entKind:])
	e = Entry{
		Seq: seq, File: Number(le.Uint64(b[entFile:])), Writer: le.Uint64(b[entWriter:]),
		Off: int64(le.Uint64(b[entOff:])), Time: int64(le.Uint64(b[entTime:])), Unique: le.Uint64(b[entUnique:]),
		Len: le.Uint32(b[entLen:]), PathID: le.Uint32(b[entPath:]),
		PID: le.Uint32(b[entPID:]), UID: le.Uint32(b[entUID:]), GID: le.Uint32(b[entGID:]),
		Kind: Kind(kind), Flags: kind >> 8,
	}
	if r := atomic.LoadUint32(j.result(seq)); r > 0 {
		e.Len = min(e.Len, r-1)
	}
	return e, true
}

// entries appends the completed entries from seq on and stops before one in
// progress or at the capacity of dst.
func (j *journal) entries(dst []Entry, from uint64) []Entry {
	from = max(from, j.done.Load()+1)
	for seq, next := from, j.next.Load(); seq < next && len(dst) < cap(dst); seq++ {
		if atomic.LoadUint32(j.result(seq)) == 0 {
			break
		}
		e, _ := j.load(seq, false)
		dst = append(dst, e)
	}
	return dst
}

// lowest returns the smallest offset of an entry of file n that is not committed, or
// none.
func (j *journal) lowest(n Number, none int64) int64 {
	for seq, next := j.done.Load()+1, j.next.Load(); seq < next; seq++ {
		b := j.slot(seq)
		if leUint64(b[entFile:]) == uint64(n) && b[entKind] == byte(Write) {
			none = min(none, int64(leUint64(b[entOff:])))
		}
	}
	return none
}

func (j *journal) ready(seq uint64) bool {
	seq = max(seq, j.done.Load()+1)
	return seq < j.next.Load() && atomic.LoadUint32(j.result(seq)) != 0
}

// wait returns when the entry of seq is complete.
func (j *journal) wait(ctx context.Context, seq uint64) error {
	for !j.ready(seq) {
		j.waiting.Store(true)
		if j.ready(seq) {
			break
		}
		select {
		case <-j.wake:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// committed frees the slots up to seq and wakes those who wait for room.
func (j *journal) committed(seq uint64) {
	var bytes int64
	last := min(seq, j.next.Load()-1)
	for s := j.done.Load() + 1; s <= last; s++ {
		if r := atomic.LoadUint32(j.result(s)); r > 0 {
			bytes += int64(r - 1)
		}
	}
	if last <= j.done.Load() {
		return
	}
	j.done.Store(last)
	j.uncaptured.Add(-bytes)
	j.wakeRoom()
}

// wakeRoom wakes those who wait for room.
func (j *journal) wakeRoom() {
	j.roomMu.Lock()
	defer j.roomMu.Unlock()
	if j.room != nil {
		close(j.room)
		j.room = nil
	}
}

// changed returns a channel that is closed at the next committed.
func (j *journal) changed() <-chan struct{} {
	j.roomMu.Lock()
	defer j.roomMu.Unlock()
	if j.room == nil {
		j.room = make(chan struct{})
	}
	return j.room
}
