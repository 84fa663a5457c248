package config

import (
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/bmatcuk/doublestar/v4"

	"ftfuse/internal/dest"
	"ftfuse/internal/template"
)

// validate checks what the types alone do not, and makes paths clean.
func (c *Config) validate(ps *problems) {
	c.validateHost(ps)
	ps.absolute("state_dir", &c.StateDir)
	ps.listenAddress("http.listen", c.HTTP.Listen, true)
	c.validateTLS(ps)
	ps.queue("queue", &c.Queue)
	if c.Mount != nil {
		c.Mount.validate(ps)
	}
	if c.Relay != nil {
		c.Relay.validate(ps)
	}
	if c.Receive != nil {
		c.Receive.validate(ps)
	}
	c.validateListeners(ps)
	c.validateFiles(ps)
	c.validateOverlap(ps)
}

// validateHost refuses names that could not be an element of a path, as %H is one.
func (c *Config) validateHost(ps *problems) {
	const fix = `write host = "NAME" with a name such as "web-01"`
	switch h := c.Host; {
	case h == "":
		ps.add(ErrMissing, "host", fix, "there is no host, and the machine has no name")
	case h == "." || h == ".." || len(h) > 255 || strings.ContainsFunc(h, func(r rune) bool { return r <= ' ' || r == '/' || r == 0x7f }):
		ps.add(ErrValue, "host", fix, "host = %q cannot stand in a path: it is longer than 255 bytes, or has a slash, a space or a control character, or is dots only", h)
	}
}

func (c *Config) validateTLS(ps *problems) {
	t := &c.TLS
	if _, given := c.pos["tls"]; !given {
		return
	}
	for _, f := range []struct {
		key  string
		path *string
	}{{"cert", &t.Cert}, {"key", &t.Key}, {"ca", &t.CA}} {
		if *f.path != "" {
			ps.absolute("tls."+f.key, f.path)
		} else {
			ps.add(ErrMissing, "tls", fmt.Sprintf("write %s = \"/PATH.pem\" (`ftfuse cert` makes them), or remove tls for plain TCP", f.key), "tls has no %s", f.key)
		}
	}
}

// queue checks what the keys of one queue say together.
func (ps *problems) queue(path string, q *Queue) {
	if q.CommitBytes > q.MaxBytes {
		ps.add(ErrConflict, ps.firstGiven(path+".max_bytes", path+".commit_bytes", "queue.max_bytes", "queue.commit_bytes"),
			fmt.Sprintf("write max_bytes = %q or more", q.CommitBytes), "%s: commit_bytes %s is more than max_bytes %s", path, q.CommitBytes, q.MaxBytes)
	}
}

// firstGiven returns the first of paths that the file has, or the first.
func (ps *problems) firstGiven(paths ...string) string {
	for _, p := range paths {
		if _, ok := ps.pos[p]; ok {
			return p
		}
	}
	return paths[0]
}

// absolute checks that *p is an absolute path without "..", and makes it clean.
func (ps *problems) absolute(path string, p *string) {
	const fix = `write an absolute path without ".."`
	switch {
	case strings.ContainsRune(*p, 0):
		ps.add(ErrValue, path, fix, "%s has a NUL byte", plainKey(path))
	case !filepath.IsAbs(*p):
		ps.add(ErrValue, path, fix, "%s = %q does not begin with a slash", plainKey(path), *p)
	case slices.Contains(strings.Split(*p, "/"), ".."):
		ps.add(ErrValue, path, fix, "%s = %q goes up with \"..\"", plainKey(path), *p)
	default:
		*p = filepath.Clean(*p)
	}
}

// fileName is absolute for a path, or a template, of a file.
func (ps *problems) fileName(path string, p *string) {
	if strings.HasSuffix(*p, "/") && filepath.IsAbs(*p) {
		ps.add(ErrValue, path, "write the name of a file behind the slash", "%s = %q ends in a slash, as directories do", plainKey(path), *p)
		return
	}
	ps.absolute(path, p)
}

