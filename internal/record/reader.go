package record

import (
	"encoding/binary"
	"fmt"
	"io"

	"ftfuse/internal/batch"
)

// Reader iterates over the records of one sealed batch. It is not safe for concurrent
// use. What it allocates is bounded by a small multiple of the batch's length, and is
// kept for the next batch by Reset; the bytes of a compressed batch are expanded, to
// MaxBatch at most, into memory that Reset leaves to whoever uses it.
type Reader struct {
	id    batch.ID
	all   []byte // the sealed bytes, expanded
	off   int    // of the next record's data in all
	end   int    // of the data
	heads []byte // not yet read
	h     header
	next  uint32 // number of the next record, from 0

	writers []writerRef
	strings []string
	nstr    int // strings of this batch; those beyond are an earlier batch's, kept for reuse

	proc *Process // the newest, perhaps of an earlier batch

	cur     Attr
	have    bool
	lastLen uint64
}

// writerRef is a writer whose strings are numbers.
type writerRef struct {
	host, path, pid, uid, gid uint32
	proc                      *Process
}

// Open returns a Reader of s. It checks the header: against the envelope (a header
// that names another batch is ErrMalformed) and for what this build can read
// (ErrVersion). It does not check the CRC.
func Open(s batch.Sealed) (*Reader, error) {
	r := new(Reader)
	if err := r.Reset(s); err != nil {
		return nil, err
	}
	return r, nil
}

// Reset makes r read s from its beginning, as Open does, and reuses what r allocated.
func (r *Reader) Reset(s batch.Sealed) error {
	h, err := parseHeader(s)
	if err != nil {
		return err
	}
	all := s.Data
	if h.codec != CodecNone {
		if all, err = expand(s, &h); err != nil {
			return err
		}
	}
	*r = Reader{
		id: s.ID, all: all, off: HeaderSize, end: HeaderSize + int(h.payload), h: h,
		writers: r.writers[:0], strings: r.strings, proc: r.proc,
	}
	r.heads = all[r.end:]
	return nil
}

// Bytes returns the sealed bytes that the records alias, with the data behind the header
// whether they were compressed or not. They stay good after Reset, and nobody may write
// to them.
func (r *Reader) Bytes() []byte { return r.all }

// parseHeader reads and checks the header of s.
func parseHeader(s batch.Sealed) (header, error) {
	var h header
	bad := func(format string, a ...any) (header, error) {
		return h, fmt.Errorf("%w: open batch %v: %s", ErrMalformed, s.ID, fmt.Sprintf(format, a...))
	}
	p := s.Data
	if len(p) < HeaderSize {
		return bad("%d bytes, want at least the header's %d", len(p), HeaderSize)
	}
	if string(p[:4]) != magic {
		return bad("begins with % x, want %q", p[:4], magic)
	}
	if h.version = binary.LittleEndian.Uint16(p[4:]); h.version < versionOld || h.version > Version {
		return h, fmt.Errorf("%w: open batch %v: version %d, this build reads %d to %d; upgrade this host", ErrVersion, s.ID, h.version, versionOld, Version)
	}
	if h.codec = Codec(p[6]); h.codec > CodecZstd {
		return h, fmt.Errorf("%w: open batch %v: %v, this build reads up to %d (%v); upgrade this host", ErrVersion, s.ID, h.codec, CodecZstd, CodecZstd)
	}
	id, err := batch.ParseID(p[8:])
	if err != nil {
		return bad("its id: %v", err)
	}
	h.id = id
	h.time = int64(binary.LittleEndian.Uint64(p[56:]))
	h.payload = binary.LittleEndian.Uint64(p[64:])
	h.records = binary.LittleEndian.Uint32(p[72:])
	h.heads = binary.LittleEndian.Uint32(p[76:])
	h.packed = binary.LittleEndian.Uint32(p[80:])
	switch {
	case len(p) > MaxBatch:
		return bad("%d bytes, want at most %d", len(p), MaxBatch)
	case id != s.ID:
		return bad("its header names %v", id)
	case h.time != s.Time || h.payload != s.Payload || h.records != s.Records:
		return bad("header has time %d, payload %d, records %d, envelope has %d, %d, %d",
			h.time, h.payload, h.records, s.Time, s.Payload, s.Records)
	case h.payload > MaxBatch || HeaderSize+h.payload+uint64(h.heads) > MaxBatch:
		return bad("%d + %d + %d bytes uncompressed, want at most %d", HeaderSize, h.payload, h.heads, MaxBatch)
	case !h.fits(len(p) - HeaderSize):
		return bad("%d bytes, header says %d + %d + %d, %d compressed", len(p), HeaderSize, h.payload, h.heads, h.packed)
	case p[7] != 0 || !zero(p[84:HeaderSize]):
		return bad("reserved header bytes are not zero")
	case h.codec != CodecNone && !zero(p[HeaderSize+h.packed:]):
		return bad("bytes behind the compressed ones are not zero")
	}
	return h, nil
}

