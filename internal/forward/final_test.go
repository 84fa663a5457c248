package forward

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"ftfuse/internal/batch"
	"ftfuse/queue"
	"ftfuse/transport"
)

func one(n uint64) batch.ID { return batch.ID{Lane: rigLane(1), N: n} }

// TestKeepFinalLetsGoOfWhatIsFinal, and not before; a restart sends it again.
func TestKeepFinalLetsGoOfWhatIsFinal(t *testing.T) {
	inBubble(t, func(r *rig) {
		r.o.KeepFinal, r.o.FinalTimeout = true, time.Minute
		a := r.up("a", 2, nil)
		r.start()
		r.submit(rigLane(1), 1, 3)
		r.pass(5 * time.Second)
		if st := r.f.Stats().Groups[0].Lines[0]; r.waiting() != 3 || st.Unfinal.Batches != 3 || st.Acked.Batches != 3 || st.Final != 0 {
			t.Errorf("%d wait; %+v", r.waiting(), st)
		}
		a.server.Final(one(2))
		r.pass(5 * time.Second)
		if st := r.f.Stats().Groups[0].Lines[0]; r.waiting() != 2 || st.Unfinal.Batches != 2 || st.Final != 1 {
			t.Errorf("%d wait; %+v", r.waiting(), st)
		}
		if err := r.f.Drain(context.Background()); err != nil {
			t.Errorf("Drain waits for hop acks only: %v", err)
		}
		r.crash()
		a.got = nil
		r.start()
		r.pass(5 * time.Second)
		r.want("after a restart", a.numbers(), "1! 3!")
		a.server.Final(one(1), one(3))
		r.pass(5 * time.Second)
		if r.waiting() != 0 || !slices.Equal(r.finals, []string{"1:2", "1:1,3"}) {
			t.Errorf("%d wait, OnFinal heard %q", r.waiting(), r.finals)
		}
	}, single())
}

// TestWhatIsKeptForTheFinalAckIsReleased: held, it would switch drop_oldest and max_age off
// while the last node is away.
func TestWhatIsKeptForTheFinalAckIsReleased(t *testing.T) {
	for _, keep := range []bool{true, false} {
		inBubble(t, func(r *rig) {
			r.o.KeepFinal, r.o.FinalTimeout = keep, time.Minute
			r.up("a", 2, func(b batch.Sealed) (transport.Verdict, bool) { return transport.Verdict{}, b.ID.N != 2 })
			r.start()
			r.submit(rigLane(1), 1, 3)
			r.pass(time.Second)
			want := ""
			if keep {
				want = "1,3"
			}
			released := r.f.lines[0].cursor.(*simCursor).released
			r.want("released", released.String(), want)
		}, single())
	}
}

// TestWhatIsNotFinalInTimeIsSentAgain, less and less often.
func TestWhatIsNotFinalInTimeIsSentAgain(t *testing.T) {
	inBubble(t, func(r *rig) {
		r.o.KeepFinal, r.o.FinalTimeout = true, time.Minute
		a := r.up("a", 2, nil)
		r.start()
		r.submit(rigLane(1), 1, 2)
		r.pass(59 * time.Second)
		r.want("before final_timeout", a.numbers(), "1 2")
		r.pass(3 * time.Second)
		r.want("after it", a.numbers(), "1 2 1! 2!")
		r.pass(115 * time.Second)
		r.want("before twice final_timeout", a.numbers(), "1 2 1! 2!")
		r.pass(10 * time.Second)
		r.want("after that", a.numbers(), "1 2 1! 2! 1! 2!")
	}, single())
}

// TestAnotherNodeAtADestinationGetsWhatItsPredecessorHad: a relay's disk was wiped.
func TestAnotherNodeAtADestinationGetsWhatItsPredecessorHad(t *testing.T) {
	inBubble(t, func(r *rig) {
		r.o.KeepFinal, r.o.FinalTimeout = true, time.Hour
		a := r.up("a", 2, nil)
		r.start()
		r.submit(rigLane(1), 1, 3)
		r.pass(time.Second)
		a.server.Final(one(1))
		r.pass(time.Second)
		r.down("a")
		a = r.up("a", 2, nil)
		r.pass(5 * time.Second)
		r.want("the same node again", a.numbers(), "")
		r.down("a")
		a = r.up("a", 9, nil)
		r.pass(5 * time.Second)
		r.want("another one", a.numbers(), "2! 3!")
	}, single())
}