// glob checks a doublestar pattern.
func (ps *problems) glob(path, pattern string) {
	bad := func(fix, why string) {
		ps.add(ErrValue, path, fix, "%s = %q %s", plainKey(path), pattern, why)
	}
	switch {
	case pattern == "":
		bad(`write "**" for everything`, "is empty and matches nothing")
	case !doublestar.ValidatePattern(pattern):
		bad(`write a glob of * ? ** [a-z] {a,b}, with \ before what is meant as it stands`, "is not a glob")
	case pattern[0] == '/':
		bad(fmt.Sprintf("write %q: it is matched against the path below the mount point", strings.TrimLeft(pattern, "/")), "begins with a slash and matches nothing")
	case strings.HasSuffix(pattern, "/"):
		bad(fmt.Sprintf("write %q for all files below", pattern+"**"), "ends in a slash and matches nothing")
	case slices.ContainsFunc(strings.Split(pattern, "/"), func(e string) bool { return e == "." || e == ".." }):
		bad(`write the path below the mount point without "." and ".."`, `has "." or ".." as an element and matches nothing`)
	}
}

func (m *Mount) validate(ps *problems) {
	ps.absolute("mount.point", &m.Point)
	if m.Point == "/" {
		ps.add(ErrValue, "mount.point", `write a directory of its own, such as "/mnt/ftfuse"`, "mount.point is the root directory")
	}
	if m.HolderTimeout != 0 && m.HolderTimeout < minHolder {
		ps.add(ErrValue, "mount.holder_timeout", fmt.Sprintf("write %q or more, or \"0s\" for no holder", minHolder), "mount.holder_timeout = %v is shorter than a worker needs to start", m.HolderTimeout)
	}
	ps.queue("mount.queue", &m.Queue)
	ps.listenAddress("mount.http.listen", m.HTTP.Listen, true)
	validateForwards(ps, "mount", m.Forwards)
	m.validateOutputs(ps)
	for i := range m.Rules {
		m.Rules[i].validate(ps, m.Forwards)
		m.Rules[i].validateOutput(ps, m.Outputs)
	}
}

func (r *Rule) validate(ps *problems, groups []Forward) {
	ps.glob(join(r.key, "path"), r.Path)
	key := join(r.key, "forward")
	if r.Forward != nil && len(r.Forward) == 0 {
		ps.add(ErrValue, key, "remove it for all groups, or write transfer = false", "mount.rule.forward names no group")
	}
	for i, name := range r.Forward {
		if !slices.ContainsFunc(groups, func(f Forward) bool { return f.Name == name }) {
			ps.add(ErrValue, element(key, i), knownGroups(groups), "mount.rule.forward names %q, and no [[mount.forward]] has that name", name)
		} else if slices.Contains(r.Forward[:i], name) {
			ps.add(ErrConflict, element(key, i), "name it once", "mount.rule.forward names %q twice", name)
		}
	}
	r.validateFilter(ps)
	r.validateKept(ps)
	ps.plugin(r.key, &r.Plugin, r.PluginTimeout)
	if key = join(r.key, "plugin_output"); ps.given(key) {
		ps.fileName(key, &r.PluginOutput)
	}
}

// validateKept refuses what is said of sending in a rule that sends nothing.
func (r *Rule) validateKept(ps *problems) {
	if r.Transfer {
		return
	}
	if key := join(r.key, "forward"); ps.given(key) && len(r.Forward) > 0 {
		ps.add(ErrConflict, key, "write transfer = true, or remove forward", "mount.rule.forward names groups, and with transfer = false nothing is sent")
	}
	if key := join(r.key, "attributes"); len(r.Attributes) > 0 && r.Output == "" && len(r.Plugin) == 0 {
		ps.add(ErrConflict, key, "remove attributes, or add output or plugin", "mount.rule.attributes is for records, and with transfer = false, and neither output nor plugin, there are none")
	}
}

