package spool

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// kernelOpen makes a handle that the kernel serves, and the descriptor it writes to.
func kernelOpen(t *testing.T, s *Store, f *File, path string, pid uint32) (*Handle, int) {
	t.Helper()
	h, err := s.OpenHandle(f, path, Kernel, &Meta{PID: pid, Time: int64(pid)})
	if err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Open(filepath.Join(s.Dir(), "spool", f.Number().String()), unix.O_WRONLY|unix.O_APPEND|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return h, fd
}

func appendTo(t *testing.T, fd int, text string) {
	t.Helper()
	if n, err := unix.Write(fd, []byte(text)); n != len(text) || err != nil {
		t.Fatal(n, err)
	}
}

func makeFile(t *testing.T, s *Store, path string) *File {
	t.Helper()
	f, err := s.Create(path, 0o600, anyID, anyID)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func notes(s *Store) (out []string) {
	for _, e := range all(s, 1) {
		out = append(out, fmt.Sprintf("%d off %d pid %d flags %x", e.Kind, e.Off, e.PID, e.Flags))
	}
	return out
}

func wantNotes(t *testing.T, s *Store, want ...string) {
	t.Helper()
	if got := notes(s); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("notes\n%q, want\n%q", got, want)
	}
}

func TestNotesTellTheKernelsBytesFromHoles(t *testing.T) {
	s := open(t, t.TempDir(), Options{})
	defer s.Close()
	s.Begin(0)
	f := makeFile(t, s, "a")
	k, fd := kernelOpen(t, s, f, "a", 1)
	d, err := s.OpenHandle(f, "a", Shared, &Meta{PID: 1})
	if err != nil || d.Writer != k.Writer {
		t.Fatal(d, err)
	}
	appendTo(t, fd, "12345")
	if f.Size() != 5 || s.Uncaptured() != 5 {
		t.Fatal(f.Size(), s.Uncaptured())
	}
	write(t, d, "joined")
	write(t, d, "again")
	appendTo(t, fd, "x")
	if _, err := d.Write([]byte("far"), 100, false, &Meta{PID: 7}); err != nil {
		t.Fatal(err)
	}
	b, _ := kernelOpen(t, s, f, "a", 2)
	b.End(&Meta{PID: 2})
	d.End(&Meta{PID: 1})
	k.End(&Meta{PID: 1})
	w := fmt.Sprint(k.Writer)
	wantNotes(t, s,
		"4 off 0 pid 1 flags 1",
		"1 off 5 pid 7 flags 4", "1 off 11 pid 7 flags 0",
		"5 off 17 pid 0 flags 0", "1 off 100 pid 7 flags 0",
		"4 off 103 pid 2 flags 3", "4 off 103 pid 1 flags 1",
		"5 off 103 pid 0 flags 8", "2 off "+w+" pid 1 flags 0")
}

// TestAnOpenWithAFullRingOwesItsNote: nobody waits, and what follows comes after it.
func TestAnOpenWithAFullRingOwesItsNote(t *testing.T) {
	s := open(t, t.TempDir(), Options{Entries: 2})
	defer s.Close()
	s.Begin(0)
	h := create(t, s, "other")
	write(t, h, "x")
	write(t, h, "x")
	f := makeFile(t, s, "a")
	k, fd := kernelOpen(t, s, f, "a", 1)
	appendTo(t, fd, "1234")
	k.End(&Meta{PID: 1})
	s.Committed(2)
	wantNotes(t, s, "4 off 0 pid 1 flags 1", "5 off 4 pid 0 flags 8")
	s.Committed(4)
	if got := notes(s); len(got) != 1 {
		t.Errorf("%q, want the release", got)
	}
}

// rest polls until nothing is busy.
func rest(t *testing.T, s *Store) (grown []Growth) {
	t.Helper()
	for until := time.Now().Add(5 * time.Second); time.Now().Before(until); {
		d, busy := s.NextPoll()
		if !busy {
			return grown
		}
		<-time.After(d)
		grown = s.Poll(grown)
	}
	t.Fatal("always busy")
	return nil
}

func TestAFileAtRestIsNoticedAndRestsAgain(t *testing.T) {
	s := open(t, t.TempDir(), Options{})
	defer s.Close()
	s.Begin(0)
	f, other := makeFile(t, s, "a"), makeFile(t, s, "b")
	_, fd := kernelOpen(t, s, f, "a", 1)
	kernelOpen(t, s, other, "b", 1)
	for round := range 3 {
		rest(t, s)
		select {
		case <-s.Growing():
		default:
		}
		appendTo(t, fd, "1234")
		<-s.Growing()
		if g := rest(t, s); len(g) != 1 || g[0] != (Growth{f.Number(), int64(round+1) * 4}) {
			t.Fatalf("round %d: %v", round, g)
		}
	}
}

// TestWithoutWatchesFilesAreLookedAt: also when inotify has none left.
func TestWithoutWatchesFilesAreLookedAt(t *testing.T) {
	s := open(t, t.TempDir(), Options{})
	defer s.Close()
	s.Begin(0)
	f := makeFile(t, s, "a")
	h, fd := kernelOpen(t, s, f, "a", 1)
	s.watch.mu.Lock()
	in := s.watch.in
	s.watch.in = nil
	s.watch.mu.Unlock()
	defer in.Close()
	for d, _ := s.NextPoll(); d < 2*PollEvery; d, _ = s.NextPoll() { // until it is one of the slow
		<-time.After(d)
		s.Poll(nil)
	}
	appendTo(t, fd, "1234")
	var g []Growth
	for len(g) == 0 {
		d, ok := s.NextPoll()
		if !ok {
			t.Fatal("nobody looks")
		}
		<-time.After(d)
		g = s.Poll(nil)
	}
	if g[0].Size != 4 {
		t.Error(g)
	}
	h.End(&Meta{})
	if _, ok := s.NextPoll(); ok {
		t.Error("a closed file is looked at")
	}
}

// watches returns how many watches the kernel has of what the kernel writes.
func watches(t *testing.T, s *Store) int {
	t.Helper()
	info, err := os.ReadFile(fmt.Sprintf("/proc/self/fdinfo/%d", s.watch.fd))
	if err != nil {
		t.Fatal(err)
	}
	return strings.Count(string(info), "inotify wd:")
}

// TestAWatchEndsWithTheFirstWrite: inotify takes part in that one alone (IN_ONESHOT). Then the
// file is polled, every millisecond, and gets a watch again after 20 rounds without growth.
func TestAWatchEndsWithTheFirstWrite(t *testing.T) {
	s := open(t, t.TempDir(), Options{})
	defer s.Close()
	s.Begin(0)
	_, fd := kernelOpen(t, s, makeFile(t, s, "a"), "a", 1)
	for range 3 {
		rest(t, s)
		select {
		case <-s.Growing(): // poked by the opening
		default:
		}
		if n := watches(t, s); n != 1 {
			t.Fatalf("%d watches of a file at rest", n)
		}
		appendTo(t, fd, "1234")
		if n := watches(t, s); n != 0 {
			t.Fatalf("%d watches after a write: each further one costs its program an event", n)
		}
		<-s.Growing()
		rounds := 0
		for d, busy := s.NextPoll(); busy; d, busy = s.NextPoll() {
			if d > time.Millisecond {
				t.Fatalf("the next look is %v away, want a millisecond at most", d)
			}
			<-time.After(d)
			last := s.watch.polled
			if s.Poll(nil); s.watch.polled != last {
				rounds++
			}
		}
		if rounds != 1+20 {
			t.Errorf("looked at %d times before it rests, want once with growth and 20 times without", rounds)
		}
	}
}

// TestAThousandFilesAtRestArePolledByNobody: not every millisecond, and not every 50 either.
func TestAThousandFilesAtRestArePolledByNobody(t *testing.T) {
	s := open(t, t.TempDir(), Options{})
	defer s.Close()
	s.Begin(0)
	const n = 1000
	for i := range n {
		_, fd := kernelOpen(t, s, makeFile(t, s, fmt.Sprint(i)), "a", 1)
		appendTo(t, fd, "1234")
	}
	rest(t, s)
	if d, ok := s.NextPoll(); ok {
		t.Errorf("the next look is %v away, want none", d)
	}
	if b, l, w := len(s.watch.busy), len(s.watch.slow), watches(t, s); b != 0 || l != 0 || w != n {
		t.Errorf("%d files are polled, %d slowly, %d watched, want all of %d watched", b, l, w, n)
	}
	last, lastSlow := s.watch.polled, s.watch.polledSlow
	if g := s.Poll(nil); len(g) > 0 || s.watch.polled != last || s.watch.polledSlow != lastSlow {
		t.Errorf("a poll looks at files at rest: %v", g)
	}
}

// TestTheKernelGetsNoWriter: the descriptor that is registered for the kernel is for reading
// only. Else the connection would have the file open for writing, as an orphan has.
func TestTheKernelGetsNoWriter(t *testing.T) {
	s := open(t, t.TempDir(), Options{})
	defer s.Close()
	s.Begin(0)
	b, err := makeFile(t, s, "a").OpenBacking()
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if flags, err := unix.FcntlInt(b.Fd(), unix.F_GETFL, 0); err != nil || flags&unix.O_ACCMODE != unix.O_RDONLY {
		t.Errorf("open with %#x, %v; want read-only", flags, err)
	}
}

// TestLostEventsRouseAll: the kernel's queue of events has run over.
func TestLostEventsRouseAll(t *testing.T) {
	s := open(t, t.TempDir(), Options{})
	defer s.Close()
	s.Begin(0)
	for i := range 3 {
		kernelOpen(t, s, makeFile(t, s, fmt.Sprint(i)), "x", 1)
	}
	rest(t, s)
	b := binary.LittleEndian.AppendUint32(binary.LittleEndian.AppendUint32(nil, ^uint32(0)), unix.IN_Q_OVERFLOW)
	s.watch.events(append(b, make([]byte, 8)...))
	if n := len(s.watch.busy); n != 3 {
		t.Errorf("%d busy, want 3", n)
	}
}

func TestWhatIsInProgressBoundsTheKernelsBytes(t *testing.T) {
	s := open(t, t.TempDir(), Options{})
	defer s.Close()
	s.Begin(0)
	low := func(flags uint32) int64 {
		from := s.Next()
		if _, err := s.journal.note(&Entry{File: 9, Kind: Write, Off: 5000, Len: 10, Flags: flags}); err != nil {
			t.Fatal(err)
		}
		n, ok := s.Lowest(9, from, 9000)
		if !ok {
			t.Fatal("not known")
		}
		return n
	}
	if n := low(FlagJoined); n != 5000 {
		t.Errorf("behind the kernel's bytes: %d, want 5000", n)
	}
	if n := low(0); n != 0 { // what is before it may be a hole
		t.Errorf("behind a hole: %d, want 0", n)
	}
	if n, _ := s.Lowest(8, 1, 9000); n != 9000 {
		t.Errorf("another file: %d", n)
	}
}

func TestAWriteIsFoundByItsUnique(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, Options{Entries: 8})
	s.Begin(0)
	h := create(t, s, "a")
	put := func(unique uint64) {
		if _, err := h.Write([]byte("x"), 0, true, &Meta{Unique: unique}); err != nil {
			t.Fatal(err)
		}
		s.Committed(s.Next() - 1)
	}
	put(5) // of an earlier connection
	since := s.Next()
	put(7)
	put(9)
	s.Close()
	s = open(t, dir, Options{})
	defer s.Close()
	s.Begin(3)
	if e, ok := s.FindUnique(7, since); !ok || e.Len != 1 || e.Off != 1 {
		t.Errorf("%+v %v", e, ok)
	}
	for _, u := range []uint64{5, 11} {
		if e, ok := s.FindUnique(u, since); ok {
			t.Errorf("%d: %+v", u, e)
		}
	}
}

