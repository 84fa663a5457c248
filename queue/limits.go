package queue

import "time"

// Limits are what SetLimits changes of Options; a zero field takes its default.
type Limits struct {
	CommitEvery time.Duration
	CommitBytes int64
	MaxBytes    int64
	OnFull      Policy
	MaxAge      time.Duration
}

// SetLimits changes the limits of a running queue, for what waits in Submit too. What is in
// the queue stays; with less MaxBytes than there is, OnFull decides about what comes. It
// returns ErrOptions, and changes nothing, for limits that cannot be.
func (q *Queue) SetLimits(l Limits) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	o := q.o
	o.CommitEvery, o.CommitBytes, o.MaxBytes, o.OnFull, o.MaxAge = l.CommitEvery, l.CommitBytes, l.MaxBytes, l.OnFull, l.MaxAge
	o, err := o.withDefaults()
	if err != nil {
		return err
	}
	q.o.CommitEvery, q.o.CommitBytes, q.o.MaxBytes, q.o.OnFull, q.o.MaxAge = o.CommitEvery, o.CommitBytes, o.MaxBytes, o.OnFull, o.MaxAge
	q.moreRoom()
	q.wakeCommitter()
	return nil
}
