package forward

import (
	"strings"
	"testing"
	"time"

	"ftfuse/internal/batch"
	"ftfuse/transport"
)

// TestFailoverSendsWhatIsInFlightWithTheFlag, at once, in order, before anything newer.
func TestFailoverSendsWhatIsInFlightWithTheFlag(t *testing.T) {
	inBubble(t, func(r *rig) {
		a := r.up("a", 2, func(b batch.Sealed) (transport.Verdict, bool) { return transport.Verdict{}, b.ID.N <= 2 })
		b := r.up("b", 3, nil)
		r.start()
		r.submit(rigLane(1), 1, 5)
		r.pass(time.Second)
		r.want("a", a.numbers(), "1 2 3 4 5")
		r.want("b", b.numbers(), "")
		r.down("a")
		r.submit(rigLane(1), 6, 7)
		r.pass(time.Second)
		r.want("b within a second", b.numbers(), "3! 4! 5! 6 7")
		if !strings.Contains(r.log.String(), `msg="sent again to another destination" group=g from=a:7400 to=b:7400`) || !strings.Contains(r.log.String(), "ranges=3-5") {
			t.Errorf("what may stand twice is not named")
		}
		if st := r.f.Stats().Groups[0].Lines[0]; st.Doubtful != 3 || st.Failovers != 1 ||
			len(st.DoubtfulIDs) != 1 || st.DoubtfulIDs[0].Lane != rigLane(1) || st.DoubtfulIDs[0].Ranges.String() != "3-5" {
			t.Errorf("%+v", st)
		}
	}, pair(Any))
}

// TestASilentDestinationIsLeftWithinFiveSeconds, and the ack that it gives late counts.
func TestASilentDestinationIsLeftWithinFiveSeconds(t *testing.T) {
	inBubble(t, func(r *rig) {
		r.up("a", 2, nil)
		b := r.up("b", 3, nil)
		r.start()
		r.pass(time.Second)
		r.net.cut("a", "here", true)
		r.net.cut("here", "a", true)
		r.submit(rigLane(1), 1, 3)
		r.pass(5 * time.Second)
		r.want("b", b.numbers(), "1! 2! 3!")
	}, pair(Hash))
}

// TestNoAckProgressIsAFailure: the peer is there, and answers nothing.
func TestNoAckProgressIsAFailure(t *testing.T) {
	inBubble(t, func(r *rig) {
		a := r.up("a", 2, never)
		b := r.up("b", 3, nil)
		r.start()
		r.submit(rigLane(1), 1, 2)
		r.pass(4 * time.Second)
		r.want("a", a.numbers(), "1 2")
		r.want("b, early", b.numbers(), "")
		r.pass(1500 * time.Millisecond)
		r.want("b", b.numbers(), "1! 2!")
		r.submit(rigLane(1), 3, 3)
		r.pass(time.Minute)
		r.want("a, later", a.numbers(), "1 2")
		r.want("b, later", b.numbers(), "1! 2! 3")
	}, pair(Any))
}

// TestAFailbackResendsNothing, and comes after failback_after.
func TestAFailbackResendsNothing(t *testing.T) {
	inBubble(t, func(r *rig) {
		r.up("a", 2, nil)
		r.up("b", 3, nil)
		r.start()
		r.pass(time.Second)
		r.down("a")
		r.pass(time.Second)
		r.down("b") // to come back with answers that wait
		b := r.up("b", 3, nil)
		r.pass(2 * time.Second)
		a := r.up("a", 2, nil)
		for n := uint64(1); n <= 60; n++ {
			r.submit(rigLane(1), n, n)
			r.pass(time.Second)
		}
		all := b.numbers() + " " + a.numbers()
		if strings.Contains(all, "!") || len(strings.Fields(all)) != 60 {
			t.Errorf("sent: %s", all)
		}
		if n := len(strings.Fields(b.numbers())); n < 25 || n > 35 {
			t.Errorf("%d of 60 went to the secondary, a second each; failback_after is 30 s", n)
		}
	}, pair(Any))
}

// TestASlowDestinationHoldsUpNoOther: the lanes of another one go on.
func TestASlowDestinationHoldsUpNoOther(t *testing.T) {
	g := GroupConfig{Name: "g", Mode: Hash, Primary: []string{"a" + simPort, "b" + simPort}, Window: 1}
	inBubble(t, func(r *rig) {
		a, b := r.up("a", 2, nil), r.up("b", 3, nil)
		r.start()
		r.pass(time.Second)
		homes := map[string][]batch.Lane{}
		for bucket := range uint8(batch.MaxBuckets) {
			lane := rigLane(1)
			lane.Bucket = bucket
			k := keyOf(Hash, lane)
			to := "a"
			if k.weight("b"+simPort) > k.weight("a"+simPort) {
				to = "b"
			}
			homes[to] = append(homes[to], lane)
		}
		b.answer = never // a window of one batch: full with the first
		r.submit(homes["b"][0], 1, 50)
		r.submit(homes["a"][0], 1, 50)
		r.pass(time.Second)
		if n := len(strings.Fields(a.numbers())); n != 50 {
			t.Errorf("%d of 50 batches came past a slow destination", n)
		}
		r.want("b", b.numbers(), "1")
	}, g)
}

