package queue

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"ftfuse/internal/batch"
)

func corruptOptions() Options {
	return Options{SegmentBytes: 700 << 10, MemoryBytes: 1, PendingBytes: 32 << 10, ReserveBytes: 1 << 12, CommitEvery: time.Microsecond, Dedupe: true, Cursors: []string{"out"}}
}

// sample is a closed queue with several segments, of which nothing was acked but the
// first few entries of some.
type sample struct {
	dir     string
	entries []Entry
	acked   map[uint64]bool
	values  map[string]bool // every value that the key "n" ever had
	bySeg   map[string][]uint64
	newest  string
}

func newSample(t *testing.T) *sample {
	t.Helper()
	s := &sample{dir: t.TempDir(), acked: map[uint64]bool{}, values: map[string]bool{}, bySeg: map[string][]uint64{}}
	r := rand.New(rand.NewPCG(4, 2))
	n := uint64(0)
	for range 2 { // the second run's first segment is not the first one
		q, err := Open(s.dir, corruptOptions())
		if err != nil {
			t.Fatal(err)
		}
		for range 70 {
			n++
			size := r.IntN(300)
			if n%3 == 0 {
				size = r.IntN(50000)
			}
			e := testEntry(byte(n%2), n, size)
			v := fmt.Sprint("value ", n)
			s.values[v] = true
			s.entries = append(s.entries, e)
			mustSubmit(t, q, &Txn{Entries: []Entry{e}, Set: []KV{{"n", []byte(v)}, {fmt.Sprint("key", n%40), []byte(v)}}})
			if n%2 == 0 {
				mustFlush(t, q)
			}
		}
		mustFlush(t, q)
		c := mustCursor(t, q, "out")
		for range 20 {
			it := mustNext(t, c)
			if it.Seq%5 == 0 {
				c.Ack(it.Seq)
				s.acked[it.Seq] = true
			}
		}
		q.mu.Lock()
		for _, seg := range q.segs {
			for seq := seg.first; seq <= seg.last; seq++ {
				if name := filepath.Base(seg.path); !slices.Contains(s.bySeg[name], seq) {
					s.bySeg[name] = append(s.bySeg[name], seq)
				}
			}
			s.newest = filepath.Base(seg.path)
		}
		q.mu.Unlock()
		mustClose(t, q)
	}
	return s
}

// copy makes a copy of the sample for one damage.
func (s *sample) copy(t *testing.T, to string) {
	t.Helper()
	if err := os.RemoveAll(to); err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(to, os.DirFS(s.dir)); err != nil {
		t.Fatal(err)
	}
}

// damages lists the damages that the test does: one function a copy.
func (s *sample) damages(t *testing.T, flips int) (list []struct {
	name, file string
	do         func(b []byte) []byte
},
) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(s.dir, "*"+segmentExt))
	if err != nil || len(files) < 4 {
		t.Fatalf("%d segments (%v), want at least 4", len(files), err)
	}
	r := rand.New(rand.NewPCG(uint64(time.Now().UnixNano()), 3))
	add := func(name, file string, do func([]byte) []byte) {
		list = append(list, struct {
			name, file string
			do         func(b []byte) []byte
		}{name, filepath.Base(file), do})
	}
	for _, f := range files {
		high := highWater(t, f)
		for range flips {
			off, bit := r.Int64N(high), byte(1)<<r.IntN(8)
			add(fmt.Sprintf("flip %#x at %d", bit, off), f, func(b []byte) []byte { b[off] ^= bit; return b })
		}
		for range flips / 10 {
			off := r.Int64N(high / segmentPage)
			add(fmt.Sprintf("zero page %d", off), f, func(b []byte) []byte { clear(b[off*segmentPage:][:segmentPage]); return b })
			from := r.Int64N(high / segmentPage)
			add(fmt.Sprintf("page %d over %d", from, off), f, func(b []byte) []byte { copy(b[off*segmentPage:], b[from*segmentPage:][:segmentPage]); return b })
		}
		for _, size := range []int64{0, 1, 80, 4096, 8192, 12288, 16384, high / 3, high / 2, high - 4096, high - 1} {
			add(fmt.Sprintf("truncate to %d", size), f, func(b []byte) []byte { return b[:size] })
		}
		for _, at := range interesting(t, f, high) {
			off, bit := at+r.Int64N(96), byte(1)<<r.IntN(8)
			add(fmt.Sprintf("flip %#x at %d, in a head or the state", bit, off), f, func(b []byte) []byte { b[off] ^= bit; return b })
		}
		for page := int64(2); page < high/segmentPage; page++ {
			add(fmt.Sprintf("page %d with an element less", page), f, func(b []byte) []byte {
				if p := b[page*segmentPage:]; p[8] == flagLeaf && p[9] == 0 && p[10] > 1 {
					p[10]--
				}
				return b
			})
		}
		for page := range int64(2) {
			add(fmt.Sprintf("torn meta %d", page), f, func(b []byte) []byte { copy(b[page*segmentPage+40:], "torn torn torn"); return b })
		}
		add("both metas", f, func(b []byte) []byte { clear(b[:2*segmentPage]); return b })
	}
	return list
}

