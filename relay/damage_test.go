package relay

import (
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"testing"
	"time"

	"ftfuse/internal/batch"
	"ftfuse/internal/roletest"
	"ftfuse/queue"
)

// damaged starts a relay again after one of the batches in its queue, which nobody was there
// to take, was damaged on its disk.
func damaged(t *testing.T, x *running, s setup, b batch.Sealed) *running {
	t.Helper()
	x.end()
	roletest.Spoil(t, filepath.Join(s.State, "relay", "queue"), b.Data)
	return start(t, s)
}

// fill sends five batches of one line each that nothing else in a queue looks like.
func fill(f *feeder) (lines []string) {
	for i := range 5 {
		lines = append(lines, fmt.Sprintf("%d %x", i, rand.Uint64()))
		f.add("f", lines[i])
	}
	return lines
}

// resendCorrupt sends again what the feeder hears is damaged further down, as a source does that
// keeps it until it is final.
func resendCorrupt(t *testing.T, f *feeder, want uint64) {
	t.Helper()
	f.expect(t, "word of the damage", func() bool {
		k := f.skipped.Lane(f.lane)
		return len(k) == 1 && k[0].Reason == queue.LostCorrupt && k[0].Batches() == 1 && k[0].Ranges.Contains(want)
	})
	f.Lock()
	b := f.queue[want-1]
	f.Unlock()
	b.Flags |= batch.FlagResent
	f.send(b)
}

// twoStages has five batches pass a first relay and be damaged, one of them, at a second one,
// before that could pass them on to the aggregator, which is there now. keep: the first relay
// keeps them until they are final.
func twoStages(t *testing.T, keep bool) (f *feeder, x1, x2 *running, a *aggregator) {
	t.Helper()
	a = newAggregator(t, 9)
	a.stop()
	s2 := newSetup(t, a)
	x2 = start(t, s2)
	s1 := newSetup(t, &aggregator{addr: s2.Listen})
	if keep {
		s1.KeepFinal, s1.FinalTimeout = true, time.Hour
	}
	x1 = start(t, s1)
	f = newFeeder(1)
	f.connect(t, s1.Listen)
	fill(f)
	waitFor(t, "the second relay to have it all", func() bool { return x1.r.Stats().Forward.Groups[0].Lines[0].Acked.Batches == 5 })
	x2 = damaged(t, x2, s2, f.queue[2])
	a.start()
	return f, x1, x2, a
}

// TestWhatARelaysDiskDamagedComesFromWhoKeepsIt: the node before keeps batches until they are
// final, and sends what was damaged again at once. Nobody further up hears of it.
func TestWhatARelaysDiskDamagedComesFromWhoKeepsIt(t *testing.T) {
	f, x1, x2, a := twoStages(t, true)
	f.expect(t, "final acks", func() bool { return f.final.Count() == 5 })
	a.check(f)
	if got := told(&f.skipped, f.lane); got != "" {
		t.Errorf("the source was told %s", got)
	}
	if st := x2.r.q.Stats(); st.Healed.Batches != 1 || st.Losses[queue.LostCorrupt].Batches != 1 {
		t.Errorf("lost are %v, came again %v", st.Losses, st.Healed)
	}
	x1.end()
	x2.end()
}

// TestWhatARelaysDiskDamagedComesThroughARelayThatLetItGo: only the source keeps batches until
// they are final. The relay in between does not call its copy a duplicate.
func TestWhatARelaysDiskDamagedComesThroughARelayThatLetItGo(t *testing.T) {
	f, x1, x2, a := twoStages(t, false)
	resendCorrupt(t, f, 3)
	f.expect(t, "final acks", func() bool { return f.final.Count() == 5 })
	a.expect("all batches", a.has(5))
	a.Lock()
	if got := lineOf(t, a.taken[4]); len(a.taken) != 5 || a.taken[4].ID.N != 3 || got != lineOf(t, f.queue[2]) {
		t.Errorf("%d batches, the last is %v with %q", len(a.taken), a.taken[4].ID, got)
	}
	a.Unlock()
	x1.end()
	x2.end()
}

// TestWhatWasDamagedAndComesAgainIsCopiedOnce: a copy is long written when the disk damages what
// still waits for the next node.
func TestWhatWasDamagedAndComesAgainIsCopiedOnce(t *testing.T) {
	a := newAggregator(t, 9)
	a.stop()
	s := newSetup(t, a).withCopy()
	x := start(t, s)
	f := newFeeder(1)
	f.connect(t, s.Listen)
	text := ""
	for _, l := range fill(f) {
		text += l + "\n"
	}
	f.expect(t, "hop acks", f.allAcked)
	waitFor(t, "the copy", func() bool { return x.r.Stats().Sink.Synced.Batches == 5 })
	x = damaged(t, x, s, f.queue[2])
	a.start()
	resendCorrupt(t, f, 3)
	f.expect(t, "final acks", func() bool { return f.final.Count() == 5 })
	x.end()
	wantFile(t, s.out("h", "f"), text)
}

// TestWhatAFullQueueDropsLeavesNoTraceOfItsWay, which would make its next copy a duplicate of
// nothing.
func TestWhatAFullQueueDropsLeavesNoTraceOfItsWay(t *testing.T) {
	a := newAggregator(t, 9)
	a.stop()
	s := newSetup(t, a)
	s.MaxBytes, s.OnFull = 1<<10, "drop_newest"
	x := start(t, s)
	f := newFeeder(1)
	f.connect(t, s.Listen)
	for i := range 4 {
		f.add("f", fmt.Sprintf("%0900d", i))
	}
	f.expect(t, "hop acks", f.allAcked)
	via := []batch.Node(nil)
	if !x.r.forward.Covers(f.queue[0].ID, via) {
		t.Error("the way of the first one is not known")
	}
	for _, b := range f.queue[1:] {
		if x.r.forward.Covers(b.ID, via) {
			t.Errorf("batch %v was dropped, and its way is known", b.ID)
		}
	}
	x.end()
}
