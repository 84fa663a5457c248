package plugin

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"time"

	"github.com/bmatcuk/doublestar/v4"

	"ftfuse/internal/batch"
	"ftfuse/internal/record"
	"ftfuse/internal/template"
	"ftfuse/queue"
)

// Bounds of a feed.
const (
	maxSources = 1 << 14  // (host, path) pairs of which it is remembered whether they match
	maxLanes   = 1 << 12  // lanes of which it is remembered what was given
	maxHeld    = 80 << 20 // bytes of unfinished lines; more of a line goes out as it is
	heldLine   = 4 << 10  // that one counts for beside its text: its names, its places in maps
	heldBatch  = 64       // and each batch that has a part of it, in the feed and in the runner
)

// holdFor is how long an unfinished line waits for its next piece. Tests change it.
var holdFor = 60 * time.Second

// unit is what one batch of the queue is for a plugin: whole lines, perhaps none.
type unit struct {
	seq     uint64 // of the batch
	segs    [][]byte
	bytes   int64
	lines   uint64
	records uint64

	// A line that travels in pieces goes out in the unit of its last piece. holds counts the
	// lines that this batch has a piece of which is not in the unit; releases names, for each
	// piece of an earlier batch that is, that batch.
	holds    int
	releases []uint64
}

func (u *unit) add(b []byte) {
	if len(b) > 0 {
		u.segs = append(u.segs, b)
		u.bytes += int64(len(b))
	}
}

type source struct{ host, path string }

// writer is whose line a piece is: two mounts may call their host by one name.
type writer struct {
	source
	origin batch.Origin
}

// piece is the beginning of a line whose end has not come.
type piece struct {
	data  []byte
	raw   bool     // binary, and given as it is: no line
	cost  int64    // of it in counters.held
	seqs  []uint64 // batches that have a part of it
	since time.Time
}

// feed makes units of the batches of a queue. It belongs to one goroutine.
type feed struct {
	p      *Plugin
	log    *slog.Logger
	count  *counters
	format *template.Renderer
	fields template.Fields
	exact  bool

	reader record.Reader
	wanted map[source]bool
	given  map[batch.Lane]*batch.Ranges
	pieces map[writer]*piece

	u     *unit
	text  []byte // of the unit, where lines are formatted
	vals  template.Values
	lines uint64 // of the batch, whether they match or not
}

// newFeed compiles the format of p.
func newFeed(p *Plugin, zone *time.Location, count *counters, log *slog.Logger) (*feed, error) {
	t, err := template.Compile(template.Format, p.Format, p.Time)
	if err != nil {
		return nil, err
	}
	if !doublestar.ValidatePattern(p.Hosts) || !doublestar.ValidatePattern(p.Path) {
		return nil, fmt.Errorf("bad glob in hosts %q or path %q", p.Hosts, p.Path)
	}
	return &feed{
		p: p, log: log, count: count, format: t.Bind(zone), fields: t.Fields(), exact: t.Exact(),
		wanted: map[source]bool{}, given: map[batch.Lane]*batch.Ranges{}, pieces: map[writer]*piece{},
	}, nil
}

// run gives the units of cur's batches to out, in order, until ctx ends or the queue fails.
func (f *feed) run(ctx context.Context, cur *queue.Cursor, out chan<- *unit) error {
	for {
		u, err := f.next(ctx, cur)
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
		select {
		case out <- u:
		case <-ctx.Done():
			return nil
		}
	}
}

// next waits for a batch, or until the first unfinished line has waited for long enough.
func (f *feed) next(ctx context.Context, cur *queue.Cursor) (*unit, error) {
	limited, due := ctx, f.due()
	if !due.IsZero() {
		var cancel context.CancelFunc
		limited, cancel = context.WithDeadline(ctx, due)
		defer cancel()
	}
	item, err := cur.Next(limited)
	if err != nil && ctx.Err() == nil && errors.Is(err, context.DeadlineExceeded) {
		return f.expire(time.Now()), nil
	}
	if err != nil {
		return nil, err
	}
	return f.unit(item), nil
}

// due is when an unfinished line is given up; zero: there is none.
func (f *feed) due() (due time.Time) {
	for _, h := range f.pieces {
		if at := h.since.Add(holdFor); due.IsZero() || at.Before(due) {
			due = at
		}
	}
	return due
}

