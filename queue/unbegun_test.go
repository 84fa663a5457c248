package queue

import (
	"bytes"
	"encoding/hex"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"ftfuse/internal/batch"
)

// TestAKillBeforeACursorBegins: its consumer is begun by a second call, and a start does what
// that call would have: it needs nothing that all others passed meanwhile, which was sent again;
// and without it nothing counts as lost that others wanted and passed, as it did.
func TestAKillBeforeACursorBegins(t *testing.T) {
	dir := t.TempDir()
	twoCursors(t, dir) // a needs 3, 4, 5, b needs 1, 3, 5
	q := mustOpen(t, dir, Options{Cursors: []string{"a", "b"}})
	mustSetCursors(t, q, CursorSet{Cursors: []string{"a", "b", "x", "y"}, Later: []string{"x", "y"}})
	mustSubmit(t, q, &Txn{Entries: []Entry{testEntry(1, 6, 100)}})
	mustFlush(t, q)
	ackSome(t, q, "a", 3, 4, 6)
	ackSome(t, q, "b", 3, 5, 6)
	mustCommit(t, q)
	image := func() string {
		to := filepath.Join(t.TempDir(), "q")
		if err := os.CopyFS(to, os.DirFS(dir)); err != nil {
			t.Fatal(err)
		}
		return to
	}
	for _, cursors := range [][]string{{"a", "b", "x", "y"}, {"x", "y"}, {"b", "x"}, {"a", "b"}} {
		killed := image()
		for range 2 {
			q := mustOpen(t, killed, Options{Cursors: cursors})
			settled(q)
			for name, want := range map[string][]uint64{"a": {5}, "b": {1}, "x": {1, 5, 6}, "y": {1, 5, 6}} {
				if !slices.Contains(cursors, name) {
					continue
				}
				if got := left(t, q, name); !slices.Equal(got, want) {
					t.Errorf("%v: %s needs %v, want %v", cursors, name, got, want)
				}
			}
			if got := q.Stats().Losses; len(got) != 0 {
				t.Errorf("%v: lost %+v", cursors, got)
			}
			mustClose(t, q)
		}
		checkBolt(t, killed)
	}
	mustClose(t, q)
}

// TestGoldenUnbegunCursor: the record of a cursor that waits for its consumer.
func TestGoldenUnbegunCursor(t *testing.T) {
	const golden = "testdata/cursor-unbegun.hex"
	c := newCursor(&Queue{segs: []*segment{{num: 3, first: 6, last: 9}}}, "x")
	c.acked.AddRange(batch.Range{First: 1, Last: 5})
	c.acked.Add(7)
	c.parts[3] = tally{1, 2, 300, 350}
	c.unbegun, c.base = true, 8
	if os.Getenv("FTFUSE_GOLDEN") != "" {
		if err := os.WriteFile(golden, []byte(hex.EncodeToString(c.encode())+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	text, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	b, err := hex.DecodeString(string(bytes.TrimSpace(text)))
	if err != nil || !bytes.Equal(b, c.encode()) {
		t.Errorf("the record is %x, want %x, %v", c.encode(), b, err)
	}
	var r cursorRecord
	if err := r.parse(b); err != nil || !r.unbegun || r.base != 8 || len(r.parts) != 1 || r.parts[3] != c.parts[3] || r.acked.String() != "1-5,7" {
		t.Errorf("read as %+v, %v", r, err)
	}
}
