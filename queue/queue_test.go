package queue

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ftfuse/internal/batch"
)

// testLane returns the nth lane of the tests.
func testLane(n byte) batch.Lane {
	var l batch.Lane
	l.Origin[0], l.Epoch.Counter, l.Epoch.Random = 0xab, uint64(n)+1, 77
	return l
}

// testEntry makes a batch with content that depends on its id.
func testEntry(lane byte, n uint64, size int) Entry {
	r := rand.New(rand.NewPCG(uint64(lane), n))
	data := make([]byte, size)
	for i := range data {
		data[i] = byte(r.Uint32())
	}
	return Entry{
		Batch: batch.Sealed{
			ID: batch.ID{Lane: testLane(lane), N: n}, CRC: batch.Checksum(data), Records: uint32(n%7 + 1),
			Payload: uint64(size), Time: time.Now().UnixNano(), Via: []batch.Node{{1, lane}}, Host: fmt.Sprint("host-", lane), Data: data,
		},
		Note: fmt.Appendf(nil, "note %d", n),
	}
}

func mustOpen(t testing.TB, dir string, o Options) *Queue {
	t.Helper()
	if o.Cursors == nil {
		o.Cursors = []string{"out"}
	}
	q, err := Open(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = q.Close() })
	settled(q)
	return q
}

func mustSubmit(t testing.TB, q *Queue, x *Txn) Status {
	t.Helper()
	st, err := q.Submit(t.Context(), x)
	if err != nil {
		t.Fatal(err)
	}
	return st
}

