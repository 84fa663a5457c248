package record

import (
	"encoding/binary"

	"ftfuse/internal/batch"
	"ftfuse/internal/dirty"
)

// slack is how much longer than maxBytes a sealed batch may become, so that a batch
// of exactly maxBytes of payload fits with its heads.
const slack = 4096

// writer is who wrote and where; the same for most records in a row.
type writer struct {
	host, path    string
	pid, uid, gid uint32
	proc          *Process
}

// Builder collects records into one batch after another. It is not safe for
// concurrent use. Once it has grown to its work it allocates nothing per record, and
// per batch only the bytes that Seal gives away.
type Builder struct {
	max   int // longest sealed batch, but for a single record that needs more
	codec Codec
	buf   []byte // room for the header, then the data; nil until the first Add of a batch
	heads []byte

	writers map[writer]uint32
	strings map[string]uint32
	last    writer    // of the newest record
	recent  [4]recent // the last few used, looked at before the map
	slot    uint8     // the slot of recent to give away next

	host       string // of the newest record of this batch
	records    uint32
	lastLen    int
	lastTime   int64
	haveWriter bool
	haveProc   bool // a writer of this batch has a process
}

// recent is a writer and its number.
type recent struct {
	w  writer
	n  uint32
	ok bool
}

// NewBuilder returns a Builder whose batches hold about maxBytes of payload and heads
// together.
func NewBuilder(maxBytes int) *Builder {
	limit := min(max(maxBytes, 1)+slack, MaxBatch)
	return &Builder{max: limit, writers: make(map[writer]uint32), strings: make(map[string]uint32)}
}

// Compress has every batch from the next Seal on compressed by c, where that saves
// something.
func (b *Builder) Compress(c Codec) { b.codec = c }

// Add appends one record whose bytes are those of data, one after the other, and
// copies them. It returns false, and changes nothing, when the record does not fit:
// Seal the batch, then Add again. To an empty batch it returns false only for a record
// longer than MaxRecord, a path longer than MaxString, a host longer than batch.MaxHost or a
// process with more than MaxProcess: cut it first. All records of a batch are to be of one host, or receivers refuse it.
func (b *Builder) Add(a *Attr, data ...[]byte) bool {
	n := 0
	for _, d := range data {
		n += len(d)
	}
	bound, same := b.bound(a, n)
	if bound < 0 || !b.reserve(bound) {
		return false
	}
	b.head(a, n, same)
	for _, d := range data {
		b.buf = append(b.buf, d...)
	}
	b.records++
	return true
}

// bound returns how long a record of n bytes can get with its head, -1 if it can be in
// no batch, and whether its writer is that of the record before.
func (b *Builder) bound(a *Attr, n int) (bound int, same bool) {
	same = b.haveWriter && a.Path == b.last.path && a.PID == b.last.pid &&
		a.UID == b.last.uid && a.GID == b.last.gid && a.Host == b.last.host && a.Process == b.last.proc
	if same {
		return n + headBound, true
	}
	if len(a.Host) > batch.MaxHost || len(a.Path) > MaxString || len(b.writers) == MaxWriters {
		return -1, false
	}
	if a.Process != nil {
		if len(a.Process.Exe) > MaxProcess || len(a.Process.Cgroup) > MaxProcess {
			return -1, false
		}
		n += len(a.Process.Exe) + len(a.Process.Cgroup)
	}
	return n + headBound + newWriterBound + len(a.Host) + len(a.Path), false
}

// reserve makes room for n more bytes of data and heads.
func (b *Builder) reserve(n int) bool {
	if b.buf == nil {
		b.buf = dirty.Make(b.max)[:HeaderSize]
	}
	total := len(b.buf) + len(b.heads) + n
	if total <= b.max {
		return true
	}
	if b.records > 0 || total > MaxBatch {
		return false
	}
	if total > cap(b.buf) {
		b.buf = dirty.Make(total)[:HeaderSize]
	}
	return true
}

// head appends the head of a record of n bytes.
func (b *Builder) head(a *Attr, n int, same bool) {
	at := len(b.heads)
	b.heads = append(b.heads, 0)
	ctl := byte(ctlSame)
	if !same {
		ctl = b.writer(writer{a.Host, a.Path, a.PID, a.UID, a.GID, a.Process})
	}
	if a.Flags != 0 {
		ctl |= ctlFlags
		b.heads = binary.AppendUvarint(b.heads, uint64(a.Flags))
	}
	if n != b.lastLen {
		ctl |= ctlLen
		b.heads = binary.AppendUvarint(b.heads, uint64(n))
		b.lastLen = n
	}
	if a.Time != b.lastTime {
		ctl |= ctlTime
		b.heads = binary.AppendVarint(b.heads, a.Time-b.lastTime)
		b.lastTime = a.Time
	}
	b.heads[at] = ctl
}

