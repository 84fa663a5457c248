package forward

import (
	"context"
	"strings"
	"testing"
	"time"

	"ftfuse/internal/batch"
	"ftfuse/transport"
)

// startSwitch is start for a Switch; the queue has more cursors, too.
func (r *rig) startSwitch(more ...string) *Switch {
	r.t.Helper()
	r.q = openSimQueue(r.disk, append(Cursors(r.o.Groups), more...), func() time.Duration { return time.Millisecond }, mutantNone)
	f, err := newForwarder(r.o, r.q)
	if err != nil {
		r.t.Fatal(err)
	}
	s := &Switch{f: f, o: r.o, begun: make(chan struct{})}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	r.stop = func() error {
		cancel()
		return <-done
	}
	return s
}

// TestAChangeThatMayNotWaitForWhatGoesWasRefused, every other time: as if what runs did not run. With
// shutdown_timeout = "0s" a reload ended the role so.
func TestAChangeThatMayNotWaitForWhatGoesWasRefused(t *testing.T) {
	inBubble(t, func(r *rig) {
		r.up("a", 2, never)
		s := r.startSwitch()
		r.submit(rigLane(1), 1, 3)
		for range 20 {
			r.pass(time.Second)
			if err := s.Change(context.Background(), 0, r.o, func() error { return nil }); err != nil {
				t.Fatal(err)
			}
		}
	}, single())
}

// TestADrainGoesOnWithTheGroupsOfAChange: one that had begun with groups that went ended with them,
// and said that all is sent, while those in their place had just begun.
func TestADrainGoesOnWithTheGroupsOfAChange(t *testing.T) {
	inBubble(t, func(r *rig) {
		answers := make(chan struct{})
		r.up("a", 2, never)
		r.up("b", 3, func(batch.Sealed) (transport.Verdict, bool) { <-answers; return transport.Verdict{}, true })
		next := r.o
		next.Groups = []GroupConfig{{Name: "h", Mode: Any, Primary: []string{"b" + simPort}}}
		s := r.startSwitch(Cursors(next.Groups)...)
		r.submit(rigLane(1), 1, 3)
		r.pass(time.Second)
		drained := make(chan error, 1)
		go func() { drained <- s.Drain(context.Background()) }()
		r.pass(time.Second)
		err := s.Change(context.Background(), time.Second, next, func() error {
			r.q.mu.Lock()
			r.q.cursors = r.q.cursors[1:]
			r.q.mu.Unlock()
			r.pass(time.Second)
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		r.pass(time.Second)
		select {
		case err := <-drained:
			t.Errorf("the drain ended while b had not answered: %v", err)
			drained <- err
		default:
		}
		close(answers)
		r.pass(time.Second)
		if err := <-drained; err != nil || r.waiting() != 0 {
			t.Errorf("%d batches are left: %v", r.waiting(), err)
		}
	}, single())
}

// TestADrainEndsWithItsContextAndWithTheRun, also where the groups are being changed.
func TestADrainEndsWithItsContextAndWithTheRun(t *testing.T) {
	inBubble(t, func(r *rig) {
		r.up("a", 2, never)
		s := r.startSwitch()
		r.submit(rigLane(1), 1, 3)
		r.pass(time.Second)
		goOn, changed := make(chan struct{}), make(chan error, 1)
		go func() {
			changed <- s.Change(context.Background(), 0, r.o, func() error { <-goOn; return nil })
		}()
		r.pass(2 * pauseLimit)
		short, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		if err := s.Drain(short); err == nil {
			t.Error("a drain in the middle of a change says that all is sent")
		}
		close(goOn)
		if err := <-changed; err != nil {
			t.Error(err)
		}
		r.pass(time.Second)
		drained := make(chan error, 1)
		go func() { drained <- s.Drain(context.Background()) }()
		r.pass(time.Second)
		r.crash()
		if err := <-drained; err == nil {
			t.Error("a drain of what runs no more says that all is sent")
		}
	}, single())
}

// TestADrainIsNotEndedByWhatWasDropped: copies that were kept for the final ack, and that
// max_age or a full queue took, do not stand for batches that nobody has.
func TestADrainIsNotEndedByWhatWasDropped(t *testing.T) {
	inBubble(t, func(r *rig) {
		r.o.KeepFinal, r.o.FinalTimeout = true, time.Hour
		a := r.up("a", 2, func(b batch.Sealed) (transport.Verdict, bool) { return transport.Verdict{}, b.ID.N <= 3 })
		r.start()
		r.submit(rigLane(1), 1, 3)
		r.pass(time.Second)
		r.q.mu.Lock()
		for seq := uint64(1); seq <= 3; seq++ {
			delete(r.disk.entries, seq)
		}
		r.q.mu.Unlock()
		r.submit(rigLane(1), 4, 5)
		r.pass(time.Second)
		r.want("sent", a.numbers(), "1 2 3 4 5")
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		if err := r.f.Drain(ctx); err == nil || !strings.Contains(err.Error(), "2 batches") {
			t.Errorf("two batches are not answered: %v", err)
		}
	}, single())
}

// TestADrainAskedForEachRefusedBatchAHundredTimesASecond, with the lock of the line held: with a
// hundred thousand of them nothing else was done. They count when nothing else is left.
func TestADrainAskedForEachRefusedBatchAHundredTimesASecond(t *testing.T) {
	inBubble(t, func(r *rig) {
		r.up("a", 2, func(b batch.Sealed) (v transport.Verdict, _ bool) {
			if b.ID.Lane == rigLane(1) {
				v.Code = transport.Conflict
			}
			return v, v.Code != 0
		})
		r.start()
		r.submit(rigLane(1), 1, 3)
		r.submit(rigLane(2), 1, 2)
		r.pass(time.Second)
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		before := r.q.cursors[0].asked
		if err := r.f.Drain(ctx); err == nil || !strings.Contains(err.Error(), "5 batches") {
			t.Errorf("five batches are not with a next node: %v", err)
		}
		if n := r.q.cursors[0].asked - before; n > 0 {
			t.Errorf("three refused batches were asked for %d times", n)
		}
		r.down("a")
		r.up("a", 2, conflictsOn(rigLane(1)))
		r.pass(10 * time.Second)
		if err := r.f.Drain(context.Background()); err == nil || !strings.Contains(err.Error(), "3 batches") || !strings.Contains(err.Error(), "refused") {
			t.Errorf("three batches are refused: %v", err)
		}
	}, single())
}
