package transport

import (
	"bytes"
	"context"
	"math/rand/v2"
	"slices"
	"testing"

	"ftfuse/internal/batch"
)

// TestDelivery: batches of many sizes arrive as they were sent, in order, and each is
// acked once.
func TestDelivery(t *testing.T) {
	h, src := newTestHandler(), newTestSource()
	_, ln := serve(t, ServerOptions{}, h)
	rng := rand.New(rand.NewPCG(1, 2))
	var sent []batch.Sealed
	for n := uint64(1); n <= 300; n++ {
		data := make([]byte, rng.IntN(1<<(1+n%20)))
		for i := range data {
			data[i] = byte(rng.Uint32())
		}
		b := testBatch(testLane(byte(n%3)), n, data)
		if n%7 == 0 {
			b.Via = []batch.Node{testNode(7), testNode(8)}
		}
		sent = append(sent, b)
	}
	src.push(sent...)
	c := connect(t, ClientOptions{Address: ln.Addr().String(), Window: 1 << 20}, src)
	src.awaitAcked(t, len(sent))
	got := h.batches()
	if len(got) != len(sent) {
		t.Fatalf("%d batches arrived, want %d", len(got), len(sent))
	}
	for i := range got {
		want := sent[i]
		want.Via = append(slices.Clone(want.Via), testNode(1))
		if got[i].ID != want.ID || got[i].CRC != want.CRC || got[i].Records != want.Records || got[i].Flags != 0 ||
			got[i].Payload != want.Payload || got[i].Time != want.Time || !bytes.Equal(got[i].Data, want.Data) ||
			!slices.Equal(got[i].Via, want.Via) {
			t.Fatalf("batch %d differs: %v via %v", i, got[i].ID, got[i].Via)
		}
		if cap(got[i].Data) > len(got[i].Data)+len(got[i].Data)/4+16 {
			t.Errorf("batch %d: %d bytes in a slice of %d", i, len(got[i].Data), cap(got[i].Data))
		}
	}
	st := c.Stats()
	if st.State != StateConnected || st.InFlight != 0 || st.InFlightBytes != 0 || st.Acked != 300 || st.Sent != 300 || st.Resent != 0 || st.Peer.Host != "agg" {
		t.Errorf("stats %+v", st)
	}
	for seq, n := range src.acked {
		if n != 1 {
			t.Errorf("seq %d acked %d times", seq, n)
		}
	}
}

// TestFinalAndHorizon: horizons reach the handler at the start and as they move;
// finals reach the peers of their lane, and only those.
func TestFinalAndHorizon(t *testing.T) {
	h, src, other := newTestHandler(), newTestSource(), newTestSource()
	s, ln := serve(t, ServerOptions{}, h)
	lane := testLane(1)
	src.horizon = []LaneHorizon{{lane, 5}}
	connect(t, ClientOptions{Address: ln.Addr().String()}, src)
	connect(t, ClientOptions{Address: ln.Addr().String(), Identity: Identity{Node: testNode(2)}}, other)
	other.push(testBatch(testLane(2), 1, []byte("x")))
	other.awaitAcked(t, 1)
	await(t, h.changed, "the horizon", func() bool {
		h.mu.Lock()
		defer h.mu.Unlock()
		return slices.Equal(h.horizons, []LaneHorizon{{lane, 5}})
	})
	src.mu.Lock()
	src.horizon = []LaneHorizon{{lane, 9}}
	src.mu.Unlock()
	await(t, h.changed, "the horizon that moved", func() bool {
		h.mu.Lock()
		defer h.mu.Unlock()
		return len(h.horizons) == 2 && h.horizons[1].Below == 9
	})
	s.Final(batch.ID{Lane: lane, N: 9}, batch.ID{Lane: lane, N: 10}, batch.ID{Lane: lane, N: 12})
	s.FinalRanges(lane, batch.Range{First: 20, Last: 1 << 40})
	s.Final(batch.ID{Lane: testLane(2), N: 1})
	await(t, src.changed, "finals", func() bool {
		src.mu.Lock()
		defer src.mu.Unlock()
		r := src.final[lane]
		return r != nil && r.String() == "9-10,12,20-1099511627776"
	})
	await(t, other.changed, "finals of the other", func() bool {
		other.mu.Lock()
		defer other.mu.Unlock()
		return other.final[testLane(2)] != nil
	})
	if len(src.final) != 1 || len(other.final) != 1 {
		t.Error("a peer was told of a lane that is not its own")
	}
}

// TestDrain: Drain lets what is in flight be answered and takes nothing more.
func TestDrain(t *testing.T) {
	h, src := newTestHandler(), newTestSource()
	gate := make(chan struct{})
	h.before = func(ctx context.Context, b batch.Sealed) *Verdict { <-gate; return nil }
	_, ln := serve(t, ServerOptions{}, h)
	c, stop := connectStoppable(t, ClientOptions{Address: ln.Addr().String()}, src)
	src.push(testBatch(testLane(1), 1, []byte("a")), testBatch(testLane(1), 2, []byte("b")))
	await(t, nil, "two in flight", func() bool { return c.Stats().InFlight == 2 })
	done := make(chan error, 1)
	go func() { done <- c.Drain(context.Background()) }()
	await(t, nil, "draining", func() bool { return c.Stats().State == StateDraining })
	src.push(testBatch(testLane(1), 3, []byte("c")))
	close(gate)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if err := stop(); err != nil {
		t.Errorf("Run returned %v after Drain", err)
	}
	if len(src.acked) != 2 || len(h.batches()) != 2 {
		t.Errorf("%d acked, %d arrived, want 2 of 3", len(src.acked), len(h.batches()))
	}
}

// TestShutdown: the server asks its peers to stop, answers what is in flight, and ends;
// the client keeps what is left and goes on when another server comes.
func TestShutdown(t *testing.T) {
	h, src := newTestHandler(), newTestSource()
	s, ln := serve(t, ServerOptions{}, h)
	c := connect(t, ClientOptions{Address: ln.Addr().String(), Window: 1 << 16}, src)
	data := make([]byte, 1000)
	for n := uint64(1); n <= 5000; n++ {
		src.push(testBatch(testLane(1), n, data))
	}
	src.awaitAcked(t, 100)
	ctx, cancel := context.WithTimeout(context.Background(), testLimit)
	defer cancel()
	if err := s.Shutdown(ctx); err != nil {
		t.Fatal(err)
	}
	if st := c.Stats(); st.InFlight != 0 {
		t.Errorf("%d in flight after an orderly shutdown", st.InFlight)
	}
	ln2 := listenAgain(t, ln.Addr().String())
	serveOn(t, ln2, ServerOptions{}, h)
	src.awaitAcked(t, 5000)
	got := h.batches()
	for i := range got {
		if got[i].ID.N != uint64(i+1) {
			t.Fatalf("batch %d at place %d", got[i].ID.N, i+1)
		}
	}
	if st := c.Stats(); st.Resent != 0 {
		t.Errorf("%d resent after an orderly shutdown", st.Resent)
	}
}
