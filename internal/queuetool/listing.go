// Package queuetool is what `ftfuse queue` does with a queue, the same for a running role,
// which answers over its socket (Handler and Remote), and for the files of a stopped one:
//
//	running:  command ── Remote ── unix socket ── Handler ── queue.Queue
//	stopped:  command ──────────────────────────────────── queue.View
package queuetool

import (
	"context"
	"fmt"
	"io"
	"sort"
	"time"

	"ftfuse/internal/batch"
	"ftfuse/queue"
)

// Source is a queue that is only looked at: a queue.Queue or a queue.View.
type Source interface {
	Node() batch.Node
	Stats() queue.Stats
	List(ctx context.Context, cursor string, fn func(queue.Listed) error) error
	Export(ctx context.Context, w io.Writer, cursor string) (queue.Exported, error)
}

var (
	_ Source = (*queue.Queue)(nil)
	_ Source = (*queue.View)(nil)
)

// Listing is what stands in a queue, for people and as JSON. Payload is the bytes that
// programs wrote, Bytes what is stored for them.
type Listing struct {
	Node       string    `json:"node"`
	Time       time.Time `json:"time"`
	Cursors    []Part    `json:"cursors"`
	Segments   []Part    `json:"segments"`   // with batches that are needed
	Lanes      []Part    `json:"lanes"`      // in the order of their oldest batches
	Unreadable uint64    `json:"unreadable"` // batches that are needed and damaged
	Lost       []Lost    `json:"lost,omitzero"`
}

// Part is the needed batches of a cursor, a segment or a lane.
type Part struct {
	Name    string    `json:"name"`
	Host    string    `json:"host,omitzero"`    // of a lane
	Numbers string    `json:"numbers,omitzero"` // of a lane: its batches, as ranges
	Batches uint64    `json:"batches"`
	Records uint64    `json:"records"`
	Payload uint64    `json:"payload"`
	Bytes   int64     `json:"bytes"`
	Oldest  time.Time `json:"oldest,omitzero"` // when it was sealed, by its source's clock
	Newest  time.Time `json:"newest,omitzero"`
	NeedBy  []string  `json:"needed_by,omitzero"` // of a lane: cursors

	numbers batch.Ranges
	first   uint64
}

// Lost is what was lost since the queue was made, for one reason.
type Lost struct {
	Reason  string `json:"reason"`
	Batches uint64 `json:"batches"`
	Records uint64 `json:"records"`
	Payload uint64 `json:"payload"`
}

// List reads the heads of all batches that some cursor needs.
func List(ctx context.Context, s Source) (*Listing, error) {
	l := &Listing{Node: s.Node().String(), Time: time.Now()}
	cursors, segments, lanes := parts{}, parts{}, parts{}
	stats := s.Stats()
	for _, c := range stats.Cursors {
		cursors.get(c.Name, 0)
	}
	err := s.List(ctx, "", func(x queue.Listed) error {
		if x.Err != nil {
			l.Unreadable++
			return nil
		}
		for _, c := range x.Waiting {
			cursors.get(c, x.Seq).add(&x.Head)
		}
		segments.get(fmt.Sprintf("%016x.seg", x.Segment), x.Seq).add(&x.Head)
		p := lanes.get(x.ID.Lane.String(), x.Seq)
		p.add(&x.Head)
		p.Host = x.Host
		p.numbers.Add(x.ID.N)
		for _, c := range x.Waiting {
			p.need(c)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	l.Cursors, l.Segments, l.Lanes = cursors.sorted(byName), segments.sorted(byName), lanes.sorted(bySeq)
	for i := range l.Lanes {
		l.Lanes[i].Numbers = l.Lanes[i].numbers.String()
	}
	for reason, t := range stats.Losses {
		l.Lost = append(l.Lost, Lost{reason, t.Batches, t.Records, t.Payload})
	}
	sort.Slice(l.Lost, func(i, j int) bool { return l.Lost[i].Reason < l.Lost[j].Reason })
	return l, nil
}

// parts are parts by name.
type parts map[string]*Part

func (p parts) get(name string, seq uint64) *Part {
	x := p[name]
	if x == nil {
		x = &Part{Name: name, first: seq}
		p[name] = x
	}
	return x
}

func byName(a, b *Part) bool { return a.Name < b.Name }
func bySeq(a, b *Part) bool  { return a.first < b.first }

func (p parts) sorted(less func(a, b *Part) bool) []Part {
	out := make([]Part, 0, len(p))
	for _, x := range p {
		out = append(out, *x)
	}
	sort.Slice(out, func(i, j int) bool { return less(&out[i], &out[j]) })
	return out
}

func (p *Part) add(h *queue.Head) {
	p.Batches++
	p.Records += uint64(h.Records)
	p.Payload += h.Payload
	p.Bytes += h.Size
	t := time.Unix(0, h.Time)
	if p.Oldest.IsZero() || t.Before(p.Oldest) {
		p.Oldest = t
	}
	if t.After(p.Newest) {
		p.Newest = t
	}
}

func (p *Part) need(cursor string) {
	for _, c := range p.NeedBy {
		if c == cursor {
			return
		}
	}
	p.NeedBy = append(p.NeedBy, cursor)
}
