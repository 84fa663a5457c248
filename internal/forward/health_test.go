package forward

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"ftfuse/internal/batch"
)

const second = time.Second

// step is an event, or the passing of time, and the state that follows.
type step struct {
	at   time.Duration
	ev   event
	tick bool // nothing but time
	want state
}

func (s step) String() string {
	if s.tick {
		return fmt.Sprintf("at %v", s.at)
	}
	return fmt.Sprintf("%v at %v", s.ev, s.at)
}

func TestHealthFollowsTheTable(t *testing.T) {
	for name, steps := range map[string][]step{
		"a connection at the start is trusted": {{at: 0, ev: evConnected, want: stateGood}},
		"one that comes too late must prove itself": {
			{at: 999 * time.Millisecond, tick: true, want: stateNew},
			{at: second, tick: true, want: stateDown},
			{at: 2 * second, ev: evConnected, want: stateHold},
			{at: 31 * second, tick: true, want: stateHold},
			{at: 32 * second, tick: true, want: stateGood},
		},
		"refused at the start is left at once": {{at: 1, ev: evGone, want: stateDown}},
		"a reset is waited for": {
			{at: 0, ev: evConnected, want: stateGood},
			{at: second, ev: evLost, want: stateShaken},
			{at: second + 100*time.Millisecond, ev: evConnected, want: stateGood},
		},
		"not for longer than half a second": {
			{at: 0, ev: evConnected, want: stateGood},
			{at: second, ev: evLost, want: stateShaken},
			{at: second + leaveAfter - 1, tick: true, want: stateShaken},
			{at: second + leaveAfter, tick: true, want: stateDown},
		},
		"killed: reset, then nobody listens": {
			{at: 0, ev: evConnected, want: stateGood},
			{at: second, ev: evLost, want: stateShaken},
			{at: second + 40*time.Millisecond, ev: evGone, want: stateDown},
		},
		"silent is no accident": {{at: 0, ev: evConnected, want: stateGood}, {at: second, ev: evGone, want: stateDown}},
		"a storm of resets is no accident": {
			{at: 0, ev: evConnected, want: stateGood},
			{at: 1 * second, ev: evLost, want: stateShaken},
			{at: 1 * second, ev: evConnected, want: stateGood},
			{at: 2 * second, ev: evLost, want: stateShaken},
			{at: 2 * second, ev: evConnected, want: stateGood},
			{at: 3 * second, ev: evLost, want: stateDown},
		},
		"resets now and then are": {
			{at: 0, ev: evConnected, want: stateGood},
			{at: 1 * second, ev: evLost, want: stateShaken},
			{at: 1 * second, ev: evConnected, want: stateGood},
			{at: 12 * second, ev: evLost, want: stateShaken},
			{at: 12 * second, ev: evConnected, want: stateGood},
			{at: 23 * second, ev: evLost, want: stateShaken},
		},
		"draining, then gone": {
			{at: 0, ev: evConnected, want: stateGood},
			{at: second, ev: evDrain, want: stateDraining},
			{at: 2 * second, ev: evGone, want: stateDown},
			{at: 3 * second, ev: evConnected, want: stateHold},
			{at: 4 * second, ev: evDrain, want: stateDraining},
		},
		"lost while it is on hold": {
			{at: 0, ev: evGone, want: stateDown}, {at: second, ev: evConnected, want: stateHold}, {at: 2 * second, ev: evLost, want: stateDown},
		},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHealth(0, false, 30*second)
			for _, s := range steps {
				if s.tick {
					h.tick(s.at)
				} else {
					h.on(s.at, s.ev)
				}
				if h.state != s.want {
					t.Fatalf("%v: %v, want %v", s, h.state, s.want)
				}
			}
		})
	}
}

