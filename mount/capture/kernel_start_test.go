package capture

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ftfuse/internal/record"
	"ftfuse/mount/spool"
)

// takenOver kills the capture and starts one that takes the connection over, with the
// handles given.
func (r *rig) takenOver(ks ...*kernelWriter) {
	r.Helper()
	r.crash()
	r.q.reopen()
	r.open()
	live := map[uint64]bool{}
	for _, k := range ks {
		f, err := r.s.Acquire(k.h.Number())
		r.must(err)
		live[k.h.Writer] = true
		k.h, err = r.s.RestoreHandle(f, k.h.Path, spool.Kernel, k.h.Writer, &spool.Meta{PID: 11, Time: 4711})
		r.must(err)
	}
	r.must(r.c.Recover(r.ctx(), func(w uint64) bool { return live[w] }))
	r.run()
}

// TestALineGoesOnUnderAnotherWorker: nobody but the worker was replaced.
func TestALineGoesOnUnderAnotherWorker(t *testing.T) {
	r := newRig(t, Options{})
	r.start()
	k := r.kernel("a", 11)
	k.write(r, "one\nha")
	r.drain()
	r.takenOver(k)
	k.write(r, "lf\ntwo\n")
	r.drain()
	k.close(r)
	r.drain()
	o := record.Opener
	r.wantRecords("a", flag("one\n", o), flag("half\n", o), flag("two\n", o))
	for _, x := range r.records() {
		if x.pid != 11 {
			t.Error(x)
		}
	}
}

// TestAnOrphanIsFollowedUntilItCloses: also over a second start, beside a new file of its
// name.
func TestAnOrphanIsFollowedUntilItCloses(t *testing.T) {
	r := newRig(t, Options{})
	r.so = spool.Options{OrphanPatience: time.Millisecond, OrphanPoll: time.Millisecond}
	r.start()
	k := r.kernel("a", 11)
	n := k.h.Number()
	k.write(r, "one\nha")
	r.drain()
	for _, part := range []string{"lf\ntw", "o\nthr", "ee\nno end"} {
		r.crash()
		k.write(r, part)
		r.q.reopen()
		r.start()
	}
	k.write(r, " yet")
	r.drain()
	if h := r.writer("a"); h.Number() == n {
		t.Error("the name is still the orphan's")
	}
	unix.Close(k.fd)
	r.waitFor("the end of the orphan's file", func() bool { _, err := os.Stat(r.spoolFile(n)); return os.IsNotExist(err) })
	r.drain()
	r.want("a", "one\nhalf\ntwo\nthree\nno end yet")
	for _, x := range r.records() {
		if x.pid != 11 || x.flags&record.Opener == 0 {
			t.Error(x)
		}
	}
	r.restart()
	for key := range r.q.disk {
		if strings.Contains(key, n.String()) {
			t.Errorf("key %s is left", key)
		}
	}
}

// TestAnOrphanBehindAnOpenTruncation: everything was killed within a truncation, and the
// orphan went on where the file ended then. The size does not tell whether that was the old
// end or the new one.
func TestAnOrphanBehindAnOpenTruncation(t *testing.T) {
	for _, c := range []struct{ old, size int }{{8000, 0}, {8000, 7990}, {8000, 7999}, {40, 3}, {5000, 4097}, {3, 0}, {40, 9000}, {40, 44}} {
		for _, done := range []bool{false, true} {
			for _, more := range []int{0, 16, max(c.old, c.size) - min(c.old, c.size)} {
				t.Run(fmt.Sprint(c.old, " to ", c.size, done, more), func(t *testing.T) {
					r := newRig(t, Options{})
					r.so = spool.Options{OrphanPatience: time.Millisecond, OrphanPoll: time.Millisecond, Readback: 100}
					r.start()
					k := r.kernel("a", 11)
					old := strings.Repeat("o", c.old-1) + "\n"
					k.write(r, old)
					r.must(r.c.BeginTruncate(r.ctx(), k.h.Number(), int64(c.size)))
					if done {
						r.must(k.h.Truncate(int64(c.size)))
					}
					r.crash()
					next := strings.Repeat("n", more)
					k.write(r, next)
					unix.Close(k.fd)
					r.q.reopen()
					r.start()
					r.want("a", old+next)
				})
			}
		}
	}
}

