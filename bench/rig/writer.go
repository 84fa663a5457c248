package rig

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"time"

	"ftfuse/bench/tally"
)

// HelperEnv chooses, in a process started for it, what the binary is instead of its CLI.
const HelperEnv = "FTFUSE_BENCH_HELPER"

// jobEnv carries the Job of a writer as JSON.
const jobEnv = "FTFUSE_BENCH_JOB"

// Job is what one writer process does: append numbered lines to one file, opened once
// with O_APPEND.
type Job struct {
	Path   string
	Writer int
	First  int // number of the first line
	Lines  int // how many, at most
	Size   int
	Chunk  int // up to so many bytes of whole lines a write(2); 0: one line a write(2)
	Rate   int // lines a second; 0: as fast as it goes
	// Survive goes on when a write fails because the daemon was killed: the lines of that
	// write are reported as Maybe, and the file is opened again once a FUSE file system
	// that answers is back at its place.
	Survive bool
	// StopOnError ends the writer's work at the first write or fsync that fails, as a
	// result rather than as an error.
	StopOnError bool
	SyncEvery   int // an fsync after so many write(2)s; 0: none
	// IgnoreClose takes an error of close(2) for no failure: FLUSH cannot reach a daemon that
	// was killed, however well the writes went.
	IgnoreClose bool
	ReopenEvery int  // close the file and open it again after so many lines; 0: never
	Flags       int  // further flags of open(2)
	Clock       bool // measure each write(2), with the fsync that follows it: Longest, P50, P99
	Stamp       bool // lines begin with the time they were written (rig.Stamp), not a number
	Files       int  // open so many files below Path, a line to each, and then hold them; 0: one file
}

// Result is what a writer reports.
type Result struct {
	Lines   int     // lines given to write(2), Maybe included
	Synced  int     // lines that the last fsync which returned 0 came after
	Bytes   int64   // bytes that write(2) accepted
	Seconds float64 // from the first write to the last
	Clocked int64   // how many times Clock measured; and in ms the longest, …
	Longest float64
	P50     float64 // … the median, and the 99th percentile
	P99     float64
	CPU     float64      // CPU seconds of the process
	Maybe   []tally.Name // lines of writes that failed
	Errors  []string     // what those writes returned
}

// Writer is a running writer process.
type Writer struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
}

