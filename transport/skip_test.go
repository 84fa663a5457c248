package transport

import (
	"bytes"
	"fmt"
	"io"
	"maps"
	"math"
	"math/rand/v2"
	"strings"
	"testing"

	"ftfuse/internal/batch"
)

func skipOf(reason string, records, payload uint64, rs ...batch.Range) Skip {
	return Skip{Reason: reason, Ranges: rangesOf(rs), Records: records, Payload: payload}
}

// TestSkipSetCountsEachBatchOnce: whatever is told in whatever pieces, the sums of what
// Add returns are those of the batches.
func TestSkipSetCountsEachBatchOnce(t *testing.T) {
	for seed := range uint64(200) {
		rng := rand.New(rand.NewPCG(seed, 7))
		var s SkipSet
		known := make(map[uint64]string) // number -> reason
		sums := make(map[string]uint64)
		lane := testLane(1)
		for range 30 {
			reason := []string{"max_age", "drop_oldest"}[rng.IntN(2)]
			var sk Skip
			sk.Reason = reason
			for range 1 + rng.IntN(4) {
				first := 1 + rng.Uint64N(60)
				sk.Ranges.AddRange(batch.Range{First: first, Last: first + rng.Uint64N(12)})
			}
			sk.Records, sk.Payload = 3*sk.Ranges.Count(), 100*sk.Ranges.Count() // every batch alike
			for _, fresh := range s.Add(lane, sk) {
				if fresh.Records != 3*fresh.Batches() || fresh.Payload != 100*fresh.Batches() || fresh.Reason != reason {
					t.Fatalf("seed %d: %+v", seed, fresh)
				}
				sums[reason] += fresh.Batches()
				for _, r := range fresh.Ranges.All() {
					for n := r.First; n <= r.Last; n++ {
						if was, ok := known[n]; ok {
							t.Fatalf("seed %d: %d is new again, was %s", seed, n, was)
						}
						known[n] = reason
					}
				}
			}
			for _, r := range sk.Ranges.All() {
				for n := r.First; n <= r.Last; n++ {
					if known[n] == "" {
						t.Fatalf("seed %d: %d was told and is not known", seed, n)
					}
				}
			}
		}
		below := 1 + rng.Uint64N(80)
		s.Merge(lane, below)
		got := make(map[uint64]string)
		for _, sk := range s.Lane(lane) {
			if sk.Records != 3*sk.Batches() {
				t.Fatalf("seed %d: merged below %d: %+v", seed, below, sk)
			}
			for _, r := range sk.Ranges.All() {
				for n := r.First; n <= r.Last; n++ {
					got[n] = sk.Reason
				}
			}
		}
		for n, reason := range known {
			if (n >= below) != (got[n] == reason) {
				t.Fatalf("seed %d: merged below %d: %d is %q, was %q", seed, below, n, got[n], reason)
			}
		}
		if len(got) == 0 && (len(s.All()) != 0 || s.ranges != 0) {
			t.Fatalf("seed %d: an empty lane stays: %+v", seed, s.All())
		}
	}
}

// TestSkipSetSharesOut: where only a part of a skip is new, its records and bytes are in
// proportion, and what comes in parts sums up.
func TestSkipSetSharesOut(t *testing.T) {
	var s SkipSet
	lane := testLane(1)
	s.Add(lane, skipOf("max_age", 10, 1000, batch.Range{First: 1, Last: 10}))
	fresh := s.Add(lane, skipOf("drop_oldest", 1000, 1<<62, batch.Range{First: 6, Last: 25}))
	if len(fresh) != 1 || fresh[0].Ranges.String() != "11-25" || fresh[0].Records != 750 || fresh[0].Payload != 3<<60 {
		t.Errorf("%+v", fresh)
	}
	whole := skipOf("x", math.MaxUint64, math.MaxUint64, batch.Range{First: 0, Last: math.MaxUint64})
	if got := s.Add(testLane(2), whole); len(got) != 1 || got[0].Records != math.MaxUint64 {
		t.Errorf("everything: %+v", got)
	}
	if got := s.Add(testLane(2), whole); len(got) != 0 {
		t.Errorf("everything again: %+v", got)
	}
}

