package spool

import (
	"math/rand/v2"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// storedInto changes a byte of f through a shared mapping of its spool file.
func storedInto(t *testing.T, f *File, at int64) {
	t.Helper()
	page := at / 4096 * 4096
	b, err := unix.Mmap(f.fd, page, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	b[at-page]++
	if err := unix.Munmap(b); err != nil {
		t.Fatal(err)
	}
}

// TestStraysModel: whatever the daemon and the kernel's writers do to a file that is guarded,
// a store through a mapping over bytes that were captured is noticed, and nothing else is.
func TestStraysModel(t *testing.T) {
	const block = 4096
	for seed := range uint64(60) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		s := open(t, t.TempDir(), Options{Readback: 2 * block, PunchEvery: block})
		s.Begin(0)
		f := makeFile(t, s, "a")
		k, fd := kernelOpen(t, s, f, "a", 1)
		h, err := s.OpenHandle(f, "a", Shared, &Meta{PID: 2})
		if err != nil {
			t.Fatal(err)
		}
		captured, guarded, stored := int64(0), false, false
		for range 60 {
			size := f.Size()
			switch op := rnd.IntN(10); {
			case op < 3:
				appendTo(t, fd, strings.Repeat("x", 1+rnd.IntN(3*block)))
			case op < 5 && captured < size:
				to := size
				if rnd.IntN(2) == 0 {
					to = captured + 1 + rnd.Int64N(size-captured)
				}
				if n, err := s.ReadAt(f.Number(), make([]byte, to-captured), captured); n != int(to-captured) || err != nil {
					t.Fatal(n, err)
				}
				captured = to
			case op == 5:
				f.punch.upto = captured
				s.tidy.punch(f)
			case op == 6 && captured > 0:
				at := rnd.Int64N(captured)
				if _, err := h.Overwrite([]byte("over")[:min(4, captured-at)], at); err != nil {
					t.Fatal(err)
				}
			case op == 7 && rnd.IntN(4) == 0 && captured == size:
				to := rnd.Int64N(size + block)
				if err := f.Truncate(to); err != nil {
					t.Fatal(err)
				}
				captured = to
			case op == 8:
				guarded = !guarded
				if guarded {
					err = h.Guard()
				} else {
					err = h.Unguard()
				}
				if err != nil {
					t.Fatal(err)
				}
				if got := s.Strays() > 0; got != stored {
					t.Fatalf("seed %d: strays are noticed: %v, want %v", seed, got, stored)
				}
			case op == 9 && guarded && !stored && captured > 0 && rnd.IntN(4) == 0:
				storedInto(t, f, rnd.Int64N(captured))
				stored = true
			}
		}
		if err := h.Unguard(); err != nil {
			t.Fatal(err)
		}
		if got := s.Strays() > 0; got != stored {
			t.Fatalf("seed %d: strays are noticed: %v, want %v", seed, got, stored)
		}
		k.End(&Meta{})
		h.End(&Meta{})
		f.Release()
		s.Close()
	}
}
