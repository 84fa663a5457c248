package receive

import (
	"fmt"
	"os"
	"sort"
	"syscall"
	"testing"
	"time"
)

// BenchmarkLatencyAtRest is the time from a batch given to the client until its bytes
// can be read from the output file, one batch at a time.
func BenchmarkLatencyAtRest(b *testing.B) {
	s := newSetup(b)
	s.CheckpointEvery = 0
	x := start(b, s)
	f := newFeeder(1)
	f.connect(b, s.Listen)
	var took []time.Duration
	size := int64(0)
	for range 200 {
		data := fmt.Sprintf("line %d\n", size)
		begin := time.Now()
		f.add(rec{host: "h", path: "f", data: data})
		size += int64(len(data))
		poll := time.NewTicker(50 * time.Microsecond)
		for i, err := os.Stat(s.out("h", "f")); err != nil || i.Size() < size; i, err = os.Stat(s.out("h", "f")) {
			<-poll.C
		}
		poll.Stop()
		took = append(took, time.Since(begin))
	}
	sort.Slice(took, func(i, j int) bool { return took[i] < took[j] })
	b.ReportMetric(float64(took[100].Microseconds())/1e3, "ms-p50")
	b.ReportMetric(float64(took[197].Microseconds())/1e3, "ms-p99")
	f.until(b, "final acks", f.allFinal)
	var before, after syscall.Rusage
	must(b, syscall.Getrusage(syscall.RUSAGE_SELF, &before))
	rest := time.Now()
	<-time.After(2 * time.Second)
	must(b, syscall.Getrusage(syscall.RUSAGE_SELF, &after))
	cpu := time.Duration(after.Utime.Nano() + after.Stime.Nano() - before.Utime.Nano() - before.Stime.Nano())
	b.ReportMetric(100*cpu.Seconds()/time.Since(rest).Seconds(), "%cpu-at-rest")
	b.ReportMetric(0, "ns/op")
	x.end()
}
