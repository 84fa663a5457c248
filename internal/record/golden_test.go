package record

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"path/filepath"
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

// TestGolden: this version writes what it always wrote, and reads it.
func TestGolden(t *testing.T) {
	for i, s := range goldenBatches() {
		name := filepath.Join("testdata", fmt.Sprintf("v%d-%d.batch", Version, i))
		if *update {
			if err := os.WriteFile(name, s.Data, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(s.Data, want) {
			t.Errorf("%s: sealed\n% x\nwant\n% x", name, s.Data, want)
		}
		s.Data = want
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
		name := filepath.Join("testdata", fmt.Sprintf("v%d-%v.batch", Version, c))
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
