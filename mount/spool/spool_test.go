package spool

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

const anyID = ^uint32(0)

func open(t *testing.T, dir string, o Options) *Store {
	t.Helper()
	s, err := Open(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// create makes a file with a writer.
func create(t *testing.T, s *Store, path string) *Handle {
	t.Helper()
	f, err := s.Create(path, 0o640, anyID, anyID)
	if err != nil {
		t.Fatal(err)
	}
	h, err := s.OpenHandle(f, path, PerWrite, &Meta{})
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func write(t *testing.T, h *Handle, text string) {
	t.Helper()
	if n, err := h.Write([]byte(text), 0, true, &Meta{PID: 7, Time: 99, Unique: 5}); n != len(text) || err != nil {
		t.Fatalf("write of %d: %d, %v", len(text), n, err)
	}
}

func all(s *Store, from uint64) []Entry { return s.Entries(make([]Entry, 0, 1000), from) }

func files(s *Store) (out []FileInfo) {
	_ = s.Files(func(i FileInfo) bool { out = append(out, i); return true })
	return out
}

func TestNotesAndBytesAreThereAfterAReopen(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, Options{})
	if r := s.Begin(0); r.Entries != 0 || r.From <= r.To {
		t.Fatalf("fresh journal: %+v", r)
	}
	h := create(t, s, "a.log")
	for _, line := range []string{"one\n", "two\n", "three\n"} {
		write(t, h, line)
	}
	if err := s.Wait(context.Background(), 3); err != nil {
		t.Fatal(err)
	}
	es := all(s, 1)
	if len(es) != 3 || es[2] != (Entry{Seq: 3, File: h.Number(), Writer: h.Writer, Off: 8, Len: 6, Path: "a.log", PathID: h.PathID, PID: 7, Time: 99, Unique: 5, Kind: Write}) {
		t.Fatalf("%+v", es)
	}
	b := make([]byte, 14)
	if _, err := s.ReadAt(h.Number(), b, 0); err != nil || string(b) != "one\ntwo\nthree\n" {
		t.Fatal(string(b), err)
	}
	s.Committed(2)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, dir, Options{})
	defer s.Close()
	if r := s.Begin(2); r.Entries != 1 || r.From != 3 || r.To != 3 || r.OtherBoot {
		t.Fatalf("%+v", r)
	}
	if es := all(s, 1); len(es) != 1 || es[0].Path != "a.log" || es[0].Seq != 3 {
		t.Fatalf("%+v", es)
	}
	if fs := files(s); len(fs) != 1 || fs[0].Path != "a.log" || fs[0].Size != 14 {
		t.Fatalf("%+v", fs)
	}
}

func TestOnlyOneProcessHasASpool(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, Options{})
	defer s.Close()
	if _, err := Open(dir, Options{}); !errors.Is(err, ErrLocked) {
		t.Fatal(err)
	}
}

func TestRingAndUncapturedBytesAreBounded(t *testing.T) {
	s := open(t, t.TempDir(), Options{Entries: 8, MaxUncaptured: 100})
	defer s.Close()
	s.Begin(0)
	h := create(t, s, "a")
	for range 8 {
		write(t, h, "x")
	}
	if _, err := h.Write([]byte("x"), 0, true, &Meta{}); err != ErrJournalFull {
		t.Fatalf("ninth of eight: %v", err)
	}
	if h.Size() != 8 || s.HasRoom(1) {
		t.Fatal("a refused write left something", h.Size())
	}
	changed := s.Changed()
	s.Committed(3)
	<-changed
	write(t, h, strings.Repeat("y", 95))
	if _, err := h.Write([]byte("x"), 0, true, &Meta{}); err != ErrJournalFull {
		t.Fatalf("beyond 100 bytes: %v", err)
	}
	if got := s.Uncaptured(); got != 100 {
		t.Fatal(got)
	}
	s.Committed(9)
	if got := s.Uncaptured(); got != 0 {
		t.Fatal(got)
	}
	write(t, h, strings.Repeat("z", 500)) // one write is always taken
	if es := all(s, 1); len(es) != 1 || es[0].Seq != 10 || es[0].Len != 500 {
		t.Fatalf("%+v", es)
	}
}