// StartWriter starts a writer with bin, whose main calls MaybeWriter, and waits until it
// has opened its file. It writes nothing before Go.
func StartWriter(bin string, job Job) (*Writer, error) {
	j, err := json.Marshal(job)
	if err != nil {
		return nil, fmt.Errorf("describe the writer's job: %w", err)
	}
	cmd := exec.Command(bin)
	// The runtime signals its own threads no more: EINTR of a write(2) is the mount's fault then.
	cmd.Env = append(os.Environ(), HelperEnv+"=write", jobEnv+"="+string(j), "GOMAXPROCS=1", "GODEBUG=asyncpreemptoff=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Stderr = os.Stderr
	w := &Writer{cmd: cmd}
	if w.in, err = cmd.StdinPipe(); err != nil {
		return nil, fmt.Errorf("make a pipe to the writer: %w", err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, fmt.Errorf("make a pipe from the writer: %w", err)
	}
	w.out = bufio.NewReader(out)
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start a writer: %w", err)
	}
	if line, err := w.out.ReadString('\n'); err != nil || line != "open\n" {
		w.Kill()
		return nil, fmt.Errorf("start a writer on %s: it said %q (%w)", job.Path, line, err)
	}
	return w, nil
}

// Go lets the writer begin.
func (w *Writer) Go() error {
	if _, err := w.in.Write([]byte("g")); err != nil {
		return fmt.Errorf("let the writer begin: %w", err)
	}
	return nil
}

// PID is the process id.
func (w *Writer) PID() int { return w.cmd.Process.Pid }

// Kill ends the writer at once, as kill -9 does.
func (w *Writer) Kill() {
	_ = w.cmd.Process.Kill()
	_ = w.cmd.Wait() // killed: its status says nothing new
}

// Finish asks the writer to stop after the write at hand; Wait tells what it did.
func (w *Writer) Finish() { _ = w.in.Close() }

// Wait waits until the writer has written its lines and closed its file.
func (w *Writer) Wait() (Result, error) {
	var r Result
	if err := json.NewDecoder(w.out).Decode(&r); err != nil {
		w.Kill()
		return r, fmt.Errorf("read what the writer did: %w", err)
	}
	_ = w.in.Close()
	if err := w.cmd.Wait(); err != nil {
		return r, fmt.Errorf("wait for the writer: %w", err)
	}
	return r, nil
}

// MaybeWriter turns the process into a writer if it was started as one, and then returns
// its exit code and true.
func MaybeWriter() (int, bool) {
	if os.Getenv(HelperEnv) != "write" {
		return 0, false
	}
	if err := writerMain(); err != nil {
		fmt.Fprintln(os.Stderr, "ftfuse writer:", err)
		return 1, true
	}
	return 0, true
}

func writerMain() error {
	w := &writer{}
	if err := json.Unmarshal([]byte(os.Getenv(jobEnv)), &w.job); err != nil {
		return fmt.Errorf("read %s: %w", jobEnv, err)
	}
	if err := w.open(); err != nil {
		return err
	}
	fmt.Println("open")
	if _, err := os.Stdin.Read(make([]byte, 1)); err != nil {
		return fmt.Errorf("wait for the word to begin: %w", err)
	}
	go func() {
		_, _ = os.Stdin.Read(make([]byte, 1)) // ends when the parent closes its end, or is gone
		w.finish.Store(true)
	}()
	began := time.Now()
	if err := w.run(); err != nil {
		return err
	}
	w.res.Seconds = time.Since(began).Seconds()
	if err := w.close(); err != nil {
		return err
	}
	ms := func(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1e6 }
	w.res.Clocked, w.res.Longest, w.res.P50, w.res.P99 = w.took.N(), ms(w.took.Max()), ms(w.took.Quantile(0.5)), ms(w.took.Quantile(0.99))
	cpu, err := CPU(os.Getpid())
	if err != nil {
		return err
	}
	w.res.CPU = cpu
	if err := json.NewEncoder(os.Stdout).Encode(w.res); err != nil {
		return fmt.Errorf("report: %w", err)
	}
	return nil
}

// writer is the child's side.
type writer struct {
	job     Job
	fd      int
	finish  atomic.Bool
	res     Result
	writes  int
	stopped bool // by an error, StopOnError
	took    Hist
}

func (w *writer) open() error {
	if w.job.Files > 0 {
		return w.openMany()
	}
	fd, err := syscall.Open(w.job.Path, syscall.O_WRONLY|syscall.O_APPEND|syscall.O_CREAT|syscall.O_CLOEXEC|w.job.Flags, 0o644)
	if err != nil {
		return fmt.Errorf("open %s for appending: %w", w.job.Path, err)
	}
	w.fd = fd
	return nil
}

// close closes the file; errors that the job expects are none.
func (w *writer) close() error {
	err := syscall.Close(w.fd)
	if err != nil && !w.job.Survive && !w.job.StopOnError && !w.job.IgnoreClose {
		return fmt.Errorf("close %s: %w", w.job.Path, err)
	}
	return nil
}

// openMany opens the job's files and puts a line into each.
func (w *writer) openMany() error {
	for i := range w.job.Files {
		path := ManyPath(w.job.Path, i)
		if i%100 == 0 {
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				return fmt.Errorf("make a folder on the mount: %w", err)
			}
		}
		fd, err := syscall.Open(path, syscall.O_WRONLY|syscall.O_APPEND|syscall.O_CREAT|syscall.O_CLOEXEC, 0o644)
		if err != nil {
			return fmt.Errorf("open %s for appending, file number %d: %w", path, i, err)
		}
		w.fd = fd
		if err := w.write(tally.Append(nil, w.job.Writer, i, w.job.Size), i); err != nil {
			return err
		}
	}
	return nil
}

// ManyPath is the path of file number i of a job with Files below dir.
func ManyPath(dir string, i int) string {
	return filepath.Join(dir, fmt.Sprintf("%03d", i/100), fmt.Sprintf("%02d.log", i%100))
}