// TestATruncationThatIsGivenUpKeepsTheReadback: the mark is not to be seen.
func TestATruncationThatIsGivenUpKeepsTheReadback(t *testing.T) {
	r := newRig(t, Options{})
	r.so.Readback = 100
	r.start()
	h := r.writer("a")
	r.write(h, "one\ntwo\n")
	r.drain()
	r.q.set(func() { r.q.full = true })
	r.write(r.writer("b"), "in the way\n")
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	if err := r.c.BeginTruncate(ctx, h.Number(), 0); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatal(err)
	}
	r.q.set(func() { r.q.full = false })
	b := make([]byte, 8)
	if _, err := h.ReadAt(b, 0); err != nil || string(b) != "one\ntwo\n" {
		t.Errorf("%q %v", b, err)
	}
	r.write(h, "three\n")
	r.drain()
	r.want("a", "one\ntwo\nthree\n")
}

// TestDrainNowDoesNotWaitForRoom: whoever waits for it holds a lock of the kernel, and
// programs behind it cannot be killed.
func TestDrainNowDoesNotWaitForRoom(t *testing.T) {
	r := newRig(t, Options{})
	r.start()
	k := r.kernel("a", 11)
	r.q.set(func() { r.q.full = true })
	k.write(r, "one\n")
	r.waitFor("the capture to wait for room", func() bool { return r.c.Stats().InFlight > 0 })
	r.must(r.c.DrainNow(r.ctx(), k.h.Number()))
	r.want("a", "one\n")
	k.write(r, "two\n")
	r.must(r.c.BeginTruncate(r.ctx(), k.h.Number(), 0))
	r.must(k.h.Truncate(0))
	r.must(r.c.FinishTruncate(r.ctx(), k.h.Number(), 0, 77))
	if u, ok := r.c.Finished(k.h.Number()); !ok || u != 77 {
		t.Errorf("finished %d %v, want 77", u, ok)
	}
	r.want("a", "one\ntwo\n")
	r.q.set(func() { r.q.full = false })
	r.restart()
	if _, ok := r.c.Finished(k.h.Number()); ok {
		t.Error("another connection's request counts as finished")
	}
	unix.Close(k.fd)
}

// TestAFileWrittenToBeforeItsOpenerIsKnown: its growth was found, and dropped, in the round
// that took in who had opened it; its first line came with the next one.
func TestAFileWrittenToBeforeItsOpenerIsKnown(t *testing.T) {
	r := newRig(t, Options{})
	r.start()
	const files = 300
	for i := range files {
		r.kernel(fmt.Sprint("f", i), 11).write(r, "line\n")
	}
	r.waitFor("all lines", func() bool { return len(r.records()) == files })
}

// TestTwoFilesOfAPathGrowAtOnce: what the kernel wrote to a rotated log and to its
// successor, found in one round, has one number, and the cutter waited for ever for the one
// before the other.
func TestTwoFilesOfAPathGrowAtOnce(t *testing.T) {
	r := newRig(t, Options{QuantumBytes: 10})
	r.start()
	a := r.kernel("log", 11)
	r.must(r.s.Rename("log", "log.1"))
	delete(r.files, "log")
	b := r.kernel("log", 12)
	for range 50 {
		a.write(r, "old\n")
		b.write(r, "new\n")
		r.drain()
	}
	if out := r.output("log"); strings.Count(out, "old\n") != 50 || strings.Count(out, "new\n") != 50 {
		t.Errorf("%q", out)
	}
}

// TestPowerLossKeepsTheOpener: the journal is gone, and the file is as the disk had it.
func TestPowerLossKeepsTheOpener(t *testing.T) {
	r := newRig(t, Options{})
	r.start()
	k := r.kernel("a", 11)
	k.write(r, "one\n")
	r.drain()
	k.write(r, strings.Repeat("not captured\n", 1000))
	unix.Close(k.fd)
	r.q.set(func() { r.q.held = true })
	r.crash()
	r.must(os.Remove(filepath.Join(r.dir, "journal")))
	r.q.reopen()
	r.start()
	r.want("a", "one\n"+strings.Repeat("not captured\n", 1000))
	for _, x := range r.records() {
		if x.pid != 11 || x.flags&record.Opener == 0 {
			t.Fatal(x)
		}
	}
}

// TestARemovedFileGoesThoughItGrewAtATakeover: what the kernel has written to a file without
// a name is captured after the start, and its last commit lets the file go.
func TestARemovedFileGoesThoughItGrewAtATakeover(t *testing.T) {
	r := newRig(t, Options{})
	r.start()
	k := r.kernel("a", 11)
	n := k.h.Number()
	k.write(r, "one\n")
	r.drain()
	r.must(r.s.Unlink("a"))
	k.write(r, "two\n")
	r.takenOver(k)
	k.write(r, "three\n")
	k.close(r)
	k.h.Release()
	r.waitFor("the end of the file", func() bool { _, err := os.Stat(r.spoolFile(n)); return os.IsNotExist(err) })
	r.want("a", "one\ntwo\nthree\n")
}
