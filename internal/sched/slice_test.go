package sched

import (
	"runtime"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// TestShortTurnsAreOfAllThreads: those there are, and those they start.
func TestShortTurnsAreOfAllThreads(t *testing.T) {
	if err := ShortTurns(); err != nil {
		t.Fatal(err)
	}
	own, err := unix.SchedGetAttr(0, 0)
	if err != nil {
		t.Fatal(err)
	}
	if own.Runtime == 0 {
		t.Skip("this kernel has no turns of a thread's own (before Linux 6.12)")
	}
	var held sync.WaitGroup // threads of their own, all at once
	held.Add(8)
	for range 8 {
		go func() {
			runtime.LockOSThread()
			held.Done()
			held.Wait()
		}()
	}
	held.Wait()
	tids, err := threads()
	if err != nil {
		t.Fatal(err)
	}
	for _, tid := range tids {
		switch attr, err := unix.SchedGetAttr(tid, 0); {
		case err == unix.ESRCH:
		case err != nil:
			t.Error(err)
		case attr.Runtime != uint64(Slice):
			t.Errorf("thread %d has turns of %d ns, want %d", tid, attr.Runtime, uint64(Slice))
		}
	}
}
