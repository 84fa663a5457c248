package sink

import (
	"bytes"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"sync"

	"ftfuse/internal/batch"
	"ftfuse/internal/record"
	"ftfuse/internal/template"
)

// Sizes of a plan's own memory.
const (
	minChunk   = 512      // copied bytes of a file are kept in chunks of this size,
	chunkBytes = 64 << 10 // which doubles up to this
	smallBytes = 256      // shorter pieces of data are copied together rather than pointed to
	maxRoutes  = 1 << 14  // (host, path) pairs a planner remembers
)

// plan is what one batch writes: for each file the pieces of it, in order. Most of them
// point into the batch's data, which must stay as it is. It depends on nothing but the
// batch and the set; the one byte that the state of the file's end may add in front is
// in lead.
type plan struct {
	files   []planFile
	chunks  []*[chunkBytes]byte // of the pool
	memory  int64               // of all chunks
	data    int64               // length of the batch's data, expanded, which it keeps in memory
	records uint64
	noMatch uint64 // records that match no output, and their bytes
	noBytes uint64
}

// planFile is one file's part of a plan.
type planFile struct {
	out     *out // the first output that named it
	path    string
	name    string // below out.Dir
	segs    [][]byte
	n       int64
	ended   []lineEnd // before everything else
	lead    lead      // once begun
	begun   bool
	after   lineState // once begun; see join
	records uint32
	split   uint64 // pieces of long lines that could not be joined with the piece before
	dataEnd int    // where the last segment ends in the batch's data; -1: elsewhere
	chunk   []byte // copied bytes, the newest
	copied  bool   // the last segment ends where chunk does
}

// lineEnd ends source's long line, where the file's end is in the middle of it.
type lineEnd struct {
	source uint32 // its hash
	any    bool   // or any other line
	text   []byte
}

func (e *lineEnd) fits(s lineState) bool { return s.open && (e.any || s.mid == e.source) }

// join returns what stands in front of the part's segments where the file's end is as before
// says, how the part leaves the file, and whether it begins with a piece that was left alone.
func (pf *planFile) join(before lineState) (front []byte, after lineState, split bool) {
	for i := range pf.ended {
		if e := &pf.ended[i]; e.fits(before) {
			front, before = append(front, e.text...), lineState{}
		}
	}
	if !pf.begun {
		return front, before, false
	}
	b, split := pf.lead.bytes(before)
	return append(front, b...), pf.after, split
}

// expected is the state of the file's end that the part goes on from, where there is no file to look
// at: in the middle of the line that it begins with a piece or the end of.
func (pf *planFile) expected() lineState {
	switch {
	case len(pf.ended) > 0:
		return lineState{open: true, mid: pf.ended[0].source}
	case pf.begun && pf.lead.cont:
		return lineState{open: true, mid: pf.lead.source}
	}
	return lineState{}
}

// lead is what stands in front of a file's first bytes, depending on the state of the file.
type lead struct {
	ends   bool   // a line end, when the file does not end with one
	cont   bool   // unless the file's end is in the middle of source's line
	source uint32 // hash of the source, when cont
	prefix []byte // of the format, when not in the middle of source's line
}

// bytes returns what goes in front, and whether a piece was left alone.
func (l *lead) bytes(before lineState) (b []byte, split bool) {
	if l.cont && before.open && before.mid == l.source {
		return nil, false
	}
	if l.ends && before.open {
		b = append(b, '\n')
	}
	return append(b, l.prefix...), l.cont
}

// planner makes plans. It belongs to one goroutine at a time.
type planner struct {
	set       *set
	reader    record.Reader
	renderers []renderer
	routes    map[source]*route
	dynamic   map[string]int // path of a file of this batch -> its index in the plan
	serial    uint64         // of the batch, for target.serial

	p       *plan
	data    []byte // the batch's, expanded
	lines   uint64 // of the batch so far
	vals    template.Values
	scratch []byte
	suffix  []byte
	names   flagNames
}

type source struct {
	host, path string
	route      uint32 // of the batch's lane, where outputs are told apart by it
}

type renderer struct{ file, format *template.Renderer }

// route is where the records of one source go.
type route struct {
	hash    uint32
	targets []target
}

