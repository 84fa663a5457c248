package bench

import (
	"context"
	"fmt"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"
)

// probeLine is the length of a probe's line.
const probeLine = 32

// probe writes a line now and then to a file of the mount and looks how long it takes
// to stand in the output file.
type probe struct {
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu   sync.Mutex
	sent []time.Time
	took []time.Duration
	err  error
}

// startProbe begins to append to in, perSecond lines a second, and to look at out every
// look, until stop or the end of ctx.
func startProbe(ctx context.Context, in, out string, perSecond int, look time.Duration) (*probe, error) {
	f, err := os.OpenFile(in, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, fmt.Errorf("open the probe's file: %w", err)
	}
	ctx, cancel := context.WithCancel(ctx)
	p := &probe{cancel: cancel}
	// The watch ends after the last line was sent, or it would not look for that one.
	sent, done := context.WithCancel(context.WithoutCancel(ctx))
	p.wg.Go(func() {
		defer done()
		defer f.Close()
		p.write(ctx, f, time.Second/time.Duration(perSecond))
	})
	p.wg.Go(func() { p.watch(sent, out, look) })
	return p, nil
}

func (p *probe) write(ctx context.Context, f *os.File, every time.Duration) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for n := 0; ; n++ {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		line := fmt.Appendf(nil, "%*d\n", probeLine-1, n)
		p.mu.Lock()
		p.sent = append(p.sent, time.Now())
		p.mu.Unlock()
		if _, err := f.Write(line); err != nil {
			p.mu.Lock()
			p.err = fmt.Errorf("append to the probe's file: %w", err)
			p.mu.Unlock()
			return
		}
	}
}

// watch notes when each line has come. After the end of ctx it looks on for what is
// still under way, ten seconds at most.
func (p *probe) watch(ctx context.Context, out string, look time.Duration) {
	var until time.Time
	for {
		var st syscall.Stat_t
		came := 0
		if syscall.Stat(out, &st) == nil {
			came = int(st.Size / probeLine)
		}
		now := time.Now()
		p.mu.Lock()
		for len(p.took) < min(came, len(p.sent)) {
			p.took = append(p.took, now.Sub(p.sent[len(p.took)]))
		}
		all := len(p.took) == len(p.sent) || p.err != nil
		p.mu.Unlock()
		if ctx.Err() != nil {
			if until.IsZero() {
				until = now.Add(10 * time.Second)
			}
			if all || now.After(until) {
				return
			}
		}
		sleep(look)
	}
}

// sleep sleeps d in this thread: time.Sleep rounds up to a millisecond.
func sleep(d time.Duration) {
	ts := syscall.NsecToTimespec(int64(d))
	_ = syscall.Nanosleep(&ts, nil) // woken early: looks early
}

// stop ends the probe and returns what it saw.
func (p *probe) stop() (*Latency, error) {
	p.cancel()
	p.wg.Wait()
	if p.err != nil {
		return nil, p.err
	}
	if len(p.took) == 0 {
		return nil, fmt.Errorf("measure the latency: none of %d lines came out", len(p.sent))
	}
	if missing := len(p.sent) - len(p.took); missing > 0 {
		return nil, fmt.Errorf("measure the latency: %d of %d lines did not come out", missing, len(p.sent))
	}
	return latency(p.took), nil
}

func latency(took []time.Duration) *Latency {
	slices.Sort(took)
	at := func(q float64) float64 {
		return float64(took[min(int(q*float64(len(took))), len(took)-1)].Microseconds()) / 1e3
	}
	return &Latency{Lines: len(took), P50: at(0.5), P99: at(0.99), Max: at(1)}
}
