package relay

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"ftfuse/config"
	"ftfuse/internal/batch"
	"ftfuse/internal/failpoint"
	"ftfuse/queue"
	"ftfuse/transport"
)

func skipOf(reason string, first, last uint64) transport.Skip {
	s := transport.Skip{Reason: reason, Records: last - first + 1, Payload: 10 * (last - first + 1)}
	s.Ranges.AddRange(batch.Range{First: first, Last: last})
	return s
}

// tell is what a set knows of a lane, as text.
func told(s *transport.SkipSet, lane batch.Lane) string {
	var all []string
	for _, k := range s.Lane(lane) {
		all = append(all, fmt.Sprintf("%s %v %d/%d", k.Reason, k.Ranges.String(), k.Records, k.Payload))
	}
	return strings.Join(all, ", ")
}

// TestSkipsGoBothWays: what a source dropped is told downstream, what a node further down
// dropped is told upstream, and neither is taken for delivered.
func TestSkipsGoBothWays(t *testing.T) {
	a := newAggregator(t, 9)
	a.hold = true
	x := start(t, newSetup(t, a))
	f := newFeeder(1)
	f.skips.Add(f.lane, skipOf("expired", 1, 4))
	f.n = 4
	f.connect(t, x.r.Addr().String())
	f.add("f", "five")
	f.expect(t, "hop acks", f.allAcked)
	a.expect("what the source dropped", func() bool { return told(&a.skipped, f.lane) == "expired 1-4 4/40" })
	a.server.Skip(f.lane, skipOf("drop_oldest", 5, 5))
	f.expect(t, "what the aggregator dropped", func() bool { return told(&f.skipped, f.lane) == "drop_oldest 5 1/10" })
	st := x.r.Stats()
	if up, down := st.DroppedUpstream["expired"], st.DroppedDownstream["drop_oldest"]; up.Batches != 4 || up.Records != 4 || up.Payload != 40 || down.Batches != 1 {
		t.Errorf("upstream %+v, downstream %+v are counted", st.DroppedUpstream, st.DroppedDownstream)
	}
	f.Lock()
	if n := f.final.Count(); n != 0 {
		t.Errorf("%d batches are final", n)
	}
	f.Unlock()
	// Another copy of what was skipped is welcome.
	f.Lock()
	f.n = 0
	f.Unlock()
	f.add("f", "one")
	a.expect("the other copy", a.has(2))
	a.Lock()
	if h := a.horizon[f.lane]; h > 1 {
		t.Errorf("the horizon moved to %d over what was skipped", h)
	}
	a.Unlock()
	x.end()
}

// TestASkipIsToldToAPeerThatWasAway, and is counted once however often it is told.
func TestASkipIsToldToAPeerThatWasAway(t *testing.T) {
	a := newAggregator(t, 9)
	a.hold = true
	x := start(t, newSetup(t, a))
	f := newFeeder(1)
	stop := f.connect(t, x.r.Addr().String())
	f.add("f", "one")
	f.expect(t, "hop acks", f.allAcked)
	a.expect("the batch", a.has(1))
	stop()
	for range 3 {
		a.server.Skip(f.lane, skipOf("expired", 1, 1))
	}
	waitFor(t, "the skip", func() bool { return x.r.Stats().DroppedDownstream["expired"].Batches == 1 })
	f.connect(t, x.r.Addr().String())
	f.expect(t, "the skip", func() bool { return told(&f.skipped, f.lane) == "expired 1 1/10" })
	if n := x.r.Stats().DroppedDownstream["expired"].Batches; n != 1 {
		t.Errorf("it is counted %d times", n)
	}
	x.end()
}

// TestItsOwnLossesAreToldBothWays: a full queue that drops the oldest, and a restart
// before anybody could be told.
func TestItsOwnLossesAreToldBothWays(t *testing.T) {
	a := newAggregator(t, 9)
	a.stop()
	s := newSetup(t, a)
	s.MaxBytes, s.OnFull = 1<<20, config.FullDropOldest
	x := start(t, s)
	f := newFeeder(1)
	stop := f.connect(t, x.r.Addr().String())
	line := strings.Repeat("x", 100<<10)
	for range 30 {
		f.add("f", line)
	}
	f.expect(t, "hop acks", f.allAcked)
	f.expect(t, "word of it", func() bool { return len(f.skipped.Lane(f.lane)) > 0 })
	stop()
	lost := x.r.q.Stats().Losses[queue.LostDropOldest]
	if lost.Batches < 15 {
		t.Fatalf("%+v are lost", lost)
	}
	x.end()

	x = start(t, s)
	f.Lock()
	f.skipped = transport.SkipSet{}
	f.Unlock()
	f.connect(t, x.r.Addr().String())
	heard := func(set *transport.SkipSet) func() bool {
		return func() bool {
			var sum queue.Tally
			for _, k := range set.Lane(f.lane) {
				if k.Reason == queue.LostDropOldest {
					sum.Batches += k.Batches()
					sum.Records += k.Records
				}
			}
			return sum.Batches == lost.Batches && sum.Records == lost.Records
		}
	}
	f.expect(t, "all that was lost", heard(&f.skipped))
	a.start()
	a.expect("all that was lost", heard(&a.skipped))
	a.expect("the rest", a.has(30-int(lost.Batches)))
	x.end()
}