type target struct {
	out    *out
	name   string // when the output is static
	serial uint64
	index  int // of the file in the plan of batch serial
}

func newPlanner(s *set) *planner {
	pl := &planner{set: s, routes: map[source]*route{}, dynamic: map[string]int{}}
	for _, o := range s.outputs {
		pl.renderers = append(pl.renderers, renderer{o.file.Bind(s.zone), o.format.Bind(s.zone)})
	}
	return pl
}

// build makes the plan of b. The error is record.ErrMalformed, record.ErrVersion or
// ErrHost.
func (pl *planner) build(b batch.Sealed) (*plan, error) {
	if err := pl.reader.Reset(b); err != nil {
		return nil, err
	}
	pl.data = pl.reader.Bytes()
	pl.p = &plan{data: int64(len(pl.data))}
	pl.serial++
	pl.lines = 0
	pl.vals = template.Values{ID: b.ID}
	clear(pl.dynamic)
	if len(pl.routes) > maxRoutes {
		clear(pl.routes)
	}
	var last source
	var rt *route
	var lane uint32
	if pl.set.members != nil {
		lane = b.ID.Lane.Route
	}
	for {
		rec, err := pl.reader.Next()
		if errors.Is(err, io.EOF) {
			return pl.p, nil
		}
		if err != nil {
			return nil, err
		}
		if rt == nil || last.path != rec.Path || last.host != rec.Host {
			if rec.Host != b.Host {
				return nil, fmt.Errorf("%w: batch %v of %q holds a record of %q", ErrHost, b.ID, b.Host, rec.Host)
			}
			last = source{rec.Host, rec.Path, lane}
			rt = pl.route(last)
		}
		pl.record(&rec, rt)
	}
}

// route finds or makes the route of a source.
func (pl *planner) route(s source) *route {
	if rt := pl.routes[s]; rt != nil {
		return rt
	}
	h := crc32.Checksum([]byte(s.host), castagnoli)
	h = crc32.Update(h, castagnoli, append([]byte{0}, s.path...))
	rt := &route{hash: max(h, 1)}
	pl.vals.Host, pl.vals.Path = s.host, s.path
	var members []string
	if pl.set.members != nil {
		members = pl.set.members(s.route)
	}
	for i, o := range pl.set.outputs {
		if !o.matches(s.host, s.path, members) {
			continue
		}
		t := target{out: o}
		if o.static {
			t.name = string(pl.renderers[i].file.Append(nil, &pl.vals, nil))
		}
		rt.targets = append(rt.targets, t)
	}
	pl.routes[s] = rt
	return rt
}

func (pl *planner) record(rec *record.Record, rt *route) {
	pl.p.records++
	if len(rt.targets) == 0 {
		pl.p.noMatch++
		pl.p.noBytes += uint64(len(rec.Data))
	}
	pl.vals.Host, pl.vals.Path = rec.Host, rec.Path
	pl.vals.PID, pl.vals.UID, pl.vals.GID, pl.vals.Time = rec.PID, rec.UID, rec.GID, rec.Time
	pl.vals.Exe, pl.vals.Cgroup = rec.Exe(), rec.Cgroup()
	base := pl.lines
	for i := range rt.targets {
		if t := &rt.targets[i]; len(rec.Data) > 0 || pl.ends(t.out, rec) {
			pl.vals.Number = base + 1
			pl.add(pl.file(t), t.out, rec, rt.hash)
		}
	}
	if pl.set.numbers {
		pl.lines = base + countLines(rec.Data)
		if len(rec.Data) == 0 && pl.set.ends && rec.Flags&record.PieceLast != 0 {
			pl.lines++ // with json it is one
		}
	}
}

// ends reports whether a record without bytes shows in o: the end of a long line, or of a binary
// record, all of which had left in pieces when its file was flushed or closed, and what is not to go
// on in another writer's line. (The end of a line that such a one has cut off is not to cut that.)
func (pl *planner) ends(o *out, rec *record.Record) bool {
	switch {
	case !pl.set.ends:
		return false
	case rec.Flags&record.Break != 0 && !o.format.JSON():
		return rec.Flags&record.PieceLast == 0
	case rec.Flags&record.PieceLast == 0:
		return false
	}
	return !o.exact || o.mixes && rec.Flags&record.Binary == 0
}

