// Package reload has a running role take over its configuration when the file is read
// again: whole, or not at all. What a running role cannot change is named.
//
//	SIGHUP ─▶ Handle.Reload: read, check ── bad ──▶ refused: said, and nothing changes
//	                │ config.Adopt: what changes, what needs a restart
//	                ▼
//	          Role.Reload: the parts take it over, under load
package reload

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"ftfuse/config"
	"ftfuse/internal/status"
)

// Role is what a running role does when it is told to. Its methods are called one at a
// time, while the role serves, and end early when ctx does.
type Role interface {
	// Reload goes over from the configuration now to next. With an error all goes on with
	// now. It returns what of next waits for a restart all the same, a sentence each that
	// begins with the key and a colon; next is its own, and it puts the value in force there.
	Reload(ctx context.Context, now, next *config.Config) (restart []string, err error)
	// Reopen opens all output files by their names again.
	Reopen() error
}

// Handle stands between the signals of a process and its role. A nil *Handle is that of a
// role that nobody reloads. Its methods are safe for concurrent use.
type Handle struct {
	kind config.Role
	log  *slog.Logger

	one sync.Mutex // held while the role is told something

	mu     sync.Mutex
	now    *config.Config // in force
	role   Role
	serves chan struct{} // closed when role is set
	last   *status.Reload
}

// New returns the handle of a role that starts with cfg.
func New(kind config.Role, cfg *config.Config, log *slog.Logger) *Handle {
	return &Handle{kind: kind, now: cfg, log: log, serves: make(chan struct{})}
}

// Serve says who is to be told from now on. A role calls it once, when it serves.
func (h *Handle) Serve(r Role) {
	if h == nil {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.role = r
	close(h.serves)
}

// State is what became of the newest reload; nil: there was none.
func (h *Handle) State() *status.Reload {
	if h == nil {
		return nil
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.last
}

// Reload reads the configuration with load, which has checked what it returns, and has the
// role take it over; it waits until the role serves. It returns what was taken over, or why
// the role goes on as it was; either is logged, and is State.
func (h *Handle) Reload(ctx context.Context, load func() (*config.Config, error)) (config.Adopted, error) {
	role, err := h.await(ctx)
	if err != nil {
		return config.Adopted{}, err
	}
	h.one.Lock()
	defer h.one.Unlock()
	begun := time.Now()
	adopted, err := h.adopt(ctx, role, load)
	s := &status.Reload{Time: begun, Took: time.Since(begun).Seconds(), Changed: adopted.Changed, NeedsRestart: adopted.Restart}
	if err != nil {
		s.Refused = reasons(err)
		h.log.Error("reload refused, the old configuration stays", "error", err)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.last = s; err == nil {
		h.now = adopted.Config
	}
	return adopted, err
}

func (h *Handle) adopt(ctx context.Context, role Role, load func() (*config.Config, error)) (config.Adopted, error) {
	next, err := load()
	if err != nil {
		return config.Adopted{}, err
	}
	h.mu.Lock()
	now := h.now
	h.mu.Unlock()
	a := now.Adopt(next, h.kind)
	restart, err := role.Reload(ctx, now, a.Config)
	if err != nil {
		return config.Adopted{}, err
	}
	a.Restart = append(a.Restart, restart...)
	a.Changed = slices.DeleteFunc(a.Changed, func(key string) bool {
		return slices.ContainsFunc(restart, func(r string) bool { return strings.HasPrefix(r, key+":") })
	})
	return a, nil
}

// reasons are the sentences of an error: those of a configuration each have a line.
func reasons(err error) []string {
	var broken *config.Error
	if !errors.As(err, &broken) {
		return []string{err.Error()}
	}
	all := make([]string, len(broken.Problems))
	for i, p := range broken.Problems {
		all[i] = p.Error()
	}
	return all
}

// Reopen has the role open its output files again.
func (h *Handle) Reopen(ctx context.Context) {
	role, err := h.await(ctx)
	if err != nil {
		return
	}
	h.one.Lock()
	defer h.one.Unlock()
	if err := role.Reopen(); err != nil {
		h.log.Error("output files cannot be opened again; they are tried again with the next data", "error", err)
		return
	}
	h.log.Info("output files are opened again")
}

// await waits until the role serves.
func (h *Handle) await(ctx context.Context) (Role, error) {
	select {
	case <-h.serves:
		h.mu.Lock()
		defer h.mu.Unlock()
		return h.role, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}
