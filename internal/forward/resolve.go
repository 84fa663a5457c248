package forward

import (
	"context"
	"fmt"
	"sync"
	"time"

	"ftfuse/internal/dest"
	"ftfuse/transport"
)

// How often services are looked up again: while all is well, and while it failed or
// nothing is connected.
const (
	lookupEvery = time.Minute
	lookupSoon  = 2 * time.Second
)

// target is a destination as connected to.
type target struct {
	address, configured string
	secondary           bool
}

// begin makes the destinations that need no looking up, and starts their clients.
func (l *line) begin() error {
	fixed, _, err := l.configured()
	if err != nil {
		return err
	}
	for _, t := range fixed {
		l.add1(t)
	}
	return nil
}

// configured splits what is configured into addresses and services.
func (l *line) configured() (fixed []target, services []target, err error) {
	for i, all := range [][]string{l.cfg.primary, l.cfg.secondary} {
		for _, text := range all {
			d, err := dest.Parse(text)
			if err != nil {
				return nil, nil, fmt.Errorf("%w: group %q: destination %q %w", ErrOptions, l.group.Name, text, err)
			}
			t := target{address: d.String(), configured: text, secondary: i == 1}
			if d.IsService() {
				services = append(services, t)
			} else {
				fixed = append(fixed, t)
			}
		}
	}
	return fixed, services, nil
}

// resolve keeps the destinations of services as the DNS has them, until ctx ends.
func (l *line) resolve(ctx context.Context) error {
	_, services, err := l.configured()
	if err != nil || len(services) == 0 {
		return err
	}
	r := l.f.o.Resolver
	if r == nil {
		r = &transport.Resolver{}
	}
	for {
		wait := lookupEvery
		for _, s := range services {
			d, _ := dest.Parse(s.configured)
			found, err := r.Targets(ctx, d)
			if err != nil && ctx.Err() == nil {
				l.log.Warn("cannot look up a service", "service", s.configured, "error", err)
			}
			if err != nil || len(found) == 0 {
				wait = lookupSoon
				continue
			}
			l.adopt(s, found)
		}
		if !l.connected() {
			wait = lookupSoon
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		}
	}
}

// adopt makes the destinations of a service what was found: the lowest priority value is
// that of primaries, if the service is configured as one.
func (l *line) adopt(s target, found []transport.Target) {
	want := map[target]bool{}
	primary, secondary := transport.Tiers(found)
	for i, tier := range [][]transport.Target{primary, secondary} {
		for _, t := range tier {
			want[target{address: t.Address(), configured: s.configured, secondary: s.secondary || i == 1}] = true
		}
	}
	l.mu.Lock()
	for _, d := range l.dests {
		select {
		case <-d.ended: // it comes back as another one
			continue
		default:
		}
		t := target{address: d.address, configured: d.configured, secondary: l.peers.health[d.i].secondary}
		if t.configured != s.configured {
			continue
		}
		if removed := !want[t]; l.peers.removed[d.i] != removed {
			l.peers.removed[d.i] = removed
			l.log.Info("the service has another set of hosts", "service", s.configured, "address", d.address, "removed", removed)
		}
		delete(want, t)
	}
	l.steer(l.now())
	l.mu.Unlock()
	for t := range want {
		l.add1(t)
	}
}

// add1 makes a destination and starts its client.
func (l *line) add1(t target) {
	d := &destination{l: l, address: t.address, configured: t.configured, since: time.Now(), wake: make(chan struct{}, 1), ended: make(chan struct{})}
	d.end = sync.OnceFunc(func() { close(d.ended) })
	o := &l.f.o
	d.client = transport.NewClient(transport.ClientOptions{
		Identity: o.Identity, Address: t.address, Window: l.group.Window, Dial: o.Dial, TLS: o.TLS, Resolver: o.Resolver,
		OnState: d.changed, OnProgress: d.moved, Logger: l.log,
	}, d)
	l.mu.Lock()
	if d.i = l.vacant(); d.i == nowhere {
		d.i = l.peers.add(l.now(), t.address, t.secondary, l.group.FailbackAfter)
		l.dests = append(l.dests, d)
	} else {
		l.dests[d.i] = d
		l.peers.set(d.i, l.now(), t.address, t.secondary, l.group.FailbackAfter)
	}
	l.steer(l.now())
	l.mu.Unlock()
	signal(l.kick)
	l.f.spawn("send to "+t.address, d.run)
}

// vacant returns the place of a destination that has ended and that nothing refers to any
// more by its place, or nowhere: a service whose hosts come and go does not grow. The
// caller holds mu.
func (l *line) vacant() int {
	used := make([]bool, len(l.dests))
	now := l.now()
	for _, fl := range l.flows {
		for _, i := range []int{fl.home, fl.next} {
			if i != nowhere {
				used[i] = true
			}
		}
		if fl.pin != nowhere && now < fl.pinUntil {
			used[fl.pin] = true
		} else {
			fl.pin = nowhere
		}
	}
	for i, d := range l.dests {
		if d.over && !used[i] && d.out == 0 && len(d.ready) == 0 && d.stray() == nil {
			return i
		}
	}
	return nowhere
}

// run sends to the destination until it ends, or ctx does.
func (d *destination) run(ctx context.Context) error {
	defer d.ran()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		select {
		case <-d.ended:
			cancel()
		case <-ctx.Done():
		}
	}()
	err := d.client.Run(ctx)
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// ran notes that the client has ended. One whose host is not configured any more leaves what
// it was just being given to the others.
func (d *destination) ran() {
	l := d.l
	l.mu.Lock()
	defer l.mu.Unlock()
	d.over, d.connected = true, false
	select {
	case <-d.ended:
		l.on(d, l.now(), evGone)
	default: // all of them end
	}
}

// connected reports whether any destination is.
func (l *line) connected() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, d := range l.dests {
		if d.connected {
			return true
		}
	}
	return false
}
