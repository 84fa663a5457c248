package spool

import (
	"bytes"
	"runtime"
	"strings"
	"testing"
	"time"

	"ftfuse/internal/failpoint"
)

// TestATruncationTookAllThatCanBeReadBackIntoMemory: with `readback = "1GiB"` a log that was cut
// cost the worker a gigabyte, twice where it was not cut to nothing, while all its writers waited.
func TestATruncationTookAllThatCanBeReadBackIntoMemory(t *testing.T) {
	const size = 256 << 20
	s := open(t, t.TempDir(), Options{Readback: 1 << 30})
	defer s.Close()
	s.Begin(0)
	h := create(t, s, "a")
	if err := h.Truncate(size); err != nil { // a hole
		t.Fatal(err)
	}
	write(t, h, "end\n")
	s.Committed(s.Next() - 1)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for _, to := range []int64{size, size / 2, 0} {
		if _, err := s.PunchAll(h.Number(), to); err != nil {
			t.Fatal(err)
		}
		if err := h.Truncate(to); err != nil {
			t.Fatal(err)
		}
	}
	runtime.ReadMemStats(&after)
	if took := after.TotalAlloc - before.TotalAlloc; took > 1<<20 {
		t.Errorf("it took %d bytes of memory", took)
	}
}

// TestWhatIsBelowATruncationIsThereAllTheTime: what can be read back below the new end was punched
// out and put back, and gone for good after a kill in between. Without a truncation the mark goes.
func TestWhatIsBelowATruncationIsThereAllTheTime(t *testing.T) {
	s := open(t, t.TempDir(), Options{Readback: 100})
	defer s.Close()
	s.Begin(0)
	h := create(t, s, "a")
	text := strings.Repeat("x", 1<<20) + strings.Repeat("y", 1000) + strings.Repeat("z", 1000)
	write(t, h, text)
	s.Committed(1)
	size := int64(1<<20 + 1000)
	reads := func(what string, from, to int64) {
		t.Helper()
		b := make([]byte, to-from)
		if _, err := s.ReadAt(h.Number(), b, from); err != nil || !bytes.Equal(b, []byte(text[from:to])) {
			t.Errorf("%s: %.20q, %v, want %.20q", what, b, err, text[from:to])
		}
	}
	c, err := s.PunchAll(h.Number(), size)
	if err != nil {
		t.Fatal(err)
	}
	reads("punched, below the new end", size-100, size)
	reads("punched, below the mark", c.Old-100, c.Old-markSize)
	b := make([]byte, markSize)
	if _, err := s.ReadAt(h.Number(), b, c.Old-markSize); err != nil || !bytes.Equal(b, c.Mark) || len(c.Mark) != markSize {
		t.Errorf("the mark is %x, %v, want %x", b, err, c.Mark)
	}
	s.Unpunch(h.Number())
	reads("no truncation, below the end", c.Old-100, c.Old)
	reads("no truncation, below the new end", size-100, size)
	if _, err = s.PunchAll(h.Number(), size); err == nil {
		err = h.Truncate(size)
	}
	if err != nil {
		t.Fatal(err)
	}
	reads("truncated", size-100, size)
	st, err := h.Stat()
	if err != nil || st.Size != size || st.Blocks > 16 {
		t.Errorf("%d bytes, %d blocks, %v", st.Size, st.Blocks, err)
	}
}

// TestWhoAsksForAFileThatIsCutWaitedForTheDisk: the loop that serves all files asked it whether it is
// reserved, and waited with all of them until it was synced.
func TestWhoAsksForAFileThatIsCutWaitedForTheDisk(t *testing.T) {
	s := open(t, t.TempDir(), Options{})
	defer s.Close()
	s.Begin(0)
	h := create(t, s, "a")
	write(t, h, "one\ntwo\n")
	s.Committed(1)
	h.Reserve()
	defer h.Unreserve()
	for _, at := range []struct {
		name  string
		point *failpoint.Point
		step  func() error
	}{
		{"spool/sync-cut", fpSyncCut, func() error { _, err := s.PunchAll(h.Number(), 4); return err }},
		{"spool/sync-length", fpSyncLength, func() error { return h.Truncate(4) }},
	} {
		if err := failpoint.Set(at.name, "pause"); err != nil {
			t.Fatal(err)
		}
		done, asked := make(chan error, 1), make(chan error, 1)
		go func() { done <- at.step() }()
		for at.point.Hits() == 0 {
			runtime.Gosched()
		}
		go func() {
			_, err := h.TryWrite([]byte("three\n"), 0, true, &Meta{})
			asked <- err
		}()
		select {
		case err := <-asked:
			if err != ErrBusy {
				t.Errorf("%s: %v, want %v", at.name, err, ErrBusy)
			}
		case <-time.After(10 * time.Second):
			t.Errorf("%s: who asks waits", at.name)
		}
		failpoint.Clear(at.name)
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
}
