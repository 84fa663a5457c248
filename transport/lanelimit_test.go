package transport

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"ftfuse/internal/batch"
)

// laneNumber is one of many lanes of one origin.
func laneNumber(n int) batch.Lane {
	l := testLane(1)
	l.Epoch.Random = uint64(n)
	return l
}

// serveFew is serve with few lanes that a peer may open.
func serveFew(t *testing.T, h *testHandler, peer, host laneRate) (*Server, string) {
	t.Helper()
	s, ln := serve(t, ServerOptions{KnowsLane: h.knows, Logger: discard}, h)
	s.lanes.peer, s.lanes.host = peer, host
	return s, ln.Addr().String()
}

func laneBatch(lane batch.Lane, n uint64, host string) batch.Sealed {
	b := testBatch(lane, n, []byte("x"))
	b.Host = host
	return b
}

// TestInventedLanesAreRefused beyond what a peer may open, with a reason, counted; those
// that are known go on, and so do other peers.
func TestInventedLanesAreRefused(t *testing.T) {
	const most = 10
	h, src := newTestHandler(), newTestSource()
	s, addr := serveFew(t, h, laneRate{most, time.Hour}, laneRate{most, time.Hour})
	_, stop := connectStoppable(t, ClientOptions{Address: addr, Logger: discard}, src)
	for n := range most + 5 {
		src.push(laneBatch(laneNumber(n), 1, "web-01"))
	}
	await(t, src.changed, "refusals", func() bool {
		src.mu.Lock()
		defer src.mu.Unlock()
		return len(src.acked) == most && len(src.refused) == 5
	})
	for seq, v := range src.refused {
		if v.Code != Denied || !strings.Contains(v.Text, "new here") || !strings.Contains(v.Text, "127.0.0.1") {
			t.Errorf("%d was refused with %+v", seq, v)
		}
	}
	if st := s.Stats(); st.DeniedLane != 5 || st.DeniedData != 0 || st.Peers[0].Denied != 5 {
		t.Errorf("%+v", st)
	}
	for n := range most {
		src.push(laneBatch(laneNumber(n), 2, "web-01"))
	}
	src.awaitAcked(t, 2*most)
	if err := stop(); err == nil {
		t.Error("ended")
	}
	// On a new connection: what is known is known, and nothing was forgiven.
	again, other := newTestSource(), newTestSource()
	connect(t, ClientOptions{Address: addr, Logger: discard}, again)
	again.push(laneBatch(laneNumber(3), 3, "web-01"), laneBatch(laneNumber(77), 1, "web-01"), laneBatch(laneNumber(4), 3, "web-01"))
	again.awaitAnswers(t, 2, 1)
	connect(t, ClientOptions{Dial: dialFrom("127.0.0.2", addr), Identity: Identity{Node: testNode(2)}, Logger: discard}, other)
	other.push(laneBatch(laneNumber(88), 1, "web-02"))
	other.awaitAcked(t, 1)
	if _, ok := again.refused[2]; !ok || h.knows(laneNumber(77)) {
		t.Errorf("taken on a new connection: %+v", again.refused)
	}
}

// TestOneHostTakesNotTheLanesOfOthers that come by the same relay.
func TestOneHostTakesNotTheLanesOfOthers(t *testing.T) {
	h, src := newTestHandler(), newTestSource()
	_, addr := serveFew(t, h, laneRate{100, time.Hour}, laneRate{10, time.Hour})
	connect(t, ClientOptions{Address: addr, Logger: discard}, src)
	for n := range 20 {
		src.push(laneBatch(laneNumber(n), 1, "mad"))
	}
	for n := range 10 {
		src.push(laneBatch(laneNumber(100+n), 1, "good"))
	}
	src.awaitAnswers(t, 20, 10)
	src.mu.Lock()
	defer src.mu.Unlock()
	if len(src.refused) != 10 || !strings.Contains(src.refused[11].Text, `host "mad"`) {
		t.Errorf("refused %+v", src.refused)
	}
}

// TestASourceWithManyLanesLosesNone: what is refused for its lane is asked for again, and
// taken as time goes on.
func TestASourceWithManyLanesLosesNone(t *testing.T) {
	const lanes = 40
	h, src := newTestHandler(), newTestSource()
	s, addr := serveFew(t, h, laneRate{10, 5 * time.Millisecond}, laneRate{10, 5 * time.Millisecond})
	s.laneRetry = 30 * time.Millisecond
	var mu sync.Mutex
	offered := 0
	connect(t, ClientOptions{Address: addr, Logger: discard, OnConnect: func(Peer) {
		mu.Lock()
		defer mu.Unlock()
		offered++
		for n := range lanes { // as a queue does with what was refused
			if lane := laneNumber(n); !h.knows(lane) {
				src.push(laneBatch(lane, 1, "web-01"))
			}
		}
	}}, src)
	await(t, h.changed, "all lanes", func() bool { return len(h.batches()) == lanes })
	mu.Lock()
	defer mu.Unlock()
	if offered < 2 || s.Stats().DeniedLane == 0 {
		t.Errorf("offered %d times; %+v", offered, s.Stats())
	}
}

