package capture

import (
	"encoding/hex"
	"errors"
	flags "flag"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"ftfuse/internal/filter"
	"ftfuse/internal/record"
	"ftfuse/mount/spool"
)

var update = flags.Bool("update", false, "write the golden file anew; for a new format version only")

// goldenValues are the values that this version stores, by what they are, one of each kind
// (docs/protocol.md, "The mount's keys in its queue").
func goldenValues() map[string][]byte {
	p := &path{name: "logs/app.log"}
	f := &file{number: 7, pos: 0x1122334455667788, seq: 0x99, path: p}
	kernel := &file{number: 7, pos: 4096, seq: 12, path: &path{name: "other"}, by: opened{
		on: true, writer: 0x0102030405060708, path: p, pid: 4711, uid: 33, gid: 34, flags: record.Opener | record.Several,
	}}
	w := &writer{
		file: f, path: p, pend: []byte("no end"), base: 100, stored: 102, inPiece: true,
		attr: record.Attr{PID: 4711, UID: 33, GID: 34, Time: 1_763_800_000_000_000_000, Flags: record.Opener},
	}
	cut := &writer{
		file: f, path: p, base: 100, stored: 100, inPiece: true, dropped: filter.Unmatched, length: 0x0203, attr: w.attr,
	}
	return map[string][]byte{
		"pos-v1":   appendPos(nil, f),
		"pos-v2":   appendPos(nil, kernel),
		"trunc-v1": appendCut(nil, spool.Cut{Old: 10, New: 100}),
		"trunc-v2": appendCut(nil, spool.Cut{Old: 5000, New: 3, Mark: []byte("\xf8\xf9\xfa\xfb\xfc\xfd\xfe\xf8\xf9\xfa\xfb\xfc\xfd\xfe\xf8\xf9")}),
		"done-v1":  appendSeq(nil, 0x8877665544332211),
		"jseq-v1":  appendSeq(nil, 99),
		"pend-v1":  w.appendHead(nil),
		"pend-v2":  cut.appendHead(nil),
		"src-v1":   goldenSource.append(nil, 0x0102030405060708),
		"tail-v1":  tail{writer: 5, mark: 6}.append(nil),
	}
}

var goldenSource = Source{
	Kind: SourceStream, Path: "logs/app.log", Name: "backup", Dev: 0x801, Ino: 77, Birth: 1_763_800_000_000_000_000,
	Boot: [16]byte([]byte("the boot of then")), Seen: 1_763_800_000_000_000_001, Begin: []byte("the first bytes"), Done: true,
}

// TestGoldenValues: this version stores what it always stored.
func TestGoldenValues(t *testing.T) {
	name := filepath.Join("testdata", "values")
	values := goldenValues()
	if *update {
		var b strings.Builder
		for _, k := range []string{"pos-v1", "pos-v2", "trunc-v1", "trunc-v2", "done-v1", "jseq-v1", "pend-v1", "tail-v1", "src-v1", "pend-v2"} {
			b.WriteString(k + " " + hex.EncodeToString(values[k]) + "\n")
		}
		if err := os.WriteFile(name, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	golden := map[string][]byte{}
	for line := range strings.Lines(string(text)) {
		k, v, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
		if golden[k], err = hex.DecodeString(v); err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(values[k], golden[k]) {
			t.Errorf("%s is stored as %x, want %x", k, values[k], golden[k])
		}
	}
	if len(golden) != len(values) {
		t.Errorf("%d golden values, want %d", len(golden), len(values))
	}
	readGolden(t, golden)
}

// readGolden reads what stands in testdata.
func readGolden(t *testing.T, golden map[string][]byte) {
	same := func(what string, got, want any, err error) {
		t.Helper()
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %+v %v, want %+v", what, got, err, want)
		}
	}
	p, err := parsePos("k", golden["pos-v1"])
	same("pos-v1", p, storedPos{pos: 0x1122334455667788, seq: 0x99, path: "logs/app.log"}, err)
	p, err = parsePos("k", golden["pos-v2"])
	same("pos-v2", p, storedPos{pos: 4096, seq: 12, path: "logs/app.log", by: opened{
		on: true, writer: 0x0102030405060708, pid: 4711, uid: 33, gid: 34, flags: record.Opener | record.Several,
	}}, err)
	cut, err := parseCut("k", golden["trunc-v1"])
	same("trunc-v1", cut, spool.Cut{Old: 10, New: 100}, err)
	cut, err = parseCut("k", golden["trunc-v2"])
	same("trunc-v2", cut, spool.Cut{Old: 5000, New: 3, Mark: []byte("\xf8\xf9\xfa\xfb\xfc\xfd\xfe\xf8\xf9\xfa\xfb\xfc\xfd\xfe\xf8\xf9")}, err)
	src, err := parseSource("k", golden["src-v1"])
	want := goldenSource
	want.Pos = 0x0102030405060708
	same("src-v1", src, want, err)
	for n := range 80 {
		if _, err := parseSource("k", golden["src-v1"][:n]); !errors.Is(err, ErrState) {
			t.Errorf("src-v1 of %d bytes: %v", n, err)
		}
	}
	h, err := parseHead("k", golden["pend-v1"])
	same("pend-v1", string(h.rest)+" of "+h.path, " end of logs/app.log", err)
	h, err = parseHead("k", golden["pend-v2"])
	same("pend-v2", fmt.Sprint(h.path, h.inPiece, h.dropped, h.length), fmt.Sprint("logs/app.log", true, filter.Unmatched, 0x0203), err)
	for _, k := range []string{"pos-v2", "trunc-v2", "pend-v2"} { // cut short, or of the future
		parse := func(b []byte) (err error) {
			switch k {
			case "pos-v2":
				_, err = parsePos("k", b)
			case "pend-v2":
				_, err = parseHead("k", b)
			default:
				_, err = parseCut("k", b)
			}
			return err
		}
		if err := parse(golden[k][:20]); !errors.Is(err, ErrState) {
			t.Errorf("%s of 20 bytes: %v", k, err)
		}
		if err := parse(append([]byte{3}, golden[k][1:]...)); !errors.Is(err, ErrState) {
			t.Errorf("%s as version 3: %v", k, err)
		}
	}
}