// TestASkipSettlesWhatTheFinalAckWouldHave, is counted once, and told upstream.
func TestASkipSettlesWhatTheFinalAckWouldHave(t *testing.T) {
	inBubble(t, func(r *rig) {
		r.o.KeepFinal, r.o.FinalTimeout = true, time.Hour
		a := r.up("a", 2, nil)
		r.start()
		r.submit(rigLane(1), 1, 3)
		r.pass(time.Second)
		skip := transport.Skip{Reason: "expired", Ranges: setOf([]batch.Range{{First: 2, Last: 2}}), Records: 5, Payload: 50}
		a.server.Skip(rigLane(1), skip)
		a.server.Skip(rigLane(1), skip)
		r.pass(5 * time.Second)
		st := r.f.Stats()
		if x := st.Skipped["expired"]; r.waiting() != 2 || x.Batches != 1 || x.Records != 5 || !slices.Equal(r.skips, []string{"1:2 expired"}) {
			t.Errorf("%d wait, %+v, OnSkip heard %q", r.waiting(), x, r.skips)
		}
		a.server.Final(one(1), one(3))
		r.pass(5 * time.Second)
		if got := a.horizon(rigLane(1)); got != 2 {
			t.Errorf("the horizon is %d; a skip is below none", got)
		}
	}, single())
}

// TestWhatWasDamagedFurtherDownIsSentAgainAtOnce: the copy that is kept for the final ack is the
// one that is left. Who has none passes the word on.
func TestWhatWasDamagedFurtherDownIsSentAgainAtOnce(t *testing.T) {
	inBubble(t, func(r *rig) {
		r.o.KeepFinal, r.o.FinalTimeout = true, time.Hour
		a := r.up("a", 2, nil)
		r.start()
		r.submit(rigLane(1), 1, 4)
		r.pass(time.Second)
		a.server.Final(one(1))
		r.pass(time.Second)
		skip := transport.Skip{Reason: queue.LostCorrupt, Ranges: setOf([]batch.Range{{First: 1, Last: 2}, {First: 4, Last: 4}, {First: 9, Last: 9}}), Records: 8, Payload: 80}
		for range 3 {
			a.server.Skip(rigLane(1), skip)
			r.pass(time.Second)
		}
		r.want("sent", a.numbers(), "1 2 3 4 2! 4!")
		x := r.f.Stats().Skipped[queue.LostCorrupt]
		if r.waiting() != 3 || x.Batches != 1 || x.Records != 2 || !slices.Equal(r.skips, []string{"1:9 corrupt"}) {
			t.Errorf("%d wait, %+v, OnSkip heard %q", r.waiting(), x, r.skips)
		}
		a.server.Final(one(2), one(3), one(4))
		r.pass(time.Second)
		if r.waiting() != 0 {
			t.Errorf("%d wait", r.waiting())
		}
	}, single())
}

// TestSkipsAreToldDownstream, also to who connects later.
func TestSkipsAreToldDownstream(t *testing.T) {
	inBubble(t, func(r *rig) {
		r.start()
		r.f.Skip(rigLane(1), transport.Skip{Reason: "drop_oldest", Ranges: setOf([]batch.Range{{First: 4, Last: 6}})})
		r.pass(time.Second)
		a := r.up("a", 2, nil)
		r.pass(5 * time.Second)
		if !slices.Contains(a.skip, "1:4-6 drop_oldest") {
			t.Errorf("told %q", a.skip)
		}
	}, single())
}

// TestAFinalAckProvesNoContent: it names an id. A clone of this machine may have had
// another content under it. What nobody acked is sent all the same, and kept, and not
// reported upstream.
func TestAFinalAckProvesNoContent(t *testing.T) {
	inBubble(t, func(r *rig) {
		conflict := true
		a := r.up("a", 2, func(b batch.Sealed) (v transport.Verdict, _ bool) {
			if b.ID.N == 2 && conflict {
				v.Code = transport.Conflict
			}
			return v, true
		})
		r.start()
		r.pass(time.Second)
		r.net.cut("here", "a", true)
		r.submit(rigLane(1), 1, 3)
		r.pass(100 * time.Millisecond)
		a.server.FinalRanges(rigLane(1), batch.Range{First: 1, Last: 3}) // nobody listens yet: the lane was not announced
		r.net.cut("here", "a", false)
		r.pass(2 * time.Second)
		a.server.FinalRanges(rigLane(1), batch.Range{First: 1, Last: 5})
		r.pass(2 * time.Second)
		r.want("sent", a.numbers(), "1 2 3")
		finals := r.f.Finals(rigLane(1))
		r.want("final", finals.String(), "1,3-5")
		if r.waiting() != 1 {
			t.Errorf("%d are waiting, want the one that is refused", r.waiting())
		}
		conflict = false
		r.net.reset("a")
		r.pass(5 * time.Second)
		finals = r.f.Finals(rigLane(1))
		r.want("final, when it was acked at last", finals.String(), "1-5")
		r.want("OnFinal", r.finals[len(r.finals)-1], "1:2")
	}, single())
}

