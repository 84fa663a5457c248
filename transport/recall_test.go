package transport

import (
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"ftfuse/internal/batch"
)

// counter is a number that tests look at from several goroutines.
type counter struct{ n atomic.Int64 }

// TestRecallTakesBackWhatIsNotAnswered: what was recalled leaves the window, is not sent
// again on another connection, and a late ack for it still comes through, once, unless it
// was forgotten.
func TestRecallTakesBackWhatIsNotAnswered(t *testing.T) {
	h, src := &hoarder{replies: make(chan func(Verdict), 100)}, newTestSource()
	_, ln := serve(t, ServerOptions{}, h)
	p := newProxy(t, ln.Addr().String(), nil)
	c := connect(t, ClientOptions{Address: p.addr()}, src)
	pushMany(src, 6, 1000)
	replies := make([]func(Verdict), 6)
	for i := range replies {
		replies[i] = <-h.replies
	}
	replies[0](Verdict{Code: Taken})
	src.awaitAcked(t, 1)
	if got := c.Recall(2, 3, 1, 99); !slices.Equal(got, []RecalledBatch{{2, true}, {3, true}}) {
		t.Errorf("Recall returned %v", got)
	}
	if st := c.Stats(); st.InFlight != 3 || st.InFlightBytes != 3*(1000+batchOverhead) {
		t.Errorf("%+v", st)
	}
	c.Forget(3)
	replies[1](Verdict{Code: Taken})
	replies[2](Verdict{Code: Taken}) // forgotten
	replies[3](Verdict{Code: Taken})
	src.awaitAcked(t, 3)
	if got := c.RecallAll(); !slices.Equal(got, []RecalledBatch{{5, true}, {6, true}}) {
		t.Errorf("RecallAll returned %v", got)
	}
	replies[4](Verdict{Code: Conflict}) // nobody asked any more
	p.cutAll()
	await(t, nil, "another connection", func() bool { return c.Stats().Connects == 2 })
	c.flights.mu.Lock()
	if n := len(c.flights.recalled); n != 0 {
		t.Errorf("%d acks are still waited for that can come no more", n)
	}
	c.flights.mu.Unlock()
	src.push(testBatch(testLane(1), 7, []byte("new")))
	(<-h.replies)(Verdict{Code: Taken}) // the only one that comes again would be 5 or 6
	src.awaitAcked(t, 4)
	src.mu.Lock()
	defer src.mu.Unlock()
	for seq, want := range map[uint64]int{1: 1, 2: 1, 3: 0, 4: 1, 5: 0, 6: 0, 7: 1} {
		if src.acked[seq] != want {
			t.Errorf("seq %d acked %d times, want %d", seq, src.acked[seq], want)
		}
	}
	if len(src.refused) != 0 || len(h.replies) != 0 {
		t.Errorf("refused %v, %d more arrived", src.refused, len(h.replies))
	}
	if st := c.Stats(); st.InFlight != 0 || st.InFlightBytes != 0 || st.Resent != 0 {
		t.Errorf("%+v", st)
	}
}

// TestRecalledBatchesCanBeGivenBack: to the same client, which sends them marked as sent
// before.
func TestRecalledBatchesCanBeGivenBack(t *testing.T) {
	h, src := &hoarder{replies: make(chan func(Verdict), 100)}, newTestSource()
	flags := make(chan uint16, 10)
	_, ln := serve(t, ServerOptions{}, flagWatcher{h, flags})
	c := connect(t, ClientOptions{Address: ln.Addr().String()}, src)
	pushMany(src, 1, 10)
	first := <-h.replies
	if got := c.RecallAll(); len(got) != 1 || !got[0].Sent {
		t.Errorf("%v", got)
	}
	pushMany(src, 1, 10) // the same batch, as seq 2
	second := <-h.replies
	first(Verdict{Code: Taken}) // answers the id, whichever copy
	src.awaitAcked(t, 1)
	second(Verdict{Code: Duplicate})
	if a, b := <-flags, <-flags; a != 0 || b != batch.FlagResent {
		t.Errorf("flags %d, then %d", a, b)
	}
	if c.Stats().InFlight != 0 {
		t.Errorf("%+v", c.Stats())
	}
}

// flagWatcher tells the flags of what comes.
type flagWatcher struct {
	*hoarder
	flags chan uint16
}

func (w flagWatcher) Batch(ctx context.Context, p Peer, b batch.Sealed, reply func(Verdict)) {
	w.flags <- b.Flags
	w.hoarder.Batch(ctx, p, b, reply)
}

