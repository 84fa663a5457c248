package queue

import (
	"context"
	"errors"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// backlogOnDisk is a queue with n batches in several segments, none of which is open to be read.
func backlogOnDisk(t *testing.T, n uint64) *Queue {
	t.Helper()
	dir, o := t.TempDir(), Options{SegmentBytes: 300 << 10, MemoryBytes: 1}
	q := mustOpen(t, dir, o)
	for i := uint64(1); i <= n; i++ {
		mustSubmit(t, q, &Txn{Entries: []Entry{testEntry(1, i, 50000)}})
		mustFlush(t, q)
	}
	mustClose(t, q)
	q = mustOpen(t, dir, o)
	q.mu.Lock() // Stats would read the oldest
	defer q.mu.Unlock()
	if len(q.segs) < 3 {
		t.Fatalf("%d segments", len(q.segs))
	}
	return q
}

// noDescriptors has every open fail with EMFILE until the function that it returns is called.
func noDescriptors(t *testing.T) (again func()) {
	t.Helper()
	var was unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &was); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 3, Max: was.Max}); err != nil {
		t.Fatal(err)
	}
	again = func() {
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &was); err != nil {
			t.Error(err)
		}
	}
	t.Cleanup(again)
	return again
}

// untilUnread returns when q knows that it cannot be read, or has lost something.
func untilUnread(t *testing.T, q *Queue) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); ; runtime.Gosched() {
		q.mu.Lock()
		over := q.unread() != "" || len(q.losses) > 0
		q.mu.Unlock()
		if over {
			return
		}
		if time.Now().After(end) {
			t.Fatal("nobody noticed that nothing can be read")
		}
	}
}

// wantReadable fails unless q can be read, and lost just what want says.
func wantReadable(t *testing.T, q *Queue, want string) {
	t.Helper()
	s := q.Stats()
	if s.Unread != "" {
		t.Errorf("it can still not be read: %s", s.Unread)
	}
	for reason, l := range s.Losses {
		if reason != want {
			t.Errorf("%d batches are lost: %s", l.Batches, reason)
		}
	}
}

// TestAReaderWaitsUntilThereAreDescriptors: the process has none for a moment. That ended the
// reader, and with it the role.
func TestAReaderWaitsUntilThereAreDescriptors(t *testing.T) {
	const n = 20
	for name, next := range map[string]func(context.Context, *Cursor) (uint64, error){
		"Next": func(ctx context.Context, c *Cursor) (uint64, error) {
			it, err := c.Next(ctx)
			return it.Seq, err
		},
		"NextHead": func(ctx context.Context, c *Cursor) (uint64, error) {
			h, err := c.NextHead(ctx)
			return h.Seq, err
		},
		"Fetch": func(ctx context.Context, c *Cursor) (uint64, error) {
			c.q.mu.Lock()
			seq := c.next
			c.give(seq, &Entry{}, 0, false)
			c.q.mu.Unlock()
			it, ok, err := c.Fetch(ctx, seq)
			if err != nil || !ok {
				c.q.mu.Lock()
				c.next = seq
				c.q.mu.Unlock()
			}
			return it.Seq, err
		},
	} {
		t.Run(name, func(t *testing.T) {
			q := backlogOnDisk(t, n)
			c := mustCursor(t, q, "out")
			again := noDescriptors(t)
			ctx, cancel := context.WithCancel(t.Context())
			ended := make(chan error, 1)
			go func() {
				_, err := next(ctx, c)
				ended <- err
			}()
			untilUnread(t, q)
			cancel()
			if err := <-ended; !errors.Is(err, ErrUnread) || !errors.Is(err, context.Canceled) || !errors.Is(err, unix.EMFILE) {
				t.Errorf("a reader that is called off: %v", err)
			}
			go func() {
				seq, err := next(t.Context(), c)
				if seq != 1 {
					err = errors.Join(err, errors.New("another entry came"))
				}
				ended <- err
			}()
			again()
			if err := <-ended; err != nil {
				t.Error(err)
			}
			for seq := uint64(2); seq <= n; seq++ {
				if got, err := next(t.Context(), c); got != seq || err != nil {
					t.Fatalf("entry %d came as %d, %v", seq, got, err)
				}
			}
			wantReadable(t, q, "")
		})
	}
}