// expire makes a unit without a batch of the unfinished lines that waited too long.
func (f *feed) expire(now time.Time) *unit {
	f.begin(0)
	for s, h := range f.pieces {
		if now.Sub(h.since) >= holdFor {
			f.giveUp(s, h)
		}
	}
	return f.end()
}

func (f *feed) begin(seq uint64) {
	f.u, f.text, f.lines = &unit{seq: seq}, nil, 0
}

// end finishes the unit.
func (f *feed) end() *unit {
	u := f.u
	f.flushText()
	for _, s := range u.segs {
		u.lines += uint64(bytes.Count(s, newline))
	}
	f.u = nil
	return u
}

// unit makes the unit of a batch. What cannot be read is counted and left out.
func (f *feed) unit(item queue.Item) *unit {
	f.begin(item.Seq)
	if f.again(item.Batch.ID) {
		return f.end()
	}
	if err := f.records(&item.Batch); err != nil {
		f.count.unreadable.Add(1)
		f.log.Error("a batch that cannot be read is not given to a plugin", "plugin", f.p.Rule, "batch", item.Batch.ID.String(), "error", err)
	}
	return f.end()
}

// again reports whether the batch was given before: a relay queues a copy that came by
// another way once more.
func (f *feed) again(id batch.ID) bool {
	g := f.given[id.Lane]
	if g == nil {
		if len(f.given) >= maxLanes {
			clear(f.given)
		}
		g = &batch.Ranges{}
		f.given[id.Lane] = g
	}
	return !g.Add(id.N)
}

// records adds the records of a batch that the plugin is to have.
func (f *feed) records(b *batch.Sealed) error {
	if err := f.reader.Reset(*b); err != nil {
		return err
	}
	f.vals = template.Values{ID: b.ID}
	for {
		rec, err := f.reader.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if rec.Host != b.Host {
			f.count.foreign.Add(1)
			continue
		}
		base := f.lines
		ends := len(rec.Data) == 0 && rec.Flags&record.PieceLast != 0
		if f.fields&template.Seq != 0 {
			f.lines += countLines(rec.Data)
			if ends { // with json it is one
				f.lines++
			}
		}
		if (ends || len(rec.Data) > 0 || rec.Flags&record.Break != 0) && f.wants(source{rec.Host, rec.Path}) {
			f.vals.Number = base + 1
			f.record(&rec)
		}
	}
}

func (f *feed) wants(s source) bool {
	ok, known := f.wanted[s]
	if !known {
		if len(f.wanted) >= maxSources {
			clear(f.wanted)
		}
		// "*" is every host, also one that calls itself "a/b".
		ok = (f.p.Hosts == "*" || doublestar.MatchUnvalidated(f.p.Hosts, s.host)) && doublestar.MatchUnvalidated(f.p.Path, s.path)
		f.wanted[s] = ok
	}
	return ok
}

// record adds one record: whole lines, but for the pieces of a long one.
func (f *feed) record(rec *record.Record) {
	f.u.records++
	f.vals.Host, f.vals.Path = rec.Host, rec.Path
	f.vals.PID, f.vals.UID, f.vals.GID, f.vals.Time = rec.PID, rec.UID, rec.GID, rec.Time
	f.vals.Exe, f.vals.Cgroup = rec.Exe(), rec.Cgroup()
	if f.format.Template().JSON() {
		if len(rec.Data) > 0 || rec.Flags&record.PieceLast != 0 {
			f.objects(rec)
		}
		return
	}
	s := writer{source{rec.Host, rec.Path}, f.vals.ID.Lane.Origin}
	h := f.pieces[s]
	cont := rec.Flags&(record.PieceMiddle|record.PieceLast) != 0 && rec.Flags&record.Break == 0
	if !cont && len(rec.Data) == 0 && rec.Flags&record.PieceLast != 0 { // h is the line that cut off the one that ends
		return
	}
	if h != nil && !cont {
		f.giveUp(s, h)
		h = nil
	}
	if len(rec.Data) == 0 {
		f.finish(s, h)
		return
	}
	if cont && h == nil {
		f.count.split.Add(1)
	}
	unfinished := rec.Flags&(record.PieceFirst|record.PieceMiddle) != 0
	if f.exact && rec.Flags&record.Binary != 0 {
		f.raw(s, h, rec.Data, unfinished)
		return
	}
	if f.exact && h == nil && !unfinished {
		f.flushText()
		f.u.add(rec.Data)
		if rec.Data[len(rec.Data)-1] != '\n' {
			f.u.add(newline)
		}
		return
	}
	for rest := rec.Data; len(rest) > 0; f.vals.Number++ {
		line, eol, tail, whole := cutLine(rest)
		rest = tail
		if !whole && unfinished {
			f.hold(s, h, line, false)
			return
		}
		if h != nil {
			f.release(s, h)
			h = nil
		} else {
			f.text = f.format.AppendBefore(f.text, &f.vals)
		}
		f.line(line)
		f.text = f.format.AppendAfter(f.text, &f.vals)
		f.text = append(f.text, eol...)
	}
}

