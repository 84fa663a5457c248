package capture

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"ftfuse/internal/failpoint"
	"ftfuse/internal/record"
	"ftfuse/mount/spool"
)

// model is what the capture must have made of random operations: for each handle, its
// bytes in order. Every handle has a pid of its own, so a record tells whose it is.
type model struct {
	*rig
	rnd            *rand.Rand
	paths          []string
	writers        []*modelWriter // open ones
	all            []*modelWriter
	open, orphaned []*modelFile   // of open mode
	truncating     *modelFile     // at the kill
	over           *overwriting   // at the kill
	owing          []*modelWriter // files whose opener was not noted at a kill: the ring was full
	era            int            // starts so far
	ticks          int
	broken         error // what stopped Run
}

type modelWriter struct {
	h      *spool.Handle
	path   string
	pid    uint32
	want   strings.Builder
	opened int // in ticks
	closed int // 0: not by itself
	era    int
	opens  int // of a file of open mode
}

func TestModel(t *testing.T) {
	runs, ops := 8, 250
	if os.Getenv("FTFUSE_SOAK") != "" {
		runs, ops = 400, 600
	}
	seed := uint64(time.Now().UnixNano())
	if s := os.Getenv("FTFUSE_SEED"); s != "" {
		seed, _ = strconv.ParseUint(s, 10, 64)
		runs = 1
	}
	for i := range runs {
		t.Run("", func(t *testing.T) {
			t.Logf("FTFUSE_SEED=%d", seed+uint64(i))
			modelRun(t, seed+uint64(i), ops)
		})
	}
}

func modelRun(t *testing.T, seed uint64, ops int) {
	rnd := rand.New(rand.NewPCG(seed, 7))
	pick := func(v ...int) int { return v[rnd.IntN(len(v))] }
	o := Options{
		BatchBytes: pick(500, 5000, 60_000, 1<<20), MaxLine: pick(50, 700, 9000, 1<<20), MaxHold: pick(300, 5000, 40_000, 1<<20),
		MaxPending: int64(pick(400, 9000, 70_000, 1<<20)), RunBytes: pick(100, 4000, 256<<10), QuantumBytes: int64(pick(100, 5000, 256<<10)),
		InFlight: int64(pick(1000, 100_000, 8<<20)), IntakeMax: pick(3, 100, 1<<16),
		Rules: []Rule{
			{Path: "bin/*", Transfer: true, Mode: ModeBinary},
			{Path: "no/**"},
			{Path: "short/*", Transfer: true, MaxLine: 20, Filter: modelFilter(rnd.IntN(2) == 0)},
			{Path: "keep/*", Transfer: true, Filter: modelFilter(true)},
		},
		Buckets: pick(1, 1, 4, 16), Codec: record.Codec(pick(0, 0, 1, 2)),
	}
	o.Rules[0].MaxRecord = int64(pick(0, 1, 100, 3000))
	if o.Buckets > 1 {
		o.TxnBytes, o.Rules[0].Route = pick(100, 10_000, 1<<20), 3
	}
	m := &model{rig: newRig(t, o), rnd: rnd, paths: []string{"a", "b", "d/c", "bin/x", "no/y", "short/s", "keep/f"}}
	m.so = modelOptions(rnd)
	m.start()
	for _, d := range []string{"d", "bin", "no", "short", "keep"} {
		m.must(m.s.Mkdir(d, 0o755, 0, 0))
	}
	for i := 0; i < ops && !t.Failed(); i++ {
		m.step()
	}
	m.disarm()
	m.finish()
	m.checkAll(true)
	m.wantLanes()
}

var capturePoints = []string{
	"capture/seal", "capture/committed", "capture/freed", "capture/overwrite", "capture/intent",
	"spool/truncated", "capture/punched",
}