// TestSkipSetIsBounded: the oldest lane goes when there are too many ranges.
func TestSkipSetIsBounded(t *testing.T) {
	var s SkipSet
	for i := range byte(70) {
		var sk Skip
		for n := range uint64(1000) {
			sk.Ranges.Add(1 + 2*n)
		}
		s.Add(testLane(i), sk)
	}
	if s.ranges > maxSkipRanges || len(s.All()) != maxSkipRanges/1000 || s.Lane(testLane(69)) == nil || s.Lane(testLane(0)) != nil {
		t.Errorf("%d ranges in %d lanes", s.ranges, len(s.All()))
	}
}

// TestMadeUpReasonsAreCountedTogether: a peer cannot make metrics and memory without end.
func TestMadeUpReasonsAreCountedTogether(t *testing.T) {
	sums := map[string]int{}
	for _, reason := range []string{"expired", "", "a\nb", "Q", strings.Repeat("x", 33)} {
		sums[CountedAs(sums, reason)]++
	}
	if want := map[string]int{"expired": 1, OtherReason: 4}; !maps.Equal(sums, want) {
		t.Errorf("%v, want %v", sums, want)
	}
	for i := range 1000 {
		sums[CountedAs(sums, fmt.Sprint("reason_", i))]++
	}
	if sums["expired"]++; len(sums) > maxReasons || CountedAs(sums, "expired") != "expired" {
		t.Errorf("%d reasons are kept", len(sums))
	}
	var set SkipSet
	for n := range uint64(1000) {
		set.Add(testLane(1), skipOf(fmt.Sprint("reason_", n), 1, 1, batch.Range{First: n + 1, Last: n + 1}))
	}
	if all := set.Lane(testLane(1)); len(all) != maxReasons+1 || all[maxReasons].Batches() != 1000-maxReasons {
		t.Errorf("%d reasons of a lane are kept", len(all))
	}
}

// TestLargeSkipsAreSplit: more ranges than a frame takes go into several, whose records
// and bytes sum up.
func TestLargeSkipsAreSplit(t *testing.T) {
	sk := Skip{Reason: "repair", Records: 123_457, Payload: 1 << 50}
	for n := range uint64(3500) {
		sk.Ranges.Add(5 + n*3)
	}
	want := sk.Ranges.String()
	fr := &frameReader{r: bytes.NewReader(appendSkips(nil, testLane(1), []Skip{sk, skipOf("x", 1, 2, batch.Range{First: 1, Last: 1})})), lim: limits{meta: maxMeta}}
	var s SkipSet
	frames := 0
	for {
		_, meta, err := fr.next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		frames++
		lane, one, err := parseSkip(meta)
		if err != nil || lane != testLane(1) {
			t.Fatal(lane, err)
		}
		s.Add(lane, one)
	}
	got := s.Lane(testLane(1))
	if frames != 5 || len(got) != 2 || got[0].Ranges.String() != want || got[0].Records != sk.Records || got[0].Payload != sk.Payload {
		t.Errorf("%d frames, %d skips", frames, len(got))
	}
}