// damage opens the journal of a closed store and changes it.
func damage(t *testing.T, dir string, change func(b []byte)) {
	t.Helper()
	path := filepath.Join(dir, "journal")
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	change(b)
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestADamagedNoteCostsOnlyItself(t *testing.T) {
	for at := range entrySize {
		dir := t.TempDir()
		s := open(t, dir, Options{Entries: 16})
		s.Begin(0)
		h := create(t, s, "a")
		for i := range 5 {
			write(t, h, fmt.Sprintf("line %d\n", i))
		}
		s.Close()
		damage(t, dir, func(b []byte) { b[headerSize+3*entrySize+at] ^= 0x40 })
		s = open(t, dir, Options{})
		r := s.Begin(0)
		es := all(s, 1)
		if len(es) != 5 || r.To != 5 {
			t.Fatalf("byte %d: %d entries, %+v", at, len(es), r)
		}
		for i, e := range es {
			switch {
			case i+1 == 3 && at < entResult:
				if e.Kind != Void || e.Len != 0 || r.Lost != 1 {
					t.Fatalf("byte %d: the damaged note came as %+v, %+v", at, e, r)
				}
			case i+1 == 3: // its length: never more than was noted, never beyond the file
				if e.Len > 7 {
					t.Fatalf("byte %d: %+v", at, e)
				}
			case e.Kind != Write || e.Len != 7 || e.Off != int64(i*7) || e.Seq != uint64(i+1):
				t.Fatalf("byte %d: entry %d is %+v", at, i+1, e)
			}
		}
		s.Close()
	}
}

func TestADamagedHeaderIsRefused(t *testing.T) {
	for at := range hdrCRC + 4 {
		dir := t.TempDir()
		open(t, dir, Options{Entries: 16}).Close()
		damage(t, dir, func(b []byte) { b[at] ^= 1 })
		if _, err := Open(dir, Options{}); !errors.Is(err, ErrJournal) || !strings.Contains(err.Error(), dir) {
			t.Fatalf("byte %d: %v", at, err)
		}
	}
	dir := t.TempDir()
	open(t, dir, Options{Entries: 16}).Close()
	if err := os.Truncate(filepath.Join(dir, "journal"), headerSize+5); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(dir, Options{}); !errors.Is(err, ErrJournal) {
		t.Fatal(err)
	}
}

func TestNotesAreClippedToTheFile(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, Options{Entries: 16})
	s.Begin(0)
	h := create(t, s, "a")
	write(t, h, "0123456789")
	write(t, h, "0123456789")
	n := h.Number()
	s.Close()
	// As after a kill within the second pwrite, and after power loss.
	damage(t, dir, func(b []byte) { clear(b[headerSize+2*entrySize+entResult:][:4]) })
	if err := os.Truncate(filepath.Join(dir, "spool", n.String()), 13); err != nil {
		t.Fatal(err)
	}
	s = open(t, dir, Options{})
	defer s.Close()
	r := s.Begin(0)
	es := all(s, 1)
	if len(es) != 2 || es[0].Len != 10 || es[1].Len != 3 || r.Clipped != 1 || s.Uncaptured() != 13 {
		t.Fatalf("%+v %+v %d", es, r, s.Uncaptured())
	}
}

func TestAnotherBootIsNoticed(t *testing.T) {
	dir := t.TempDir()
	open(t, dir, Options{Entries: 16}).Close()
	damage(t, dir, func(b []byte) {
		b[hdrBoot] ^= 1
		sealHeader(b)
	})
	s := open(t, dir, Options{})
	defer s.Close()
	if r := s.Begin(0); !r.OtherBoot {
		t.Fatalf("%+v", r)
	}
}

func sealHeader(b []byte) {
	binary.LittleEndian.PutUint32(b[hdrCRC:], crc32.Checksum(b[:hdrCRC], castagnoli))
}

// TestAJournalOfTheOldVersionIsTakenUp: its notes stay, and from then on the old program
// refuses it, which would have passed over the new ones.
func TestAJournalOfTheOldVersionIsTakenUp(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, Options{Entries: 16})
	s.Begin(0)
	write(t, create(t, s, "a"), "kept\n")
	s.Close()
	damage(t, dir, func(b []byte) {
		b[hdrVersion] = oldJournalVersion
		sealHeader(b)
	})
	s = open(t, dir, Options{})
	if r := s.Begin(0); r.Entries != 1 || r.Lost != 0 {
		t.Fatalf("%+v", r)
	}
	s.Close()
	damage(t, dir, func(b []byte) {
		if b[hdrVersion] != journalVersion {
			t.Fatalf("version %d, want %d", b[hdrVersion], journalVersion)
		}
		b[hdrVersion]++
		sealHeader(b)
	})
	if _, err := Open(dir, Options{}); !errors.Is(err, ErrJournal) || !strings.Contains(err.Error(), "version 3") {
		t.Fatal(err)
	}
}

