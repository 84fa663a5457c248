package capture

import (
	"fmt"
	"os"
	"strings"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"ftfuse/internal/record"
	"ftfuse/mount/spool"
)

// fillRing makes the ring, of so.Entries, full: the queue commits nothing.
func (r *rig) fillRing() {
	r.Helper()
	r.holdBack()
	h := r.writer("other")
	for {
		if _, err := h.Write([]byte("x\n"), 0, true, r.meta()); err == spool.ErrJournalFull {
			return
		} else if err != nil {
			r.Fatal(err)
		}
	}
}

func (r *rig) goOn() { r.q.set(func() { r.q.held = false }) }

// Who had opened a file while the ring was full was noted later, and an fsync(2) before that
// returned, and the capture knew nothing of what the program had written.
func TestADrainWaitsForANoteThatIsOwed(t *testing.T) {
	for _, drain := range []func(*rig, spool.Number) error{
		func(r *rig, n spool.Number) error { return r.c.Drain(r.ctx(), n) },
		func(r *rig, n spool.Number) error { return r.c.DrainNow(r.ctx(), n) },
		func(r *rig, _ spool.Number) error { return r.c.DrainAll(r.ctx()) },
	} {
		r := newRig(t, Options{})
		r.so.Entries = 8
		r.start()
		r.fillRing()
		k := r.kernel("a", 11)
		k.write(r, "one\n")
		if !r.s.Owes(k.h.Number()) {
			t.Fatal("the ring was not full")
		}
		done := make(chan error)
		go func() { done <- drain(r, k.h.Number()) }()
		r.waitFor("the drain", func() bool {
			r.c.mu.Lock()
			defer r.c.mu.Unlock()
			return len(r.c.requests) > 0 || len(r.c.waiters) > 0
		})
		r.goOn()
		r.must(<-done)
		r.want("a", "one\n")
		k.close(r)
		r.crash()
	}
}

// The same before a truncation: the bytes were punched out, and lost.
func TestATruncationWaitsForANoteThatIsOwed(t *testing.T) {
	r := newRig(t, Options{})
	r.so.Entries = 8
	r.start()
	r.fillRing()
	k := r.kernel("a", 11)
	k.write(r, "one\n")
	n := k.h.Number()
	done := make(chan error)
	go func() { done <- r.c.BeginTruncate(r.ctx(), n, 0) }()
	r.waitFor("the truncation", func() bool {
		r.c.mu.Lock()
		defer r.c.mu.Unlock()
		return len(r.c.requests) > 0 || len(r.c.waiters) > 0
	})
	r.goOn()
	r.must(<-done)
	r.fillRing()
	other := r.kernel("a", 12) // an open in the middle of it
	r.must(k.h.Truncate(0))
	go func() { done <- r.c.FinishTruncate(r.ctx(), n, 0, 0) }()
	r.goOn()
	r.must(<-done)
	k.write(r, "two\n")
	r.drain()
	r.want("a", "one\ntwo\n")
	other.close(r)
	k.close(r)
}

// An open in the middle of a truncation, and a kill after the file was cut: the note named
// the old end, and no start came beyond it.
func TestAnOpenWithinATruncationThatWasKilled(t *testing.T) {
	r := newRig(t, Options{})
	r.start()
	k := r.kernel("a", 11)
	k.write(r, "one\n")
	r.must(r.c.BeginTruncate(r.ctx(), k.h.Number(), 0))
	r.holdBack()
	other := r.kernel("a", 12)
	r.must(k.h.Truncate(0))
	unix.Close(k.fd)
	unix.Close(other.fd)
	r.restart()
	r.write(r.writer("a"), "2\n")
	r.drain()
	r.want("a", "one\n2\n")
}

// pollSpy counts how often it was asked for files that grew.
type pollSpy struct {
	*spool.Store
	polls *atomic.Int64
}

func (s pollSpy) Poll(dst []spool.Growth) []spool.Growth {
	s.polls.Add(1)
	return s.Store.Poll(dst)
}

