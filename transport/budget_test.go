package transport

import (
	"context"
	"math/rand/v2"
	"net"
	"sync/atomic"
	"testing"
	"time"
)

// batchFrame is a whole BATCH frame of size bytes of data, from the node of rawClient.
func batchFrame(lane byte, n uint64, size int) []byte {
	b := testBatch(testLane(lane), n, make([]byte, size))
	return append(appendBatch(nil, &b, testNode(1)), b.Data...)
}

// stall makes connections that send all but the last byte of a batch, and returns when the
// server has read what it wants of it, and a function that counts those that it cut off.
func stall(t *testing.T, s *Server, addr string, conns, size int) (cutOff func() int64) {
	t.Helper()
	frame := batchFrame(9, 1, size)
	var ended atomic.Int64
	for range conns {
		nc, fr := rawClient(t, addr)
		go func() { _, _ = nc.Write(frame[:len(frame)-1]) }()
		go func() {
			for {
				if _, _, err := fr.next(); err != nil {
					ended.Add(1)
					return
				}
			}
		}()
	}
	await(t, nil, "the batches to begin", func() bool {
		n := ended.Load() // some may be cut off by now
		for _, p := range s.Stats().Peers {
			n += p.Pending
		}
		return n >= int64(conns)
	})
	return ended.Load
}

// TestBytesOfBatchesAreBounded: peers that send most of a large batch each, and stop,
// cannot make the server hold more than MaxPending of it.
func TestBytesOfBatchesAreBounded(t *testing.T) {
	const limit, size, conns = 8 << 20, 1 << 20, 60
	s, ln := serve(t, ServerOptions{MaxPending: limit, DeadAfter: time.Hour, Heartbeat: time.Hour, Logger: discard}, newTestHandler())
	before := memory()
	stall(t, s, ln.Addr().String(), conns, size)
	most := 0
	for end := time.Now().Add(time.Second); time.Now().Before(end); { // nothing is to happen
		most = max(most, memory()-before)
		if n := s.Stats().Pending; n > limit {
			t.Fatalf("%d bytes are counted, %d are the limit", n, limit)
		}
	}
	if most > limit+conns*(firstPiece+64<<10)+size { // and size once, for what was sent; both ends are in this process
		t.Errorf("%d KiB for %d batches of 1 MiB, the limit is %d KiB", most>>10, conns, limit>>10)
	}
}

// TestStalledBatchesStarveNobody: neither those of another address nor, when they are cut
// off, those of its own.
func TestStalledBatchesStarveNobody(t *testing.T) {
	for name, from := range map[string]string{"another address": "127.0.0.2", "the same address": "127.0.0.1"} {
		t.Run(name, func(t *testing.T) {
			const size = 1 << 20
			s, ln := serve(t, ServerOptions{MaxPending: 8 << 20, DeadAfter: time.Hour, Logger: discard}, newTestHandler())
			s.pending.slowAfter = 100 * time.Millisecond
			cutOff := stall(t, s, ln.Addr().String(), 50, size)
			src := newTestSource()
			pushMany(src, 20, size)
			connect(t, ClientOptions{Dial: dialFrom(from, ln.Addr().String()), DeadAfter: time.Hour}, src)
			src.awaitAcked(t, 20)
			await(t, nil, "the ends", func() bool { return cutOff() == int64(s.Stats().Slow) })
		})
	}
}

// TestSlowBatchesAreTakenWhereNobodyWaits: on a slow link a batch may take long.
func TestSlowBatchesAreTakenWhereNobodyWaits(t *testing.T) {
	s, ln := serve(t, ServerOptions{MaxPending: 1 << 20, DeadAfter: time.Hour}, newTestHandler())
	s.pending.slowAfter = time.Millisecond
	nc, fr := rawClient(t, ln.Addr().String())
	frame := batchFrame(9, 1, 900<<10)
	for len(frame) > 0 {
		n := min(len(frame), 64<<10)
		if _, err := nc.Write(frame[:n]); err != nil {
			t.Fatal(err)
		}
		frame = frame[n:]
		<-time.After(5 * time.Millisecond)
	}
	awaitFrame(t, fr, typeAck)
	if st := s.Stats(); st.Slow != 0 || st.Pending != 0 {
		t.Errorf("%+v", st)
	}
}

