package capture

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ftfuse/internal/record"
	"ftfuse/mount/spool"
	"ftfuse/queue"
)

// kernelRig is a real spool and a real queue, whose consumer acks at once and looks at what
// comes.
type kernelRig struct {
	s    *spool.Store
	c    *Capture
	q    *queue.Queue
	stop func()
}

func newKernelRig(b testing.TB, seen func(x record.Record), inFlight int64) *kernelRig {
	q, err := queue.Open(b.TempDir(), queue.Options{Cursors: []string{"all"}})
	if err != nil {
		b.Fatal(err)
	}
	s, err := spool.Open(b.TempDir(), spool.Options{Readback: 64 << 10})
	if err != nil {
		b.Fatal(err)
	}
	c, err := New(Options{Store: s, Queue: q, Host: "web-01", InFlight: inFlight})
	if err != nil {
		b.Fatal(err)
	}
	if err := c.Recover(b.Context(), nil); err != nil {
		b.Fatal(err)
	}
	cur, err := q.Cursor("all")
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ran, read := make(chan error, 1), make(chan struct{})
	go func() { ran <- c.Run(ctx) }()
	go func() {
		defer close(read)
		for {
			it, err := cur.Next(ctx)
			if err != nil {
				return
			}
			if r, err := record.Open(it.Batch); err == nil && seen != nil {
				for x, err := r.Next(); err == nil; x, err = r.Next() {
					seen(x)
				}
			}
			cur.Ack(it.Seq)
		}
	}()
	return &kernelRig{s, c, q, func() {
		cancel()
		<-ran
		<-read
		s.Close()
		q.Close()
	}}
}

// open makes a file with a kernel writer and returns its descriptor.
func (r *kernelRig) open(b testing.TB, path string) (*spool.Handle, int) {
	f, err := r.s.Create(path, 0o600, ^uint32(0), ^uint32(0))
	if err != nil {
		b.Fatal(err)
	}
	h, err := r.s.OpenHandle(f, path, spool.Kernel, &spool.Meta{PID: 1, Time: 1})
	if err != nil {
		b.Fatal(err)
	}
	fd, err := unix.Open(r.s.Dir()+"/spool/"+f.Number().String(), unix.O_WRONLY|unix.O_APPEND|unix.O_CLOEXEC, 0)
	if err != nil {
		b.Fatal(err)
	}
	return h, fd
}

// BenchmarkKernel is bytes that the kernel wrote, from the spool file to the queue's disk;
// the writer appends 1 MiB at a time.
func BenchmarkKernel(b *testing.B) {
	for _, line := range []int{10, 128, 1024, 4096} {
		b.Run(fmt.Sprintf("%dB-lines", line), func(b *testing.B) {
			r := newKernelRig(b, nil, 0)
			defer r.stop()
			h, fd := r.open(b, "a")
			defer unix.Close(fd)
			text := []byte(strings.Repeat(strings.Repeat("x", line-1)+"\n", (1<<20)/line))
			lines := len(text) / line
			b.SetBytes(int64(line))
			b.ReportAllocs()
			b.ResetTimer()
			for left := b.N; left > 0; {
				n := min(lines, left)
				if _, err := unix.Write(fd, text[:n*line]); err != nil {
					b.Fatal(err)
				}
				left -= n
				for r.s.Uncaptured() > 64<<20 {
					<-r.s.Changed()
				}
			}
			if err := r.c.Drain(b.Context(), h.Number()); err != nil {
				b.Fatal(err)
			}
			b.StopTimer()
		})
	}
}