// interesting returns the places of some entry heads and state values.
func interesting(t *testing.T, file string, high int64) (at []int64) {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	lane := testLane(0)
	for _, pattern := range [][]byte{lane.Origin[:], []byte("value ")} {
		for off := 0; ; {
			i := bytes.Index(b[off:high], pattern)
			if i < 0 {
				break
			}
			off += i + len(pattern)
			if len(at) == 0 || int64(off)-at[len(at)-1] > 1500 {
				at = append(at, int64(off)-60)
			}
		}
	}
	return at
}

func highWater(t *testing.T, file string) int64 {
	t.Helper()
	p, err := openPages(file)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	return int64(p.metas[0].high) * p.pageSize
}

// TestDamageIsFoundCountedAndTheRestGoesOn damages one segment file after the other. A
// queue that opens gives every undamaged batch, none that is wrong, and counts the rest.
// One that does not open names repair, and does all that after it.
func TestDamageIsFoundCountedAndTheRestGoesOn(t *testing.T) {
	s := newSample(t)
	flips, most := 20, 150
	switch {
	case os.Getenv("FTFUSE_SOAK") != "":
		flips, most = 2000, 1<<30
	case testing.Short():
		most = 50 // too few to be sure of a case
	}
	dir := filepath.Join(t.TempDir(), "copy")
	var refused, lossy, clean int
	list := s.damages(t, flips)
	rand.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
	for _, d := range list[:min(most, len(list))] {
		s.copy(t, dir)
		path := filepath.Join(dir, d.file)
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, d.do(b), 0o600); err != nil {
			t.Fatal(err)
		}
		name := d.file + " " + d.name
		q, err := Open(dir, corruptOptions())
		if err != nil {
			refused++
			if !errors.Is(err, ErrNewestDamaged) && !errors.Is(err, ErrVersion) || d.file != s.newest || !strings.Contains(err.Error(), "ftfuse queue repair") && !errors.Is(err, ErrVersion) {
				t.Fatalf("%s: %v", name, err)
			}
			rep, err := Repair(dir)
			if err != nil {
				t.Fatalf("%s: repair: %v", name, err)
			}
			if rep.Repair == nil {
				t.Fatalf("%s: repair did nothing: %+v", name, rep)
			}
			if q, err = Open(dir, corruptOptions()); err != nil {
				t.Fatalf("%s: after repair: %v", name, err)
			}
			s.checkRepaired(t, name, q, rep.Repair)
		}
		if s.drain(t, name, q, d.file) > 0 {
			lossy++
		} else {
			clean++
		}
	}
	t.Logf("%d damages refused at open, %d with loss, %d without", refused, lossy, clean)
	if !testing.Short() && (refused == 0 || lossy == 0 || clean == 0) {
		t.Fatal("the damages do not cover the cases")
	}
}

func (s *sample) checkRepaired(t *testing.T, name string, q *Queue, did *RepairNote) {
	t.Helper()
	text, ok := q.Get(RepairedKey)
	var note RepairNote
	if did.Whole && (ok || did.StateSeq != uint64(len(s.entries))) {
		t.Fatalf("%s: said to be whole: %+v, note for the role %q", name, did, text)
	}
	if err := json.Unmarshal(text, &note); !did.Whole && (!ok || err != nil || note.StateFrom == "") {
		t.Fatalf("%s: no repair note: %q %v", name, text, err)
	}
	q.Range("", func(k string, v []byte) bool {
		if k != RepairedKey && !s.values[string(v)] {
			t.Errorf("%s: after repair %q is %q, which it never was", name, k, v)
		}
		return true
	})
}

