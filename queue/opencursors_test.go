package queue

import (
	"slices"
	"strconv"
	"testing"
)

// begunOpen opens a queue; done is closed when all is dropped that only gone cursors needed.
func begunOpen(t *testing.T, dir string, o Options) (q *Queue, done chan struct{}) {
	t.Helper()
	q, err := Open(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = q.Close() })
	done = make(chan struct{})
	go func() {
		settled(q)
		close(done)
	}()
	return q, done
}

// TestAStartWaitedForWhatAGoneCursorNeeded, with all of its losses in memory until then: 14 µs and
// 100 bytes a batch, of which there can be millions. At each portion: the queue is in use; a kill
// there, all done so far being on disk, and a start does the rest, or goes back to the old cursors.
func TestAStartWaitedForWhatAGoneCursorNeeded(t *testing.T) {
	const count = 12
	portions := 0
	for n, ended := 1, false; !ended; n++ {
		t.Run(strconv.Itoa(n), func(t *testing.T) {
			dir := t.TempDir()
			o := Options{Cursors: []string{"a", "b"}, MemoryBytes: 1, SegmentBytes: 40 << 10, portion: 1}
			q := mustOpen(t, dir, o)
			for n := uint64(1); n <= count; n++ {
				mustSubmit(t, q, &Txn{Entries: []Entry{testEntry(1, n, 3000)}, Sync: true})
				mustFlush(t, q)
			}
			ackSome(t, q, "a", 1, 2, 3, 5, 6, 8) // of these b alone needs 2, 3, 5, 8
			ackSome(t, q, "b", 1, 4, 6)
			mustClose(t, q)
			held, release := hold(t, n)
			o.Cursors = []string{"a"}
			q, done := begunOpen(t, dir, o)
			ended = !held(done)
			mustCommit(t, q, testEntry(1, count+1, 3000))
			mustFlush(t, q)
			killed, kept := copyDir(t, dir), copyDir(t, dir)
			before := lostNumbers(q)
			release()
			<-done
			mustClose(t, q)
			for _, dir := range []string{dir, killed} {
				q := mustOpen(t, dir, o)
				lost := lostNumbers(q)
				if got := left(t, q, "a"); !slices.Equal(got, []uint64{4, 7, 9, 10, 11, 12, 13}) || lost.String() != "2-3,5,8" || q.Stats().Losses[LostNoCursor].Batches != 4 {
					t.Errorf("a needs %v, lost is %v; %+v", got, &lost, q.Stats().Losses)
				}
				checkParts(t, q)
				mustClose(t, q)
				checkBolt(t, dir)
			}
			o.Cursors = []string{"a", "b"}
			q = mustOpen(t, kept, o)
			for n, needs := uint64(1), left(t, q, "b"); n <= count; n++ {
				// Where b was forgotten it is a new one, and begins with what a needs.
				want := !slices.Contains([]uint64{1, 4, 6}, n) && !before.Contains(n)
				if got := slices.Contains(needs, n); got != want && n != 4 {
					t.Errorf("b, kept, needs %d: %v, want %v; lost is %v", n, got, want, &before)
				}
			}
			checkParts(t, q)
			mustClose(t, q)
			portions = n
		})
	}
	if portions < 4 {
		t.Errorf("%d portions: what was dropped was dropped in one piece", portions-1)
	}
}
