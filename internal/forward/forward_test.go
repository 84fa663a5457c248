package forward

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"ftfuse/internal/batch"
	"ftfuse/queue"
	"ftfuse/transport"
)

// TestALaneIsAnnouncedBeforeAnythingOfItIsFinal: the server tells what became final while
// this client was away only for lanes that are announced; a lane whose batches were all
// acked, and none reported as final, must be among them after a restart too.
func TestALaneIsAnnouncedBeforeAnythingOfItIsFinal(t *testing.T) {
	inBubble(t, func(r *rig) {
		a := r.up("a", 2, nil)
		r.start()
		r.submit(rigLane(3), 1, 1)
		r.pass(5 * time.Second)
		if got := a.horizon(rigLane(3)); got != 1 || r.waiting() != 0 {
			t.Errorf("announced %d, %d waiting; want 1, 0", got, r.waiting())
		}
		r.crash()
		a.told = nil
		r.start()
		r.pass(5 * time.Second)
		if got := a.horizon(rigLane(3)); got != 1 {
			t.Errorf("after a restart: announced %d, want 1", got)
		}
		a.server.Final(batch.ID{Lane: rigLane(3), N: 1})
		r.pass(5 * time.Second)
		if got := a.horizon(rigLane(3)); got != 2 {
			t.Errorf("final: announced %d, want 2", got)
		}
		r.crash()
		a.told = nil
		r.start()
		r.pass(5 * time.Second)
		if got := a.horizon(rigLane(3)); got != 2 {
			t.Errorf("final, after a restart: announced %d, want 2", got)
		}
	}, single())
}

// TestARefusedBatchComesAgainWithTheNextConnection, and holds up no other.
func TestARefusedBatchComesAgainWithTheNextConnection(t *testing.T) {
	inBubble(t, func(r *rig) {
		var conflicts []batch.Lane
		r.o.OnConflict = func(l batch.Lane) { conflicts = append(conflicts, l) }
		refuse := func(b batch.Sealed) (v transport.Verdict, _ bool) {
			switch b.ID.N {
			case 1:
				v = transport.Verdict{Code: transport.Version, Text: "a test"}
			case 2:
				v = transport.Verdict{Code: transport.Conflict, Text: "a test"}
			}
			return v, true
		}
		a := r.up("a", 2, refuse)
		r.start()
		r.submit(rigLane(1), 1, 4)
		r.pass(time.Second)
		r.want("sent", a.numbers(), "1 2 3 4")
		if len(conflicts) != 1 || conflicts[0] != rigLane(1) || r.waiting() != 2 {
			t.Errorf("conflicts %v, %d waiting", conflicts, r.waiting())
		}
		if err := r.f.Drain(context.Background()); err == nil || !strings.Contains(err.Error(), "2 batches") || !strings.Contains(err.Error(), "refused") {
			t.Errorf("Drain with nothing but refused batches: %v", err)
		}
	}, single())
	inBubble(t, func(r *rig) {
		r.up("a", 2, func(batch.Sealed) (transport.Verdict, bool) {
			return transport.Verdict{Code: transport.Denied, Text: "a test"}, true
		})
		r.start()
		r.submit(rigLane(1), 1, 2)
		r.pass(time.Second)
		r.down("a")
		a := r.up("a", 2, nil)
		r.pass(5 * time.Second)
		r.want("after a reconnect", a.numbers(), "1 2")
		if r.waiting() != 0 {
			t.Errorf("%d are waiting", r.waiting())
		}
	}, single())
}