// writer appends a reference to w, or its definition, and makes it the last one.
func (b *Builder) writer(w writer) byte {
	b.last, b.haveWriter, b.host = w, true, w.host
	for i := range b.recent {
		if r := &b.recent[i]; r.ok && r.w == w {
			b.heads = binary.AppendUvarint(b.heads, uint64(r.n))
			return ctlKnown
		}
	}
	n, known := b.writers[w]
	if !known {
		n = uint32(len(b.writers))
		b.writers[w] = n
	}
	b.recent[b.slot%4] = recent{w: w, n: n, ok: true}
	b.slot++
	if known {
		b.heads = binary.AppendUvarint(b.heads, uint64(n))
		return ctlKnown
	}
	b.string(w.host)
	b.string(w.path)
	b.heads = binary.AppendUvarint(b.heads, uint64(w.pid))
	b.heads = binary.AppendUvarint(b.heads, uint64(w.uid))
	b.heads = binary.AppendUvarint(b.heads, uint64(w.gid))
	if w.proc == nil {
		return ctlNew
	}
	b.haveProc = true
	b.string(w.proc.Exe)
	b.string(w.proc.Cgroup)
	return ctlNewProc
}

// string appends the number of s, and s itself when the number is new.
func (b *Builder) string(s string) {
	n, known := b.strings[s]
	if !known {
		n = uint32(len(b.strings))
		b.strings[s] = n
	}
	b.heads = binary.AppendUvarint(b.heads, uint64(n))
	if !known {
		b.heads = binary.AppendUvarint(b.heads, uint64(len(s)))
		b.heads = append(b.heads, s...)
	}
}

// Len returns how long the sealed bytes would be now, uncompressed; 0 for an empty batch.
func (b *Builder) Len() int {
	if b.records == 0 {
		return 0
	}
	return len(b.buf) + len(b.heads)
}

// Records returns the number of records added since the last Seal or Reset.
func (b *Builder) Records() int { return int(b.records) }

// Payload returns the bytes of those records.
func (b *Builder) Payload() int {
	if b.records == 0 {
		return 0
	}
	return len(b.buf) - HeaderSize
}

// Seal ends the batch under the name id and returns it, with the host of its records in
// the envelope; the Builder is empty then.
// The caller owns the bytes: the Builder keeps no reference. A batch that fills its
// buffer takes the buffer along, a smaller or compressed one has a slice of its size, so
// that a queue of small batches does not hold large buffers. No buffer ever comes
// back (the queue holds it for a time nobody knows); the garbage collector has it.
func (b *Builder) Seal(id batch.ID, sealedAt int64) batch.Sealed {
	if b.buf == nil {
		b.buf = dirty.Make(b.max)[:HeaderSize]
	}
	h := header{
		version: versionOld, id: id, time: sealedAt, records: b.records,
		heads: uint32(len(b.heads)), payload: uint64(len(b.buf) - HeaderSize),
	}
	if b.haveProc {
		h.version = Version
	}
	data := b.pack(&h, append(b.buf, b.heads...))
	s := batch.Sealed{
		ID: id, CRC: batch.Checksum(data), Records: h.records, Payload: h.payload, Time: sealedAt, Host: b.host, Data: data,
	}
	b.Reset()
	return s
}

// pack returns data, the uncompressed bytes but for the header, as they are given away.
func (b *Builder) pack(h *header, data []byte) []byte {
	if packed := compress(b.codec, h, data); packed != nil {
		return packed
	}
	h.put(data)
	if len(data) < cap(data)/4*3 {
		data = append([]byte(nil), data...)
		return data[:len(data):len(data)]
	}
	b.buf = nil
	return data
}

// Held returns the bytes of the buffer that a Builder has.
func (b *Builder) Held() int { return cap(b.buf) }

// Release gives back the buffer of a Builder without records, which is as long as a whole
// batch. The next Add or Space takes a new one.
func (b *Builder) Release() {
	if b.records == 0 {
		b.buf, b.heads = nil, nil
	}
}

// Reset forgets what was added since the last Seal.
func (b *Builder) Reset() {
	if cap(b.buf) > b.max+b.max/2 { // grown for one long record
		b.buf = nil
	}
	if b.buf != nil {
		b.buf = b.buf[:HeaderSize]
	}
	b.heads = b.heads[:0]
	clear(b.writers)
	clear(b.strings)
	b.recent = [4]recent{}
	b.last, b.haveWriter, b.haveProc, b.host = writer{}, false, false, ""
	b.records, b.lastLen, b.lastTime = 0, 0, 0
}
