package forward

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"time"

	"ftfuse/internal/batch"
	"ftfuse/queue"
	"ftfuse/transport"
)

// ErrOptions is returned by New for options that cannot be.
var ErrOptions = errors.New("forward options")

// Mode is how the destinations of a group share its batches.
type Mode string

// The modes.
const (
	Any       Mode = "any"       // a lane keeps to one destination, and leaves one that stays behind
	Hash      Mode = "hash"      // a path of a host keeps to one destination
	Broadcast Mode = "broadcast" // every primary gets everything
)

// GroupConfig is one group of destinations.
type GroupConfig struct {
	Name      string
	Mode      Mode
	Primary   []string // as dest.Parse reads them; at least one
	Secondary []string // while no primary is healthy; with Broadcast the stand-in of the primary at its position
	Window    int64    // bytes in flight per destination; 0: transport's default
	// FailbackAfter is how long a destination that failed must be healthy before it gets
	// its flows back; 0: DefaultFailback.
	FailbackAfter time.Duration
}

// Defaults of Options.
const (
	DefaultFailback     = 30 * time.Second
	DefaultFinalTimeout = 60 * time.Second
	DefaultGrace        = time.Second
)

// Options of a Forwarder.
type Options struct {
	Queue    *queue.Queue  // opened with the cursors that Cursors names
	Groups   []GroupConfig // none: nothing is sent
	Identity transport.Identity
	// Routes returns the names of the groups that a route has; nil: every group.
	// It is called with locks held and must not call back.
	Routes func(route uint32) []string
	// KeepFinal keeps a batch until it is final instead of until the next node has it.
	KeepFinal    bool
	FinalTimeout time.Duration // with KeepFinal: what is not final for so long is sent again

	TLS      func() *tls.Config
	Dial     func(ctx context.Context, network, address string) (net.Conn, error) // nil: TCP
	Resolver *transport.Resolver

	// Relabel seals the content of b again under id, for a batch whose id a next node
	// knows with another content; nil: such a batch stays in the queue, refused.
	Relabel func(b batch.Sealed, id batch.ID) (batch.Sealed, error)
	// OnConflict, if set, hears of the lane of each batch refused so: a mount begins a
	// new epoch.
	OnConflict func(batch.Lane)
	// OnFinal, if set, hears what became final at every group that the lane goes to. It
	// may be told again. It must not block.
	OnFinal func(batch.Lane, []batch.Range)
	// OnSkip, if set, hears what nodes further down dropped, each batch once. It must not
	// block.
	OnSkip func(batch.Lane, []transport.Skip)

	// ReconnectGrace is how long Drain waits for a connection that is not there; 0:
	// DefaultGrace.
	ReconnectGrace time.Duration

	Logger *slog.Logger
}

func (o Options) withDefaults() (Options, error) {
	if o.ReconnectGrace <= 0 {
		o.ReconnectGrace = DefaultGrace
	}
	if o.FinalTimeout <= 0 {
		o.FinalTimeout = DefaultFinalTimeout
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	o.Groups = slices.Clone(o.Groups)
	seen := map[string]bool{}
	for i := range o.Groups {
		g := &o.Groups[i]
		if g.FailbackAfter <= 0 {
			g.FailbackAfter = DefaultFailback
		}
		switch {
		case g.Name == "" || seen[g.Name]:
			return o, fmt.Errorf("%w: group %q has no name, or that of another", ErrOptions, g.Name)
		case len(g.Primary) == 0:
			return o, fmt.Errorf("%w: group %q has no primary", ErrOptions, g.Name)
		case g.Mode != Any && g.Mode != Hash && g.Mode != Broadcast:
			return o, fmt.Errorf("%w: group %q has the mode %q", ErrOptions, g.Name, g.Mode)
		case g.Mode == Broadcast && len(g.Secondary) > len(g.Primary):
			return o, fmt.Errorf("%w: broadcast group %q has more secondaries than primaries", ErrOptions, g.Name)
		}
		seen[g.Name] = true
	}
	return o, nil
}

const cursorPrefix = "forward/"

// Cursors returns the names of the queue's cursors that groups need: for each group
// forward/NAME, for a broadcast group forward/NAME/ADDRESS of each primary.
func Cursors(groups []GroupConfig) []string {
	var names []string
	for i := range groups {
		for _, l := range groups[i].lines() {
			names = append(names, l.cursor)
		}
	}
	return names
}

// lineConfig is one line: what one cursor feeds.
type lineConfig struct {
	cursor             string
	primary, secondary []string
}

func (g *GroupConfig) lines() []lineConfig {
	if g.Mode != Broadcast {
		return []lineConfig{{cursorPrefix + g.Name, g.Primary, g.Secondary}}
	}
	all := make([]lineConfig, len(g.Primary))
	for i, p := range g.Primary {
		all[i] = lineConfig{cursor: cursorPrefix + g.Name + "/" + p, primary: []string{p}}
		if i < len(g.Secondary) {
			all[i].secondary = []string{g.Secondary[i]}
		}
	}
	return all
}

// Wants returns what queue.Options.Wants is to be, for these groups and routes (nil:
// every group); origin is this node's. Lanes of another origin, which were imported or
// came from a peer, go to every group.
func Wants(groups []GroupConfig, routes func(uint32) []string, origin batch.Origin) func(cursor string, lane batch.Lane) bool {
	group := map[string]string{}
	for i := range groups {
		for _, l := range groups[i].lines() {
			group[l.cursor] = groups[i].Name
		}
	}
	return func(cursor string, lane batch.Lane) bool {
		name, ok := group[cursor]
		return !ok || routes == nil || lane.Origin != origin || slices.Contains(routes(lane.Route), name)
	}
}
