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
	var tooLate <-chan time.Time
	for {
		to, ok, late, wake, err := m.look(seq)
		if to > 0 && err == nil {
			err = m.store(ctx, to)
		}
		if ok || late || err != nil {
			return ok && err == nil, err
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

// look says how it is with seq, and to where the caller is to store (0: it need not). All of
// it is of one moment: whoever goes on to wait has asked for seq, or somebody has, and is not
// answered. So late ends with an answer that is still to come.
func (m *mark) look(seq uint64) (to uint64, ok, late bool, wake chan struct{}, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if seq+markEarly > m.asked && !m.late {
		m.asked = seq + markStep
		to = m.asked
	}
	return to, seq <= m.stored, m.late, m.wake, m.err
}

// store stores a higher number.
func (m *mark) store(ctx context.Context, to uint64) error {
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
