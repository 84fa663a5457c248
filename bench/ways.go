package bench

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"ftfuse/bench/rig"
	"ftfuse/bench/tally"
)

// wayRelay is the way through a relay, in attribution open.
const wayRelay = "relay"

// pair starts a fresh mount and receiver.
func (b *bench) pair(name, attr string) (*rig.Pair, error) { return b.chain(name, attr, false) }

// chain is pair, with a relay between if relayed is set.
func (b *bench) chain(name, attr string, relayed bool) (*rig.Pair, error) {
	p, err := rig.NewPair(b.bin, filepath.Join(b.dir, name))
	if err != nil {
		return nil, err
	}
	p.Relayed = relayed
	p.Queue, p.Attribution = fmt.Sprintf("durability = %q", b.o.durability), attr
	if err := p.StartBoth(b.ctx); err != nil {
		p.Close()
		return nil, err
	}
	return p, nil
}

// logs are the ends of the roles' logs, for an error.
func logs(p *rig.Pair) string {
	var text strings.Builder
	for _, r := range p.Roles() {
		fmt.Fprintf(&text, "\n%s: %s", r.Name, tailOf(r))
	}
	return text.String()
}

// cost is what the roles of a pair used since startCost.
type cost struct {
	mount, relay, receive []int // processes
	cpu, disk, relayCPU   float64
	watch                 *rig.Watch
}

func startCost(p *rig.Pair) (*cost, error) {
	c := &cost{mount: p.MountRole.Family(), receive: p.ReceiveRole.Family()}
	if p.RelayRole != nil {
		c.relay = p.RelayRole.Family()
	}
	c.watch = rig.StartWatch(c.all()...)
	var err error
	if c.cpu, c.disk, c.relayCPU, err = c.spent(); err != nil {
		c.watch.Stop()
		return nil, err
	}
	return c, nil
}

// all are the processes of every role.
func (c *cost) all() []int { return slices.Concat(c.mount, c.relay, c.receive) }

// spent is what all roles have used so far, and what CPU the relay has.
func (c *cost) spent() (cpu, disk, relay float64, err error) {
	if cpu, disk, err = spent(c.all()); err == nil {
		relay, _, err = spent(c.relay)
	}
	return cpu, disk, relay, err
}

// into stops looking and puts the figures into r.
func (c *cost) into(r *Rate) error {
	cpu, disk, relay, err := c.spent()
	peak := c.watch.Stop()
	if err != nil {
		return err
	}
	m, n := len(c.mount), len(c.mount)+len(c.relay)
	mount, receive := sum(peak[:m]), sum(peak[n:])
	r.Mount, r.Receive = &mount, &receive
	r.CPU = (cpu - c.cpu) / float64(r.Lines) * 1e6
	r.Written = (disk - c.disk) / float64(r.Bytes)
	if n > m {
		between := sum(peak[m:n])
		r.Relay, r.PerGB = &between, (relay-c.relayCPU)/float64(r.Bytes)*1e9
	}
	return nil
}

func sum(all []rig.Memory) rig.Memory {
	var m rig.Memory
	for _, one := range all {
		m.Anon, m.RSS, m.Peak = m.Anon+one.Anon, m.RSS+one.RSS, m.Peak+one.Peak
	}
	return m
}

// ftfuse is the writers on a mount, until the last byte is in the receiver's file; through a
// relay if relayed is set.
func (b *bench) ftfuse(p tally.Plan, mode, attr string, relayed bool) (_ *Rate, err error) {
	pair, err := b.chain("ftfuse", attr, relayed)
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
