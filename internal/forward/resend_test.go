package forward

import (
	"slices"
	"testing"
	"time"

	"ftfuse/internal/batch"
	"ftfuse/queue"
	"ftfuse/transport"
)

// keptLine returns a line that keeps n batches of several lanes for the final ack, which its
// destination has.
func keptLine(t testing.TB, n uint64) (*line, *destination) {
	t.Helper()
	q := openSimQueue(newSimDisk(batch.Node{1}), []string{"forward/g"}, func() time.Duration { return time.Hour }, mutantNone)
	f, err := newForwarder(Options{
		Groups: []GroupConfig{single()}, Identity: transport.Identity{Node: batch.Node{1}}, KeepFinal: true,
	}, q)
	if err != nil {
		t.Fatal(err)
	}
	l := f.lines[0]
	if err := l.begin(); err != nil {
		t.Fatal(err)
	}
	d := l.dests[0]
	for seq := uint64(1); seq <= n; seq++ {
		lane := rigLane(1)
		lane.Bucket = uint8(seq % 4)
		l.add(queue.Head{Seq: seq, ID: batch.ID{Lane: lane, N: seq / 4}})
		d.next().stage = given
		l.acked(d, seq)
	}
	return l, d
}

// TestWhatAnotherNodesPredecessorHadIsSentInOrder, before what is newer, whatever became
// final meanwhile.
func TestWhatAnotherNodesPredecessorHadIsSentInOrder(t *testing.T) {
	const n = 3*resendStep + 100
	l, d := keptLine(t, n)
	lane := rigLane(1)
	l.mu.Lock()
	l.known = true
	d.node = batch.Node{9}
	l.resendFrom(d)
	l.entries[9].node = d.node // sent again for its time, and acked by the new one
	l.mu.Unlock()
	for seq := uint64(n + 1); seq <= n+8; seq++ {
		lane.Bucket = uint8(seq % 4)
		l.add(queue.Head{Seq: seq, ID: batch.ID{Lane: lane, N: seq / 4}})
	}
	lane.Bucket = 1
	l.final(lane, []batch.Range{{First: 1, Last: 1}}, false) // seq 5
	for l.mu.Lock(); len(l.lost) > 0; l.mu.Lock() {
		l.resendLost()
		l.mu.Unlock()
	}
	defer l.mu.Unlock()
	var got []uint64
	for e := d.next(); e != nil; e = d.next() {
		if e.resent != (e.seq <= n) {
			t.Fatalf("batch %d is flagged: %v", e.seq, e.resent)
		}
		got = append(got, e.seq)
	}
	if len(got) != n+8-2 || slices.Contains(got, 9) || !slices.IsSorted(got) || slices.Contains(got, 5) {
		t.Errorf("%d batches, sorted %v, with the final one %v, with that of the new node %v",
			len(got), slices.IsSorted(got), slices.Contains(got, 5), slices.Contains(got, 9))
	}
	if l.ahead != n+8-2 || l.count.unfinal.Batches != 1 {
		t.Errorf("%d wait, %d are kept", l.ahead, l.count.unfinal.Batches)
	}
}

// TestWhatIsRefusedWhenItIsSentAgainHoldsUpNoOther: the last node lost some, and does not take
// one host's any more. The others' are sent again all the same, although only few are at a time.
func TestWhatIsRefusedWhenItIsSentAgainHoldsUpNoOther(t *testing.T) {
	inBubble(t, func(r *rig) {
		r.o.KeepFinal, r.o.FinalTimeout = true, 10*time.Second
		r.up("a", 2, nil) // takes all, and says of nothing that it is final
		r.start()
		r.submit(rigLane(1), 1, maxResends+10)
		r.submit(rigLane(2), 1, 3)
		r.pass(time.Second)
		r.down("a")
		var got batch.Ranges
		r.up("a", 2, func(b batch.Sealed) (v transport.Verdict, _ bool) {
			if b.ID.Lane == rigLane(1) {
				v.Code = transport.Denied
			} else {
				got.Add(b.ID.N)
			}
			return v, true
		})
		r.pass(time.Minute)
		r.want("sent again of the other", got.String(), "1-3")
	}, single())
}

// BenchmarkResendFrom: another node answers where the most that is kept had gone. It
// reports for how long the line's lock was held at a time.
func BenchmarkResendFrom(b *testing.B) {
	longest := time.Duration(0)
	held := func(fn func()) {
		start := time.Now()
		fn()
		longest = max(longest, time.Since(start))
	}
	for b.Loop() {
		b.StopTimer()
		l, d := keptLine(b, maxUnfinal)
		d.node = batch.Node{9}
		b.StartTimer()
		held(func() { l.resendFrom(d) })
		for len(l.lost) > 0 {
			held(l.resendLost)
		}
	}
	b.ReportMetric(float64(longest.Microseconds())/1000, "ms-locked")
}
