package bench

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

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
	report, err := b.runHolding()
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

// runHolding is run, with the machine's memory held if that was asked for.
func (b *bench) runHolding() (_ *Report, err error) {
	if b.o.hold {
		restore, err := holdMemory()
		if err != nil {
			return nil, err
		}
		defer func() { err = errors.Join(err, restore()) }()
	}
	return b.run()
}

func (b *bench) run() (*Report, error) {
	kernel, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		return nil, fmt.Errorf("ask for the kernel's version: %w", err)
	}
	r := &Report{Time: time.Now(), Kernel: strings.TrimSpace(string(kernel)), CPUs: runtime.NumCPU(), Durability: b.o.durability, Held: b.o.hold}
	disk := int64(256 << 20)
	if b.o.quick {
		disk = 64 << 20
	}
	if r.DiskBefore, err = measureDisk(b.dir, disk); err != nil {
		return nil, err
	}
	fmt.Fprintf(b.log, "disk: %.0f MB/s into new space, %.0f reused\n", r.DiskBefore.New, r.DiskBefore.Reused)
	if r.Memory, err = measureMemory(disk); err != nil {
		return nil, err
	}
	for _, attr := range b.o.attrs {
		i, err := b.idle(attr)
		if err != nil {
			return nil, fmt.Errorf("measure at rest, attribution %s: %w", attr, err)
		}
		r.Idle = append(r.Idle, *i)
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
	for _, attr := range b.o.attrs {
		paced, err := b.paced(attr, r)
		if err != nil {
			return nil, fmt.Errorf("measure the latency, attribution %s: %w", attr, err)
		}
		r.Paced = append(r.Paced, paced...)
	}
	if r.DiskAfter, err = measureDisk(b.dir, disk); err != nil {
		return nil, err
	}
	return r, nil
}

// way is one way that the lines of a case go.
type way struct {
	name string
	skip bool
	run  func(tally.Plan, string) (*Rate, error)
	to   **Rate
}

// measure runs one case: the references first, then ftfuse, one right after the other.
func (b *bench) measure(size int, mode string, writers int) (*Case, error) {
	p := b.o.plan(size, writers)
	if err := p.Validate(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUsage, err)
	}
	c := &Case{Size: size, Mode: mode, Writers: writers}
	ways := []way{
		{"plain file", b.o.noRefs, b.plain, &c.Ext4},
		{"empty FUSE", b.o.noRefs || !slices.Contains(b.o.attrs, AttrWrite), b.null, &c.Null},
		{"kernel alone", b.o.noRefs || mode != ModeLine || !slices.Contains(b.o.attrs, AttrOpen), b.alone, &c.Alone},
		{"tail -F | nc", !b.o.tailNC || mode != ModeBlock, b.tailNC, &c.TailNC},
	}
	c.Shippers = make([]Shipped, len(b.o.shippers))
	for i, s := range b.o.shippers {
		run := func(p tally.Plan, mode string) (*Rate, error) { return b.ship(s, p, mode) }
		c.Shippers[i].Name = s.name
		ways = append(ways, way{s.name, false, run, &c.Shippers[i].Rate})
	}
	for _, attr := range b.o.attrs {
		run := func(p tally.Plan, mode string) (*Rate, error) { return b.ftfuse(p, mode, attr, false) }
		ways = append(ways, way{"ftfuse " + attr, false, run, map[string]**Rate{AttrOpen: &c.Open, AttrWrite: &c.Write}[attr]})
	}
	run := func(p tally.Plan, mode string) (*Rate, error) { return b.ftfuse(p, mode, AttrOpen, true) }
	ways = append(ways, way{"ftfuse " + wayRelay, !b.o.relay || mode != ModeBlock, run, &c.Relay})
	for _, way := range ways {
		if way.skip {
			continue
		}
		if err := b.ctx.Err(); err != nil {
			return nil, fmt.Errorf("stopped: %w", err)
		}
		if err := b.warm(p); err != nil {
			return nil, err
		}
		r, err := way.run(p, mode)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", way.name, err)
		}
		if *way.to = r; r == nil {
			continue // not to be had on this machine
		}
		fmt.Fprintf(b.log, "%5d bytes, %-4s, %d writers, %-12s: accepted %10.0f lines/s, arrived %10.0f lines/s %7.1f MB/s in %.1f s\n",
			size, mode, writers, way.name, r.Accepted, r.LineS, r.MBS, r.Seconds)
	}
	return c, nil
}

// warm has the machine's free memory ready for a run of p, if it is held: for the references
// as for ftfuse.
func (b *bench) warm(p tally.Plan) error {
	if !b.o.hold {
		return nil
	}
	n, err := spare(p.Bytes())
	if err != nil {
		return err
	}
	return touch(n)
}
