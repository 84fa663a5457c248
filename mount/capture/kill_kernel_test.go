package capture

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ftfuse/internal/batch"
	"ftfuse/internal/failpoint"
	"ftfuse/mount/spool"
	"ftfuse/queue"
)

const envKernelChild = "FTFUSE_CAPTURE_KERNEL_CHILD"

// TestKilledWhileTheKernelWrites: a process with a real spool and a real queue is killed, at
// each failpoint in turn or from outside, while this one appends to its spool files as the
// kernel does for programs. The next process takes the connection over, or finds the writers
// to be orphans. A file's lock stands for the kernel's inode lock: it keeps the writers out
// of a truncation and of the daemon's own writes, and goes with the process that holds it.
// Every line is in the queue once, whole, in the order of its writer.
func TestKilledWhileTheKernelWrites(t *testing.T) {
	if dir := os.Getenv(envKernelChild); dir != "" {
		kernelChildMain(dir)
	}
	points := append([]string{"capture/punched", "spool/orphan-made", "spool/orphan-moved"}, killPoints...)
	lives := len(points)
	if os.Getenv("FTFUSE_SOAK") != "" {
		lives = 300
	}
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	k := &killedRun{t: t, dir: t.TempDir(), rnd: rand.New(rand.NewPCG(seed, 5))}
	defer k.stopAll()
	for _, p := range []string{"k0", "k1"} {
		if err := os.WriteFile(filepath.Join(k.dir, "lock."+p), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for life := range lives {
		k.live(life, points[life%len(points)])
	}
	k.stopAll()
	k.check()
}

type killedRun struct {
	t       *testing.T
	dir     string
	rnd     *rand.Rand
	writers []*outsideWriter
}

// outsideWriter appends lines to a spool file until it is stopped.
type outsideWriter struct {
	id, life int
	path     string
	stop     chan struct{}
	done     chan struct{}
	lines    int // appended; read it when done is closed
	err      error
}

func (k *killedRun) start(life int, path string, n string) {
	w := &outsideWriter{id: len(k.writers), life: life, path: path, stop: make(chan struct{}), done: make(chan struct{})}
	fd, err := unix.Open(filepath.Join(k.dir, "spool", "spool", n), unix.O_WRONLY|unix.O_APPEND|unix.O_CLOEXEC, 0)
	if err != nil {
		k.t.Error(err)
		return
	}
	k.writers = append(k.writers, w)
	lock := filepath.Join(k.dir, "lock."+path)
	rnd := rand.New(rand.NewPCG(uint64(w.id), 8))
	go func() {
		defer close(w.done)
		defer unix.Close(fd)
		tick := time.NewTicker(2 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-w.stop:
				return
			case <-tick.C:
			}
			for range 20 {
				line := fmt.Sprintf("K %d %d %s\n", w.id, w.lines, strings.Repeat("k", rnd.IntN(200)))
				if w.err = locked(lock, unix.LOCK_SH, func() error { return appendParts(fd, line, rnd.IntN(len(line))) }); w.err != nil {
					return
				}
				w.lines++
			}
		}
	}()
}

func appendParts(fd int, line string, cut int) error {
	for _, part := range []string{line[:cut], line[cut:]} {
		if n, err := unix.Write(fd, []byte(part)); err != nil || n != len(part) {
			return fmt.Errorf("append %d bytes: %d, %w", len(part), n, err)
		}
	}
	return nil
}

func locked(file string, how int, fn func() error) error {
	fd, err := unix.Open(file, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	for err = unix.EINTR; err == unix.EINTR; {
		err = unix.Flock(fd, how)
	}
	if err != nil {
		return err
	}
	return fn()
}

func (w *outsideWriter) end(t *testing.T) {
	select {
	case <-w.stop:
	default:
		close(w.stop)
	}
	<-w.done
	if w.err != nil {
		t.Error(w.err)
	}
}

func (k *killedRun) stopAll() {
	for _, w := range k.writers {
		w.end(k.t)
	}
}

// live is one process from its start to its death.
func (k *killedRun) live(life int, point string) {
	takeover := life%2 == 1
	cmd := exec.Command(os.Args[0], "-test.run=^TestKilledWhileTheKernelWrites$")
	cmd.Env = append(os.Environ(), envKernelChild+"="+k.dir, "FTFUSE_CAPTURE_LIFE="+strconv.Itoa(life))
	if takeover {
		cmd.Env = append(cmd.Env, "FTFUSE_CAPTURE_TAKEOVER=1")
	}
	cmd.Env = append(cmd.Env, fmt.Sprintf("%s=%s=kill@%d", failpoint.Env, point, 1+k.rnd.IntN(20)))
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.StdoutPipe()
	if err != nil {
		k.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		k.t.Fatal(err)
	}
	timer := time.AfterFunc(700*time.Millisecond, func() { cmd.Process.Kill() })
	defer timer.Stop()
	for lines := bufio.NewScanner(out); lines.Scan(); {
		f := strings.Fields(lines.Text())
		if len(f) != 3 || f[0] != "open" {
			continue
		}
		for _, w := range k.writers { // orphans of an earlier life, some of which stay
			if w.path == f[1] && (w.life < life-4 || k.rnd.IntN(3) > 0) {
				w.end(k.t)
			}
		}
		k.start(life, f[1], f[2])
	}
	if err = cmd.Wait(); cmd.ProcessState.ExitCode() != -1 {
		k.t.Fatalf("life %d, point %s: %v, %s", life, point, err, errs.String())
	}
}

// check compares the queue with what was written.
func (k *killedRun) check() {
	q, err := queue.Open(filepath.Join(k.dir, "queue"), queue.Options{Cursors: []string{"all"}})
	if err != nil {
		k.t.Fatal(err)
	}
	defer q.Close()
	k.capture(q)
	r := &rig{TB: k.t, q: &memQueue{t: k.t}}
	cur, err := q.Cursor("all")
	if err != nil {
		k.t.Fatal(err)
	}
	for left := q.Stats().Live.Batches; left > 0; left-- {
		it, err := cur.Next(k.t.Context())
		if err != nil {
			k.t.Fatal(err)
		}
		r.q.batches = append(r.q.batches, it.Batch)
	}
	next := map[string]int{}
	for _, x := range r.records() {
		for line := range strings.Lines(x.data) {
			var kind string
			var id, n int
			if _, err := fmt.Sscanf(line, "%s %d %d ", &kind, &id, &n); err != nil || !strings.HasSuffix(line, "\n") {
				k.t.Fatalf("line %.80q in %v: %v", line, x, err)
			}
			if kind == "D" && n > next[fmt.Sprint("D ", id)] {
				next[fmt.Sprint("D ", id)] = n // the write before was killed: see the counts below
			}
			if key := fmt.Sprint(kind, " ", id); next[key] != n {
				k.t.Fatalf("%s: line %d, want %d", key, n, next[key])
			}
			next[fmt.Sprint(kind, " ", id)]++
		}
	}
	total := 0
	for _, w := range k.writers {
		if got := next[fmt.Sprint("K ", w.id)]; got != w.lines {
			k.t.Errorf("outside writer %d, of life %d: %d lines came, %d were written", w.id, w.life, got, w.lines)
		}
		total += w.lines
	}
	k.t.Logf("%d lines of %d writers", total, len(k.writers))
	if total == 0 {
		k.t.Error("nothing was written")
	}
}

// capture takes the rest into the queue, when nobody writes any more.
func (k *killedRun) capture(q *queue.Queue) {
	s, err := spool.Open(filepath.Join(k.dir, "spool"), spool.Options{})
	if err != nil {
		k.t.Fatal(err)
	}
	defer s.Close()
	c, err := New(Options{Store: s, Queue: q, Host: "h", Origin: batch.Origin(q.Node())})
	if err == nil {
		err = c.Recover(k.t.Context(), nil)
	}
	if err != nil {
		k.t.Fatal(err)
	}
}

// heldHandle is what a worker that takes over has to know of an open handle.
type heldHandle struct {
	Path   string
	Number spool.Number
	Writer uint64
	Mode   spool.OpenMode
}

func kernelChildMain(dir string) {
	if err := kernelChild(dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

func kernelChild(dir string) error {
	q, err := queue.Open(filepath.Join(dir, "queue"), queue.Options{Cursors: []string{"all"}, SegmentBytes: 8 << 20})
	if err != nil {
		return err
	}
	s, err := spool.Open(filepath.Join(dir, "spool"), spool.Options{PunchEvery: 64 << 10, Readback: 4096, OrphanPatience: 20 * time.Millisecond, OrphanPoll: 20 * time.Millisecond})
	if err != nil {
		return err
	}
	c, err := New(Options{Store: s, Queue: q, Host: "h", Origin: batch.Origin(q.Node()), BatchBytes: 64 << 10})
	if err != nil {
		return err
	}
	ctx := context.Background()
	handles, live, err := takeOver(s, filepath.Join(dir, "session"))
	if err != nil {
		return err
	}
	if err := c.Recover(ctx, live); err != nil {
		return err
	}
	ran := make(chan error, 1)
	run, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() { ran <- c.Run(run) }()
	if handles, err = openForKernel(s, dir, handles); err != nil {
		return err
	}
	errs := make(chan error, 4)
	for i, h := range handles {
		if h.Mode() == spool.Shared {
			go func() { errs <- daemonBeside(c, h, dir, i) }()
		}
	}
	select { // until it is killed
	case err = <-errs:
	case err = <-ran:
	}
	return err
}

// takeOver restores the handles of the session, unless a new connection begins.
func takeOver(s *spool.Store, file string) ([]*spool.Handle, func(uint64) bool, error) {
	if os.Getenv("FTFUSE_CAPTURE_TAKEOVER") == "" {
		return nil, nil, nil
	}
	b, err := os.ReadFile(file)
	if errors.Is(err, os.ErrNotExist) {
		return nil, func(uint64) bool { return false }, nil
	}
	var held []heldHandle
	if err == nil {
		err = json.Unmarshal(b, &held)
	}
	live := map[uint64]bool{}
	var out []*spool.Handle
	for _, x := range held {
		f, err := s.Acquire(x.Number)
		if err != nil {
			return nil, nil, err
		}
		h, err := s.RestoreHandle(f, x.Path, x.Mode, x.Writer, &spool.Meta{PID: 7})
		if err != nil {
			return nil, nil, err
		}
		live[x.Writer] = true
		out = append(out, h)
	}
	return out, func(w uint64) bool { return live[w] }, err
}

// openForKernel opens what is not open yet, as OPEN does: the session is stored before the
// program has its descriptor.
func openForKernel(s *spool.Store, dir string, handles []*spool.Handle) ([]*spool.Handle, error) {
	if len(handles) > 0 {
		return handles, nil
	}
	var held []heldHandle
	for _, path := range []string{"k0", "k1"} {
		f, err := childFile(s, path, 0)
		if err != nil {
			return nil, err
		}
		for _, mode := range []spool.OpenMode{spool.Kernel, spool.Shared} {
			h, err := s.OpenHandle(f, path, mode, &spool.Meta{PID: 7, Time: 1})
			if err != nil {
				return nil, err
			}
			handles = append(handles, h)
			held = append(held, heldHandle{path, f.Number(), h.Writer, mode})
		}
	}
	b, err := json.Marshal(held)
	if err != nil {
		return nil, err
	}
	tmp := filepath.Join(dir, "session.new")
	if err := os.WriteFile(tmp, b, 0o600); err != nil {
		return nil, err
	}
	if err := os.Rename(tmp, filepath.Join(dir, "session")); err != nil {
		return nil, err
	}
	for _, h := range held {
		if h.Mode == spool.Kernel {
			fmt.Println("open", h.Path, h.Number)
		}
	}
	return handles, nil
}

// daemonBeside writes and truncates as the daemon does beside the kernel.
func daemonBeside(c *Capture, h *spool.Handle, dir string, i int) error {
	life, _ := strconv.Atoi(os.Getenv("FTFUSE_CAPTURE_LIFE"))
	rnd := rand.New(rand.NewPCG(uint64(life), uint64(i)))
	lock := filepath.Join(dir, "lock."+h.Path)
	for n := 0; ; {
		err := locked(lock, unix.LOCK_EX, func() error {
			if rnd.IntN(8) == 0 {
				return truncateBeside(c, h, rnd)
			}
			off, end := int64(0), true
			if rnd.IntN(10) == 0 {
				off, end = h.Size()+int64(rnd.IntN(5000)), false
			}
			line := fmt.Sprintf("D %d %d %s\n", life*10+i, n, strings.Repeat("d", rnd.IntN(200)))
			_, err := h.Write([]byte(line), off, end, &spool.Meta{PID: 8, Time: 2})
			if errors.Is(err, spool.ErrJournalFull) {
				return nil
			}
			n++
			return err
		})
		if err != nil {
			return err
		}
		if err := c.Drain(context.Background(), h.Number()); err != nil {
			return err
		}
	}
}

func truncateBeside(c *Capture, h *spool.Handle, rnd *rand.Rand) error {
	size := h.Size()
	to := []int64{0, size / 2, max(0, size-2), size + 3000}[rnd.IntN(4)]
	if to == size {
		return nil
	}
	if err := c.BeginTruncate(context.Background(), h.Number(), to); err != nil {
		return err
	}
	if err := h.Truncate(to); err != nil {
		return err
	}
	return c.FinishTruncate(context.Background(), h.Number(), to, 1)
}
