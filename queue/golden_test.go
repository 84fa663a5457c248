package queue

import (
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"ftfuse/internal/batch"
)

// goldenEntries are what testdata/v2 holds. They may not change: the format on disk may
// not either, without a new version.
func goldenEntries() []Entry {
	make1 := func(n uint64, data string, note string, via ...batch.Node) Entry {
		l := batch.Lane{Origin: batch.Origin{1, 2, 3}, Epoch: batch.Epoch{Counter: 4, Random: 5}, Route: 6, Bucket: 7}
		e := Entry{Batch: batch.Sealed{
			ID: batch.ID{Lane: l, N: n}, CRC: batch.Checksum([]byte(data)), Flags: 1, Records: uint32(n) + 8, Payload: 9, Time: 10, Via: via, Host: []string{"", "web-01", "web-02"}[n-1], Data: []byte(data),
		}}
		if note != "" {
			e.Note = []byte(note)
		}
		return e
	}
	return []Entry{make1(1, "first", "a note"), make1(2, "", "", batch.Node{0xaa}), make1(3, "third", "", batch.Node{0xaa}, batch.Node{0xbb})}
}

// TestHeadIsAsDocumented: the bytes of docs/protocol.md, "Entry head".
func TestHeadIsAsDocumented(t *testing.T) {
	e := goldenEntries()[2]
	got := hex.EncodeToString(appendHead(nil, 0x1234, &e))
	const want = "0202" + "0100" + "47695a09" + "0b000000" + "05000000" + "3412000000000000" + "0900000000000000" + "0a00000000000000" +
		"01020300000000000000000000000000" + "0400000000000000" + "0500000000000000" + "06000000" + "07000000" + "0300000000000000" +
		"aa000000000000000000000000000000" + "bb000000000000000000000000000000" + "067765622d3032" + "e2d2959b"
	if got != want {
		t.Fatalf("head is\n%s, want\n%s", got, want)
	}
	h, err := parseHead(appendHead(nil, 0x1234, &e))
	if err != nil || h.seq != 0x1234 || h.e.Batch.ID != e.Batch.ID || len(h.e.Batch.Via) != 2 || h.e.Batch.Host != "web-02" {
		t.Fatalf("read back as %+v, %v", h, err)
	}
}

// TestGoldenSegmentOpens opens a queue of this format. FTFUSE_GOLDEN=1
// writes it anew.
func TestGoldenSegmentOpens(t *testing.T) {
	o := Options{Dedupe: true, Cursors: []string{"out"}, ReserveBytes: 1}
	const golden = "testdata/v2"
	if os.Getenv("FTFUSE_GOLDEN") != "" {
		writeGolden(t, golden, o)
	}
	dir := t.TempDir()
	if err := os.CopyFS(filepath.Join(dir, "q"), os.DirFS(golden)); err != nil {
		t.Fatal(err)
	}
	dir = filepath.Join(dir, "q")
	node, err := os.ReadFile(filepath.Join(dir, "lock"))
	if err != nil {
		t.Fatal(err)
	}
	q := mustOpen(t, dir, o)
	if q.Node().String()+"\n" != string(node) {
		t.Fatalf("node %v, want %s", q.Node(), node)
	}
	if v, ok := q.Get("key"); !ok || string(v) != "value" {
		t.Fatalf("key is %q", v)
	}
	if v, ok := q.Get("empty"); !ok || len(v) != 0 {
		t.Fatalf("empty is %q, %v", v, ok)
	}
	want := goldenEntries()
	if d := q.Delivered(want[0].Batch.ID.Lane); d.String() != "1-3" {
		t.Fatalf("delivered %v", d.String())
	}
	if h := q.Host(want[0].Batch.ID.Lane); h != "web-01" { // the first has none
		t.Fatalf("the lane is of host %q", h)
	}
	c := mustCursor(t, q, "out")
	for _, i := range []int{0, 2} { // 2 was acked
		it := mustNext(t, c)
		w := want[i]
		if it.Batch.ID != w.Batch.ID || string(it.Batch.Data) != string(w.Batch.Data) || string(it.Note) != string(w.Note) ||
			len(it.Batch.Via) != len(w.Batch.Via) || it.Batch.Records != w.Batch.Records || it.Batch.Host != w.Batch.Host || it.Batch.Flags != 1 || it.Batch.Payload != 9 || it.Batch.Time != 10 {
			t.Fatalf("got %+v, want %+v", it, w)
		}
	}
}

// TestAnOlderFormatIsRefusedByName: testdata/v1 is what the version before wrote.
func TestAnOlderFormatIsRefusedByName(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "q")
	if err := os.CopyFS(dir, os.DirFS("testdata/v1")); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(dir, Options{Cursors: []string{"out"}}); !errors.Is(err, ErrVersion) || errors.Is(err, ErrNewestDamaged) {
		t.Fatalf("open: %v, want ErrVersion", err)
	}
	if _, err := Repair(dir); !errors.Is(err, ErrVersion) {
		t.Fatalf("repair: %v, want ErrVersion", err)
	}
}

func writeGolden(t *testing.T, golden string, o Options) {
	t.Helper()
	dir := t.TempDir()
	q := mustOpen(t, dir, o)
	for _, e := range goldenEntries() {
		mustSubmit(t, q, &Txn{Entries: []Entry{e}, Set: []KV{{"key", []byte("value")}, {"empty", []byte{}}}})
	}
	mustFlush(t, q)
	c := mustCursor(t, q, "out")
	mustNext(t, c)
	c.Ack(mustNext(t, c).Seq)
	mustClose(t, q)
	if err := os.MkdirAll(golden, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{segmentName(1), "lock"} {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if name != "lock" {
			b = b[:highWater(t, filepath.Join(dir, name))]
		}
		if err := os.WriteFile(filepath.Join(golden, name), b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
}
