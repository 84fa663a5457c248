package queue

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"testing"
	"testing/iotest"

	"ftfuse/internal/batch"
	"ftfuse/internal/failpoint"
)

// exported returns an export of n batches of lane 1, and where each item of it ends.
func exported(t *testing.T, n uint64) (stream []byte, ends []int, entries []Entry) {
	t.Helper()
	q := mustOpen(t, t.TempDir(), Options{})
	for i := uint64(1); i <= n; i++ {
		entries = append(entries, testEntry(1, i, int(i)*40))
	}
	mustSubmit(t, q, &Txn{Entries: entries})
	mustFlush(t, q)
	var out bytes.Buffer
	sum, err := q.Export(t.Context(), &out, "out")
	if err != nil || sum.Batches != n {
		t.Fatalf("%+v, %v", sum, err)
	}
	at := exportHeader
	for i := range entries {
		ends = append(ends, at)
		e := Entry{Batch: entries[i].Batch} // without its note
		at += 5 + len(appendHead(nil, 1, &e)) + len(e.Batch.Data)
	}
	return out.Bytes(), append(ends, at), entries
}

// readAll reads an export to its end.
func readAll(r io.Reader) (all []batch.Sealed, err error) {
	x, err := NewExportReader(r)
	for err == nil {
		var s batch.Sealed
		if s, err = x.Next(); err == nil {
			all = append(all, s)
		}
	}
	return all, err
}

func TestExportComesBackAsItWas(t *testing.T) {
	stream, _, entries := exported(t, 30)
	for name, r := range map[string]io.Reader{"whole": bytes.NewReader(stream), "byte by byte": iotest.OneByteReader(bytes.NewReader(stream))} {
		all, err := readAll(r)
		if err != io.EOF || len(all) != 30 {
			t.Fatalf("%s: %d batches, %v", name, len(all), err)
		}
		for i, s := range all {
			w := entries[i].Batch
			if s.ID != w.ID || !bytes.Equal(s.Data, w.Data) || s.Host != w.Host || !slices.Equal(s.Via, w.Via) || s.Flags != w.Flags|batch.FlagResent || s.Time != w.Time || s.Records != w.Records || s.Payload != w.Payload {
				t.Errorf("%s: batch %d is %+v", name, i, s)
			}
		}
	}
}

// TestCutExport: at each length, what is whole comes out, and the end is not taken for one.
func TestCutExport(t *testing.T) {
	stream, ends, _ := exported(t, 5)
	for n := range len(stream) {
		all, err := readAll(bytes.NewReader(stream[:n]))
		want := 0
		for want < 5 && ends[want+1] <= n {
			want++
		}
		if kind := ErrExportCut; n >= 8 && !errors.Is(err, kind) || n < 8 && !errors.Is(err, ErrNoExport) || len(all) != want {
			t.Fatalf("%d of %d bytes: %d batches, want %d, %v", n, len(stream), len(all), want, err)
		}
	}
}

// TestFlippedExport: no flipped bit is taken for what was written.
func TestFlippedExport(t *testing.T) {
	stream, _, entries := exported(t, 3)
	for at := range stream {
		for bit := range 8 {
			b := bytes.Clone(stream)
			b[at] ^= 1 << bit
			all, err := readAll(bytes.NewReader(b))
			if err == io.EOF || !errors.Is(err, ErrExportDamaged) && !errors.Is(err, ErrExportCut) && !errors.Is(err, ErrNoExport) {
				t.Fatalf("bit %d of byte %d: %v", bit, at, err)
			}
			for i, s := range all {
				if !bytes.Equal(s.Data, entries[i].Batch.Data) || s.ID != entries[i].Batch.ID {
					t.Fatalf("bit %d of byte %d: batch %d came wrong", bit, at, i)
				}
			}
		}
	}
}

// TestExportWithABatchTakenOutIsNotWhole: each item of it is good by itself.
func TestExportWithABatchTakenOutIsNotWhole(t *testing.T) {
	stream, ends, _ := exported(t, 5)
	all, err := readAll(bytes.NewReader(slices.Concat(stream[:ends[2]], stream[ends[3]:])))
	if len(all) != 4 || !errors.Is(err, ErrExportDamaged) {
		t.Errorf("%d batches, %v", len(all), err)
	}
}

