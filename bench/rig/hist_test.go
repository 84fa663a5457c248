package rig

import (
	"bytes"
	"testing"
	"time"
)

func TestHistQuantiles(t *testing.T) {
	var h Hist
	if h.Quantile(0.5) != 0 {
		t.Error("an empty histogram has a median")
	}
	for d := time.Duration(1); d <= 100_000; d++ {
		h.Add(d * time.Microsecond)
	}
	for q, want := range map[float64]time.Duration{0.5: 50 * time.Millisecond, 0.99: 99 * time.Millisecond, 1: 100 * time.Millisecond} {
		if got := h.Quantile(q); got < want || float64(got) > 1.07*float64(want) {
			t.Errorf("quantile %v is %v, want %v or at most 7 %% more", q, got, want)
		}
	}
	for d := range time.Duration(1 << 16) {
		i := histBucket(d)
		if histEnd(i) < d || (i > 0 && histEnd(i-1) >= d) {
			t.Fatalf("%d ns is in bucket %d, from %d to %d", d, i, histEnd(i-1), histEnd(i))
		}
	}
}

func TestStampedLines(t *testing.T) {
	now := Now()
	line := appendStamped([]byte("x"), now, 64)[1:]
	if got, ok := Stamp(line); !ok || got != now || len(line) != 64 {
		t.Errorf("%q reads as %d, %v, want %d", line, got, ok, now)
	}
	for _, bad := range [][]byte{line[:63], line[1:], bytes.ToUpper(append([]byte("x"), line[1:]...)), nil, []byte("\n")} {
		if n, ok := Stamp(bad); ok && n == now {
			t.Errorf("%q passes as stamped", bad)
		}
	}
}

func TestAttributesOfALogLine(t *testing.T) {
	line := `time=x level=INFO msg=ready point=/mnt/a pid=42 capture=daemon why="no \"root\" here" attribution=write`
	for key, want := range map[string]string{"pid": "42", "capture": "daemon", "why": `no "root" here`, "attribution": "write", "none": "", "id": ""} {
		if got := attr(line, key); got != want {
			t.Errorf("%s is %q, want %q", key, got, want)
		}
	}
}