// TestUnsentBatchesAreRecalledAsSuch: what waits for a connection was not sent, and does
// not go out after it was recalled.
func TestUnsentBatchesAreRecalledAsSuch(t *testing.T) {
	h, src := newTestHandler(), newTestSource()
	_, ln := serve(t, ServerOptions{}, h)
	// A connection that takes the first batch and no more: the others wait behind it.
	p := newProxy(t, ln.Addr().String(), nil)
	c := connect(t, ClientOptions{Address: p.addr(), DeadAfter: time.Hour}, src)
	pushMany(src, 1, 10)
	src.awaitAcked(t, 1)
	p.freeze()
	for n := uint64(2); n <= 20; n++ {
		src.push(testBatch(testLane(1), n, make([]byte, 2<<20)))
	}
	await(t, nil, "a full pipe", func() bool { return c.Stats().InFlight >= 2 })
	got := c.RecallAll()
	if len(got) == 0 || !got[0].Sent {
		t.Errorf("%v", got)
	}
	if st := c.Stats(); st.InFlight > 1 { // one may have been pulled meanwhile
		t.Errorf("%+v", st)
	}
	p.cutAll()
}

// TestRecallDuringNext: a batch that Next gives while Recall runs is neither sent nor
// lost: it comes back.
func TestRecallDuringNext(t *testing.T) {
	for name, recall := range map[string]func(*Client){
		"all":  func(c *Client) { c.RecallAll() },
		"this": func(c *Client) { c.Recall(1) },
	} {
		t.Run(name, func(t *testing.T) {
			h := newTestHandler()
			_, ln := serve(t, ServerOptions{}, h)
			src := &slowSource{testSource: newTestSource(), in: make(chan struct{}, 1), out: make(chan struct{})}
			src.push(testBatch(testLane(1), 1, []byte("x")), testBatch(testLane(1), 2, []byte("y")))
			c := connect(t, ClientOptions{Address: ln.Addr().String()}, src)
			<-src.in // Next has it in its hands
			recall(c)
			src.out <- struct{}{}
			await(t, src.changed, "the batch to come back", func() bool {
				src.mu.Lock()
				defer src.mu.Unlock()
				return src.refused[1].Code == Recalled
			})
			<-src.in
			src.out <- struct{}{}
			src.awaitAcked(t, 1)
			if got := h.batches(); len(got) != 1 || got[0].ID.N != 2 || src.acked[1] != 0 {
				t.Errorf("%d arrived", len(got))
			}
			if st := c.Stats(); st.Refused != 0 || st.InFlight != 0 {
				t.Errorf("%+v", st)
			}
		})
	}
}

// slowSource holds each batch back until it is told.
type slowSource struct {
	*testSource
	in, out chan struct{}
}

func (s *slowSource) Next(ctx context.Context) (uint64, batch.Sealed, error) {
	seq, b, err := s.testSource.Next(ctx)
	if err != nil {
		return seq, b, err
	}
	s.in <- struct{}{}
	<-s.out
	return seq, b, nil
}

// recallSource checks that what a client was given is in one place at any time.
type recallSource struct {
	mu    sync.Mutex
	next  uint64
	state map[uint64]string // seq: with, acked, back
	gives map[uint64]int    // an ack that crosses the second giving is for both
	acks  map[uint64]int
	bad   []string
	done  int
	n     uint64
	again []uint64
	wake  chan struct{}
}

func (s *recallSource) Next(ctx context.Context) (uint64, batch.Sealed, error) {
	for {
		s.mu.Lock()
		var seq uint64
		if len(s.again) > 0 {
			seq = s.again[0]
			s.again = s.again[1:]
		} else if s.next < s.n {
			s.next++
			seq = s.next
		}
		if seq > 0 {
			if st := s.state[seq]; st == "with" {
				s.bad = append(s.bad, "given twice")
			}
			s.state[seq] = "with"
			s.gives[seq]++
			s.mu.Unlock()
			return seq, testBatch(testLane(1), seq, []byte("x")), nil
		}
		s.mu.Unlock()
		select {
		case <-s.wake:
		case <-ctx.Done():
			return 0, batch.Sealed{}, ctx.Err()
		}
	}
}

func (s *recallSource) poke() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

func (s *recallSource) Acked(seq uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.acks[seq]++; s.acks[seq] > s.gives[seq] {
		s.bad = append(s.bad, "acked more often than given")
	}
	if s.state[seq] == "back" { // a late ack: it need not be given again
		s.again = slices.DeleteFunc(s.again, func(n uint64) bool { return n == seq })
	}
	if s.state[seq] != "acked" {
		s.done++
	}
	s.state[seq] = "acked"
}

func (s *recallSource) back(seq uint64) {
	if s.state[seq] == "acked" {
		return // the answer and the recall crossed
	}
	if s.state[seq] != "with" {
		s.bad = append(s.bad, "back from nowhere: "+s.state[seq])
	}
	s.state[seq] = "back"
	s.again = append(s.again, seq)
}

