package capture

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"ftfuse/internal/batch"
	"ftfuse/internal/failpoint"
	"ftfuse/internal/record"
	"ftfuse/mount/spool"
)

// sealed returns all committed batches.
func (r *rig) sealed() []batch.Sealed {
	r.q.mu.Lock()
	defer r.q.mu.Unlock()
	return append([]batch.Sealed(nil), r.q.batches...)
}

// wantLanes checks that each record stands in the lane of its path.
func (r *rig) wantLanes() {
	r.Helper()
	for _, s := range r.sealed() {
		rd, err := record.Open(s)
		r.must(err)
		for {
			x, err := rd.Next()
			if err == io.EOF {
				break
			}
			r.must(err)
			route := uint32(0)
			if i := Match(r.o.Rules, x.Path); i >= 0 {
				route = r.o.Rules[i].Route
			}
			if bucket := bucketOf(r.o.Host, x.Path, max(r.o.Buckets, 1)); s.ID.Lane.Route != route || s.ID.Lane.Bucket != bucket {
				r.Fatalf("a record of %s stands in batch %v, want route %d, bucket %d", x.Path, s.ID, route, bucket)
			}
		}
	}
}

// The bucket of a path must stay what it is: the next node keeps to one destination by it.
func TestBucketsNeverChange(t *testing.T) {
	for _, x := range []struct {
		host, path string
		n          int
		want       uint8
	}{
		{"web-01", "logs/access.log", 16, 6},
		{"web-01", "logs/access.log", 4, 2},
		{"web-01", "logs/access.log", 1, 0},
		{"web-02", "logs/access.log", 16, 3},
		{"web-01", "logs/error.log", 16, 14},
		{"web-01l", "ogs/access.log", 16, 12},
	} {
		if got := bucketOf(x.host, x.path, x.n); got != x.want {
			t.Errorf("%s, %s: bucket %d of %d, want %d", x.host, x.path, got, x.n, x.want)
		}
	}
	var count [batch.MaxBuckets]int
	for i := range 16_000 {
		count[bucketOf("web-01", fmt.Sprintf("app-%d.log", i), batch.MaxBuckets)]++
	}
	for b, n := range count {
		if n < 800 || n > 1200 {
			t.Errorf("%d of 16,000 paths are in bucket %d", n, b)
		}
	}
}

func TestMoreBucketsThanALaneCanName(t *testing.T) {
	r := newRig(t, Options{Buckets: batch.MaxBuckets + 1})
	r.o.Store, r.o.Queue = &lineStore{}, r.q
	if _, err := New(r.o); err == nil {
		t.Error("17 buckets are taken")
	}
}

// laneOptions have 2 routes with 16 buckets each.
func laneOptions() Options {
	return Options{Buckets: 16, Rules: []Rule{{Path: "x/**", Transfer: true, Route: 7}, {Path: "no/**"}}}
}

