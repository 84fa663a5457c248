package queue

import (
	"context"
	"fmt"
	"runtime"
	"slices"
	"strconv"
	"testing"
	"time"

	"ftfuse/internal/batch"
	"ftfuse/internal/failpoint"
)

const fpPortionName = "queue/cursors-portion"

// settled returns when what the last SetCursors began is done.
func settled(q *Queue) {
	q.changing <- struct{}{}
	<-q.changing
}

func mustSetCursors(t testing.TB, q *Queue, set CursorSet) {
	t.Helper()
	if err := q.SetCursors(set); err != nil {
		t.Fatal(err)
	}
	settled(q)
}

// hold has a change of cursors wait before its nth portion, until release. held returns when it
// does, or false when the change is done.
func hold(t *testing.T, n int) (held func(done <-chan struct{}) bool, release func()) {
	t.Helper()
	if err := failpoint.Set(fpPortionName, fmt.Sprint("pause@", n)); err != nil {
		t.Fatal(err)
	}
	release = func() { failpoint.Clear(fpPortionName) }
	t.Cleanup(release)
	return func(done <-chan struct{}) bool {
		for fpPortion.Hits() < int64(n) {
			select {
			case <-done:
				return false
			default:
				runtime.Gosched()
			}
		}
		return true
	}, release
}

// begunChange begins a change of cursors; done is closed when all of it is done.
func begunChange(t *testing.T, q *Queue, set CursorSet) (done chan struct{}) {
	done = make(chan struct{})
	go func() {
		defer close(done)
		if err := q.SetCursors(set); err != nil {
			t.Error(err)
		}
		settled(q)
	}()
	return done
}

// mustCommit makes all that was done, acks too, durable. It fails where the queue is held up.
func mustCommit(t *testing.T, q *Queue, entries ...Entry) {
	t.Helper()
	done := make(chan error, 1)
	go func() {
		if _, err := q.Submit(context.Background(), &Txn{Entries: entries, Sync: true, Acks: true, Done: func(err error) { done <- err }}); err != nil {
			done <- err
		}
	}()
	select {
	case err := <-done:
		if err != nil {
			t.Fatal(err)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("an append waits for a change of cursors")
	}
}

// TestAnAppendWaitedForAChangeOfCursors, for as long as it took to go through all that was
// queued. Here the change is stopped in the middle, and an append is on disk before it goes on.
func TestAnAppendWaitedForAChangeOfCursors(t *testing.T) {
	odd := func(name string, lane batch.Lane) bool { return name != "odd" || lane == testLane(1) }
	for _, c := range []struct {
		name string
		set  CursorSet
		left map[string]int
		lost uint64
	}{
		{"removed", CursorSet{Cursors: []string{"a"}}, map[string]int{"a": 21}, 20},
		{"added", CursorSet{Cursors: []string{"a", "b", "odd"}, Wants: odd}, map[string]int{"a": 21, "b": 41, "odd": 21}, 0},
		{"again", CursorSet{Cursors: []string{"a", "b"}, Again: []string{"b"}}, map[string]int{"a": 21, "b": 21}, 0},
		{"replaced", CursorSet{Cursors: []string{"odd"}, Wants: odd}, map[string]int{"odd": 21}, 20},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			o := Options{Cursors: []string{"a"}, MemoryBytes: 1, SegmentBytes: 40 << 10, portion: 1}
			q := mustOpen(t, dir, o)
			for n := uint64(1); n <= 40; n++ {
				mustSubmit(t, q, &Txn{Entries: []Entry{testEntry(byte(n%2), n, 3000)}, Sync: true})
			}
			mustFlush(t, q)
			mustSetCursors(t, q, CursorSet{Cursors: []string{"a", "b"}})
			a := mustCursor(t, q, "a")
			for n := 1; n <= 40; n++ {
				if it := mustNext(t, a); n <= 20 {
					a.Ack(it.Seq)
				}
			}
			held, release := hold(t, 10)
			done := begunChange(t, q, c.set)
			if !held(done) {
				t.Fatal("it was done in fewer portions")
			}
			mustCommit(t, q, testEntry(1, 41, 100))
			select {
			case <-done:
				t.Fatal("it was done before it was let go on")
			default:
			}
			release()
			<-done
			for when := range 2 {
				for name, want := range c.left {
					if got := left(t, q, name); len(got) != want {
						t.Errorf("%s needs %v, want %d", name, got, want)
					}
				}
				if s := q.Stats(); s.Losses[LostNoCursor].Batches != c.lost || int(s.Live.Batches) != maxLeft(c.left) {
					t.Errorf("%d: stats %+v, want %d lost", when, s, c.lost)
				}
				checkParts(t, q)
				mustClose(t, q)
				o.Cursors, o.Wants = c.set.Cursors, c.set.Wants
				q = mustOpen(t, dir, o)
			}
		})
	}
}

func maxLeft(left map[string]int) (most int) {
	for _, n := range left {
		most = max(most, n)
	}
	return most
}

