package main

import (
	"fmt"
	"io"
	"strings"
	"time"
)

// bar shows how far a sending is, on one line of a terminal.
type bar struct {
	w     io.Writer
	name  string
	began time.Time
	drawn time.Time
	first int64 // where it began; -1: not yet
	pos   int64
	size  int64 // -1: nobody knows
	now   func() time.Time
}

const (
	barWidth = 24
	barEvery = 100 * time.Millisecond
)

func newBar(w io.Writer, name string) *bar {
	return &bar{w: w, name: name, first: -1, now: time.Now}
}

// show is told of progress. A position before the last one is where a resumed sending begins.
func (b *bar) show(pos, size int64) {
	if b.first < 0 {
		b.first, b.began = pos, b.now()
	}
	b.pos, b.size = pos, size
	if b.now().Sub(b.drawn) >= barEvery {
		b.draw()
	}
}

func (b *bar) draw() {
	b.drawn = b.now()
	fmt.Fprintf(b.w, "\r\x1b[K%s", b.line())
}

// line is what the bar says now.
func (b *bar) line() string {
	took := b.now().Sub(b.began).Seconds()
	rate := float64(b.pos-b.first) / max(took, 0.001)
	speed := ""
	if b.pos > b.first {
		speed = "  " + bytesOf(int64(rate)) + "/s"
	}
	if b.size < 0 {
		return fmt.Sprintf("%s  %s%s", b.name, bytesOf(b.pos), speed)
	}
	share := 1.0
	if b.size > 0 {
		share = float64(b.pos) / float64(b.size)
	}
	full := int(share * barWidth)
	left := ""
	if rate > 0 && b.pos < b.size {
		left = "  " + time.Duration(float64(b.size-b.pos)/rate*1e9).Round(time.Second).String()
	}
	return fmt.Sprintf("%s  [%s%s] %3.0f %%  %s of %s%s%s",
		b.name, strings.Repeat("=", full), strings.Repeat(" ", barWidth-full), share*100, bytesOf(b.pos), bytesOf(b.size), speed, left)
}

// end shows the last of it, and leaves the line.
func (b *bar) end() {
	b.first = max(b.first, 0)
	if !b.drawn.IsZero() {
		b.draw()
		fmt.Fprintln(b.w)
	}
}

// bytesOf is n in the unit that suits it.
func bytesOf(n int64) string {
	const units = "KMGTPE"
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	v, i := float64(n)/1024, 0
	for v >= 1024 && i < len(units)-1 {
		v, i = v/1024, i+1
	}
	return fmt.Sprintf("%.1f %ciB", v, units[i])
}
