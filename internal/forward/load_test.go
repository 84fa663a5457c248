package forward

import (
	"context"
	"fmt"
	"testing"
	"time"

	"ftfuse/internal/batch"
	"ftfuse/queue"
	"ftfuse/transport"
)

// TestFinalAcksCountUnderLoad: a queue that is never empty for a moment, as that of a busy
// relay, does not keep them back.
func TestFinalAcksCountUnderLoad(t *testing.T) {
	inBubble(t, func(r *rig) {
		var a *peerServer
		a = r.up("a", 2, func(b batch.Sealed) (transport.Verdict, bool) {
			time.AfterFunc(time.Millisecond, func() { a.server.Final(b.ID) })
			return transport.Verdict{}, true
		})
		r.start()
		for n := uint64(1); n <= 200; n++ {
			r.submit(rigLane(1), n, n)
			time.Sleep(20 * time.Millisecond)
		}
		finals := r.f.Finals(rigLane(1))
		if n := finals.Next(); n < 190 {
			t.Errorf("final is all below %d of 200 batches that were sent and final", n)
		}
	}, single())
}

// relabelAll seals any batch again, as record.Relabel does: without flags.
func relabelAll(b batch.Sealed, id batch.ID) (batch.Sealed, error) {
	b.ID, b.Flags = id, 0
	b.Data = append([]byte("again "), b.Data...)
	b.CRC = batch.Checksum(b.Data)
	return b, nil
}

// TestARelabelledBatchKeepsTheFlag: one that may be with another receiver under its old id.
func TestARelabelledBatchKeepsTheFlag(t *testing.T) {
	inBubble(t, func(r *rig) {
		r.o.Relabel = relabelAll
		r.up("a", 2, never)
		b := r.up("b", 3, conflictsOn(rigLane(1)))
		r.start()
		r.submit(rigLane(1), 1, 1)
		r.pass(3 * time.Second)
		r.down("a")
		r.pass(10 * time.Second)
		r.want("b", b.numbers(), "1! 1!")
	}, pair(Any))
}

// TestCopiesOfOneBatchAreRelabelledAlike: a relay that has two of them, which came
// different ways, does not make two batches of them.
func TestCopiesOfOneBatchAreRelabelledAlike(t *testing.T) {
	inBubble(t, func(r *rig) {
		r.o.Relabel = relabelAll
		foreign := batch.Lane{Origin: batch.Origin{8}, Epoch: batch.Epoch{Counter: 3, Random: 5}}
		got := map[batch.ID]int{}
		r.up("a", 2, func(b batch.Sealed) (v transport.Verdict, _ bool) {
			if b.ID.Lane == foreign {
				v.Code = transport.Conflict
			} else {
				got[b.ID]++
			}
			return v, true
		})
		r.start()
		data := []byte("one content")
		for range 2 {
			b := batch.Sealed{ID: batch.ID{Lane: foreign, N: 1}, CRC: batch.Checksum(data), Host: "there", Records: 1, Data: data}
			if _, err := r.q.Submit(context.Background(), &queue.Txn{Again: true, Entries: []queue.Entry{{Batch: b}}}); err != nil {
				t.Fatal(err)
			}
		}
		r.pass(30 * time.Second)
		if len(got) != 1 || r.waiting() != 0 {
			t.Errorf("came: %v; %d wait", got, r.waiting())
		}
	}, single())
}

// TestALateAckOfWhatIsBeingRelabelledEndsIt: the new id is not waited for for ever.
func TestALateAckOfWhatIsBeingRelabelledEndsIt(t *testing.T) {
	inBubble(t, func(r *rig) {
		r.o.Relabel = relabelAll
		r.start()
		r.pass(3 * time.Second)
		r.submit(rigLane(1), 1, 1)
		r.pass(time.Second)
		l := r.f.lines[0]
		r.o.Relabel = nil
		r.f.o.Relabel = func(b batch.Sealed, id batch.ID) (batch.Sealed, error) {
			l.acked(l.dests[0], 1) // of a destination that was left
			return relabelAll(b, id)
		}
		r.f.conflict(1, one(1))
		r.pass(5 * time.Second)
		l.final(rigLane(1), []batch.Range{{First: 1, Last: 1}}, false)
		finals := r.f.Finals(rigLane(1))
		if r.waiting() != 0 || finals.String() != "1" {
			t.Errorf("%d wait, final %q", r.waiting(), fmt.Sprint(finals.String()))
		}
	}, single())
}

// TestAFullDiskDoesNotStopTheSending, which is what makes room: the number up to which may have been sent
// cannot be stored; what is sent all the same carries the flag.
func TestAFullDiskDoesNotStopTheSending(t *testing.T) {
	inBubble(t, func(r *rig) {
		r.start()
		r.submit(rigLane(1), 1, markStep+100)
		r.pass(3 * time.Second)
		r.q.mu.Lock()
		r.q.full = true
		r.q.mu.Unlock()
		a := r.up("a", 2, nil)
		r.pass(time.Minute)
		a.mu.Lock()
		n, flagged := len(a.got), 0
		for i := range a.got {
			if a.got[i].Flags&batch.FlagResent != 0 {
				flagged++
			}
		}
		a.mu.Unlock()
		if n != markStep+100 || flagged != n {
			t.Errorf("%d of %d batches came, %d with the flag", n, markStep+100, flagged)
		}
	}, single())
}