// TestALostCopyIsNoSkip: what was forwarded and not copied in time is not missing at the
// end of the way.
func TestALostCopyIsNoSkip(t *testing.T) {
	a := newAggregator(t, 9)
	s := newSetup(t, a).withCopy()
	x := start(t, s)
	pauseCopies(t)
	f := newFeeder(1)
	f.connect(t, s.Listen)
	for i := range 20 {
		f.add("f", fmt.Sprint(i))
	}
	f.expect(t, "final acks", f.allFinal)
	must(t, failpoint.Set("sink/applied", "error")) // one is copied, and then it stops
	if err := <-x.done; err == nil {
		t.Error("the relay goes on without its copies")
	}
	failpoint.Clear("sink/applied")
	s.Outputs = nil // what was not copied is dropped with the cursor
	x = start(t, s)
	waitFor(t, "19 copies are lost", func() bool { return x.r.q.Stats().Losses[queue.LostNoCursor].Batches == 19 })
	f.add("f", "last")
	f.expect(t, "final acks", f.allFinal)
	if text := told(&f.skipped, f.lane) + told(&a.skipped, f.lane); text != "" {
		t.Errorf("told are %s", text)
	}
	x.end()
}

// TestADroppedBatchThatIsSentAgainIsToldAgain: a source that keeps it until it is final, and
// was started again, does not wait for ever.
func TestADroppedBatchThatIsSentAgainIsToldAgain(t *testing.T) {
	a := newAggregator(t, 9)
	a.stop()
	s := newSetup(t, a)
	s.MaxAge = 200 * time.Millisecond
	x := start(t, s)
	f := newFeeder(1)
	f.connect(t, x.r.Addr().String())
	b := f.seal("h", "f", "one\n")
	f.send(b)
	f.expect(t, "word of it", func() bool { return len(f.skipped.Lane(f.lane)) == 1 })
	f.Lock()
	f.skipped = transport.SkipSet{}
	f.Unlock()
	f.send(b)
	f.expect(t, "word of it again", func() bool { return len(f.skipped.Lane(f.lane)) == 1 })
	x.end()
}

// TestWhatIsTooOldIsToldUpstream: max_age.
func TestWhatIsTooOldIsToldUpstream(t *testing.T) {
	a := newAggregator(t, 9)
	a.stop()
	s := newSetup(t, a)
	s.MaxAge = 200 * time.Millisecond
	x := start(t, s)
	f := newFeeder(1)
	f.connect(t, x.r.Addr().String())
	for i := range 5 {
		f.add("f", fmt.Sprint(i))
	}
	f.expect(t, "word of it", func() bool {
		k := f.skipped.Lane(f.lane)
		return len(k) == 1 && k[0].Reason == queue.LostExpired && k[0].Batches() == 5
	})
	x.end()
}

// TestWhatIsRefusedIsNotKeptForEver: what every next node refuses stays until its age, as the
// operator said, or goes where a full queue is to drop the oldest. Else it would fill the queue
// in the end, and nothing would go on.
func TestWhatIsRefusedIsNotKeptForEver(t *testing.T) {
	for reason, set := range map[string]func(*setup){
		queue.LostExpired:    func(s *setup) { s.MaxAge = 2 * time.Second },
		queue.LostDropOldest: func(s *setup) { s.MaxBytes, s.OnFull = 1<<20, config.FullDropOldest },
	} {
		t.Run(reason, func(t *testing.T) {
			a := newAggregator(t, 9)
			a.refuse = transport.Denied
			s := newSetup(t, a)
			set(&s)
			x := start(t, s)
			f := newFeeder(1)
			f.connect(t, x.r.Addr().String())
			line := strings.Repeat("x", 100<<10)
			for range 10 {
				f.add("f", line)
			}
			waitFor(t, "all refusals", func() bool { return x.r.Stats().Forward.Groups[0].Lines[0].Refused == 10 })
			for range 10 {
				f.add("f", line)
			}
			f.expect(t, "hop acks, and word of what is dropped", func() bool {
				k := f.skipped.Lane(f.lane)
				return f.allAcked() && len(k) == 1 && k[0].Reason == reason && k[0].Batches() >= 10
			})
			x.end()
		})
	}
}

// TestWhatIsDroppedAwaitsNoFinalAck: the next node has it, and the copy that was kept is too old.
// It was counted as kept until it was to be sent again, hours later.
func TestWhatIsDroppedAwaitsNoFinalAck(t *testing.T) {
	a := newAggregator(t, 9)
	a.hold = true
	s := newSetup(t, a)
	s.KeepFinal, s.FinalTimeout, s.MaxAge = true, time.Hour, 2*time.Second
	x := start(t, s)
	f := newFeeder(1)
	f.connect(t, x.r.Addr().String())
	for range 3 {
		f.add("f", "line")
	}
	unfinal := func() uint64 { return x.r.Stats().Forward.Groups[0].Lines[0].Unfinal.Batches }
	waitFor(t, "what is kept", func() bool { return unfinal() == 3 })
	waitFor(t, "the end of that", func() bool {
		return unfinal() == 0 && x.r.Stats().Forward.Groups[0].Lines[0].Waiting.Batches == 0
	})
	x.end()
}
