package queue

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"ftfuse/internal/failpoint"
)

// The child of the crash tests submits numbered batches, reads and acks them, and prints
// each number when Done said that it is on disk. It never ends by itself.
const (
	childEnv        = "QUEUE_CRASH_CHILD"
	replaceChildEnv = "QUEUE_CRASH_REPLACE"
)

func TestMain(m *testing.M) {
	if at := os.Getenv(powerEnv); at != "" {
		dir, log, _ := strings.Cut(at, ":")
		if err := powerServer(dir, log); err != nil {
			fmt.Fprintln(os.Stderr, "power server:", err)
			os.Exit(3)
		}
		os.Exit(0)
	}
	if dir := os.Getenv(childEnv); dir != "" {
		child := crashChild
		if os.Getenv(replaceChildEnv) != "" {
			child = replaceChild
		}
		if os.Getenv(cursorsChildEnv) != "" {
			child = cursorsChild
		}
		err := child(dir)
		fmt.Fprintln(os.Stderr, "child:", err)
		os.Exit(3)
	}
	os.Exit(m.Run())
}

func crashOptions() Options {
	return Options{
		SegmentBytes: 256 << 10, MemoryBytes: 64 << 10, PendingBytes: 128 << 10, CommitEvery: time.Millisecond,
		IdleBytes: 64 << 10, IdleAfter: time.Millisecond, ReserveBytes: 1 << 20, Dedupe: true, Cursors: []string{"out"}, cheapRanges: 3,
	}
}

func crashChild(dir string) error { return crashChildWith(dir, func(*Queue) {}) }

// crashChildWith is crashChild, with beside running beside it.
func crashChildWith(dir string, beside func(*Queue)) error {
	q, err := Open(dir, crashOptions())
	if err != nil {
		return err
	}
	out := bufio.NewWriter(os.Stdout)
	say := func(format string, a ...any) {
		fmt.Fprintf(out, format+"\n", a...)
		_ = out.Flush() // a line is in the pipe or not, whatever kills us
	}
	c, err := q.Cursor("out")
	if err != nil {
		return err
	}
	v, _ := q.Get("n")
	n, _ := strconv.ParseUint(string(v), 10, 64)
	say("state %d", n)
	go beside(q)
	readErr := make(chan error, 1)
	go func() {
		for {
			it, err := c.Next(context.Background())
			if err != nil {
				readErr <- err
				return
			}
			if it.Seq%97 != 0 { // some stay for the next start
				c.Ack(it.Seq)
			}
		}
	}()
	for {
		n++
		i := n
		_, err := q.Submit(context.Background(), &Txn{
			Entries: []Entry{testEntry(1, i, int(i%50)*400)},
			Set:     []KV{{"n", fmt.Appendf(nil, "%d", i)}},
			Done: func(err error) {
				if err == nil {
					say("done %d", i)
				}
			},
		})
		if err != nil {
			return err
		}
		select {
		case err := <-readErr:
			return err
		default:
		}
	}
}

// TestKillAtEveryFailpoint kills a child at the Nth hit of each failpoint, again and
// again on the same queue, and looks at what is left.
func TestKillAtEveryFailpoint(t *testing.T) {
	for _, point := range failpoint.Names() {
		if !strings.HasPrefix(point, "queue/") || point == fpPortionName {
			continue
		}
		t.Run(strings.TrimPrefix(point, "queue/"), func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			var done uint64
			for _, hit := range []int{1, 2, 1, 3} {
				done = max(done, killedChild(t, dir, fmt.Sprintf("%s=kill@%d", point, hit)))
				checkCrashed(t, dir, done)
			}
		})
	}
}

// killedChild runs the child until the failpoint kills it and returns what it had done.
func killedChild(t *testing.T, dir, arm string, env ...string) (done uint64) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"="+dir, failpoint.Env+"="+arm)
	cmd.Env = append(cmd.Env, env...)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	var exit *exec.ExitError
	if ctx.Err() != nil || !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Fatalf("child armed with %s: %v (%v) %s", arm, err, ctx.Err(), stderr.String())
	}
	for line := range strings.Lines(string(out)) {
		if s, ok := strings.CutPrefix(strings.TrimSpace(line), "done "); ok {
			if done, err = strconv.ParseUint(s, 10, 64); err != nil {
				t.Fatal(err)
			}
		}
	}
	return done
}

// checkCrashed opens the queue: everything done is there, state and batches agree, and
// what was not acked comes whole and in order. Nothing is lost, but for the reasons expected.
func checkCrashed(t *testing.T, dir string, done uint64, expected ...string) {
	t.Helper()
	q, err := Open(dir, crashOptions())
	if err != nil {
		t.Fatal(err)
	}
	v, _ := q.Get("n")
	n, _ := strconv.ParseUint(string(v), 10, 64)
	d := q.Delivered(testLane(1))
	if n < done || q.committed != n || d.Count() != n {
		t.Fatalf("%d were done; the state says %d, the queue %d, the delivered set %v", done, n, q.committed, d.String())
	}
	c := mustCursor(t, q, "out")
	for seq := uint64(1); seq <= n; seq++ {
		if c.acked.Contains(seq) {
			continue
		}
		it := mustNext(t, c)
		if it.Seq != seq || it.Batch.ID.N != seq || len(it.Batch.Data) != int(seq%50)*400 {
			t.Fatalf("got entry %d, batch %v of %d bytes, want %d", it.Seq, it.Batch.ID, len(it.Batch.Data), seq)
		}
	}
	s := q.Stats()
	for _, reason := range expected {
		delete(s.Losses, reason)
	}
	if len(s.Losses) != 0 || s.Quarantined != 0 {
		t.Fatalf("a kill lost something: %+v", s)
	}
	checkParts(t, q)
	mustClose(t, q)
	checkBolt(t, dir)
}