// TestARefusedBatchThatIsDroppedIsForgotten: it is not counted as refused any more, keeps no
// place among those that are read ahead, and a stop does not wait for it.
func TestARefusedBatchThatIsDroppedIsForgotten(t *testing.T) {
	inBubble(t, func(r *rig) {
		r.up("a", 2, func(batch.Sealed) (v transport.Verdict, _ bool) {
			v.Code = transport.Denied
			return v, true
		})
		r.start()
		r.submit(rigLane(1), 1, 4)
		r.pass(time.Second)
		drop := func(seq uint64) {
			r.q.mu.Lock()
			defer r.q.mu.Unlock()
			delete(r.disk.entries, seq)
		}
		drop(2)
		drop(3)
		r.pass(2 * idleFlows)
		if n := r.f.Stats().Groups[0].Lines[0].Refused; n != 2 {
			t.Errorf("%d are refused, want 2", n)
		}
		l := r.f.lines[0]
		l.mu.Lock()
		if l.ahead != 2 || len(l.entries) != 2 {
			t.Errorf("%d of %d are read ahead", l.ahead, len(l.entries))
		}
		l.mu.Unlock()
		drop(4)
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := r.f.Drain(ctx); err == nil || !strings.Contains(err.Error(), "1 batches of group \"g\" stay queued: the next nodes refused them") {
			t.Errorf("Drain: %v", err)
		}
	}, single())
}

// TestAnotherDestinationTakesWhatOneRefuses, and nobody is asked twice on a connection.
func TestAnotherDestinationTakesWhatOneRefuses(t *testing.T) {
	inBubble(t, func(r *rig) {
		a := r.up("a", 2, func(b batch.Sealed) (v transport.Verdict, _ bool) {
			if b.ID.N == 2 {
				v.Code = transport.Version
			}
			return v, true
		})
		b := r.up("b", 3, nil)
		r.start()
		r.submit(rigLane(1), 1, 4)
		r.pass(time.Second)
		r.want("a", a.numbers(), "1 2 3 4")
		r.want("b", b.numbers(), "2")
		if r.waiting() != 0 {
			t.Errorf("%d are waiting", r.waiting())
		}
	}, pair(Any))
}

// TestAConflictIsOfferedToNobodyElse: an id never names two contents.
func TestAConflictIsOfferedToNobodyElse(t *testing.T) {
	inBubble(t, func(r *rig) {
		a := r.up("a", 2, func(batch.Sealed) (transport.Verdict, bool) {
			return transport.Verdict{Code: transport.Conflict}, true
		})
		r.up("b", 3, nil)
		r.start()
		r.submit(rigLane(1), 1, 1)
		r.pass(time.Second)
		r.down("b")
		b := r.up("b", 3, nil)
		r.pass(5 * time.Second)
		r.want("a", a.numbers(), "1")
		r.want("b", b.numbers(), "")
	}, pair(Any))
}

// TestALoopIsNotOfferedToThatNodeAgain, not after a reconnect either, but to another one
// at its place.
func TestALoopIsNotOfferedToThatNodeAgain(t *testing.T) {
	inBubble(t, func(r *rig) {
		loop := func(batch.Sealed) (transport.Verdict, bool) { return transport.Verdict{Code: transport.Loop}, true }
		a := r.up("a", 2, loop)
		r.start()
		r.submit(rigLane(1), 1, 1)
		r.pass(time.Second)
		r.want("a", a.numbers(), "1")
		r.down("a")
		a = r.up("a", 2, loop)
		r.pass(5 * time.Second)
		r.want("a again", a.numbers(), "")
		if n := strings.Count(r.log.String(), "met a node that it came through"); n != 1 {
			t.Errorf("said %d times, want once", n)
		}
		r.down("a")
		a = r.up("a", 4, nil)
		r.pass(5 * time.Second)
		r.want("another node at its place", a.numbers(), "1")
	}, single())
}

// TestBroadcastGivesEveryDestinationEverything, and one that is down costs the others
// nothing; a stand-in gets what its primary does not.
func TestBroadcastGivesEveryDestinationEverything(t *testing.T) {
	g := GroupConfig{
		Name: "g", Mode: Broadcast, Primary: []string{"a" + simPort, "b" + simPort, "c" + simPort},
		Secondary: []string{"s" + simPort}, FailbackAfter: time.Minute,
	}
	inBubble(t, func(r *rig) {
		a, c, s := r.up("a", 2, nil), r.up("c", 4, nil), r.up("s", 5, nil)
		r.start()
		r.submit(rigLane(1), 1, 3)
		r.pass(time.Second)
		r.down("a")
		r.submit(rigLane(1), 4, 5)
		r.pass(time.Second)
		r.want("a", a.numbers(), "1 2 3")
		r.want("c", c.numbers(), "1 2 3 4 5")
		r.want("the stand-in of a", s.numbers(), "4 5")
		b := r.up("b", 3, nil)
		r.pass(5 * time.Second)
		r.want("b", b.numbers(), "1 2 3 4 5")
	}, g)
}

