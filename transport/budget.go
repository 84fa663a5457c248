package transport

import (
	"context"
	"sync"
)

// budget bounds the bytes in the hands of the Handler.
type budget struct {
	mu      sync.Mutex
	free    int64
	waiters int
	changed chan struct{} // closed and made anew when bytes come back and someone waits
}

// take takes n bytes, waiting for them unless force is set.
func (b *budget) take(ctx context.Context, n int64, force func() bool) error {
	for {
		b.mu.Lock()
		if b.free >= n || force() {
			b.free -= n
			b.mu.Unlock()
			return nil
		}
		changed := b.changed
		b.waiters++
		b.mu.Unlock()
		var err error
		select {
		case <-changed:
		case <-ctx.Done():
			err = context.Cause(ctx)
		}
		b.mu.Lock()
		b.waiters--
		b.mu.Unlock()
		if err != nil {
			return err
		}
	}
}

// give returns n bytes.
func (b *budget) give(n int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.free += n
	if b.waiters > 0 {
		close(b.changed)
		b.changed = make(chan struct{})
	}
}

func (b *budget) used(of int64) int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return of - b.free
}