// countLines counts the lines of a record; an unterminated end is one.
func countLines(data []byte) uint64 {
	n := uint64(bytes.Count(data, newline))
	if len(data) > 0 && data[len(data)-1] != '\n' {
		n++
	}
	return n
}

// file returns the plan's entry for the file that t names for this record.
func (pl *planner) file(t *target) *planFile {
	if t.out.static && t.serial == pl.serial {
		return &pl.p.files[t.index]
	}
	name := t.name
	key := pl.scratch[:0]
	key = append(append(key, t.out.Dir...), '/')
	if t.out.static {
		key = append(key, name...)
	} else {
		key = pl.renderers[t.out.index].file.Append(key, &pl.vals, nil)
	}
	pl.scratch = key
	i, ok := pl.dynamic[string(key)]
	if !ok {
		path := string(key)
		i = len(pl.p.files)
		pl.dynamic[path] = i
		pl.p.files = append(pl.p.files, planFile{out: t.out, path: path, name: path[len(t.out.Dir)+1:], dataEnd: -1})
	}
	t.serial, t.index = pl.serial, i
	return &pl.p.files[i]
}

var newline = []byte{'\n'}

// add appends one record to one file's part.
func (pl *planner) add(pf *planFile, o *out, rec *record.Record, hash uint32) {
	pf.records++
	if o.format.JSON() {
		pl.objects(pf, o, rec)
		return
	}
	if len(rec.Data) == 0 {
		pl.end(pf, o, rec, hash)
		return
	}
	first := !pf.begun
	cont := rec.Flags&(record.PieceMiddle|record.PieceLast) != 0 && rec.Flags&record.Break == 0
	joined := pf.begun && cont && pf.after.open && pf.after.mid == hash
	ends := !o.exact || o.mixes || rec.Flags&record.Break != 0
	switch {
	case first:
		pf.begun = true
		pf.lead = lead{ends: ends, cont: cont && ends, source: hash}
	case ends && !joined && pf.after.open:
		pl.copy(pf, newline)
		fallthrough
	case ends && !joined:
		if cont {
			pf.split++
		}
	}
	if o.exact {
		pl.exact(pf, o, rec, hash)
	} else {
		pl.formatted(pf, o, rec, hash, first, joined)
	}
}

// end ends source's long line with what stands behind one, where the file is in the middle of it.
// (Of a line that another source's has ended nothing is left to be said.) With Break it ends the
// line of another writer as what follows it would: that need not say so again.
func (pl *planner) end(pf *planFile, o *out, rec *record.Record, hash uint32) {
	e := lineEnd{source: hash, text: pl.suffix[:0]}
	if rec.Flags&record.Break != 0 {
		e.any = o.exact && !o.mixes // else any other begins on a line of its own anyway
	} else if !o.exact {
		e.text = pl.renderers[o.index].format.AppendAfter(e.text, &pl.vals)
	}
	e.text = append(e.text, '\n')
	pl.suffix = e.text
	switch {
	case !pf.begun:
		e.text = bytes.Clone(e.text)
		pf.ended = append(pf.ended, e)
	case e.fits(pf.after):
		pl.copy(pf, e.text)
		pf.after = lineState{}
	}
}

// exact appends the record's bytes as they are.
func (pl *planner) exact(pf *planFile, o *out, rec *record.Record, hash uint32) {
	pl.point(pf, rec.Data, rec.Off)
	ended := rec.Data[len(rec.Data)-1] == '\n'
	unfinished := rec.Flags&(record.PieceFirst|record.PieceMiddle) != 0
	raw := rec.Flags&record.Binary != 0
	switch {
	case ended:
		pf.after = lineState{}
	case unfinished:
		pf.after = lineState{open: true, mid: hash, raw: raw}
	case o.mixes && !raw:
		pl.copy(pf, newline)
		pf.after = lineState{}
	default:
		pf.after = lineState{open: true, raw: raw}
	}
}

