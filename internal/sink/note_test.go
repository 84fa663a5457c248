package sink

import (
	"bytes"
	"encoding/hex"
	"errors"
	"os"
	"reflect"
	"strings"
	"testing"

	"ftfuse/internal/output"
)

var goldenID = output.ID{Dev: 0xfe00, Ino: 12345, Birth: 1_700_000_000_000_000_001, Handle: 0x1122334455667788}

var goldenNotes = map[string]note{
	"note-extents": {kind: noteExtents, set: 0x0102030405060708, extents: []extent{
		{era: 0xa1a2a3a4a5a6a7a8, off: 1000, n: 70000, id: goldenID, check: 0xdeadbeef},
		{era: 1, off: 0, n: 5, before: lineState{open: true, mid: 77}, check: 2},
		{check: 3, dead: true},
	}},
	"note-dead": {kind: noteDead},
}

// golden compares got with testdata/NAME.hex; FTFUSE_GOLDEN=write makes it anew, which
// is a change of the format.
func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := "testdata/" + name + ".hex"
	if os.Getenv("FTFUSE_GOLDEN") == "write" {
		must(t, os.MkdirAll("testdata", 0o755))
		must(t, os.WriteFile(path, []byte(hex.Dump(got)), 0o644))
	}
	want, err := os.ReadFile(path)
	must(t, err)
	if hex.Dump(got) != string(want) {
		t.Errorf("%s is\n%swant\n%s", name, hex.Dump(got), want)
	}
}

func TestGoldenNotes(t *testing.T) {
	for name, n := range goldenNotes {
		raw := n.append(nil)
		golden(t, name, raw)
		var back note
		if err := back.parse(raw); err != nil {
			t.Fatal(err)
		}
		back.extents = append([]extent(nil), back.extents...)
		if !reflect.DeepEqual(back, n) {
			t.Errorf("%s reads back as %+v, want %+v", name, back, n)
		}
	}
	shifts := []shift{{from: 10, id: goldenID, at: 20}, {from: 1 << 40, id: output.ID{Ino: 1}, at: 0}}
	raw := appendShifts(nil, shifts)
	golden(t, "shifts", raw)
	if back, err := parseShifts(raw); err != nil || !reflect.DeepEqual(back, shifts) {
		t.Errorf("shifts read back as %+v, %v", back, err)
	}
}

func TestGoldenSet(t *testing.T) {
	t.Setenv("TZ", "UTC")
	s, err := newSet([]Output{output1("/data/ftfuse", nil), output1("/data/all", func(o *Output) { o.File, o.Format = "%{%Y}T.log", "%T %L" })})
	must(t, err)
	golden(t, "set", append(bytes.Replace(s.raw, []byte(`"version":2`), []byte(`"version":1`), 1), '\n'))
	golden(t, "set-2", append(bytes.Clone(s.raw), '\n'))
	back, err := parseSet(s.raw)
	must(t, err)
	if back.id != s.id || len(back.outputs) != 2 || !back.outputs[0].exact || back.outputs[0].mixes || !back.outputs[1].mixes || back.outputs[1].static {
		t.Errorf("the set reads back as %+v", back)
	}
	if _, err := parseSet([]byte(strings.Replace(string(s.raw), `"version":2`, `"version":3`, 1))); !errors.Is(err, errSet) {
		t.Errorf("a set of another version: %v", err)
	}
}

// TestDamagedNoteIsFound flips every bit and cuts at every byte.
func TestDamagedNoteIsFound(t *testing.T) {
	n := goldenNotes["note-extents"]
	raw := n.append(nil)
	var back note
	for i := range raw {
		for bit := range 8 {
			bad := bytes.Clone(raw)
			bad[i] ^= 1 << bit
			if err := back.parse(bad); !errors.Is(err, errNote) {
				t.Fatalf("byte %d, bit %d flipped: %v", i, bit, err)
			}
		}
		if err := back.parse(raw[:i]); !errors.Is(err, errNote) {
			t.Fatalf("cut to %d bytes: %v", i, err)
		}
	}
}

func FuzzNote(f *testing.F) {
	for _, n := range goldenNotes {
		f.Add(n.append(nil))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		var n note
		if n.parse(raw) == nil {
			var again note
			if err := again.parse(n.append(nil)); err != nil || len(again.extents) != len(n.extents) {
				t.Fatalf("%+v reads back as %+v, %v", n, again, err)
			}
		}
		_, _ = parseShifts(raw)
		_, _ = parseSet(raw)
	})
}
