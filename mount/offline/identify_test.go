package offline

import (
	"os"
	"path/filepath"
	"testing"

	"ftfuse/mount/capture"
)

// Another file system below the mount point has a file with the inode of one that was taken: the
// two were known at once, and a start that came upon the wrong one first took the file again.
func TestAFileWithTheInodeOfAnotherDeviceIsTakenOnce(t *testing.T) {
	for range 16 { // the order of the sources is chance
		r := newRig(t, Options{Keep: true})
		r.write("a.log", "one\n").Close()
		f, err := os.Open(filepath.Join(r.dir, "a.log"))
		r.must(err)
		st, err := statOf(int(f.Fd()))
		r.must(err)
		r.must(f.Close())
		s := st.source("a.log")
		s.Dev, s.Begin, s.Pos = st.dev+1, []byte("of another device\n"), 18
		r.m.sources[1000] = s
		r.must(r.t.Close())
		for range 2 {
			r.open(Options{Keep: true})
			r.must(r.t.TakeAll(t.Context()))
			r.must(r.t.Close())
		}
		r.want("a.log", "one\n")
		if n := r.m.files(); n != 1 {
			t.Errorf("%d files are known, want 1", n)
		}
	}
}

// The same of what was sent.
func TestAFileOfAnotherDeviceIsSentOnce(t *testing.T) {
	for range 16 {
		l, m := local()
		other := capture.Source{Kind: capture.SourceSent, Path: "a", Dev: 1, Ino: 7, Begin: []byte("of another\n"), Pos: 11}
		m.sources[1000] = other
		r := Request{Path: "a", Dev: 2, Ino: 7, Size: 4, Head: []byte("one\n")}
		for i := range 3 {
			b, err := l.Begin(t.Context(), r)
			if err != nil {
				t.Fatal(err)
			}
			if i > 0 {
				if b.Pos != 4 {
					t.Fatalf("begun again at %d, want 4", b.Pos)
				}
				continue
			}
			if err := l.Data(t.Context(), b.ID, 0, r.Head, capture.Fed{}); err != nil {
				t.Fatal(err)
			}
		}
	}
}
