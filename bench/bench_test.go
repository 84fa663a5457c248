package bench

import (
	"bytes"
	"errors"
	"flag"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"ftfuse/bench/rig"
	"ftfuse/bench/tally"
)

// The test binary is its own helper, as the real binary is.
func TestMain(m *testing.M) {
	if code, ok := MaybeHelper(); ok {
		os.Exit(code)
	}
	os.Exit(m.Run())
}

func newBench(t *testing.T) *bench {
	t.Helper()
	bin, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return &bench{ctx: t.Context(), bin: bin, dir: t.TempDir(), log: io.Discard}
}

// The references carry every line of their writers; were they to lose some, the ratios
// would be worth nothing.
func TestReferencesCarryEveryLine(t *testing.T) {
	for _, mode := range []string{ModeLine, ModeBlock} {
		p := tally.Plan{Writers: 4, Lines: 5000, Size: 128}
		b := newBench(t)
		r, err := b.plain(p, mode)
		if err != nil {
			t.Fatal(err)
		}
		if !r.Count.OK() || r.LineS <= 0 {
			t.Errorf("plain file, %s: %v at %.0f lines/s", mode, r.Count, r.LineS)
		}
		if f, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0); err != nil {
			t.Logf("no empty FUSE file system: %v", err)
		} else {
			f.Close()
			if r, err = b.null(p, mode); err != nil {
				t.Fatal(err)
			}
			if r.LineS <= 0 || rig.OnFUSE(b.dir+"/null") {
				t.Errorf("empty FUSE, %s: %.0f lines/s, mount left: %v", mode, r.LineS, rig.OnFUSE(b.dir+"/null"))
			}
		}
		if _, err := exec.LookPath("nc"); err != nil {
			t.Logf("no tail -F | nc: %v", err)
			continue
		}
		if r, err = b.tailNC(p, mode); err != nil {
			t.Fatal(err)
		}
		if !r.Count.OK() || r.LineS <= 0 {
			t.Errorf("tail -F | nc, %s: %v at %.0f lines/s", mode, r.Count, r.LineS)
		}
	}
}

// Other programs are measured by the same lines; those that this machine has are tried.
func TestShippersCarryEveryLine(t *testing.T) {
	for _, s := range shippers {
		t.Run(s.name, func(t *testing.T) {
			known, err := parseShippers(s.name)
			if errors.Is(err, exec.ErrNotFound) {
				t.Skip(err)
			}
			if err != nil {
				t.Fatal(err)
			}
			p := tally.Plan{Writers: 2, Lines: 5000, Size: 128}
			r, err := newBench(t).ship(known[0], p, ModeLine)
			if err != nil {
				t.Fatal(err)
			}
			if r.Count.Lost != 0 || r.Count.Doubled != 0 || r.Count.Lines != 10_000 || r.LineS <= 0 {
				t.Errorf("%v at %.0f lines/s", r.Count, r.LineS)
			}
		})
	}
}

