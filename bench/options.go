// Package bench is `ftfuse bench`: what a mount and a receiver on this machine do with
// numbered lines from writers that are processes of their own, in either attribution,
// beside what the same writers reach on a plain file, on a FUSE file system that throws
// everything away and through `tail -F | nc`, all in one run, since only ratios within a
// run mean anything on a noisy machine.
package bench

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"ftfuse/bench/tally"
)

// ErrUsage is returned for arguments that make no sense; the message says which.
var ErrUsage = errors.New("usage")

// Modes of writing.
const (
	ModeLine  = "line" // one write(2) a line
	ModeBlock = "64k"  // up to 64 KiB of whole lines a write(2)
)

// Attributions, as the rules of a mount name them.
const (
	AttrOpen  = "open"  // the kernel writes, where it can
	AttrWrite = "write" // the daemon answers each write(2)
)

// cappedLines is how many lines a run writes at most where each write(2) is a round trip to
// a daemon: 20 seconds' worth.
const cappedLines = 2_500_000

// blockBytes is the size of a write in ModeBlock; it holds as many whole lines as fit.
const blockBytes = 64 << 10

// options is what the command line said.
type options struct {
	sizes      []int
	writers    []int
	modes      []string
	attrs      []string // attributions
	bytes      int64    // a run; 0: the default for the line's size
	durability string
	json       string
	dir        string
	quick      bool
	tailNC     bool
	noRefs     bool
	hold       bool
	relay      bool
	shippers   []shipper
}

// parse reads the arguments of `ftfuse bench`. Help goes to w.
func parse(args []string, w io.Writer) (options, error) {
	o := options{}
	fs := flag.NewFlagSet("ftfuse bench", flag.ContinueOnError)
	fs.SetOutput(w)
	sizes := fs.String("sizes", "10,128,1024,4096", "line `lengths` in bytes, line end included")
	writers := fs.String("writers", "1,4", "`numbers` of writer processes, all on one file")
	modes := fs.String("modes", "line,64k", "`ways` to write: line (one write a line), 64k (blocks of whole lines)")
	attrs := fs.String("attributions", "write,open", "`attributions` to measure")
	size := fs.String("bytes", "", "`bytes` a run, as 200MB or 64MiB (default 200MB for 10-byte lines, else 500MB)")
	fs.StringVar(&o.durability, "durability", "journal", "[queue] durability of both roles: journal or sync")
	fs.StringVar(&o.json, "json", "", "also write the figures as JSON to `FILE`, - for standard output instead of the table")
	fs.StringVar(&o.dir, "dir", "", "`folder` on the disk to measure (default: $TMPDIR, /tmp or /var/tmp, whichever is no tmpfs)")
	fs.BoolVar(&o.quick, "quick", false, "a twentieth of the bytes and shorter waits: a look, not a measurement")
	fs.BoolVar(&o.tailNC, "tail-nc", false, "also run `tail -F FILE | nc` on the same lines, in mode 64k")
	fs.BoolVar(&o.relay, "relay", false, "also measure with a relay between mount and receiver, in mode 64k")
	others := fs.String("shippers", "", "also run these `programs` on the same lines, each of fluent-bit, rsyslog, syslog-ng as NAME or NAME=PROGRAM: one process follows a plain file and sends it over TCP to another, which writes a file")
	fs.BoolVar(&o.hold, "hold-memory", false, "keep the machine from giving free memory back to its host meanwhile, and use it once before each run (root)")
	fs.BoolVar(&o.noRefs, "no-refs", false, "leave out the plain file, the empty FUSE file system and the kernel alone")
	fs.Usage = func() {
		fmt.Fprint(w, "ftfuse bench [flags]: mount -> receive on this machine, beside references in the same run\n\n")
		fs.PrintDefaults()
	}
	if err := fs.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return o, err
		}
		return o, fmt.Errorf("%w: %w", ErrUsage, err)
	}
	var err error
	if o.sizes, err = numbers(*sizes, tally.MinLine, 64<<10); err != nil {
		return o, fmt.Errorf("%w: --sizes: %w", ErrUsage, err)
	}
	if o.writers, err = numbers(*writers, 1, tally.MaxWriters); err != nil {
		return o, fmt.Errorf("%w: --writers: %w", ErrUsage, err)
	}
	if o.modes = strings.Split(*modes, ","); slices.ContainsFunc(o.modes, func(m string) bool { return m != ModeLine && m != ModeBlock }) {
		return o, fmt.Errorf("%w: --modes %q, want line, 64k or line,64k", ErrUsage, *modes)
	}
	if o.attrs = strings.Split(*attrs, ","); slices.ContainsFunc(o.attrs, func(a string) bool { return a != AttrOpen && a != AttrWrite }) {
		return o, fmt.Errorf("%w: --attributions %q, want open, write or write,open", ErrUsage, *attrs)
	}
	if *size != "" {
		if o.bytes, err = parseBytes(*size); err != nil {
			return o, fmt.Errorf("%w: --bytes: %w", ErrUsage, err)
		}
	}
	if o.durability != "journal" && o.durability != "sync" {
		return o, fmt.Errorf("%w: --durability %q, want journal or sync", ErrUsage, o.durability)
	}
	if o.shippers, err = parseShippers(*others); err != nil {
		return o, fmt.Errorf("%w: --shippers: %w", ErrUsage, err)
	}
	if fs.NArg() > 0 {
		return o, fmt.Errorf("%w: unexpected argument %q", ErrUsage, fs.Arg(0))
	}
	return o, nil
}

