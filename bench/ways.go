package bench

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"ftfuse/bench/rig"
	"ftfuse/bench/tally"
)

// pair starts a fresh mount and receiver.
func (b *bench) pair(name, attr string) (*rig.Pair, error) {
	p, err := rig.NewPair(b.bin, filepath.Join(b.dir, name))
	if err != nil {
		return nil, err
	}
	p.Queue, p.Attribution = fmt.Sprintf("durability = %q", b.o.durability), attr
	if err := p.StartBoth(b.ctx); err != nil {
		p.Close()
		return nil, err
	}
	return p, nil
}

// logs are the ends of both roles' logs, for an error.
func logs(p *rig.Pair) string {
	return fmt.Sprintf("\nmount: %s\nreceive: %s", tailOf(p.MountRole), tailOf(p.ReceiveRole))
}

// cost is what the roles of a pair used since startCost.
type cost struct {
	mount, receive []int // processes
	cpu, disk      float64
	watch          *rig.Watch
}

func startCost(p *rig.Pair) (*cost, error) {
	c := &cost{mount: p.MountRole.Family(), receive: p.ReceiveRole.Family()}
	c.watch = rig.StartWatch(append(append([]int(nil), c.mount...), c.receive...)...)
	var err error
	if c.cpu, c.disk, err = c.spent(); err != nil {
		c.watch.Stop()
		return nil, err
	}
	return c, nil
}

func (c *cost) spent() (cpu, disk float64, err error) {
	return spent(append(append([]int(nil), c.mount...), c.receive...))
}

// into stops looking and puts the figures into r.
func (c *cost) into(r *Rate) error {
	cpu, disk, err := c.spent()
	peak := c.watch.Stop()
	if err != nil {
		return err
	}
	mount, receive := sum(peak[:len(c.mount)]), sum(peak[len(c.mount):])
	r.Mount, r.Receive = &mount, &receive
	r.CPU = (cpu - c.cpu) / float64(r.Lines) * 1e6
	r.Written = (disk - c.disk) / float64(r.Bytes)
	return nil
}

func sum(all []rig.Memory) rig.Memory {
	var m rig.Memory
	for _, one := range all {
		m.Anon, m.RSS, m.Peak = m.Anon+one.Anon, m.RSS+one.RSS, m.Peak+one.Peak
	}
	return m
}

// ftfuse is the writers on a mount, until the last byte is in the receiver's file.
func (b *bench) ftfuse(p tally.Plan, mode, attr string) (_ *Rate, err error) {
	pair, err := b.pair("ftfuse", attr)
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(pair.Dir)
	defer pair.Close()
	if pair.Captures() != "passthrough" || attr == AttrWrite {
		p = capped(p, mode)
	}
	used, err := startCost(pair)
	if err != nil {
		return nil, err
	}
	probe, err := startProbe(b.ctx, pair.In("probe.log"), pair.Out("probe.log"), 100, time.Millisecond)
	if err != nil {
		return nil, err
	}
	other, err := rig.StartWriter(b.bin, rig.Job{Path: pair.In("other.log"), Size: 64, Lines: tally.MaxLines, Rate: 100, SyncEvery: 1, Clock: true})
	if err != nil {
		return nil, err
	}
	defer other.Kill()
	began := time.Now()
	writing, err := b.write(p, mode, pair.In("bench.log"), func() { began = time.Now(); _ = other.Go() }) // Wait tells
	fair, fairErr := finish(other)
	if err = errors.Join(err, fairErr); err == nil {
		_, err = rig.WaitSize(b.ctx, pair.Out("bench.log"), p.Bytes(), time.Millisecond, 30*time.Second)
	}
	all := time.Since(began)
	lat, latErr := probe.stop()
	r := rate(p, writing, all, 0)
	if err := errors.Join(err, latErr, used.into(r)); err != nil {
		return nil, fmt.Errorf("%w%s", err, logs(pair))
	}
	if err := pair.Stop(); err != nil {
		return nil, err
	}
	count, err := checkFile(pair.Out("bench.log"), p)
	if err != nil {
		return nil, err
	}
	r.Count, r.Latency, r.Fair = &count, lat, fair
	return r, nil
}

// finish ends a writer that measured each line, and returns what it saw.
func finish(w *rig.Writer) (*Latency, error) {
	w.Finish()
	res, err := w.Wait()
	if err != nil {
		return nil, err
	}
	return &Latency{Lines: int(res.Clocked), P50: res.P50, P99: res.P99, Max: res.Longest}, nil
}

// wait lets time pass, as a measurement of a rate needs it to, unless ctx ends.
func (b *bench) wait(d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-b.ctx.Done():
	}
}

// spent is the CPU seconds of processes and the bytes they caused to be written to disk.
func spent(pids []int) (cpu, disk float64, err error) {
	for _, pid := range pids {
		c, err := rig.CPU(pid)
		if err != nil {
			return 0, 0, err
		}
		cpu += c
		io, err := os.ReadFile(fmt.Sprintf("/proc/%d/io", pid))
		if err != nil {
			return 0, 0, fmt.Errorf("read what process %d wrote: %w", pid, err)
		}
		for line := range strings.Lines(string(io)) {
			if n, ok := strings.CutPrefix(line, "write_bytes: "); ok {
				v, err := strconv.ParseFloat(strings.TrimSpace(n), 64)
				if err != nil {
					return 0, 0, fmt.Errorf("read what process %d wrote: %w", pid, err)
				}
				disk += v
			}
		}
	}
	return cpu, disk, nil
}

// tailOf is the end of a role's log, for an error.
func tailOf(r *rig.Role) string {
	lines := r.Log()
	return strings.Join(lines[max(0, len(lines)-10):], "\n  ")
}