// TestOrphansLoseTheirNames: a program that outlived the mount never meets those that open
// its file again, and its file goes when it has closed it.
func TestOrphansLoseTheirNames(t *testing.T) {
	dir := t.TempDir()
	o := Options{OrphanPatience: time.Millisecond, OrphanPoll: time.Millisecond}
	s := open(t, dir, o)
	s.Begin(0)
	f := makeFile(t, s, "a")
	if err := s.Chmod(f.Number(), 0o6751); err != nil {
		t.Fatal(err)
	}
	makeFile(t, s, "b")
	_, fd := kernelOpen(t, s, f, "a", 1)
	appendTo(t, fd, "1234")
	old := f.Number()
	s.Close()
	s = open(t, dir, o)
	defer s.Close()
	if n, err := s.DetachOrphans(false); n != 1 || err != nil {
		t.Fatal(n, err)
	}
	orphans := 0
	for _, i := range files(s) {
		if i.Orphan {
			orphans++
			if i.Number != old || i.Path != "a" {
				t.Errorf("%+v", i)
			}
		}
	}
	_, fresh, err := s.Lookup("a")
	if err != nil || fresh == old || orphans != 1 {
		t.Fatalf("%s %v, %d orphans", fresh, err, orphans)
	}
	if st, err := s.StatFile(fresh); err != nil || st.Size != 0 || st.Mode&0o7777 != 0o6751 {
		t.Errorf("%o %d %v", st.Mode, st.Size, err)
	}
	s.Begin(1)
	appendTo(t, fd, "56")
	if s.Size(old) != 6 {
		t.Error(s.Size(old))
	}
	unix.Close(fd)
	if err := s.Wait(t.Context(), 2); err != nil {
		t.Fatal(err)
	}
	es := all(s, 2)
	if len(es) != 1 || es[0].Kind != Grown || es[0].Off != 6 || es[0].Flags != FlagEnd|FlagOrphan {
		t.Fatalf("%+v", es)
	}
	s.Committed(2)
	s.Settled(old, 6)
	for until := time.Now().Add(5 * time.Second); ; { // the follower lets go of it after the note
		if _, err := os.Stat(filepath.Join(dir, "spool", old.String())); os.IsNotExist(err) {
			break
		}
		if time.Now().After(until) {
			t.Fatal("it is still there")
		}
		<-time.After(time.Millisecond)
	}
}