func (s *recallSource) Refused(seq uint64, v Verdict) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if v.Code != Recalled {
		s.bad = append(s.bad, "refused: "+v.Text)
	}
	s.back(seq)
	s.poke()
}

func (s *recallSource) Final(batch.Lane, []batch.Range) {}
func (s *recallSource) Skipped(batch.Lane, []Skip)      {}
func (s *recallSource) Horizon() []LaneHorizon          { return nil }
func (s *recallSource) Skips() []LaneSkips              { return nil }

// TestRecallLosesTrackOfNothing recalls at random while batches go out, acks come in and
// connections are cut: every batch is acked in the end, and none is ever in two places.
func TestRecallLosesTrackOfNothing(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	h := newTestHandler()
	_, ln := serve(t, ServerOptions{Logger: discard}, h)
	p := newProxy(t, ln.Addr().String(), nil)
	src := &recallSource{state: make(map[uint64]string), gives: make(map[uint64]int), acks: make(map[uint64]int), n: 20_000, wake: make(chan struct{}, 1)}
	c := connect(t, ClientOptions{Address: p.addr(), Window: 200 * batchOverhead, Logger: discard, MinWait: time.Millisecond, MaxWait: time.Millisecond}, src)
	recalls, cuts := 0, 0
	await(t, nil, "every batch to be acked", func() bool {
		src.mu.Lock()
		done := src.done
		src.mu.Unlock()
		if done == int(src.n) {
			return true
		}
		switch rng.IntN(20) {
		case 0:
			p.cutAll()
			cuts++
		default:
			src.mu.Lock()
			var seqs []uint64
			for seq, st := range src.state {
				if st == "with" && rng.IntN(2) == 0 {
					seqs = append(seqs, seq)
				}
			}
			src.mu.Unlock()
			var got []RecalledBatch
			if rng.IntN(2) == 0 {
				got = c.RecallAll()
			} else {
				got = c.Recall(seqs...)
			}
			recalls += len(got)
			src.mu.Lock()
			for _, r := range got {
				src.back(r.Seq)
			}
			src.mu.Unlock()
			src.poke()
		}
		return false
	})
	src.mu.Lock()
	defer src.mu.Unlock()
	t.Logf("%d batches, %d recalled, %d cuts", src.n, recalls, cuts)
	if len(src.bad) > 0 {
		t.Errorf("%d times: %s", len(src.bad), src.bad[0])
	}
	if recalls == 0 {
		t.Error("nothing was recalled: the test shows nothing")
	}
	if n := len(h.batches()); n != int(src.n) {
		t.Errorf("%d arrived, want %d", n, src.n)
	}
}