// TestEachPathIsInOneLane: numbers are dense in each lane (the queue of the test checks
// that), each record is in the lane of its path, in order, over a kill and a restart.
func TestEachPathIsInOneLane(t *testing.T) {
	o := laneOptions()
	o.BatchBytes = 4000
	r := newRig(t, o)
	r.start()
	r.must(r.s.Mkdir("x", 0o755, 0, 0))
	r.must(r.s.Mkdir("no", 0o755, 0, 0))
	want := map[string]*strings.Builder{}
	for life := range 3 {
		handles := map[string]*spool.Handle{}
		for i := range 2000 {
			path := fmt.Sprintf("f%d", i%20)
			if i%3 == 0 {
				path = "x/" + path
			}
			if i%100 == 0 {
				path = "no/1"
			}
			text := fmt.Sprintf("life %d line %d\n", life, i)
			if i%50 == 3 {
				text += "half " // goes on with the next write of the path
			}
			if handles[path] == nil {
				handles[path] = r.writer(path)
			}
			r.write(handles[path], text)
			if want[path] == nil {
				want[path] = &strings.Builder{}
			}
			want[path].WriteString(text)
		}
		if life < 2 {
			r.restart()
			continue
		}
		for _, h := range handles {
			h.End(r.meta())
		}
	}
	r.drain()
	r.wantLanes()
	lanes := map[laneKey]bool{}
	for _, s := range r.sealed() {
		lanes[laneKey{s.ID.Lane.Route, s.ID.Lane.Bucket}] = true
		if s.ID.Lane.Route != 0 && s.ID.Lane.Route != 7 || s.ID.Lane.Epoch == (batch.Epoch{}) {
			t.Fatalf("batch %v", s.ID)
		}
	}
	if len(lanes) < 16 {
		t.Errorf("%d lanes of 40 paths", len(lanes))
	}
	got := map[string]int{}
	for _, x := range r.records() {
		got[x.path] += len(x.data)
	}
	for path, w := range want {
		if path == "no/1" {
			if got[path] > 0 {
				t.Errorf("%s was transferred", path)
			}
		} else if got[path] != w.Len() {
			t.Errorf("%s: %d bytes, want %d", path, got[path], w.Len())
		}
	}
}

// TestLanesAreCommittedTogether: a kill before and behind the commit of a transaction with
// batches of many lanes loses and doubles nothing.
func TestLanesAreCommittedTogether(t *testing.T) {
	for _, point := range []string{"capture/seal", "capture/committed", "capture/freed"} {
		t.Run(point, func(t *testing.T) {
			r := newRig(t, laneOptions())
			r.open()
			r.must(r.c.Recover(r.ctx(), nil))
			want := map[string]string{}
			for i := range 300 { // before Run: all of it is cut at once
				path := fmt.Sprintf("f%d", i%30)
				text := fmt.Sprintf("line %d\n", i)
				r.write(r.writer(path), text)
				want[path] += text
			}
			r.must(failpoint.Set(point, "error@1"))
			defer failpoint.Clear(point)
			r.run()
			<-r.ran
			r.ran <- nil
			failpoint.Clear(point)
			r.restart()
			r.drain()
			r.wantLanes()
			for path, w := range want {
				r.want(path, w)
			}
		})
	}
}

// TestAConflictInOneLaneRenewsAll: the epoch is one for all lanes, and each begins anew.
func TestAConflictInOneLaneRenewsAll(t *testing.T) {
	r := newRig(t, laneOptions())
	r.start()
	all := func() {
		for i := range 30 {
			r.write(r.writer(fmt.Sprintf("f%d", i)), "line\n")
		}
		r.drain()
	}
	all()
	was := r.c.Lane()
	other := was
	other.Bucket, other.Route = 9, 7
	r.c.Conflict(other)
	n := len(r.sealed())
	all()
	if got := r.c.Lane(); got.Epoch.Counter != was.Epoch.Counter+1 || got.Epoch.Random == was.Epoch.Random {
		t.Fatalf("lane %v after a conflict in %v", got, other)
	}
	for _, s := range r.sealed()[n+1:] { // the first one of these may be on its way under the old epoch
		if s.ID.Lane.Epoch == was.Epoch {
			t.Errorf("batch %v after the conflict", s.ID)
		}
	}
	r.c.Conflict(other) // of an epoch that is left: nothing to do
	now := r.c.Lane()
	all()
	if r.c.Lane() != now {
		t.Errorf("a conflict of an earlier epoch began another: %v", r.c.Lane())
	}
}

