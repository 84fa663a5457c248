package bench

import (
	"fmt"
	"os"
	"time"

	"ftfuse/bench/rig"
)

// openFiles is how many files a program holds open while the mount is measured at rest.
const openFiles = 1000

// idle measures a pair that has next to nothing to do: the latency of a line now and then,
// and the CPU time while a program holds a thousand files open.
func (b *bench) idle(attr string) (*Idle, error) {
	pair, err := b.pair("idle", attr)
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(pair.Dir)
	defer pair.Close()
	i := &Idle{Attribution: attr, Capture: pair.Captures(), Why: pair.MountRole.ReadyAttr("why"), Files: openFiles}
	probe, err := startProbe(b.ctx, pair.In("probe.log"), pair.Out("probe.log"), 50, 200*time.Microsecond)
	if err != nil {
		return nil, err
	}
	b.wait(b.short(4 * time.Second))
	lat, err := probe.stop()
	if err != nil {
		return nil, fmt.Errorf("%w%s", err, logs(pair))
	}
	i.Latency = *lat
	w, err := rig.StartWriter(b.bin, rig.Job{Path: pair.In("many"), Files: openFiles, Size: 64})
	if err != nil {
		return nil, err
	}
	defer w.Kill()
	for n := range openFiles {
		if _, err := rig.WaitSize(b.ctx, pair.Out(rig.ManyPath("many", n)), 64, time.Millisecond, 20*time.Second); err != nil {
			return nil, fmt.Errorf("%w%s", err, logs(pair))
		}
	}
	b.wait(time.Second) // what follows the last line: acks, checkpoints
	mount, receive := pair.MountRole.Family(), pair.ReceiveRole.Family()
	used := func() (m, r float64, err error) {
		if m, _, err = spent(mount); err == nil {
			r, _, err = spent(receive)
		}
		return m, r, err
	}
	m0, r0, err := used()
	if err != nil {
		return nil, err
	}
	rest := b.short(10 * time.Second)
	b.wait(rest)
	m1, r1, err := used()
	if err != nil {
		return nil, err
	}
	i.CPUMount, i.CPUReceive = (m1-m0)/rest.Seconds()*100, (r1-r0)/rest.Seconds()*100
	if i.Mount, err = memory(mount); err != nil {
		return nil, err
	}
	if i.Receive, err = memory(receive); err != nil {
		return nil, err
	}
	fmt.Fprintf(b.log, "at rest, %s (capture %s): p50 %.1f ms, p99 %.1f ms; %d open files: mount %.2f %% CPU, receive %.2f %%\n",
		attr, i.inForce(), lat.P50, lat.P99, openFiles, i.CPUMount, i.CPUReceive)
	return i, pair.Stop()
}

func memory(pids []int) (rig.Memory, error) {
	var all []rig.Memory
	for _, pid := range pids {
		m, err := rig.MemoryOf(pid)
		if err != nil {
			return m, err
		}
		all = append(all, m)
	}
	return sum(all), nil
}

// short is how long to measure: d, or a fifth for a look.
func (b *bench) short(d time.Duration) time.Duration {
	if b.o.quick {
		return d / 5
	}
	return d
}