// TestSkipsTravelBothWays: what was dropped upstream reaches the handler, at the start of
// a connection and when it changes, once on each connection; what was dropped downstream
// reaches the peers of the lane, and only those.
func TestSkipsTravelBothWays(t *testing.T) {
	h, src, other := newTestHandler(), newTestSource(), newTestSource()
	var told counter
	s, ln := serve(t, ServerOptions{}, skipCounter{h, &told})
	p := newProxy(t, ln.Addr().String(), nil)
	lane := testLane(1)
	src.skips = []LaneSkips{{lane, []Skip{skipOf("max_age", 4, 40, batch.Range{First: 1, Last: 2})}}}
	c := connect(t, ClientOptions{Address: p.addr()}, src)
	heard := func(want string) func() bool {
		return func() bool { return fmt.Sprint(describe(h.skips.Lane(lane))) == want }
	}
	await(t, h.changed, "the skips of the start", heard("[max_age 1-2 4 40]"))
	src.mu.Lock()
	src.skips = []LaneSkips{{lane, []Skip{
		skipOf("max_age", 6, 60, batch.Range{First: 1, Last: 3}), skipOf("corrupt", 1, 9, batch.Range{First: 7, Last: 7}),
	}}}
	src.mu.Unlock()
	await(t, h.changed, "what is new", heard("[max_age 1-3 6 60 corrupt 7 1 9]"))
	for below := uint64(2); below <= 3; below++ { // a heartbeat each
		src.mu.Lock()
		src.horizon = []LaneHorizon{{lane, below}}
		src.mu.Unlock()
		await(t, h.changed, "a horizon", func() bool {
			h.mu.Lock()
			defer h.mu.Unlock()
			return len(h.horizons) == int(below-1)
		})
	}
	beats := told.n.Load()
	connects := c.Stats().Connects
	p.cutAll()
	await(t, nil, "another connection that tells all again", func() bool { return c.Stats().Connects > connects && told.n.Load() >= beats+2 })
	if n := told.n.Load(); n != beats+2 || beats != 3 {
		t.Errorf("%d skips on the first connection and %d on the second, want 3 and 2", beats, n-beats)
	}

	connect(t, ClientOptions{Address: ln.Addr().String(), Identity: Identity{Node: testNode(2)}}, other)
	pushMany(src, 1, 10) // lane 1
	other.push(testBatch(testLane(2), 1, []byte("x")))
	src.awaitAcked(t, 1)
	other.awaitAcked(t, 1)
	s.Skip(lane, skipOf("drop_oldest", 5, 50, batch.Range{First: 10, Last: 14}))
	s.Skip(lane, skipOf("drop_oldest", 5, 50, batch.Range{First: 10, Last: 14}), skipOf("expired", 1, 1, batch.Range{First: 20, Last: 20}))
	s.Skip(testLane(2), skipOf("x", 1, 1, batch.Range{First: 9, Last: 9}))
	await(t, src.changed, "skips from downstream", func() bool {
		return fmt.Sprint(describe(src.skipped.Lane(lane))) == "[drop_oldest 10-14 5 50 expired 20 1 1]"
	})
	await(t, other.changed, "skips of the other", func() bool { return other.skipped.Lane(testLane(2)) != nil })
	if len(src.skipped.All()) != 1 || len(other.skipped.All()) != 1 {
		t.Error("a peer was told of a lane that is not its own")
	}
}

func describe(skips []Skip) (out []any) {
	for i := range skips {
		out = append(out, skips[i].Reason, skips[i].Ranges.String(), skips[i].Records, skips[i].Payload)
	}
	return out
}

// skipCounter counts the calls of Skip.
type skipCounter struct {
	*testHandler
	n *counter
}

func (c skipCounter) Skip(p Peer, lane batch.Lane, skips []Skip) {
	c.n.n.Add(int64(len(skips)))
	c.testHandler.Skip(p, lane, skips)
}

// FuzzSkips: a SKIP frame that is read is written again as it was, and a set of any skips
// stays within its bounds.
func FuzzSkips(f *testing.F) {
	f.Add(goldenFrames()["skip"][frameHeaderSize:])
	f.Add(appendSkips(nil, testLane(2), []Skip{skipOf("", math.MaxUint64, 1, batch.Range{First: 0, Last: math.MaxUint64})})[frameHeaderSize:])
	f.Fuzz(func(t *testing.T, p []byte) {
		lane, sk, err := parseSkip(p)
		if err != nil {
			return
		}
		var s SkipSet
		fresh := s.Add(lane, sk)
		if sk.Ranges.Len() == 0 {
			if len(fresh) != 0 {
				t.Fatalf("nothing becomes %+v", fresh)
			}
			return
		}
		if len(fresh) != 1 || fresh[0].Records != sk.Records || fresh[0].Payload != sk.Payload || fresh[0].Ranges.String() != sk.Ranges.String() {
			t.Fatalf("%+v becomes %+v", sk, fresh)
		}
		if again := s.Add(lane, sk); len(again) != 0 {
			t.Fatalf("new again: %+v", again)
		}
		frame := appendSkips(nil, lane, []Skip{sk})
		lane2, sk2, err := parseSkip(frame[frameHeaderSize:])
		if err != nil || lane2 != lane || sk2.Reason != sk.Reason || sk2.Ranges.String() != sk.Ranges.String() || sk2.Records != sk.Records {
			t.Fatalf("%+v comes back as %+v, %v", sk, sk2, err)
		}
		s.Merge(lane, sk.Ranges.All()[0].First+1)
	})
}
