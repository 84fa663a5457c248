package relay

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"testing"

	"ftfuse/config"
	"ftfuse/internal/batch"
	"ftfuse/transport"
)

// TestSealedBytesGoThroughUntouched: and the way is noted, the mark that another node may
// have a copy stays, finals come back and horizons go on.
func TestSealedBytesGoThroughUntouched(t *testing.T) {
	a := newAggregator(t, 9)
	x := start(t, newSetup(t, a))
	f := newFeeder(1)
	f.connect(t, x.r.Addr().String())
	for i := range 100 {
		b := f.seal("h", "f", fmt.Sprintf("line %d\x00\xff\r\n", i))
		if i == 7 {
			b.Flags = batch.FlagResent
		}
		f.send(b)
	}
	f.expect(t, "final acks", f.allFinal)
	a.check(f)
	a.Lock()
	for i, b := range a.taken {
		want := f.queue[i]
		if !bytes.Equal(b.Data, want.Data) || b.CRC != want.CRC || b.ID != want.ID || b.Host != "h" || b.Time != want.Time || b.Records != 1 || b.Payload != want.Payload {
			t.Fatalf("batch %d came as %+v, want %+v", i, b, want)
		}
		if !slices.Equal(b.Via, []batch.Node{batch.Node(f.lane.Origin), x.r.q.Node()}) {
			t.Fatalf("batch %d came through %v", i, b.Via)
		}
		if (b.Flags&batch.FlagResent != 0) != (i == 7) {
			t.Fatalf("batch %d has the flags %b", i, b.Flags)
		}
	}
	a.Unlock()
	a.expect("the horizon", func() bool { return a.horizon[f.lane] == 101 })
	st := x.r.Stats()
	if st.Taken.Batches != 100 || st.Taken.Records != 100 || st.Resent.Batches != 1 || st.Duplicates != 0 {
		t.Errorf("stats %+v", st)
	}
	x.end()
}

// TestFinalIsFinalAtEveryGroup: one group's aggregator has it, the other's has not.
func TestFinalIsFinalAtEveryGroup(t *testing.T) {
	a, b := newAggregator(t, 8), newAggregator(t, 9)
	b.hold = true
	s := newSetup(t, a, b)
	s.KeepFinal = true // so that each group counts its finals
	x := start(t, s)
	f := newFeeder(1)
	f.connect(t, x.r.Addr().String())
	for i := range 10 {
		f.add("f", fmt.Sprint(i))
	}
	f.expect(t, "hop acks", f.allAcked)
	a.expect("all of it", a.has(10))
	b.expect("all of it", b.has(10))
	waitFor(t, "the first group's finals", func() bool {
		return finalAt(x.r, "group0") == 10
	})
	f.Lock()
	if n := f.final.Count(); n != 0 {
		t.Errorf("%d batches are final upstream, and not at every group", n)
	}
	f.Unlock()
	b.finish()
	f.expect(t, "final acks", f.allFinal)
	a.check(f)
	b.check(f)
	x.end()
}

func finalAt(r *Relay, group string) (n uint64) {
	for _, g := range r.Stats().Forward.Groups {
		for _, l := range g.Lines {
			if g.Name == group {
				n += l.Final
			}
		}
	}
	return n
}

// TestFinalsReachAPeerThatWasAway: they came while it was not connected.
func TestFinalsReachAPeerThatWasAway(t *testing.T) {
	a := newAggregator(t, 9)
	a.hold = true
	x := start(t, newSetup(t, a))
	f := newFeeder(1)
	stop := f.connect(t, x.r.Addr().String())
	for i := range 10 {
		f.add("f", fmt.Sprint(i))
	}
	f.expect(t, "hop acks", f.allAcked)
	a.expect("all of it", a.has(10))
	stop()
	a.finish()
	waitFor(t, "the finals", func() bool {
		final := x.r.forward.Finals(f.lane)
		return final.Count() == 10
	})
	f.connect(t, x.r.Addr().String())
	f.expect(t, "final acks", f.allFinal)
	x.end()
}

// TestDuplicatesGoOnOnce: a source that missed the ack sends again; a restart between.
func TestDuplicatesGoOnOnce(t *testing.T) {
	a := newAggregator(t, 9)
	s := newSetup(t, a)
	f := newFeeder(1)
	for range 3 {
		x := start(t, s)
		stop := f.connect(t, x.r.Addr().String())
		f.Lock()
		f.next = 0 // all of it once more
		f.final = batch.Ranges{}
		f.Unlock()
		f.add("f", "line")
		f.expect(t, "acks and finals", func() bool { return f.allAcked() && f.allFinal() })
		stop()
		x.end()
	}
	a.check(f)
}