// TestStatesComeInOrderWithTheirReasons: what OnState tells about each end of a
// connection or a try.
func TestStatesComeInOrderWithTheirReasons(t *testing.T) {
	h := newTestHandler()
	closed := listenerThatIsClosed(t)
	ca := newTestCA(t)
	for name, c := range map[string]struct {
		o    func(t *testing.T) ClientOptions
		want Why
		via  bool // a handshake comes first
	}{
		"refused":     {func(*testing.T) ClientOptions { return ClientOptions{Address: closed} }, WhyRefused, false},
		"no name":     {func(*testing.T) ClientOptions { return ClientOptions{Address: "no-such-host.invalid:1"} }, WhyName, false},
		"unreachable": {func(*testing.T) ClientOptions { return ClientOptions{Connect: time.Millisecond, Dial: dialNever} }, WhyUnreachable, false},
		"no ftfuse": {func(t *testing.T) ClientOptions {
			return ClientOptions{Address: fakeServer(t, []byte(strings.Repeat("SSH", 10)), nil)}
		}, WhyProtocol, false},
		"bye": {func(t *testing.T) ClientOptions {
			return ClientOptions{Address: fakeServer(t, appendBye(nil, ByeTooMany, "x"), nil)}
		}, WhyBye, false},
		"closed": {func(t *testing.T) ClientOptions { return ClientOptions{Address: fakeServer(t, nil, nil)} }, WhyReset, false},
		"no answer": {func(t *testing.T) ClientOptions {
			_, ln := serve(t, ServerOptions{}, h)
			p := newProxy(t, ln.Addr().String(), nil)
			p.freeze()
			return ClientOptions{Address: p.addr(), Handshake: 50 * time.Millisecond}
		}, WhySilent, false},
		"tls": {func(t *testing.T) ClientOptions {
			_, ln := serve(t, ServerOptions{}, h)
			return ClientOptions{Address: ln.Addr().String(), TLS: ca.mutual(ca.host("x"))}
		}, WhyTLS, false},
		"killed": {func(t *testing.T) ClientOptions {
			_, ln := serve(t, ServerOptions{}, h)
			p := newProxy(t, ln.Addr().String(), nil)
			return ClientOptions{Address: p.addr(), OnConnect: func(Peer) { p.cutAll() }}
		}, WhyReset, true},
		"frozen": {func(t *testing.T) ClientOptions {
			_, ln := serve(t, ServerOptions{}, h)
			p := newProxy(t, ln.Addr().String(), nil)
			var once sync.Once
			return ClientOptions{Address: p.addr(), OnConnect: func(Peer) { once.Do(p.freeze) }}
		}, WhySilent, true},
		"busy": {func(t *testing.T) ClientOptions {
			busy := newTestHandler()
			busy.before = func(context.Context, batch.Sealed) *Verdict { return &Verdict{Code: Busy} }
			_, ln := serve(t, ServerOptions{}, busy)
			return ClientOptions{Address: ln.Addr().String()}
		}, WhyBusy, true},
		"drained": {func(t *testing.T) ClientOptions {
			s, ln := serve(t, ServerOptions{}, newTestHandler())
			return ClientOptions{Address: ln.Addr().String(), OnConnect: func(Peer) { go s.Shutdown(context.Background()) }}
		}, WhyBye, true},
	} {
		t.Run(name, func(t *testing.T) {
			changes := make(chan StateChange, 1000)
			o := c.o(t)
			var c2 *Client
			ready := make(chan struct{})
			o.OnState = func(ch StateChange) {
				<-ready
				_ = c2.Stats() // must not deadlock
				changes <- ch
			}
			src := newTestSource()
			pushMany(src, 1, 10)
			c2 = connect(t, o, src)
			close(ready)
			want := []State{StateConnecting, StateWaiting}
			if c.via {
				want = []State{StateConnecting, StateConnected, StateWaiting}
			}
			for _, w := range want {
				ch := nextChange(t, changes)
				if ch.State == StateDraining && name == "drained" {
					ch = nextChange(t, changes)
				}
				if ch.State != w {
					t.Fatalf("%+v, want %v", ch, w)
				}
				if (ch.State == StateConnected) != (ch.Peer.Host != "") && w != StateWaiting {
					t.Errorf("peer %+v in %v", ch.Peer, w)
				}
				if w == StateWaiting && (ch.Why != c.want || ch.Err == nil) {
					t.Errorf("ended with %v (%v), want %v", ch.Why, ch.Err, c.want)
				}
			}
		})
	}
}

func nextChange(t *testing.T, changes <-chan StateChange) StateChange {
	t.Helper()
	select {
	case ch := <-changes:
		return ch
	case <-time.After(testLimit):
		t.Fatal("no change of state")
		return StateChange{}
	}
}

func listenerThatIsClosed(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().String()
}

func dialNever(ctx context.Context, _, _ string) (net.Conn, error) {
	<-ctx.Done()
	return nil, errors.Join(errors.New("connect"), ctx.Err())
}

// TestOldestSent is the time of the oldest batch without an answer, and nothing when all
// are answered.
func TestOldestSent(t *testing.T) {
	h, src := &hoarder{replies: make(chan func(Verdict), 100)}, newTestSource()
	_, ln := serve(t, ServerOptions{}, h)
	c := connect(t, ClientOptions{Address: ln.Addr().String()}, src)
	before := time.Now()
	pushMany(src, 1, 10)
	first := <-h.replies
	between := time.Now()
	src.push(testBatch(testLane(1), 2, []byte("x")))
	second := <-h.replies
	if at := c.Stats().OldestSent; at.Before(before) || at.After(between) {
		t.Errorf("%v, want between %v and %v", at, before, between)
	}
	first(Verdict{Code: Taken})
	src.awaitAcked(t, 1)
	if at := c.Stats().OldestSent; at.Before(between) {
		t.Errorf("%v is the time of an answered one", at)
	}
	second(Verdict{Code: Taken})
	src.awaitAcked(t, 2)
	if at := c.Stats().OldestSent; !at.IsZero() {
		t.Errorf("%v, and nothing is in flight", at)
	}
}

// TestStateThatDoesNotChangeIsNotTold: both sides may ask for a drain.
func TestStateThatDoesNotChangeIsNotTold(t *testing.T) {
	var told []State
	c := NewClient(ClientOptions{OnState: func(ch StateChange) { told = append(told, ch.State) }}, newTestSource())
	for _, s := range []State{StateConnecting, StateDraining, StateDraining, StateStopped} {
		c.setState(s, nil)
	}
	if !slices.Equal(told, []State{StateConnecting, StateDraining, StateStopped}) {
		t.Errorf("%v", told)
	}
}
