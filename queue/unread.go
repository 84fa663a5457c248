package queue

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"syscall"
	"time"
)

// ErrUnread is wrapped by Next and NextHead beside the error of their context where that ended
// before they had looked at, or could read, all that is queued, and by Fetch where it waited to
// read an entry again: it is not known what comes next.
var ErrUnread = errors.New("what is queued was not read")

// passes says whether err, of reading, is for want of something that other parts of the
// process or the host will give back: it is tried again.
func passes(err error) bool {
	for _, e := range []error{syscall.EMFILE, syscall.ENFILE, syscall.ENOMEM, syscall.EAGAIN, syscall.EINTR} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// awaitRead waits until it is worth to read seg again. It returns an error where ctx ends.
func (q *Queue) awaitRead(ctx context.Context, err error) error {
	timer := time.NewTimer(retryEvery)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-q.failed:
	case <-q.stop:
	case <-ctx.Done():
		return fmt.Errorf("%w: %w: %w", ctx.Err(), ErrUnread, err)
	}
	return nil
}

// noteRead notes what came of reading seg; it is said once that that fails for now, and that
// it does not any more. The caller holds mu.
func (q *Queue) noteRead(seg *segment, err error) {
	switch {
	case err != nil && passes(err):
		if seg.unread == nil {
			q.log.Error("the queue cannot be read for now; it is tried again, what is in it stays", slog.String("segment", seg.path), slog.Any("error", err))
		}
		seg.unread = err
	case seg.unread != nil && !errors.Is(err, errReopen):
		seg.unread = nil
		q.log.Info("the queue can be read again", slog.String("segment", seg.path))
	}
}

// unread says why something cannot be read for now; "": nothing is known of that. The caller
// holds mu.
func (q *Queue) unread() string {
	for _, s := range q.segs {
		if s.unread != nil {
			return s.unread.Error()
		}
	}
	return ""
}
