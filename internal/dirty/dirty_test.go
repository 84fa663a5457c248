package dirty

import (
	"bytes"
	"runtime"
	"testing"
)

// TestMake: slices of all sizes are their own, whole, and survive the collector.
func TestMake(t *testing.T) {
	var all [][]byte
	for _, n := range []int{0, 1, 7, 100, 4096, 40_000, 1 << 20} {
		for fill := range byte(4) {
			b := Make(n)
			if len(b) != 0 || cap(b) < n {
				t.Fatalf("Make(%d) has length %d, capacity %d", n, len(b), cap(b))
			}
			b = b[:n]
			for i := range b {
				b[i] = fill
			}
			all = append(all, b)
			runtime.GC()
		}
	}
	for i, b := range all {
		if !bytes.Equal(b, bytes.Repeat([]byte{byte(i % 4)}, len(b))) {
			t.Fatalf("slice %d changed", i)
		}
	}
}

// BenchmarkMake beside make: what the clearing costs.
func BenchmarkMake(b *testing.B) {
	b.Run("dirty", func(b *testing.B) {
		for b.Loop() {
			sink = Make(1 << 20)
		}
	})
	b.Run("make", func(b *testing.B) {
		for b.Loop() {
			sink = make([]byte, 1<<20)
		}
	})
}

var sink []byte