func numbers(list string, least, most int) ([]int, error) {
	var out []int
	for f := range strings.SplitSeq(list, ",") {
		n, err := strconv.Atoi(strings.TrimSpace(f))
		if err != nil || n < least || n > most {
			return nil, fmt.Errorf("%q, want numbers from %d to %d with commas between", f, least, most)
		}
		out = append(out, n)
	}
	return out, nil
}

// parseBytes reads a size with an optional unit: kB, MB, GB, KiB, MiB, GiB.
func parseBytes(s string) (int64, error) {
	units := []struct {
		name string
		n    int64
	}{{"KiB", 1 << 10}, {"MiB", 1 << 20}, {"GiB", 1 << 30}, {"kB", 1e3}, {"MB", 1e6}, {"GB", 1e9}, {"B", 1}, {"", 1}}
	for _, u := range units {
		digits, ok := strings.CutSuffix(s, u.name)
		if !ok {
			continue
		}
		n, err := strconv.ParseInt(strings.TrimSpace(digits), 10, 64)
		if err == nil && n > 0 && n < 1<<40/u.n {
			return n * u.n, nil
		}
		break
	}
	return 0, fmt.Errorf("%q, want a size such as 500MB or 64MiB", s)
}

// plan says how many lines of size bytes each of the writers writes in one run.
func (o options) plan(size, writers int) tally.Plan {
	total := o.bytes
	if total == 0 {
		total = 500e6
		if size <= 10 {
			total = 200e6
		}
	}
	if o.quick {
		total /= 20
	}
	return tally.Plan{Writers: writers, Lines: max(int(total)/size/writers, 1), Size: size}
}

// capped is a plan for a way on which a daemon answers each line's write(2): shorter, as the
// rate is the same after a few seconds.
func capped(p tally.Plan, mode string) tally.Plan {
	if mode == ModeLine {
		p.Lines = min(p.Lines, cappedLines/p.Writers)
	}
	return p
}

// scratch makes the run's folder on a real disk.
func (o options) scratch() (string, error) {
	candidates := []string{o.dir}
	if o.dir == "" {
		candidates = []string{os.TempDir(), "/var/tmp", "."}
	}
	for _, dir := range candidates {
		const tmpfs = 0x01021994 // linux/magic.h
		var st syscall.Statfs_t
		if err := syscall.Statfs(dir, &st); err != nil || st.Type == tmpfs {
			continue
		}
		path, err := os.MkdirTemp(dir, "ftfuse-bench-")
		if err != nil {
			return "", fmt.Errorf("make a folder for the benchmark: %w", err)
		}
		return path, nil
	}
	return "", fmt.Errorf("%w: none of %s is a folder on a disk (tmpfs does not count): name one with --dir", ErrUsage, strings.Join(candidates, ", "))
}
