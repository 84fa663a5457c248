package nullfs_test

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"ftfuse/mount/nullfs"
)

// What is written is counted, the size follows as on any file system, and nothing is kept.
func TestWritesAreCountedAndThrownAway(t *testing.T) {
	if f, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0); err != nil {
		t.Skipf("needs /dev/fuse: %v", err)
	} else {
		f.Close()
	}
	dir := t.TempDir()
	fs, err := nullfs.Mount(dir)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- fs.Serve(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	f, err := os.OpenFile(filepath.Join(dir, "a.log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	block := make([]byte, 64<<10)
	for range 16 {
		if n, err := f.Write(block); err != nil || n != len(block) {
			t.Fatalf("wrote %d of %d bytes: %v", n, len(block), err)
		}
	}
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	if st.Size() != 1<<20 || fs.Bytes() != 1<<20 {
		t.Fatalf("size %d, thrown away %d, want %d of both", st.Size(), fs.Bytes(), 1<<20)
	}
	if got, err := os.ReadFile(filepath.Join(dir, "a.log")); err != nil || len(got) != 0 {
		t.Fatalf("read %d bytes back (%v), want none: nothing is kept", len(got), err)
	}
}
