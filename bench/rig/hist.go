package rig

import (
	"math/bits"
	"time"

	"golang.org/x/sys/unix"
)

// Hist counts durations in buckets a sixteenth of a power of two wide: a quantile is at
// most 6 % too long. The zero value is empty. Not safe for concurrent use.
type Hist struct {
	count [64 * histFine]int64
	n     int64
	max   time.Duration
}

const histFine = 16

func histBucket(d time.Duration) int {
	v := uint64(max(d, 0))
	if v < histFine {
		return int(v)
	}
	top := bits.Len64(v) - 5 // four bits behind the highest one
	return (top+1)*histFine + int(v>>top)&(histFine-1)
}

// histEnd is the longest duration that goes into bucket i.
func histEnd(i int) time.Duration {
	if i < histFine {
		return time.Duration(i)
	}
	top := i/histFine - 1
	return time.Duration((uint64(histFine+i%histFine)+1)<<top - 1)
}

// Add counts one duration.
func (h *Hist) Add(d time.Duration) {
	h.count[histBucket(d)]++
	h.n++
	h.max = max(h.max, d)
}

// N is how many durations were counted.
func (h *Hist) N() int64 { return h.n }

// Max is the longest of them.
func (h *Hist) Max() time.Duration { return h.max }

// Quantile is a duration that a share q of them does not exceed, 0 when there are none.
func (h *Hist) Quantile(q float64) time.Duration {
	rank := int64(q * float64(h.n))
	var seen int64
	for i, c := range h.count {
		if seen += c; c > 0 && seen >= rank {
			return min(histEnd(i), h.max)
		}
	}
	return h.max
}

// Now is the monotonic clock in nanoseconds, the same for all processes of a machine.
func Now() int64 {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts) // fails for no clock that Linux has
	return ts.Nano()
}

// stampDigits is how many digits the time in a stamped line takes.
const stampDigits = 19

// MinStamped is the length of the shortest line with a time, its line end included.
const MinStamped = stampDigits + 1

// appendStamped appends a line of size bytes that begins with the monotonic time now.
func appendStamped(b []byte, now int64, size int) []byte {
	from := len(b)
	for range size - 1 {
		b = append(b, '.')
	}
	for i := from + stampDigits - 1; i >= from; i-- {
		b[i] = byte('0' + now%10)
		now /= 10
	}
	return append(b, '\n')
}

// Stamp reads the time of a stamped line; false if it is none of those.
func Stamp(line []byte) (int64, bool) {
	if len(line) < MinStamped || line[len(line)-1] != '\n' {
		return 0, false
	}
	var n int64
	for _, d := range line[:stampDigits] {
		if d -= '0'; d > 9 {
			return 0, false
		}
		n = n*10 + int64(d)
	}
	return n, true
}