func TestHealthStallsOnlyWhileSomethingIsInFlight(t *testing.T) {
	h := newHealth(0, false, 30*second)
	h.on(0, evConnected)
	h.tick(time.Hour)
	if h.state != stateGood {
		t.Fatalf("idle for an hour: %v", h.state)
	}
	h.owes(time.Hour, true)
	for i := range 10 { // an answer now and then is progress
		h.on(time.Hour+time.Duration(i)*4*second, evAcked)
	}
	from := time.Hour + 36*second
	if h.tick(from + stallAfter - 1); h.state != stateGood {
		t.Fatalf("answers come: %v", h.state)
	}
	if h.tick(from + stallAfter); h.state != stateStalled {
		t.Fatalf("no answer for %v: %v", stallAfter, h.state)
	}
	if h.on(from+6*second, evAcked); h.state != stateHold {
		t.Fatalf("an answer after all: %v", h.state)
	}
	h.owes(from+6*second, false)
	if h.tick(from + 36*second); h.state != stateGood {
		t.Fatalf("healthy for failback_after: %v", h.state)
	}
}

func TestHoldDownDoublesForAHostThatFlaps(t *testing.T) {
	h := newHealth(0, false, 30*second)
	h.on(0, evConnected)
	now := 10 * time.Minute
	var holds []time.Duration
	for range 8 {
		h.on(now, evGone)
		now += second
		h.on(now, evConnected)
		at, ok := h.deadline()
		if !ok || h.state != stateHold {
			t.Fatalf("state %v, deadline %v", h.state, ok)
		}
		holds = append(holds, at-now)
		now = at
		if h.tick(now); h.state != stateGood {
			t.Fatalf("after the hold-down: %v", h.state)
		}
		now += second // up for a second
	}
	want := []time.Duration{30 * second, 60 * second, 120 * second, 240 * second, 480 * second, maxHold, maxHold, maxHold}
	for i := range want {
		if holds[i] != want[i] {
			t.Fatalf("hold-downs %v, want %v", holds, want)
		}
	}
	now += 300 * second // good for ten times failback_after
	h.on(now, evGone)
	h.on(now+second, evConnected)
	if at, _ := h.deadline(); at != now+31*second {
		t.Errorf("trusted for long, then lost once: hold-down of %v, want %v", at-now-second, 30*second)
	}
}

func testKey(n int) flowKey {
	return flowKey{origin: batch.Origin{byte(n), byte(n >> 8)}, bucket: uint8(n % 16)}
}

// TestHealthNeverStops: whatever happens, the state machine of several destinations
// picks one of the best rank, keeps time, and always has a deadline in the future.
func TestPickUnderRandomEvents(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	for range 2000 {
		var p peers
		n := 1 + rng.IntN(5)
		for i := range n {
			p.add(0, fmt.Sprintf("host-%d:7400", i), i > 0 && rng.IntN(3) == 0, time.Duration(1+rng.IntN(60))*second)
		}
		homes := [8]int{nowhere, nowhere, nowhere, nowhere, nowhere, nowhere, nowhere, nowhere}
		now := time.Duration(0)
		for range 100 {
			if at, ok := p.deadline(); ok && rng.IntN(3) == 0 {
				now = max(now, at)
			} else {
				now += time.Duration(rng.Int64N(int64(3 * second)))
				i := rng.IntN(n)
				p.health[i].on(now, event(rng.IntN(len(eventNames))))
				p.health[i].owes(now, rng.IntN(2) == 0)
			}
			p.tick(now)
			if at, ok := p.deadline(); ok && at <= now {
				t.Fatalf("a deadline at %v is left at %v", at, now)
			}
			best := rankNone
			for i := range n {
				best = min(best, p.rank(i))
			}
			for k := range homes {
				to := p.pick(testKey(k), homes[k], nil)
				switch {
				case best == rankNone:
					if to != homes[k] {
						t.Fatalf("nothing is usable, and a flow moves from %d to %d", homes[k], to)
					}
				case best&^1 == rankHold:
					t.Fatalf("the best is on hold, and kept off")
				case best < rankStalled && p.rank(to) != best:
					t.Fatalf("picked rank %d, the best is %d", p.rank(to), best)
				case best >= rankStalled && homes[k] != nowhere && p.rank(homes[k]) != rankNone && to != homes[k]:
					t.Fatalf("a flow leaves a stalled destination for another one")
				}
				homes[k] = to
			}
		}
	}
}

