// Package plugin gives what a queue holds to programs: children of the role that read
// whole lines on their standard input.
//
//	queue ─▶ cursor "plugin/NAME" ─▶ feed: decode, match, format, whole lines
//	                ▲                   │
//	               Ack                  ▼ pipe
//	                └── taken ◀── child: stdin; stdout ─▶ file, stderr ─▶ log, 3 ─▶ "ok N"
//
// Each plugin is a cursor of its own: one that is slow, stuck or gone holds nothing else
// back before the queue is full. What a plugin gets it gets at least once: a batch is
// acked to the queue when the plugin has taken it, and given again, whole, to the next
// process where this one ended before. What "taken" means is the plugin's protocol (Ack);
// docs/plugins.md describes both for those who write plugins.
//
// A child runs in a process group of its own, which is killed when its leader has ended.
// It outlives a role that is killed: it reads what is in its pipe, and the next start
// waits for its end, or forces it, before it starts another.
package plugin

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"ftfuse/internal/output"
	"ftfuse/internal/template"
	"ftfuse/queue"
)

// Ack says when a plugin has taken a batch.
type Ack string

// Values of Ack.
const (
	AckPipe Ack = "pipe" // it has read all of it out of the pipe
	AckLine Ack = "line" // it wrote "ok N" to descriptor 3
)

// CursorPrefix begins the names of the cursors of plugins.
const CursorPrefix = "plugin/"

// CursorOf returns the name of the cursor of the plugin that parts identify: the same
// parts are the same plugin, whatever else changes.
func CursorOf(parts ...string) string {
	sum := sha256.Sum256([]byte(strings.Join(parts, "\x00")))
	return CursorPrefix + hex.EncodeToString(sum[:4])
}

// Plugin is one program and what it gets. Two of which all is equal, also what Files points to,
// are the same.
type Plugin struct {
	Cursor  string // of the queue, this plugin's alone; see CursorOf
	Rule    string // whose plugin it is, for FTFUSE_RULE, the log and the status
	Command string // absolute path of the program
	Args    string // its arguments, a NUL behind each
	Ack     Ack
	Timeout time.Duration // of a batch that is offered and not taken: the child is killed; 0: none

	Hosts, Path  string // globs: which records; doublestar
	Format, Time string // of a line, as internal/template has it

	Dir   string         // of the file that gets its standard output; "": nothing does
	File  string         // below Dir: a template of times
	Files output.Options // and who owns what is made there
}

// Arguments makes the Args of a Plugin.
func Arguments(args []string) string {
	var b strings.Builder
	for _, a := range args {
		b.WriteString(a)
		b.WriteByte(0)
	}
	return b.String()
}

// argv returns command and arguments.
func (p *Plugin) argv() []string {
	args := strings.Split(p.Args, "\x00")
	return append([]string{p.Command}, args[:len(args)-1]...)
}

// Options of Open. A zero time takes its default.
type Options struct {
	Queue   *queue.Queue
	Plugins []Plugin
	Host    string // FTFUSE_HOST
	Role    string // FTFUSE_ROLE
	Dir     string // where the process ids are noted; made when it is missing
	Logger  *slog.Logger

	ExitGrace  time.Duration // from the end of its input until SIGTERM, and half of it again until SIGKILL; default 2 s
	MinBackoff time.Duration // between the end of a child and the next start; doubled up to MaxBackoff; default 100 ms
	MaxBackoff time.Duration // default 30 s
	SyncEvery  time.Duration // the file of the standard output is synced, with AckLine, before batches are acked; default 200 ms
}

func (o *Options) defaults() {
	def := func(p *time.Duration, v time.Duration) {
		if *p == 0 {
			*p = v
		}
	}
	def(&o.ExitGrace, 2*time.Second)
	def(&o.MinBackoff, 100*time.Millisecond)
	def(&o.MaxBackoff, 30*time.Second)
	def(&o.SyncEvery, 200*time.Millisecond)
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
}

// ErrPlugin is wrapped by the errors of Open and Reconfigure for a Plugin that cannot be.
var ErrPlugin = errors.New("plugin")

// Set is the plugins of one role. Its methods may be called from several goroutines.
type Set struct {
	o    Options
	zone *time.Location

	change  sync.Mutex // held by Reconfigure, which is one after the other, and while Run starts
	mu      sync.Mutex
	runners []*runner
	left    []remnant       // some of which may have ended since
	ctx     context.Context // of Run; nil: not called yet
	over    bool            // Run is ending: nothing is started any more
	wg      sync.WaitGroup
	failed  chan error // capacity 1

	abandoned chan struct{} // closed by Abandon
	once      sync.Once
}

// Open checks the plugins and finds their cursors. Nothing is started before Run.
func Open(o Options) (*Set, error) {
	o.defaults()
	// What this process was given by whoever started it is not for plugins; all that Go opens
	// is closed in a child anyway. (A kernel before 5.11 refuses.)
	_ = unix.CloseRange(3, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC)
	s := &Set{o: o, zone: time.UTC, failed: make(chan error, 1), abandoned: make(chan struct{})}
	z, err := template.LocalZone()
	if err != nil {
		return nil, err
	}
	if s.zone, err = z.Location(); err != nil {
		return nil, err
	}
	if s.runners, err = s.make(o.Plugins); err != nil {
		return nil, err
	}
	return s, s.attach(s.runners)
}

