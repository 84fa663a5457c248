// Package demo is `ftfuse demo`: a receiver and a mount in a temporary folder, programs
// that know nothing of ftfuse writing to it, a kill -9 in the middle, and an independent
// count of what arrived. It runs the roles as an operator does, as processes of this
// binary, and looks only at files.
package demo

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"ftfuse/bench"
	"ftfuse/bench/rig"
)

// ErrUsage is returned for arguments that make no sense.
var ErrUsage = bench.ErrUsage

// ErrProof is returned when lines were lost, doubled, altered or out of order.
var ErrProof = errors.New("the proof failed")

// demo is one run.
type demo struct {
	ctx     context.Context // ends on an interrupt; looked at in every wait
	w       io.Writer
	pair    *rig.Pair
	log     *os.File
	writers []*program
	step    int
}

// Main runs `ftfuse demo` with its arguments and tells the story on stdout. Everything it
// started or made is gone when it returns, whatever happened; an interrupt is an error.
func Main(ctx context.Context, args []string, stdout, stderr io.Writer) (err error) {
	fs := flag.NewFlagSet("ftfuse demo", flag.ContinueOnError)
	fs.SetOutput(stderr)
	dir := fs.String("dir", "", "`folder` to work in (default: the system's for temporary files)")
	fs.Usage = func() {
		fmt.Fprint(stderr, "ftfuse demo [flags]: show the whole way on this machine, in a temporary folder\n\n")
		fs.PrintDefaults()
	}
	if err := fs.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return flag.ErrHelp
		}
		return fmt.Errorf("%w: %w", ErrUsage, err)
	}
	if fs.NArg() > 0 {
		return fmt.Errorf("%w: unexpected argument %q", ErrUsage, fs.Arg(0))
	}
	ctx, cancel := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
	defer cancel()
	d, err := begin(ctx, *dir, stdout)
	if err != nil {
		return err
	}
	defer d.end()
	if err := d.run(); err != nil {
		if ctx.Err() != nil {
			return fmt.Errorf("interrupted: %w", err)
		}
		d.showLog(stderr)
		return err
	}
	return nil
}

// begin makes the folder and the two configurations.
func begin(ctx context.Context, parent string, w io.Writer) (*demo, error) {
	bin, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find this binary: %w", err)
	}
	dir, err := os.MkdirTemp(parent, "ftfuse-demo-")
	if err != nil {
		return nil, fmt.Errorf("make a folder for the demo: %w", err)
	}
	d := &demo{ctx: ctx, w: w}
	if d.log, err = os.Create(filepath.Join(dir, "roles.log")); err == nil {
		d.pair, err = rig.NewPair(bin, dir)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("prepare the demo: %w", err), os.RemoveAll(dir))
	}
	d.pair.Log = d.log
	d.pair.Outputs = fmt.Sprintf("[[receive.output]]\ndir = %q\n\n[[receive.output]]\npath = \"*/**\"\ndir = %q\nfile = \"everything.log\"\nformat = %q\ntime = \"%%H:%%M:%%S\"\n",
		d.pair.OutDir(), filepath.Join(dir, "live"), attributes)
	if err := os.MkdirAll(filepath.Join(dir, "live"), 0o755); err != nil {
		return nil, errors.Join(fmt.Errorf("prepare the demo: %w", err), os.RemoveAll(dir))
	}
	return d, nil
}

// attributes is the format of the demo's second output.
const attributes = "%T host=%H pid=%P uid=%U file=%F | %L"

// end takes everything away again.
func (d *demo) end() {
	for _, p := range d.writers {
		p.kill()
	}
	d.pair.Close()
	d.log.Close()
	if err := os.RemoveAll(d.pair.Dir); err != nil {
		d.say("could not remove %s: %v", d.pair.Dir, err)
		return
	}
	d.say("\nUnmounted, stopped and removed: nothing of the demo is left.")
}

func (d *demo) say(format string, args ...any) { fmt.Fprintf(d.w, format+"\n", args...) }

func (d *demo) head(format string, args ...any) {
	d.step++
	d.say("\n%d. %s", d.step, fmt.Sprintf(format, args...))
}

func (d *demo) run() error {
	for _, step := range []func() error{d.start, d.programs, d.live, d.kill, d.killWorker, d.bulk, d.proof, d.unmounted} {
		if err := d.ctx.Err(); err != nil {
			return err
		}
		if err := step(); err != nil {
			return err
		}
	}
	return d.pair.Stop()
}

func (d *demo) start() error {
	d.say("ftfuse demo: programs append to files below a mount point, and the lines arrive in\nfiles on an aggregator. Both are this machine today; everything is in %s.", d.pair.Dir)
	d.head("A receiver (the aggregator) and a mount (the source), each with a short TOML file")
	began := time.Now()
	if err := d.pair.StartBoth(d.ctx); err != nil {
		return fmt.Errorf("start the roles: %w", err)
	}
	d.show("receive.toml", d.pair.ReceiveConfig())
	d.show("mount.toml", d.pair.MountConfig())
	d.say("   $ ftfuse receive -c receive.toml &      # process %d", d.pair.ReceiveRole.PID())
	d.say("   $ ftfuse mount -c mount.toml &          # process %d, which holds the mount; process %d serves it", d.pair.MountRole.PID(), d.pair.MountRole.Worker())
	d.say("   Both were ready after %d ms.", time.Since(began).Milliseconds())
	return nil
}

