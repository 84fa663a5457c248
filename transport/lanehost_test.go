package transport

import (
	"slices"
	"sync"
	"testing"

	"ftfuse/internal/batch"
)

// laneHosts is what a role's queue says of lanes.
type laneHosts struct {
	mu sync.Mutex
	of map[batch.Lane]string
}

func (l *laneHosts) host(lane batch.Lane) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.of[lane]
}

func (l *laneHosts) set(lane batch.Lane, host string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.of[lane] = host
}

// TestWhatPeersSayOfOthersLanesIsNotBelieved: a horizon makes duplicates of all below, so
// that an admitted peer could swallow the batches of another host.
func TestWhatPeersSayOfOthersLanesIsNotBelieved(t *testing.T) {
	ca, h := newTestCA(t), newTestHandler()
	self, err := NewAdmission(nil)
	if err != nil {
		t.Fatal(err)
	}
	lanes := &laneHosts{of: map[batch.Lane]string{}}
	theirs, early, own := testLane(1), testLane(2), testLane(3)
	lanes.set(theirs, "victim")
	lanes.set(own, "web-01")
	s, ln := serve(t, ServerOptions{
		TLS: ca.mutual(ca.host("agg")), Admission: func() *Admission { return self }, LaneHost: lanes.host,
	}, h)
	join := func(node byte, host string, src *testSource) {
		connect(t, ClientOptions{
			Identity: Identity{Node: testNode(node), Host: host, Role: "mount", Product: "test"},
			Address:  "agg:1", Dial: dialTo(ln.Addr().String()), TLS: ca.mutual(ca.host(host)),
		}, src)
	}
	evil := newTestSource()
	evil.horizon = []LaneHorizon{{theirs, 100}, {early, 100}, {own, 5}}
	evil.skips = []LaneSkips{{theirs, []Skip{skipOf("full", 1, 1, batch.Range{First: 7, Last: 9})}}, {own, []Skip{skipOf("full", 1, 1, batch.Range{First: 7, Last: 7})}}}
	join(1, "web-01", evil)
	believed := func(lane batch.Lane) uint64 {
		h.mu.Lock()
		defer h.mu.Unlock()
		var below uint64
		for _, lh := range h.horizons {
			if lh.Lane == lane {
				below = max(below, lh.Below)
			}
		}
		return below
	}
	await(t, h.changed, "its own horizon and skip", func() bool { return believed(own) == 5 && len(h.skips.Lane(own)) == 1 })

	victim := newTestSource()
	victim.horizon = []LaneHorizon{{early, 3}}
	b := testBatch(early, 3, []byte("x"))
	b.Host = "victim"
	victim.push(b)
	join(2, "victim", victim)
	victim.awaitAcked(t, 1)
	if n := believed(early); n != 3 {
		t.Errorf("when the first batch of a lane came, it was said to be final below %d, want 3, as its own host says", n)
	}
	if n := believed(theirs); n != 0 {
		t.Errorf("a peer may say that another's lane is final below %d", n)
	}
	if sk := h.skips.Lane(theirs); len(sk) != 0 {
		t.Errorf("a peer may say that another's batches are dropped: %+v", sk)
	}

	// Nor is it told of lanes that it does not name.
	for _, c := range s.all() {
		c.mu.Lock()
		c.allLanes = true // it named too many
		delete(c.lanes, theirs)
		c.mu.Unlock()
	}
	s.FinalRanges(theirs, batch.Range{First: 1, Last: 2})
	s.FinalRanges(own, batch.Range{First: 1, Last: 2})
	heard := func(src *testSource, lane batch.Lane) bool {
		src.mu.Lock()
		defer src.mu.Unlock()
		return src.final[lane] != nil
	}
	await(t, evil.changed, "its own finals", func() bool { return heard(evil, own) })
	await(t, victim.changed, "its own finals", func() bool { return heard(victim, theirs) })
	if heard(evil, theirs) {
		t.Error("it was told of another's lane")
	}
	if heard(victim, own) {
		t.Error("the other was told of a lane that is not its own")
	}
}

// TestWithoutAdmissionEverybodyIsBelieved: plain TCP.
func TestWithoutAdmissionEverybodyIsBelieved(t *testing.T) {
	h, src := newTestHandler(), newTestSource()
	_, ln := serve(t, ServerOptions{LaneHost: func(batch.Lane) string { return "other" }}, h)
	src.horizon = []LaneHorizon{{testLane(1), 100}}
	connect(t, ClientOptions{Address: ln.Addr().String()}, src)
	await(t, h.changed, "the horizon", func() bool {
		h.mu.Lock()
		defer h.mu.Unlock()
		return slices.Contains(h.horizons, LaneHorizon{testLane(1), 100})
	})
}
