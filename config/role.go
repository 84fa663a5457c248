package config

import (
	"fmt"
	"slices"
	"time"

	"ftfuse/internal/template"
)

// CheckRole returns nil, or an *Error that lists what the role of this version would
// ignore or cannot do without: it then must not start. A value that equals what the
// role does anyway is accepted; where that is only nearly so, Notes says what happens.
func (c *Config) CheckRole(r Role) error {
	ps := &problems{file: c.File, pos: c.pos}
	if !c.Configured(r) {
		ps.add(ErrMissing, "", fmt.Sprintf("add [%s]; docs/configuration.md shows its keys", r), "there is no [%s], so this host has no such role", r)
		return ps.err()
	}
	switch r {
	case RoleMount:
		c.checkQueue(ps, r)
		c.checkMount(ps)
	case RoleRelay:
		c.checkQueue(ps, r)
		c.checkRelay(ps)
	case RoleReceive:
		c.checkQueue(ps, r)
	}
	return ps.err()
}

// RefuseTLS returns why a role cannot use the files of [tls], as an *Error with its line.
func (c *Config) RefuseTLS(why error) error {
	ps := &problems{file: c.File, pos: c.pos}
	ps.add(ErrRead, "tls", "`ftfuse cert` makes them; docs/configuration.md tells what belongs where", "%v", why)
	return ps.err()
}

// checkQueue refuses settings of a role's own queue that say nothing there. In the [queue]
// that it shares with others they do no harm.
func (c *Config) checkQueue(ps *problems, r Role) {
	q := c.QueueFor(r)
	own := func(key string) (string, bool) {
		path := string(r) + ".queue." + key
		_, ok := c.pos[path]
		return path, ok
	}
	if path, ok := own("compression"); ok && q.Compression != CompressionNone && r != RoleMount {
		ps.add(ErrUnsupported, path, "write it in [mount.queue] of the sources", "%s = %q has no effect: batches are sealed by the mount, and passed on as they are", path, q.Compression)
	}
	if path, ok := own("keep_until"); ok && q.KeepUntil != KeepUntilHop && r == RoleReceive {
		ps.add(ErrUnsupported, path, "write it in [mount.queue] or [relay.queue] of who sends", "%s = %q has no effect: a receiver is the last node", path, q.KeepUntil)
	}
}

func (c *Config) checkRelay(ps *problems) {
	if len(c.Relay.Forwards) == 0 {
		ps.add(ErrMissing, "relay", "add [[relay.forward]] with primary = [\"HOST:7401\"]", "the relay has nowhere to send to")
	}
}

// checkMount refuses a mount without destinations, unless its rules keep everything on this
// host: each of them, and the last one has what no other matches.
func (c *Config) checkMount(ps *problems) {
	m := c.Mount
	if len(m.Forwards) > 0 {
		return
	}
	const fix = "add [[mount.forward]] with primary = [\"HOST:7401\"]"
	if i := slices.IndexFunc(m.Rules, func(r Rule) bool { return r.Transfer }); i >= 0 {
		r := &m.Rules[i]
		ps.add(ErrMissing, r.key, fix+", or transfer = false here", "the mount has nowhere to send what the rule for %q matches", r.Path)
		return
	}
	if !slices.ContainsFunc(m.Rules, func(r Rule) bool { return r.Path == "**" }) {
		ps.add(ErrMissing, "mount", fix+", or a last [[mount.rule]] with path = \"**\" and transfer = false", "the mount has nowhere to send to what no rule matches")
	}
}

// Notes returns what an operator may not expect of a role that CheckRole accepts;
// the role's start and `ftfuse check` say it.
func (c *Config) Notes(r Role) []string {
	var notes []string
	note := func(format string, args ...any) { notes = append(notes, fmt.Sprintf(format, args...)) }
	if !c.TLS.Enabled() {
		note("no tls: connections are plain TCP, neither encrypted nor authenticated")
	}
	if c.TLS.Enabled() && c.listenerOf(r) != nil && c.listenerOf(r).Allow == nil {
		note("no allow: each peer may send only what the hosts named in its certificate wrote; list relays in %s.allow", r)
	}
	for _, o := range c.outputsOf(r) {
		if !hasData(&o) {
			note("format = %q has no %%L: %s/%s gets lines without the data", o.Format, o.Dir, o.File)
		}
	}
	if r != RoleMount || c.Mount == nil {
		return notes
	}
	for _, o := range c.Mount.Outputs {
		if !slices.ContainsFunc(c.Mount.Rules, func(r Rule) bool { return r.Output == o.Name }) {
			note("mount.output %q: no rule names it, so nothing is written there", o.Name)
		}
	}
	for i := range c.Mount.Rules {
		ru := &c.Mount.Rules[i]
		if b := slices.IndexFunc(c.Mount.Rules[:i], func(b Rule) bool { return b.Path == ru.Path || b.Path == "**" }); b >= 0 {
			note("%s of line %d: no file comes to it, since the first rule that matches decides, and that for %q is before it", ru, c.pos.line(join(ru.key, "path")), c.Mount.Rules[b].Path)
		}
		if ru.idleAllow() {
			note("%s: its allow changes nothing, since what it does not match is allowed too; write default = \"deny\" to drop that", ru)
		}
	}
	if q := c.Mount.Queue; q.MaxAge > 0 && q.MaxAge < time.Minute {
		note("max_age = %v: data that cannot be delivered for so short a time is lost (and counted)", q.MaxAge)
	}
	return notes
}

func (c *Config) listenerOf(r Role) *Listener {
	switch {
	case r == RoleRelay && c.Relay != nil:
		return &c.Relay.Listener
	case r == RoleReceive && c.Receive != nil:
		return &c.Receive.Listener
	}
	return nil
}

func (c *Config) outputsOf(r Role) []Output {
	switch {
	case r == RoleMount && c.Mount != nil:
		return c.Mount.Outputs
	case r == RoleRelay && c.Relay != nil:
		return c.Relay.Outputs
	case r == RoleReceive && c.Receive != nil:
		return c.Receive.Outputs
	}
	return nil
}

// hasData reports whether the output writes what programs wrote.
func hasData(o *Output) bool {
	t, err := template.Compile(template.Format, o.Format, o.Time)
	return err == nil && t.Fields()&template.Line != 0
}
