package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"sync"
	"time"

	"ftfuse/bench/rig"
)

// pacedSize is the length of the lines whose latency is measured.
const pacedSize = 128

// slowRate is the lower of the two rates, in lines a second.
const slowRate = 1000

// paced measures one program that writes at a steady rate: write(2) to output file, every
// line with the time it was written at. Once at slowRate, and once at half of what the
// mount has reached in this run with one write(2) a line.
func (b *bench) paced(attr string, r *Report) ([]Paced, error) {
	var out []Paced
	for _, way := range []struct {
		rate int
		half bool
	}{{slowRate, false}, {r.full(attr) / 2, true}} {
		if way.rate < slowRate || b.ctx.Err() != nil {
			continue
		}
		p, err := b.pace(attr, way.rate, b.short(8*time.Second))
		if err != nil {
			return nil, fmt.Errorf("%d lines/s: %w", way.rate, err)
		}
		p.Half = way.half
		out = append(out, *p)
		fmt.Fprintf(b.log, "%s, %d lines/s: p50 %.1f ms, p99 %.1f ms, max %.1f ms; write(2) p99 %.1f us, max %.1f ms\n",
			attr, way.rate, p.P50, p.P99, p.Max, p.WriteP99*1e3, p.WriteMax)
	}
	return out, nil
}

// full is the best rate of lines that the mount has reached in this run, with lines of
// pacedSize if there were such; 0 if none was measured.
func (r *Report) full(attr string) int {
	best, size := 0.0, 0
	for _, c := range r.Cases {
		got := c.of(attr)
		if got == nil || c.Mode != ModeLine || (size == pacedSize && c.Size != pacedSize) {
			continue
		}
		if c.Size == pacedSize && size != pacedSize {
			best = 0
		}
		best, size = max(best, got.LineS), c.Size
	}
	return int(best)
}

func (b *bench) pace(attr string, perSecond int, d time.Duration) (*Paced, error) {
	pair, err := b.pair("paced", attr)
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(pair.Dir)
	defer pair.Close()
	lines := int(float64(perSecond) * d.Seconds())
	w, err := rig.StartWriter(b.bin, rig.Job{Path: pair.In("paced.log"), Size: pacedSize, Lines: lines, Rate: perSecond, Stamp: true, Clock: true})
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(b.ctx, d+30*time.Second)
	defer cancel()
	defer context.AfterFunc(ctx, w.Kill)()
	look := 200 * time.Microsecond
	if perSecond > 20*slowRate {
		look = 500 * time.Microsecond
	}
	var seen rig.Hist
	var watchErr error
	var wg sync.WaitGroup
	wg.Go(func() { watchErr = watchStamps(ctx, pair.Out("paced.log"), lines, look, &seen) })
	err = w.Go()
	var res rig.Result
	if err == nil {
		res, err = w.Wait()
	}
	if err != nil {
		cancel()
	}
	wg.Wait()
	if err := errors.Join(err, watchErr); err != nil {
		return nil, fmt.Errorf("%w%s", err, logs(pair))
	}
	ms := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1e3 }
	return &Paced{
		Attribution: attr, Rate: perSecond, Size: pacedSize, WriteP99: res.P99, WriteMax: res.Longest,
		Latency: Latency{Lines: lines, P50: ms(seen.Quantile(0.5)), P99: ms(seen.Quantile(0.99)), Max: ms(seen.Max())},
	}, pair.Stop()
}

// watchStamps follows the file at path until it has so many stamped lines, and adds the age
// of each to seen at the moment it could be read.
func watchStamps(ctx context.Context, path string, lines int, look time.Duration, seen *rig.Hist) error {
	var f *os.File
	defer func() { f.Close() }() // nil if it never opened
	buf := make([]byte, 1<<20/pacedSize*pacedSize)
	for off := int64(0); seen.N() < int64(lines); {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("follow %s: %d of %d lines have come: %w", path, seen.N(), lines, err)
		}
		if f == nil {
			var err error
			if f, err = os.Open(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return fmt.Errorf("follow the output: %w", err)
			}
		}
		n := 0
		if f != nil {
			var err error
			if n, err = f.ReadAt(buf, off); err != nil && !errors.Is(err, io.EOF) {
				return fmt.Errorf("follow the output: %w", err)
			}
		}
		now := rig.Now()
		n -= n % pacedSize
		for at := 0; at < n; at += pacedSize {
			sent, ok := rig.Stamp(buf[at : at+pacedSize])
			if !ok {
				return fmt.Errorf("follow %s: at offset %d there is no line of the writer: %q", path, off+int64(at), buf[at:at+pacedSize])
			}
			seen.Add(time.Duration(now - sent))
		}
		if off += int64(n); n == 0 {
			sleep(look)
		}
	}
	return nil
}