// TestRendezvous: every node chooses alike, loads are even, and a destination more takes
// only its share.
func TestRendezvous(t *testing.T) {
	build := func(addresses ...string) *peers {
		p := &peers{}
		for _, a := range addresses {
			p.add(0, a, false, second)
		}
		return p
	}
	a, b := build("a:1", "b:1", "c:1"), build("c:1", "a:1", "b:1", "d:1")
	const flows = 16000
	got, moved := map[string]int{}, 0
	for i := range flows {
		k := testKey(i)
		before, after := a.address[a.pick(k, nowhere, nil)], b.address[b.pick(k, nowhere, nil)]
		got[before]++
		if after != before {
			moved++
			if after != "d:1" {
				t.Fatalf("with d a flow went from %s to %s", before, after)
			}
		}
	}
	for addr, n := range got {
		if n < flows/3*9/10 || n > flows/3*11/10 {
			t.Errorf("%s has %d of %d flows", addr, n, flows)
		}
	}
	if moved < flows/4*9/10 || moved > flows/4*11/10 {
		t.Errorf("a fourth destination moved %d of %d flows", moved, flows)
	}
}

// TestWeightsNeverChange: another version must send a flow the same way.
func TestWeightsNeverChange(t *testing.T) {
	k := flowKey{origin: batch.Origin{1, 2, 3}, route: 7, bucket: 5}
	if got := k.weight("relay-a:7400"); got != 0x3f34c7540478df3d {
		t.Errorf("%#x", got)
	}
}

func TestAFlowLeavesAFailedHomeAtOnceAndAWorseOneInOrder(t *testing.T) {
	var p peers
	p.add(0, "p:1", false, 30*second)
	p.add(0, "s:1", true, 30*second)
	k := testKey(1)
	p.health[0].on(0, evConnected)
	p.health[1].on(0, evConnected)
	check := func(when string, home, want int, how move) {
		t.Helper()
		if to := p.pick(k, home, nil); to != want || p.moveFrom(home, to) != how {
			t.Fatalf("%s: goes to %d by %d, want %d by %d", when, to, p.moveFrom(home, to), want, how)
		}
	}
	check("both good", nowhere, 0, moveOrderly)
	p.health[0].on(second, evGone)
	check("the primary is gone", 0, 1, moveFailover)
	p.health[0].on(2*second, evConnected)
	p.tick(2 * second)
	check("the primary is back", 1, 1, moveNone)
	p.tick(32 * second)
	check("the primary is trusted again", 1, 0, moveOrderly)
	p.health[0].on(33*second, evDrain)
	check("the primary drains", 0, 1, moveOrderly)
	p.health[0].on(34*second, evGone)
	p.health[1].on(34*second, evGone)
	check("nobody is left", 1, 1, moveNone)
	p.health[0].on(35*second, evConnected)
	p.tick(35 * second)
	check("one on hold is better than none", 1, 0, moveFailover)
}

// TestHealthASlowLineIsNotStalled: bytes of a batch that move are progress, for as long as
// they do. One that is stalled needs an answer to be used again.
func TestHealthASlowLineIsNotStalled(t *testing.T) {
	h := newHealth(0, false, 30*second)
	h.on(0, evConnected)
	h.owes(0, true)
	for i := range 20 {
		if h.on(time.Duration(i)*4*second, evMoved); h.state != stateGood {
			t.Fatalf("bytes move: %v", h.state)
		}
	}
	from := 76 * second
	if h.tick(from + stallAfter - 1); h.state != stateGood {
		t.Fatalf("%v after the last byte: %v", stallAfter-1, h.state)
	}
	if h.tick(from + stallAfter); h.state != stateStalled {
		t.Fatalf("no byte for %v: %v", stallAfter, h.state)
	}
	if h.on(from+6*second, evMoved); h.state != stateStalled {
		t.Fatalf("a byte after that: %v", h.state)
	}
}
