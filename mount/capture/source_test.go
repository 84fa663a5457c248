package capture

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"ftfuse/internal/failpoint"
	"ftfuse/internal/record"
	"ftfuse/queue"
)

// source returns what is stored of the source of that path, adding it where there is none.
func (r *rig) source(path string) (id uint64, s Source) {
	r.Helper()
	r.must(r.c.Sources(func(n uint64, x Source) {
		if x.Path == path {
			id, s = n, x
		}
	}))
	if id == 0 {
		var err error
		s = Source{Kind: SourceFile, Path: path, Dev: 1, Ino: 2, Birth: 3}
		id, err = r.c.AddSource(r.ctx(), s)
		r.must(err)
	}
	return id, s
}

// feed feeds data from the stored position on in pieces of n bytes.
func (r *rig) feed(path, data string, n int) error {
	r.Helper()
	id, s := r.source(path)
	for at := s.Pos; at < int64(len(data)); {
		end := min(at+int64(n), int64(len(data)))
		if err := r.c.Feed(r.ctx(), id, at, []byte(data[at:end]), false, Fed{UID: 33, GID: 34, Time: 77}); err != nil {
			return err
		}
		at = end
	}
	return nil
}

func numbered(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "line %d of a file that was written while nothing was mounted\n", i)
	}
	return b.String()
}

func TestWhatIsFedArrivesFlaggedInWholeLines(t *testing.T) {
	r := newRig(t, Options{})
	r.start()
	data := numbered(1000) + "no end"
	r.must(r.feed("logs/a.log", data, 333))
	r.want("logs/a.log", data[:len(data)-len("no end")])
	for _, x := range r.records() {
		if x.flags != record.Offline || x.pid != 0 || x.time != 77 || !strings.HasSuffix(x.data, "\n") {
			t.Fatalf("%v at %d, want whole lines, flagged offline, of time 77", x, x.time)
		}
	}
	r.restart() // nobody is left who could end the line, but the source is
	r.want("logs/a.log", data[:len(data)-len("no end")])
	r.must(r.feed("logs/a.log", data+" of it\n", 1<<20))
	r.want("logs/a.log", data+" of it\n")
	if got := r.c.Stats().Offline; got != uint64(len(" of it\n")) {
		t.Errorf("%d bytes counted since the start", got)
	}
}

// An interrupted feeder begins again with what it was about to feed.
func TestBytesFedAgainStandOnce(t *testing.T) {
	r := newRig(t, Options{})
	r.start()
	id, _ := r.source("a")
	for _, x := range []struct {
		off  int64
		data string
		want error
	}{{0, "one\ntwo\n", nil}, {0, "one\n", nil}, {4, "two\nthree\n", nil}, {0, "one\ntwo\nthree\n", nil}, {15, "five\n", ErrAhead}} {
		if err := r.c.Feed(r.ctx(), id, x.off, []byte(x.data), false, Fed{}); !errors.Is(err, x.want) {
			t.Fatalf("feed %q at %d: %v, want %v", x.data, x.off, err, x.want)
		}
	}
	r.must(r.c.Feed(r.ctx(), id, 20, []byte("six\n"), true, Fed{}))
	r.want("a", "one\ntwo\nthree\nsix\n")
	if st := r.c.Stats(); st.HoleBytes != 6 {
		t.Errorf("%d bytes of holes, want 6", st.HoleBytes)
	}
	if err := r.c.Feed(r.ctx(), id+1, 0, []byte("x"), false, Fed{}); !errors.Is(err, ErrNoSource) {
		t.Errorf("a source that is not: %v", err)
	}
}

// TestFeedingIsExactlyOnceAcrossAKillAtEachStep kills before and after each commit; whoever
// feeds goes on at what is stored.
func TestFeedingIsExactlyOnceAcrossAKillAtEachStep(t *testing.T) {
	data := numbered(3000)
	for _, rules := range [][]Rule{nil, {{Path: "logs/**", Transfer: true, Route: 3}}} {
		for _, point := range []string{"capture/seal", "capture/committed", "capture/fed"} {
			for n := 1; n < 8; n += 2 { // more commits may share one look of the completer
				t.Run(fmt.Sprintf("%s@%d,%d rules", point, n, len(rules)), func(t *testing.T) {
					r := newRig(t, Options{Rules: rules, BatchBytes: 16 << 10})
					r.start()
					r.source("logs/a.log")
					r.must(failpoint.Set(point, fmt.Sprintf("error@%d", n)))
					err := r.feed("logs/a.log", data, 4000)
					failpoint.Clear(point)
					if err == nil && point != "capture/committed" { // that is a goroutine of its own
						t.Fatal("the step was not reached")
					}
					r.restart()
					r.must(r.feed("logs/a.log", data, 20_000))
					r.want("logs/a.log", data)
				})
			}
		}
	}
}

