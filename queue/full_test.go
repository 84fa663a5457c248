package queue

import (
	"context"
	"errors"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// smallDisk mounts a tmpfs of its own.
func smallDisk(t *testing.T, options string) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("mounting a small file system needs root")
	}
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, options); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func fullOptions() Options {
	return Options{SegmentBytes: 4 << 20, PendingBytes: 1 << 20, MemoryBytes: 1 << 20, ReserveBytes: 3 << 20, Cursors: []string{"out"}}
}

// fill submits batches until the queue takes no more and returns the last number that
// Submit took.
func fill(t *testing.T, q *Queue, n uint64) uint64 {
	t.Helper()
	for {
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		_, err := q.Submit(ctx, &Txn{Entries: []Entry{testEntry(1, n+1, 200<<10)}})
		cancel()
		if errors.Is(err, context.DeadlineExceeded) && !q.Stats().DiskFull {
			continue // it was slow
		}
		if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, ErrFull) {
			return n
		}
		if err != nil {
			t.Fatal(err)
		}
		n++
	}
}

func TestFullDiskBlocksSubmitAndNotDraining(t *testing.T) {
	dir := smallDisk(t, "size=24m") + "/queue"
	q := mustOpen(t, dir, fullOptions())
	c := mustCursor(t, q, "out")
	var n, read uint64
	for round := range 6 {
		n = fill(t, q, n)
		st := q.Stats()
		if !st.DiskFull || st.Committed < 30 {
			t.Fatalf("round %d: %d batches submitted, stats %+v", round, n, st)
		}
		if round == 3 { // a start on a full disk
			mustNotFail(t, q.Close())
			committed := q.committed
			q = mustOpen(t, dir, fullOptions())
			c = mustCursor(t, q, "out")
			if q.committed != committed {
				t.Fatalf("%d batches after a start on a full disk, want %d", q.committed, committed)
			}
			n = committed
		}
		take := q.Stats().Cursors[0].Waiting.Batches
		if round%2 == 0 {
			take /= 2
		}
		for range take {
			it := mustNext(t, c)
			if read++; it.Batch.ID.N != read {
				t.Fatalf("got batch %d, want %d", it.Batch.ID.N, read)
			}
			c.Ack(it.Seq)
		}
		if q.Err() != nil {
			t.Fatal(q.Err())
		}
	}
	mustFlush(t, q) // there is room again
	for read < n {
		it := mustNext(t, c)
		if read++; it.Batch.ID.N != read {
			t.Fatalf("got batch %d, want %d", it.Batch.ID.N, read)
		}
		c.Ack(it.Seq)
	}
	mustFlush(t, q)
	if st := q.Stats(); st.DiskFull || len(st.Losses) != 0 || st.Live.Batches != 0 {
		t.Fatalf("stats after draining: %+v", st)
	}
	mustClose(t, q)
	checkBolt(t, dir)
}

// mustNotFail accepts what Close says of a queue that a full disk stopped from storing
// its last entries: nothing, the Dones have told.
func mustNotFail(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestADrainedSegmentOnADiskSmallerThanItDoesNotStayFull: all of a full disk is the active
// segment's, and all of that is free pages; what waits for room must get it.
func TestADrainedSegmentOnADiskSmallerThanItDoesNotStayFull(t *testing.T) {
	o := fullOptions()
	o.SegmentBytes, o.PendingBytes = 256<<20, 4<<20
	q := mustOpen(t, smallDisk(t, "size=24m")+"/queue", o)
	c := mustCursor(t, q, "out")
	var n, read uint64
	for range 3 {
		n = fill(t, q, n)
		for range q.Stats().Cursors[0].Waiting.Batches {
			read++
			c.Ack(mustNext(t, c).Seq)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		if err := q.Flush(ctx); err != nil {
			t.Fatalf("%v; %+v", err, q.Stats())
		}
		cancel()
	}
	for ; read < n; read++ {
		c.Ack(mustNext(t, c).Seq)
	}
	mustClose(t, q)
}

// TestAcksThatDoNotFitWaitForRoom: neither the slack nor a reserve is left for them. They
// are only repeats when they are lost, and no reason to stop.
func TestAcksThatDoNotFitWaitForRoom(t *testing.T) {
	disk := smallDisk(t, "size=24m")
	q := mustOpen(t, disk+"/queue", fullOptions())
	c := mustCursor(t, q, "out")
	mustSubmit(t, q, &Txn{Entries: []Entry{testEntry(1, 1, 100)}})
	it := mustNext(t, c)
	mustFlush(t, q)
	q.dropReserve()
	q.mu.Lock()
	q.active().high += 64 << 20 // as if all of it were in use
	q.mu.Unlock()
	c.Ack(it.Seq)
	for !q.Stats().DiskFull && q.Err() == nil {
		time.Sleep(time.Millisecond)
	}
	if err := q.Err(); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", disk, "tmpfs", unix.MS_REMOUNT, "size=256m"); err != nil {
		t.Fatal(err)
	}
	mustClose(t, q)
	q = mustOpen(t, disk+"/queue", fullOptions())
	if w := q.Stats().Cursors[0].Waiting.Batches; w != 0 {
		t.Fatalf("%d batches wait: the ack was lost", w)
	}
}

// TestCloseOnAFullDiskEnds, with acks that do not fit.
func TestCloseOnAFullDiskEnds(t *testing.T) {
	dir := smallDisk(t, "size=24m") + "/queue"
	q := mustOpen(t, dir, fullOptions())
	c := mustCursor(t, q, "out")
	mustSubmit(t, q, &Txn{Entries: []Entry{testEntry(1, 1, 100)}})
	it := mustNext(t, c)
	mustFlush(t, q)
	q.dropReserve()
	q.mu.Lock()
	q.active().high += 64 << 20
	q.mu.Unlock()
	c.Ack(it.Seq)
	mustClose(t, q)
	q = mustOpen(t, dir, fullOptions())
	if got := mustNext(t, mustCursor(t, q, "out")); got.Seq != it.Seq {
		t.Fatalf("entry %d comes again, want %d", got.Seq, it.Seq)
	}
}

func TestFullDiskUnderErrorIsErrFull(t *testing.T) {
	dir := smallDisk(t, "size=16m") + "/queue"
	o := fullOptions()
	o.OnFull = Error
	q := mustOpen(t, dir, o)
	fill(t, q, 0)
	for range 50 { // once the disk is known to be full it is an error, not a wait
		if _, err := q.Submit(t.Context(), &Txn{Entries: []Entry{testEntry(2, 1, 1<<20)}}); errors.Is(err, ErrFull) {
			return
		} else if err != nil {
			t.Fatal(err)
		}
	}
	t.Fatal("never ErrFull")
}

// TestNoSpaceForTheFirstSegmentIsAnError: nothing is left half made.
func TestNoSpaceForTheFirstSegmentIsAnError(t *testing.T) {
	disk := smallDisk(t, "size=64k")
	if q, err := Open(disk+"/queue", fullOptions()); err == nil {
		_ = q.Close()
		t.Fatal("opened on a disk of 64 KiB")
	} else if !errors.Is(err, unix.ENOSPC) {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", disk, "tmpfs", unix.MS_REMOUNT, "size=32m"); err != nil {
		t.Fatal(err)
	}
	q := mustOpen(t, disk+"/queue", fullOptions())
	mustSubmit(t, q, &Txn{Entries: []Entry{testEntry(1, 1, 100)}})
	mustClose(t, q)
}