// drain reads all that the queue gives and returns how many batches were lost.
func (s *sample) drain(t *testing.T, name string, q *Queue, damaged string) (lost uint64) {
	t.Helper()
	c := mustCursor(t, q, "out")
	seen := map[uint64]bool{}
	var last uint64
	for limit := time.Now().Add(20 * time.Second); !c.atEnd(); {
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		it, err := c.Next(ctx)
		cancel()
		if errors.Is(err, context.DeadlineExceeded) && (c.atEnd() || time.Now().Before(limit)) {
			continue // the last ones were lost, or the disk is slow
		}
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		e := s.entry(t, name, it)
		if e <= last {
			t.Fatalf("%s: entry %d after %d", name, e, last)
		}
		last = e
		seen[e] = true
		c.Ack(e)
	}
	mustFlush(t, q)
	for file, seqs := range s.bySeg {
		for _, seq := range seqs {
			if file != damaged && !seen[seq] && !s.acked[seq] {
				t.Fatalf("%s: entry %d of the undamaged segment %s was not given", name, seq, file)
			}
		}
	}
	st := q.Stats()
	lost = st.Losses[LostCorrupt].Batches
	var missing uint64
	for seq := uint64(1); seq <= uint64(len(s.entries)); seq++ {
		if !seen[seq] && !s.acked[seq] && seq <= q.committed {
			missing++
		}
	}
	if lost != missing {
		t.Fatalf("%s: %d batches were not given, %d are counted as lost", name, missing, lost)
	}
	mustClose(t, q)
	return lost
}

// entry checks an item against what was submitted.
func (s *sample) entry(t *testing.T, name string, it Item) uint64 {
	t.Helper()
	if it.Seq == 0 || it.Seq > uint64(len(s.entries)) {
		t.Fatalf("%s: entry %d was never submitted", name, it.Seq)
	}
	e := s.entries[it.Seq-1]
	if it.Batch.ID != e.Batch.ID || !bytes.Equal(it.Batch.Data, e.Batch.Data) || !bytes.Equal(it.Note, e.Note) || batch.Checksum(it.Batch.Data) != e.Batch.CRC {
		t.Fatalf("%s: entry %d came wrong", name, it.Seq)
	}
	return it.Seq
}

func (c *Cursor) atEnd() bool {
	c.q.mu.Lock()
	defer c.q.mu.Unlock()
	return c.acked.Next() > c.q.committed
}

func TestAMissingSegmentIsALossAndNotTheEnd(t *testing.T) {
	s := newSample(t)
	gone := segmentName(2)
	if err := os.Remove(filepath.Join(s.dir, gone)); err != nil {
		t.Fatal(err)
	}
	q := mustOpen(t, s.dir, corruptOptions())
	if lost := s.drain(t, "missing", q, gone); lost == 0 {
		t.Fatal("nothing is counted as lost")
	}
	q = mustOpen(t, s.dir, corruptOptions())
	if got, want := q.Stats().Losses[LostCorrupt].Payload, s.payload(gone); got != want {
		t.Fatalf("%d bytes are counted as lost, want %d", got, want)
	}
}

// payload is how many bytes of the segment were not acked.
func (s *sample) payload(file string) (n uint64) {
	for _, seq := range s.bySeg[file] {
		if !s.acked[seq] {
			n += s.entries[seq-1].Batch.Payload
		}
	}
	return n
}

func TestVerifyNamesWhatIsDamaged(t *testing.T) {
	s := newSample(t)
	rep, err := Verify(s.dir)
	if err != nil || rep.Damaged() || len(rep.Segments) < 4 || rep.Lost() != 0 {
		t.Fatalf("a sound queue: %+v, %v", rep, err)
	}
	path := filepath.Join(s.dir, segmentName(1))
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	want := s.entries[20] // seq 21, not acked
	i := bytes.Index(b, want.Batch.Data)
	b[i] ^= 4
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	rep, err = Verify(s.dir)
	if err != nil || rep.State != nil || rep.Lost() != 1 {
		t.Fatalf("one flipped bit: %+v, %v", rep, err)
	}
	bad := rep.Segments[0].Bad[0]
	if bad.ID != want.Batch.ID || bad.Seq != 21 || !bad.Needed || !strings.Contains(bad.Err.Error(), "CRC") {
		t.Fatalf("found %+v", bad)
	}
	q := mustOpen(t, s.dir, corruptOptions())
	if _, err := Verify(s.dir); !errors.Is(err, ErrLocked) {
		t.Fatalf("verify of an open queue: %v", err)
	}
	mustClose(t, q)
}
