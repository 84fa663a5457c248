package bench

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"syscall"
	"time"

	"ftfuse/bench/rig"
	"ftfuse/bench/tally"
	"ftfuse/mount/nullfs"
)

// MaybeHelper turns the process into one of the benchmark's helpers, a writer or the
// empty FUSE file system, if it was started as one; main calls it before anything else
// and exits with the code when it returns true.
func MaybeHelper() (int, bool) {
	if os.Getenv(rig.HelperEnv) == "null" {
		if err := nullMain(); err != nil {
			fmt.Fprintln(os.Stderr, "ftfuse bench:", err)
			return 1, true
		}
		return 0, true
	}
	return rig.MaybeWriter()
}

// nullDirEnv names where the empty file system is mounted.
const nullDirEnv = "FTFUSE_BENCH_NULL_DIR"

func nullMain() error {
	debug.SetGCPercent(1000) // it keeps next to nothing: a collection now and then only costs
	fs, err := nullfs.Mount(os.Getenv(nullDirEnv))
	if err != nil {
		return err
	}
	fmt.Println("mounted")
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		_, _ = os.Stdin.Read(make([]byte, 1)) // ends when the parent is done, or gone
		cancel()
	}()
	return fs.Serve(ctx)
}

// write runs the plan's writers on path and returns how long they took, from the word
// to begin until the last had closed its file. went, if not nil, is called once they go.
func (b *bench) write(p tally.Plan, mode, path string, went func()) (time.Duration, error) {
	chunk := 0
	if mode == ModeBlock {
		chunk = blockBytes
	}
	var ws []*rig.Writer
	for i := range p.Writers {
		w, err := rig.StartWriter(b.bin, rig.Job{Path: path, Writer: i, Lines: p.Lines, Size: p.Size, Chunk: chunk})
		if err != nil {
			return 0, errors.Join(err, killAll(ws))
		}
		ws = append(ws, w)
	}
	began := time.Now()
	if went != nil {
		went()
	}
	for _, w := range ws {
		if err := w.Go(); err != nil {
			return 0, errors.Join(err, killAll(ws))
		}
	}
	// A signal to bench must reach writers that wait for a mount, too.
	stop := context.AfterFunc(b.ctx, func() { _ = killAll(ws) })
	defer stop()
	for i, w := range ws {
		if _, err := w.Wait(); err != nil {
			return 0, errors.Join(err, killAll(ws[i+1:]))
		}
	}
	return time.Since(began), nil
}

func killAll(ws []*rig.Writer) error {
	for _, w := range ws {
		w.Kill()
	}
	return nil
}

// plain is the writers on a plain file of the same disk.
func (b *bench) plain(p tally.Plan, mode string) (*Rate, error) {
	path := filepath.Join(b.dir, "plain.log")
	defer os.Remove(path)
	took, err := b.write(p, mode, path, nil)
	if err != nil {
		return nil, err
	}
	count, err := checkFile(path, p)
	if err != nil {
		return nil, err
	}
	r := rate(p, took, took, 0)
	r.Count = &count
	return r, nil
}

// null is the writers on a FUSE file system that throws everything away.
func (b *bench) null(p tally.Plan, mode string) (_ *Rate, err error) {
	p = capped(p, mode)
	dir := filepath.Join(b.dir, "null")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("make the mount point of the empty file system: %w", err)
	}
	cmd := exec.Command(b.bin)
	cmd.Env = append(os.Environ(), rig.HelperEnv+"=null", nullDirEnv+"="+dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, fmt.Errorf("make a pipe to the empty file system: %w", err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, fmt.Errorf("make a pipe from the empty file system: %w", err)
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start the empty file system: %w", err)
	}
	defer func() {
		in.Close()
		err = errors.Join(err, cmd.Wait())
	}()
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || line != "mounted\n" {
		return nil, fmt.Errorf("start the empty file system: it said %q (%w)", line, err)
	}
	before, err := rig.CPU(cmd.Process.Pid)
	if err != nil {
		return nil, err
	}
	took, err := b.write(p, mode, filepath.Join(dir, "null.log"), nil)
	if err != nil {
		return nil, err
	}
	after, err := rig.CPU(cmd.Process.Pid)
	if err != nil {
		return nil, err
	}
	return rate(p, took, took, after-before), nil
}