// make makes the runners of plugins.
func (s *Set) make(plugins []Plugin) ([]*runner, error) {
	var all []*runner
	rules := map[string]int{}
	for i := range plugins {
		rules[plugins[i].Rule]++
	}
	for _, p := range plugins {
		label := p.Rule
		if rules[p.Rule] > 1 {
			label += " " + strings.TrimPrefix(p.Cursor, CursorPrefix)
		}
		r, err := newRunner(s, p, label)
		if err != nil {
			return nil, fmt.Errorf("%w of %q: %w", ErrPlugin, p.Rule, err)
		}
		all = append(all, r)
	}
	return all, nil
}

// Run starts the plugins and gives them what comes until ctx ends; then it ends them: their
// input ends, and those that are still there after ExitGrace are forced. It returns an
// error when the queue fails, or a sync of what a plugin printed.
func (s *Set) Run(ctx context.Context) error {
	inner, cancel := context.WithCancel(ctx)
	defer cancel()
	s.change.Lock() // a reload comes before all of them run, or behind
	s.mu.Lock()
	s.ctx = inner
	for _, r := range s.runners {
		s.start(r)
	}
	s.mu.Unlock()
	s.change.Unlock()
	var err error
	select {
	case <-ctx.Done():
	case <-s.abandoned:
	case err = <-s.failed:
	}
	s.mu.Lock()
	s.over = true
	s.mu.Unlock()
	cancel()
	s.wg.Wait()
	select {
	case late := <-s.failed: // while it ended, or at the moment when ctx did
		err = cmp.Or(err, late)
	default:
	}
	return err
}

// start runs r. s.mu is held.
func (s *Set) start(r *runner) {
	ctx, cancel := context.WithCancel(s.ctx)
	r.cancel = cancel
	s.wg.Go(func() {
		defer cancel()
		if err := r.run(ctx); err != nil {
			select {
			case s.failed <- fmt.Errorf("plugin of %q: %w", r.label, err):
			default: // the first one counts
			}
		}
	})
}

// all returns the plugins that there are now.
func (s *Set) all() []*runner {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]*runner(nil), s.runners...)
}

// Drain waits until the plugins that run have taken what the queue has for them, ends
// their input, and waits for their end, or for ctx's, whose error it returns then. None is
// started again.
func (s *Set) Drain(ctx context.Context) error {
	var wg sync.WaitGroup
	for _, r := range s.all() {
		wg.Go(func() {
			r.settle(ctx)
			r.finishNow()
		})
	}
	wg.Wait()
	s.mu.Lock()
	started := s.ctx != nil
	s.mu.Unlock()
	for _, r := range s.all() {
		if !started {
			break
		}
		select {
		case <-r.ended:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// Reopen has each plugin whose output file has another name, or another file has its name,
// started again with the right one. (It is noticed without Reopen within a second or so.)
func (s *Set) Reopen() {
	for _, r := range s.all() {
		signal(r.look)
	}
}

// Abandon ends Run, and leaves the children as the death of the process would, which is to
// follow: they read what is in their pipes, and the next start waits for them. It is for a role
// whose successor waits.
func (s *Set) Abandon() { s.once.Do(func() { close(s.abandoned) }) }

// Check tells why Reconfigure would refuse plugins. It changes nothing.
func (s *Set) Check(plugins []Plugin) error {
	_, err := s.make(plugins)
	return err
}

// Reconfigure makes plugins the ones that run, in place of those before. One that is the
// same goes on undisturbed; one that changed, or is gone, gets the end of its input and is
// waited for, or forced after ExitGrace. The queue must have the cursors of the new ones, and
// may lose those of the old ones when it has returned. An error changes nothing.
func (s *Set) Reconfigure(plugins []Plugin) error {
	s.change.Lock()
	defer s.change.Unlock()
	fresh, err := s.make(plugins)
	if err != nil {
		return err
	}
	old := s.all()
	for i, r := range fresh {
		for _, was := range old {
			if reflect.DeepEqual(was.p, r.p) {
				fresh[i] = was
			}
		}
	}
	if err := s.attach(fresh); err != nil {
		return err
	}
	var wg sync.WaitGroup
	for _, was := range old {
		if !slices.Contains(fresh, was) {
			wg.Go(was.stop)
		}
	}
	wg.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.runners = fresh
	for _, r := range fresh {
		if s.ctx != nil && !s.over && !slices.Contains(old, r) {
			s.start(r)
		}
	}
	return nil
}

// attach finds the cursors of those that have none.
func (s *Set) attach(all []*runner) (err error) {
	for _, r := range all {
		if r.cur != nil {
			continue
		}
		if r.cur, err = s.o.Queue.Cursor(r.p.Cursor); err != nil {
			return fmt.Errorf("%w of %q: %w", ErrPlugin, r.p.Rule, err)
		}
	}
	return nil
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
