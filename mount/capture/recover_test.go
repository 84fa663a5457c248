package capture

import (
	"errors"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"ftfuse/internal/failpoint"
	"ftfuse/internal/record"
	"ftfuse/mount/spool"
)

// Places in the spool's journal file (docs/protocol.md).
const (
	journalHeader = 4096
	journalEntry  = 80
	journalBoot   = 24
	journalSum    = 40
)

// patch changes bytes of a file of the spool while nothing has it open.
func (r *rig) patch(name string, off int64, p []byte) {
	r.Helper()
	f, err := os.OpenFile(filepath.Join(r.dir, name), os.O_RDWR, 0)
	r.must(err)
	_, err = f.WriteAt(p, off)
	r.must(errors.Join(err, f.Close()))
}

// otherBoot makes the journal one of before the machine started.
func (r *rig) otherBoot() {
	r.Helper()
	head := make([]byte, journalSum)
	f, err := os.Open(filepath.Join(r.dir, "journal"))
	r.must(err)
	_, err = f.ReadAt(head, 0)
	r.must(errors.Join(err, f.Close()))
	copy(head[journalBoot:], "another boot....")
	r.patch("journal", 0, le.AppendUint32(head, crc32.Checksum(head, crc32.MakeTable(crc32.Castagnoli))))
}

// loseNote damages the note of seq, as a page that was not written back would.
func (r *rig) loseNote(seq int64) {
	r.patch("journal", journalHeader+seq*journalEntry+10, []byte("lost"))
}

func (r *rig) spoolFile(n spool.Number) string { return filepath.Join(r.dir, "spool", n.String()) }

// down is a crash; what follows is done while nothing runs.
func (r *rig) down() {
	r.crash()
	r.q.reopen()
}

// holdBack makes the queue commit nothing more.
func (r *rig) holdBack() { r.q.set(func() { r.q.held = true }) }

func TestKillBeforeAnythingIsCommitted(t *testing.T) {
	r := newRig(t, Options{})
	r.start()
	r.holdBack()
	h := r.writer("a")
	r.write(h, "one\ntw")
	r.write(h, "o\nthree\nhalf")
	r.restart()
	r.want("a", "one\ntwo\nthree\nhalf")
	r.wantRecords("a", "one\n|0", "two\n|0", "three\n|0", "half|1")
	if x := r.records(); x[0].pid != 4711 {
		t.Errorf("pid %d: attributes of replayed writes are lost", x[0].pid)
	}
}

// TestUnfinishedLineGoesOnAfterAKill: its beginning comes from the queue, its end from
// the journal.
func TestUnfinishedLineGoesOnAfterAKill(t *testing.T) {
	for _, n := range []int{3, 5000, 70_000} {
		r := newRig(t, Options{})
		r.start()
		h := r.writer("a")
		begin := strings.Repeat("b", n)
		r.write(h, begin)
		r.drain()
		r.holdBack()
		r.write(h, "end\n")
		r.restart()
		r.wantRecords("a", begin+"end\n|0")
		r.crash()
	}
}

func TestStartEndsAllUnfinishedLines(t *testing.T) {
	r := newRig(t, Options{})
	r.start()
	a, b := r.writer("f"), r.writer("f")
	r.write(a, "from a")
	r.write(b, "from b")
	r.drain()
	r.restart()
	r.wantRecords("f", "from a|1", "from b|3")
	h := r.writer("f")
	r.write(h, "later\n")
	r.drain()
	r.wantRecords("f", "from a|1", "from b|3", "later\n|0")
}

// TestWriteInProgressAtTheKillIsClipped: it was noted with its whole length, the file
// got only a part of it.
func TestWriteInProgressAtTheKillIsClipped(t *testing.T) {
	r := newRig(t, Options{})
	r.start()
	r.holdBack()
	h := r.writer("a")
	r.write(h, "one\n")
	r.write(h, "two\nthree\n")
	n := h.Number()
	r.down()
	r.must(os.Truncate(r.spoolFile(n), 8+3))
	r.patch("journal", journalHeader+2*journalEntry+76, make([]byte, 4)) // in progress
	r.start()
	r.want("a", "one\ntwo\nthr")
}

func TestFileShorterThanItsPosition(t *testing.T) {
	r := newRig(t, Options{})
	r.start()
	h := r.writer("a")
	r.write(h, "one\ntwo\n")
	r.drain()
	n := h.Number()
	r.down()
	r.otherBoot()
	r.must(os.Truncate(r.spoolFile(n), 3)) // power loss: its last page was not on disk
	r.start()
	if s := r.c.Stats(); s.Shrunk != 1 {
		t.Errorf("%d files shrunk, want 1", s.Shrunk)
	}
	h = r.writer("a")
	r.write(h, "three\n")
	r.drain()
	r.want("a", "one\ntwo\nthree\n")
	r.restart()
	r.want("a", "one\ntwo\nthree\n")
}

