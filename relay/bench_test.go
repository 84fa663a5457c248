package relay

import (
	"fmt"
	"syscall"
	"testing"
	"time"

	"ftfuse/internal/batch"
)

// BenchmarkRelay is the role alone, in a process of its own: batches of 1 MiB over
// loopback, until the next node has all of them. It reports the CPU time of the relay for
// each GB passed on.
func BenchmarkRelay(b *testing.B) {
	const total = 1024
	for range b.N {
		a := newAggregator(b, 9)
		a.discard = true
		s := newSetup(b, a)
		f := newFeeder(1)
		line := make([]byte, 1<<20-200)
		for i := range line {
			line[i] = byte('a' + i%23)
		}
		first := f.seal("h", "f", string(line))
		for n := range uint64(total) {
			c := first
			c.ID = batch.ID{Lane: f.lane, N: n + 1}
			f.queue = append(f.queue, c)
		}
		p := spawn(b, s, "")
		begin := time.Now()
		f.connect(b, s.Listen)
		a.expect("all batches", func() bool { return a.count == total })
		took := time.Since(begin)
		p.kill()
		gb := float64(total*len(first.Data)) / 1e9
		cpu := p.cmd.ProcessState.UserTime() + p.cmd.ProcessState.SystemTime()
		b.ReportMetric(cpu.Seconds()/gb, "cpu-s/GB")
		b.ReportMetric(p.cmd.ProcessState.UserTime().Seconds()/gb, "user-s/GB")
		b.ReportMetric(1000*gb/took.Seconds(), "MB/s")
		usage := p.cmd.ProcessState.SysUsage().(*syscall.Rusage)
		b.ReportMetric(float64(usage.Minflt)/gb/1000, "kfaults/GB")
		b.ReportMetric(float64(usage.Maxrss)/1024, "MB-rss")
		b.ReportMetric(0, "ns/op")
		if testing.Verbose() {
			fmt.Println(p.log)
		}
	}
}