// fits reports whether body is how long everything behind the header has to be.
func (h *header) fits(body int) bool {
	raw := int(h.payload) + int(h.heads)
	if h.codec == CodecNone {
		return h.packed == 0 && body == raw
	}
	return int64(h.packed) <= int64(body) && body == sealedBody(int(h.packed), raw)
}

func zero(p []byte) bool {
	for _, c := range p {
		if c != 0 {
			return false
		}
	}
	return true
}

// Next returns the next record, or io.EOF behind the last one, when all of the batch
// was read and agreed with its header. Any other error is ErrMalformed or ErrVersion
// and stays; records given before it are what they seem, but the batch is not to be
// trusted (see Check).
func (r *Reader) Next() (Record, error) {
	if r.next == r.h.records {
		if len(r.heads) != 0 || r.off != r.end {
			return Record{}, r.bad("%d bytes of heads and %d of data behind the last record", len(r.heads), r.end-r.off)
		}
		return Record{}, io.EOF
	}
	if len(r.heads) == 0 {
		return Record{}, r.bad("the heads end early")
	}
	ctl := r.heads[0]
	r.heads = r.heads[1:]
	if ctl&^ctlAll != 0 {
		return Record{}, r.bad("control byte %#x", ctl)
	}
	if w := ctl & ctlWriter; w != ctlSame || !r.have {
		if err := r.writer(w); err != nil {
			return Record{}, err
		}
	}
	if err := r.fields(ctl); err != nil {
		return Record{}, err
	}
	if r.lastLen > uint64(r.end-r.off) {
		return Record{}, r.bad("length %d, %d bytes are left", r.lastLen, r.end-r.off)
	}
	end := r.off + int(r.lastLen)
	rec := Record{Attr: r.cur, Data: r.all[r.off:end:end], Off: r.off}
	r.off = end
	r.next++
	return rec, nil
}

// fields reads flags, length and time as ctl announces them.
func (r *Reader) fields(ctl byte) error {
	r.cur.Flags = 0
	if ctl&ctlFlags != 0 {
		v, ok := r.uvarint()
		if !ok {
			return r.bad("flags cut short")
		}
		if v&^uint64(knownFlags) != 0 {
			r.heads, r.h.records = nil, r.next+1 // the error stays
			return fmt.Errorf("%w: read batch %v: record %d has flags %#x; upgrade this host", ErrVersion, r.id, r.next, v)
		}
		r.cur.Flags = uint16(v)
	}
	if ctl&ctlLen != 0 {
		v, ok := r.uvarint()
		if !ok {
			return r.bad("length cut short")
		}
		r.lastLen = v
	}
	if ctl&ctlTime != 0 {
		v, n := binary.Varint(r.heads)
		if n <= 0 {
			return r.bad("time cut short")
		}
		r.heads = r.heads[n:]
		r.cur.Time += v
	}
	return nil
}

