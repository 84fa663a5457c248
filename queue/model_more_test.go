package queue

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"

	"ftfuse/internal/batch"
)

// modelReplace is a Txn that puts new in the place of old.
type modelReplace struct {
	txn      int
	old, new uint64
	before   []*modelCursor // had acked the old one before it was submitted
}

func newModelCursor(name string) *modelCursor {
	return &modelCursor{name: name, acked: map[uint64]bool{}, maybe: map[uint64]bool{}, sure: map[uint64]bool{}, late: map[uint64]uint64{}}
}

func (m *model) wants(name string, lane batch.Lane) bool {
	return !m.picky.Load() || name != "b" || lane != testLane(2)
}

// add notes an entry that was submitted: who does not want it needs it not.
func (m *model) add(e Entry) {
	m.entries = append(m.entries, e)
	seq := uint64(len(m.entries))
	wanted := false
	for _, c := range m.cur {
		if !m.wants(c.name, e.Batch.ID.Lane) {
			c.acked[seq] = true
		} else {
			wanted = true
		}
	}
	if !wanted {
		m.lost[seq] = true
	}
}

// nextOrHead is Next, or NextHead and what the model knows of the bytes.
func (m *model) nextOrHead(c *modelCursor) Item {
	if m.r.IntN(2) == 0 {
		return mustNext(m.t, c.c)
	}
	h, err := c.c.NextHead(context.Background())
	if err != nil {
		m.t.Fatal(err)
	}
	e := m.entries[h.Seq-1]
	s := e.Batch
	if h.ID != s.ID || h.Size != int64(len(s.Data)) || h.Records != s.Records || h.Payload != s.Payload || h.Time != s.Time || h.Host != s.Host || !slices.Equal(h.Via, s.Via) {
		m.t.Fatalf("head of entry %d is %+v", h.Seq, h)
	}
	return Item{Seq: h.Seq, Entry: e}
}

// fetch reads again what was given, and what was not.
func (m *model) fetch(c *modelCursor) {
	seq := uint64(m.r.IntN(len(m.entries) + 2))
	if len(c.held) > 0 && m.r.IntN(4) > 0 {
		seq = c.held[m.r.IntN(len(c.held))]
	}
	it, ok, err := c.c.Fetch(context.Background(), seq)
	if err != nil {
		m.t.Fatal(err)
	}
	if want := slices.Contains(c.held, seq) && !c.acked[seq]; ok != want && (want || c.acked[seq]) {
		m.t.Fatalf("cursor %s fetches %d: %v, want %v", c.name, seq, ok, want)
	}
	if ok {
		m.same(it)
	}
}

// acked notes an ack, which counts for what took the entry's place since it was given.
func (m *model) acked(c *modelCursor, seq uint64) {
	c.acked[seq] = true
	if now, ok := c.late[seq]; ok {
		c.acked[now] = true
	}
}

// copyOnly says whether a cursor passes nothing on.
func (m *model) copyOnly(c *modelCursor) bool { return m.copies && c.name == "b" }

// oldToReplace returns a committed entry that somebody is to pass on, or 0.
func (m *model) oldToReplace() uint64 {
	m.q.mu.Lock()
	defer m.q.mu.Unlock()
	var can []uint64
	for seq := uint64(1); seq <= m.q.committed; seq++ {
		if m.q.owed(seq) {
			can = append(can, seq)
		}
	}
	if len(can) == 0 {
		return 0
	}
	if c := m.cur[m.r.IntN(len(m.cur))]; len(c.held) > 0 && m.q.owed(c.held[0]) {
		return c.held[0]
	}
	return can[m.r.IntN(len(can))]
}

// submitReplace submits the Txn; false where the queue has failed.
func (m *model) submitReplace(old uint64) (modelReplace, bool) {
	n := m.next[3] + 1
	e := testEntry(3, n, m.r.IntN(5000))
	number := len(m.kv)
	state := maps.Clone(m.kv[number-1])
	state["txn"] = fmt.Sprint(number)
	done := func(err error) {
		m.mu.Lock()
		defer m.mu.Unlock()
		if err == nil {
			m.done = number
		}
	}
	_, err := m.q.Submit(context.Background(), &Txn{Entries: []Entry{e}, Replace: []uint64{old}, Set: []KV{{"txn", []byte(state["txn"])}}, Done: done})
	if errors.Is(err, ErrFailed) {
		return modelReplace{}, false
	}
	if err != nil {
		m.t.Fatal(err)
	}
	m.next[3] = n
	m.entries = append(m.entries, e)
	m.kv = append(m.kv, state)
	m.after = append(m.after, len(m.entries))
	p := modelReplace{txn: number, old: old, new: uint64(len(m.entries))}
	for _, c := range m.cur {
		if c.acked[old] {
			p.before = append(p.before, c)
		}
	}
	return p, true
}

