package queue

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"strings"
	"testing"
	"time"
)

// policyQueue holds ten batches of 10 kB and has room for no more.
func policyQueue(t *testing.T, dir string, p Policy) *Queue {
	t.Helper()
	q := mustOpen(t, dir, Options{MaxBytes: 102 << 10, OnFull: p, MemoryBytes: 1, Dedupe: true})
	for n := uint64(1); n <= 10; n++ {
		mustSubmit(t, q, &Txn{Entries: []Entry{testEntry(1, n, 10000)}})
	}
	mustFlush(t, q)
	return q
}

func TestBlockWaitsForRoom(t *testing.T) {
	q := policyQueue(t, t.TempDir(), Block)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := q.Submit(ctx, &Txn{Entries: []Entry{testEntry(1, 11, 10000)}}); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("Submit to a full queue: %v", err)
	}
	if room := q.Room(); room > 10000 {
		t.Fatalf("there is room for %d bytes", room)
	}
	done := make(chan error, 1)
	go func() {
		_, err := q.Submit(t.Context(), &Txn{Entries: []Entry{testEntry(1, 11, 10000)}})
		done <- err
	}()
	c := mustCursor(t, q, "out")
	c.Ack(mustNext(t, c).Seq)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if d := q.Delivered(testLane(1)); d.String() != "1-11" {
		t.Fatalf("delivered %v", d.String())
	}
}

func TestErrorPolicyRefusesAndTakesNothing(t *testing.T) {
	q := policyQueue(t, t.TempDir(), Error)
	called := false
	_, err := q.Submit(t.Context(), &Txn{
		Entries: []Entry{testEntry(1, 11, 10000)}, Set: []KV{{"k", []byte("v")}},
		Prepare: func(*Txn) error { called = true; return nil }, Done: func(error) { called = true },
	})
	if !errors.Is(err, ErrFull) || called {
		t.Fatalf("Submit to a full queue: %v, a callback was called: %v", err, called)
	}
	mustFlush(t, q)
	if _, ok := q.Get("k"); ok {
		t.Fatal("the refused Txn set a key")
	}
	if d := q.Delivered(testLane(1)); d.String() != "1-10" {
		t.Fatalf("delivered %v", d.String())
	}
}