// raw adds a binary record as it is, or holds it while its end has not come; h is what there is
// of it.
func (f *feed) raw(s writer, h *piece, data []byte, unfinished bool) {
	if unfinished {
		f.hold(s, h, data, true)
		return
	}
	if h != nil {
		f.release(s, h)
	}
	f.flushText()
	f.u.add(data)
}

// finish ends what is held of a line or a binary record: its last piece has no bytes, as where
// all of it had left when its writer said that this was the end.
func (f *feed) finish(s writer, h *piece) {
	if h == nil {
		return
	}
	f.release(s, h)
	if !h.raw {
		f.text = append(f.format.AppendAfter(f.text, &f.vals), '\n')
	}
}

// objects adds a JSON object for each line of the record, each piece of a long one, or, in
// binary mode, the record, or an end without bytes.
func (f *feed) objects(rec *record.Record) {
	for rest, first := rec.Data, true; first || len(rest) > 0; first = false {
		line, eol, tail := rest, newline, rest[len(rest):]
		if rec.Flags&record.Binary == 0 {
			line, eol, tail, _ = cutLine(rest)
		}
		rest = tail
		f.vals.Flags = record.FlagNames(record.LineFlags(rec.Flags, first, len(rest) == 0))
		f.text = f.format.Append(f.text, &f.vals, line)
		f.text = append(f.text, eol...)
		f.vals.Number++
	}
}

// line adds the bytes of a line, where the format has them.
func (f *feed) line(b []byte) {
	if f.fields&template.Line != 0 {
		f.text = append(f.text, b...)
	}
}

// hold keeps a piece of a line, or of a record that is raw; h is what there is of it.
func (f *feed) hold(s writer, h *piece, b []byte, raw bool) {
	if h == nil {
		h = &piece{data: f.format.AppendBefore(nil, &f.vals), raw: raw, since: time.Now()}
		f.pieces[s] = h
	}
	if !h.raw { // a record goes on for as long as its file is open
		h.since = time.Now()
	}
	if f.fields&template.Line != 0 {
		h.data = append(h.data, b...)
	}
	if n := len(h.seqs); n == 0 || h.seqs[n-1] != f.u.seq {
		h.seqs = append(h.seqs, f.u.seq)
		f.u.holds++
	}
	was := h.cost
	h.cost = int64(heldLine + len(h.data) + heldBatch*len(h.seqs))
	if f.count.held.Add(h.cost-was) > maxHeld {
		f.giveUp(s, h)
	}
}

// release adds what was held of a line, whose end follows.
func (f *feed) release(s writer, h *piece) {
	f.flushText()
	f.u.add(h.data)
	f.u.releases = append(f.u.releases, h.seqs...)
	f.count.held.Add(-h.cost)
	delete(f.pieces, s)
}

// giveUp makes a line of its own of what was held of one; what is raw stays as it is.
func (f *feed) giveUp(s writer, h *piece) {
	f.release(s, h)
	if !h.raw {
		f.u.add(newline)
	}
	f.count.split.Add(1)
}

// flushText makes a segment of the formatted text so far.
func (f *feed) flushText() {
	f.u.add(f.text)
	f.text = f.text[len(f.text):]
}

var (
	newline  = []byte{'\n'}
	carriage = []byte("\r\n")
)

// countLines counts the lines of a record; an unterminated end is one.
func countLines(data []byte) uint64 {
	n := uint64(bytes.Count(data, newline))
	if len(data) > 0 && data[len(data)-1] != '\n' {
		n++
	}
	return n
}

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