// TestAStartKnowsWhatItHasBeforeItBelievesAFinalAck.
func TestAStartKnowsWhatItHasBeforeItBelievesAFinalAck(t *testing.T) {
	inBubble(t, func(r *rig) {
		r.start()
		r.submit(rigLane(1), 1, 3)
		r.pass(5 * time.Second)
		r.crash()
		a := r.up("a", 2, never)
		r.slow = 40 * time.Millisecond
		r.start()
		for range 50 {
			r.pass(time.Millisecond)
			a.server.FinalRanges(rigLane(1), batch.Range{First: 1, Last: 5})
		}
		r.pass(5 * time.Second)
		finals := r.f.Finals(rigLane(1))
		r.want("final", finals.String(), "4-5")
	}, single())
}

// TestFinalIsWhatIsFinalAtEveryGroupOfTheLane.
func TestFinalIsWhatIsFinalAtEveryGroupOfTheLane(t *testing.T) {
	x := GroupConfig{Name: "x", Mode: Any, Primary: []string{"a" + simPort}}
	y := GroupConfig{Name: "y", Mode: Any, Primary: []string{"b" + simPort}}
	inBubble(t, func(r *rig) {
		r.o.Routes = func(route uint32) []string {
			if route == 1 {
				return []string{"x"}
			}
			return []string{"x", "y"}
		}
		a, b := r.up("a", 2, nil), r.up("b", 3, nil)
		r.start()
		only := rigLane(1)
		only.Route = 1
		r.submit(rigLane(1), 1, 3)
		r.submit(only, 7, 8)
		r.pass(time.Second)
		r.want("x", a.numbers(), "1 2 3 7 8")
		r.want("y", b.numbers(), "1 2 3")
		a.server.FinalRanges(rigLane(1), batch.Range{First: 1, Last: 3})
		a.server.FinalRanges(only, batch.Range{First: 7, Last: 8})
		r.pass(2 * time.Second)
		r.want("final at x", strings.Join(r.finals, " "), "1:7-8")
		b.server.FinalRanges(rigLane(1), batch.Range{First: 1, Last: 2})
		r.pass(2 * time.Second)
		r.want("final at both", strings.Join(r.finals, " "), "1:7-8 1:1-2")
		if x, y := a.horizon(rigLane(1)), b.horizon(rigLane(1)); x != 3 || y != 3 {
			t.Errorf("horizons %d and %d, want 3 at both", x, y)
		}
		if b.horizon(only) != 0 {
			t.Errorf("a lane that does not go to y is announced there")
		}
	}, x, y)
}

// TestARelayAnnouncesWhatItsPeersAnnounced, and nothing that it knows only for itself.
func TestARelayAnnouncesWhatItsPeersAnnounced(t *testing.T) {
	inBubble(t, func(r *rig) {
		foreign := batch.Lane{Origin: batch.Origin{8}, Epoch: batch.Epoch{Counter: 1}}
		a := r.up("a", 2, nil)
		r.start()
		r.submit(foreign, 1, 5)
		r.pass(time.Second)
		a.server.FinalRanges(foreign, batch.Range{First: 1, Last: 5})
		r.pass(3 * time.Second)
		if got := a.horizon(foreign); got != 1 {
			t.Errorf("announced %d, want 1: the source has not said so", got)
		}
		r.f.Horizon(foreign, 4)
		r.f.Horizon(foreign, 3)
		r.pass(3 * time.Second)
		if got := a.horizon(foreign); got != 4 {
			t.Errorf("announced %d, want 4", got)
		}
	}, single())
}

