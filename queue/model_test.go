package queue

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"ftfuse/internal/batch"
	"ftfuse/internal/failpoint"
)

// model is what the queue must hold, kept in slices and maps.
type model struct {
	t    *testing.T
	r    *rand.Rand
	dir  string
	o    Options
	q    *Queue
	cur  []*modelCursor
	next [4]uint64 // batch number by lane; the last is that of replacements

	picky   atomic.Bool     // cursor b does not want lane 2
	copies  bool            // cursor b makes copies
	lost    map[uint64]bool // by seq: nobody needed it any more; false: but a copy
	merged  [4]uint64       // horizon by lane
	pending []modelReplace  // submitted before a crash

	entries []Entry             // by seq-1
	after   []int               // by txn: how many entries there are after it
	kv      []map[string]string // by txn: the state after it

	mu   sync.Mutex
	done int // txns whose Done said nil; they are called in order
}

type modelCursor struct {
	name  string
	c     *Cursor
	acked map[uint64]bool
	maybe map[uint64]bool // acked before a crash: may be given again
	sure  map[uint64]bool // acked in a commit that is on disk
	held  []uint64
	late  map[uint64]uint64 // what an ack of a held one counts for, too
	last  uint64            // given last since the last Rewind or reopen
	base  uint64            // what there was when it was added by SetCursors and begins; 0: it has begun
	later uint64            // that and one, where it was in CursorSet.Later and not in Again since
}