// writer reads a reference to a writer or its definition.
func (r *Reader) writer(kind byte) error {
	var w writerRef
	switch kind {
	case ctlKnown:
		n, ok := r.uvarint()
		if !ok || n >= uint64(len(r.writers)) {
			return r.bad("writer %d of %d", n, len(r.writers))
		}
		w = r.writers[n]
	case ctlNew, ctlNewProc:
		if len(r.writers) == MaxWriters {
			return r.bad("more than %d writers", MaxWriters)
		}
		if !r.define(&w, kind == ctlNewProc) {
			return r.bad("definition of a writer")
		}
		r.writers = append(r.writers, w)
	default:
		return r.bad("control bits name no writer")
	}
	r.cur.Host, r.cur.Path = r.strings[w.host], r.strings[w.path]
	r.cur.PID, r.cur.UID, r.cur.GID = w.pid, w.uid, w.gid
	r.cur.Process = w.proc
	r.have = true
	return nil
}

// define reads the definition of a writer, with a process only in version 2.
func (r *Reader) define(w *writerRef, proc bool) bool {
	var ok [5]bool
	w.host, ok[0] = r.string()
	w.path, ok[1] = r.string()
	w.pid, ok[2] = r.uint32()
	w.uid, ok[3] = r.uint32()
	w.gid, ok[4] = r.uint32()
	if ok != [5]bool{true, true, true, true, true} || proc && r.h.version < Version {
		return false
	}
	if !proc {
		return true
	}
	exe, ok1 := r.string()
	cgroup, ok2 := r.string()
	if !ok1 || !ok2 || len(r.strings[exe]) > MaxProcess || len(r.strings[cgroup]) > MaxProcess {
		return false
	}
	w.proc = r.process(r.strings[exe], r.strings[cgroup])
	return true
}

// process returns a Process of these strings, the one of the writer before where it is equal.
func (r *Reader) process(exe, cgroup string) *Process {
	if p := r.proc; p != nil && p.Exe == exe && p.Cgroup == cgroup {
		return p
	}
	r.proc = &Process{exe, cgroup}
	return r.proc
}

// string reads the number of a string, and the string where the number is new. An
// equal string of the batch before at the same number is used again.
func (r *Reader) string() (uint32, bool) {
	n, ok := r.uvarint()
	if !ok || n > uint64(r.nstr) {
		return 0, false
	}
	if n < uint64(r.nstr) {
		return uint32(n), true
	}
	length, ok := r.uvarint()
	if !ok || length > MaxString || length > uint64(len(r.heads)) {
		return 0, false
	}
	s := r.heads[:length]
	r.heads = r.heads[length:]
	switch {
	case r.nstr == len(r.strings):
		r.strings = append(r.strings, string(s))
	case r.strings[r.nstr] != string(s):
		r.strings[r.nstr] = string(s)
	}
	r.nstr++
	return uint32(n), true
}

func (r *Reader) uint32() (uint32, bool) {
	v, ok := r.uvarint()
	return uint32(v), ok && v <= 1<<32-1
}

func (r *Reader) uvarint() (uint64, bool) {
	if len(r.heads) > 0 && r.heads[0] < 0x80 { // most of them
		v := r.heads[0]
		r.heads = r.heads[1:]
		return uint64(v), true
	}
	v, n := binary.Uvarint(r.heads)
	if n <= 0 {
		return 0, false
	}
	r.heads = r.heads[n:]
	return v, true
}

// bad returns an ErrMalformed that says where, and makes every later Next fail too.
func (r *Reader) bad(format string, a ...any) error {
	at := len(r.all) - len(r.heads)
	err := fmt.Errorf("%w: read batch %v: record %d, offset %d: %s", ErrMalformed, r.id, r.next, at, fmt.Sprintf(format, a...))
	r.heads, r.h.records = nil, r.next+1
	return err
}

// Check reads all of s and returns the first error; nil means that a Reader of s
// will reach io.EOF.
func Check(s batch.Sealed) error {
	r, err := Open(s)
	for err == nil {
		_, err = r.Next()
	}
	if err == io.EOF {
		return nil
	}
	return err
}