// formatted appends each line of the record by the output's format; first says that nothing of the
// file's part is before it.
func (pl *planner) formatted(pf *planFile, o *out, rec *record.Record, hash uint32, first, joined bool) {
	r := pl.renderers[o.index].format
	f := o.format.Fields()
	perLine := f&template.Seq != 0
	prefix := r.AppendBefore(pl.scratch[:0], &pl.vals)
	pl.scratch = prefix
	pl.suffix = r.AppendAfter(pl.suffix[:0], &pl.vals)
	if first {
		pf.lead.prefix = bytes.Clone(prefix)
		joined = true // the lead has it
	}
	for rest := rec.Data; len(rest) > 0; {
		line, eol, tail, whole := cutLine(rest)
		rest = tail
		if perLine && !joined {
			pl.scratch = r.AppendBefore(pl.scratch[:0], &pl.vals)
			prefix = pl.scratch
		}
		if !joined {
			pl.copy(pf, prefix)
		}
		joined = false
		if f&template.Line != 0 {
			pl.copy(pf, line)
		}
		if !whole && rec.Flags&(record.PieceFirst|record.PieceMiddle) != 0 {
			pf.after = lineState{open: true, mid: hash}
			return
		}
		if perLine {
			pl.suffix = r.AppendAfter(pl.suffix[:0], &pl.vals)
		}
		pl.copy(pf, pl.suffix)
		pl.copy(pf, eol)
		pl.vals.Number++
	}
	pf.after = lineState{}
}

var carriage = []byte("\r\n")

// cutLine cuts the first line off: without its line end, the line end that is to follow
// it, and the rest. A line without an end is not whole and gets a line feed.
func cutLine(b []byte) (line, eol, rest []byte, whole bool) {
	i := bytes.IndexByte(b, '\n')
	switch {
	case i < 0:
		return b, newline, nil, false
	case i > 0 && b[i-1] == '\r':
		return b[:i-1], carriage, b[i+1:], true
	}
	return b[:i], newline, b[i+1:], true
}

// point appends a part of the batch's data, which begins at off of it. What lies behind
// the part before is joined with it; short parts that lie apart are copied together.
func (pl *planner) point(pf *planFile, part []byte, off int) {
	k := len(pf.segs) - 1
	switch {
	case pf.dataEnd == off:
		pf.segs[k] = pl.data[off-len(pf.segs[k]) : off+len(part)]
	case len(part) < smallBytes && k >= 0 && len(pf.segs[k]) < smallBytes, len(part) < smallBytes && pf.copied:
		pl.copy(pf, part)
		return
	default:
		pf.segs = append(pf.segs, part)
	}
	pf.n += int64(len(part))
	pf.dataEnd, pf.copied = off+len(part), false
}

// copy appends a copy of b.
func (pl *planner) copy(pf *planFile, b []byte) {
	pf.n += int64(len(b))
	pf.dataEnd = -1
	for len(b) > 0 {
		if len(pf.chunk) == cap(pf.chunk) {
			pf.chunk, pf.copied = pl.p.newChunk(2*cap(pf.chunk)), false
		}
		at := len(pf.chunk)
		n := min(cap(pf.chunk)-at, len(b))
		pf.chunk = append(pf.chunk, b[:n]...)
		b = b[n:]
		if k := len(pf.segs) - 1; pf.copied {
			pf.segs[k] = pf.segs[k][:len(pf.segs[k])+n]
		} else {
			pf.segs = append(pf.segs, pf.chunk[at:])
		}
		pf.copied = true
	}
}

var chunkPool = sync.Pool{New: func() any { return new([chunkBytes]byte) }}

// newChunk returns an empty buffer of about that size: small for the many files of which
// a batch has little, large ones from a pool.
func (p *plan) newChunk(size int) []byte {
	if size < chunkBytes {
		size = max(size, minChunk)
		p.memory += int64(size)
		return make([]byte, 0, size)
	}
	c := chunkPool.Get().(*[chunkBytes]byte)
	p.chunks = append(p.chunks, c)
	p.memory += chunkBytes
	return c[:0]
}

// release gives the plan's own memory back; nobody may use the plan any more.
func (p *plan) release() {
	for _, c := range p.chunks {
		chunkPool.Put(c)
	}
	p.chunks, p.files = nil, nil
}

// bytes returns how much memory the plan holds. The batch's data counts, although others
// may hold it too: the queue forgets what it has in memory of a long backlog.
func (p *plan) bytes() int64 { return p.memory + p.data + int64(len(p.files))*256 }
