package queue

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ftfuse/internal/batch"
)

// BenchmarkQueue sends batches through the queue, a reader following, beside a plain
// log file that is written over and over with one fdatasync for as many bytes as the
// queue's commits had. The two take turns. The figure to look at is ratio: the log's
// time by the queue's.
//
//	flock /tmp/ftfuse/bench.lock go test ./queue -run '^$' -bench Queue -benchtime 1x
func BenchmarkQueue(b *testing.B) {
	for _, c := range []struct {
		name  string
		size  int
		round int64
	}{
		{"1MiB", 1 << 20, 256 << 20},
		{"64KiB", 64 << 10, 128 << 20},
		{"4KiB", 4 << 10, 64 << 20},
		{"200B", 200, 4 << 20},
	} {
		b.Run(c.name, func(b *testing.B) {
			bufs := make([][]byte, 32)
			for i := range bufs {
				bufs[i] = testEntry(1, uint64(i+1), c.size).Batch.Data
			}
			q := newQueueBench(b, bufs)
			l := newLogBench(b, bufs)
			q.run(b, c.round) // what the files grow to
			l.run(b, c.round, 1<<20)
			commits := q.q.commits.Load()
			var total int64
			var tq, tl time.Duration
			b.ResetTimer()
			for range 4 * b.N {
				before := q.q.commits.Load()
				tq += q.run(b, c.round)
				tl += l.run(b, c.round, c.round/int64(q.q.commits.Load()-before))
				total += c.round
			}
			mb := float64(total) / 1e6
			b.ReportMetric(mb/tq.Seconds(), "queue-MB/s")
			b.ReportMetric(mb/tl.Seconds(), "log-MB/s")
			b.ReportMetric(tl.Seconds()/tq.Seconds(), "ratio")
			b.ReportMetric(float64(total)/float64(c.size)/tq.Seconds(), "batches/s")
			b.ReportMetric(float64(total)/1024/float64(q.q.commits.Load()-commits), "KiB/commit")
			b.ReportMetric(float64(q.q.Stats().DiskBytes)/(1<<20), "disk-MiB")
		})
	}
}

type queueBench struct {
	q    *Queue
	c    *Cursor
	bufs [][]byte
	n    uint64
}

func newQueueBench(b *testing.B, bufs [][]byte) *queueBench {
	q := mustOpen(b, filepath.Join(b.TempDir(), "queue"), Options{})
	return &queueBench{q: q, c: mustCursor(b, q, "out"), bufs: bufs}
}

// run returns the time from the first Submit to the last Ack of total bytes.
func (x *queueBench) run(b *testing.B, total int64) time.Duration {
	size := len(x.bufs[0])
	count := int(total / int64(size))
	done := make(chan error, 1)
	go func() {
		for range count {
			it, err := x.c.Next(context.Background())
			if err != nil {
				done <- err
				return
			}
			x.c.Ack(it.Seq)
		}
		done <- nil
	}()
	start := time.Now()
	for range count {
		x.n++
		mustSubmit(b, x.q, &Txn{
			Entries: []Entry{{Batch: batch.Sealed{ID: batch.ID{Lane: testLane(1), N: x.n}, Records: 1, Payload: uint64(size), Time: 1, Data: x.bufs[x.n%uint64(len(x.bufs))]}}},
			Set:     []KV{{"pos", fmt.Appendf(nil, "%d", x.n)}},
		})
	}
	if err := <-done; err != nil {
		b.Fatal(err)
	}
	return time.Since(start)
}

// logBench is a log file that is written from its beginning again at 64 MiB.
type logBench struct {
	f    *os.File
	bufs [][]byte
	off  int64
	n    int
}

func newLogBench(b *testing.B, bufs [][]byte) *logBench {
	f, err := os.Create(filepath.Join(b.TempDir(), "log"))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = f.Close() })
	return &logBench{f: f, bufs: bufs}
}

// run writes total bytes with an fdatasync for every perSync.
func (x *logBench) run(b *testing.B, total, perSync int64) time.Duration {
	start := time.Now()
	var unsynced int64
	for sent := int64(0); sent < total; {
		data := x.bufs[x.n%len(x.bufs)]
		x.n++
		if x.off+int64(len(data)) > 64<<20 {
			x.off = 0
		}
		if _, err := x.f.WriteAt(data, x.off); err != nil {
			b.Fatal(err)
		}
		x.off += int64(len(data))
		sent += int64(len(data))
		if unsynced += int64(len(data)); unsynced >= perSync || sent >= total {
			unsynced = 0
			if err := unix.Fdatasync(int(x.f.Fd())); err != nil {
				b.Fatal(err)
			}
		}
	}
	return time.Since(start)
}

// BenchmarkBacklog fills the queue with nobody reading, then drains it.
func BenchmarkBacklog(b *testing.B) {
	const size, total = 1 << 20, 1 << 30
	bufs := [][]byte{testEntry(1, 1, size).Batch.Data}
	for range b.N {
		x := newQueueBench(b, bufs)
		start := time.Now()
		for n := uint64(1); n <= total/size; n++ {
			mustSubmit(b, x.q, &Txn{Entries: []Entry{{Batch: batch.Sealed{ID: batch.ID{Lane: testLane(1), N: n}, CRC: batch.Checksum(bufs[0]), Data: bufs[0]}}}})
		}
		mustFlush(b, x.q)
		b.ReportMetric(total/1e6/time.Since(start).Seconds(), "fill-MB/s")
		dir := x.q.dir
		mustClose(b, x.q)
		x.q = mustOpen(b, dir, Options{}) // drops the page cache
		x.c = mustCursor(b, x.q, "out")
		start = time.Now()
		for range total / size {
			x.c.Ack(mustNext(b, x.c).Seq)
		}
		b.ReportMetric(total/1e6/time.Since(start).Seconds(), "drain-MB/s")
		mustClose(b, x.q)
	}
}