func mustNext(t testing.TB, c *Cursor) Item {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	it, err := c.Next(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if got := batch.Checksum(it.Batch.Data); got != it.Batch.CRC {
		t.Fatalf("batch %v came with CRC %08x, want %08x", it.Batch.ID, got, it.Batch.CRC)
	}
	return it
}

func mustCursor(t testing.TB, q *Queue, name string) *Cursor {
	t.Helper()
	c, err := q.Cursor(name)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func mustFlush(t testing.TB, q *Queue) {
	t.Helper()
	if err := q.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func mustClose(t testing.TB, q *Queue) {
	t.Helper()
	if err := q.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestWhatWasSubmittedIsGivenInOrderAndAfterAReopen(t *testing.T) {
	dir := t.TempDir()
	q := mustOpen(t, dir, Options{Dedupe: true})
	node := q.Node()
	for n := uint64(1); n <= 20; n++ {
		mustSubmit(t, q, &Txn{Entries: []Entry{testEntry(1, n, int(n)*1000)}, Set: []KV{{"pos", fmt.Appendf(nil, "%d", n)}}})
	}
	c := mustCursor(t, q, "out")
	for n := uint64(1); n <= 10; n++ {
		it := mustNext(t, c)
		if it.Seq != n || it.Batch.ID.N != n || string(it.Note) != fmt.Sprintf("note %d", n) {
			t.Fatalf("got %d %v %q, want number %d", it.Seq, it.Batch.ID, it.Note, n)
		}
		if n != 3 {
			c.Ack(it.Seq)
		}
	}
	mustClose(t, q)

	q = mustOpen(t, dir, Options{Dedupe: true})
	if q.Node() != node {
		t.Fatalf("node id is %v after a reopen, was %v", q.Node(), node)
	}
	if v, _ := q.Get("pos"); string(v) != "20" {
		t.Fatalf("pos is %q after a reopen, want 20", v)
	}
	if st := mustSubmit(t, q, &Txn{Entries: []Entry{testEntry(1, 7, 7000)}}); st != Duplicate {
		t.Fatalf("batch 7 again is %v, want duplicate", st)
	}
	e := testEntry(1, 7, 7000)
	e.Batch.CRC++
	if _, err := q.Submit(t.Context(), &Txn{Entries: []Entry{e}}); !errors.Is(err, ErrConflict) {
		t.Fatalf("batch 7 with another CRC: %v, want ErrConflict", err)
	}
	c = mustCursor(t, q, "out")
	for _, n := range []uint64{3, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20} {
		it := mustNext(t, c)
		if it.Batch.ID.N != n || string(it.Note) != fmt.Sprintf("note %d", n) || len(it.Batch.Data) != int(n)*1000 || it.Batch.Via[0] != (batch.Node{1, 1}) {
			t.Fatalf("got %v, want number %d", it.Batch.ID, n)
		}
		c.Ack(it.Seq)
	}
	s := q.Stats()
	if s.Live != (Tally{}) || s.Cursors[0].Waiting != (Tally{}) {
		t.Fatalf("all is acked, stats say %+v", s)
	}
	mustClose(t, q)
	q = mustOpen(t, dir, Options{Dedupe: true})
	if s := q.Stats(); s.Live != (Tally{}) || s.Segments != 1 {
		t.Fatalf("all is acked, after a reopen stats say %+v", s)
	}
}

func TestMergeIsDurableWithoutATxn(t *testing.T) {
	dir := t.TempDir()
	q := mustOpen(t, dir, Options{Dedupe: true})
	for _, n := range []uint64{1, 3, 5, 9} {
		mustSubmit(t, q, &Txn{Entries: []Entry{testEntry(1, n, 10)}})
	}
	mustFlush(t, q)
	q.Merge(testLane(1), 6)
	mustClose(t, q)
	q = mustOpen(t, dir, Options{Dedupe: true})
	if d := q.Delivered(testLane(1)); d.String() != "1-5,9" {
		t.Fatalf("delivered %v, want 1-5,9", d.String())
	}
	if st := mustSubmit(t, q, &Txn{Entries: []Entry{testEntry(1, 4, 10)}}); st != Duplicate {
		t.Fatalf("batch 4 below the horizon is %v", st)
	}
}

// TestABlockThatWasReadSurvivesTheRoll: a reader within a block of the active segment
// goes on when that becomes a closed one. (The block kept the file that the roll closed.)
func TestABlockThatWasReadSurvivesTheRoll(t *testing.T) {
	q := mustOpen(t, t.TempDir(), Options{SegmentBytes: 1 << 20, MemoryBytes: 1, CommitEvery: time.Hour})
	for n := uint64(1); n <= 20; n++ {
		mustSubmit(t, q, &Txn{Entries: []Entry{testEntry(1, n, 5000)}})
	}
	mustFlush(t, q)
	c := mustCursor(t, q, "out")
	for range 10 {
		mustNext(t, c)
	}
	for n := uint64(21); q.Stats().Segments == 1; n++ {
		mustSubmit(t, q, &Txn{Entries: []Entry{testEntry(1, n, 200000)}, Sync: true})
		mustFlush(t, q)
	}
	for n := uint64(11); n <= 20; n++ {
		if it := mustNext(t, c); it.Seq != n {
			t.Fatalf("got %d, want %d", it.Seq, n)
		}
	}
}

// TestANewCursorIsNotAckedByAnOldOne: a cursor whose name is new begins where the others
// are, and goes its own way from there.
func TestANewCursorIsNotAckedByAnOldOne(t *testing.T) {
	dir := t.TempDir()
	q := mustOpen(t, dir, Options{Cursors: []string{"a"}})
	for n := uint64(1); n <= 5; n++ {
		mustSubmit(t, q, &Txn{Entries: []Entry{testEntry(1, n, 100)}})
	}
	a := mustCursor(t, q, "a")
	a.Ack(mustNext(t, a).Seq)
	mustClose(t, q)
	q = mustOpen(t, dir, Options{Cursors: []string{"a", "b", "c"}})
	for _, name := range []string{"a", "b", "c"} {
		c := mustCursor(t, q, name)
		for n := uint64(2); n <= 5; n++ {
			it := mustNext(t, c)
			if it.Batch.ID.N != n {
				t.Fatalf("cursor %s gives batch %d, want %d", name, it.Batch.ID.N, n)
			}
			c.Ack(it.Seq)
		}
	}
	mustClose(t, q)
}

// TestAProcessThatWasBeingStartedKeptTheQueue: it has all that is open for a moment, also what is
// closed meanwhile.
func TestAProcessThatWasBeingStartedKeptTheQueue(t *testing.T) {
	dir := t.TempDir()
	q := mustOpen(t, dir, Options{Cursors: []string{"a"}})
	child, err := unix.FcntlInt(q.lock.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(child)
	mustClose(t, q)
	mustClose(t, mustOpen(t, dir, Options{Cursors: []string{"a"}}))
}