func (w *writer) run() error {
	if w.job.Files > 0 {
		for !w.finish.Load() {
			pause(10 * time.Millisecond)
		}
		return nil
	}
	per := max(w.job.Chunk/w.job.Size, 1)
	buf := make([]byte, 0, per*w.job.Size)
	began := time.Now()
	for n := 0; n < w.job.Lines && !w.finish.Load(); {
		count := min(per, w.job.Lines-n)
		buf = w.fill(buf[:0], n, count)
		var lineBegan time.Time
		if w.job.SyncEvery > 0 {
			lineBegan = time.Now()
		}
		if err := w.write(buf, w.job.First+n); err != nil {
			return err
		}
		n += count
		w.res.Lines = n
		if err := w.sync(); err != nil {
			return err
		}
		if w.job.Clock && w.job.SyncEvery > 0 {
			w.took.Add(time.Since(lineBegan))
		}
		if w.stopped {
			return nil
		}
		if w.job.ReopenEvery > 0 && n%w.job.ReopenEvery < count {
			if err := errors.Join(w.close(), w.open()); err != nil {
				return err
			}
		}
		if w.job.Rate > 0 {
			if ahead := time.Duration(n)*time.Second/time.Duration(w.job.Rate) - time.Since(began); ahead > 0 {
				pause(ahead)
			}
		}
	}
	return nil
}

// fill appends the next count lines to b.
func (w *writer) fill(b []byte, n, count int) []byte {
	if !w.job.Stamp {
		return tally.AppendRun(b, w.job.Writer, w.job.First+n, count, w.job.Size)
	}
	now := Now()
	for range count {
		b = appendStamped(b, now, w.job.Size)
	}
	return b
}

// once is one write(2), measured if the job asks for that.
func (w *writer) once(b []byte) (int, error) {
	if !w.job.Clock || w.job.SyncEvery > 0 {
		return syscall.Write(w.fd, b)
	}
	began := time.Now()
	n, err := syscall.Write(w.fd, b)
	w.took.Add(time.Since(began))
	return n, err
}

// write appends lines, the first of them numbered first, with one write(2), and with
// further ones only for what a short count left over. EINTR is an error like others: no program
// expects it of a file.
func (w *writer) write(lines []byte, first int) error {
	for done := 0; done < len(lines); {
		n, err := w.once(lines[done:])
		switch {
		case err == nil:
			done += n
			w.res.Bytes += int64(n)
		case w.job.Survive && gone(err):
			w.giveUp(first+done/w.job.Size, first+len(lines)/w.job.Size, err)
			return w.reopen()
		case w.job.StopOnError:
			w.giveUp(first+done/w.job.Size, first+len(lines)/w.job.Size, err)
			w.stopped = true
			return nil
		default:
			return fmt.Errorf("append to %s: %w", w.job.Path, err)
		}
	}
	return nil
}

// sync makes what was written durable when it is time to.
func (w *writer) sync() error {
	w.writes++
	if w.stopped || w.job.SyncEvery == 0 || w.writes%w.job.SyncEvery != 0 {
		return nil
	}
	err := syscall.Fsync(w.fd)
	switch {
	case err == nil:
		w.res.Synced = w.res.Lines
	case w.job.StopOnError:
		w.res.Errors = append(w.res.Errors, err.Error())
		w.stopped = true
	default:
		return fmt.Errorf("fsync %s: %w", w.job.Path, err)
	}
	return nil
}

func (w *writer) giveUp(from, to int, err error) {
	for n := from; n < to; n++ {
		w.res.Maybe = append(w.res.Maybe, tally.Name{Writer: w.job.Writer, N: n})
	}
	w.res.Errors = append(w.res.Errors, err.Error())
}

// gone reports whether an error says that nothing serves the mount any more. EIO is what
// a request gets when the daemon was killed while it was being copied to it
// (fuse_dev_do_read in fs/fuse/dev.c).
func gone(err error) bool {
	for _, e := range []syscall.Errno{syscall.ENOTCONN, syscall.ECONNABORTED, syscall.ENODEV, syscall.EIO} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// reopen waits until a mount that answers is back and opens the file on it. The check of
// the open file matters: between two mounts the folder below the mount point is bare.
func (w *writer) reopen() error {
	_ = syscall.Close(w.fd) // the dead mount's: nothing left to lose by it
	for !w.finish.Load() {
		if OnFUSE(filepath.Dir(w.job.Path)) && w.open() == nil {
			var st syscall.Statfs_t
			if syscall.Fstatfs(w.fd, &st) == nil && st.Type == FUSE {
				return nil
			}
			_ = syscall.Close(w.fd)
		}
		pause(2 * time.Millisecond)
	}
	w.fd = -1
	return nil
}
