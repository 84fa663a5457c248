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
// queue's commits had. The figure to look at is ratio: queue / log of the same run.
//
//	flock /tmp/ftfuse/bench.lock go test ./queue -run '^$' -bench Queue -benchtime 1x
func BenchmarkQueue(b *testing.B) {
	for _, c := range []struct {
		name  string
		size  int
		total int64
	}{
		{"1MiB", 1 << 20, 1 << 30},
		{"64KiB", 64 << 10, 512 << 20},
		{"4KiB", 4 << 10, 64 << 20},
		{"200B", 200, 8 << 20},
	} {
		b.Run(c.name, func(b *testing.B) {
			for range b.N {
				q, perCommit := throughQueue(b, c.size, c.total)
				l := throughLog(b, c.size, int(perCommit), c.total)
				b.ReportMetric(q/1e6, "queue-MB/s")
				b.ReportMetric(l/1e6, "log-MB/s")
				b.ReportMetric(q/l, "ratio")
				b.ReportMetric(q/float64(c.size), "batches/s")
				b.ReportMetric(perCommit/1024, "KiB/commit")
			}
		})
	}
}

// throughQueue returns bytes/s from the first Submit to the last ack, and the bytes of
// a commit.
func throughQueue(b *testing.B, size int, total int64) (rate, perCommit float64) {
	q := mustOpen(b, filepath.Join(b.TempDir(), "queue"), Options{})
	c := mustCursor(b, q, "out")
	bufs := make([][]byte, 16) // the queue keeps Data by reference and does not write to it
	for i := range bufs {
		bufs[i] = testEntry(1, uint64(i+1), size).Batch.Data
	}
	var n uint64
	run := func(total int64) time.Duration {
		count := int(total / int64(size))
		done := make(chan error, 1)
		go func() {
			for range count {
				it, err := c.Next(context.Background())
				if err != nil {
					done <- err
					return
				}
				c.Ack(it.Seq)
			}
			done <- nil
		}()
		start := time.Now()
		for range count {
			n++
			data := bufs[n%uint64(len(bufs))]
			mustSubmit(b, q, &Txn{
				Entries: []Entry{{Batch: batch.Sealed{ID: batch.ID{Lane: testLane(1), N: n}, CRC: 1, Records: 1, Payload: uint64(size), Time: 1, Data: data}}},
				Set:     []KV{{"pos", fmt.Appendf(nil, "%d", n)}},
			})
		}
		if err := <-done; err != nil {
			b.Fatal(err)
		}
		return time.Since(start)
	}
	run(min(total/4, 128<<20)) // what the files grow to
	before := q.commits.Load()
	took := run(total)
	rate = float64(total) / took.Seconds()
	perCommit = float64(total) / float64(q.commits.Load()-before)
	if os.Getenv("QUEUE_BENCH_STATS") != "" {
		s := q.Stats()
		b.Logf("disk %d MiB in %d segments", s.DiskBytes>>20, s.Segments)
	}
	mustClose(b, q)
	return rate, perCommit
}

// throughLog returns bytes/s of writes of size to a reused file with an fdatasync for
// every perSync bytes.
func throughLog(b *testing.B, size, perSync int, total int64) float64 {
	const space = 64 << 20
	f, err := os.Create(filepath.Join(b.TempDir(), "log"))
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	data := testEntry(1, 1, size).Batch.Data
	write := func(total int64) {
		var off int64
		unsynced := 0
		for sent := int64(0); sent < total; sent += int64(size) {
			if off+int64(size) > space {
				off = 0
			}
			if _, err := f.WriteAt(data, off); err != nil {
				b.Fatal(err)
			}
			off += int64(size)
			if unsynced += size; unsynced >= perSync {
				unsynced = 0
				if err := unix.Fdatasync(int(f.Fd())); err != nil {
					b.Fatal(err)
				}
			}
		}
		if err := unix.Fdatasync(int(f.Fd())); err != nil {
			b.Fatal(err)
		}
	}
	write(space)
	start := time.Now()
	write(total)
	return float64(total) / time.Since(start).Seconds()
}
