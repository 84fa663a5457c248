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
