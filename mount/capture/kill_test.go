package capture

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"ftfuse/internal/batch"
	"ftfuse/internal/failpoint"
	"ftfuse/internal/record"
	"ftfuse/mount/spool"
	"ftfuse/queue"
)

const (
	envChild    = "FTFUSE_CAPTURE_CHILD" // directory; makes the test binary a writer to be killed
	killWriters = 4
)

var killPoints = []string{
	"capture/seal", "capture/committed", "capture/freed", "capture/epoch", "capture/replayed", "capture/intent",
	"spool/noted", "spool/written", "spool/truncated", "spool/punch", "queue/commit-before", "queue/commit-after",
}

// TestKilledAtEveryPoint: a process with a real spool and a real queue is killed, by
// itself at a failpoint or from outside, again and again; every accepted line is in
// the queue once, in order, whole.
func TestKilledAtEveryPoint(t *testing.T) {
	if dir := os.Getenv(envChild); dir != "" {
		childMain(dir)
	}
	lives := 14
	if os.Getenv("FTFUSE_SOAK") != "" {
		lives = 300
	}
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 3))
	dir := t.TempDir()
	for life := range lives {
		point := killPoints[life%len(killPoints)]
		cmd := exec.Command(os.Args[0], "-test.run=^TestKilledAtEveryPoint$")
		cmd.Env = append(os.Environ(), envChild+"="+dir, "FTFUSE_CAPTURE_LIFE="+strconv.Itoa(life))
		if life < lives-1 {
			cmd.Env = append(cmd.Env, fmt.Sprintf("%s=%s=kill@%d", failpoint.Env, point, 1+rnd.IntN(20)))
		} else {
			cmd.Env = append(cmd.Env, "FTFUSE_CAPTURE_LAST=1")
		}
		out, err := runFor(cmd, 700*time.Millisecond, life < lives-1)
		if err != nil {
			t.Fatalf("life %d, killed at %s: %v\n%s", life, point, err, out)
		}
	}
	checkKilled(t, dir, lives)
}

// runFor runs cmd and kills it after a while if it is to be killed. Any other end is an
// error.
func runFor(cmd *exec.Cmd, d time.Duration, kill bool) ([]byte, error) {
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	if kill {
		timer := time.AfterFunc(d, func() { cmd.Process.Kill() })
		defer timer.Stop()
	}
	err := cmd.Wait()
	if kill && err != nil && cmd.ProcessState.ExitCode() == -1 {
		err = nil
	}
	return out.Bytes(), err
}

// childMain writes numbered lines until it is killed. What it was told is accepted
// stands in the file acked.LIFE, one u64 a writer.
func childMain(dir string) {
	if err := child(dir); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	os.Exit(0)
}

func child(dir string) error {
	life, last := os.Getenv("FTFUSE_CAPTURE_LIFE"), os.Getenv("FTFUSE_CAPTURE_LAST") != ""
	q, err := queue.Open(filepath.Join(dir, "queue"), queue.Options{Cursors: []string{"all"}, SegmentBytes: 8 << 20})
	if err != nil {
		return err
	}
	s, err := spool.Open(filepath.Join(dir, "spool"), spool.Options{PunchEvery: 64 << 10})
	if err != nil {
		return err
	}
	c, err := New(Options{Store: s, Queue: q, Host: "h", Origin: batch.Origin(q.Node()), BatchBytes: 64 << 10})
	if err != nil {
		return err
	}
	ctx := context.Background()
	if err := c.Recover(ctx, nil); err != nil {
		return err
	}
	ran := make(chan error, 1)
	run, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() { ran <- c.Run(run) }()
	acked, err := os.Create(filepath.Join(dir, "acked."+life))
	if err != nil {
		return err
	}
	var wg sync.WaitGroup
	errs := make(chan error, killWriters)
	for w := range killWriters {
		wg.Go(func() { errs <- childWriter(s, c, acked, life, w, last) })
	}
	wg.Wait()
	close(errs)
	for e := range errs {
		err = errors.Join(err, e)
	}
	err = errors.Join(err, c.DrainAll(ctx))
	cancel()
	return errors.Join(err, <-ran, q.Close(), s.Close())
}

