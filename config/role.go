package config

import (
	"fmt"
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
		c.checkShared(ps, r)
		c.checkMount(ps)
	case RoleRelay:
		ps.add(ErrUnsupported, "relay", "remove [relay], or start the other roles of this file only", "the relay role arrives with a later version")
	case RoleReceive:
		c.checkShared(ps, r)
		c.checkReceive(ps)
	}
	return ps.err()
}

// later notes that the value at path would be ignored. accepted is what to write.
func (ps *problems) later(path, accepted, what string, args ...any) {
	ps.add(ErrUnsupported, path, accepted, "%s arrives with a later version and would be ignored", fmt.Sprintf(what, args...))
}

// checkShared refuses what no role does yet.
func (c *Config) checkShared(ps *problems, r Role) {
	if c.TLS.Enabled() {
		ps.later("tls", "remove tls: connections are plain TCP", "TLS")
	}
	if h := c.HTTPFor(r); h.Listen != "" {
		path := string(r) + ".http.listen"
		if _, own := c.pos[path]; !own {
			path = "http.listen"
		}
		ps.later(path, "remove it", "the HTTP server on %s", h.Listen)
	}
	q := c.QueueFor(r)
	// Only a mount seals batches; elsewhere the [queue] that a mount shares says nothing.
	path := string(r) + ".queue.compression"
	_, own := c.pos[path]
	if q.Compression != CompressionNone && (own || r == RoleMount) {
		if !own {
			path = "queue.compression"
		}
		ps.later(path, `write compression = "none"`, "compression = %q", q.Compression)
	}
}

func (c *Config) checkMount(ps *problems) {
	m := c.Mount
	if m.Offline == OfflineKeep {
		ps.later("mount.offline", `write offline = "ignore": files below the mount point stay where they are, hidden`, "offline = %q", m.Offline)
	}
	if len(m.Forwards) == 0 {
		ps.add(ErrMissing, "mount", "add [[mount.forward]] with primary = [\"HOST:7401\"]", "the mount has nowhere to send to")
	}
	for i := range m.Forwards {
		if i > 0 {
			ps.later(m.Forwards[i].key, "write a single [[mount.forward]]", "a second group of destinations")
		}
		checkForward(ps, &m.Forwards[i])
	}
	for i := range m.Rules {
		checkRule(ps, &m.Rules[i])
	}
}

func checkForward(ps *problems, f *Forward) {
	if f.Mode != ForwardAny {
		ps.later(join(f.key, "mode"), `write mode = "any"`, "mode = %q", f.Mode)
	}
	if len(f.Primary) > 1 {
		ps.later(join(f.key, "primary"), fmt.Sprintf("write primary = [%q]", f.Primary[0]), "more than one destination")
	}
	if len(f.Secondary) > 0 {
		ps.later(join(f.key, "secondary"), "write secondary = []", "a secondary destination")
	}
	if f.FailbackAfter != defaultForward().FailbackAfter {
		ps.later(join(f.key, "failback_after"), "remove it", "failback_after")
	}
}

func checkRule(ps *problems, r *Rule) {
	if len(r.Allow) > 0 {
		ps.later(join(r.key, "allow"), "remove it", "a list of what to allow")
	}
	if len(r.Deny) > 0 {
		ps.later(join(r.key, "deny"), "remove it", "a list of what to deny")
	}
	if r.Default != VerdictAllow {
		ps.later(join(r.key, "default"), `write default = "allow", or transfer = false to keep all of it here`, "default = %q", r.Default)
	}
	if r.Output != "" {
		ps.later(join(r.key, "output"), "remove it", "a local copy")
	}
	if len(r.Plugin) > 0 {
		ps.later(join(r.key, "plugin"), "remove it", "a plugin")
	}
}

func (c *Config) checkReceive(ps *problems) {
	for i := range c.Receive.Outputs {
		if o := &c.Receive.Outputs[i]; len(o.Plugin) > 0 {
			ps.later(join(o.key, "plugin"), "write plugin = []", "a plugin")
		}
	}
}

// wholeLine is the longest line that capture makes one record of.
const wholeLine = MiB

// Notes returns what an operator may not expect of a role that CheckRole accepts;
// the role's start and `ftfuse check` say it.
func (c *Config) Notes(r Role) []string {
	var notes []string
	note := func(format string, args ...any) { notes = append(notes, fmt.Sprintf(format, args...)) }
	if !c.TLS.Enabled() {
		note("no tls: connections are plain TCP, neither encrypted nor authenticated")
	}
	if r == RoleReceive && c.Receive != nil {
		for i := range c.Receive.Outputs {
			if o := &c.Receive.Outputs[i]; !hasData(o) {
				note("format = %q has no %%L: %s/%s gets lines without the data", o.Format, o.Dir, o.File)
			}
		}
	}
	if r != RoleMount || c.Mount == nil {
		return notes
	}
	if c.Mount.Offline == OfflineTake {
		note("offline = %q arrives with a later version: files that were written below %s while nothing was mounted stay there, hidden and not transferred, as with %q",
			c.Mount.Offline, c.Mount.Point, OfflineIgnore)
	}
	for i := range c.Mount.Rules {
		if ru := &c.Mount.Rules[i]; ru.MaxLine > wholeLine {
			note("%s: max_line = %q: lines longer than %s travel in pieces in this version, and come out whole all the same", ru, ru.MaxLine, wholeLine)
		}
	}
	if q := c.Mount.Queue; q.MaxAge > 0 && q.MaxAge < time.Minute {
		note("max_age = %v: data that cannot be delivered for so short a time is lost (and counted)", q.MaxAge)
	}
	return notes
}

// hasData reports whether the output writes what programs wrote.
func hasData(o *Output) bool {
	t, err := template.Compile(template.Format, o.Format, o.Time)
	return err == nil && t.Fields()&template.Line != 0
}