func (m *model) step() {
	if m.rnd.IntN(2) == 0 {
		m.kernelStep()
		if m.broken != nil {
			m.crashed()
		}
		return
	}
	switch n := m.rnd.IntN(100); {
	case n < 12 || len(m.writers) == 0:
		m.open1()
	case n < 70:
		m.write1()
	case n < 76:
		m.flush1()
	case n < 82:
		m.close1()
	case n < 86:
		m.truncate1()
	case n < 90:
		m.overwrite1()
	case n < 93:
		m.unhold()
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		m.note(m.c.DrainAll(ctx))
		cancel()
	case n < 95:
		m.unhold()
		m.note(m.c.Drain(m.ctx(), m.some().h.Number()))
	case n < 97:
		point := capturePoints[m.rnd.IntN(len(capturePoints))]
		m.must(failpoint.Set(point, fmt.Sprintf("error@%d", 1+m.rnd.IntN(8))))
	case n < 98:
		m.crashed()
	case n < 99:
		m.rules1()
	default:
		hold := m.rnd.IntN(2) == 0
		m.q.set(func() { m.q.held = hold })
	}
	if m.broken != nil {
		m.crashed()
	}
}

func (m *model) disarm() {
	for _, p := range capturePoints {
		failpoint.Clear(p)
	}
}

// note takes the result of a call: an injected error is a crash to come.
func (m *model) note(err error) {
	m.Helper()
	switch {
	case err == nil:
	case errors.Is(err, failpoint.ErrInjected), errors.Is(err, ErrStopped):
		m.Logf("note: %v", err)
		m.broken = err
	default:
		m.Fatal(err)
	}
}

func (m *model) some() *modelWriter { return m.writers[m.rnd.IntN(len(m.writers))] }

func (m *model) meta1(w *modelWriter) *spool.Meta {
	x := m.meta()
	x.PID = w.pid
	return x
}

func (m *model) open1() {
	w := &modelWriter{path: m.paths[m.rnd.IntN(len(m.paths))], pid: uint32(len(m.all) + 1), era: m.era}
	w.h = m.writer(w.path)
	m.ticks++
	w.opened = m.ticks
	m.writers, m.all = append(m.writers, w), append(m.all, w)
}

// text is bytes with some line ends, and what people wrongly take for line ends.
func (m *model) text() string {
	n := []int{1, 10, 100, 1000, 20_000}[m.rnd.IntN(5)]
	n = 1 + m.rnd.IntN(n)
	every := []int{5, 40, 300, 1 << 20}[m.rnd.IntN(4)]
	b := make([]byte, n)
	for i := range b {
		switch {
		case m.rnd.IntN(every) == 0:
			b[i] = '\n'
		case m.rnd.IntN(30) == 0:
			b[i] = "\r\x00\xff"[m.rnd.IntN(3)]
		default:
			b[i] = byte('a' + m.rnd.IntN(26))
		}
	}
	if m.rnd.IntN(3) == 0 {
		b[n-1] = '\n'
	}
	return string(b)
}

func (m *model) write1() { m.writeBy(m.some()) }

func (m *model) writeBy(w *modelWriter) {
	data := m.text()
	off, end := int64(0), true
	if m.rnd.IntN(40) == 0 {
		off, end = w.h.Size()+int64(m.rnd.IntN(9000)), false
	}
	m.Logf("write by %d of %s, %d at %d, size %d", w.pid, w.path, len(data), off, w.h.Size())
	n, err := w.h.Write([]byte(data), off, end, m.meta1(w))
	for errors.Is(err, spool.ErrJournalFull) {
		m.unhold()
		if m.died() {
			return
		}
		n, err = w.h.Write([]byte(data), off, end, m.meta1(w))
	}
	m.must(err)
	w.want.WriteString(data[:n])
}

var errKilledOver = errors.New("killed before the overwriting pwrite")

// died reports whether Run has ended by itself.
func (m *model) died() bool {
	select {
	case err := <-m.ran:
		m.ran <- err
		m.broken = err
		return true
	case <-time.After(time.Millisecond):
		return false
	}
}

func (m *model) flush1() {
	w := m.some()
	m.flush(w.h, m.meta1(w))
}