// TestLostNotesAreRecovered: after power loss notes are missing; the bytes come without
// pid, and once, in order with what still has its notes.
func TestLostNotesAreRecovered(t *testing.T) {
	r := newRig(t, Options{})
	r.start()
	h := r.writer("a")
	r.write(h, "one\n")
	r.drain()
	r.holdBack()
	r.write(h, "two\n")
	r.write(h, "three\n")
	r.write(h, "four\n")
	r.write(h, "five")
	r.down()
	r.otherBoot()
	r.loseNote(3) // three
	r.loseNote(5) // five
	r.start()
	rec := record.Recovered
	r.wantRecords("a", "one\n|0", "two\n|0", flag("three\n", rec), "four\n|0", flag("five", rec|record.Unterminated))
	if n := r.c.Stats().Recovered; n != 10 {
		t.Errorf("%d bytes recovered, want 10", n)
	}
	r.restart()
	r.want("a", "one\ntwo\nthree\nfour\nfive")
}

func flag(s string, f uint16) string {
	const hex = "0123456789abcdef"
	out := ""
	for ; f > 0; f >>= 4 {
		out = string(hex[f&15]) + out
	}
	return s + "|" + out
}

// TestLostJournal: without any notes every byte of the spool that is not captured comes
// as recovered; an unfinished line goes on with it, and holes are not made up.
func TestLostJournal(t *testing.T) {
	r := newRig(t, Options{})
	r.start()
	h := r.writer("a")
	r.write(h, "one\nhal")
	r.drain()
	r.holdBack()
	r.write(h, "f\n")
	if _, err := h.Write([]byte("far\n"), 1<<20, false, r.meta()); err != nil {
		t.Fatal(err)
	}
	r.write(r.writer("new"), "new\n")
	r.down()
	r.must(os.Remove(filepath.Join(r.dir, "journal")))
	r.start()
	out := r.output("a")
	if got := strings.ReplaceAll(out, "\x00", ""); got != "one\nhalf\nfar\n" || len(out) > 3*4096 {
		t.Errorf("%d bytes: %.100q", len(out), got)
	}
	r.want("new", "new\n")
	h = r.writer("a")
	r.write(h, "later\n")
	r.drain()
	r.restart()
	if !strings.HasSuffix(r.output("a"), "far\nlater\n") {
		t.Errorf("%.100q", r.output("a"))
	}
}

// TestOpenIntent kills at each step of a truncation.
func TestOpenIntent(t *testing.T) {
	for name, c := range map[string]struct {
		size     int64
		truncate bool
		after    int64 // position that the next write has to have
	}{
		"not truncated":   {0, false, 8},
		"truncated":       {0, true, 0},
		"cut in the line": {5, true, 5},
		"extended":        {100, true, 100},
		"not extended":    {100, false, 8},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, Options{})
			r.start()
			h := r.writer("a")
			r.write(h, "one\ntwo\n")
			r.must(r.c.BeginTruncate(r.ctx(), h.Number(), c.size))
			if c.truncate {
				r.must(h.Truncate(c.size))
			}
			r.restart()
			h = r.writer("a")
			if h.Size() != c.after {
				t.Fatalf("size %d, want %d", h.Size(), c.after)
			}
			r.write(h, "three\n")
			r.drain()
			r.want("a", "one\ntwo\nthree\n")
			r.restart()
			r.want("a", "one\ntwo\nthree\n")
			if _, ok := r.q.Get(cutKey(h.Number())); ok {
				t.Error("the intent is still open")
			}
		})
	}
}

// TestWrittenBehindAnOpenIntent: someone wrote to the file after it was truncated and
// before the start.
func TestWrittenBehindAnOpenIntent(t *testing.T) {
	r := newRig(t, Options{})
	r.start()
	h := r.writer("a")
	r.write(h, strings.Repeat("old\n", 5000))
	r.must(r.c.BeginTruncate(r.ctx(), h.Number(), 0))
	r.must(h.Truncate(0))
	n := h.Number()
	r.down()
	r.must(os.WriteFile(r.spoolFile(n), []byte("new\n"), 0o600))
	r.start()
	r.want("a", strings.Repeat("old\n", 5000)+"new\n")
}

// punchSpy sees what is to be given back.
type punchSpy struct {
	*spool.Store
	seen func(n spool.Number, upto int64)
}

func (s punchSpy) Punch(n spool.Number, upto int64) {
	s.seen(n, upto)
	s.Store.Punch(n, upto)
}

func (s punchSpy) Settled(n spool.Number, pos int64) {
	s.seen(n, pos)
	s.Store.Settled(n, pos)
}