// replace puts an entry in the place of another; acks of the old one come in between and
// after it.
func (m *model) replace() {
	old := m.oldToReplace()
	if old == 0 {
		return
	}
	p, _ := m.submitReplace(old)
	if _, err := m.q.Submit(context.Background(), &Txn{Entries: []Entry{testEntry(3, p.new+1e6, 10)}, Replace: []uint64{old}}); !errors.Is(err, ErrGone) {
		m.t.Fatalf("entry %d is replaced twice: %v", old, err)
	}
	for _, c := range m.cur {
		if i := slices.Index(c.held, old); i >= 0 && m.r.IntN(2) == 0 {
			c.held = slices.Delete(c.held, i, i+1)
			c.c.Ack(old)
			c.acked[old] = true
		}
	}
	mustFlush(m.t, m.q)
	m.replacedNow(p)
	for _, c := range m.cur {
		if i := slices.Index(c.held, old); i >= 0 && m.r.IntN(2) == 0 {
			c.held = slices.Delete(c.held, i, i+1)
			c.c.Ack(old)
			m.acked(c, old)
		}
	}
}

// replacedNow does what the commit of p did.
func (m *model) replacedNow(p modelReplace) {
	for _, c := range m.cur {
		if m.copyOnly(c) {
			c.acked[p.new], c.sure[p.new] = true, true
			continue
		}
		for seq, was := range c.late {
			if was == p.old {
				c.late[seq] = p.new
			}
		}
		if slices.Contains(c.held, p.old) {
			c.late[p.old] = p.new
		}
		if c.acked[p.old] {
			c.acked[p.new] = true
		}
		if slices.Contains(p.before, c) { // else the ack may have come after the commit
			c.sure[p.new] = true
		}
		c.acked[p.old], c.sure[p.old] = true, true
	}
}

func (m *model) tryReplace() {
	old := m.oldToReplace()
	if old == 0 || slices.ContainsFunc(m.pending, func(p modelReplace) bool { return p.old == old }) {
		return
	}
	if p, ok := m.submitReplace(old); ok {
		m.pending = append(m.pending, p)
	}
}

// checkLost compares what the queue says it lost.
func (m *model) checkLost() {
	m.t.Helper()
	mustFlush(m.t, m.q)
	settled(m.q)
	checkParts(m.t, m.q)
	var sum Tally
	var most, least [4]batch.Ranges
	for seq, told := range m.lost {
		s := m.entries[seq-1].Batch
		sum.add(entryTally(&m.entries[seq-1], m.entries[seq-1].size()))
		if !told {
			continue
		}
		l := s.ID.Lane.Epoch.Counter - 1
		most[l].Add(s.ID.N)
		if s.ID.N >= m.merged[l] {
			least[l].Add(s.ID.N)
		}
	}
	if got := m.q.Stats().Losses; got[LostNoCursor] != sum || len(got) > 1 {
		m.t.Fatalf("losses are %+v, want %d batches: %+v", got, len(m.lost), sum)
	}
	for l := range most {
		var got batch.Ranges
		for _, x := range m.q.LostRanges(testLane(byte(l))) {
			for _, r := range x.Ranges.All() {
				got.AddRange(r)
			}
		}
		for n := uint64(1); n <= m.next[l]; n++ {
			if got.Contains(n) && !most[l].Contains(n) || !got.Contains(n) && least[l].Contains(n) {
				m.t.Fatalf("lost of lane %d is %v, want %v, at least %v", l, &got, &most[l], &least[l])
			}
		}
	}
}

// lists compares List, Verify and Export with the model.
func (m *model) lists() {
	mustFlush(m.t, m.q)
	c := m.cur[m.r.IntN(len(m.cur))]
	var want []uint64
	for seq := uint64(1); seq <= uint64(len(m.entries)); seq++ {
		if !c.acked[seq] {
			want = append(want, seq)
		}
	}
	var got []uint64
	if err := m.q.List(context.Background(), c.name, func(l Listed) error {
		if l.Err != nil || !slices.Contains(l.Waiting, c.name) || l.ID != m.entries[l.Seq-1].Batch.ID {
			return fmt.Errorf("listed %+v", l)
		}
		got = append(got, l.Seq)
		return nil
	}); err != nil {
		m.t.Fatal(err)
	}
	if !slices.Equal(got, want) {
		m.t.Fatalf("List(%s) gives %v, want %v", c.name, got, want)
	}
	if r, err := m.q.Verify(context.Background()); err != nil || r.Damaged() {
		m.t.Fatalf("verify: %+v, %v", r, err)
	}
	var out bytes.Buffer
	if sum, err := m.q.Export(context.Background(), &out, c.name); err != nil || sum.Batches != uint64(len(want)) || sum.Unreadable != 0 {
		m.t.Fatalf("export: %+v, %v; want %d batches", sum, err, len(want))
	}
	x, err := NewExportReader(&out)
	if err != nil {
		m.t.Fatal(err)
	}
	for _, seq := range want {
		s, err := x.Next()
		if err != nil {
			m.t.Fatal(err)
		}
		m.same(Item{Seq: seq, Entry: Entry{Batch: s, Note: m.entries[seq-1].Note}})
	}
	if _, err := x.Next(); err != io.EOF {
		m.t.Fatalf("behind the last batch: %v", err)
	}
}

func (m *model) drain() {
	mustFlush(m.t, m.q)
	for _, c := range m.cur {
		for seq := uint64(1); seq <= uint64(len(m.entries)); seq++ {
			if c.acked[seq] {
				continue
			}
			it := mustNext(m.t, c.c)
			if it.Seq != seq {
				m.t.Fatalf("cursor %s gave %d, want %d", c.name, it.Seq, seq)
			}
			m.same(it)
			c.c.Ack(seq)
		}
	}
}