// TestGoldenExport: the bytes of docs/protocol.md, "Export". FTFUSE_GOLDEN=1 writes anew.
func TestGoldenExport(t *testing.T) {
	const golden = "testdata/export-v1"
	b, err := os.ReadFile(golden)
	if os.Getenv("FTFUSE_GOLDEN") != "" {
		q := mustOpen(t, t.TempDir(), Options{})
		mustSubmit(t, q, &Txn{Entries: goldenEntries()})
		mustFlush(t, q)
		var out bytes.Buffer
		if _, err := q.Export(t.Context(), &out, ""); err != nil {
			t.Fatal(err)
		}
		b, err = out.Bytes(), os.WriteFile(golden, out.Bytes(), 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
	all, err := readAll(bytes.NewReader(b))
	if err != io.EOF || len(all) != 3 {
		t.Fatalf("%d batches, %v", len(all), err)
	}
	for i, w := range goldenEntries() {
		if s := all[i]; s.ID != w.Batch.ID || string(s.Data) != string(w.Batch.Data) || s.Host != w.Batch.Host || s.Flags != 1 || len(s.Via) != len(w.Batch.Via) {
			t.Errorf("batch %d is %+v", i, s)
		}
	}
}

func FuzzExport(f *testing.F) {
	b, err := os.ReadFile("testdata/export-v1")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add(b[:exportHeader])
	f.Fuzz(func(t *testing.T, b []byte) {
		all, err := readAll(bytes.NewReader(b))
		if err == nil {
			t.Fatal("no end and no error")
		}
		for _, s := range all {
			if batch.Checksum(s.Data) != s.CRC {
				t.Fatal("a batch with a wrong CRC")
			}
		}
	})
}

// TestViewOfAStoppedQueue lists and exports what Open would give, and changes nothing.
func TestViewOfAStoppedQueue(t *testing.T) {
	dir := t.TempDir()
	twoCursors(t, dir)
	before, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		v, err := OpenView(dir)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := OpenView(dir); !errors.Is(err, ErrLocked) {
			t.Errorf("opened twice: %v", err)
		}
		got := map[string][]uint64{}
		for _, name := range []string{"", "a", "b"} {
			if err := v.List(t.Context(), name, func(l Listed) error { got[name] = append(got[name], l.Seq); return l.Err }); err != nil {
				t.Fatal(err)
			}
		}
		if want := map[string][]uint64{"": {1, 3, 4, 5}, "a": {3, 4, 5}, "b": {1, 3, 5}}; fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("listed %v, want %v", got, want)
		}
		if err := v.List(t.Context(), "c", nil); !errors.Is(err, ErrNoCursor) {
			t.Errorf("cursor c: %v", err)
		}
		if s := v.Stats(); len(s.Cursors) != 2 || s.Cursors[0].Waiting.Batches != 3 {
			t.Errorf("stats %+v", s)
		}
		var out bytes.Buffer
		if sum, err := v.Export(t.Context(), &out, ""); err != nil || sum.Batches != 4 {
			t.Errorf("export: %+v, %v", sum, err)
		}
		if err := v.Close(); err != nil {
			t.Fatal(err)
		}
	}
	after, err := os.ReadDir(dir)
	if err != nil || len(after) != len(before) {
		t.Errorf("files before %v, after %v, %v", before, after, err)
	}
}

// TestExportLeavesOutWhatCannotBeRead, and says so.
func TestExportLeavesOutWhatCannotBeRead(t *testing.T) {
	dir := t.TempDir()
	q := mustOpen(t, dir, Options{})
	var entries []Entry
	for n := uint64(1); n <= 3; n++ {
		entries = append(entries, testEntry(1, n, 3000))
	}
	mustSubmit(t, q, &Txn{Entries: entries})
	mustClose(t, q)
	spoilData(t, newestSegment(t, dir), entries[1].Batch.Data)
	q = mustOpen(t, dir, Options{})
	var out bytes.Buffer
	sum, err := q.Export(t.Context(), &out, "")
	if err != nil || sum.Batches != 2 || sum.Unreadable != 1 {
		t.Fatalf("%+v, %v", sum, err)
	}
	r, err := q.Verify(t.Context())
	if err != nil || !r.Damaged() || r.Lost() != 1 || r.Segments[0].Bad[0].ID != entries[1].Batch.ID {
		t.Errorf("verify: %+v, %v", r, err)
	}
	if s := q.Stats(); len(s.Losses) != 0 || s.Live.Batches != 3 {
		t.Errorf("looking counts as loss: %+v", s)
	}
	other := mustOpen(t, t.TempDir(), Options{Dedupe: true})
	did, err := other.Import(t.Context(), &out)
	if err != nil || did.Batches != 2 || did.Unreadable != 1 {
		t.Errorf("import: %+v, %v", did, err)
	}
}

