package transport

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"ftfuse/internal/dest"
)

// ErrName is returned where a destination cannot be looked up and was never looked up
// before.
var ErrName = errors.New("transport: cannot look up the destination")

// stagger is how long one address is tried alone before the next one is tried too.
const stagger = 250 * time.Millisecond

// Target is one host that a destination stands for.
type Target struct {
	Host     string // a name or an IP address without brackets
	Port     uint16
	Priority uint16 // of an SRV record: the lowest goes first
	Weight   uint16 // of an SRV record: the share among those of one priority
}

// Address is host:port, as ClientOptions.Address takes it.
func (t Target) Address() string { return net.JoinHostPort(t.Host, strconv.Itoa(int(t.Port))) }

// Resolver looks destinations up. It remembers the last good answer for each name and
// gives that when the DNS cannot be asked: a name server that is down stops no
// connection that it once allowed. The zero value is ready for use and safe for
// concurrent use.
type Resolver struct {
	Net *net.Resolver // nil: net.DefaultResolver

	mu      sync.Mutex
	targets map[string][]Target
	addrs   map[string][]string
}

// maxRemembered is how many names a Resolver remembers.
const maxRemembered = 1024

// Targets returns the hosts that d stands for: d itself for a host and port, else what
// the SRV records say (RFC 2782), by priority, then by weight, the heavy ones first, then
// by name, so that everybody sees one order.
func (r *Resolver) Targets(ctx context.Context, d dest.Destination) ([]Target, error) {
	if !d.IsService() {
		return []Target{{Host: d.Host, Port: d.Port}}, nil
	}
	lctx, cancel := lookupContext(ctx, known(r, &r.targets, d.Service))
	defer cancel()
	_, srvs, err := r.net().LookupSRV(lctx, "", "", d.Service)
	var ts []Target
	for _, s := range srvs {
		if host := strings.TrimSuffix(s.Target, "."); host != "" { // "." says that there is no such service
			ts = append(ts, Target{strings.ToLower(host), s.Port, s.Priority, s.Weight})
		}
	}
	if len(ts) == 0 {
		return remembered(r, &r.targets, d.Service, err)
	}
	slices.SortFunc(ts, func(a, b Target) int {
		return cmp.Or(cmp.Compare(a.Priority, b.Priority), cmp.Compare(b.Weight, a.Weight), cmp.Compare(a.Host, b.Host), cmp.Compare(a.Port, b.Port))
	})
	ts = slices.CompactFunc(ts, func(a, b Target) bool { return a.Host == b.Host && a.Port == b.Port })
	remember(r, &r.targets, d.Service, ts)
	return ts, nil
}

// Tiers parts what Targets returned: those of the lowest priority value are primary, the
// others stand in for them.
func Tiers(ts []Target) (primary, secondary []Target) {
	n := 0
	for n < len(ts) && ts[n].Priority == ts[0].Priority {
		n++
	}
	return ts[:n:n], ts[n:]
}

// addresses returns the IP addresses of host, in the order of the resolver.
func (r *Resolver) addresses(ctx context.Context, host string) ([]string, error) {
	if ip, _, _ := strings.Cut(host, "%"); net.ParseIP(ip) != nil {
		return []string{host}, nil
	}
	lctx, cancel := lookupContext(ctx, known(r, &r.addrs, host))
	defer cancel()
	addrs, err := r.net().LookupHost(lctx, host)
	if err != nil || len(addrs) == 0 {
		return remembered(r, &r.addrs, host, err)
	}
	remember(r, &r.addrs, host, addrs)
	return addrs, nil
}

// How long a name server may take: where an old answer would do, and where not.
const (
	lookupKnown = time.Second
	lookupFirst = 10 * time.Second
)

// lookupContext ends when the name server was given its time, and leaves half of ctx's to
// what comes after the lookup.
func lookupContext(ctx context.Context, known bool) (context.Context, context.CancelFunc) {
	limit := lookupFirst
	if known {
		limit = lookupKnown
		if end, ok := ctx.Deadline(); ok {
			limit = min(limit, time.Until(end)/2)
		}
	}
	return context.WithTimeout(ctx, limit)
}

func known[T any](r *Resolver, in *map[string][]T, name string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len((*in)[name]) > 0
}

func (r *Resolver) net() *net.Resolver {
	if r.Net != nil {
		return r.Net
	}
	return net.DefaultResolver
}

func remember[T any](r *Resolver, in *map[string][]T, name string, answer []T) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if *in == nil || len(*in) >= maxRemembered {
		*in = make(map[string][]T)
	}
	(*in)[name] = slices.Clone(answer)
}

func remembered[T any](r *Resolver, in *map[string][]T, name string, err error) ([]T, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if old := (*in)[name]; len(old) > 0 {
		return slices.Clone(old), nil
	}
	if err == nil {
		return nil, fmt.Errorf("%w: %s: the DNS names no host", ErrName, name)
	}
	return nil, fmt.Errorf("%w: %s: %w", ErrName, name, err)
}

// dialer connects to one address, which may be a name with several IP addresses. The
// one that answered last goes first.
type dialer struct {
	r    *Resolver
	mu   sync.Mutex
	last string
}

// dial looks the host of address up, tries its addresses in turn, each 250 ms after the
// one before unless that failed earlier, and returns the first connection.
func (d *dialer) dial(ctx context.Context, network, address string) (net.Conn, error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	addrs, err := d.r.addresses(ctx, host)
	if err != nil {
		return nil, err
	}
	d.mu.Lock()
	if i := slices.Index(addrs, d.last); i > 0 {
		addrs[0], addrs[i] = addrs[i], addrs[0]
	}
	d.mu.Unlock()
	nc, used, err := dialFirst(ctx, network, addrs, port)
	if err == nil {
		d.mu.Lock()
		d.last = used
		d.mu.Unlock()
	}
	return nc, err
}

// dialFirst returns the first connection that one of addrs gives, and which it was. It
// closes the others.
func dialFirst(ctx context.Context, network string, addrs []string, port string) (net.Conn, string, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type result struct {
		nc   net.Conn
		addr string
		err  error
	}
	results := make(chan result)
	next := time.NewTimer(0)
	defer next.Stop()
	var errs []error
	started := 0
	for len(errs) < len(addrs) {
		var start <-chan time.Time
		if started < len(addrs) {
			start = next.C
		}
		select {
		case <-start:
			addr := addrs[started]
			started++
			next.Reset(stagger)
			go func() {
				nc, err := new(net.Dialer).DialContext(ctx, network, net.JoinHostPort(addr, port))
				results <- result{nc, addr, err}
			}()
		case r := <-results:
			if r.err != nil {
				errs = append(errs, r.err)
				next.Reset(0)
				continue
			}
			cancel()
			for range started - len(errs) - 1 {
				if other := <-results; other.nc != nil {
					other.nc.Close()
				}
			}
			return r.nc, r.addr, nil
		}
	}
	return nil, "", errors.Join(errs...)
}