func TestAForgottenSourceLeavesNothing(t *testing.T) {
	r := newRig(t, Options{})
	r.start()
	before := len(r.q.disk)
	id, _ := r.source("a")
	r.must(r.feed("a", "whole\n"+strings.Repeat("part of a long line ", 1000), 999))
	r.must(r.c.DropSource(r.ctx(), id))
	r.want("a", "whole\n"+strings.Repeat("part of a long line ", 1000))
	r.q.set(func() {
		if len(r.q.disk) != before {
			t.Errorf("%d values in the queue, want %d as before: %v", len(r.q.disk), before, r.q.disk)
		}
	})
	r.source("b")
	if err := r.c.Feed(r.ctx(), id, 0, []byte("of a\n"), false, Fed{}); !errors.Is(err, ErrNoSource) {
		t.Errorf("the forgotten source is fed: %v, want %v, since its id is no other's", err, ErrNoSource)
	}
	r.restart()
	r.must(r.feed("b", "of b\n", 10))
	r.want("b", "of b\n")
}

func TestAChangedSourceEndsItsLine(t *testing.T) {
	r := newRig(t, Options{})
	r.start()
	r.must(r.feed("a", "one\nnot en", 5))
	id, s := r.source("a")
	if string(s.Begin) != "one\nnot en" || s.Pos != 10 {
		t.Errorf("known by %q at %d", s.Begin, s.Pos)
	}
	r.must(r.c.ChangeSource(r.ctx(), id, func(s *Source) { s.Pos, s.Begin = 0, nil }))
	r.restart()
	r.must(r.feed("a", "anew\n", 5))
	r.want("a", "one\nnot enanew\n")
	if _, s = r.source("a"); string(s.Begin) != "anew\n" {
		t.Errorf("known by %q", s.Begin)
	}
}

func TestALineOfAProgramIsNotMixedWithWhatIsFed(t *testing.T) {
	r := newRig(t, Options{MaxHold: 64, MaxLine: 64})
	r.start()
	w := r.writer("a")
	r.write(w, strings.Repeat("x", 200)) // goes out in pieces
	r.drain()
	r.must(r.feed("a", "fed\n", 10))
	r.write(w, "y\n")
	r.drain()
	if got := r.output("a"); !strings.Contains(got, "\nfed\n") {
		t.Errorf("got %q, want what was fed in a line of its own", got)
	}
}

// A queue without room refuses what is fed, and the same may be fed again.
func TestFeedingAFullQueueFailsAndCanBeRepeated(t *testing.T) {
	r := newRig(t, Options{})
	r.start()
	id, _ := r.source("a")
	r.q.set(func() { r.q.refuse = queue.ErrFull })
	if err := r.c.Feed(r.ctx(), id, 0, []byte("one\n"), false, Fed{}); !errors.Is(err, queue.ErrFull) {
		t.Fatalf("fed into a full queue: %v", err)
	}
	r.q.set(func() { r.q.refuse = nil })
	err := queue.ErrFull
	for errors.Is(err, queue.ErrFull) { // who waits is told of an attempt that was under way, too
		err = r.c.Feed(r.ctx(), id, 0, []byte("one\ntwo\n"), false, Fed{})
	}
	r.must(err)
	r.want("a", "one\ntwo\n")
}

func TestFeedingEndsWithItsContext(t *testing.T) {
	r := newRig(t, Options{})
	r.start()
	id, _ := r.source("a")
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := r.c.Feed(ctx, id, 0, []byte("one\n"), false, Fed{}); err != nil && !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	r.must(r.c.Feed(r.ctx(), id, 0, []byte("one\n"), false, Fed{}))
	r.want("a", "one\n")
}

// stillAnswered fails unless call returns: it is to wait for no room.
func (r *rig) stillAnswered(what string, call func() error) {
	r.Helper()
	done := make(chan error, 1)
	go func() { done <- call() }()
	select {
	case err := <-done:
		r.must(err)
	case <-time.After(20 * time.Second):
		r.Fatalf("%s waits for room in a full queue", what)
	}
}

