package queue

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// noMemoryToRead calls fn on a thread of its own, on which the kernel answers each pread(2)
// with ENOMEM (seccomp), and returns when fn has.
func noMemoryToRead(t *testing.T, fn func() error) error {
	t.Helper()
	const load, jumpIfEqual, ret = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, unix.BPF_RET | unix.BPF_K
	filter := []unix.SockFilter{
		{Code: load, K: 0}, // the number of the system call
		{Code: jumpIfEqual, K: unix.SYS_PREAD64, Jf: 1},
		{Code: ret, K: unix.SECCOMP_RET_ERRNO | uint32(unix.ENOMEM)},
		{Code: ret, K: unix.SECCOMP_RET_ALLOW},
	}
	prog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	ended := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // for ever: the thread ends with this goroutine
		err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
		if err == nil {
			err = unix.Prctl(unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, uintptr(unsafe.Pointer(&prog)), 0, 0)
		}
		if err != nil {
			ended <- fmt.Errorf("have pread(2) fail: %w", err)
			return
		}
		ended <- fn()
	}()
	return <-ended
}

// TestAPageForWhichThereIsNoMemoryIsNoDamage: reading a meta page failed with an errno that
// passes. That was taken for a page that is damaged, and all of the segment was lost.
func TestAPageForWhichThereIsNoMemoryIsNoDamage(t *testing.T) {
	q := backlogOnDisk(t, 20)
	c := mustCursor(t, q, "out")
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		ended <- noMemoryToRead(t, func() error {
			_, err := c.NextHead(ctx)
			return err
		})
	}()
	untilUnread(t, q)
	cancel()
	if err := <-ended; !errors.Is(err, ErrUnread) || !errors.Is(err, unix.ENOMEM) {
		t.Errorf("a reader without memory: %v", err)
	}
	for seq := uint64(1); seq <= 20; seq++ {
		if it := mustNext(t, c); it.Seq != seq {
			t.Fatalf("entry %d came as %d", seq, it.Seq)
		}
	}
	wantReadable(t, q, "")
}

// TestAStartWithoutMemoryDoesNotAskForRepair: nothing is known to be damaged.
func TestAStartWithoutMemoryDoesNotAskForRepair(t *testing.T) {
	dir := t.TempDir()
	mustClose(t, mustOpen(t, dir, Options{}))
	err := noMemoryToRead(t, func() error {
		o, err := Options{Cursors: []string{"out"}}.withDefaults()
		if err != nil {
			return err
		}
		q, err := Open(dir, o)
		if err == nil {
			err = q.Close()
		}
		return err
	})
	if !errors.Is(err, unix.ENOMEM) || errors.Is(err, ErrNewestDamaged) {
		t.Errorf("a start without memory: %v", err)
	}
	mustClose(t, mustOpen(t, dir, Options{}))
}

// TestASegmentThatIsCutWhileItIsReadEndsNobody: what is behind its new end is lost, and
// counted, as it is where the file is opened after that. The reader ended with EOF, and with
// it the role.
func TestASegmentThatIsCutWhileItIsReadEndsNobody(t *testing.T) {
	const n = 20
	q := backlogOnDisk(t, n)
	c := mustCursor(t, q, "out")
	first := mustNext(t, c)
	q.mu.Lock()
	seg := q.segmentOf(first.Seq)
	in := seg.count()
	q.mu.Unlock()
	q.cache.drop(seg.num)
	if err := os.Truncate(seg.path, 2*segmentPage); err != nil {
		t.Fatal(err)
	}
	for seq := in + 1; seq <= n; seq++ {
		if it := mustNext(t, c); it.Seq != seq {
			t.Fatalf("entry %d came as %d", seq, it.Seq)
		}
	}
	wantReadable(t, q, LostCorrupt)
	if lost := q.Stats().Losses[LostCorrupt].Batches; lost != in-1 {
		t.Errorf("%d batches are lost, want %d", lost, in-1)
	}
}

// TestAStartThatCannotReadTheIDsOfASegmentIsRefused: without them no batch in it can be told
// from one that a cursor does not want. The start went on, and destinations got each other's.
func TestAStartThatCannotReadTheIDsOfASegmentIsRefused(t *testing.T) {
	dir := t.TempDir()
	q := mustOpen(t, dir, Options{})
	mustSubmit(t, q, &Txn{Entries: []Entry{testEntry(1, 1, 10)}})
	mustFlush(t, q)
	mustClose(t, q)

	o, err := Options{Cursors: []string{"out"}}.withDefaults()
	if err != nil {
		t.Fatal(err)
	}
	lock, err := lockDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	q = newQueue(dir, o, lock)
	nums, records, err := q.loadState()
	if err != nil {
		t.Fatal(err)
	}
	q.loadCursors(records)
	if err := noMemoryToRead(t, func() error { return q.begin(nums) }); !errors.Is(err, unix.ENOMEM) || errors.Is(err, errDamaged) {
		t.Errorf("begin without the ids: %v", err)
	}
	q.closeFiles()
	mustClose(t, mustOpen(t, dir, Options{}))
}

// TestVerifyWithoutDescriptorsFindsNoDamage: it said that each segment that it could not open
// was damaged, and its batches lost.
func TestVerifyWithoutDescriptorsFindsNoDamage(t *testing.T) {
	q := backlogOnDisk(t, 20)
	again := noDescriptors(t)
	rep, err := q.Verify(t.Context())
	again()
	if !errors.Is(err, unix.EMFILE) || rep.Damaged() {
		t.Errorf("without descriptors: %d lost, %v", rep.Lost(), err)
	}
	if rep, err = q.Verify(t.Context()); err != nil || rep.Damaged() {
		t.Errorf("with descriptors: %+v, %v", rep, err)
	}
}

// TestARepairWithoutMemoryChangesNothing: it found neither the lost commit nor a batch, and
// went on without them.
func TestARepairWithoutMemoryChangesNothing(t *testing.T) {
	dir := t.TempDir()
	q := mustOpen(t, dir, corruptOptions())
	mustSubmit(t, q, &Txn{Entries: []Entry{testEntry(1, 1, 3000)}, Set: []KV{{"n", []byte("1")}}})
	mustFlush(t, q)
	image := filepath.Join(t.TempDir(), "image")
	if err := os.CopyFS(image, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	mustClose(t, q)
	spoilNewest(t, newestSegment(t, image), true, false)
	x, err := inspect(image)
	if err != nil {
		t.Fatal(err)
	}
	for name, step := range map[string]func() error{
		"find the lost commit":   func() error { _, err := x.restoreMeta(); return err },
		"find an older state":    x.repair,
		"read a segment's heads": func() error { _, err := scanSegment(newestSegment(t, image)); return err },
	} {
		if err := noMemoryToRead(t, step); !errors.Is(err, unix.ENOMEM) {
			t.Errorf("%s: %v", name, err)
		}
	}
	p, err := openPages(newestSegment(t, image))
	if err != nil {
		t.Fatal(err)
	}
	if err := noMemoryToRead(t, func() error {
		_, _, _ = p.lostCommit(x.nums[len(x.nums)-1])
		return p.notRead()
	}); !errors.Is(err, unix.ENOMEM) {
		t.Errorf("find the lost commit among its pages: %v", err)
	}
	_ = p.Close()
	x.close()
	if rep, err := Repair(image); err != nil || rep.Repair == nil || !rep.Repair.Whole {
		t.Errorf("with memory: %+v, %v", rep.Repair, err)
	}
	checkAll(t, image, 1)
}
