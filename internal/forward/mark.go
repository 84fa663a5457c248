package forward

import (
	"context"
	"encoding/binary"
	"fmt"
	"sync"
	"time"

	"ftfuse/queue"
)

// prefixSent begins the keys under which a line stores up to which seq it may have sent:
// sent/, the cursor's name without forward/; the value is a u64, little-endian. It is there
// from the first start of the line on. Without a name it is that of lines which are gone.
const prefixSent = "sent/"

// Distances of the stored number.
const (
	markStep  = 512 // it is stored so far ahead
	markEarly = 128 // and again when so little is left
)

// markWait is how long a batch waits for that: a disk that is full stores nothing before
// something was sent.
const markWait = time.Second

// mark is the number up to which batches may have been sent, stored before they are. A
// start flags what is at or below it and still there: it may be with somebody.
type mark struct {
	s   store
	key string

	mu     sync.Mutex
	asked  uint64
	stored uint64
	err    error
	late   bool          // what was asked is not stored in time: it is not waited for
	wake   chan struct{} // closed and made anew when stored or err changes
}

// newMark continues at the number that was stored.
func newMark(s store, cursor string, sent uint64) *mark {
	return &mark{s: s, key: sentKey(cursor), asked: sent, stored: sent, wake: make(chan struct{})}
}

// cover returns when seq may be sent; with false where that cannot be stored now, so that
// the batch has to carry the flag at once.
func (m *mark) cover(ctx context.Context, seq uint64) (stored bool, err error) {
	if err := m.ahead(ctx, seq); err != nil {
		return false, err
	}
	var tooLate <-chan time.Time
	for {
		m.mu.Lock()
		ok, late, err, wake := seq <= m.stored, m.late, m.err, m.wake
		m.mu.Unlock()
		if ok || late || err != nil {
			return ok, err
		}
		if tooLate == nil {
			tooLate = time.After(markWait)
		}
		select {
		case <-wake:
		case <-tooLate:
			m.mu.Lock()
			m.late = seq > m.stored
			m.mu.Unlock()
		case <-ctx.Done():
			return false, ctx.Err()
		}
	}
}

// ahead stores a higher number in time.
func (m *mark) ahead(ctx context.Context, seq uint64) error {
	m.mu.Lock()
	need := seq+markEarly > m.asked && !m.late
	if need {
		m.asked = seq + markStep
	}
	to := m.asked
	m.mu.Unlock()
	if !need {
		return nil
	}
	_, err := m.s.Submit(ctx, &queue.Txn{
		Aside: true, // a full queue would wait for what may not be sent
		Set:   []queue.KV{{Key: m.key, Value: binary.LittleEndian.AppendUint64(nil, to)}},
		Done: func(err error) {
			m.mu.Lock()
			defer m.mu.Unlock()
			if err != nil {
				m.err = fmt.Errorf("store what may be sent: %w", err)
			} else {
				m.stored, m.late = max(m.stored, to), false
			}
			close(m.wake)
			m.wake = make(chan struct{})
		},
	})
	if err != nil {
		return fmt.Errorf("store what may be sent: %w", err)
	}
	return nil
}