// TestImportOfWhatPassedThroughHereBefore: this relay had passed the batches to the host
// that died; nobody else has them.
func TestImportOfWhatPassedThroughHereBefore(t *testing.T) {
	stream, _, entries := exported(t, 10)
	q := mustOpen(t, t.TempDir(), Options{Dedupe: true, OnFull: DropNewest})
	mustSubmit(t, q, &Txn{Entries: slices.Clone(entries[:4])})
	mustFlush(t, q)
	ackSome(t, q, "out", 1, 2, 3, 4)
	conflict := testEntry(1, 5, 77)
	mustSubmit(t, q, &Txn{Entries: []Entry{conflict}})
	did, err := q.Import(t.Context(), bytes.NewReader(stream))
	if err != nil || did.Batches != 9 || !slices.Equal(did.Conflicts, []batch.ID{conflict.Batch.ID}) {
		t.Fatalf("%+v, %v", did, err)
	}
	if got := left(t, q, "out"); !slices.Equal(got, []uint64{5, 1, 2, 3, 4, 6, 7, 8, 9, 10}) {
		t.Errorf("queued are %v", got)
	}
	if d := q.Delivered(testLane(1)); d.String() != "1-10" {
		t.Errorf("delivered %v", &d)
	}
}

func TestImportWaitsForRoomWhateverThePolicy(t *testing.T) {
	stream, _, _ := exported(t, 30)
	for _, p := range []Policy{Error, DropNewest, DropOldest} {
		q := mustOpen(t, t.TempDir(), Options{MaxBytes: 6000, OnFull: p})
		ended := make(chan error, 1)
		go func() {
			did, err := q.Import(context.Background(), bytes.NewReader(stream))
			if err == nil && did.Batches != 30 {
				err = fmt.Errorf("imported %+v", did)
			}
			ended <- err
		}()
		c := mustCursor(t, q, "out")
		for n := uint64(1); n <= 30; n++ {
			it := mustNext(t, c)
			if it.Batch.ID.N != n {
				t.Fatalf("policy %v: got %d, want %d", p, it.Batch.ID.N, n)
			}
			c.Ack(it.Seq)
		}
		if err := <-ended; err != nil {
			t.Errorf("policy %v: %v", p, err)
		}
		mustClose(t, q)
	}
}

// TestAnImportThatFailsIsMadeAgain: the second one completes it, and what stands twice has
// one id.
func TestAnImportThatFailsIsMadeAgain(t *testing.T) {
	stream, _, _ := exported(t, 40)
	dir := t.TempDir()
	o := Options{Dedupe: true, CommitBytes: 1, PendingBytes: 4000}
	q := mustOpen(t, dir, o)
	if err := failpoint.Set("queue/commit-after", "error@3"); err != nil {
		t.Fatal(err)
	}
	did, err := q.Import(t.Context(), bytes.NewReader(stream))
	failpoint.Clear("queue/commit-after")
	if !errors.Is(err, ErrFailed) {
		t.Fatalf("%+v, %v", did, err)
	}
	_ = q.Close()
	q = mustOpen(t, dir, o)
	if got := left(t, q, "out"); len(got) == 0 || len(got) == 40 {
		t.Fatalf("%d batches after the failed import", len(got))
	}
	if did, err = q.Import(t.Context(), bytes.NewReader(stream)); err != nil || did.Batches != 40 {
		t.Fatalf("%+v, %v", did, err)
	}
	got := left(t, q, "out")
	slices.Sort(got)
	if got = slices.Compact(got); len(got) != 40 {
		t.Errorf("%d of 40 are queued", len(got))
	}
}

// TestImportOfACutExport takes what is whole and says that it is not all.
func TestImportOfACutExport(t *testing.T) {
	stream, ends, _ := exported(t, 10)
	q := mustOpen(t, t.TempDir(), Options{})
	did, err := q.Import(t.Context(), bytes.NewReader(stream[:ends[7]+20]))
	if !errors.Is(err, ErrExportCut) || did.Batches != 7 {
		t.Errorf("%+v, %v", did, err)
	}
	if got := left(t, q, "out"); len(got) != 7 {
		t.Errorf("%v are queued", got)
	}
}