func childWriter(s *spool.Store, c *Capture, acked *os.File, life string, w int, last bool) error {
	path := fmt.Sprint("f", w%2)
	f, err := childFile(s, path, w)
	if err != nil {
		return err
	}
	h, err := s.OpenHandle(f, path, spool.PerWrite, &spool.Meta{})
	if err != nil {
		return err
	}
	rnd := rand.New(rand.NewPCG(uint64(w), 1))
	for n := 0; !last || n < 2000; n++ {
		line := fmt.Sprintf("%s %d %d %s\n", life, w, n, strings.Repeat("x", rnd.IntN(300)))
		cut := rnd.IntN(len(line))
		for _, part := range []string{line[:cut], line[cut:]} {
			if err := childWrite(s, h, part); err != nil {
				return err
			}
		}
		if _, err := acked.WriteAt(binary.LittleEndian.AppendUint64(nil, uint64(n+1)), int64(w*8)); err != nil {
			return err
		}
	}
	h.End(&spool.Meta{})
	return nil
}

var childMu sync.Mutex

func childFile(s *spool.Store, path string, w int) (*spool.File, error) {
	childMu.Lock()
	defer childMu.Unlock()
	if _, n, err := s.Lookup(path); err == nil {
		return s.Acquire(n)
	}
	return s.Create(path, 0o600, 0, 0)
}

func childWrite(s *spool.Store, h *spool.Handle, part string) error {
	for {
		changed := s.Changed()
		_, err := h.Write([]byte(part), 0, true, &spool.Meta{PID: uint32(h.Writer), Time: 1})
		if !errors.Is(err, spool.ErrJournalFull) {
			return err
		}
		<-changed
	}
}

// checkKilled reads the whole queue and compares it with what was accepted.
func checkKilled(t *testing.T, dir string, lives int) {
	q, err := queue.Open(filepath.Join(dir, "queue"), queue.Options{Cursors: []string{"all"}})
	if err != nil {
		t.Fatal(err)
	}
	defer q.Close()
	r := &rig{TB: t, q: &memQueue{t: t}}
	cur, err := q.Cursor("all")
	if err != nil {
		t.Fatal(err)
	}
	for left := q.Stats().Live.Batches; left > 0; left-- {
		it, err := cur.Next(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		r.q.batches = append(r.q.batches, it.Batch)
	}
	next := map[[2]int]int{} // lines of each life and writer
	for pid, text := range (&model{rig: r}).byPID() {
		for i, line := range strings.SplitAfter(text, "\n") {
			if !strings.HasSuffix(line, "\n") {
				continue // the last one, cut by the kill
			}
			var life, w, n int
			if _, err := fmt.Sscanf(line, "%d %d %d ", &life, &w, &n); err != nil || n != i {
				t.Fatalf("writer %d: line %d is %.60q", pid, i, line)
			}
			next[[2]int{life, w}]++
		}
	}
	total := compareAcked(t, dir, lives, next)
	for _, x := range r.records() {
		if x.flags&record.Recovered != 0 {
			t.Errorf("recovered without need: %v", x)
		}
	}
	t.Logf("%d lines accepted in %d lives", total, lives)
	if total == 0 {
		t.Error("nothing was accepted")
	}
}

// compareAcked compares the lines that came with those that were accepted, and returns
// how many these are.
func compareAcked(t *testing.T, dir string, lives int, came map[[2]int]int) int {
	total := 0
	for life := range lives {
		b, _ := os.ReadFile(filepath.Join(dir, fmt.Sprint("acked.", life)))
		for w := 0; w*8+8 <= len(b); w++ {
			acked := int(binary.LittleEndian.Uint64(b[w*8:]))
			if got := came[[2]int{life, w}]; got < acked || got > acked+1 {
				t.Errorf("life %d, writer %d: %d lines, %d were accepted", life, w, got, acked)
			}
			total += acked
		}
	}
	return total
}