// TestWhatCannotBeReadForNowIsNotDropped as damaged, or too old: nobody knows how old it is. The
// whole backlog was lost in one go where max_age is set.
func TestWhatCannotBeReadForNowIsNotDropped(t *testing.T) {
	t.Run(LostExpired, func(t *testing.T) {
		q := backlogOnDisk(t, 20)
		again := noDescriptors(t)
		if err := q.SetLimits(Limits{OnFull: Block, MaxBytes: DefaultMaxBytes, MaxAge: time.Hour}); err != nil {
			t.Fatal(err)
		}
		untilUnread(t, q)
		again()
		c := mustCursor(t, q, "out")
		for range 20 {
			mustNext(t, c)
		}
		wantReadable(t, q, "")
	})
	t.Run(LostDropOldest, func(t *testing.T) {
		q := backlogOnDisk(t, 20)
		again := noDescriptors(t)
		if err := q.SetLimits(Limits{OnFull: DropOldest, MaxBytes: 900_000}); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		ended := make(chan error, 1)
		go func() {
			_, err := q.Submit(ctx, &Txn{Entries: []Entry{testEntry(1, 21, 10)}})
			ended <- err
		}()
		untilUnread(t, q)
		again()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		wantReadable(t, q, LostDropOldest)
		if n := q.Stats().Losses[LostDropOldest].Batches; n != 3 {
			t.Errorf("%d batches gave way, want 3", n)
		}
	})
}

// TestWithoutDescriptorsTheSegmentBecomesLarger: there are none for another one. That ended the
// queue, as a failed commit does, although nothing had been written.
func TestWithoutDescriptorsTheSegmentBecomesLarger(t *testing.T) {
	dir, o := t.TempDir(), Options{SegmentBytes: 300 << 10}
	q := mustOpen(t, dir, o)
	again := noDescriptors(t)
	submit := func(n uint64) {
		mustSubmit(t, q, &Txn{Entries: []Entry{testEntry(1, n, 50000)}})
		mustFlush(t, q)
	}
	for n := uint64(1); n <= 20; n++ {
		submit(n)
	}
	if n := q.counters().Segments; n != 1 {
		t.Errorf("%d segments without descriptors", n)
	}
	again()
	n := uint64(20)
	for end := time.Now().Add(10 * time.Second); q.counters().Segments == 1; {
		if n++; time.Now().After(end) {
			t.Fatal("no segment is begun")
		}
		submit(n)
	}
	mustClose(t, q)
	q = mustOpen(t, dir, o)
	c := mustCursor(t, q, "out")
	for i := uint64(1); i <= n; i++ {
		if it := mustNext(t, c); it.Seq != i {
			t.Fatalf("entry %d came as %d", i, it.Seq)
		}
	}
	wantReadable(t, q, "")
}

// TestAStartWithoutDescriptorsDoesNotAskForRepair: nothing is known to be damaged.
func TestAStartWithoutDescriptorsDoesNotAskForRepair(t *testing.T) {
	q := mustOpen(t, t.TempDir(), Options{})
	mustClose(t, q)
	nums, err := segmentNumbers(q.dir)
	if err != nil {
		t.Fatal(err)
	}
	again := noDescriptors(t)
	if _, _, err := q.newest(nums); !errors.Is(err, unix.EMFILE) || errors.Is(err, ErrNewestDamaged) {
		t.Errorf("without descriptors: %v", err)
	}
	again()
	if _, _, err := q.newest(nums); err != nil {
		t.Error(err)
	}
}

// TestNextSaysWhetherMoreIsThereWhenItsContextHasEnded: who waits for a moment only takes a deadline
// for the end of what is queued.
func TestNextSaysWhetherMoreIsThereWhenItsContextHasEnded(t *testing.T) {
	q := mustOpen(t, t.TempDir(), Options{Cursors: []string{"out"}})
	defer mustClose(t, q)
	c := mustCursor(t, q, "out")
	mustSubmit(t, q, &Txn{Entries: []Entry{testEntry(1, 1, 10)}})
	mustFlush(t, q)
	late, cancel := context.WithDeadline(t.Context(), time.Now())
	defer cancel()
	if _, err := c.Next(late); !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, ErrUnread) {
		t.Errorf("before there was a look at what is queued: %v", err)
	}
	mustNext(t, c)
	if _, err := c.NextHead(late); !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, ErrUnread) {
		t.Errorf("when all was given: %v", err)
	}
}