func knownGroups(groups []Forward) string {
	var names []string
	for _, f := range groups {
		if f.Name != "" {
			names = append(names, fmt.Sprintf("%q", f.Name))
		}
	}
	if len(names) == 0 {
		return "add [[mount.forward]] with that name"
	}
	return "write " + strings.Join(names, " or ") + ", or add [[mount.forward]] with that name"
}

func validateForwards(ps *problems, role string, all []Forward) {
	for i := range all {
		f := &all[i]
		nameKey := join(f.key, "name")
		_, named := ps.pos[nameKey]
		switch {
		case !named && len(all) > 1:
			ps.add(ErrMissing, f.key, `add name = "…", each group another`, "one of several [[%s.forward]] has no name", role)
		case !named:
			f.Name = "default"
		case f.Name == "":
			ps.add(ErrValue, nameKey, `write name = "colo"`, "%s.forward.name is empty", role)
		case role == "mount" && reservedGroup(f.Name):
			ps.add(ErrValue, nameKey, `write name = "colo"`, "%s.forward.name = %q is kept for what is local", role, f.Name)
		case slices.ContainsFunc(all[:i], func(g Forward) bool { return g.Name == f.Name }):
			ps.add(ErrConflict, nameKey, "give each group another name", "two [[%s.forward]] have the name %q", role, f.Name)
		}
		primary := ps.firstGiven(join(f.key, "primary"), f.key)
		if len(f.Primary) == 0 && !ps.has(primary) {
			ps.add(ErrMissing, primary, `write primary = ["HOST:7401"]`, "%s.forward has no primary destination", role)
		}
		f.validateDestinations(ps, role)
	}
}

func (f *Forward) validateDestinations(ps *problems, role string) {
	if f.Mode == ForwardBroadcast && len(f.Secondary) > len(f.Primary) {
		ps.add(ErrConflict, element(join(f.key, "secondary"), len(f.Primary)), "write at most one for each primary, in the same order",
			"%s.forward has %d secondaries for %d primaries, and with broadcast each stands in for the primary at its position", role, len(f.Secondary), len(f.Primary))
	}
	seen := map[dest.Destination]bool{}
	for _, list := range []struct {
		key  string
		addr []string
	}{{"primary", f.Primary}, {"secondary", f.Secondary}} {
		for j, addr := range list.addr {
			key := element(join(f.key, list.key), j)
			d, ok := ps.destination(key, addr)
			switch {
			case !ok:
			case seen[d]:
				ps.add(ErrConflict, key, "name each destination once", "%s.forward names %q twice", role, addr)
			case d.IsService() && f.Mode == ForwardBroadcast:
				ps.add(ErrConflict, key, `name each destination as "HOST:7401"`, "%s.forward: %q may stand for any number of hosts, and broadcast keeps a backlog for each one", role, addr)
			}
			seen[d] = true
		}
	}
}

func (r *Relay) validate(ps *problems) {
	ps.listenAddress("relay.listen", r.Listen, false)
	r.Listener.validate(ps, "relay")
	ps.queue("relay.queue", &r.Queue)
	ps.listenAddress("relay.http.listen", r.HTTP.Listen, true)
	validateForwards(ps, "relay", r.Forwards)
	for i := range r.Outputs {
		r.Outputs[i].validate(ps)
	}
}

func (r *Receive) validate(ps *problems) {
	ps.listenAddress("receive.listen", r.Listen, false)
	r.Listener.validate(ps, "receive")
	ps.queue("receive.queue", &r.Queue)
	ps.listenAddress("receive.http.listen", r.HTTP.Listen, true)
	for i := range r.Outputs {
		r.Outputs[i].validate(ps)
	}
}