func (m *model) close1() {
	i := m.rnd.IntN(len(m.writers))
	w := m.writers[i]
	w.h.End(m.meta1(w))
	m.ticks++
	w.closed = m.ticks
	m.writers = append(m.writers[:i], m.writers[i+1:]...)
	w.h = nil
}

func (m *model) truncate1() {
	w := m.some()
	m.unhold()
	size := []int64{0, 0, w.h.Size() / 2, w.h.Size() + 5000}[m.rnd.IntN(4)]
	n := w.h.Number()
	m.Logf("truncate %s %d to %d", w.path, w.h.Size(), size)
	if err := m.c.BeginTruncate(m.ctx(), n, size); err != nil {
		m.note(err)
		return
	}
	if m.rnd.IntN(6) == 0 {
		m.broken = errors.New("killed before the truncation")
		return
	}
	if err := w.h.Truncate(size); err != nil || m.rnd.IntN(6) == 0 {
		m.broken = fmt.Errorf("killed after the truncation: %w", err)
		return
	}
	m.note(m.c.FinishTruncate(m.ctx(), n, size, 0))
}

func (m *model) unhold() { m.q.set(func() { m.q.held = false }) }

func (m *model) overwrite1() {
	w := m.some()
	if w.h.Size() == 0 {
		return
	}
	m.overwrite(&overwriting{w: w, handle: &w.h, data: m.text(), off: m.rnd.Int64N(w.h.Size()), meta: m.meta1(w)})
}

// crashed is a kill -9 and a start, which may be killed again: by a worker that takes the
// connection over, or without it, when all handles are gone and programs may go on writing
// to spool files that the kernel let them have.
func (m *model) crashed() {
	m.disarm()
	for _, f := range m.open {
		if m.s.Owes(f.number) && !slices.Contains(m.owing, f.modelWriter) {
			m.owing = append(m.owing, f.modelWriter)
		}
	}
	err := m.crash()
	m.settleOverwrite()
	takeover, orphans := m.rnd.IntN(3) == 0, m.rnd.IntN(2) == 0
	m.Logf("crash %d: run %v, model %v; takeover %v, orphans %v", m.era, err, m.broken, takeover, orphans)
	m.broken = nil
	if takeover {
		m.death(true)
		m.again(m.taken)
		m.resendOverwrite()
		m.checkAll(false)
		return
	}
	if orphans {
		m.orphans()
		m.death(false)
	} else {
		m.closeAll()
		m.truncating = nil
	}
	m.ticks++
	for _, w := range m.all {
		if w.closed == 0 && !m.isOrphan(w) {
			w.closed = m.ticks
		}
	}
	m.writers = nil
	m.again(func() error { m.rig.open(); return m.c.Recover(m.ctx(), nil) })
	m.era++
	m.over = nil
	m.checkAll(false)
}

// attributed is all records. What the kernel wrote for somebody whose opening was owed at a
// kill comes as nobody's: whose it is, of the files of its path with that, its bytes tell.
func (m *model) attributed() []rec {
	all := m.records()
	if len(m.owing) == 0 {
		return all
	}
	got := map[uint32]int{}
	for i := range all {
		x := &all[i]
		if x.pid == 0 && x.flags&record.Recovered != 0 {
			for _, w := range m.owing {
				if w.path == x.path && strings.HasPrefix(m.expected(w)[min(got[w.pid], len(m.expected(w))):], x.data) {
					x.pid = w.pid
					break
				}
			}
		}
		got[x.pid&pidMask] += len(x.data)
	}
	return all
}

func (m *model) byPID() map[uint32]string {
	got := map[uint32]*strings.Builder{}
	for _, x := range m.attributed() {
		b := got[x.pid&pidMask]
		if b == nil {
			b = &strings.Builder{}
			got[x.pid&pidMask] = b
		}
		b.WriteString(x.data)
	}
	s := map[uint32]string{}
	for pid, b := range got {
		s[pid] = b.String()
	}
	return s
}