// TestAnotherContentIsRefused: the machine upstream was cloned.
func TestAnotherContentIsRefused(t *testing.T) {
	a := newAggregator(t, 9)
	x := start(t, newSetup(t, a))
	f, clone := newFeeder(1), newFeeder(1)
	stop := f.connect(t, x.r.Addr().String())
	f.add("f", "one")
	f.expect(t, "final acks", f.allFinal)
	stop()
	clone.connect(t, x.r.Addr().String())
	clone.add("f", "another")
	clone.expect(t, "a refusal", func() bool { return len(clone.refused) == 1 })
	if v := clone.refused[0]; v.Code != transport.Conflict {
		t.Errorf("refused with %+v, want conflict", v)
	}
	if n := x.r.Stats().Conflicts; n != 1 {
		t.Errorf("%d conflicts are counted", n)
	}
	x.end()
	a.check(f)
}

// TestAConflictFurtherDownIsRelabelled: the aggregator took the clone's batch by another
// way. The relay's copy goes on under an id of the relay's own, and is final upstream
// under the old one.
func TestAConflictFurtherDownIsRelabelled(t *testing.T) {
	for _, copies := range []bool{false, true} {
		t.Run(fmt.Sprintf("copies=%v", copies), func(t *testing.T) {
			a := newAggregator(t, 9)
			s := newSetup(t, a)
			if copies {
				s = s.withCopy()
			}
			clone, f := newFeeder(1), newFeeder(1)
			stop := clone.connect(t, a.addr)
			clone.add("f", "another")
			clone.expect(t, "final acks", clone.allFinal)
			stop()
			x := start(t, s)
			f.connect(t, x.r.Addr().String())
			f.add("f", "one")
			f.add("f", "two")
			f.expect(t, "acks and finals", func() bool { return f.allAcked() && f.allFinal() })
			a.expect("three batches", a.has(3))
			var texts []string
			a.Lock()
			for _, b := range a.taken {
				texts = append(texts, lineOf(t, b))
				if n := b.ID.Lane.Origin; n != batch.Origin(x.r.q.Node()) && n != f.lane.Origin {
					t.Errorf("a batch of origin %x came", n)
				}
			}
			a.Unlock()
			slices.Sort(texts)
			if want := []string{"another\n", "one\n", "two\n"}; !slices.Equal(texts, want) {
				t.Errorf("the aggregator has %q, want %q", texts, want)
			}
			x.end()
			if copies {
				wantFile(t, s.out("h", "f"), "one\ntwo\n")
			}
		})
	}
}

// heldLog is the handler of a log that takes its time for a message.
type heldLog struct {
	slog.Handler
	message string
	release chan struct{}
}

func (h heldLog) Handle(ctx context.Context, r slog.Record) error {
	if strings.HasPrefix(r.Message, h.message) {
		<-h.release
	}
	return h.Handler.Handle(ctx, r)
}

// TestANewIdIsFinalBeforeItsRelabellingHasEnded: what is noted of the new id changes then. The
// race detector alone tells whether somebody may still read it.
func TestANewIdIsFinalBeforeItsRelabellingHasEnded(t *testing.T) {
	a := newAggregator(t, 9)
	clone, f := newFeeder(1), newFeeder(1)
	stop := clone.connect(t, a.addr)
	clone.add("f", "another")
	clone.expect(t, "final acks", clone.allFinal)
	stop()
	held := heldLog{testLogger(t).Handler(), "two contents went under one id", make(chan struct{})}
	x := startLogging(t, newSetup(t, a), slog.New(held))
	f.connect(t, x.r.Addr().String())
	f.add("f", "one")
	f.expect(t, "finals", f.allFinal)
	close(held.release)
	x.end()
}

// TestEverythingIsSentBeforeTheEnd: SIGTERM while the backlog is long.
func TestEverythingIsSentBeforeTheEnd(t *testing.T) {
	a := newAggregator(t, 9)
	s := newSetup(t, a).withCopy()
	x := start(t, s)
	f := newFeeder(1)
	f.connect(t, x.r.Addr().String())
	line := strings.Repeat("x", 100<<10)
	want := ""
	a.Lock() // it takes nothing for now
	for range 200 {
		f.add("f", line)
		want += line + "\n"
	}
	f.expect(t, "hop acks", f.allAcked)
	x.stop()
	a.Unlock()
	x.end()
	a.check(f)
	wantFile(t, s.out("h", "f"), want)
}