func TestSequenceNumbersNeverGoBack(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, Options{Entries: 8})
	s.Begin(0)
	h := create(t, s, "a")
	for range 100 {
		write(t, h, "x")
		s.Committed(s.Next() - 1)
	}
	s.Close()
	if err := os.Remove(filepath.Join(dir, "journal")); err != nil { // lost with the disk's last seconds
		t.Fatal(err)
	}
	s = open(t, dir, Options{Entries: 8})
	defer s.Close()
	if s.Begin(100); s.Next() != 101 {
		t.Fatal(s.Next())
	}
}

func TestNumbersAreNeverUsedTwice(t *testing.T) {
	dir := t.TempDir()
	seen := map[Number]bool{}
	writers := map[uint64]bool{}
	for range 5 {
		s := open(t, dir, Options{Entries: 8})
		s.Begin(s.Next())
		for i := range 30 {
			name := fmt.Sprintf("f%d", i)
			h := create(t, s, name)
			if seen[h.Number()] || writers[h.Writer] {
				t.Fatalf("file %d or writer %d was there before", h.Number(), h.Writer)
			}
			seen[h.Number()], writers[h.Writer] = true, true
			h.End(&Meta{})
			h.Release()
			if err := s.Unlink(name); err != nil {
				t.Fatal(err)
			}
		}
		if g := s.TakeGone(); len(g) != 30 {
			t.Fatalf("%d files gone, want 30", len(g))
		}
		s.Close()
	}
}

func TestAnUnlinkedFileStaysUntilItsNotesAreCommitted(t *testing.T) {
	s := open(t, t.TempDir(), Options{})
	defer s.Close()
	s.Begin(0)
	h := create(t, s, "a")
	write(t, h, "bytes\n")
	if err := s.Unlink("a"); err != nil {
		t.Fatal(err)
	}
	h.End(&Meta{})
	h.Release()
	b := make([]byte, 6)
	if _, err := s.ReadAt(h.Number(), b, 0); err != nil || string(b) != "bytes\n" {
		t.Fatalf("%q %v", b, err)
	}
	s.Committed(1)
	if g := s.TakeGone(); len(g) != 0 {
		t.Fatal("it went before its release was committed")
	}
	s.Committed(2)
	if g := s.TakeGone(); len(g) != 1 || g[0] != h.Number() {
		t.Fatal(g)
	}
	if _, err := s.ReadAt(h.Number(), b, 0); !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
}

func TestAnOrphanWaitsForSettled(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, Options{})
	s.Begin(0)
	h := create(t, s, "a")
	write(t, h, "bytes\n")
	s.Unlink("a")
	n := h.Number()
	s.Close()
	s = open(t, dir, Options{})
	defer s.Close()
	if r := s.Begin(0); r.Entries != 1 {
		t.Fatalf("%+v", r)
	}
	if fs := files(s); len(fs) != 1 || fs[0].Path != "" || fs[0].Size != 6 {
		t.Fatalf("%+v", fs)
	}
	s.Committed(1)
	s.Settled(n, 5)
	if g := s.TakeGone(); len(g) != 0 {
		t.Fatal("it went before all of it was captured")
	}
	s.Settled(n, 6)
	if g := s.TakeGone(); len(g) != 1 {
		t.Fatal("it stays")
	}
}

// blocks returns the allocated bytes of a file.
func blocks(t *testing.T, f *File) int64 {
	t.Helper()
	if err := unix.Fsync(f.fd); err != nil { // delayed allocation would count nothing
		t.Fatal(err)
	}
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	return st.Blocks * 512
}