// TestBudgetAgainstModel: whoever takes and gives in whatever order, no more than the limit
// is out (but for one batch that is larger), everybody who waits is served in the end, and
// nothing is left over.
func TestBudgetAgainstModel(t *testing.T) {
	const limit = 1000
	b := newBudget(limit)
	b.slowAfter = time.Hour
	var conns []*serverConn
	for i := range 12 {
		conns = append(conns, &serverConn{key: string(rune('a' + i%4))})
	}
	var out atomic.Int64
	done := make(chan error, len(conns))
	for i, c := range conns {
		go func() {
			random := rand.New(rand.NewPCG(uint64(i), 1))
			var mine []*share
			for range 2000 {
				n := 1 + random.Int64N(300)
				if random.IntN(50) == 0 {
					n = limit * 2
				}
				if len(mine) > 0 && random.IntN(3) > 0 || n > limit || len(mine) == 3 {
					for _, s := range mine {
						out.Add(-s.n)
						s.give()
					}
					mine = nil
				}
				ctx, cancel := context.WithCancel(t.Context())
				if random.IntN(4) == 0 {
					time.AfterFunc(time.Duration(random.IntN(100))*time.Microsecond, cancel)
				}
				// One that holds something and waits for more could wait for others that do.
				if len(mine) > 0 {
					cancel()
				}
				s, err := b.take(ctx, c, n)
				cancel()
				if err != nil {
					continue
				}
				if now := out.Add(n); now > max(limit, n) {
					t.Errorf("%d are out", now)
				}
				mine = append(mine, s)
			}
			for _, s := range mine {
				out.Add(-s.n)
				s.give()
			}
			done <- nil
		}()
	}
	limitTime := time.After(testLimit)
	for range conns {
		select {
		case <-done:
		case <-limitTime:
			t.Fatalf("somebody waits for ever: %+v", b)
		}
	}
	if used, _ := b.size(); used != 0 || len(b.peers) != 0 || len(b.conns) != 0 || len(b.waiting) != 0 || len(b.coming) != 0 {
		t.Errorf("left over: %+v", b)
	}
}

// TestOnePeerLeavesRoomForOthers, and they for those behind them, though nothing comes back.
func TestOnePeerLeavesRoomForOthers(t *testing.T) {
	b := newBudget(1000)
	over, cancel := context.WithCancel(t.Context())
	cancel() // nobody waits
	for i, want := range []int{4, 2, 2, 1} {
		c, got := &serverConn{key: string(rune('a' + i))}, 0
		for {
			if _, err := b.take(over, c, 100); err != nil {
				break
			}
			got++
		}
		if got != want {
			t.Errorf("peer %d got %d batches, want %d", i+1, got, want)
		}
	}
}

// TestWhoGivesUpLetsOthersPass.
func TestWhoGivesUpLetsOthersPass(t *testing.T) {
	b := newBudget(1000)
	if _, err := b.take(t.Context(), &serverConn{key: "a"}, 400); err != nil {
		t.Fatal(err)
	}
	wait := func(ctx context.Context, key string, n int64) <-chan error {
		done := make(chan error, 1)
		b.mu.Lock()
		before := len(b.waiting)
		b.mu.Unlock()
		go func() {
			_, err := b.take(ctx, &serverConn{key: key}, n)
			done <- err
		}()
		await(t, nil, "the wait of "+key, func() bool {
			b.mu.Lock()
			defer b.mu.Unlock()
			return len(b.waiting) == before+1
		})
		return done
	}
	ctx, giveUp := context.WithCancel(t.Context())
	large, small := wait(ctx, "b", 700), wait(t.Context(), "c", 100)
	giveUp()
	if err := <-large; err == nil {
		t.Error("700 of 600 were given")
	}
	select {
	case err := <-small:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(testLimit):
		t.Error("who waited behind it waits on")
	}
}

// TestAFullLineIsNobodysFault: where all batches take long because there are many, none is
// cut off, to be sent again over the same line.
func TestAFullLineIsNobodysFault(t *testing.T) {
	b := newBudget(1000)
	now := time.Now()
	var conns []*serverConn
	for i := range 10 {
		c := &serverConn{key: string(rune('a' + i)), nc: fakeConn{net.Conn(nil), "x"}}
		c.ctx, c.cancel = context.WithCancelCause(t.Context())
		b.coming[&share{b: b, conn: c, n: 100, since: now, marked: now, rate: -1}] = struct{}{}
		conns = append(conns, c)
	}
	for range 60 {
		now = now.Add(time.Second)
		for i, c := range conns {
			c.wire.count.Add(20<<10 + int64(i)*10<<10)
		}
		b.cutSlow(now)
	}
	for _, c := range conns {
		if c.ctx.Err() != nil {
			t.Errorf("%s was cut off: %v", c.key, context.Cause(c.ctx))
		}
	}
}

// TestTheSlowestOfTheGreediestGoesFirst, and as few as need be.
func TestTheSlowestOfTheGreediestGoesFirst(t *testing.T) {
	b := newBudget(1000)
	now := time.Now()
	type peer struct {
		key  string
		n    int64
		read int64 // in the last second
		cut  bool
	}
	peers := []peer{
		{"one", 150, 1, false}, {"many", 100, 500, false}, {"many", 100, 10, true}, {"many", 60, 20, true}, {"fast", 300, 1 << 20, false},
	}
	ctxs := make([]context.Context, len(peers))
	for i, p := range peers {
		c := &serverConn{key: p.key, nc: fakeConn{net.Conn(nil), "x"}}
		ctxs[i], c.cancel = context.WithCancelCause(t.Context())
		s := &share{b: b, conn: c, n: p.n, since: now.Add(-time.Minute), marked: now.Add(-time.Second)}
		c.wire.count.Store(p.read)
		b.coming[s] = struct{}{}
	}
	b.cutSlow(now)
	for i, p := range peers {
		if got := ctxs[i].Err() != nil; got != p.cut {
			t.Errorf("%d: %+v: cut off: %v", i, p, got)
		}
	}
	if _, cut := b.size(); cut != 2 {
		t.Errorf("%d were counted", cut)
	}
}