func TestRestoredHandlesNoteNothing(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, Options{})
	s.Begin(0)
	f := makeFile(t, s, "a")
	k, fd := kernelOpen(t, s, f, "a", 1)
	appendTo(t, fd, "1234")
	n := f.Number()
	if err := s.Unlink("a"); err != nil {
		t.Fatal(err)
	}
	s.Close()
	s = open(t, dir, Options{})
	defer s.Close()
	f, err := s.Acquire(n)
	if err != nil {
		t.Fatal(err)
	}
	k, err = s.RestoreHandle(f, "a", Kernel, k.Writer, &Meta{PID: 1, Time: 1})
	if err != nil {
		t.Fatal(err)
	}
	s.Begin(0)
	appendTo(t, fd, "56")
	if next := s.Next(); next != 2 || f.Size() != 6 {
		t.Errorf("%d, size %d", next, f.Size())
	}
	k.End(&Meta{PID: 1})
	wantNotes(t, s, "4 off 0 pid 1 flags 1", "5 off 6 pid 0 flags 8", fmt.Sprintf("2 off %d pid 1 flags 0", k.Writer))
}

// A program appended to app.log, which was renamed; then somebody else opened the file by its
// new name, and what the program wrote went on under that, which a rule kept from being
// transferred.
func TestWhoOpensARenamedFileDoesNotTakeItsBytes(t *testing.T) {
	s := open(t, t.TempDir(), Options{})
	defer s.Close()
	s.Begin(0)
	f := makeFile(t, s, "app.log")
	kernelOpen(t, s, f, "app.log", 1)
	if d, err := s.OpenHandle(f, "app.log.1", Shared, &Meta{PID: 2}); err != nil { // : >app.log.1
		t.Fatal(err)
	} else {
		d.End(&Meta{PID: 2})
	}
	k, _ := kernelOpen(t, s, f, "app.log.1", 3) // echo >>app.log.1
	k.End(&Meta{PID: 3})
	var got []string
	for _, e := range all(s, 1) {
		got = append(got, fmt.Sprintf("%s pid %d flags %x", e.Path, e.PID, e.Flags))
	}
	if want := "[app.log pid 1 flags 1 app.log pid 3 flags 3 app.log pid 1 flags 1]"; fmt.Sprint(got) != want {
		t.Errorf("%v, want %s", got, want)
	}
}
