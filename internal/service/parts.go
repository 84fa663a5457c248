package service

import (
	"context"
	"errors"
	"fmt"
	"sync"
)

// Parts are the goroutines of a role: each with a context of its own, so that they can
// be stopped one after the other. Start and Stop belong to one goroutine.
type Parts struct {
	failed chan struct{}
	once   sync.Once
	mu     sync.Mutex
	errs   []error
	all    map[string]part
}

type part struct {
	cancel context.CancelFunc
	done   chan struct{}
}

// NewParts returns no parts.
func NewParts() *Parts { return &Parts{failed: make(chan struct{}), all: map[string]part{}} }

// Start runs a part. An error that it returns, but for the end of its context, fails all.
func (p *Parts) Start(name string, run func(context.Context) error) {
	ctx, cancel := context.WithCancel(context.Background())
	t := part{cancel: cancel, done: make(chan struct{})}
	p.all[name] = t
	go func() {
		defer close(t.done)
		if err := run(ctx); err != nil && ctx.Err() == nil {
			p.Fail(fmt.Errorf("%s: %w", name, err))
		} else if err != nil && !errors.Is(err, context.Canceled) {
			p.Fail(fmt.Errorf("stop %s: %w", name, err))
		}
	}()
}

// Fail notes an error. The role is then to stop.
func (p *Parts) Fail(err error) {
	p.mu.Lock()
	p.errs = append(p.errs, err)
	p.mu.Unlock()
	p.once.Do(func() { close(p.failed) })
}

// Failed is closed at the first error.
func (p *Parts) Failed() <-chan struct{} { return p.failed }

// Until returns a context that ends with ctx, or when a part fails.
func (p *Parts) Until(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	go func() {
		select {
		case <-p.failed:
			cancel()
		case <-ctx.Done():
		}
	}()
	return ctx, cancel
}

// Stop ends the parts one after the other, and waits for each.
func (p *Parts) Stop(names ...string) {
	for _, name := range names {
		p.all[name].cancel()
		<-p.all[name].done
	}
}

// Err returns all errors so far.
func (p *Parts) Err() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return errors.Join(p.errs...)
}
