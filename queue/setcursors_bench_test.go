package queue

import (
	"testing"
	"time"

	"ftfuse/internal/batch"
)

// BenchmarkSetCursors removes the cursor that needs a backlog of 50,000 batches, which are in
// segments that the page cache has not, and adds one that does not want half of what another
// needs. The figures to look at are how long mu was held from an append at most (lock-ms), and
// the longest Submit to the commit meanwhile (commit-ms), beside those of the same queue at rest.
//
//	flock /tmp/ftfuse/bench.lock go test ./queue -run '^$' -bench SetCursors -benchtime 1x
func BenchmarkSetCursors(b *testing.B) {
	const count = 50000
	for _, c := range []struct {
		name string
		to   []string
		done func(s Stats) bool
	}{
		{"rest", []string{"a", "b"}, func(Stats) bool { return true }},
		{"removed", []string{"a"}, func(s Stats) bool { return s.Losses[LostNoCursor].Batches == count }},
		{"added", []string{"a", "b", "odd"}, func(s Stats) bool { return s.Cursors[2].Waiting.Batches < count*6/10 }},
	} {
		b.Run(c.name, func(b *testing.B) {
			for range b.N {
				benchCursors(b, count, CursorSet{Cursors: c.to, Wants: benchWants}, c.done)
			}
		})
	}
}

func benchCursors(b *testing.B, count uint64, set CursorSet, done func(Stats) bool) {
	dir, data := benchBacklog(b, count, len(set.Cursors) == 1)
	q := mustOpen(b, dir, benchOptions) // drops the page cache
	stop, lock, commit := make(chan struct{}), make(chan time.Duration), make(chan time.Duration)
	go longest(stop, lock, func() { q.Room() })
	n := uint64(0)
	go longest(stop, commit, func() {
		n++
		e := data
		e.Batch.ID = batch.ID{Lane: testLane(1), N: count + n}
		mustSubmit(b, q, &Txn{Entries: []Entry{e}, Sync: true})
		mustFlush(b, q)
	})
	b.ResetTimer()
	start := time.Now()
	if err := q.SetCursors(set); err != nil {
		b.Fatal(err)
	}
	for !done(q.Stats()) || time.Since(start) < 200*time.Millisecond {
		time.Sleep(time.Millisecond)
	}
	b.ReportMetric(float64(time.Since(start).Milliseconds()), "took-ms")
	close(stop)
	b.ReportMetric(float64((<-lock).Microseconds())/1000, "lock-ms")
	b.ReportMetric(float64((<-commit).Microseconds())/1000, "commit-ms")
	mustClose(b, q)
}

// benchOptions are those of benchBacklog's queue.
var benchOptions = Options{Cursors: []string{"a", "b"}, MemoryBytes: 1, SegmentBytes: 64 << 20, Dedupe: true}

// benchWants has a cursor "odd" want half of benchBacklog.
func benchWants(name string, lane batch.Lane) bool { return name != "odd" || lane == testLane(1) }

// benchBacklog makes a queue of count batches in two lanes, like the one that it returns. "b"
// needs all of them, "a" none where acked is set.
func benchBacklog(b *testing.B, count uint64, acked bool) (dir string, one Entry) {
	b.Helper()
	dir, one = b.TempDir(), testEntry(1, 1, 4000)
	q := mustOpen(b, dir, benchOptions)
	for n := uint64(1); n <= count; n++ {
		e := one
		e.Batch.ID = batch.ID{Lane: testLane(byte(n % 2)), N: n}
		mustSubmit(b, q, &Txn{Entries: []Entry{e}})
	}
	mustFlush(b, q)
	if acked {
		a := mustCursor(b, q, "a")
		for range count {
			a.Ack(mustNext(b, a).Seq)
		}
	}
	mustClose(b, q)
	return dir, one
}

// longest calls fn until stop is closed, and says how long it took at most.
func longest(stop chan struct{}, most chan time.Duration, fn func()) {
	var d time.Duration
	for {
		select {
		case <-stop:
			most <- d
			return
		default:
		}
		start := time.Now()
		fn()
		d = max(d, time.Since(start))
		time.Sleep(50 * time.Microsecond)
	}
}
