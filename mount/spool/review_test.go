package spool

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"ftfuse/internal/failpoint"
)

// What the kernel had written before a write of the daemon that failed was taken for a hole:
// the next note did not say what lay before it, and nobody reads one of no bytes.
func TestAWriteThatFailedTellsNobodyOfTheKernelsBytes(t *testing.T) {
	s := open(t, t.TempDir(), Options{})
	defer s.Close()
	s.Begin(0)
	f := makeFile(t, s, "a")
	_, fd := kernelOpen(t, s, f, "a", 1)
	d, err := s.OpenHandle(f, "a", Shared, &Meta{PID: 1})
	if err != nil {
		t.Fatal(err)
	}
	appendTo(t, fd, "1234")
	if err := failpoint.Set("spool/noted", "error@1"); err != nil {
		t.Fatal(err)
	}
	defer failpoint.Clear("spool/noted")
	if n, err := d.Write([]byte("fails"), 0, true, &Meta{}); err == nil {
		t.Fatalf("%d bytes written", n)
	}
	write(t, d, "works")
	es := all(s, 1)
	if e := es[len(es)-1]; e.Len != 5 || e.Off != 4 || e.Flags != FlagJoined {
		t.Errorf("%+v, want it joined to the kernel's bytes", e)
	}
}

// After power loss, or a kill within a truncation, a file is shorter than notes say. The
// position moved to what they said, and the next writes were taken for captured.
func TestNotesBeyondTheEndOfAFileAreCut(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, Options{})
	s.Begin(0)
	f := makeFile(t, s, "a")
	_, fd := kernelOpen(t, s, f, "a", 1)
	appendTo(t, fd, "12345678")
	b, _ := kernelOpen(t, s, f, "a", 2)
	b.End(&Meta{})
	unix.Close(fd)
	name := filepath.Join(dir, "spool", f.Number().String())
	s.Close()
	if err := os.Truncate(name, 3); err != nil {
		t.Fatal(err)
	}
	s = open(t, dir, Options{})
	if r := s.Begin(0); r.Lost != 0 || r.Entries != 3 {
		t.Errorf("%+v", r)
	}
	wantNotes(t, s, "4 off 0 pid 1 flags 1", "4 off 3 pid 2 flags 3", "4 off 3 pid 1 flags 1")
	s.Close()
	s = open(t, dir, Options{})
	defer s.Close()
	if r := s.Begin(0); r.Lost != 0 {
		t.Errorf("cut notes do not fit: %+v", r)
	}
}

// A watch whose event was lost is gone, and its file was never looked at again.
func TestAFileWhoseEventWasLostIsWatchedAgain(t *testing.T) {
	s := open(t, t.TempDir(), Options{})
	defer s.Close()
	s.Begin(0)
	f := makeFile(t, s, "a")
	_, fd := kernelOpen(t, s, f, "a", 1)
	rest(t, s)
	s.watch.mu.Lock()
	if _, err := unix.InotifyRmWatch(s.watch.fd, uint32(f.watch.wd)); err != nil { // as its event does
		t.Error(err)
	}
	s.watch.mu.Unlock()
	overflow := make([]byte, unix.SizeofInotifyEvent)
	copy(overflow, "\xff\xff\xff\xff\x00\x40\x00\x00") // IN_Q_OVERFLOW
	s.watch.events(overflow)
	rest(t, s)
	s.watch.mu.Lock()
	wd := f.watch.wd
	armed := s.watch.byWD[wd] == f
	s.watch.mu.Unlock()
	if _, err := unix.InotifyRmWatch(s.watch.fd, uint32(wd)); err != nil || !armed {
		t.Errorf("watch %d of a file at rest: %v, known %v", wd, err, armed)
	}
	unix.Close(fd)
}

// A write between the look at the size and the watch is found by the look after it.
func TestAWriteBeforeTheWatchIsNoticed(t *testing.T) {
	s := open(t, t.TempDir(), Options{})
	defer s.Close()
	s.Begin(0)
	f := makeFile(t, s, "a")
	_, fd := kernelOpen(t, s, f, "a", 1)
	if err := failpoint.Set("spool/arm", "pause"); err != nil {
		t.Fatal(err)
	}
	got := make(chan []Growth, 1)
	go func() { got <- rest(t, s) }()
	for fpArm.Hits() == 0 {
		runtime.Gosched()
	}
	appendTo(t, fd, "1234")
	failpoint.Clear("spool/arm")
	if g := <-got; !slices.Contains(g, Growth{f.Number(), 4}) {
		t.Errorf("%v, want 4 bytes of file %s", g, f.Number())
	}
}

