package spool

import (
	"bytes"
	"encoding/binary"
	"flag"
	"hash/crc32"
	"os"
	"path/filepath"
	"testing"
)

var update = flag.Bool("update", false, "write the golden files anew; for a new format version only")

// goldenRing is how many entries the journals in testdata have.
const goldenRing = 8

// goldenEntries are the notes in testdata, by version of the journal. The last one is in
// progress.
var goldenEntries = map[int][]Entry{
	1: {
		{File: 1, Writer: 2, Off: 0, Len: 5, PathID: 1, PID: 4711, UID: 33, GID: 34, Time: 1_763_800_000_000_000_000, Unique: 77, Kind: Write},
		{File: 1, Writer: 2, Off: 3, PathID: 1, PID: 4711, UID: 33, GID: 34, Time: 1_763_800_000_000_000_001, Unique: 79, Kind: Flush},
		{File: 1, Writer: 2, Off: 3, PathID: 1, PID: 4711, Kind: Release},
		{File: 1, Writer: 3, Off: 5, Len: 10, PathID: 1, PID: 4712, Time: 1_763_800_000_000_000_002, Unique: 81, Kind: Write},
	},
	2: {
		{File: 0x0102030405060708, Writer: 2, Off: 9, PathID: 3, PID: 4711, UID: 33, GID: 34, Time: 1_763_800_000_000_000_000, Unique: 77, Kind: Opened, Flags: FlagKernel | FlagSeveral},
		{File: 0x0102030405060708, Writer: 2, Off: 0x1122334455667788, Len: 5, PathID: 3, PID: 4712, UID: ^uint32(0), Unique: 1<<63 - 1, Kind: Write, Flags: FlagJoined | FlagUnsure},
		{File: 0x0102030405060708, Writer: 2, Off: 100, Kind: Grown, Flags: FlagEnd | FlagOrphan},
		{File: 0x0102030405060708, Writer: 2, Off: 3, PathID: 3, Kind: Release},
		{File: 9, Writer: 4, Off: 3, PathID: 4, Kind: Flush},
		{File: 9, Writer: 4, Off: 5, Len: 10, PathID: 4, Kind: Write},
	},
}

// goldenJournal is a journal with the notes of version in it, and a boot id that is fixed.
func goldenJournal(t *testing.T, version int) []byte {
	t.Helper()
	path := filepath.Join(t.TempDir(), "journal")
	j, err := openJournal(path, goldenRing)
	if err != nil {
		t.Fatal(err)
	}
	j.begin(0, func(Number) int64 { return 0 })
	for i, e := range goldenEntries[version] {
		seq, err := j.note(&e)
		if err != nil {
			t.Fatal(err)
		}
		if i < len(goldenEntries[version])-1 {
			j.complete(seq, e.Len, e.Len)
		}
	}
	if err := j.close(); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	le := binary.LittleEndian
	if v := le.Uint32(b[hdrVersion:]); v != journalVersion {
		t.Fatalf("version %d, want %d", v, journalVersion)
	}
	le.PutUint32(b[hdrVersion:], uint32(version))
	copy(b[hdrBoot:hdrCRC], "of another boot.")
	le.PutUint64(b[hdrNumbers:], 1025)
	le.PutUint64(b[hdrWriters:], 65537)
	le.PutUint32(b[hdrCRC:], crc32.Checksum(b[:hdrCRC], castagnoli))
	return b
}

func golden(t *testing.T, name string, got []byte) []byte {
	t.Helper()
	name = filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(name, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return want
}

// TestGoldenJournal: this version writes the journal as it always did, and reads it. The
// notes of version 1 are written the same way since.
func TestGoldenJournal(t *testing.T) {
	for version, name := range map[int]string{1: "journal-v1", 2: "journal-v2"} {
		got := goldenJournal(t, version)
		want := golden(t, name, got)
		if len(got) != len(want) {
			t.Fatalf("%s: %d bytes, want %d", name, len(got), len(want))
		}
		for at := 0; at < len(want); at += 16 {
			if g, w := got[at:at+16], want[at:at+16]; !bytes.Equal(g, w) {
				t.Errorf("%s at %d: % x, want % x", name, at, g, w)
			}
		}
		j := &journal{ring: want[headerSize:], cap: goldenRing}
		for i, e := range goldenEntries[version] {
			e.Seq = uint64(i + 1)
			if have, ok := j.load(e.Seq, true); !ok || have != e {
				t.Errorf("%s: note %d: %+v, want %+v", name, e.Seq, have, e)
			}
		}
	}
}

// TestAJournalOfVersion1IsTakenUp: by the first start of this version, killed or not before
// it has written the header anew.
func TestAJournalOfVersion1IsTakenUp(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, Options{Entries: goldenRing})
	s.Begin(0)
	h := create(t, s, "a.log")
	write(t, h, "hello")
	if h.Number() != 1 || h.PathID != 1 {
		t.Fatal(h.Number(), h.PathID)
	}
	s.Close()
	old := golden(t, "journal-v1", goldenJournal(t, 1))
	if err := os.WriteFile(filepath.Join(dir, "journal"), old, 0o600); err != nil {
		t.Fatal(err)
	}
	s = open(t, dir, Options{})
	r := s.Begin(0)
	if r.Entries != 4 || r.Lost != 0 || r.Clipped != 1 || r.To != 4 || !r.OtherBoot {
		t.Errorf("%+v", r)
	}
	for i, e := range all(s, 1) {
		want := goldenEntries[1][i]
		want.Seq, want.Path = uint64(i+1), "a.log"
		if i == 3 { // in progress, and not in the file
			want.Len, want.Flags = 0, FlagUnsure
		}
		if e != want {
			t.Errorf("%+v, want %+v", e, want)
		}
	}
	h, err := s.OpenHandle(&File{}, "", PerWrite, &Meta{})
	if err != nil || h.Writer < 65537 {
		t.Errorf("writer %d, %v: given out before", h.Writer, err)
	}
	s.Close()
	b, err := os.ReadFile(filepath.Join(dir, "journal"))
	if err != nil || binary.LittleEndian.Uint32(b[hdrVersion:]) != journalVersion {
		t.Errorf("version %d after a start, %v", b[hdrVersion], err)
	}
	s = open(t, dir, Options{})
	defer s.Close()
	if r := s.Begin(0); r.Entries != 4 || r.Lost != 0 || r.OtherBoot {
		t.Errorf("at the next start: %+v", r)
	}
}