// TestInventedHorizonsAreKeptFromTheHandler: they would be noted for ever. Those of a real
// lane are not lost: they count when its first batch comes.
func TestInventedHorizonsAreKeptFromTheHandler(t *testing.T) {
	const most = 10
	h, src := newTestHandler(), newTestSource()
	s, addr := serveFew(t, h, laneRate{most, time.Hour}, laneRate{most, time.Hour})
	for n := range 3 * most {
		src.horizon = append(src.horizon, LaneHorizon{laneNumber(n), 5})
	}
	connect(t, ClientOptions{Address: addr, Logger: discard}, src)
	await(t, nil, "the horizons", func() bool { return s.Stats().HeldLane == 2*most })
	h.mu.Lock()
	if len(h.horizons) != most {
		t.Errorf("%d came through", len(h.horizons))
	}
	h.mu.Unlock()
	other := newTestSource()
	connect(t, ClientOptions{Dial: dialFrom("127.0.0.2", addr), Identity: Identity{Node: testNode(2)}, Logger: discard}, other)
	other.push(laneBatch(laneNumber(25), 7, "web-01"))
	other.awaitAcked(t, 1)
	h.mu.Lock()
	defer h.mu.Unlock()
	if last := h.horizons[len(h.horizons)-1]; len(h.horizons) != most+1 || last != (LaneHorizon{laneNumber(25), 5}) {
		t.Errorf("%d came through, the last is %+v", len(h.horizons), last)
	}
}

// TestFirstHorizonOfAConnection: the handler hears which one is the first of its lane, by
// connection, whatever the peer's address.
func TestFirstHorizonOfAConnection(t *testing.T) {
	h := newTestHandler()
	_, ln := serve(t, ServerOptions{}, h)
	for range 2 {
		nc, fr := rawClient(t, ln.Addr().String())
		for below := range uint64(3) {
			hs := []LaneHorizon{{laneNumber(1), below + 1}, {laneNumber(2), below + 1}}
			if _, err := nc.Write(appendToken(appendHorizons(nil, hs), typePing, 1)); err != nil {
				t.Fatal(err)
			}
			awaitFrame(t, fr, typePong)
		}
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.horizons) != 12 || h.firsts != 4 {
		t.Errorf("%d horizons, %d the first", len(h.horizons), h.firsts)
	}
}

// TestLaneLimitForgets whoever was forgiven all, and only those.
func TestLaneLimitForgets(t *testing.T) {
	l := newLaneLimit()
	now := time.Now()
	for n := range 3000 {
		if err := l.open(fmt.Sprint("peer ", n), "h", now); err != nil {
			t.Fatal(err)
		}
	}
	for range 100 {
		if err := l.open("busy", "h", now); err != nil {
			t.Fatal(err)
		}
	}
	now = now.Add(30 * time.Second)
	l.sweepAt = 0
	if err := l.open("new", "h", now); err != nil {
		t.Fatal(err)
	}
	if n := len(l.opened); n != 4 || l.opened[laneKey{"busy", "h"}].n != 100 {
		t.Errorf("%d are remembered, want those of busy and new", n)
	}
}

// TestNamedLanesAreBounded over all connections; each has some in any case, and hears of all
// where it has more.
func TestNamedLanesAreBounded(t *testing.T) {
	s := NewServer(ServerOptions{}, newTestHandler())
	var conns []*serverConn
	for range 20 {
		c := newServerConn(t.Context(), s, fakeConn{addr: "10.0.0.1:1"}, "10.0.0.1")
		for n := range maxLanes + 10 {
			c.interested(laneNumber(n), 0)
		}
		if !c.allLanes || !c.hears(laneNumber(1<<20)) || len(c.lanes) < ownLanes || len(c.lanes) > maxLanes {
			t.Fatalf("%d lanes, all: %v", len(c.lanes), c.allLanes)
		}
		conns = append(conns, c)
	}
	if n := s.named.Load(); n > sumLanes+20*ownLanes {
		t.Errorf("%d lanes are named", n)
	}
	for _, c := range conns {
		c.forgetLanes()
	}
	if n := s.named.Load(); n != 0 {
		t.Errorf("%d are left", n)
	}
}
