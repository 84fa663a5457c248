package capture

import "time"

// pace bounds what is in flight to the queue by time: whoever waits for the disk, an fsync(2)
// of another file, waits behind it. So there is as much as the queue committed lately within
// paceTime, but never less than paceLeast, with which a disk is kept busy.
const (
	paceTime  = 10 * time.Millisecond
	paceLeast = 3 << 20
	pacePart  = 5 * time.Millisecond // a rate is measured over as long at least
)

// pace measures how fast the queue commits while it has work. It is under Capture.mu.
type pace struct {
	rate  float64 // bytes a second, smoothed; 0: not known
	since time.Time
	bytes int64
}

// begin is told that something is in flight again.
func (p *pace) begin(now time.Time) { p.since, p.bytes = now, 0 }

// done is told that n bytes were committed.
func (p *pace) done(n int64, now time.Time) {
	p.bytes += n
	d := now.Sub(p.since)
	if d < pacePart {
		return
	}
	rate := float64(p.bytes) / d.Seconds()
	if p.rate == 0 {
		p.rate = rate
	}
	p.rate += (rate - p.rate) * 0.3
	p.since, p.bytes = now, 0
}

// limit is how many bytes may be in flight, most at most.
func (p *pace) limit(most int64) int64 {
	return min(most, max(paceLeast, int64(p.rate*paceTime.Seconds())))
}
