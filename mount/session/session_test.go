package session

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

var update = flag.Bool("update", false, "rewrite golden files")

func open(t testing.TB, path string) *Session {
	t.Helper()
	s, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if s.mem != nil {
			s.Close()
		}
	})
	return s
}

// begun is a new session, empty.
func begun(t testing.TB) (*Session, ID) {
	s := open(t, filepath.Join(t.TempDir(), "session"))
	id := NewID()
	if err := s.Begin(id, 17); err != nil {
		t.Fatal(err)
	}
	return s, id
}

// again is what a successor finds.
func again(t testing.TB, s *Session, id ID) *Session {
	t.Helper()
	n := open(t, s.path)
	if err := n.Resume(id); err != nil {
		t.Fatal(err)
	}
	return n
}

func add(t testing.TB, s *Session, h Handle) Handle {
	t.Helper()
	var err error
	if h.ID, err = s.Reserve(); err != nil {
		t.Fatal(err)
	}
	if err := s.Store(&h); err != nil {
		t.Fatal(err)
	}
	return h
}

func sorted(hs []Handle) []Handle {
	slices.SortFunc(hs, func(a, b Handle) int { return Index(a.ID) - Index(b.ID) })
	return hs
}

func TestASuccessorFindsHandlesAndLocks(t *testing.T) {
	s, id := begun(t)
	want := []Handle{
		{Kind: Dir, Node: 1, Path: ""},
		{Kind: Read, File: 7, Node: 15, Path: "a/b", Unique: 5},
		{Kind: Write, Mode: 2, Reply: 0x81, File: 7, Node: 15, Path: "a/b", Writer: 99, Unique: 8, Flags: 0x8401, Backing: 3, PID: 4, UID: 5, GID: 6, Time: 1 << 60, Poll: 0},
		{Kind: Write, File: 8, Node: 17 | 1<<41, Path: strings.Repeat("p", 4000), Writer: 1 << 50},
	}
	for i := range want {
		want[i] = add(t, s, want[i])
	}
	s.SetPoll(want[2].ID, 77)
	want[2].Poll = 77
	locks := []Lock{{Owner: 1 << 63, Start: 0, End: ^uint64(0), Type: 1, Flock: true}, {Owner: 2, Start: 5, End: 9, Type: 0, PID: -1}}
	if err := s.SetLocks(7, locks); err != nil {
		t.Fatal(err)
	}
	n := again(t, s, id)
	got, err := n.Handles()
	if err != nil || !reflect.DeepEqual(sorted(got), sorted(want)) {
		t.Fatalf("%+v, %v\nwant %+v", got, err, want)
	}
	if got := n.Locks(); !reflect.DeepEqual(got, map[uint64][]Lock{7: locks}) {
		t.Fatalf("%+v", got)
	}
	if n.Since() != 17 {
		t.Fatal(n.Since())
	}
	live, err := n.Live()
	if err != nil || !live(99) || !live(1<<50) || live(0) {
		t.Fatal(err, live(99), live(1<<50), live(0))
	}
}

func TestAnotherConnectionOrBootIsNotResumed(t *testing.T) {
	s, id := begun(t)
	if err := open(t, s.path).Resume(NewID()); !errors.Is(err, ErrOther) {
		t.Errorf("another id: %v", err)
	}
	if err := open(t, s.path).Resume(ID{}); !errors.Is(err, ErrOther) {
		t.Errorf("no id: %v", err)
	}
	s.mem[hdrBoot]++
	seal(s.mem)
	if err := open(t, s.path).Resume(id); !errors.Is(err, ErrOther) {
		t.Errorf("another boot: %v", err)
	}
	if err := s.End(); err != nil {
		t.Fatal(err)
	}
	if err := open(t, s.path).Resume(id); !errors.Is(err, ErrOther) {
		t.Errorf("ended: %v", err)
	}
	fresh := open(t, filepath.Join(t.TempDir(), "session"))
	if err := fresh.Resume(ID{}); !errors.Is(err, ErrOther) {
		t.Errorf("never begun: %v", err)
	}
}