// finish drains everything, with all writers closed.
func (m *model) finish() {
	m.unhold()
	m.endOrphans()
	for {
		for len(m.writers) > 0 {
			m.close1()
		}
		for len(m.open) > 0 {
			m.kernelClose(m.open[0])
		}
		err := m.c.DrainAll(m.ctx())
		if err == nil && len(m.orphaned) == 0 {
			return
		}
		if err != nil && !errors.Is(err, ErrStopped) && !errors.Is(err, failpoint.ErrInjected) {
			m.Fatal(err)
		}
		if err != nil {
			m.crashed()
		}
		m.endOrphans()
	}
}

// checkAll is called when everything is drained. At the end all handles are closed.
func (m *model) checkAll(end bool) {
	m.Helper()
	got := m.byPID()
	for _, w := range m.all {
		want := m.expected(w)
		if strings.HasPrefix(w.path, "no/") {
			want = ""
		}
		open := slices.Contains(m.writers, w) || m.isOpen(w)
		if g := got[w.pid]; g != want && (!open || !strings.HasPrefix(want, g)) {
			i := 0
			for i < len(g) && i < len(want) && g[i] == want[i] {
				i++
			}
			m.Errorf("writer %d of %s: %d bytes, want %d; first differs at %d: %.40q, want %.40q", w.pid, w.path, len(g), len(want), i, g[i:], want[i:])
		}
	}
	m.checkLines()
	if !end {
		return
	}
	if n := m.c.Stats(); n.Pending != 0 || n.PendingBytes != 0 {
		m.Errorf("%d unfinished lines of %d bytes are left", n.Pending, n.PendingBytes)
	}
	for k := range m.q.disk {
		if strings.HasPrefix(k, prefixPend) || strings.HasPrefix(k, prefixCut) {
			m.Errorf("key %s is left", k)
		}
	}
}

// checkLines: no record goes on in the line of another writer but where that one was
// closed, and records end where their flags say.
func (m *model) checkLines() {
	m.Helper()
	inside := map[string]rec{} // path: the last record, if it did not end its line
	piece := map[uint32]bool{}
	for i, x := range m.attributed() {
		if x.pid &= pidMask; x.pid == 0 {
			m.Fatalf("record %d is nobody's: %v", i, x)
		}
		ended := strings.HasSuffix(x.data, "\n") || x.flags&record.PieceLast != 0 && x.flags&record.Binary != 0
		p := inside[x.path]
		switch {
		case x.flags&record.Binary != 0:
			continue
		case x.flags&(record.Unterminated|record.PieceFirst|record.PieceMiddle) == 0 && !ended:
			m.Errorf("record %d does not end a line: %v", i, x)
		case x.flags&record.Unterminated != 0 && ended:
			m.Errorf("record %d ends a line and is flagged unterminated: %v", i, x)
		case x.flags&(record.PieceMiddle|record.PieceLast) != 0 && !piece[x.pid]:
			m.Errorf("record %d is a piece without a first: %v", i, x)
		case x.flags&(record.PieceMiddle|record.PieceLast) == 0 && piece[x.pid]:
			m.Errorf("record %d comes inside a line of its writer: %v", i, x)
		case p.pid != 0 && p.pid != x.pid && x.flags&record.Break == 0 && m.together(p, x):
			m.Errorf("record %d goes on in another writer's line: %v after %v", i, x, p)
		case x.flags&(record.Break|record.Recovered) == record.Break && (p.pid == 0 || !m.together(p, x)): // of recovered bytes nobody knows
			m.Errorf("record %d has a break that is not needed: %v after %v", i, x, p)
		}
		piece[x.pid] = x.flags&(record.PieceFirst|record.PieceMiddle) != 0
		inside[x.path] = rec{}
		if x.flags&(record.Unterminated|record.PieceFirst|record.PieceMiddle) != 0 {
			inside[x.path] = x
		}
	}
}

// together reports whether x's writer was open when p's ended its line.
func (m *model) together(p, x rec) bool {
	a, b := m.all[p.pid-1], m.all[x.pid-1]
	return a.closed == 0 || b.opened < a.closed
}
