package sink

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"

	"ftfuse/internal/output"
)

// errNote is returned for a note that cannot be read.
var errNote = errors.New("sink: malformed note of a batch")

const noteVersion = 1

// Kinds of a note.
const (
	noteExtents = 0 // the batch's bytes go to the extents that follow
	noteDead    = 1 // the batch is a dead letter; nothing is to be written
)

// Flags of an extent.
const (
	extOpen = 1 << iota // the file did not end with a line end before it
	extMid              // ... but in the middle of a long line of a source, whose hash follows
	extDead             // the file was refused: the bytes are a dead letter
	extID               // the file's identity is known, and follows
)

// lineState is where the end of an output file stands with regard to lines.
type lineState struct {
	open bool   // not at the beginning of a line
	mid  uint32 // open behind a piece of a long line: hash of its source; else 0
	raw  bool   // open behind bytes that are no lines (not stored)
}

// extent is where one batch's bytes go in one output file. A batch has one for each
// file that it touches, in the order of the first touch.
type extent struct {
	era    uint64 // names the generation, see generation.era
	off, n int64
	before lineState
	dead   bool
	id     output.ID // zero: not known when it was assigned
	check  uint32    // CRC-32C of the file's path
}

// note is the private room beside a batch in the queue: all that a redo needs but the
// bytes and the template set.
type note struct {
	kind    byte
	set     uint64
	extents []extent
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// append appends the encoded note (docs/protocol.md, "Note").
func (n *note) append(b []byte) []byte {
	start := len(b)
	b = append(b, noteVersion, n.kind)
	b = binary.LittleEndian.AppendUint64(b, n.set)
	b = binary.AppendUvarint(b, uint64(len(n.extents)))
	for i := range n.extents {
		b = n.extents[i].append(b)
	}
	return binary.LittleEndian.AppendUint32(b, crc32.Checksum(b[start:], castagnoli))
}

func (e *extent) append(b []byte) []byte {
	var flags byte
	if e.before.open {
		flags |= extOpen
	}
	if e.before.mid != 0 {
		flags |= extMid
	}
	if e.dead {
		flags |= extDead
	}
	if !e.id.IsZero() {
		flags |= extID
	}
	b = append(b, flags)
	b = binary.LittleEndian.AppendUint32(b, e.check)
	b = binary.LittleEndian.AppendUint64(b, e.era)
	b = binary.AppendUvarint(b, uint64(e.off))
	b = binary.AppendUvarint(b, uint64(e.n))
	if flags&extMid != 0 {
		b = binary.LittleEndian.AppendUint32(b, e.before.mid)
	}
	if flags&extID != 0 {
		b = appendID(b, e.id)
	}
	return b
}

func appendID(b []byte, id output.ID) []byte {
	b = binary.AppendUvarint(b, id.Dev)
	b = binary.AppendUvarint(b, id.Ino)
	b = binary.AppendVarint(b, id.Birth)
	return binary.LittleEndian.AppendUint64(b, id.Handle)
}

// noteReader reads fixed and variable numbers; after the first that is missing, bad.
type noteReader struct {
	b   []byte
	bad bool
}

func (r *noteReader) take(n int) []byte {
	if len(r.b) < n {
		r.bad = true
		return make([]byte, n)
	}
	p := r.b[:n]
	r.b = r.b[n:]
	return p
}

func (r *noteReader) u64() uint64 { return binary.LittleEndian.Uint64(r.take(8)) }
func (r *noteReader) u32() uint32 { return binary.LittleEndian.Uint32(r.take(4)) }

func (r *noteReader) uvarint() uint64 {
	v, n := binary.Uvarint(r.b)
	if n <= 0 {
		r.bad = true
		return 0
	}
	r.b = r.b[n:]
	return v
}

func (r *noteReader) size() int64 {
	v := r.uvarint()
	if v > 1<<62 {
		r.bad = true
	}
	return int64(v)
}

func (r *noteReader) id() output.ID {
	id := output.ID{Dev: r.uvarint(), Ino: r.uvarint()}
	v, n := binary.Varint(r.b)
	if n <= 0 {
		r.bad = true
		return output.ID{}
	}
	r.b = r.b[n:]
	id.Birth, id.Handle = v, r.u64()
	return id
}

// parse reads an encoded note into n, reusing its memory.
func (n *note) parse(b []byte) error {
	n.extents = n.extents[:0]
	if len(b) < 2+8+1+4 {
		return fmt.Errorf("%w: %d bytes", errNote, len(b))
	}
	body := b[:len(b)-4]
	if got, want := crc32.Checksum(body, castagnoli), binary.LittleEndian.Uint32(b[len(b)-4:]); got != want {
		return fmt.Errorf("%w: CRC %08x, want %08x", errNote, got, want)
	}
	if body[0] != noteVersion {
		return fmt.Errorf("%w: version %d, this build reads %d", errNote, body[0], noteVersion)
	}
	r := noteReader{b: body[1:]}
	n.kind = r.take(1)[0]
	n.set = r.u64()
	count := r.uvarint()
	if n.kind > noteDead || count > uint64(len(r.b)) {
		return fmt.Errorf("%w: kind %d with %d extents", errNote, n.kind, count)
	}
	for range count {
		flags := r.take(1)[0]
		e := extent{check: r.u32(), era: r.u64(), off: r.size(), n: r.size(), dead: flags&extDead != 0}
		e.before.open = flags&extOpen != 0
		if flags&extMid != 0 {
			e.before.mid = r.u32()
		}
		if flags&extID != 0 {
			e.id = r.id()
		}
		n.extents = append(n.extents, e)
	}
	if r.bad || len(r.b) != 0 {
		return fmt.Errorf("%w: cut short or too long", errNote)
	}
	return nil
}

// shift says that bytes of a generation assigned from From on stand at At of the file
// ID instead: the file was shrunk, replaced, or appended to by somebody else.
type shift struct {
	from int64
	id   output.ID
	at   int64
}

const shiftVersion = 1

func appendShifts(b []byte, shifts []shift) []byte {
	b = append(b, shiftVersion)
	b = binary.AppendUvarint(b, uint64(len(shifts)))
	for _, s := range shifts {
		b = binary.AppendUvarint(b, uint64(s.from))
		b = appendID(b, s.id)
		b = binary.AppendUvarint(b, uint64(s.at))
	}
	return b
}

func parseShifts(b []byte) ([]shift, error) {
	if len(b) < 2 || b[0] != shiftVersion {
		return nil, fmt.Errorf("%w: shifts of %d bytes, want version %d", errNote, len(b), shiftVersion)
	}
	r := noteReader{b: b[1:]}
	count := r.uvarint()
	if count > uint64(len(r.b)) {
		return nil, fmt.Errorf("%w: %d shifts in %d bytes", errNote, count, len(r.b))
	}
	shifts := make([]shift, 0, count)
	for range count {
		shifts = append(shifts, shift{from: r.size(), id: r.id(), at: r.size()})
	}
	if r.bad || len(r.b) != 0 {
		return nil, fmt.Errorf("%w: shifts cut short or too long", errNote)
	}
	return shifts, nil
}
