package receive

import (
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"sort"
	"testing"

	"ftfuse/internal/batch"
	"ftfuse/queue"
	"ftfuse/transport"
)

// flaggedBatch is a batch that was in flight to another destination before.
func (f *feeder) flaggedBatch(path, line string) batch.Sealed {
	b := f.seal(rec{host: "h", path: path, data: line + "\n"})
	b.Flags |= batch.FlagResent
	return b
}

// TestFlaggedBatchesAreNamedForEver: by their ids, over a kill at any step, and only those
// that were taken.
func TestFlaggedBatchesAreNamedForEver(t *testing.T) {
	s := newSetup(t)
	f := newFeeder(1)
	f.connect(t, s.Listen)
	for _, point := range []string{"", "receive/assigned=kill@3", "sink/applied=kill@2"} {
		p := spawn(t, s, point)
		for range 3 {
			f.send(f.flaggedBatch("f", fmt.Sprint(f.n)))
			f.add(rec{host: "h", path: "f", data: "not flagged\n"})
		}
		if point != "" {
			if err := p.gone(); err == nil {
				t.Fatal("the receiver ended without being killed")
			}
			continue
		}
		f.until(t, "acks", f.allAcked)
		f.mu.Lock()
		f.next = 0 // all of it once more, as after a missed ack: duplicates
		f.mu.Unlock()
		f.until(t, "another round", func() bool { return f.next == 6 })
		p.kill()
	}
	x := start(t, s)
	f.until(t, "final acks", f.allFinal)
	// What was in flight at a kill came again with the client's own mark.
	marked := batch.Ranges{}
	for _, l := range x.r.Stats().ResentLanes {
		if l.Lane != f.lane || l.Batches != l.IDs.Count() || l.Records != l.Batches {
			t.Errorf("account %+v", l)
		}
		marked = l.IDs
	}
	for n := uint64(1); n <= f.n; n += 2 {
		if !marked.Contains(n) {
			t.Errorf("batch %d was flagged and is not in the account %v", n, marked.String())
		}
	}
	if marked.Contains(2) || marked.Contains(4) || marked.Contains(6) {
		t.Errorf("a batch that was taken without the mark is in the account %v", marked.String())
	}
	x.end()
}

// TestTheAccountIsBounded: in lanes and in ranges; the newest stay.
func TestTheAccountIsBounded(t *testing.T) {
	q, err := queue.Open(filepath.Join(t.TempDir(), "q"), queue.Options{Cursors: []string{"c"}})
	must(t, err)
	defer q.Close()
	a, err := openResent(q)
	must(t, err)
	submit := func(b batch.Sealed) {
		_, err := q.Submit(t.Context(), &queue.Txn{Set: a.add(&b)})
		must(t, err)
	}
	lane := func(i int) batch.Lane {
		return batch.Lane{Origin: batch.Origin{1}, Epoch: batch.Epoch{Counter: uint64(i)}}
	}
	for i := range resentLanes + 10 {
		submit(batch.Sealed{ID: batch.ID{Lane: lane(i), N: 1}, Records: 2, Payload: 3})
	}
	last := lane(resentLanes + 9)
	for n := range uint64(resentRanges + 10) {
		submit(batch.Sealed{ID: batch.ID{Lane: last, N: 2*n + 3}, Records: 2, Payload: 3})
	}
	stored, err := openResent(q)
	must(t, err)
	all, again := a.all(), stored.all()
	for _, x := range [][]Resent{all, again} {
		sort.Slice(x, func(i, j int) bool { return x[i].Lane.Epoch.Counter < x[j].Lane.Epoch.Counter })
	}
	if !reflect.DeepEqual(all, again) {
		t.Error("what is stored is not what is known")
	}
	if len(all) != resentLanes || all[0].Lane != lane(10) {
		t.Errorf("%d lanes, the oldest %v", len(all), all[0].Lane)
	}
	if l := all[len(all)-1]; l.IDs.Len() != resentRanges || l.Batches != resentRanges+11 || l.IDs.Contains(1) || !l.IDs.Contains(2*resentRanges+21) {
		t.Errorf("%d ranges of %d batches: %.60s…", l.IDs.Len(), l.Batches, l.IDs.String())
	}
}