// TestAnOverwriteThatIsUndoneGivesItsNumbersBack in the lane that it was in.
func TestAnOverwriteThatIsUndoneGivesItsNumbersBack(t *testing.T) {
	o := laneOptions()
	o.BatchBytes = 1000
	r := newRig(t, o)
	r.start()
	a, b := r.writer("a"), r.writer("b")
	if bucketOf(r.o.Host, "a", 16) == bucketOf(r.o.Host, "b", 16) {
		t.Fatal("both paths have one bucket")
	}
	long := strings.Repeat("0123456789abcde\n", 1000)
	r.write(a, long)
	r.write(b, "one\n")
	r.drain()
	r.q.set(func() { r.q.full = true })
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Millisecond)
	defer cancel()
	if err := r.c.Overwrite(ctx, a.Number(), r.entry(a, "a"), []byte(long), int64(len(long))); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Overwrite: %v", err)
	}
	r.q.set(func() { r.q.full = false })
	r.write(a, "two\n")
	r.write(b, "two\n")
	r.drain()
	r.wantLanes()
	r.want("a", long+"two\n")
	r.want("b", "one\ntwo\n")
}

// TestLanesFillWhileTheQueueIsBusy, but a transaction has no more than TxnBytes and what
// was cut at once.
func TestLanesFillWhileTheQueueIsBusy(t *testing.T) {
	r := newRig(t, Options{Buckets: 16, BatchBytes: 64 << 10, TxnBytes: 256 << 10, QuantumBytes: 16 << 10})
	r.open()
	r.must(r.c.Recover(r.ctx(), nil))
	text := strings.Repeat("0123456789abcde\n", 64) // 1 KiB
	total := 0
	for range 40 {
		for f := range 64 {
			r.write(r.writer(fmt.Sprintf("f%d", f)), text)
			total += len(text)
		}
	}
	most, txns := 0, 0
	r.q.seen = func(n int) { most, txns = max(most, n), txns+min(n, 1) }
	r.run()
	r.drain()
	r.wantLanes()
	r.q.set(func() {
		if most > 256<<10+4*(64<<10) {
			t.Errorf("a transaction of %d bytes", most)
		}
		if most < 128<<10 {
			t.Errorf("%d transactions, none of more than %d bytes", txns, most)
		}
	})
	if n := len(r.records()); n == 0 {
		t.Error("no records")
	}
	got := 0
	for _, x := range r.records() {
		got += len(x.data)
	}
	if got != total {
		t.Errorf("%d bytes, want %d", got, total)
	}
}

// TestAFullLaneWaitsForTheOthers: while the queue is busy, a batch that is full is not
// submitted by itself.
func TestAFullLaneWaitsForTheOthers(t *testing.T) {
	r := newRig(t, Options{Buckets: 16, BatchBytes: 16 << 10, TxnBytes: 1 << 20})
	r.start()
	txns := 0
	r.q.set(func() { r.q.held, r.q.seen = true, func(n int) { txns += min(n, 1) } })
	r.write(r.writer("b"), "one\n")
	r.waitFor("a commit to be on its way", func() bool { return r.c.Stats().InFlight > 0 })
	h := r.writer("a")
	for range 20 {
		r.write(h, strings.Repeat("0123456789abcde\n", 1<<10)) // 16 KiB
	}
	done := make(chan error, 1)
	go func() { done <- r.c.DrainAll(r.ctx()) }()
	r.waitFor("all of it to be cut", func() bool { r.c.mu.Lock(); defer r.c.mu.Unlock(); return len(r.c.waiters) > 0 })
	r.q.set(func() { r.q.held = false })
	r.must(<-done)
	r.q.set(func() {
		if txns != 2 {
			t.Errorf("%d transactions with batches, want 2", txns)
		}
	})
	if n := len(r.sealed()); n < 10 {
		t.Errorf("%d batches of 320 KiB", n)
	}
}

// TestRecoveredBytesAreInTheLaneOfTheirPath, whatever was read before.
func TestRecoveredBytesAreInTheLaneOfTheirPath(t *testing.T) {
	r := newRig(t, laneOptions())
	r.start()
	r.holdBack()
	for _, path := range []string{"a", "b", "c", "d"} {
		r.write(r.writer(path), path+"\n")
	}
	r.down()
	r.must(os.Remove(filepath.Join(r.dir, "journal")))
	r.start()
	r.drain()
	r.wantLanes()
	for _, path := range []string{"a", "b", "c", "d"} {
		r.want(path, path+"\n")
	}
}