// What programs had written that have closed their file was counted nowhere until it was
// committed: a full queue did not slow down those that open, append and close.
func TestBytesOfAClosedFileCountUntilTheyAreCommitted(t *testing.T) {
	s := open(t, t.TempDir(), Options{})
	defer s.Close()
	s.Begin(0)
	f := makeFile(t, s, "a")
	for i := range 3 {
		k, fd := kernelOpen(t, s, f, "a", 1)
		appendTo(t, fd, "1234")
		unix.Close(fd)
		k.End(&Meta{})
		if n, want := s.Uncaptured(), int64(4*(i+1)); n != want {
			t.Errorf("%d bytes uncaptured, want %d", n, want)
		}
	}
	s.Punch(f.Number(), 8)
	if n := s.Uncaptured(); n != 4 {
		t.Errorf("%d bytes uncaptured, want 4", n)
	}
	s.Punch(f.Number(), 12)
	if n := s.Uncaptured(); n != 0 || len(s.watch.left) != 0 {
		t.Errorf("%d bytes uncaptured in %d files, want none", n, len(s.watch.left))
	}
	k, fd := kernelOpen(t, s, f, "a", 1)
	appendTo(t, fd, "x")
	unix.Close(fd)
	k.End(&Meta{})
	f.Release()
	s.Committed(s.Next() - 1) // comes before Punch
	s.Punch(f.Number(), 13)
	if n := s.Uncaptured(); n != 0 || len(s.watch.left) != 0 {
		t.Errorf("%d bytes uncaptured in %d files, want none", n, len(s.watch.left))
	}
}

// Programs that open a file, append and close it owed three more notes each time while the
// ring was full, which an outage of hours keeps it.
func TestWhatIsOwedIsBounded(t *testing.T) {
	s := open(t, t.TempDir(), Options{Entries: 2})
	defer s.Close()
	s.Begin(0)
	h := create(t, s, "other")
	write(t, h, "x")
	write(t, h, "x")
	f := makeFile(t, s, "a")
	first, fd := kernelOpen(t, s, f, "a", 1)
	appendTo(t, fd, "1234")
	first.End(&Meta{})
	for i := range 5000 {
		k, err := s.OpenHandle(f, "a", Kernel, &Meta{PID: uint32(i + 1)})
		if err != nil {
			t.Fatal(err)
		}
		appendTo(t, fd, "x")
		k.End(&Meta{})
	}
	for range 5000 { // and those of the daemon
		d, err := s.OpenHandle(f, "a", Shared, &Meta{PID: 1})
		if err != nil {
			t.Fatal(err)
		}
		d.End(&Meta{})
	}
	paths := 0
	for i := range f.owed {
		paths += len(f.owed[i].release)
	}
	if n := len(f.owed); n > mostOwed+2 || paths > n {
		t.Errorf("%d notes owed with %d paths", n, paths)
	}
	var got []Entry
	for seq := uint64(2); f.owes.Load(); seq += 2 {
		s.Committed(seq)
		got = append(got, all(s, seq+1)...)
	}
	last := got[len(got)-2:]
	if last[0].Kind != Grown || last[0].Flags != FlagEnd || last[0].Off != 5004 || last[1].Kind != Release || last[1].Writer != last[0].Writer {
		t.Errorf("in the end %+v, want the end of the kernel's bytes at 5004 and of their writer", last)
	}
	for _, e := range got {
		if e.Path != "a" && e.Kind != Grown {
			t.Fatalf("%+v has lost its path", e)
		}
	}
	if n := s.paths.names[first.PathID].refs; n != 0 {
		t.Errorf("%d references to the path, want 0", n)
	}
}

// TestOpenedAgainBeforeItsEndIsNoted: the note of the end is taken back, and the next write
// of the daemon says what lies before it.
func TestOpenedAgainBeforeItsEndIsNoted(t *testing.T) {
	s := open(t, t.TempDir(), Options{Entries: 4})
	defer s.Close()
	s.Begin(0)
	f := makeFile(t, s, "a")
	s.mostOwed = 1
	k, fd := kernelOpen(t, s, f, "a", 1)
	h := create(t, s, "other")
	for range 3 {
		write(t, h, "x")
	}
	appendTo(t, fd, "1234")
	k.End(&Meta{})
	if !s.Owes(f.Number()) || !s.Owes(0) || s.Owes(h.Number()) {
		t.Error("who owes is not known")
	}
	if _, err := s.OpenHandle(f, "a", Kernel, &Meta{PID: 1}); err != nil {
		t.Fatal(err)
	}
	if s.Owes(0) {
		t.Error("a note is owed still")
	}
	d, err := s.OpenHandle(f, "a", Shared, &Meta{PID: 1})
	if err != nil || d.Writer != k.Writer {
		t.Fatal(d, err)
	}
	s.Committed(4)
	write(t, d, "x")
	wantNotes(t, s, fmt.Sprintf("1 off 4 pid 7 flags %x", FlagJoined))
}

// An opening that is owed over a truncation spoke of the old file.
func TestATruncationCutsWhatIsOwed(t *testing.T) {
	s := open(t, t.TempDir(), Options{Entries: 2})
	defer s.Close()
	s.Begin(0)
	f := makeFile(t, s, "a")
	_, fd := kernelOpen(t, s, f, "a", 1)
	appendTo(t, fd, "1234")
	write(t, create(t, s, "other"), "x")
	b, _ := kernelOpen(t, s, f, "a", 2)
	if err := f.Truncate(1); err != nil {
		t.Fatal(err)
	}
	s.Committed(2)
	wantNotes(t, s, "4 off 1 pid 2 flags 3")
	b.End(&Meta{})
}
