package spool

import (
	"slices"
	"testing"
)

// A handle that is closed while the ring is full: its release was noted whenever there was
// a place again, behind writes of handles that were opened later, and named them as open
// at the same time. `printf a >>f; printf b >>f` could come out with a Break between.
func TestAReleaseThatFoundTheRingFullIsNotedBeforeWhatCameLater(t *testing.T) {
	s := open(t, t.TempDir(), Options{Entries: 4})
	defer s.Close()
	s.Begin(0)
	first, other := create(t, s, "a.log"), create(t, s, "other.log")
	write(t, first, "no end")
	for range 3 {
		write(t, other, "x\n")
	}
	first.End(&Meta{})
	first.Release()
	f, err := s.Acquire(first.Number())
	if err != nil {
		t.Fatal(err)
	}
	later, err := s.OpenHandle(f, "a.log", PerWrite, &Meta{})
	if err != nil {
		t.Fatal(err)
	}
	if n, err := later.Write([]byte(" here\n"), 0, true, &Meta{}); err != ErrJournalFull {
		t.Fatalf("a write to a full ring: %d, %v", n, err)
	}
	s.Committed(1)
	es := all(s, 5)
	if len(es) != 1 || es[0].Kind != Release || es[0].Writer != first.Writer || es[0].Off >= int64(later.Writer) {
		t.Fatalf("after a place was free: %+v, want the release, from before writer %d", es, later.Writer)
	}
	s.Committed(4)
	write(t, later, " here\n")
	if es = all(s, 6); len(es) != 1 || es[0].Writer != later.Writer {
		t.Fatalf("%+v, want the later write", es)
	}
}

// The write comes before the Committed that has made room looks for what is owed.
func TestAWriteNotesWhatItsFileOwesFirst(t *testing.T) {
	s := open(t, t.TempDir(), Options{Entries: 2})
	defer s.Close()
	s.Begin(0)
	first := create(t, s, "a.log")
	later, err := s.OpenHandle(first.File, "a.log", PerWrite, &Meta{})
	if err != nil {
		t.Fatal(err)
	}
	write(t, first, "no end")
	write(t, later, "x")
	first.End(&Meta{})
	s.journal.committed(2) // and not the rest of Committed
	write(t, later, "y\n")
	kinds := []Kind{}
	for _, e := range all(s, 3) {
		kinds = append(kinds, e.Kind)
	}
	if !slices.Equal(kinds, []Kind{Release, Write}) {
		t.Fatalf("kinds %v, want the release before the write", kinds)
	}
	s.Committed(4)
	if first.refs != 1 || len(s.owing) != 0 {
		t.Fatalf("%d references, %d files owe notes", first.refs, len(s.owing))
	}
}

// A file that was unlinked while a note of it is owed stays until that is committed.
func TestAFileThatOwesANoteStays(t *testing.T) {
	s := open(t, t.TempDir(), Options{Entries: 1})
	defer s.Close()
	s.Begin(0)
	h := create(t, s, "a.log")
	write(t, h, "no end")
	h.End(&Meta{})
	h.Release()
	if err := s.Unlink("a.log"); err != nil {
		t.Fatal(err)
	}
	s.Committed(1)
	if gone := s.TakeGone(); len(gone) != 0 {
		t.Fatal("the file went before its release was committed")
	}
	s.Committed(2)
	if gone := s.TakeGone(); len(gone) != 1 {
		t.Fatalf("gone: %v", gone)
	}
}

// A write that does not fit below MaxUncaptured was told that there is room, as for one
// byte there was, and asked again and again without waiting for the next commit.
func TestRoomIsForTheWriteThatAsks(t *testing.T) {
	s := open(t, t.TempDir(), Options{MaxUncaptured: 100})
	defer s.Close()
	s.Begin(0)
	h := create(t, s, "a.log")
	write(t, h, string(make([]byte, 90)))
	if !s.HasRoom(10) || s.HasRoom(11) {
		t.Fatalf("room for 10: %v, for 11: %v", s.HasRoom(10), s.HasRoom(11))
	}
}