// Two handles of one file, which was renamed between their opens, write in turns.
func TestOneFileOfTwoPaths(t *testing.T) {
	r := newRig(t, laneOptions())
	r.open()
	r.must(r.c.Recover(r.ctx(), nil))
	a := r.writer("a")
	r.must(r.s.Rename("a", "b"))
	r.files["b"] = r.files["a"]
	b := r.writer("b")
	for range 50 { // before Run: read at once
		r.write(a, "from a\nhalf of a, ")
		r.write(b, "from b\nhalf of b, ")
	}
	r.run()
	a.End(r.meta())
	b.End(r.meta())
	r.drain()
	r.wantLanes()
	half := func(x string) string {
		return "from " + x + "\n" + strings.Repeat("half of "+x+", from "+x+"\n", 49) + "half of " + x + ", "
	}
	r.want("a", half("a"))
	r.want("b", half("b"))
}

// A file of open mode is renamed while a line of the kernel's is unfinished, and its next
// opener has another path: the line is the first path's, in its lane.
func TestALineStaysInTheLaneWhereItBegan(t *testing.T) {
	r := newRig(t, laneOptions())
	r.start()
	k := r.kernel("a", 11)
	k.write(r, "begun as a, ")
	r.waitFor("the half line", func() bool { return r.c.Stats().Pending == 1 })
	r.must(r.s.Rename("a", "b"))
	r.files["b"] = r.files["a"]
	delete(r.files, "a")
	k2 := r.kernel("b", 12)
	k.close(r)
	k2.write(r, "ended as b\nb\n")
	k2.close(r)
	r.drain()
	if bucketOf(r.o.Host, "a", 16) == bucketOf(r.o.Host, "b", 16) {
		t.Fatal("both paths have one bucket")
	}
	r.wantLanes()
	r.want("a", "begun as a, ended as b\n")
	r.want("b", "b\n")
}

func TestBatchesAreCompressed(t *testing.T) {
	for _, codec := range []record.Codec{record.CodecNone, record.CodecS2, record.CodecZstd} {
		r := newRig(t, Options{Codec: codec})
		r.start()
		text := strings.Repeat("a line that is much like the others\n", 3000)
		r.write(r.writer("a"), text)
		r.drain()
		r.want("a", text)
		for _, s := range r.sealed() {
			if s.Host != "web-01" {
				t.Errorf("the envelope names host %q", s.Host)
			}
			if short := len(s.Data) < int(s.Payload)/4; short != (codec != record.CodecNone) {
				t.Errorf("%v: %d bytes for %d", codec, len(s.Data), s.Payload)
			}
		}
		r.crash()
	}
}

// TestIdleLanesGiveTheirBuffersBack: each is as long as a batch, and with 16 buckets for every
// route they are many. A lane with a batch that fills keeps its buffer.
func TestIdleLanesGiveTheirBuffersBack(t *testing.T) {
	r := newRig(t, laneOptions())
	r.start()
	for i := range 100 {
		r.write(r.writer(fmt.Sprintf("f%d", i)), "line\n")
	}
	r.drain()
	r.cancel()
	r.must(<-r.ran)
	r.ran <- nil
	c := r.c
	look := func() (held bool) {
		c.swept = time.Time{}
		return c.giveBack()
	}
	if len(c.lanes) != 16 {
		t.Fatalf("%d lanes", len(c.lanes))
	}
	look() // which of them have been idle since the last look is not known
	last := c.lanes[3]
	if !last.b.Add(&record.Attr{Host: "h", Path: "p"}, []byte("a line that waits")) {
		t.Fatal("it does not fit")
	}
	if !look() || last.b.Held() == 0 {
		t.Error("a lane with an unsealed record gave its buffer back")
	}
	last.b.Reset()
	if look() {
		t.Error("buffers are held still")
	}
	for _, l := range c.lanes {
		if n := l.b.Held(); n > 0 {
			t.Errorf("bucket %d holds %d bytes", l.bucket, n)
		}
	}
}
