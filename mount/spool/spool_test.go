package spool

import (
	"bytes"
	"context"
	"testing"
)

func open(t *testing.T, dir string, o Options) *Store {
	t.Helper()
	s, err := Open(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestWriteNoteRead(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, Options{})
	if r := s.Begin(0); r.Entries != 0 || r.From <= r.To {
		t.Fatalf("fresh journal: %+v", r)
	}
	f, err := s.Create("a.log", 0o640, ^uint32(0), ^uint32(0))
	if err != nil {
		t.Fatal(err)
	}
	h, err := s.OpenWriter(f, "a.log")
	if err != nil {
		t.Fatal(err)
	}
	for i, line := range []string{"one\n", "two\n", "three\n"} {
		n, err := h.Write([]byte(line), 0, true, &Meta{PID: 7, Time: int64(i)})
		if n != len(line) || err != nil {
			t.Fatal(n, err)
		}
	}
	if err := s.Wait(context.Background(), 3); err != nil {
		t.Fatal(err)
	}
	es := s.Entries(make([]Entry, 0, 10), 1)
	if len(es) != 3 || es[2].Path != "a.log" || es[2].Off != 8 || es[2].Len != 6 || es[2].PID != 7 {
		t.Fatalf("%+v", es)
	}
	b := make([]byte, 14)
	if _, err := s.ReadAt(f.Number(), b, 0); err != nil || !bytes.Equal(b, []byte("one\ntwo\nthree\n")) {
		t.Fatal(string(b), err)
	}
	s.Committed(2)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, dir, Options{})
	defer s.Close()
	if r := s.Begin(2); r.Entries != 1 || r.From != 3 || r.To != 3 {
		t.Fatalf("%+v", r)
	}
	if es := s.Entries(make([]Entry, 0, 10), 3); len(es) != 1 || es[0].Path != "a.log" {
		t.Fatalf("%+v", es)
	}
	var fs []FileInfo
	if s.Files(func(i FileInfo) bool { fs = append(fs, i); return true }); len(fs) != 1 || fs[0].Path != "a.log" || fs[0].Size != 14 {
		t.Fatalf("%+v", fs)
	}
}