// checkParts counts what each cursor needs, and what nobody does, and compares the accounts.
func checkParts(t *testing.T, q *Queue) {
	t.Helper()
	mustFlush(t, q)
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, s := range q.segs {
		var passed tally
		acked := make([]tally, len(q.cursors))
		for seq := s.first; seq <= s.last; seq++ {
			if !q.needed(seq) {
				passed.Batches++
			}
			for i, c := range q.cursors {
				if c.acked.Contains(seq) {
					acked[i].Batches++
				}
			}
		}
		if passed.Batches != s.passed.Batches {
			t.Errorf("segment %d: %d batches are passed, the account says %d", s.num, passed.Batches, s.passed.Batches)
		}
		for i, c := range q.cursors {
			if acked[i].Batches != c.parts[s.num].Batches {
				t.Errorf("segment %d: %s has acked %d batches, the account says %d", s.num, c.name, acked[i].Batches, c.parts[s.num].Batches)
			}
		}
	}
	if len(q.leaving) > 0 {
		t.Errorf("%d cursors are leaving", len(q.leaving))
	}
}

// TestAKillInAChangeOfCursors at each portion of it, all done so far being on disk: a start with
// the new cursors does the rest; one with the old ones has them go on with what was not dropped.
func TestAKillInAChangeOfCursors(t *testing.T) {
	old, now := []string{"a", "b"}, []string{"a", "x"}
	wants := func(name string, lane batch.Lane) bool { return name != "x" || lane == testLane(1) }
	const count = 12
	ended := false
	for n := 1; !ended; n++ {
		t.Run(strconv.Itoa(n), func(t *testing.T) {
			dir := t.TempDir()
			o := Options{Cursors: old, MemoryBytes: 1, SegmentBytes: 40 << 10, portion: 1}
			q := mustOpen(t, dir, o)
			for n := uint64(1); n <= count; n++ {
				mustSubmit(t, q, &Txn{Entries: []Entry{testEntry(byte(n/2%2), n, 3000)}, Sync: true})
				mustFlush(t, q)
			}
			ackSome(t, q, "a", 1, 2, 3, 5, 6, 8) // of these b alone needs 2, 3, 5, 8; x wants 2 and 3
			ackSome(t, q, "b", 1, 4, 6)
			mustCommit(t, q)
			held, release := hold(t, n)
			done := begunChange(t, q, CursorSet{Cursors: now, Wants: wants})
			ended = !held(done)
			a := mustCursor(t, q, "a") // 9 is lost to b if b is a cursor still
			a.Ack(4)
			a.Ack(mustNext(t, a).Seq)
			mustCommit(t, q)
			mustFlush(t, q) // the committer has removed what it removes after that
			killed, kept := copyDir(t, dir), copyDir(t, dir)
			release()
			<-done
			mustClose(t, q)
			checkChanged(t, dir, now, wants)
			checkChanged(t, killed, now, wants)
			o.Cursors = old
			q = mustOpen(t, kept, o)
			lost := lostNumbers(q)
			for n := uint64(1); n <= count; n++ {
				needs := slices.Contains(left(t, q, "b"), n)
				if want := !slices.Contains([]uint64{1, 4, 6}, n) && !lost.Contains(n); needs != want && n != 9 {
					t.Errorf("b, kept, needs %d: %v, want %v; lost is %v", n, needs, want, &lost)
				}
			}
			checkParts(t, q)
			mustClose(t, q)
		})
	}
}

// lostNumbers are the numbers of what was lost of lanes 0 and 1.
func lostNumbers(q *Queue) (all batch.Ranges) {
	for _, l := range append(q.LostRanges(testLane(0)), q.LostRanges(testLane(1))...) {
		for _, r := range l.Ranges.All() {
			all.AddRange(r)
		}
	}
	return all
}

func checkChanged(t *testing.T, dir string, names []string, wants CursorWants) {
	t.Helper()
	q := mustOpen(t, dir, Options{Cursors: names, Wants: wants})
	if got := left(t, q, "a"); !slices.Equal(got, []uint64{7, 10, 11, 12}) {
		t.Errorf("a needs %v", got)
	}
	if got := left(t, q, "x"); !slices.Equal(got, []uint64{2, 3, 7, 10, 11}) {
		t.Errorf("x needs %v", got)
	}
	lost := lostNumbers(q)
	if got := lost.String(); got != "5,8" && got != "5,8-9" || q.Stats().Losses[LostNoCursor].Batches != lost.Count() {
		t.Errorf("lost is %v; %+v", got, q.Stats().Losses)
	}
	checkParts(t, q)
	for _, name := range names {
		c := mustCursor(t, q, name)
		for range left(t, q, name) {
			c.Ack(mustNext(t, c).Seq)
		}
	}
	if s := q.Stats(); s.Live != (Tally{}) {
		t.Errorf("all is acked, and left is %+v", s.Live)
	}
	mustClose(t, q)
	checkBolt(t, dir)
}

// cursorsChildEnv has the child of the crash tests add and remove a cursor all the time.
const cursorsChildEnv = "QUEUE_CRASH_CURSORS"

func cursorsChild(dir string) error {
	ended := make(chan error, 2)
	go func() {
		ended <- crashChildWith(dir, func(q *Queue) {
			for {
				for _, names := range [][]string{{"out", "guest"}, {"out"}} {
					if err := q.SetCursors(CursorSet{Cursors: names}); err != nil {
						ended <- err
						return
					}
				}
			}
		})
	}()
	return <-ended
}

// TestKillsWhileCursorsComeAndGo lose nothing of a cursor that stays, wherever in a change.
func TestKillsWhileCursorsComeAndGo(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	var done uint64
	for _, arm := range []string{fpPortionName + "=kill@1", fpPortionName + "=kill@7", "queue/commit-after=kill@20", fpPortionName + "=kill@200", "queue/commit-before=kill@9"} {
		done = max(done, killedChild(t, dir, arm, cursorsChildEnv+"=1"))
		checkCrashed(t, dir, done, LostNoCursor)
	}
}