func TestPunchNeverTouchesWhatIsNotCommitted(t *testing.T) {
	s := open(t, t.TempDir(), Options{PunchEvery: 64 << 10, Readback: 4096})
	defer s.Close()
	s.Begin(0)
	h := create(t, s, "a")
	chunk := strings.Repeat("x", 32<<10)
	for range 8 {
		write(t, h, chunk)
	}
	s.Committed(8)
	h.Reserve()
	if err := h.Truncate(0); err != nil {
		t.Fatal(err)
	}
	h.Unreserve()
	for range 8 {
		write(t, h, chunk)
	}
	s.Punch(h.Number(), 256<<10) // about the bytes from before the truncation, late
	s.tidy.punch(h.File)
	b := make([]byte, 256<<10)
	if _, err := s.ReadAt(h.Number(), b, 0); err != nil || !bytes.Equal(b, bytes.Repeat([]byte("x"), len(b))) {
		t.Fatal("bytes that are not committed were punched out", err)
	}
	s.Committed(16)
	s.tidy.punch(h.File)
	if got := blocks(t, h.File); got > 16<<10 {
		t.Fatalf("%d bytes are still allocated", got)
	}
	if _, err := s.ReadAt(h.Number(), b[:4096], 252<<10); err != nil || !bytes.Equal(b[:4096], bytes.Repeat([]byte("x"), 4096)) {
		t.Fatal("the readback is gone", err)
	}
}

func TestPunchingLeavesTheTimes(t *testing.T) {
	s := open(t, t.TempDir(), Options{PunchEvery: 4096})
	defer s.Close()
	s.Begin(0)
	h := create(t, s, "a")
	write(t, h, strings.Repeat("x", 64<<10))
	s.Committed(1)
	want := unix.Timespec{Sec: 1e9, Nsec: 5}
	if err := s.Utimens(h.Number(), want, want); err != nil {
		t.Fatal(err)
	}
	s.Punch(h.Number(), 64<<10)
	s.tidy.punch(h.File)
	st, err := h.Stat()
	if err != nil || st.Mtim != want || st.Blocks != 0 {
		t.Fatalf("mtime %v, %d blocks, %v", st.Mtim, st.Blocks, err)
	}
}

func TestTruncateLeavesNoDataBelowTheOldEndButTheReadback(t *testing.T) {
	s := open(t, t.TempDir(), Options{Readback: 100})
	defer s.Close()
	s.Begin(0)
	h := create(t, s, "a")
	write(t, h, strings.Repeat("x", 1<<20))
	s.Committed(1)
	if err := h.Truncate(0); err != nil {
		t.Fatal(err)
	}
	if _, err := s.SeekData(h.Number(), 0); err != io.EOF {
		t.Fatal(err)
	}
	write(t, h, strings.Repeat("y", 1000))
	s.Committed(2)
	if err := h.Truncate(500); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 500)
	if _, err := s.ReadAt(h.Number(), b, 0); err != nil || !bytes.Equal(b[400:], bytes.Repeat([]byte("y"), 100)) {
		t.Fatal(err)
	}
}

func TestPathTableForgetsWhatNobodyUses(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, Options{})
	s.Begin(0)
	keep := create(t, s, "keep")
	long := strings.Repeat("p", 200)
	last := uint64(0)
	for i := 0; !s.paths.full(); i++ {
		f, err := s.Acquire(keep.Number())
		if err != nil {
			t.Fatal(err)
		}
		h, err := s.OpenHandle(f, fmt.Sprintf("%s/%d", long, i), PerWrite, &Meta{})
		if err != nil {
			t.Fatal(err)
		}
		if i%1000 == 0 {
			write(t, h, "x")
			last = s.Next() - 1
		}
		h.End(&Meta{})
		f.Release()
	}
	s.Committed(last - 1)
	if s.paths.full() {
		t.Fatalf("%d bytes of paths", s.paths.size)
	}
	for _, e := range all(s, 1) {
		if !strings.HasPrefix(e.Path, long) {
			t.Fatalf("the path of an entry that is not committed is gone: %+v", e)
		}
	}
	write(t, keep, "y")
	s.Close()
	s = open(t, dir, Options{})
	defer s.Close()
	s.Begin(last - 1)
	es := all(s, 1)
	if e := es[len(es)-1]; e.Path != "keep" {
		t.Fatalf("%+v", e)
	}
}

func TestATornPathIsCutOff(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, Options{})
	s.Begin(0)
	for _, name := range []string{"first", "second"} {
		write(t, create(t, s, name), "x")
	}
	s.Close()
	file := filepath.Join(dir, "paths")
	b, _ := os.ReadFile(file)
	if err := os.WriteFile(file, b[:len(b)-3], 0o600); err != nil {
		t.Fatal(err)
	}
	s = open(t, dir, Options{})
	defer s.Close()
	s.Begin(0)
	if es := all(s, 1); len(es) != 2 || es[0].Path != "first" || es[1].Path != "" {
		t.Fatalf("%+v", es)
	}
}

