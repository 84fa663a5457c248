package bench

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"ftfuse/bench/rig"
	"ftfuse/bench/tally"
)

// ErrLines is returned when a line was lost, doubled or altered: the figures stand in
// the report all the same.
var ErrLines = errors.New("the lines that came out are not those that went in")

// bench is one run of the command.
type bench struct {
	ctx context.Context // ends when the command is to stop; checked between steps
	o   options
	bin string // this very binary
	dir string
	log io.Writer
}

// Main runs `ftfuse bench` with its arguments: progress goes to stderr, the table (or
// JSON) to stdout. The error is flag.ErrHelp after -h, ErrUsage for bad arguments,
// ErrLines when lines were lost or doubled.
func Main(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	o, err := parse(args, stderr)
	if errors.Is(err, flag.ErrHelp) {
		return flag.ErrHelp
	}
	if err != nil {
		return err
	}
	ctx, cancel := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
	defer cancel()
	bin, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find this binary: %w", err)
	}
	dir, err := o.scratch()
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	b := &bench{ctx: ctx, o: o, bin: bin, dir: dir, log: stderr}
	report, err := b.run()
	if err != nil {
		return err
	}
	if err := write(report, o.json, stdout); err != nil {
		return err
	}
	if !report.OK() {
		return fmt.Errorf("%w: see the table", ErrLines)
	}
	return nil
}

func write(r *Report, path string, stdout io.Writer) error {
	if path == "-" {
		return r.WriteJSON(stdout)
	}
	if path != "" {
		f, err := os.Create(path)
		if err != nil {
			return fmt.Errorf("write the figures: %w", err)
		}
		if err := errors.Join(r.WriteJSON(f), f.Close()); err != nil {
			return fmt.Errorf("write the figures to %s: %w", path, err)
		}
	}
	return r.WriteTable(stdout)
}

func (b *bench) run() (*Report, error) {
	kernel, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		return nil, fmt.Errorf("ask for the kernel's version: %w", err)
	}
	r := &Report{Time: time.Now(), Kernel: strings.TrimSpace(string(kernel)), CPUs: runtime.NumCPU(), Durability: b.o.durability}
	disk := int64(256 << 20)
	if b.o.quick {
		disk = 64 << 20
	}
	if r.DiskBefore, err = measureDisk(b.dir, disk); err != nil {
		return nil, err
	}
	fmt.Fprintf(b.log, "disk: %.0f MB/s into new space, %.0f reused\n", r.DiskBefore.New, r.DiskBefore.Reused)
	if r.Idle, err = b.idle(); err != nil {
		return nil, fmt.Errorf("measure at rest: %w", err)
	}
	for _, mode := range b.o.modes {
		for _, size := range b.o.sizes {
			for _, writers := range b.o.writers {
				c, err := b.measure(size, mode, writers)
				if err != nil {
					return nil, fmt.Errorf("%d-byte lines, %s, %d writers: %w", size, mode, writers, err)
				}
				r.Cases = append(r.Cases, *c)
			}
		}
	}
	if r.DiskAfter, err = measureDisk(b.dir, disk); err != nil {
		return nil, err
	}
	return r, nil
}

// measure runs one case: the references first, then ftfuse, one right after the other.
func (b *bench) measure(size int, mode string, writers int) (*Case, error) {
	p := b.o.plan(size, writers)
	if err := p.Validate(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUsage, err)
	}
	c := &Case{Size: size, Mode: mode, Writers: writers, Lines: int64(p.Writers) * int64(p.Lines), Bytes: p.Bytes()}
	for _, way := range []struct {
		name string
		skip bool
		run  func(tally.Plan, string) (*Rate, error)
		to   **Rate
	}{
		{"plain file", b.o.noRefs, b.plain, &c.Ext4},
		{"empty FUSE", b.o.noRefs, b.null, &c.Null},
		{"tail -F | nc", !b.o.tailNC, b.tailNC, &c.TailNC},
		{"ftfuse", false, b.ftfuse, &c.Ftfuse},
	} {
		if way.skip {
			continue
		}
		if err := b.ctx.Err(); err != nil {
			return nil, fmt.Errorf("stopped: %w", err)
		}
		r, err := way.run(p, mode)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", way.name, err)
		}
		*way.to = r
		fmt.Fprintf(b.log, "%5d bytes, %-4s, %d writers, %-12s: %10.0f lines/s %7.1f MB/s in %.1f s\n", size, mode, writers, way.name, r.LineS, r.MBS, r.Seconds)
	}
	return c, nil
}