// show prints a configuration without its empty lines and tables, paths shortened.
func (d *demo) show(name, path string) {
	text, err := os.ReadFile(path)
	if err != nil {
		d.say("   %s: %v", name, err)
		return
	}
	var kept []string
	for line := range strings.Lines(strings.ReplaceAll(string(text), d.pair.Dir, "…")) {
		line = strings.TrimSpace(line)
		if line != "" && line != "[queue]" {
			kept = append(kept, line)
		}
	}
	d.say("   %-13s %s", name+":", strings.Join(kept, "\n                 "))
}

// programs starts the writers that go on during the whole demo.
func (d *demo) programs() error {
	d.head("Programs that know nothing of ftfuse append to files below %s", d.pair.Point())
	for _, p := range []*program{
		{file: "shell/loop.log", lines: 2000, what: `i=0; while [ $i -lt 2000 ]; do i=$((i+1)); echo "shell line $i"; sleep 0.002; done >>"$1"`},
		{file: "dd/blocks.log", lines: 200_000, what: `seq -f 'dd line %.0f' 200000 | dd of="$1" bs=64k oflag=append conv=notrunc status=none`},
		{file: "syslog/app.log", lines: 2000, what: `seq 2000 | logger --no-act --socket-errors=off -s -i -t demo-app 2>>"$1"`, needs: "logger"},
		{file: "python/service.log", lines: 3000, what: pythonWriter, needs: "python3"},
	} {
		if _, err := exec.LookPath(p.needs); p.needs != "" && err != nil {
			d.say("   (no %s on this machine: left out)", p.needs)
			continue
		}
		if err := os.MkdirAll(filepath.Dir(d.pair.In(p.file)), 0o755); err != nil {
			return fmt.Errorf("make a folder on the mount: %w", err)
		}
		if err := p.start(d.pair.In(p.file)); err != nil {
			return err
		}
		d.writers = append(d.writers, p)
		d.say("   $ %s", strings.ReplaceAll(strings.TrimSpace(p.shown()), `"$1"`, "…/mnt/"+p.file))
	}
	return nil
}

// live shows lines of every program as the second output formats them.
func (d *demo) live() error {
	d.head("The lines arrive. The receiver's second output has format = %q:", attributes)
	path := filepath.Join(d.pair.Dir, "live", "everything.log")
	for _, p := range d.writers {
		line, err := d.waitLine(path, "file="+p.file)
		if err != nil {
			return err
		}
		d.say("   %s", line)
	}
	return nil
}

// kill takes the receiver away under load and brings it back.
func (d *demo) kill() error {
	d.head("kill -9 of the receiver, while the programs go on writing")
	loop := d.pair.Out("shell/loop.log")
	if _, err := rig.WaitSize(d.ctx, loop, 1, 5*time.Millisecond, 20*time.Second); err != nil {
		return err
	}
	pid := d.pair.ReceiveRole.PID()
	if err := d.pair.ReceiveRole.Kill(); err != nil {
		return err
	}
	in, out := sizeOf(d.pair.In("shell/loop.log")), sizeOf(loop)
	d.say("   $ kill -9 %d", pid)
	// The shell's loop must be seen to go on without a receiver.
	if _, err := rig.WaitSize(d.ctx, d.pair.In("shell/loop.log"), in+2000, 5*time.Millisecond, 20*time.Second); err != nil {
		return fmt.Errorf("the shell's loop stopped when the receiver was killed: %w", err)
	}
	d.say("   No program noticed: shell/loop.log grew by %d bytes on the mount and by %d at the aggregator.",
		sizeOf(d.pair.In("shell/loop.log"))-in, sizeOf(loop)-out)
	if err := d.pair.StartReceive(d.ctx); err != nil {
		return fmt.Errorf("start the receiver again: %w", err)
	}
	began := time.Now()
	d.say("   $ ftfuse receive -c receive.toml &      # process %d", d.pair.ReceiveRole.PID())
	if _, err := rig.WaitSize(d.ctx, loop, in+2000, time.Millisecond, 30*time.Second); err != nil {
		return err
	}
	d.say("   The backlog had arrived %d ms after the new receiver was ready.", time.Since(began).Milliseconds())
	return nil
}

// killWorker takes away the process that serves the mount; the holder starts another.
func (d *demo) killWorker() error {
	d.head("kill -9 of the process that serves the mount, while the programs go on writing")
	mount, file := d.pair.MountRole, d.pair.In("shell/loop.log")
	pid, ready := mount.Worker(), mount.Readies()
	began := time.Now()
	if err := mount.KillWorker(); err != nil {
		return err
	}
	d.say("   $ kill -9 %d", pid)
	if err := mount.ReadyAgain(d.ctx, ready+1); err != nil {
		return err
	}
	took := time.Since(began)
	in := sizeOf(file)
	if _, err := rig.WaitSize(d.ctx, file, in+2000, 5*time.Millisecond, 20*time.Second); err != nil {
		return fmt.Errorf("the shell's loop stopped when the worker was killed: %w", err)
	}
	d.say("   The holder (process %d) kept the mount; process %d serves it since %d ms after the kill.\n   No program noticed.", mount.PID(), mount.Worker(), took.Milliseconds())
	return nil
}

// sizeOf is the length of a file, 0 if it is not there.
func sizeOf(path string) int64 {
	st, err := os.Stat(path)
	if err != nil {
		return 0
	}
	return st.Size()
}

// showLog prints the end of the roles' log after a failure.
func (d *demo) showLog(w io.Writer) {
	log, err := os.ReadFile(d.log.Name())
	if err != nil {
		return // the failure itself is reported by the caller
	}
	lines := strings.Split(strings.TrimSpace(string(log)), "\n")
	fmt.Fprintf(w, "\nThe end of the roles' log:\n  %s\n", strings.Join(lines[max(0, len(lines)-20):], "\n  "))
}