func TestBadFilesAreErrorsThatNameThem(t *testing.T) {
	s, id := begun(t)
	add(t, s, Handle{Kind: Write, File: 1, Node: 3, Path: "some/path", Writer: 9})
	if err := s.SetLocks(1, []Lock{{Owner: 1, End: 4}}); err != nil {
		t.Fatal(err)
	}
	bytesOf := bytes.Clone(s.mem)
	try := func(what string, change func(b []byte) []byte) {
		t.Helper()
		path := filepath.Join(t.TempDir(), "session")
		was := map[int][]byte{} // what change may change, to have it back
		for _, at := range []int{0, slotsAt, locksAt, pathsAt} {
			was[at] = bytes.Clone(bytesOf[at : at+4096])
		}
		sparse(t, path, change(bytesOf))
		for at, b := range was {
			copy(bytesOf[at:], b)
		}
		n, err := Open(path)
		if err == nil {
			defer n.Close()
			err = n.Resume(id)
			if err == nil {
				_, err = n.Handles()
			}
		}
		if !errors.Is(err, ErrFormat) || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v", what, err)
		}
	}
	at := func(i int, v byte) func([]byte) []byte {
		return func(b []byte) []byte { b[i] ^= v; return b }
	}
	try("magic", at(0, 1))
	try("version", func(b []byte) []byte { b[hdrVersion] = 2; seal(b); return b })
	try("slot size", func(b []byte) []byte { b[hdrSlotSize] = 64; seal(b); return b })
	try("header CRC", at(hdrSince, 1))
	try("short", func(b []byte) []byte { return b[:len(b)-1] })
	try("empty", func(b []byte) []byte { return nil })
	try("slots in use", func(b []byte) []byte { le.PutUint32(b[hdrSlots:], 1<<31); return b })
	try("slots in use, odd", at(hdrSlots, 1))
	try("paths in use", at(hdrPaths, 1))
	try("locks in use", at(hdrLocks+3, 0x80))
	for _, i := range []int{slotCRC, slotID, slotFile, slotNode, slotPath, slotPath + 3, slotPathLen, slotPathLen + 3, slotKind} {
		try(fmt.Sprintf("slot byte %d", i), at(slotsAt+i, 0x80))
	}
	try("path", at(pathsAt, 1))
	for _, i := range []int{lockCRC, lockFile, lockEnd, lockFlock} {
		try(fmt.Sprintf("lock byte %d", i), at(locksAt+i, 1))
	}
}

// sparse writes a file without the pages that are zero.
func sparse(t *testing.T, path string, b []byte) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(int64(len(b))); err != nil {
		t.Fatal(err)
	}
	zero := make([]byte, 1<<20)
	for at := 0; at < len(b); at += len(zero) {
		part := b[at:min(at+len(zero), len(b))]
		if bytes.Equal(part, zero[:len(part)]) {
			continue
		}
		if _, err := f.WriteAt(part, int64(at)); err != nil {
			t.Fatal(err)
		}
	}
}

func TestAHandleThatIsNotStoredDoesNotExist(t *testing.T) {
	s, id := begun(t)
	if _, err := s.Reserve(); err != nil {
		t.Fatal(err)
	}
	h := add(t, s, Handle{Kind: Read, File: 3, Node: 7, Path: "x"})
	s.Free(h.ID, "x")
	got, err := again(t, s, id).Handles()
	if len(got) != 0 || err != nil {
		t.Fatalf("%+v, %v", got, err)
	}
}

func TestIDsAreNotUsedAgainSoon(t *testing.T) {
	s, id := begun(t)
	seen := map[uint64]bool{}
	for i := range 3000 {
		if i == 1000 {
			s = again(t, s, id)
		}
		h := add(t, s, Handle{Kind: Read, File: 3, Node: 7, Path: "x"})
		if seen[h.ID] {
			t.Fatalf("%x was given twice", h.ID)
		}
		seen[h.ID] = true
		s.Free(h.ID, "x")
	}
}

