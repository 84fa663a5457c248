// Package failpoint lets a test stop the program, or make a step fail, at a named
// place in it. A package names its places in variables:
//
//	var fpCommit = failpoint.New("queue/commit-before")
//	...
//	if err := fpCommit.Inject(); err != nil { ... }
//
// Nothing is armed unless the environment variable FTFUSE_FAILPOINTS says so at
// start or a test calls Set. Then Inject costs one atomic load. All functions are
// safe for concurrent use.
package failpoint

import (
	"errors"
	"fmt"
	"os"
	"sort"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
)

// Env is the environment variable that arms failpoints at start:
// "name=action[;name=action]...", actions as for Set. What ends with "#N" is for a
// holder's worker number N alone: see ForWorker.
const Env = "FTFUSE_FAILPOINTS"

// Errors of this package.
var (
	// ErrInjected is what Inject returns where the action is "error".
	ErrInjected = errors.New("failpoint: injected error")
	// ErrAction is returned by Set for an action it does not know.
	ErrAction = errors.New("failpoint: unknown action")
)

// Point is one named place. Make it with New.
type Point struct {
	name  string
	armed atomic.Pointer[action]
	hits  atomic.Int64 // since it was armed
}

type action struct {
	what  string // kill, error, pause
	nth   int64  // 0: every hit
	freed chan struct{}
}

var (
	mu     sync.Mutex
	points = map[string]*Point{}
	early  = map[string]*action{} // armed before the point was registered
)

func init() {
	spec := os.Getenv(Env)
	if spec == "" {
		return
	}
	for part := range strings.SplitSeq(spec, ";") {
		name, act, ok := strings.Cut(strings.TrimSpace(part), "=")
		if !ok {
			panic(fmt.Sprintf("failpoint: %s has %q, want name=action", Env, part))
		}
		if strings.Contains(act, "#") {
			continue // a worker's
		}
		if err := Set(name, act); err != nil {
			panic(fmt.Sprintf("failpoint: %s: %v", Env, err))
		}
	}
}

// ForWorker returns the part of spec, a value of Env, for worker number n of a process that
// starts them one after another, counted from 1: what ends with "#n", without that, and what
// has no number. Without a number only the first gets what kills, or pauses at its Nth hit:
// else none would come up. n is 0 for the process itself, which gets none of these.
func ForWorker(spec string, n int) string {
	var out []string
	for part := range strings.SplitSeq(spec, ";") {
		part, number, numbered := strings.Cut(part, "#")
		if numbered && number != strconv.Itoa(n) {
			continue
		}
		_, act, _ := strings.Cut(part, "=")
		if !numbered && n != 1 && (strings.HasPrefix(act, "kill") || strings.HasPrefix(act, "pause@")) {
			continue
		}
		out = append(out, part)
	}
	return strings.Join(out, ";")
}

// New registers the place called name. It is meant for package variables; two places
// of one name are a mistake in the program, and panic.
func New(name string) *Point {
	mu.Lock()
	defer mu.Unlock()
	if points[name] != nil {
		panic("failpoint: " + name + " is registered twice")
	}
	p := &Point{name: name}
	points[name] = p
	if a := early[name]; a != nil {
		p.armed.Store(a)
		delete(early, name)
	}
	return p
}

// Inject does what the point is armed to do: nothing (nil), return ErrInjected, kill
// the process with SIGKILL, or block until the point is cleared (then nil).
func (p *Point) Inject() error {
	a := p.armed.Load()
	if a == nil {
		return nil
	}
	if n := p.hits.Add(1); a.nth != 0 && n != a.nth {
		return nil
	}
	switch a.what {
	case "kill":
		if err := syscall.Kill(os.Getpid(), syscall.SIGKILL); err != nil {
			return fmt.Errorf("kill at failpoint %s: %w", p.name, err)
		}
		select {} // the signal is on its way
	case "pause":
		<-a.freed
		return nil
	default:
		return fmt.Errorf("%w at %s", ErrInjected, p.name)
	}
}

// Hits returns how often the point was reached since it was last armed.
func (p *Point) Hits() int64 { return p.hits.Load() }

// Inject is Point.Inject by name; a name that nobody registered does nothing. Code
// outside tests uses a *Point.
func Inject(name string) error {
	mu.Lock()
	p := points[name]
	mu.Unlock()
	if p == nil {
		return nil
	}
	return p.Inject()
}

// Set arms the point called name, also before it is registered. Actions: "kill"
// (SIGKILL to this process), "error" (Inject returns ErrInjected), "pause" (Inject
// blocks until Clear); with "@N" only the Nth hit acts, counted from 1 and from now.
func Set(name, act string) error {
	what, nth, counted := strings.Cut(act, "@")
	a := &action{what: what, freed: make(chan struct{})}
	if counted {
		n, err := strconv.ParseInt(nth, 10, 64)
		if err != nil || n < 1 {
			return fmt.Errorf("%w: %q for %s: what follows @ must be a number from 1", ErrAction, act, name)
		}
		a.nth = n
	}
	if what != "kill" && what != "error" && what != "pause" {
		return fmt.Errorf("%w: %q for %s, want kill, error or pause, or one of them with @N", ErrAction, act, name)
	}
	mu.Lock()
	defer mu.Unlock()
	p := points[name]
	if p == nil {
		early[name] = a
		return nil
	}
	p.hits.Store(0)
	if old := p.armed.Swap(a); old != nil {
		close(old.freed)
	}
	return nil
}

// Clear disarms the point called name and frees who is paused there.
func Clear(name string) {
	mu.Lock()
	defer mu.Unlock()
	delete(early, name)
	if p := points[name]; p != nil {
		if old := p.armed.Swap(nil); old != nil {
			close(old.freed)
		}
	}
}

// Names returns the names registered so far, sorted.
func Names() []string {
	mu.Lock()
	defer mu.Unlock()
	names := make([]string, 0, len(points))
	for name := range points {
		names = append(names, name)
	}
	sort.Strings(names)
	return names
}