// TestOldPositionDoesNotSettleATruncatedFile: what a commit from before a truncation
// lets go must not be done to the file after it.
func TestOldPositionDoesNotSettleATruncatedFile(t *testing.T) {
	r := newRig(t, Options{})
	var mu sync.Mutex
	truncated := false
	r.wrap = func(s *spool.Store) Store {
		return punchSpy{s, func(n spool.Number, upto int64) {
			mu.Lock()
			defer mu.Unlock()
			if truncated && upto > 0 {
				t.Errorf("file %s, which was truncated, is to be punched up to %d", n, upto)
			}
		}}
	}
	r.start()
	h := r.writer("a")
	data := strings.Repeat("0123456789abcde\n", 1<<19) // 8 MiB
	r.must(failpoint.Set("capture/freed", "pause"))
	defer failpoint.Clear("capture/freed")
	r.write(h, data)
	ctx := r.ctx()
	r.must(r.c.Drain(ctx, h.Number()))
	r.must(r.c.BeginTruncate(ctx, h.Number(), 0))
	r.must(h.Truncate(0))
	r.must(r.c.FinishTruncate(ctx, h.Number(), 0, 0))
	r.holdBack()
	mu.Lock()
	truncated = true
	mu.Unlock()
	second := strings.Repeat("fedcba987654321\n", 1<<19)
	r.write(h, second)
	failpoint.Clear("capture/freed")
	r.waitFor("freed commits", func() bool { r.c.mu.Lock(); defer r.c.mu.Unlock(); return r.c.freed == r.c.committed })
	mu.Lock()
	truncated = false
	mu.Unlock()
	r.restart()
	r.want("a", data+second)
}

func TestRemovedFileLeavesNothing(t *testing.T) {
	r := newRig(t, Options{})
	r.start()
	h := r.writer("a")
	f := r.file("a")
	r.write(h, "one\nhalf")
	r.must(r.s.Unlink("a"))
	r.write(h, "more")
	r.end(h)
	f.Release()
	delete(r.files, "a")
	r.drain()
	r.write(r.writer("b"), "b\n")
	r.drain()
	r.drain()
	r.want("a", "one\nhalfmore")
	if _, err := os.Stat(r.spoolFile(f.Number())); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("spool file: %v", err)
	}
	r.restart()
	for k := range r.q.disk {
		if strings.Contains(k, f.Number().String()) {
			t.Errorf("key %s is left", k)
		}
	}
	r.want("a", "one\nhalfmore")
}

// TestUnlinkedFileIsCapturedAfterAKill: its path is gone, its bytes are not.
func TestUnlinkedFileIsCapturedAfterAKill(t *testing.T) {
	r := newRig(t, Options{})
	r.start()
	r.holdBack()
	h := r.writer("a")
	n := h.Number()
	r.write(h, "one\nhalf")
	r.must(r.s.Unlink("a"))
	r.restart()
	r.want("a", "one\nhalf")
	r.restart()
	r.want("a", "one\nhalf")
	if _, err := os.Stat(r.spoolFile(n)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("spool file: %v", err)
	}
}

func TestEpochIsRaisedAtEveryStart(t *testing.T) {
	r := newRig(t, Options{})
	seen := map[uint64]bool{}
	for i := range 5 {
		if i == 0 {
			r.start()
		} else {
			r.restart()
		}
		e := r.c.Lane().Epoch
		if e.Counter != uint64(i+1) || seen[e.Random] {
			t.Errorf("start %d: epoch %+v", i, e)
		}
		seen[e.Random] = true
	}
}

func TestStateOfAnotherVersionIsRefused(t *testing.T) {
	for key, value := range map[string]string{
		keyEpoch: "\x02.................", keyJournal: "\x02........", "pos/0000000000000001": "\x01short",
		"pos/zz": strings.Repeat("\x01", 17), "pend/0000000000000001/0000000000000001/h": "\x01",
		"pend/0000000000000001/0000000000000001/0000000000000000": "chunk without a head",
		"trunc/0000000000000001":                                  "\x07................", "tail/a": "\x02................",
	} {
		r := newRig(t, Options{})
		r.open()
		r.q.kv[key] = []byte(value)
		if err := r.c.Recover(r.ctx(), nil); !errors.Is(err, ErrState) || !strings.Contains(err.Error(), strings.Split(key, "/")[0]) {
			t.Errorf("%s: %v", key, err)
		}
		r.crash()
	}
}

// TestOldEntriesOfATruncatedFile: entries that were used up before a truncation and are
// replayed, since another file holds the journal back, must not be taken for what
// stands at their offsets now.
func TestOldEntriesOfATruncatedFile(t *testing.T) {
	r := newRig(t, Options{})
	r.start()
	a, b := r.writer("a"), r.writer("b")
	r.write(b, "b\n")
	r.must(r.c.BeginTruncate(r.ctx(), b.Number(), 0)) // never finished
	r.write(b, "b2\n")
	r.write(a, "half of a l")
	r.end(a)
	r.must(r.c.BeginTruncate(r.ctx(), a.Number(), 0))
	r.must(a.Truncate(0))
	r.must(r.c.FinishTruncate(r.ctx(), a.Number(), 0, 0))
	r.holdBack()
	r.write(r.writer("a"), "the lines of another\n")
	r.restart()
	r.wantRecords("a", "half of a l|1", "the lines of another\n|0")
}