// tailNC is `tail -F FILE | nc` to `nc -l > FILE`, as people move lines without a tool.
func (b *bench) tailNC(p tally.Plan, mode string) (*Rate, error) {
	in, out := filepath.Join(b.dir, "tail.log"), filepath.Join(b.dir, "nc.log")
	defer os.Remove(in)
	defer os.Remove(out)
	if err := os.WriteFile(in, nil, 0o644); err != nil {
		return nil, fmt.Errorf("make the file that tail follows: %w", err)
	}
	addr, err := rig.FreeAddr()
	if err != nil {
		return nil, err
	}
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, fmt.Errorf("split %s: %w", addr, err)
	}
	listen, err := shell(`exec nc -l "$1" "$2" >"$3"`, host, port, out)
	if err != nil {
		return nil, err
	}
	defer endGroup(listen)
	if err := waitListening(b.ctx, port); err != nil {
		return nil, fmt.Errorf("start nc -l (Debian package netcat-openbsd): %w", err)
	}
	follow, err := shell(`tail -n +1 -F "$1" | nc "$2" "$3"`, in, host, port)
	if err != nil {
		return nil, err
	}
	defer endGroup(follow)
	began := time.Now()
	writing, err := b.write(p, mode, in, func() { began = time.Now() })
	if err != nil {
		return nil, err
	}
	if _, err := rig.WaitSize(b.ctx, out, p.Bytes(), time.Millisecond, 20*time.Second); err != nil {
		return nil, fmt.Errorf("wait for tail -F | nc: %w", err)
	}
	all := time.Since(began)
	cpu := groupCPU(follow.Process.Pid) + groupCPU(listen.Process.Pid)
	count, err := checkFile(out, p)
	if err != nil {
		return nil, err
	}
	r := rate(p, writing, all, cpu)
	r.Count = &count
	return r, nil
}

// shell starts a line of sh in a process group of its own.
func shell(line string, args ...string) (*exec.Cmd, error) {
	cmd := exec.Command("sh", append([]string{"-c", line, "sh"}, args...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start sh -c %q: %w", line, err)
	}
	return cmd, nil
}

func endGroup(cmd *exec.Cmd) {
	_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
	_ = cmd.Wait() // killed: its status says nothing new
}

// groupCPU sums the CPU seconds of the living processes of a process group.
func groupCPU(pgid int) float64 {
	dirs, _ := filepath.Glob("/proc/[0-9]*") // the pattern is well-formed
	var sum float64
	for _, d := range dirs {
		pid, err := strconv.Atoi(filepath.Base(d))
		if err != nil {
			continue
		}
		if g, err := syscall.Getpgid(pid); err != nil || g != pgid {
			continue
		}
		if cpu, err := rig.CPU(pid); err == nil {
			sum += cpu
		}
	}
	return sum
}

// waitListening waits until something of this machine listens on port (IPv4).
func waitListening(ctx context.Context, port string) error {
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return fmt.Errorf("read port %q: %w", port, err)
	}
	// Local address and state, 0A is TCP_LISTEN (proc(5), /proc/net/tcp).
	want := fmt.Appendf(nil, ":%04X 00000000:0000 0A", n)
	return waitUntil(ctx, "something listens on port "+port, func() (bool, error) {
		table, err := os.ReadFile("/proc/net/tcp")
		return bytes.Contains(table, want), err
	})
}

// waitUntil waits until ok says true, for ten seconds at most; what says what that means.
func waitUntil(ctx context.Context, what string, ok func() (bool, error)) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		if yes, err := ok(); err != nil {
			return fmt.Errorf("see whether %s: %w", what, err)
		} else if yes {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("wait until %s: %w", what, ctx.Err())
		}
	}
}

func checkFile(path string, p tally.Plan) (tally.Count, error) {
	f, err := os.Open(path)
	if err != nil {
		return tally.Count{}, fmt.Errorf("open the output to check: %w", err)
	}
	defer f.Close()
	return tally.Check(f, p)
}