// TestAFullQueueHoldsTheSenderBack: nothing is lost, nothing is refused, and all goes on.
func TestAFullQueueHoldsTheSenderBack(t *testing.T) {
	a := newAggregator(t, 9)
	a.stop()
	s := newSetup(t, a)
	s.MaxBytes = 2 << 20
	x := start(t, s)
	f := newFeeder(1)
	f.connect(t, x.r.Addr().String())
	line := strings.Repeat("x", 100<<10)
	for range 60 {
		f.add("f", line)
	}
	waitFor(t, "a full queue", func() bool { return x.r.q.Room() < 110<<10 })
	f.Lock()
	if len(f.acked) > 21 || len(f.refused) > 0 {
		t.Errorf("%d acked, refused %v", len(f.acked), f.refused)
	}
	f.Unlock()
	a.start()
	f.expect(t, "acks and finals", func() bool { return f.allAcked() && f.allFinal() })
	a.check(f)
	x.end()
}

// TestBroadcastSendsToEach: one that is down costs the other nothing.
func TestBroadcastSendsToEach(t *testing.T) {
	a, b := newAggregator(t, 8), newAggregator(t, 9)
	b.stop()
	s := newSetup(t, a)
	s.Forwards[0].Mode, s.Forwards[0].Primary = config.ForwardBroadcast, []string{a.addr, b.addr}
	x := start(t, s)
	f := newFeeder(1)
	f.connect(t, x.r.Addr().String())
	for i := range 50 {
		f.add("f", fmt.Sprint(i))
	}
	f.expect(t, "hop acks", f.allAcked)
	a.expect("all of it", a.has(50))
	b.start()
	f.expect(t, "final acks", f.allFinal)
	a.check(f)
	b.check(f)
	x.end()
}

// TestALoopIsRefused: two relays that send to each other while nobody else is there. No
// copy goes on the strength of the other's.
func TestALoopIsRefused(t *testing.T) {
	a := newAggregator(t, 9)
	a.stop()
	one, two := newSetup(t, a), newSetup(t, a)
	for _, p := range []struct{ s, other *setup }{{&one, &two}, {&two, &one}} {
		p.s.Forwards[0].Secondary = []string{p.other.Listen}
	}
	x, y := start(t, one), start(t, two)
	f := newFeeder(1)
	f.connect(t, one.Listen)
	for i := range 20 {
		f.add("f", fmt.Sprint(i))
	}
	f.expect(t, "hop acks", f.allAcked)
	waitFor(t, "the other relay to have it", func() bool { return y.r.Stats().Taken.Batches == 20 })
	a.start()
	f.expect(t, "final acks", f.allFinal)
	a.check(f)
	x.end()
	y.end()
}

// TestTwoCopiesDoNotDeleteEachOther: both relays have every batch from the source, and
// offer it to each other while nobody else is there. Each knows the id; if each called it
// a duplicate, each would let its copy go.
func TestTwoCopiesDoNotDeleteEachOther(t *testing.T) {
	a := newAggregator(t, 9)
	a.stop()
	one, two := newSetup(t, a), newSetup(t, a).withCopy()
	f, g := newFeeder(1), newFeeder(1)
	want := ""
	for i := range 20 {
		line := fmt.Sprintf("line %d\n", i)
		want += line
		b := f.seal("h", "f", line)
		f.send(b)
		g.send(b)
	}
	f.connect(t, one.Listen)
	g.connect(t, two.Listen)
	x, y := start(t, one), start(t, two) // which do not know each other yet
	f.expect(t, "hop acks", f.allAcked)
	g.expect(t, "hop acks", g.allAcked)
	x.end()
	y.end()
	one.Forwards[0].Secondary, two.Forwards[0].Secondary = []string{two.Listen}, []string{one.Listen}
	x, y = start(t, one), start(t, two)
	waitFor(t, "both to have met", func() bool { return x.r.Stats().Duplicates >= 20 && y.r.Stats().Duplicates >= 20 })
	a.start()
	f.expect(t, "final acks", f.allFinal)
	g.expect(t, "final acks", g.allFinal)
	a.check(f)
	if n := x.r.Stats().Again + y.r.Stats().Again; n < 20 {
		t.Errorf("%d batches were taken again", n)
	}
	x.end()
	y.end()
	wantFile(t, two.out("h", "f"), want)
}

func wantFile(t testing.TB, path, want string) {
	t.Helper()
	got, err := os.ReadFile(path)
	if err != nil {
		t.Error(err)
	} else if string(got) != want {
		t.Errorf("%s has %d bytes, want %d: %.80q…", path, len(got), len(want), got)
	}
}