// The last program closed a file and another opened it while the ring was full: what that
// one wrote had the first one's pid, since it was taken before the notes came that were owed.
func TestBytesWaitForTheOpeningThatIsOwed(t *testing.T) {
	r := newRig(t, Options{})
	r.so.Entries = 8
	var polls atomic.Int64
	r.wrap = func(s *spool.Store) Store { return pollSpy{s, &polls} }
	r.start()
	k := r.kernel("a", 11)
	k.write(r, "one\n")
	r.drain()
	r.fillRing()
	k.close(r)
	k = r.kernel("a", 12)
	k.write(r, "two\n")
	n := polls.Load()
	r.waitFor("a few looks at what grew", func() bool { return polls.Load() > n+5 })
	r.goOn()
	r.drain()
	k.close(r)
	r.drain()
	r.want("a", "one\ntwo\n")
	for _, x := range r.records() {
		if want := map[string]uint32{"one\n": 11, "two\n": 12}[x.data]; x.path == "a" && x.pid != want {
			t.Errorf("%v, want pid %d", x, want)
		}
	}
}

// Power was lost, and with it the end of the file that an opening had been noted at.
func TestAnOpeningBeyondTheEndAfterPowerLoss(t *testing.T) {
	r := newRig(t, Options{})
	r.start()
	k := r.kernel("a", 11)
	k.write(r, "one\n")
	r.drain()
	r.holdBack()
	k.write(r, "is not on the disk\n")
	other := r.kernel("a", 12)
	n := k.h.Number()
	unix.Close(k.fd)
	unix.Close(other.fd)
	r.down()
	r.must(os.Truncate(r.spoolFile(n), 4))
	r.otherBoot()
	r.start()
	r.write(r.writer("a"), "two\n")
	r.drain()
	r.want("a", "one\ntwo\n")
	if s := r.c.Stats(); s.Holes != 0 {
		t.Errorf("%d holes", s.Holes)
	}
}

// The worker was replaced, or killed, while an opening was owed, which was then noted
// never: nothing that the program wrote was captured until it closed the file, nor then.
func TestAnOpeningThatWasOwedAtATakeover(t *testing.T) {
	r := newRig(t, Options{})
	r.so.Entries = 8
	r.start()
	r.fillRing()
	k := r.kernel("a", 11)
	k.write(r, "one\n")
	r.takenOver(k)
	k.write(r, "two\nha")
	r.drain()
	r.takenOver(k)
	k.write(r, "lf\n")
	r.waitFor("the line without a drain", func() bool { return strings.HasSuffix(r.output("a"), "half\n") })
	k.close(r)
	r.drain()
	r.want("a", "one\ntwo\nhalf\n")
	for _, x := range r.records() {
		if x.path == "a" && (x.pid != 11 || x.flags != record.Opener) {
			t.Error(x)
		}
	}
}

// And the holder was killed too.
func TestAnOrphanWhoseOpeningWasOwed(t *testing.T) {
	r := newRig(t, Options{})
	r.so.Entries = 8
	r.start()
	r.fillRing()
	k := r.kernel("a", 11)
	n := k.h.Number()
	k.write(r, "one\n")
	r.restart()
	k.write(r, "two\n")
	r.waitFor("the orphan's second line", func() bool { return strings.HasSuffix(r.output("a"), "two\n") })
	k.write(r, "end")
	unix.Close(k.fd)
	r.waitFor("the end of the orphan's file", func() bool { _, err := os.Stat(r.spoolFile(n)); return os.IsNotExist(err) })
	r.drain()
	r.want("a", "one\ntwo\nend")
	for _, x := range r.records() {
		if x.path == "a" && x.flags&record.Recovered == 0 {
			t.Error(x)
		}
	}
}

// A Grown note counted as used up with the bytes it tells of, before it was known that the
// kernel does not write any more.
func TestTheEndOfTheKernelsBytesIsNotUsedUpWithThem(t *testing.T) {
	c, err := New(Options{Store: &lineStore{}, Queue: newMemQueue(t)})
	if err != nil {
		t.Fatal(err)
	}
	f := c.fileOf(1)
	f.setPath(c.pathOf(0, "a"))
	c.enqueue(&spool.Entry{Seq: 7, File: 1, Kind: spool.Opened, Flags: spool.FlagKernel, Path: "a", PathID: 1})
	c.enqueue(&spool.Entry{Seq: 8, File: 1, Kind: spool.Grown, Flags: spool.FlagEnd, Off: 100})
	var got []string
	for _, it := range f.q {
		got = append(got, fmt.Sprint(it.kind, " ", it.seq))
	}
	if want := "4 7|128 7|5 8"; strings.Join(got, "|") != want {
		t.Errorf("%v, want %s", got, want)
	}
}