func (l *Listener) validate(ps *problems, role string) {
	key := join(role, "allow")
	if l.Allow == nil {
		return
	}
	if _, given := ps.pos["tls"]; !given {
		ps.add(ErrConflict, key, "add [tls], or remove allow", "%s.allow needs tls: without it nobody knows who a peer is", role)
	}
	if len(l.Allow) == 0 {
		ps.add(ErrValue, key, `write allow = { "relay-a" = ["web-*"] }, or remove it: each host then speaks for itself`, "%s.allow is empty and lets nobody in", role)
	}
	for _, name := range slices.Sorted(maps.Keys(l.Allow)) {
		path := join(key, name)
		if !validName(name) {
			ps.add(ErrValue, path, `write a name as it stands in a certificate, or a glob of such names`, "%s.allow: %q is not a glob", role, name)
		}
		if len(l.Allow[name]) == 0 {
			ps.add(ErrValue, path, `write ["*"] for every host`, "%s.allow: %q may speak for no host", role, name)
		}
		for i, host := range l.Allow[name] {
			if !validName(host) {
				ps.add(ErrValue, element(path, i), `write a host's name, or a glob such as "web-*"`, "%s.allow: %q is not a glob", role, host)
			}
		}
	}
}

// validName reports whether glob can match a name.
func validName(glob string) bool { return glob != "" && doublestar.ValidatePattern(glob) }

func (o *Output) validate(ps *problems) {
	if o.key == "" {
		return // the one of a file without outputs
	}
	ps.glob(join(o.key, "hosts"), o.Hosts)
	ps.glob(join(o.key, "path"), o.Path)
	ps.absolute(join(o.key, "dir"), &o.Dir)
	// A bad time is one problem, wherever %T stands.
	if ps.template(join(o.key, "time"), template.Format, "%T", o.Time) {
		if o.File != "" || len(o.Plugin) == 0 {
			o.validateFile(ps)
		}
		ps.template(join(o.key, "format"), template.Format, o.Format, o.Time)
	}
	ps.plugin(o.key, &o.Plugin, o.PluginTimeout)
}

// template checks a template's directives.
func (ps *problems) template(path string, use template.Use, text, timeFormat string) bool {
	if _, err := template.Compile(use, text, timeFormat); err != nil {
		ps.add(ErrValue, path, "docs/configuration.md lists what may stand in it", "%s: %v", plainKey(path), err)
		return false
	}
	return true
}

// validateFile checks the name of the output's file, which is one for all that a plugin
// prints: no record belongs to it.
func (o *Output) validateFile(ps *problems) {
	key := join(o.key, "file")
	if !ps.template(key, template.File, o.File, o.Time) || len(o.Plugin) == 0 {
		return
	}
	if t, err := template.Compile(template.File, o.File, o.Time); err == nil && t.Fields()&^template.Time != 0 {
		ps.add(ErrConflict, key, "write a name with %T at most, or remove file to throw what the plugin prints away",
			"%s = %q names attributes of records, and what the plugin prints has none", plainKey(key), o.File)
	}
}

// given reports whether the file has the key.
func (ps *problems) given(path string) bool {
	_, ok := ps.pos[path]
	return ok
}

// plugin checks what the section at key says of a plugin, and makes an empty command line nil.
func (ps *problems) plugin(key string, p *[]string, timeout time.Duration) {
	path := join(key, "plugin")
	if len(*p) == 0 {
		*p = nil
		for _, name := range []string{"plugin_output", "plugin_ack", "plugin_timeout"} {
			if k := join(key, name); ps.given(k) {
				ps.add(ErrMissing, k, fmt.Sprintf("add plugin = [\"/COMMAND\"], or remove %s", name), "%s is given without a plugin", plainKey(k))
			}
		}
		return
	}
	if timeout != 0 && timeout < minPlugin {
		ps.add(ErrValue, join(key, "plugin_timeout"), fmt.Sprintf("write %q or more, or \"0s\" for none", minPlugin), "%s = %v is shorter than a program may need to be started", plainKey(join(key, "plugin_timeout")), timeout)
	}
	for i, arg := range *p {
		if strings.ContainsRune(arg, 0) {
			ps.add(ErrValue, element(path, i), "remove it", "%s has a NUL byte", plainKey(path))
		}
	}
	if name := (*p)[0]; !filepath.IsAbs(name) {
		ps.add(ErrValue, path, `begin with the absolute path of the program, such as "/usr/bin/grep"`, "%s begins with %q, which is not an absolute path", plainKey(path), name)
	}
}