// TestARelabelledBatchTakesTheWholeWayUnderItsNewID, and makes its old one final.
func TestARelabelledBatchTakesTheWholeWayUnderItsNewID(t *testing.T) {
	x := GroupConfig{Name: "x", Mode: Any, Primary: []string{"a" + simPort}}
	y := GroupConfig{Name: "y", Mode: Any, Primary: []string{"b" + simPort}}
	inBubble(t, func(r *rig) {
		r.o.KeepFinal, r.o.FinalTimeout = true, time.Hour
		r.o.Relabel = func(b batch.Sealed, id batch.ID) (batch.Sealed, error) {
			b.ID = id
			b.Data = append([]byte("again "), b.Data...)
			b.CRC = batch.Checksum(b.Data)
			return b, nil
		}
		foreign := batch.Lane{Origin: batch.Origin{8}, Epoch: batch.Epoch{Counter: 3, Random: 5}, Bucket: 4}
		a := r.up("a", 2, func(b batch.Sealed) (v transport.Verdict, _ bool) {
			if b.ID.Lane == foreign && b.ID.N == 2 {
				v.Code = transport.Conflict
			}
			return v, true
		})
		r.up("b", 3, never)
		r.start()
		r.submit(foreign, 1, 3)
		r.pass(3 * time.Second)
		r.want("a, while b has the old one in flight", a.numbers(), "1 2 3")
		r.down("b")
		r.up("b", 3, nil)
		r.pass(5 * time.Second)
		r.want("a, while b has the old one and it is not final there", a.numbers(), "1 2 3")
		r.down("b")
		b := r.up("b", 4, nil)
		r.pass(5 * time.Second)
		r.want("b lost its disk and gets the old one again", b.numbers(), "1! 2! 3!")
		for _, s := range []*peerServer{a, b} {
			s.server.FinalRanges(foreign, batch.Range{First: 1, Last: 3})
		}
		r.pass(5 * time.Second)
		r.want("a", a.numbers(), "1 2 3 1")
		r.want("b had the old one and needs no new one", b.numbers(), "1! 2! 3!")
		got := a.got[3]
		if l := got.ID.Lane; l.Origin != (batch.Origin{1}) || l.Epoch.Counter != 3 || l.Epoch.Random == 5 || l.Bucket != 4 {
			t.Errorf("the new lane is %v", l)
		}
		finals := r.f.Finals(foreign)
		r.want("final before the new one is", finals.String(), "1,3")
		r.crash()
		r.start()
		r.pass(5 * time.Second)
		a.server.Final(got.ID)
		r.pass(2 * time.Second)
		finals = r.f.Finals(foreign)
		if r.waiting() != 0 || finals.String() != "1-3" {
			t.Errorf("%d wait, final %v: a batch at both groups", r.waiting(), finals.String())
		}
	}, x, y)
}

// TestWays: a duplicate is one only where the copy that is here does not go back by the
// way that the other came.
func TestWays(t *testing.T) {
	inBubble(t, func(r *rig) {
		r.start()
		m, r2, r3 := batch.Node{10}, batch.Node{11}, batch.Node{12}
		r.f.Took(one(5), []batch.Node{m})
		r.f.Took(one(5), []batch.Node{m, r3})
		check := func(when string, want bool, n uint64, via ...batch.Node) {
			t.Helper()
			if got := r.f.Covers(one(n), via); got != want {
				t.Errorf("%s: covers batch %d by %v: %v", when, n, via, got)
			}
		}
		for _, when := range []string{"at once", "after a restart"} {
			check(when, true, 5, m)
			check(when, true, 5, r3, m)
			check(when, false, 5, m, r2)
			check(when, false, 6, m)
			r.pass(3 * time.Second) // stored
			r.crash()
			r.start()
		}
		r.f.lines[0].final(rigLane(1), []batch.Range{{First: 1, Last: 6}}, true)
		check("final", true, 5, m, r2)
		check("final", true, 6, m)
		r.pass(3 * time.Second)
		if v, ok := r.q.Get(waysKey(rigLane(1))); ok {
			t.Errorf("what is final keeps its ways: % x", v)
		}
	}, single())
}

// TestWhatCannotBeReadForNowIsNotTakenForNothing: as long as it is not known what is in the
// queue, it is not known either whether what is said to be final is ours.
func TestWhatCannotBeReadForNowIsNotTakenForNothing(t *testing.T) {
	inBubble(t, func(r *rig) {
		r.start()
		r.pass(time.Second)
		l := r.f.lines[0]
		if !l.abreast() {
			t.Error("an empty queue is not known")
		}
		r.crash()
		r.start()
		r.q.mu.Lock()
		r.q.unread = true
		r.q.mu.Unlock()
		r.pass(time.Second)
		if r.f.lines[0].abreast() {
			t.Error("a queue that cannot be read is known")
		}
	}, single())
}
