package record

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"ftfuse/internal/batch"
)

var update = flag.Bool("update", false, "write the golden files anew; for a new format version only")

// goldenBatches are the batches in testdata, built by this version.
func goldenBatches() []batch.Sealed {
	b := NewBuilder(1 << 20)
	empty := b.Seal(testID(1), 1)
	web := Attr{Host: "web-01", Path: "logs/access.log", PID: 4711, UID: 33, GID: 33, Time: 1_763_800_000_000_000_000}
	job := Attr{Host: "web-01", Path: "logs/job.log", PID: 99, UID: 0, GID: 0, Time: web.Time}
	add := func(a Attr, after int64, flags uint16, data string) {
		a.Time += after
		a.Flags = flags
		if !b.Add(&a, []byte(data)) {
			panic("golden batch is full")
		}
	}
	add(web, 0, 0, "GET / 200\n")
	add(web, 7_000, 0, "GET / 404\n")          // same writer, same length
	add(job, 9_000, Unterminated, "no end")    // second writer
	add(web, 9_000, Break, "GET /a\r\n")       // back to the first, same time
	add(web, 8_000, PieceFirst|Binary, "\x00") // time goes back
	add(job, 8_000, Recovered, "")             // no bytes
	return []batch.Sealed{empty, b.Seal(testID(2), web.Time+10_000)}
}

// goldenProcesses is a batch of version 2, with what is known of processes.
func goldenProcesses() (batch.Sealed, []want) {
	b := NewBuilder(1 << 20)
	web := Attr{Host: "web-01", Path: "logs/access.log", PID: 4711, UID: 33, GID: 33, Time: 1_763_800_000_000_000_000}
	nginx := web
	nginx.Process = &Process{Exe: "/usr/sbin/nginx", Cgroup: "/system.slice/nginx.service"}
	gone := web
	gone.PID, gone.Process = 4712, &Process{}
	records := []want{
		{web, []byte("nobody asked\n")},
		{nginx, []byte("GET / 200\n")},
		{nginx, []byte("GET / 404\n")},
		{gone, []byte("asked and not found\n")},
		{web, []byte("again\n")},
		{nginx, []byte("and again\n")},
	}
	for i := range records {
		b.Add(&records[i].a, records[i].data)
	}
	return b.Seal(testID(4), web.Time), records
}

// TestGoldenProcesses: version 2 is written as ever, and read.
func TestGoldenProcesses(t *testing.T) {
	s, records := goldenProcesses()
	golden(t, filepath.Join("testdata", "v2-process.batch"), s.Data)
	r, err := Open(s)
	if err != nil {
		t.Fatal(err)
	}
	equal(t, readAll(t, r), records)
}

// TestABatchWithoutProcessesIsOfVersion1: nodes that know no other read it.
func TestABatchWithoutProcessesIsOfVersion1(t *testing.T) {
	b := NewBuilder(1 << 20)
	for i, p := range []*Process{nil, {Exe: "/bin/sh"}, nil} {
		b.Add(&Attr{Host: "h", Path: "p", Process: p}, []byte("x"))
		if s := b.Seal(testID(1), 1); int(s.Data[4]) != []int{1, 2, 1}[i] {
			t.Errorf("batch %d has version %d", i, s.Data[4])
		}
	}
}

// TestAProcessInVersion1IsRefused: whoever sealed that was no ftfuse.
func TestAProcessInVersion1IsRefused(t *testing.T) {
	s, _ := goldenProcesses()
	s.Data = bytes.Clone(s.Data)
	s.Data[4] = versionOld
	if err := Check(s); !errors.Is(err, ErrMalformed) {
		t.Errorf("got %v, want ErrMalformed", err)
	}
}

// TestALongProcessIsRefused: the reader's memory and the batch's room count on it.
func TestALongProcessIsRefused(t *testing.T) {
	long := strings.Repeat("x", MaxProcess+1)
	b := NewBuilder(1 << 20)
	for _, p := range []*Process{{Exe: long}, {Cgroup: long}} {
		if b.Add(&Attr{Host: "h", Path: "p", Process: p}, nil) {
			t.Error("a process longer than MaxProcess was added")
		}
	}
	// A path as long, in a batch whose last writer has it as its program.
	b.Add(&Attr{Host: "h", Path: long}, nil)
	b.Add(&Attr{Host: "h", Path: "p", Process: &Process{Exe: "p"}}, nil)
	s := b.Seal(testID(1), 1)
	exe := &s.Data[len(s.Data)-3] // a string's number; behind it that of the control group and its length
	if err := Check(s); err != nil || *exe != 2 {
		t.Fatalf("%v, string %d", err, *exe)
	}
	*exe = 1
	if err := Check(s); !errors.Is(err, ErrMalformed) {
		t.Errorf("got %v, want ErrMalformed", err)
	}
}

// golden compares data with the file of that name, and returns what the file has.
func golden(t *testing.T, name string, data []byte) []byte {
	t.Helper()
	if *update {
		if err := os.WriteFile(name, data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(data, want) {
		t.Errorf("%s: sealed\n% x\nwant\n% x", name, data, want)
	}
	return want
}

// TestGolden: this version writes what it always wrote, and reads it.
func TestGolden(t *testing.T) {
	for i, s := range goldenBatches() {
		name := filepath.Join("testdata", fmt.Sprintf("v1-%d.batch", i))
		s.Data = golden(t, name, s.Data)
		if err := Check(s); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// packedRecords are the records of the compressed golden batches.
func packedRecords() []want {
	var all []want
	for i := range 40 {
		a := Attr{Host: "web-01", Path: "logs/access.log", PID: 4711, UID: 33, GID: 33, Time: 1_763_800_000_000_000_000 + int64(i)*7000}
		all = append(all, want{a, fmt.Appendf(nil, "10.0.0.%d GET /index.html 200 %d\n", i%4, 1000+i)})
	}
	return all
}

// goldenPacked reads the compressed batches in testdata. Other versions of the codecs may
// write other bytes; what was written stays readable.
func goldenPacked(t testing.TB) []batch.Sealed {
	var all []batch.Sealed
	for _, c := range []Codec{CodecS2, CodecZstd} {
		b := NewBuilder(1 << 20)
		b.Compress(c)
		for _, r := range packedRecords() {
			b.Add(&r.a, r.data)
		}
		s := b.Seal(testID(3), 5)
		name := filepath.Join("testdata", fmt.Sprintf("v1-%v.batch", c))
		if *update {
			if err := os.WriteFile(name, s.Data, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		data, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		s.Data, s.CRC = data, batch.Checksum(data)
		all = append(all, s)
	}
	return all
}

// TestGoldenPacked: what was compressed with an earlier version of a codec is read.
func TestGoldenPacked(t *testing.T) {
	for i, s := range goldenPacked(t) {
		if c := Codec(s.Data[6]); c != Codec(i+1) {
			t.Errorf("batch %d has codec %v", i, c)
		}
		r, err := Open(s)
		if err != nil {
			t.Fatal(err)
		}
		equal(t, readAll(t, r), packedRecords())
	}
}