func cpu() time.Duration {
	var u unix.Rusage
	_ = unix.Getrusage(unix.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkKernelIdle is the CPU time of a second with many open files that nobody writes
// to: cpu-ms/s.
func BenchmarkKernelIdle(b *testing.B) {
	for _, files := range []int{1, 1000, 10_000} {
		b.Run(fmt.Sprint(files, "-files"), func(b *testing.B) {
			r := newKernelRig(b, nil, 0)
			defer r.stop()
			for i := range files {
				f, err := r.s.Create(fmt.Sprint("f", i), 0o600, ^uint32(0), ^uint32(0))
				if err != nil {
					b.Fatal(err)
				}
				if _, err := r.s.OpenHandle(f, fmt.Sprint("f", i), spool.Kernel, &spool.Meta{PID: 1}); err != nil {
					b.Fatal(err)
				}
			}
			for d, busy := r.s.NextPoll(); busy; d, busy = r.s.NextPoll() {
				time.Sleep(d + time.Millisecond)
			}
			began := cpu()
			b.ResetTimer()
			for range b.N {
				time.Sleep(time.Second)
			}
			b.ReportMetric(float64((cpu()-began).Microseconds())/1000/float64(b.N), "cpu-ms/s")
		})
	}
}

// BenchmarkKernelLatency is the time from write(2) to what the queue's cursor gives, of a
// line every 2 ms, alone and beside files that are written to at full speed: ms.
func BenchmarkKernelLatency(b *testing.B) {
	for _, busy := range []int{0, 1, 4} {
		b.Run(fmt.Sprint(busy, "-busy"), func(b *testing.B) {
			var took []time.Duration
			came := make(chan time.Duration, 1<<20)
			r := newKernelRig(b, func(x record.Record) {
				if x.Path == "quiet" {
					now := time.Now().UnixNano()
					for l := range strings.Lines(string(x.Data)) {
						var at int64
						fmt.Sscanf(l, "%d", &at)
						came <- time.Duration(now - at)
					}
				}
			}, 0)
			defer r.stop()
			_, quiet := r.open(b, "quiet")
			var stop atomic.Bool
			var wrote atomic.Int64
			done := make(chan struct{}, busy)
			text := []byte(strings.Repeat(strings.Repeat("x", 127)+"\n", 512)) // 64 KiB
			for i := range busy {
				_, fd := r.open(b, fmt.Sprint("busy", i))
				go func() {
					defer func() { done <- struct{}{} }()
					for !stop.Load() {
						for r.s.Uncaptured() > 64<<20 && !stop.Load() {
							time.Sleep(time.Millisecond)
						}
						unix.Write(fd, text)
						wrote.Add(int64(len(text)))
					}
				}()
			}
			b.ResetTimer()
			began := time.Now()
			tick := time.NewTicker(2 * time.Millisecond)
			for range b.N {
				<-tick.C
				unix.Write(quiet, fmt.Appendf(nil, "%d\n", time.Now().UnixNano()))
			}
			for range b.N {
				took = append(took, <-came)
			}
			b.StopTimer()
			mb := float64(wrote.Load()) / 1e6 / time.Since(began).Seconds()
			stop.Store(true)
			for range busy {
				<-done
			}
			slices.Sort(took)
			ms := func(p float64) float64 { return took[int(p*float64(len(took)-1))].Seconds() * 1000 }
			b.ReportMetric(ms(0.5), "p50-ms")
			b.ReportMetric(ms(0.99), "p99-ms")
			b.ReportMetric(ms(1), "max-ms")
			b.ReportMetric(mb, "MB/s-beside")
		})
	}
}

// BenchmarkKernelFsync is write(2) and fsync(2) of a line beside a file at full speed, by
// what may be in flight to the queue: ms.
func BenchmarkKernelFsync(b *testing.B) {
	for _, inFlight := range []int64{8 << 20, 3 << 20} {
		b.Run(fmt.Sprintf("%dMiB-in-flight-at-most", inFlight>>20), func(b *testing.B) {
			r := newKernelRig(b, nil, inFlight)
			defer r.stop()
			h, quiet := r.open(b, "quiet")
			_, busy := r.open(b, "busy")
			var stop atomic.Bool
			done := make(chan int64)
			text := []byte(strings.Repeat(strings.Repeat("x", 127)+"\n", 512)) // 64 KiB
			go func() {
				wrote := int64(0)
				for !stop.Load() {
					for r.s.Uncaptured() > 64<<20 && !stop.Load() {
						time.Sleep(time.Millisecond)
					}
					unix.Write(busy, text)
					wrote += int64(len(text))
				}
				done <- wrote
			}()
			var took []time.Duration
			b.ResetTimer()
			began := time.Now()
			for range b.N {
				at := time.Now()
				unix.Write(quiet, []byte("line\n"))
				if err := r.c.Drain(b.Context(), h.Number()); err != nil {
					b.Fatal(err)
				}
				took = append(took, time.Since(at))
			}
			b.StopTimer()
			lasted := time.Since(began)
			stop.Store(true)
			wrote := <-done
			slices.Sort(took)
			ms := func(p float64) float64 { return took[int(p*float64(len(took)-1))].Seconds() * 1000 }
			b.ReportMetric(ms(0.5), "p50-ms")
			b.ReportMetric(ms(0.99), "p99-ms")
			b.ReportMetric(ms(1), "max-ms")
			b.ReportMetric(float64(wrote)/1e6/lasted.Seconds(), "MB/s-beside")
		})
	}
}