func TestGoalsBesideFluentBit(t *testing.T) {
	c := Case{Size: 1024, Mode: ModeLine, Writers: 4, Open: &Rate{LineS: 200_000}, Shippers: []Shipped{{Name: "fluent-bit", Rate: &Rate{LineS: 100_000}}}}
	var got []string
	for _, g := range c.goals(AttrOpen) {
		got = append(got, g.String())
	}
	want := []string{"arrived: 200000 lines/s\twant 220000: MISSED", "arrived: 2.00 of fluent-bit\twant 1.33: reached"}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestDiskIsMeasured(t *testing.T) {
	d, err := measureDisk(t.TempDir(), 4<<20)
	if err != nil || d.New <= 0 || d.Reused <= 0 {
		t.Fatalf("%+v, %v", d, err)
	}
}

func TestArguments(t *testing.T) {
	for args, want := range map[string]string{
		"--sizes 5":                           "numbers from 10",
		"--sizes 10,x":                        "numbers from 10",
		"--writers 0":                         "numbers from 1",
		"--modes blocks":                      "want line, 64k",
		"--bytes 12parsecs":                   "want a size",
		"--durability always":                 "want journal or sync",
		"--attributions all":                  "want open, write",
		"--shippers tail":                     "want some of fluent-bit",
		"--shippers rsyslog=/no/such/program": "no such file",
		"--no-such-flag":                      "not defined",
		"extra":                               "unexpected argument",
	} {
		_, err := parse(strings.Fields(args), io.Discard)
		if !errors.Is(err, ErrUsage) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want a usage error that says %q", args, err, want)
		}
	}
	o, err := parse(strings.Fields("--sizes 10,4096 --writers 2 --modes 64k --bytes 64MiB"), io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	if p := o.plan(4096, 2); p.Bytes() != 64<<20 {
		t.Errorf("plan of %d bytes, want %d", p.Bytes(), 64<<20)
	}
	var help bytes.Buffer
	if err := Main(t.Context(), []string{"-h"}, io.Discard, &help); !errors.Is(err, flag.ErrHelp) || !strings.Contains(help.String(), "-sizes") {
		t.Errorf("help: %v, %q", err, help.String())
	}
}

// The amounts are the defaults.
func TestDefaultPlan(t *testing.T) {
	o, err := parse(nil, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	for size, want := range map[int]int64{10: 200e6, 128: 500e6, 1024: 500e6, 4096: 500e6} {
		for _, writers := range o.writers {
			if got := o.plan(size, writers).Bytes(); want-got > 4096*4 || got > want {
				t.Errorf("%d-byte lines, %d writers: %d bytes a run, want %d", size, writers, got, want)
			}
		}
	}
}

func TestGoals(t *testing.T) {
	c := Case{
		Size: 10, Mode: ModeLine, Writers: 4, Write: &Rate{LineS: 80}, Open: &Rate{Accepted: 800_000, LineS: 700_000, Fair: &Latency{Lines: fairLines, P99: 20}},
		Null: &Rate{LineS: 100}, Ext4: &Rate{Accepted: 1_000_000},
	}
	check := func(attr string, want ...string) {
		t.Helper()
		got := c.goals(attr)
		if len(got) != len(want) {
			t.Fatalf("%d goals, want %d: %v", len(got), len(want), got)
		}
		for i := range want {
			if s := strings.ReplaceAll(got[i].String(), "\t", " "); s != want[i] {
				t.Errorf("goal %d is %q, want %q", i, s, want[i])
			}
		}
	}
	check(AttrWrite, "arrived: 0.80 of empty FUSE want 0.80: reached")
	check(AttrOpen, "arrived: 700000 lines/s want 700000: reached", "p99 until a line of another file is durable: 20.0 ms want at most 20 ms: reached")
	c.Write.LineS, c.Open.LineS, c.Open.Fair.P99, c.Writers, c.Size = 79, 1, 21, 1, 1024
	check(AttrWrite)
	check(AttrOpen, "accepted: 0.80 of plain file want 0.70: reached", "arrived: 1 lines/s want 220000: MISSED",
		"p99 until a line of another file is durable: 21.0 ms want at most 20 ms: MISSED")
	c.Open.Fair.Lines-- // too few to say anything
	check(AttrOpen, "accepted: 0.80 of plain file want 0.70: reached", "arrived: 1 lines/s want 220000: MISSED")
	c.Mode, c.Writers = ModeBlock, 4
	check(AttrWrite, "arrived: want 0.33 of tail|nc (not run)")
	c.Size, c.Open.LineS, c.Relay = 128, 100, &Rate{LineS: 59, PerGB: 0.5}
	check(wayRelay, "arrived: 0.59 of direct want 0.60: MISSED", "the relay alone: 0.50 CPU s/GB want at most 0.50: reached")
	c.Open = nil
	check(AttrOpen)
	check(wayRelay, "arrived: want 0.60 of direct (not run)", "the relay alone: 0.50 CPU s/GB want at most 0.50: reached")
}

// Half of full speed is half of what lines of the paced program's length have reached.
func TestFullSpeed(t *testing.T) {
	r := &Report{Cases: []Case{
		{Size: 10, Mode: ModeLine, Open: &Rate{LineS: 9e6}},
		{Size: 128, Mode: ModeBlock, Open: &Rate{LineS: 8e6}},
		{Size: 128, Mode: ModeLine, Open: &Rate{LineS: 5e5}},
		{Size: 128, Mode: ModeLine, Open: &Rate{LineS: 6e5}},
		{Size: 1024, Mode: ModeLine, Open: &Rate{LineS: 1e6}},
	}}
	if got := r.full(AttrOpen); got != 600_000 {
		t.Errorf("full speed is %d", got)
	}
	if got := r.full(AttrWrite); got != 0 {
		t.Errorf("full speed that nobody measured is %d", got)
	}
}

// What a run needs is touched once, and all of it is given back.
func TestMemoryIsMeasured(t *testing.T) {
	m, err := measureMemory(8 << 20)
	if err != nil || m.First <= 0 || m.Again <= 0 {
		t.Fatalf("%+v, %v", m, err)
	}
	if n, err := spare(1 << 40); err != nil || n <= 0 || n >= 4<<40 {
		t.Errorf("%d bytes to spare, %v: want no more than half of what is free", n, err)
	}
}