func TestAFullTableIsAnErrorAndCanBeUsedAgain(t *testing.T) {
	s, _ := begun(t)
	var last uint64
	for i := range MaxHandles {
		var err error
		if last, err = s.Reserve(); err != nil {
			t.Fatal(i, err)
		}
	}
	if _, err := s.Reserve(); !errors.Is(err, ErrHandles) {
		t.Fatalf("%v", err)
	}
	s.Unreserve(last)
	if _, err := s.Reserve(); err != nil {
		t.Fatal(err)
	}
	var many []Lock
	for i := range MaxLocks + 1 {
		many = append(many, Lock{Owner: uint64(i)})
	}
	if err := s.SetLocks(1, many); !errors.Is(err, ErrLocks) {
		t.Fatalf("%v", err)
	}
	if len(s.Locks()) != 0 {
		t.Fatal("a part of the locks was kept")
	}
	if err := s.SetLocks(1, many[:MaxLocks]); err != nil {
		t.Fatal(err)
	}
	if err := s.SetLocks(1, nil); err != nil {
		t.Fatal(err)
	}
	if err := s.SetLocks(2, many[:MaxLocks]); err != nil {
		t.Fatal(err)
	}
}

func TestAFullDiskIsAnErrorAndNoSIGBUS(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=1m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	s := open(t, filepath.Join(dir, "session"))
	if err := s.Begin(NewID(), 1); err != nil {
		t.Fatal(err)
	}
	n := 0
	for ; ; n++ {
		h := Handle{Kind: Read, File: 1, Node: 3, Path: fmt.Sprint("file-", n)}
		var err error
		if h.ID, err = s.Reserve(); err == nil {
			if err = s.Store(&h); err != nil {
				s.Unreserve(h.ID)
			}
		}
		if err != nil {
			if !errors.Is(err, ErrHandles) || !errors.Is(err, syscall.ENOSPC) {
				t.Fatal(err)
			}
			break
		}
	}
	if n < 1000 {
		t.Fatalf("%d handles in 1 MiB", n)
	}
	if err := s.SetLocks(1, []Lock{{Owner: 1}}); !errors.Is(err, ErrLocks) && err != nil {
		t.Fatal(err)
	}
	if all, err := s.Handles(); err != nil || len(all) != n {
		t.Fatal(len(all), err)
	}
}

func TestStrayBackingIDs(t *testing.T) {
	s, id := begun(t)
	s.Opened(4)
	h := add(t, s, Handle{Kind: Write, File: 1, Node: 3, Backing: 4, Path: "x"})
	stray := func(want ...int32) {
		t.Helper()
		got, err := again(t, s, id).Stray()
		if err != nil || !slices.Equal(got, want) {
			t.Fatalf("%v, %v; want %v", got, err, want)
		}
	}
	stray(5)
	s.Opened(5) // its handle was not stored
	stray(5, 6)
	s.Closing(4)
	s.Free(h.ID, "x")
	stray(4, 5, 6)
	s.Closing(0)
	stray(5, 6)
}

// TestModel does random things and reads the file again every now and then.
func TestModel(t *testing.T) {
	for seed := range uint64(20) {
		rng := rand.New(rand.NewPCG(seed, 1))
		s, id := begun(t)
		handles, locks := map[uint64]Handle{}, map[uint64][]Lock{}
		for step := range 2000 {
			switch k := rng.IntN(20); {
			case k < 9:
				h := add(t, s, Handle{
					Kind: Kind(1 + rng.IntN(3)), File: rng.Uint64N(50), Node: rng.Uint64(), Writer: rng.Uint64(), Unique: rng.Uint64(), Flags: rng.Uint32(), Backing: int32(rng.Uint32()),
					Path: strings.Repeat(string(rune('a'+rng.IntN(20))), rng.IntN(300)),
				})
				if _, twice := handles[h.ID]; twice {
					t.Fatal("one id twice")
				}
				handles[h.ID] = h
			case k < 17:
				for id, h := range handles {
					s.Free(id, h.Path)
					delete(handles, id)
					break
				}
			case k < 19:
				var l []Lock
				for range rng.IntN(4) {
					l = append(l, Lock{Owner: rng.Uint64N(5), Start: rng.Uint64N(5), End: rng.Uint64N(9), Type: 1})
				}
				file := rng.Uint64N(9)
				if err := s.SetLocks(file, l); err != nil {
					t.Fatal(err)
				}
				if locks[file] = l; len(l) == 0 {
					delete(locks, file)
				}
			}
			if step%400 != 399 {
				continue
			}
			n := again(t, s, id)
			got, err := n.Handles()
			if err != nil || len(got) != len(handles) {
				t.Fatalf("seed %d: %d handles, %v; want %d", seed, len(got), err, len(handles))
			}
			for _, h := range got {
				if handles[h.ID] != h {
					t.Fatalf("seed %d: %+v, want %+v", seed, h, handles[h.ID])
				}
			}
			sameLocks(t, n.Locks(), locks)
			if step > 1000 {
				s.Close()
				s = n
			}
		}
	}
}