// TestGoldenResent: the value of the key resent/<lane>.
func TestGoldenResent(t *testing.T) {
	want := resentLane{order: 70000, Resent: Resent{
		Lane: batch.Lane{Origin: batch.Origin{1, 2}, Epoch: batch.Epoch{Counter: 3, Random: 4}}, Batches: 5, Records: 600, Payload: 70000,
	}}
	want.IDs.AddRange(batch.Range{First: 2, Last: 5})
	want.IDs.Add(900)
	raw := want.encode()
	path := "testdata/resent.hex"
	if os.Getenv("FTFUSE_GOLDEN") == "write" {
		must(t, os.MkdirAll("testdata", 0o755))
		must(t, os.WriteFile(path, []byte(hex.Dump(raw)), 0o644))
	}
	file, err := os.ReadFile(path)
	must(t, err)
	if hex.Dump(raw) != string(file) {
		t.Errorf("the value is\n%swant\n%s", hex.Dump(raw), file)
	}
	back, err := parseResent(resentKey(want.Lane), raw)
	if err != nil || !reflect.DeepEqual(back, want) {
		t.Errorf("it reads back as %+v, %v", back, err)
	}
	for i := range raw {
		if _, err := parseResent(resentKey(want.Lane), raw[:i]); err == nil {
			t.Errorf("cut to %d bytes it reads back", i)
		}
	}
}

func FuzzResent(f *testing.F) {
	r := resentLane{order: 1, Resent: Resent{Batches: 2, Records: 3, Payload: 4}}
	r.IDs.Add(5)
	f.Add(r.encode())
	f.Fuzz(func(t *testing.T, raw []byte) {
		r, err := parseResent(resentKey(batch.Lane{}), raw)
		if err != nil {
			return
		}
		if again, err := parseResent(resentKey(batch.Lane{}), r.encode()); err != nil || !reflect.DeepEqual(again, r) {
			t.Fatalf("%+v reads back as %+v, %v", r, again, err)
		}
	})
}

// TestSkipsOfASourceAreCounted, once, and a batch that comes all the same is taken.
func TestSkipsOfASourceAreCounted(t *testing.T) {
	s := newSetup(t)
	x := start(t, s)
	f := newFeeder(1)
	skip := transport.Skip{Reason: "expired", Records: 3, Payload: 30}
	skip.Ranges.AddRange(batch.Range{First: 1, Last: 3})
	f.skips.Add(f.lane, skip)
	f.connect(t, s.Listen)
	waitFor(t, "the skip", func() bool { return x.r.Stats().DroppedUpstream["expired"].Batches == 3 })
	f.add(rec{host: "h", path: "f", data: "another copy\n"})
	f.until(t, "final acks", f.allFinal)
	wantFile(t, s.out("h", "f"), "another copy\n")
	if d := x.r.Stats().DroppedUpstream["expired"]; d.Batches != 3 || d.Records != 3 || d.Payload != 30 {
		t.Errorf("counted are %+v", d)
	}
	x.end()
}

// TestABatchOfAnotherHostIsDenied: and counted; nothing of it is written.
func TestABatchOfAnotherHostIsDenied(t *testing.T) {
	s := newSetup(t)
	x := start(t, s)
	f := newFeeder(1)
	f.connect(t, s.Listen)
	b := f.seal(rec{host: "victim", path: "f", data: "not mine\n"})
	b.Host = "h"
	f.send(b)
	f.until(t, "a refusal", func() bool { return len(f.refused) == 1 })
	if v := f.refused[0]; v.Code != transport.Denied {
		t.Errorf("refused with %+v, want denied", v)
	}
	if n := x.r.Stats().Foreign; n != 1 {
		t.Errorf("%d are counted", n)
	}
	if _, err := os.Stat(s.out("victim")); err == nil {
		t.Error("a directory of the other host is there")
	}
	x.end()
}

// TestStatusTellsWhatIsThere: the document of a running receiver.
func TestStatusTellsWhatIsThere(t *testing.T) {
	s := newSetup(t)
	x := start(t, s)
	f := newFeeder(1)
	f.connect(t, s.Listen)
	f.send(f.flaggedBatch("f", "one"))
	f.add(rec{host: "h", path: "f", data: "two\n"})
	f.until(t, "final acks", f.allFinal)
	st := x.r.status()
	if st.Role != "receive" || !st.Serving || st.TLS || st.Listen != s.Listen || st.Accepted.Batches != 2 || st.Delivered.Batches != 2 || st.Accepted.Bytes != 8 ||
		st.Resent.Batches != 1 || len(st.ResentRanges) != 1 || st.ResentRanges[0].Ranges[0] != [2]uint64{1, 1} || len(st.Peers.Connections) != 1 ||
		len(st.Queue.Cursors) != 1 || st.Queue.DeliveredLanes != 1 {
		t.Errorf("status %+v", st)
	}
	x.end()
}
