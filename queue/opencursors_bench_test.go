package queue

import (
	"runtime"
	"testing"
	"time"
)

// BenchmarkOpenWithoutACursor opens a queue of 50,000 batches, in segments that the page cache has
// not: with its cursors (rest), with one less, which alone needs all of it (removed), and with
// one more, which does not want half of them (added). The figures are how long Open took
// (open-ms), until what nobody needs was dropped (settled-ms), what was allocated by then, and what the
// heap still has of it.
//
//	flock /tmp/ftfuse/bench.lock go test ./queue -run '^$' -bench OpenWithoutACursor -benchtime 1x
func BenchmarkOpenWithoutACursor(b *testing.B) {
	const count = 50000
	for _, c := range []struct {
		name string
		to   []string
	}{{"rest", []string{"a", "b"}}, {"removed", []string{"a"}}, {"added", []string{"a", "b", "odd"}}} {
		b.Run(c.name, func(b *testing.B) {
			for range b.N {
				to := benchOptions
				to.Cursors, to.Wants = c.to, benchWants
				benchOpen(b, count, to)
			}
		})
	}
}

func benchOpen(b *testing.B, count uint64, to Options) {
	dir, _ := benchBacklog(b, count, len(to.Cursors) == 1)
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	b.ResetTimer()
	start := time.Now()
	p, err := Open(dir, to)
	if err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(float64(time.Since(start).Milliseconds()), "open-ms")
	settled(p)
	b.ReportMetric(float64(time.Since(start).Milliseconds()), "settled-ms")
	runtime.ReadMemStats(&after)
	b.ReportMetric(float64(after.TotalAlloc-before.TotalAlloc)/(1<<20), "alloc-MiB")
	runtime.GC()
	runtime.ReadMemStats(&after)
	b.ReportMetric((float64(after.HeapAlloc)-float64(before.HeapAlloc))/(1<<20), "kept-MiB")
	mustClose(b, p)
}