// pair starts a fresh mount and receiver.
func (b *bench) pair(name string) (*rig.Pair, error) {
	p, err := rig.NewPair(b.bin, filepath.Join(b.dir, name))
	if err != nil {
		return nil, err
	}
	p.Queue = fmt.Sprintf("durability = %q", b.o.durability)
	if err := p.StartBoth(b.ctx); err != nil {
		p.Close()
		return nil, err
	}
	return p, nil
}

// ftfuse is the writers on a mount, until the last byte is in the receiver's file.
func (b *bench) ftfuse(p tally.Plan, mode string) (_ *Rate, err error) {
	pair, err := b.pair("ftfuse")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(pair.Dir)
	defer pair.Close()
	pids := []int{pair.MountRole.PID(), pair.ReceiveRole.PID()}
	watch := rig.StartWatch(pids...)
	probe, err := startProbe(b.ctx, pair.In("probe.log"), pair.Out("probe.log"), 100, time.Millisecond)
	if err != nil {
		return nil, err
	}
	cpu, disk, err := spent(pids)
	if err != nil {
		return nil, err
	}
	began := time.Now()
	writing, err := b.write(p, mode, pair.In("bench.log"), func() { began = time.Now() })
	if err == nil {
		_, err = rig.WaitSize(b.ctx, pair.Out("bench.log"), p.Bytes(), time.Millisecond, 30*time.Second)
	}
	all := time.Since(began)
	peak := watch.Stop()
	lat, latErr := probe.stop()
	if err := errors.Join(err, latErr); err != nil {
		return nil, fmt.Errorf("%w\nmount: %s\nreceive: %s", err, tailOf(pair.MountRole), tailOf(pair.ReceiveRole))
	}
	cpuAfter, diskAfter, err := spent(pids)
	if err != nil {
		return nil, err
	}
	if err := pair.Stop(); err != nil {
		return nil, err
	}
	count, err := checkFile(pair.Out("bench.log"), p)
	if err != nil {
		return nil, err
	}
	r := rate(p, writing, all, cpuAfter-cpu)
	r.Count, r.Latency, r.Mount, r.Receive = &count, lat, &peak[0], &peak[1]
	r.Written = (diskAfter - disk) / float64(p.Bytes())
	return r, nil
}

// idle measures a pair that has next to nothing to do.
func (b *bench) idle() (*Idle, error) {
	pair, err := b.pair("idle")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(pair.Dir)
	defer pair.Close()
	probe, err := startProbe(b.ctx, pair.In("probe.log"), pair.Out("probe.log"), 50, 200*time.Microsecond)
	if err != nil {
		return nil, err
	}
	b.wait(4 * time.Second)
	lat, err := probe.stop()
	if err != nil {
		return nil, fmt.Errorf("%w\nmount: %s\nreceive: %s", err, tailOf(pair.MountRole), tailOf(pair.ReceiveRole))
	}
	pids := []int{pair.MountRole.PID(), pair.ReceiveRole.PID()}
	before, _, err := spent(pids)
	if err != nil {
		return nil, err
	}
	const rest = 3 * time.Second
	b.wait(rest)
	after, _, err := spent(pids)
	if err != nil {
		return nil, err
	}
	i := &Idle{Latency: *lat, CPU: (after - before) / rest.Seconds() * 100}
	if i.Mount, err = rig.MemoryOf(pids[0]); err != nil {
		return nil, err
	}
	if i.Receive, err = rig.MemoryOf(pids[1]); err != nil {
		return nil, err
	}
	return i, pair.Stop()
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
