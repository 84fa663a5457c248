package forward

import (
	"context"
	"runtime"
	"testing"
	"time"

	"ftfuse/queue"
)

// slowStore takes what is submitted, and answers when it is told to.
type slowStore struct {
	store
	done chan func(error)
}

func (s slowStore) Submit(_ context.Context, t *queue.Txn) (queue.Status, error) {
	s.done <- t.Done
	return queue.Fresh, nil
}

// TestWhatIsStoredLateEndsTheFlag: the disk takes at last what was asked for, while a batch
// behind that looks whether it may be sent. Nobody asked for more then, and nothing came that
// ended the flag: each batch went as sent before until the next start.
func TestWhatIsStoredLateEndsTheFlag(t *testing.T) {
	for range 20 {
		s := slowStore{done: make(chan func(error), 8)}
		m := newMark(s, "c", 0)
		given, cancel := context.WithCancel(t.Context())
		cancel()
		_, _ = m.cover(given, 1)
		m.late = true
		answer, over := <-s.done, make(chan struct{}, 2)
		seq := uint64(markStep + 2) // behind all that was asked for

		// Both wait for the lock for so long that it goes from one to the other and back.
		m.mu.Lock()
		go func() { _, _ = m.cover(t.Context(), seq); over <- struct{}{} }()
		spin()
		go func() { answer(nil); over <- struct{}{} }()
		spin()
		m.mu.Unlock()
		m.mu.Lock()
		spin()
		m.mu.Unlock()

		go func() {
			for answer := range s.done {
				answer(nil)
			}
		}()
		<-over
		<-over
		if ok, err := m.cover(t.Context(), seq+markEarly); !ok || err != nil {
			t.Errorf("batches are flagged for good: %v, %v", ok, err)
			return
		}
		close(s.done)
	}
}

// spin is longer than a lock may be withheld from who waits for it.
func spin() {
	for at := time.Now(); time.Since(at) < 2*time.Millisecond; {
		runtime.Gosched()
	}
}
