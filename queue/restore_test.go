package queue

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

// spoilNewest damages segment num: the meta page of its newest commit (or of the one
// before), and the root page of the newest where root is set.
func spoilNewest(t *testing.T, path string, newest, root bool) {
	t.Helper()
	p, err := openPages(path)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if len(p.metas) != 2 {
		t.Fatalf("%d meta pages are valid", len(p.metas))
	}
	meta := p.metas[0]
	if !newest {
		meta = p.metas[1]
	}
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte("damage"), int64(meta.txid%2)*p.pageSize+pageHeader); err != nil {
		t.Fatal(err)
	}
	if root {
		if _, err := f.WriteAt([]byte("damage"), int64(p.metas[0].root)*p.pageSize+pageHeader); err != nil {
			t.Fatal(err)
		}
	}
}

func newestSegment(t *testing.T, dir string) string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*"+segmentExt))
	if err != nil || len(files) == 0 {
		t.Fatalf("%d segments, %v", len(files), err)
	}
	return files[len(files)-1]
}

// TestLostMetaPageLosesNothing: of the newest commit only the meta page is damaged. It is
// found by its root page, however many commits the segment has had; where the root page
// is gone as well the queue goes on from the commit before, and says so.
func TestLostMetaPageLosesNothing(t *testing.T) {
	for _, root := range []bool{false, true} {
		for commits := range 12 {
			t.Run(fmt.Sprintf("%d-%v", commits, root), func(t *testing.T) {
				dir := t.TempDir()
				q := mustOpen(t, dir, corruptOptions())
				c := mustCursor(t, q, "out")
				var n uint64
				for range commits {
					for range 3 {
						n++
						mustSubmit(t, q, &Txn{Entries: []Entry{testEntry(1, n, 3000)}, Set: []KV{{"n", fmt.Append(nil, n)}}})
					}
					mustFlush(t, q)
					c.Ack(mustNext(t, c).Seq)
				}
				image := filepath.Join(t.TempDir(), "image") // as a kill leaves it: what Close commits is missing
				if err := os.CopyFS(image, os.DirFS(dir)); err != nil {
					t.Fatal(err)
				}
				mustClose(t, q)
				spoilNewest(t, newestSegment(t, image), true, root)
				if _, err := Open(image, corruptOptions()); !errors.Is(err, ErrNewestDamaged) {
					t.Fatalf("open: %v", err)
				}
				rep, err := Repair(image)
				if root {
					if err == nil && (rep.Repair == nil || rep.Repair.Whole) || err != nil && commits > 0 {
						t.Fatalf("repair without the root page: %+v, %v", rep.Repair, err)
					}
					return
				}
				if err != nil || rep.Repair == nil || !rep.Repair.Whole || rep.Repair.StateSeq != n || rep.Repair.LostCount != 0 {
					t.Fatalf("repair: %+v, %v; want %d entries", rep.Repair, err, n)
				}
				checkAll(t, image, n)
			})
		}
	}
}

// checkAll opens a queue that was repaired and looks for n entries, each with its place in
// the delivered set.
func checkAll(t *testing.T, dir string, n uint64) {
	t.Helper()
	q := mustOpen(t, dir, corruptOptions())
	defer mustClose(t, q)
	if _, ok := q.Get(RepairedKey); ok {
		t.Error("the role is told of a repair that lost nothing")
	}
	if v, _ := q.Get("n"); n > 0 && string(v) != fmt.Sprint(n) {
		t.Errorf("the state is as of %q, want %d", v, n)
	}
	for i := uint64(1); i <= n; i++ {
		if s := mustSubmit(t, q, &Txn{Entries: []Entry{testEntry(1, i, 3000)}}); s != Duplicate {
			t.Errorf("entry %d was taken again: %v", i, s)
		}
	}
	c := mustCursor(t, q, "out")
	last := uint64(0)
	for q := c; !q.atEnd() && last < n; {
		last = mustNext(t, c).Seq
	}
	if last != n {
		t.Errorf("the newest entry given is %d, want %d", last, n)
	}
}

// TestHalfACommitIsNotTaken: the pages of the newest commit are there but one, which holds
// a batch: its id must not be in the delivered set, since its source may send it again.
func TestHalfACommitIsNotTaken(t *testing.T) {
	dir := t.TempDir()
	q := mustOpen(t, dir, corruptOptions())
	var entries []Entry
	for n := uint64(1); n <= 3; n++ {
		entries = append(entries, testEntry(1, n, 3000))
		mustSubmit(t, q, &Txn{Entries: entries[n-1:]})
		mustFlush(t, q)
	}
	image := filepath.Join(t.TempDir(), "image")
	if err := os.CopyFS(image, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	mustClose(t, q)
	path := newestSegment(t, image)
	spoilNewest(t, path, true, false)
	spoilData(t, path, entries[2].Batch.Data)
	rep, err := Repair(image)
	if err != nil || rep.Repair == nil || rep.Repair.Whole || rep.Repair.StateSeq != 2 {
		t.Fatalf("repair: %+v, %v", rep.Repair, err)
	}
	q = mustOpen(t, image, corruptOptions())
	if s := mustSubmit(t, q, &Txn{Entries: entries[2:]}); s != Fresh {
		t.Errorf("the batch that was lost with its commit is not taken again: %v", s)
	}
	mustClose(t, q)
}

// spoilData changes one byte of data wherever it stands in the file.
func spoilData(t *testing.T, path string, data []byte) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	found := false
	for off := 0; ; found = true {
		i := bytes.Index(b[off:], data)
		if i < 0 {
			break
		}
		b[off+i+len(data)/2] ^= 1
		off += i + len(data)
	}
	if !found {
		t.Fatal("the batch is not in the file")
	}
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}
