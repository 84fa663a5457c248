package mount

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"ftfuse/mount/nullfs"
)

func init() {
	actors["append"] = actAppend
	actors["nullfs"] = actNullfs
}

// actAppend writes COUNT lines of SIZE bytes to PATH, CHUNK lines a write(2), once its
// stdin is closed.
func actAppend(args []string) error {
	size, _ := strconv.Atoi(args[1])
	count, _ := strconv.Atoi(args[2])
	chunk, _ := strconv.Atoi(args[3])
	f, err := syscall.Open(args[0], syscall.O_WRONLY|syscall.O_APPEND|syscall.O_CREAT, 0o644)
	if err != nil {
		return err
	}
	line := append(bytes.Repeat([]byte{'x'}, size-1), '\n')
	buf := bytes.Repeat(line, chunk)
	fmt.Println("open")
	io.Copy(io.Discard, os.Stdin)
	for i := 0; i < count; i += chunk {
		if n, err := syscall.Write(f, buf); n != len(buf) {
			return fmt.Errorf("write of %d: %d, %w", len(buf), n, err)
		}
	}
	return syscall.Close(f)
}

func actNullfs(args []string) error {
	fs, err := nullfs.Mount(args[0])
	if err != nil {
		return err
	}
	ctx, cancel := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer cancel()
	fmt.Println("ready")
	return fs.Serve(ctx)
}

// actor runs one of the actors in a process of its own.
func actor(name string, args ...string) *exec.Cmd {
	cmd := exec.Command(os.Args[0], args...)
	cmd.Env = append(os.Environ(), envActor+"="+name)
	cmd.Stderr = os.Stderr
	return cmd
}

// appendAll runs writers, each on a file of its own in dir, and returns how long they took.
func appendAll(tb testing.TB, dir string, writers, size, count, chunk int) time.Duration {
	tb.Helper()
	var cmds []*exec.Cmd
	var start []io.Closer
	for i := range writers {
		cmd := actor("append", filepath.Join(dir, fmt.Sprintf("w%d", i)), strconv.Itoa(size), strconv.Itoa(count/writers), strconv.Itoa(chunk))
		in, err := cmd.StdinPipe()
		if err != nil {
			tb.Fatal(err)
		}
		out, err := cmd.StdoutPipe()
		if err != nil {
			tb.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			tb.Fatal(err)
		}
		if _, err := io.ReadFull(out, make([]byte, 5)); err != nil {
			tb.Fatal("writer does not start", err)
		}
		cmds, start = append(cmds, cmd), append(start, in)
	}
	begun := time.Now()
	for _, c := range start {
		c.Close()
	}
	for _, c := range cmds {
		if err := c.Wait(); err != nil {
			tb.Fatal(err)
		}
	}
	return time.Since(begun)
}

// BenchmarkAppend compares this file system, with capture and queue behind it, to an
// empty one that throws every write away, in one run. The metric "ratio" is what counts.
//
//	flock /tmp/ftfuse/bench.lock go test ./mount -run - -bench Append -benchtime 1x
func BenchmarkAppend(b *testing.B) {
	if os.Geteuid() != 0 {
		b.Skip("needs root")
	}
	for _, c := range []struct{ writers, size, count, chunk int }{
		{1, 128, 300_000, 1},
		{4, 10, 400_000, 1},
		{4, 128, 400_000, 1},
		{4, 1024, 400_000, 1},
		{4, 4096, 200_000, 1},
		{4, 128, 8_000_000, 512},
	} {
		b.Run(fmt.Sprintf("%dx%dB/%d", c.writers, c.size, c.chunk), func(b *testing.B) {
			for b.Loop() {
				null, nullCPU := benchNull(b, c.writers, c.size, c.count, c.chunk)
				ours, cpu := benchOurs(b, c.writers, c.size, c.count, c.chunk)
				per := func(d time.Duration) float64 { return float64(c.count) / d.Seconds() }
				b.ReportMetric(per(null), "null-lines/s")
				b.ReportMetric(per(ours), "ftfuse-lines/s")
				b.ReportMetric(null.Seconds()/ours.Seconds(), "ratio")
				b.ReportMetric(nullCPU.Seconds()/float64(c.count)*1e6, "null-cpu-s/Mline")
				b.ReportMetric(cpu.Seconds()/float64(c.count)*1e6, "ftfuse-cpu-s/Mline")
			}
		})
	}
}

func benchNull(b *testing.B, writers, size, count, chunk int) (wall, cpu time.Duration) {
	dir := filepath.Join(b.TempDir(), "null")
	if err := os.Mkdir(dir, 0o755); err != nil {
		b.Fatal(err)
	}
	cmd := actor("nullfs", dir)
	out, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	defer func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
	}()
	if _, err := io.ReadFull(out, make([]byte, 6)); err != nil {
		b.Fatal("the empty file system does not start", err)
	}
	wall = appendAll(b, dir, writers, size, count, chunk)
	return wall, cpuOf(b, cmd.Process.Pid)
}

func benchOurs(b *testing.B, writers, size, count, chunk int) (wall, cpu time.Duration) {
	r := newRig(b, "")
	pid := r.cmd.Process.Pid
	before := cpuOf(b, pid)
	wall = appendAll(b, r.point, writers, size, count, chunk)
	cpu = cpuOf(b, pid) - before
	if os.Getenv("FTFUSE_TEST_PROFILE") != "" {
		r.stop()
	} else {
		r.kill()
	}
	return wall, cpu
}

// cpuOf is the CPU time that process pid has used.
func cpuOf(tb testing.TB, pid int) time.Duration {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		tb.Fatal(err)
	}
	fields := bytes.Fields(text[bytes.LastIndexByte(text, ')')+2:])
	var ticks int64
	for _, f := range fields[11:13] {
		n, _ := strconv.ParseInt(string(f), 10, 64)
		ticks += n
	}
	return time.Duration(ticks) * time.Second / 100
}