// TestALaneLeavesADestinationThatStaysBehind, in a group of mode any, in order.
func TestALaneLeavesADestinationThatStaysBehind(t *testing.T) {
	g := GroupConfig{Name: "g", Mode: Any, Primary: []string{"a" + simPort, "b" + simPort}, Window: 1}
	inBubble(t, func(r *rig) {
		slow := func(batch.Sealed) (transport.Verdict, bool) {
			time.Sleep(3 * time.Second)
			return transport.Verdict{}, true
		}
		k := keyOf(Any, rigLane(1))
		names := []string{"a", "b"}
		if k.weight("b"+simPort) > k.weight("a"+simPort) {
			names = []string{"b", "a"}
		}
		home, other := r.up(names[0], 2, slow), r.up(names[1], 3, nil)
		r.start()
		r.submit(rigLane(1), 1, 100)
		r.pass(30 * time.Second)
		if n := len(strings.Fields(home.numbers())); n > 6 {
			t.Errorf("the slow one got %d", n)
		}
		if strings.Contains(other.numbers(), "!") || r.waiting() != 0 {
			t.Errorf("the other one got %s; %d wait", other.numbers(), r.waiting())
		}
	}, g)
}

// TestARestartFlagsWhatMayHaveBeenSent, and not the backlog behind it.
func TestARestartFlagsWhatMayHaveBeenSent(t *testing.T) {
	g := pair(Any)
	g.Window = 1
	inBubble(t, func(r *rig) {
		r.up("a", 2, never)
		r.start()
		r.submit(rigLane(1), 1, 2000)
		r.pass(time.Second)
		r.crash()
		r.down("a")
		b := r.up("b", 3, nil)
		r.start()
		r.submit(rigLane(2), 1, 2)
		r.pass(20 * time.Second)
		got := strings.Fields(b.numbers())
		if len(got) != 2002 || got[0] != "1!" || strings.Count(strings.Join(got, " "), "!") > 1+markStep {
			t.Errorf("%d sent, %d flagged: %.40s…", len(got), strings.Count(strings.Join(got, " "), "!"), got)
		}
	}, g)
}

// TestAFailbackWaitsForTheAnswersToWhatIsInFlight: the batches of a path stay in order.
func TestAFailbackWaitsForTheAnswersToWhatIsInFlight(t *testing.T) {
	inBubble(t, func(r *rig) {
		r.up("a", 2, nil)
		b := r.up("b", 3, func(batch.Sealed) (transport.Verdict, bool) {
			time.Sleep(3 * time.Second)
			return transport.Verdict{}, true
		})
		r.start()
		r.pass(time.Second)
		r.down("a")
		r.pass(time.Second)
		r.up("a", 2, nil)
		r.pass(32 * time.Second) // on hold for 30 s, but for the time to connect
		r.down("a")
		r.pass(time.Second)
		a := r.up("a", 2, nil) // a hold-down of 60 s
		r.pass(59 * time.Second)
		r.submit(rigLane(1), 1, 1)
		r.pass(2500 * time.Millisecond)
		r.submit(rigLane(1), 2, 2)
		r.pass(200 * time.Millisecond)
		r.want("the secondary", b.numbers(), "")
		r.want("the primary, before the answer", a.numbers(), "")
		r.pass(5 * time.Second)
		r.want("the secondary, later", b.numbers(), "1")
		r.want("the primary, later", a.numbers(), "2")
	}, pair(Any))
}

// TestALateAckWithdrawsWhatAnotherOneHasNotAnswered.
func TestALateAckWithdrawsWhatAnotherOneHasNotAnswered(t *testing.T) {
	inBubble(t, func(r *rig) {
		r.up("a", 2, func(batch.Sealed) (transport.Verdict, bool) {
			time.Sleep(7 * time.Second)
			return transport.Verdict{}, true
		})
		b := r.up("b", 3, never)
		r.start()
		r.submit(rigLane(1), 1, 1)
		r.pass(6 * time.Second)
		r.want("b", b.numbers(), "1!")
		r.pass(2 * time.Second)
		if r.waiting() != 0 {
			t.Error("the late ack did not count")
		}
		r.down("b")
		b = r.up("b", 3, nil)
		r.pass(10 * time.Second)
		r.want("b, after a reconnect", b.numbers(), "")
	}, pair(Any))
}

// TestADestinationToWhichBytesMoveIsNotLeft, although it answers nothing for long, and is
// when they move no more.
func TestADestinationToWhichBytesMoveIsNotLeft(t *testing.T) {
	inBubble(t, func(r *rig) {
		r.up("a", 2, never)
		b := r.up("b", 3, nil)
		r.start()
		r.pass(time.Second)
		for n := uint64(1); n <= 6; n++ {
			r.submitContent(rigLane(1), n, strings.Repeat("x", 2000))
			r.pass(3 * time.Second)
		}
		r.want("the stand-in, while bytes move", b.numbers(), "")
		r.pass(3 * time.Second)
		r.want("the stand-in, when none did for 5 s", b.numbers(), "1! 2! 3! 4! 5! 6!")
	}, pair(Any))
}
