package flock

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func open(t *testing.T, path string) *os.File {
	t.Helper()
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

// inherited is what a child has of f between its fork and its exec.
func inherited(t *testing.T, f *os.File) *os.File {
	t.Helper()
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	c := os.NewFile(uintptr(fd), "inherited")
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func TestOneHasIt(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	f, err := Open(path, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	inherited(t, f.File)
	if _, err := Open(path, 0o600); !errors.Is(err, ErrHeld) {
		t.Fatalf("the second one gets %v, want ErrHeld", err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if f, err = Open(path, 0o600); err != nil {
		t.Fatalf("it was given up, whatever a child has: %v", err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestALockOutlivedWhoWasKilled: while it started a program, which has the lock for a moment.
func TestALockOutlivedWhoWasKilled(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	killed := open(t, path)
	if err := Lock(int(killed.Fd())); err != nil {
		t.Fatal(err)
	}
	child := inherited(t, killed)
	if err := killed.Close(); err != nil {
		t.Fatal(err)
	}
	time.AfterFunc(patience/10, func() { _ = child.Close() })
	if err := Lock(int(open(t, path).Fd())); err != nil {
		t.Fatal(err)
	}
}
