package record

import (
	"fmt"
	"io"
	"testing"

	"ftfuse/internal/batch"
)

// BenchmarkBuild seals batches of 1 MiB, CRC included, from records of one size and
// so many interleaved writers; copy beside it is the least such a thing can cost.
func BenchmarkBuild(b *testing.B) {
	for _, c := range []struct{ size, writers int }{{10, 1}, {10, 4}, {10, 100}, {128, 1}, {1024, 4}, {65536, 1}, {65536, 4}} {
		b.Run(fmt.Sprintf("%dB/%dw", c.size, c.writers), func(b *testing.B) {
			data := make([]byte, c.size)
			attrs := make([]Attr, c.writers)
			for i := range attrs {
				attrs[i] = Attr{Host: "web-01", Path: fmt.Sprintf("logs/access-%d.log", i), PID: 4711}
			}
			bld := NewBuilder(1 << 20)
			b.SetBytes(int64(c.size))
			b.ReportAllocs()
			var over, n int
			for i := 0; b.Loop(); i++ {
				a := &attrs[i%c.writers]
				a.Time = int64(i) * 7013
				if !bld.Add(a, data) {
					s := bld.Seal(testID(1), 0)
					over, n = len(s.Data)-int(s.Payload), int(s.Records)
					bld.Add(a, data)
				}
			}
			if n > 0 {
				b.ReportMetric(float64(over)/float64(n), "overhead-B/rec")
			}
		})
	}
}

// BenchmarkCopyAndChecksum is the reference for BenchmarkBuild of 64 KiB records.
func BenchmarkCopyAndChecksum(b *testing.B) {
	src, dst := make([]byte, 65536), make([]byte, 1<<20)
	b.SetBytes(65536)
	for i := 0; b.Loop(); i++ {
		copy(dst[i%16*65536:], src)
		if i%16 == 15 {
			batch.Checksum(dst)
		}
	}
}

// BenchmarkRead reads batches of 1 MiB.
func BenchmarkRead(b *testing.B) {
	for _, c := range []struct{ size, writers int }{{10, 1}, {10, 4}, {1024, 4}, {65536, 1}} {
		b.Run(fmt.Sprintf("%dB/%dw", c.size, c.writers), func(b *testing.B) {
			bld := NewBuilder(1 << 20)
			data := make([]byte, c.size)
			for i := 0; ; i++ {
				a := Attr{Host: "web-01", Path: fmt.Sprint("logs/", i%c.writers), Time: int64(i) * 7013}
				if !bld.Add(&a, data) {
					break
				}
			}
			s := bld.Seal(testID(1), 0)
			var r Reader
			_ = r.Reset(s)
			b.SetBytes(int64(c.size))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := r.Next(); err == io.EOF {
					_ = r.Reset(s)
				} else if err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