// TestModel runs random operations against the model. QUEUE_SEED repeats a run.
func TestModel(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	if s := os.Getenv("QUEUE_SEED"); s != "" {
		var err error
		if seed, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	rounds := 4
	if os.Getenv("FTFUSE_SOAK") != "" {
		rounds = 300
	}
	for i := range rounds {
		t.Run(fmt.Sprint(i), func(t *testing.T) { runModel(t, seed+uint64(i), 600) })
		if t.Failed() {
			return
		}
	}
}

func runModel(t *testing.T, seed uint64, ops int) {
	t.Logf("QUEUE_SEED=%d", seed)
	r := rand.New(rand.NewPCG(seed, 1))
	m := &model{t: t, r: r, dir: t.TempDir(), lost: map[uint64]bool{}, kv: []map[string]string{{}}, after: []int{0}}
	m.picky.Store(r.IntN(2) == 0)
	m.o = Options{
		SegmentBytes: 1 << (16 + r.IntN(5)), MemoryBytes: int64(1 + r.IntN(200<<10)), PendingBytes: 64 << 10, CommitBytes: int64(1 + r.IntN(64<<10)),
		CommitEvery: time.Duration(1+r.IntN(3000)) * time.Microsecond, IdleBytes: 32 << 10, IdleAfter: time.Millisecond, ReserveBytes: 1 << 16,
		Dedupe: true, Cursors: []string{"a", "b"}[:1+r.IntN(2)], cheapRanges: 1 + r.IntN(6), portion: 1 + r.IntN(9),
		Wants: func(name string, lane batch.Lane) bool { return m.wants(name, lane) },
	}
	if m.copies = r.IntN(2) == 0; m.copies {
		m.o.Copies = []string{"b"}
	}
	for _, name := range m.o.Cursors {
		m.cur = append(m.cur, newModelCursor(name))
	}
	m.open()
	for range ops {
		m.step()
	}
	m.reopen(false)
	m.drain()
	settled(m.q) // what only cursors needed that are gone
	if s := m.q.Stats(); s.Live != (Tally{}) {
		t.Fatalf("all is acked, stats say %+v", s)
	}
	m.checkLost()
	mustClose(t, m.q)
	m.q = nil
	checkBolt(t, m.dir)
}

func (m *model) open() {
	m.t.Helper()
	q, err := Open(m.dir, m.o)
	if err != nil {
		m.t.Fatal(err)
	}
	m.q = q
	for _, c := range m.cur {
		c.c = mustCursor(m.t, q, c.name)
		c.held, c.late, c.last, c.base = nil, map[uint64]uint64{}, 0, 0
	}
}

func (m *model) step() {
	switch x := m.r.IntN(100); {
	case x < 40:
		m.submit()
	case x < 42:
		m.duplicate()
	case x < 45:
		mustFlush(m.t, m.q)
	case x < 70:
		m.read(m.cur[m.r.IntN(len(m.cur))])
	case x < 74:
		m.fetch(m.cur[m.r.IntN(len(m.cur))])
	case x < 76:
		m.replace()
	case x < 77:
		m.lists()
	case x < 92:
		m.ack(m.cur[m.r.IntN(len(m.cur))])
	case x < 94:
		c := m.cur[m.r.IntN(len(m.cur))]
		c.c.Rewind()
		c.held, c.last = nil, 0
	case x < 95:
		l := m.r.IntN(3)
		m.q.Merge(testLane(byte(l)), m.next[l]/2)
		m.merged[l] = max(m.merged[l], m.next[l]/2)
	case x < 97:
		m.reopen(false)
	case x < 98:
		m.otherCursors()
	case x < 99:
		m.setCursors()
	default:
		m.reopen(true)
	}
}

func (m *model) submit() {
	txn := &Txn{Sync: m.r.IntN(10) == 0}
	for range m.r.IntN(4) {
		l := m.r.IntN(3)
		m.next[l]++
		size := m.r.IntN(200)
		if m.r.IntN(4) == 0 {
			size = m.r.IntN(40 << 10)
		}
		e := testEntry(byte(l), m.next[l], size)
		txn.Entries = append(txn.Entries, e)
		m.add(e)
	}
	state := maps.Clone(m.kv[len(m.kv)-1])
	txn.Prepare = func(t *Txn) error {
		for k, v := range state { // all earlier Txns are seen
			if got, ok := m.q.Get(k); !ok || string(got) != v {
				return fmt.Errorf("in Prepare %q is %q, want %q", k, got, v)
			}
		}
		for range m.r.IntN(3) {
			k := fmt.Sprint("key", m.r.IntN(20))
			if m.r.IntN(3) == 0 {
				t.Set = append(t.Set, KV{k, nil})
				delete(state, k)
				continue
			}
			v := fmt.Sprint(m.r.IntN(1000)) + string(bytes.Repeat([]byte("v"), m.r.IntN(300)))
			t.Set = append(t.Set, KV{k, []byte(v)})
			state[k] = v
		}
		n := fmt.Sprint(len(m.kv))
		t.Set = append(t.Set, KV{"txn", []byte(n)})
		state["txn"] = n
		return nil
	}
	number := len(m.kv)
	txn.Done = func(err error) {
		m.mu.Lock()
		defer m.mu.Unlock()
		if err == nil {
			if m.done != number-1 {
				m.t.Errorf("Done of Txn %d after that of %d", number, m.done)
			}
			m.done = number
		}
	}
	if st := mustSubmit(m.t, m.q, txn); st != Fresh {
		m.t.Fatalf("a fresh Txn is %v", st)
	}
	m.kv = append(m.kv, state)
	m.after = append(m.after, len(m.entries))
}

func (m *model) duplicate() {
	if len(m.entries) == 0 {
		return
	}
	e := m.entries[m.r.IntN(len(m.entries))]
	if st := mustSubmit(m.t, m.q, &Txn{Entries: []Entry{e}}); st != Duplicate {
		m.t.Fatalf("batch %v again is %v, want a duplicate", e.Batch.ID, st)
	}
}

// read takes an entry if one is due; a Flush makes that certain.
func (m *model) read(c *modelCursor) {
	if m.r.IntN(3) == 0 {
		mustFlush(m.t, m.q)
	}
	m.q.mu.Lock()
	committed := m.q.committed
	m.q.mu.Unlock()
	want := c.last + 1
	for want <= committed && c.acked[want] {
		want++
	}
	if want > committed {
		return
	}
	it := m.nextOrHead(c)
	for want < it.Seq && c.maybe[want] {
		want++
	}
	if it.Seq != want && !(c.maybe[it.Seq] && it.Seq < want) {
		m.t.Fatalf("cursor %s gave %d after %d, want %d", c.name, it.Seq, c.last, want)
	}
	m.same(it)
	c.last, c.base = it.Seq, 0
	c.held = append(c.held, it.Seq)
}

func (m *model) same(it Item) {
	m.t.Helper()
	e := m.entries[it.Seq-1]
	if it.Batch.ID != e.Batch.ID || !bytes.Equal(it.Batch.Data, e.Batch.Data) || !bytes.Equal(it.Note, e.Note) || it.Batch.Records != e.Batch.Records || it.Batch.Host != e.Batch.Host || it.Batch.Time != e.Batch.Time {
		m.t.Fatalf("entry %d is %v, want %v", it.Seq, it.Batch.ID, e.Batch.ID)
	}
}

func (m *model) ack(c *modelCursor) {
	if len(c.held) == 0 {
		return
	}
	i := m.r.IntN(len(c.held))
	if m.r.IntN(3) > 0 {
		i = 0
	}
	seq := c.held[i]
	c.held = append(c.held[:i], c.held[i+1:]...)
	c.c.Ack(seq)
	m.acked(c, seq)
	if m.r.IntN(10) == 0 {
		c.c.Ack(seq)
	}
}

// reopen closes the queue, cleanly or by a failed commit, and checks what is there.
func (m *model) reopen(crash bool) {
	if crash {
		point := []string{"queue/commit-before", "queue/commit-after"}[m.r.IntN(2)]
		if err := failpoint.Set(point, "error"); err != nil {
			m.t.Fatal(err)
		}
		for range m.r.IntN(5) {
			if m.q.Err() == nil && m.r.IntN(3) == 0 {
				m.tryReplace()
			} else if m.q.Err() == nil {
				m.trySubmit()
			}
		}
		err := m.q.Close()
		failpoint.Clear(point)
		if err != nil && !errors.Is(err, ErrFailed) {
			m.t.Fatal(err)
		}
	} else {
		mustClose(m.t, m.q)
	}
	checkBolt(m.t, m.dir)
	m.open()
	m.afterReopen(crash)
}

// trySubmit is submit where the queue may stop.
func (m *model) trySubmit() {
	n := m.next[0] + 1
	e := testEntry(0, n, m.r.IntN(5000))
	number := len(m.kv)
	state := maps.Clone(m.kv[number-1])
	state["txn"] = fmt.Sprint(number)
	_, err := m.q.Submit(context.Background(), &Txn{Entries: []Entry{e}, Set: []KV{{"txn", []byte(state["txn"])}}})
	if errors.Is(err, ErrFailed) {
		return
	}
	if err != nil {
		m.t.Fatal(err)
	}
	m.next[0] = n
	m.add(e)
	m.kv = append(m.kv, state)
	m.after = append(m.after, len(m.entries))
}

func (m *model) afterReopen(crash bool) {
	v, ok := m.q.Get("txn")
	txn, err := strconv.Atoi(string(v))
	if ok && err != nil {
		m.t.Fatal(err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if txn < m.done || (!crash && txn != len(m.kv)-1) || txn >= len(m.kv) {
		m.t.Fatalf("the state is that of Txn %d; %d were submitted and %d done", txn, len(m.kv)-1, m.done)
	}
	got := map[string]string{}
	m.q.Range("", func(k string, v []byte) bool { got[k] = string(v); return true })
	if !maps.Equal(got, m.kv[txn]) {
		m.t.Fatalf("state after Txn %d is %v, want %v", txn, got, m.kv[txn])
	}
	if got := m.q.committed; got != uint64(m.after[txn]) {
		m.t.Fatalf("%d entries after Txn %d, want %d", got, txn, m.after[txn])
	}
	m.forget(txn)
	for _, p := range m.pending {
		if p.txn <= txn {
			m.replacedNow(p)
		}
	}
	m.pending = nil
	for l := range m.next {
		d := m.q.Delivered(testLane(byte(l)))
		if m.next[l] > 0 && (d.Len() != 1 || d.Next() != m.next[l]+1) {
			m.t.Fatalf("delivered set of lane %d is %v, want 1-%d", l, d.String(), m.next[l])
		}
	}
	defer m.begunByStart()
	for _, c := range m.cur {
		for seq := range c.sure {
			if !c.c.acked.Contains(seq) {
				m.t.Fatalf("%s has acked %d in a commit that was done, and needs it again", c.name, seq)
			}
		}
		if crash {
			maps.Copy(c.maybe, c.acked)
			for seq := range c.acked {
				if !c.c.acked.Contains(seq) {
					delete(c.acked, seq)
				}
			}
		}
		for seq := range c.acked {
			if !c.c.acked.Contains(seq) {
				m.t.Fatalf("ack of %d by %s is gone", seq, c.name)
			}
		}
	}
}

// forget takes back what came after txn.
func (m *model) forget(txn int) {
	for _, e := range m.entries[m.after[txn]:] {
		for l := range m.next {
			if e.Batch.ID.Lane == testLane(byte(l)) {
				m.next[l] = min(m.next[l], e.Batch.ID.N-1)
			}
		}
	}
	for seq := range m.lost {
		if seq > uint64(m.after[txn]) {
			delete(m.lost, seq)
		}
	}
	for _, c := range m.cur {
		for seq := range c.acked {
			if seq > uint64(m.after[txn]) {
				delete(c.acked, seq)
				delete(c.sure, seq)
			}
		}
	}
	m.entries = m.entries[:m.after[txn]]
	m.kv, m.after = m.kv[:txn+1], m.after[:txn+1]
	m.done = txn
}
