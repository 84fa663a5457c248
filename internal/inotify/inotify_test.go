package inotify

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// The kernel's own events, of names of several lengths, are told apart, and Read ends with the
// descriptor.
func TestEventsOfTheKernel(t *testing.T) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		t.Fatal(err)
	}
	in := os.NewFile(uintptr(fd), "inotify")
	dir := t.TempDir()
	wd, err := unix.InotifyAddWatch(fd, dir, unix.IN_CREATE)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"a", "a name of twenty-five bytes", "0123456789abcdef", "b"}
	for _, name := range want {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	var got []string
	err = Read(in, func(b []byte) {
		for e := range Events(b) {
			if e.Watch != int32(wd) || e.Mask != unix.IN_CREATE {
				t.Errorf("%+v", e)
			}
			got = append(got, string(e.Name))
		}
		if len(got) >= len(want) {
			in.Close()
		}
	})
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("%q, %v", got, err)
	}
}

// What is cut short is no reason to panic.
func TestEventsThatAreCutShort(t *testing.T) {
	whole := make([]byte, unix.SizeofInotifyEvent+16)
	whole[12] = 16
	copy(whole[unix.SizeofInotifyEvent:], "name")
	for n := range len(whole) + 1 {
		count := 0
		for range Events(whole[:n]) {
			count++
		}
		if want := min(1, n/unix.SizeofInotifyEvent); count != want {
			t.Errorf("%d events in %d bytes, want %d", count, n, want)
		}
	}
}