func sameLocks(t *testing.T, got, want map[uint64][]Lock) {
	t.Helper()
	order := func(all map[uint64][]Lock) (out []string) {
		for f, ls := range all {
			for _, l := range ls {
				out = append(out, fmt.Sprint(f, l))
			}
		}
		slices.Sort(out)
		return out
	}
	if !slices.Equal(order(got), order(want)) {
		t.Fatalf("%v, want %v", got, want)
	}
}

// TestKilledProcessLeavesItsHandles: what was stored before a SIGKILL is there after it.
func TestKilledProcessLeavesItsHandles(t *testing.T) {
	if path := os.Getenv("SESSION_TEST_CHILD"); path != "" {
		s, err := Open(path)
		if err == nil {
			err = s.Begin(ID{1}, 1)
		}
		for i := 0; err == nil && i < 500; i++ {
			h := Handle{Kind: Read, File: uint64(i), Node: 3, Path: fmt.Sprint("p", i)}
			if h.ID, err = s.Reserve(); err == nil {
				err = s.Store(&h)
			}
		}
		fmt.Println(err)
		select {}
	}
	path := filepath.Join(t.TempDir(), "session")
	cmd := exec.Command(os.Args[0], "-test.run=TestKilledProcessLeavesItsHandles$")
	cmd.Env = append(os.Environ(), "SESSION_TEST_CHILD="+path, "FTFUSE_FAILPOINTS=session/stored=kill@300")
	if out, err := cmd.CombinedOutput(); err == nil {
		t.Fatalf("not killed: %s", out)
	}
	s := open(t, path)
	if err := s.Resume(ID{1}); err != nil {
		t.Fatal(err)
	}
	all, err := s.Handles()
	if err != nil || len(all) != 300 {
		t.Fatalf("%d handles, %v; want the 300 that were stored", len(all), err)
	}
	if s.Close() != nil {
		t.Fatal("close")
	}
	st, err := os.Stat(path)
	if err != nil || st.Sys().(*syscall.Stat_t).Blocks*512 > 1<<20 {
		t.Fatalf("%+v, %v: the file is not sparse", st, err)
	}
}

// TestGolden: the bytes of the format, as docs/protocol.md has them.
func TestGolden(t *testing.T) {
	s, _ := begun(t)
	if err := s.Begin(ID{0xc0, 1, 2, 3}, 1000); err != nil {
		t.Fatal(err)
	}
	add(t, s, Handle{
		Kind: Write, Mode: 2, Reply: 0x80, File: 0x11, Node: 0x23, Writer: 0x33, Unique: 0x44, Flags: 0x8401, Backing: 5, PID: 6, UID: 7, GID: 8,
		Time: 0x0102030405060708, Poll: 9, Path: "logs/app.log",
	})
	add(t, s, Handle{Kind: Dir, Node: 1, Path: ""})
	if err := s.SetLocks(0x11, []Lock{{Owner: 0xaa, Start: 1, End: 2, Type: 1, PID: 3, Flock: true, Handle: 0x500000006}}); err != nil {
		t.Fatal(err)
	}
	s.Opened(5)
	s.Closing(4)
	clear(s.mem[hdrBoot : hdrBoot+16]) // differs between machines
	seal(s.mem)
	var got strings.Builder
	zero := make([]byte, 16)
	for at := 0; at < fileSize; at += 16 {
		if b := s.mem[at : at+16]; !bytes.Equal(b, zero) {
			fmt.Fprintf(&got, "%08x: % x\n", at, b)
		}
	}
	golden := filepath.Join("testdata", "session.golden")
	if *update {
		if err := os.WriteFile(golden, []byte(got.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil || got.String() != string(want) {
		t.Fatalf("%v\n%s\nwant\n%s", err, got.String(), want)
	}
}

func BenchmarkStoreAndFree(b *testing.B) {
	s, _ := begun(b)
	for b.Loop() {
		h := Handle{Kind: Write, File: 1, Node: 3, Path: "logs/app.log"}
		h.ID, _ = s.Reserve()
		_ = s.Store(&h)
		s.Free(h.ID, h.Path)
	}
}
