package queue

import (
	"testing"
	"time"
)

// TestASmallGroupDoesNotWaitForOthers: a few lines are committed as soon as the disk was
// idle as long as it was busy, a larger group after CommitEvery, and neither later.
func TestASmallGroupDoesNotWaitForOthers(t *testing.T) {
	const every = 5 * time.Millisecond
	start := time.Now()
	for _, c := range []struct {
		bytes      int64
		took, want time.Duration
	}{
		{1, 0, 0},
		{smallGroup - 1, time.Millisecond, 2 * time.Millisecond},
		{smallGroup - 1, time.Second, every},
		{smallGroup, time.Millisecond, every},
		{smallGroup, 0, every},
	} {
		q := mustOpen(t, t.TempDir(), Options{CommitEvery: every})
		commit := committer{q: q, lastStart: start, lastTook: c.took}
		q.mu.Lock()
		saved := q.pending
		q.pending = group{txns: []*Txn{{}}, bytes: c.bytes}
		got, ok := commit.plan(start)
		q.pending = saved
		q.mu.Unlock()
		if !ok || got != c.want {
			t.Errorf("%d bytes after a commit of %v wait %v (%v), want %v", c.bytes, c.took, got, ok, c.want)
		}
	}
}