func TestTwoNamesOfOneFileAreRefused(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, Options{})
	s.Begin(0)
	h := create(t, s, "a")
	n := h.Number()
	s.Close()
	if err := os.Symlink(n.String(), filepath.Join(dir, "tree", "b")); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(dir, Options{}); !errors.Is(err, ErrTree) || !strings.Contains(err.Error(), `"b"`) {
		t.Fatal(err)
	}
}

func TestANameWithoutItsFileGetsAnEmptyOne(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, Options{})
	s.Begin(0)
	h := create(t, s, "a")
	write(t, h, "x")
	n := h.Number()
	s.Close()
	if err := os.Remove(filepath.Join(dir, "spool", n.String())); err != nil {
		t.Fatal(err)
	}
	s = open(t, dir, Options{})
	defer s.Close()
	if r := s.Begin(0); r.Clipped != 1 {
		t.Fatalf("%+v", r)
	}
	if f, err := s.Acquire(n); err != nil || f.Size() != 0 {
		t.Fatal(err)
	}
}

func TestWritersOfOneFileAtOnce(t *testing.T) {
	s := open(t, t.TempDir(), Options{Entries: 64})
	defer s.Close()
	s.Begin(0)
	f, err := s.Create("a", 0o600, anyID, anyID)
	if err != nil {
		t.Fatal(err)
	}
	const writers, lines = 4, 500
	var wg sync.WaitGroup
	for w := range writers {
		h, err := s.OpenHandle(f, "a", PerWrite, &Meta{})
		if err != nil {
			t.Fatal(err)
		}
		wg.Go(func() {
			for i := range lines {
				line := []byte(fmt.Sprintf("%d %d %s\n", w, i, strings.Repeat("x", rand.IntN(50))))
				for {
					changed := s.Changed()
					if n, err := h.Write(line, 0, true, &Meta{}); err == ErrJournalFull {
						<-changed
						continue
					} else if n != len(line) || err != nil {
						t.Errorf("%d %v", n, err)
					}
					break
				}
			}
		})
	}
	var got []byte
	for seq := uint64(1); seq <= writers*lines; {
		if err := s.Wait(t.Context(), seq); err != nil {
			t.Fatal(err)
		}
		for _, e := range s.Entries(make([]Entry, 0, 10), seq) {
			if e.Seq != seq || e.Off != int64(len(got)) {
				t.Fatalf("entry %d at %d is %+v", seq, len(got), e)
			}
			b := make([]byte, e.Len)
			if _, err := s.ReadAt(e.File, b, e.Off); err != nil {
				t.Fatal(err)
			}
			got = append(got, b...)
			seq++
		}
		s.Committed(seq - 1)
	}
	wg.Wait()
	if bytes.Count(got, []byte("\n")) != writers*lines {
		t.Fatal("lines are missing")
	}
}

func BenchmarkWrite(b *testing.B) {
	s, err := Open(b.TempDir(), Options{})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	s.Begin(0)
	f, err := s.Create("a", 0o600, anyID, anyID)
	if err != nil {
		b.Fatal(err)
	}
	h, err := s.OpenHandle(f, "a", PerWrite, &Meta{})
	if err != nil {
		b.Fatal(err)
	}
	data := bytes.Repeat([]byte("x"), 128)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := h.TryWrite(data, 0, true, &Meta{}); err != nil {
			b.Fatal(err)
		}
		if seq := s.Next() - 1; seq%1024 == 0 {
			s.Committed(seq)
		}
	}
}

func TestWhatAFailedWriteLeftBehindTheEndIsCutOff(t *testing.T) {
	s := open(t, t.TempDir(), Options{})
	defer s.Close()
	s.Begin(0)
	h := create(t, s, "a")
	write(t, h, "good\n")
	if _, err := unix.Pwrite(h.fd, []byte("left behind"), 5); err != nil {
		t.Fatal(err)
	}
	h.cutFailed(5)
	if st, err := h.Stat(); err != nil || st.Size != 5 {
		t.Fatal(st.Size, err)
	}
}