// TestDrainSendsAllAndEndsTheConnections.
func TestDrainSendsAllAndEndsTheConnections(t *testing.T) {
	inBubble(t, func(r *rig) {
		a := r.up("a", 2, func(batch.Sealed) (transport.Verdict, bool) {
			time.Sleep(100 * time.Millisecond)
			return transport.Verdict{}, true
		})
		r.start()
		r.submit(rigLane(1), 1, 20)
		r.pass(5 * time.Millisecond)
		if err := r.f.Drain(context.Background()); err != nil {
			t.Error(err)
		}
		if n := len(strings.Fields(a.numbers())); n != 20 || r.waiting() != 0 {
			t.Errorf("%d sent, %d waiting", n, r.waiting())
		}
	}, single())
	inBubble(t, func(r *rig) {
		r.start()
		r.submit(rigLane(1), 1, 2)
		r.pass(time.Second)
		start := time.Now()
		if err := r.f.Drain(context.Background()); err == nil || !strings.Contains(err.Error(), "no destination is connected") {
			t.Errorf("nobody is there: %v", err)
		}
		if d := time.Since(start); d > 2*time.Second {
			t.Errorf("waited %v for a destination that is not there", d)
		}
	}, single())
	inBubble(t, func(r *rig) {
		r.up("a", 2, never)
		r.start()
		r.submit(rigLane(1), 1, 2)
		r.pass(time.Second)
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		defer cancel()
		if err := r.f.Drain(ctx); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "2 batches") {
			t.Errorf("nobody answers: %v", err)
		}
	}, single())
}

// TestAServiceIsAsManyDestinationsAsItHasHosts, primaries by the lowest priority value,
// and follows the DNS.
func TestAServiceIsAsManyDestinationsAsItHasHosts(t *testing.T) {
	const srv = "srv+_ftfuse._tcp.example.org"
	resolver := noDNS(t)
	target := func(host string, priority uint16) transport.Target {
		return transport.Target{Host: host, Port: 7400, Priority: priority}
	}
	inBubble(t, func(r *rig) {
		r.o.Resolver = resolver
		a, b := r.up("a", 2, nil), r.up("b", 3, nil)
		r.start()
		r.pass(time.Millisecond)
		l := r.f.lines[0]
		s := target0(t, l)
		l.adopt(s, []transport.Target{target("a", 1), target("b", 2)})
		r.submit(rigLane(1), 1, 2)
		r.pass(time.Second)
		r.want("the primary", a.numbers(), "1 2")
		l.adopt(s, []transport.Target{target("b", 2)}) // now the lowest
		r.pass(20 * time.Second)
		r.submit(rigLane(1), 3, 4)
		r.pass(time.Second)
		r.want("the one that is left", b.numbers(), "3 4")
		if st := r.f.Stats().Groups[0].Lines[0]; len(st.Destinations) != 1 || st.Destinations[0].Secondary || st.Destinations[0].Configured != srv {
			t.Errorf("%+v", st.Destinations)
		}
		l.adopt(s, []transport.Target{target("a", 1), target("b", 2)})
		r.pass(time.Minute)
		r.submit(rigLane(1), 5, 6)
		r.pass(time.Second)
		r.want("the primary is back in the DNS", a.numbers(), "1 2 5 6")
	}, GroupConfig{Name: "g", Mode: Any, Primary: []string{srv}, FailbackAfter: 10 * time.Second})
}

