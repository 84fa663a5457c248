package mount

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"ftfuse/mount/spool"
)

// TestACloseInLineModeNotesNothing: each close(2) of a descriptor after a write was noted,
// which costs a place in the journal and a commit, and means something in binary mode only.
func TestACloseInLineModeNotesNothing(t *testing.T) {
	const kinds = "[[mount.rule]]\npath = \"bin/**\"\nmode = \"binary\"\n"
	for name, extra := range map[string]string{
		"open":  kinds,
		"write": kinds + "attribution = \"write\"\n" + perWrite,
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, extra)
			must(t, os.Mkdir(r.path("bin"), 0o755))
			for _, path := range []string{"log", "bin/log"} {
				fd, err := syscall.Open(r.path(path), syscall.O_WRONLY|syscall.O_APPEND|syscall.O_CREAT, 0o644)
				must(t, err)
				for range 3 {
					_, err := syscall.Write(fd, []byte("line\n"))
					must(t, err)
					other, err := syscall.Dup(fd)
					must(t, err)
					must(t, syscall.Close(other))
				}
				must(t, syscall.Close(fd))
			}
			r.stop()
			marks := map[string]int{}
			for _, x := range r.records() {
				if x.data == "" {
					marks[x.Path]++
				}
			}
			if marks["log"] != 0 || marks["bin/log"] != 3 {
				t.Errorf("ends of records: %v, want 3 of bin/log", marks)
			}
			if n := r.notes(spool.Flush); n != 3 {
				t.Errorf("%d notes of a close(2), want 3, of bin/log", n)
			}
		})
	}
}

// notes counts the notes of a kind in the journal (docs/protocol.md) of a daemon that has
// ended.
func (r *rig) notes(k spool.Kind) (n int) {
	r.t.Helper()
	b, err := os.ReadFile(filepath.Join(r.dir, "state", "mount", "journal"))
	must(r.t, err)
	const header, size, kind = 4096, 80, 68
	for at := header; at+size <= len(b); at += size {
		if binary.LittleEndian.Uint64(b[at:]) != 0 && b[at+kind] == byte(k) {
			n++
		}
	}
	return n
}