// The end of a line waited for room in a full queue, whatever became of its caller: a mount
// that took files in was not made until its destination was back.
func TestSourcesOfAFullQueueAreEndedAndForgotten(t *testing.T) {
	for name, fill := range map[string]func(q *memQueue){
		"blocks":  func(q *memQueue) { q.full = true },
		"refuses": func(q *memQueue) { q.refuse = queue.ErrFull },
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, Options{FullRetry: time.Millisecond})
			r.start()
			for _, path := range []string{"ended", "dropped", "anew"} {
				r.must(r.feed(path, "one\nno end", 100))
			}
			ended, _ := r.source("ended")
			dropped, _ := r.source("dropped")
			anew, _ := r.source("anew")
			r.q.set(func() { fill(r.q) })
			r.stillAnswered("EndLine", func() error { return r.c.EndLine(r.ctx(), ended, true) })
			r.stillAnswered("DropSource", func() error { return r.c.DropSource(r.ctx(), dropped) })
			r.stillAnswered("ChangeSource", func() error {
				return r.c.ChangeSource(r.ctx(), anew, func(s *Source) { s.Pos = 0 })
			})
			r.stillAnswered("AddSource", func() error {
				_, err := r.c.AddSource(r.ctx(), Source{Kind: SourceFile, Path: "new"})
				return err
			})
			for _, path := range []string{"ended", "dropped", "anew"} {
				r.want(path, "one\nno end")
			}
		})
	}
}

// What is cut cannot be taken back, and its caller cannot wait for ever.
func TestFeedingAFullQueueEndsWithItsContext(t *testing.T) {
	r := newRig(t, Options{})
	r.start()
	id, _ := r.source("a")
	r.q.set(func() { r.q.full = true })
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.c.Feed(ctx, id, 0, []byte("one\n"), false, Fed{}) }()
	r.waitFor("blocked capture", func() bool { return r.c.Stats().InFlight > 0 })
	cancel()
	r.stillAnswered("Feed", func() error { return <-done })
	if err := r.c.Feed(ctx, id, 4, []byte("two\n"), false, Fed{}); !errors.Is(err, context.Canceled) {
		t.Errorf("fed after the end of the context: %v", err)
	}
	r.want("a", "one\n")
}

// Bytes that were fed while the rules changed, or of a file with another name by now, were
// passed over as taken: whoever fed them removed their file.
func TestWhatARuleDoesNotTransferIsNotTaken(t *testing.T) {
	r := newRig(t, Options{})
	r.start()
	r.must(r.feed("a", "one\nno end", 100))
	id, _ := r.source("a")
	r.must(r.c.SetRules(r.ctx(), []Rule{{Path: "a", Transfer: false}}))
	for _, hole := range []bool{false, true} {
		off := int64(10)
		if hole {
			off = 4096
		}
		if err := r.c.Feed(r.ctx(), id, off, []byte(" of it\n"), hole, Fed{}); !errors.Is(err, ErrSkipped) {
			t.Fatalf("fed at %d: %v, want %v", off, err, ErrSkipped)
		}
	}
	if _, s := r.source("a"); s.Pos != 10 || r.c.Stats().HoleBytes != 0 {
		t.Fatalf("the position is %d, %d bytes of holes; want 10, 0", s.Pos, r.c.Stats().HoleBytes)
	}
	r.must(r.c.Feed(r.ctx(), id, 0, []byte("one\n"), false, Fed{})) // what is taken is taken
	r.must(r.c.SetRules(r.ctx(), nil))
	r.must(r.c.Feed(r.ctx(), id, 0, []byte("one\nno end of it\n"), false, Fed{}))
	r.want("a", "one\nno end of it\n")
}

// Whoever adds a source and gives up either has it or has not: one that is there and that its
// caller does not know would be added again, and its bytes stand twice.
func TestWhoGivesUpAddingASourceKnowsWhetherItIsThere(t *testing.T) {
	r := newRig(t, Options{})
	r.start()
	r.must(r.feed("other", "one\n", 100))
	count := func() (ids []uint64) {
		r.must(r.c.Sources(func(id uint64, s Source) {
			if s.Path == "a" {
				ids = append(ids, id)
			}
		}))
		return ids
	}
	gone, cancel := context.WithCancel(context.Background())
	cancel()
	id, err := r.c.AddSource(gone, Source{Kind: SourceFile, Path: "a"})
	if ids := count(); (err == nil) != (len(ids) == 1) || len(ids) > 1 || len(ids) == 1 && ids[0] != id {
		t.Fatalf("given up before: %v, id %d; the sources are %d", err, id, ids)
	}
	if err == nil {
		r.must(r.c.DropSource(r.ctx(), id))
	}

	r.q.set(func() { r.q.held = true })
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		var err error
		id, err = r.c.AddSource(ctx, Source{Kind: SourceFile, Path: "a"})
		done <- err
	}()
	r.waitFor("the source on its way to the disk", func() bool { return len(count()) == 1 })
	cancel()
	r.q.set(func() { r.q.held = false })
	if err := <-done; err != nil {
		t.Errorf("added, and answered %v", err)
	}
	if ids := count(); len(ids) != 1 || ids[0] != id {
		t.Errorf("the sources are %d, and %d was answered", ids, id)
	}
}