// TestAServiceWhoseHostsComeAndGoDoesNotGrow: their places are given to those that come.
func TestAServiceWhoseHostsComeAndGoDoesNotGrow(t *testing.T) {
	resolver := noDNS(t)
	inBubble(t, func(r *rig) {
		r.o.Resolver = resolver
		r.start()
		r.pass(time.Millisecond)
		l := r.f.lines[0]
		s := target0(t, l)
		stays := r.up("stays", 99, nil)
		for i := range 20 {
			host := fmt.Sprintf("host-%d", i)
			n := r.up(host, byte(10+i), nil)
			l.adopt(s, []transport.Target{{Host: host, Port: 7400, Priority: 1}, {Host: "stays", Port: 7400, Priority: 2}})
			r.pass(30 * time.Second)
			r.submit(rigLane(1), uint64(i+1), uint64(i+1))
			r.pass(2 * time.Second)
			r.want(host, n.numbers(), fmt.Sprint(i+1))
		}
		r.want("the secondary", stays.numbers(), "")
		if n := len(l.dests); n > 4 || r.waiting() > 0 {
			t.Errorf("%d destinations after 20 that came and went, %d batches wait", n, r.waiting())
		}
		if st := r.f.Stats().Groups[0].Lines[0].Destinations; len(st) != 2 {
			t.Errorf("%+v", st)
		}
	}, GroupConfig{Name: "g", Mode: Any, Primary: []string{"srv+_ftfuse._tcp.example.org"}, FailbackAfter: 10 * time.Second})
}

// noDNS returns a resolver that finds nothing. It is used once outside of any bubble, to which
// what package net keeps of it would else belong.
func noDNS(t *testing.T) *transport.Resolver {
	t.Helper()
	r := &net.Resolver{PreferGo: true, Dial: func(context.Context, string, string) (net.Conn, error) {
		return nil, errors.New("no DNS in this test")
	}}
	if _, _, err := r.LookupSRV(t.Context(), "", "", "srv.example.org"); err == nil {
		t.Fatal("there is a DNS")
	}
	return &transport.Resolver{Net: r}
}

func target0(t *testing.T, l *line) target {
	t.Helper()
	_, services, err := l.configured()
	if err != nil || len(services) != 1 {
		t.Fatal(services, err)
	}
	return services[0]
}

// TestOptionsThatCannotBe are refused by name.
func TestOptionsThatCannotBe(t *testing.T) {
	for name, groups := range map[string][]GroupConfig{
		"no name":        {{Mode: Any, Primary: []string{"a:1"}}},
		"a name twice":   {{Name: "g", Mode: Any, Primary: []string{"a:1"}}, {Name: "g", Mode: Any, Primary: []string{"b:1"}}},
		"no primary":     {{Name: "g", Mode: Any}},
		"no mode":        {{Name: "g", Primary: []string{"a:1"}}},
		"more stand-ins": {{Name: "g", Mode: Broadcast, Primary: []string{"a:1"}, Secondary: []string{"b:1", "c:1"}}},
	} {
		if _, err := (Options{Groups: groups}).withDefaults(); !errors.Is(err, ErrOptions) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestTwoCopiesOfABatchEachNeedAnAck: they came different ways.
func TestTwoCopiesOfABatchEachNeedAnAck(t *testing.T) {
	inBubble(t, func(r *rig) {
		r.start()
		r.submit(rigLane(1), 1, 3)
		again := batch.Sealed{ID: batch.ID{Lane: rigLane(1), N: 2}, Via: []batch.Node{{5}}, Data: []byte(rigLane(1).String() + "/2")}
		again.CRC = batch.Checksum(again.Data)
		if _, err := r.q.Submit(context.Background(), &queue.Txn{Entries: []queue.Entry{{Batch: again}}, Again: true}); err != nil {
			t.Fatal(err)
		}
		r.pass(time.Second)
		a := r.up("a", 2, nil)
		r.pass(10 * time.Second)
		r.want("sent", a.numbers(), "1 2 3 2")
		if r.waiting() != 0 {
			t.Errorf("%d are waiting", r.waiting())
		}
	}, single())
}
