package sink

import (
	"context"
	"errors"
	"time"

	"ftfuse/internal/output"
)

// Times and sizes of holding.
const (
	firstRetry = 100 * time.Millisecond
	lastRetry  = 5 * time.Second
	sayAgain   = time.Minute // between two log lines about one file
	probeBytes = 64 << 10    // kept of what could not be written, to try with
	maxProbes  = 256         // held files that keep a probe; the others wait for them
)

// hold is the state of a generation that cannot be written to for now: a full disk, a
// missing permission. Its batches stay in the queue; other files go on.
type hold struct {
	why   error
	due   time.Time
	wait  time.Duration
	said  time.Time
	since time.Time
	pos   int64
	probe []byte // what stands at pos; nil: unknown
}

// hold puts g aside. segs is what could not be written, from pos on.
func (a *applier) hold(g *generation, why error, pos int64, segs [][]byte) {
	now := time.Now()
	h := &hold{why: why, wait: firstRetry, due: now.Add(firstRetry), said: now, since: now, pos: pos}
	if len(a.held) < maxProbes {
		for _, s := range segs {
			h.probe = append(h.probe, s[:min(len(s), probeBytes-len(h.probe))]...)
		}
	}
	g.hold = h
	a.setHeld(g, true)
	a.log.Error("output file cannot be written to; its data stays in the queue, other files go on",
		"file", g.file.path, "error", why)
}

// setHeld keeps the number of held files readable for Stats.
func (a *applier) setHeld(g *generation, held bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if held {
		a.held[g] = struct{}{}
	} else {
		delete(a.held, g)
	}
}

// nextRetry returns when the next held file is due.
func (a *applier) nextRetry() (due time.Time, ok bool) {
	for g := range a.held {
		if !ok || g.hold.due.Before(due) {
			due, ok = g.hold.due, true
		}
	}
	return due, ok
}

// retry tries the held files that are due, with the first bytes that they could not
// take. When one takes them, all are let go and the queue is read again from the oldest
// batch that is not on disk.
func (a *applier) retry(ctx context.Context) error {
	now, free := time.Now(), false
	for g := range a.held {
		if g.hold.due.After(now) {
			continue
		}
		ok, err := a.tryHeld(ctx, g)
		if err != nil {
			return err
		}
		free = free || ok
	}
	if free {
		a.cur.Rewind()
	}
	return nil
}

// tryHeld makes one attempt; true means that g is held no longer.
func (a *applier) tryHeld(ctx context.Context, g *generation) (bool, error) {
	h := g.hold
	a.count.retries.Add(1)
	var err error
	if len(h.probe) > 0 {
		err = a.put(ctx, g, h.pos, h.pos+int64(len(h.probe)), [][]byte{h.probe})
	}
	var stop *stopError
	if err != nil && (ctx.Err() != nil || errors.As(err, &stop)) {
		return false, err
	}
	if err == nil || errors.Is(err, output.ErrRefused) { // refused: the whole extent becomes a dead letter when it is read again
		g.hold = nil
		a.setHeld(g, false)
		a.log.Info("output file is tried again", "file", g.file.path, "held", time.Since(h.since).Round(time.Millisecond).String())
		return true, nil
	}
	if done := g.next - h.pos; done > 0 { // it took some
		h.probe, h.pos = h.probe[done:], g.next
	}
	now := time.Now()
	h.why, h.wait = err, min(2*h.wait, lastRetry)
	h.due = now.Add(h.wait)
	if now.Sub(h.said) >= sayAgain {
		h.said = now
		a.log.Error("output file still cannot be written to; its data stays in the queue",
			"file", g.file.path, "error", err, "since", now.Sub(h.since).Round(time.Second).String())
	}
	return false, nil
}