func TestDropNewestCountsAndStillSets(t *testing.T) {
	dir := t.TempDir()
	q := policyQueue(t, dir, DropNewest)
	done := make(chan error, 1)
	st := mustSubmit(t, q, &Txn{
		Entries: []Entry{testEntry(1, 11, 10000)}, Done: func(err error) { done <- err },
		Prepare: func(x *Txn) error {
			x.Set = append(x.Set, KV{"entries", fmt.Append(nil, len(x.Entries))})
			return nil
		},
	})
	if st != Dropped {
		t.Fatalf("status %v", st)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	mustClose(t, q)
	q = mustOpen(t, dir, Options{Dedupe: true})
	want := Tally{1, 11%7 + 1, 10000, uint64((&Entry{Batch: testEntry(1, 11, 10000).Batch, Note: []byte("note 11")}).size())}
	if got := q.Stats().Losses; len(got) != 1 || got[LostDropNewest] != want {
		t.Fatalf("losses %+v, want %+v", got, want)
	}
	if v, _ := q.Get("entries"); string(v) != "0" {
		t.Fatalf("Prepare of a dropped Txn saw %q entries, want 0", v)
	}
	if d := q.Delivered(testLane(1)); d.String() != "1-10" {
		t.Fatalf("delivered %v: what was dropped may not be in it", d.String())
	}
}

func TestDropOldestSparesWhatAConsumerHolds(t *testing.T) {
	dir := t.TempDir()
	q := policyQueue(t, dir, DropOldest)
	c := mustCursor(t, q, "out")
	held := mustNext(t, c)
	for n := uint64(11); n <= 13; n++ {
		if st := mustSubmit(t, q, &Txn{Entries: []Entry{testEntry(1, n, 10000)}}); st != Fresh {
			t.Fatal(st)
		}
	}
	mustFlush(t, q)
	for _, n := range []uint64{5, 6, 7, 8, 9, 10, 11, 12, 13} {
		if it := mustNext(t, c); it.Batch.ID.N != n {
			t.Fatalf("got batch %d, want %d", it.Batch.ID.N, n)
		}
	}
	c.Ack(held.Seq)
	mustClose(t, q)
	q = mustOpen(t, dir, Options{Dedupe: true})
	if got := q.Stats().Losses[LostDropOldest]; got.Batches != 3 || got.Records != 3+4+5 || got.Payload != 30000 {
		t.Fatalf("losses %+v", got)
	}
	if w := q.Stats().Cursors[0].Waiting; w.Batches != 9 {
		t.Fatalf("%d batches wait, want 9", w.Batches)
	}
}

func TestMaxAgeExpires(t *testing.T) {
	dir := t.TempDir()
	q := mustOpen(t, dir, Options{MemoryBytes: 1})
	for n := uint64(1); n <= 4; n++ {
		e := testEntry(1, n, 1000)
		if n <= 3 {
			e.Batch.Time -= int64(time.Hour)
		}
		mustSubmit(t, q, &Txn{Entries: []Entry{e}})
	}
	mustClose(t, q)
	q = mustOpen(t, dir, Options{MaxAge: time.Minute})
	c := mustCursor(t, q, "out")
	if it := mustNext(t, c); it.Batch.ID.N != 4 {
		t.Fatalf("got batch %d, want 4", it.Batch.ID.N)
	}
	if got := q.Stats().Losses[LostExpired]; got.Batches != 3 || got.Payload != 3000 {
		t.Fatalf("losses %+v", got)
	}
}

func TestABatchLargerThanTheQueueIsTakenWhenItIsEmpty(t *testing.T) {
	q := mustOpen(t, t.TempDir(), Options{MaxBytes: 1000, OnFull: Error, PendingBytes: 1000})
	mustSubmit(t, q, &Txn{Entries: []Entry{testEntry(1, 1, 1<<20)}})
	if _, err := q.Submit(t.Context(), &Txn{Entries: []Entry{testEntry(1, 2, 10)}}); !errors.Is(err, ErrFull) {
		t.Fatal(err)
	}
}

// A full queue under drop_newest used to say nothing at all.
func TestWhatAPolicyDropsIsNamedInTheLog(t *testing.T) {
	for _, p := range []Policy{DropNewest, DropOldest} {
		var out bytes.Buffer
		q := mustOpen(t, t.TempDir(), Options{MaxBytes: 25 << 10, OnFull: p, Logger: slog.New(slog.NewTextHandler(&out, nil))})
		for n := uint64(1); n <= 3; n++ {
			mustSubmit(t, q, &Txn{Entries: []Entry{testEntry(1, n, 10000)}})
			mustFlush(t, q)
		}
		mustClose(t, q)
		dropped := testEntry(1, map[Policy]uint64{DropNewest: 3, DropOldest: 1}[p], 10000).Batch.ID.String()
		if !strings.Contains(out.String(), "level=WARN") || !strings.Contains(out.String(), dropped) {
			t.Errorf("policy %v: the log does not name batch %s:\n%s", p, dropped, &out)
		}
	}
}

// TestAsideDoesNotWaitBehindWhatWaitsForRoom: whoever makes room may have to store
// something first.
func TestAsideDoesNotWaitBehindWhatWaitsForRoom(t *testing.T) {
	q := mustOpen(t, t.TempDir(), Options{MaxBytes: 100 << 10, Cursors: []string{"out"}})
	c := mustCursor(t, q, "out")
	mustSubmit(t, q, &Txn{Entries: []Entry{testEntry(1, 1, 90<<10)}})
	waiting := make(chan error, 1)
	go func() {
		_, err := q.Submit(t.Context(), &Txn{Entries: []Entry{testEntry(1, 2, 90<<10)}})
		waiting <- err
	}()
	for len(q.submit) == 0 { // it has begun to wait
		runtime.Gosched()
	}
	done := make(chan error, 1)
	if _, err := q.Submit(t.Context(), &Txn{Aside: true, Set: []KV{{Key: "a", Value: []byte("b")}}, Done: func(err error) { done <- err }}); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	it, err := c.Next(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	c.Ack(it.Seq)
	if err := <-waiting; err != nil {
		t.Fatal(err)
	}
}
