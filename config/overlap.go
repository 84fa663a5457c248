package config

import (
	"os"
	"path/filepath"
	"strings"
)

// place is a path of the configuration that ftfuse opens or writes below.
type place struct {
	key    string
	what   string
	path   string // absolute and clean
	open   bool   // a directory below which names from elsewhere appear
	output bool   // records are written there
}

// validateOverlap refuses paths that reach into each other. ftfuse must never open a
// file of its own mount (the daemon would wait for itself), and what arrives in an
// output must not be able to name the files of a queue. Paths that are wrong in
// themselves are left out: they have their own problem.
func (c *Config) validateOverlap(ps *problems) {
	places := c.places()
	r := resolver{}
	if c.Mount != nil && usable(c.Mount.Point) && c.Mount.Point != "/" {
		r.stop = r.both(c.Mount.Point)
		c.validateAgainstMount(ps, &r, places)
	}
	if !usable(c.StateDir) {
		return
	}
	state := r.both(c.StateDir)
	for _, p := range places {
		if !p.output {
			continue
		}
		both := r.both(p.path)
		if p.open && anyBelow(state, both) {
			ps.add(ErrConflict, p.key, "write another directory, or move state_dir", "%s %s has state_dir %s in it: what arrives could overwrite the queues", p.what, p.path, c.StateDir)
			continue
		}
		for _, role := range Roles() {
			if anyBelow(both, r.both(c.RoleDir(role))) {
				ps.add(ErrConflict, p.key, "write another directory", "%s %s lies in %s, which belongs to the %s role", p.what, p.path, c.RoleDir(role), role)
				break
			}
		}
	}
}

// validateAgainstMount refuses what lies below the mount point, and a mount point
// inside of what is not the mount's.
func (c *Config) validateAgainstMount(ps *problems, r *resolver, places []place) {
	for _, p := range places {
		both := r.both(p.path)
		switch {
		case anyBelow(both, r.stop):
			ps.add(ErrConflict, p.key, "write a path outside of "+c.Mount.Point, "%s %s lies below the mount point %s: ftfuse would wait for itself", p.what, p.path, c.Mount.Point)
		case !p.open || !anyBelow(r.stop, both):
		case p.output:
			ps.add(ErrConflict, p.key, "write another directory", "%s %s has the mount point %s in it: what is written there could land in the mount", p.what, p.path, c.Mount.Point)
		default:
			ps.add(ErrConflict, "mount.point", "write a mount point outside of "+p.path, "mount.point %s lies in %s %s", c.Mount.Point, p.what, p.path)
		}
	}
}

func usable(path string) bool { return filepath.IsAbs(path) && filepath.Clean(path) == path }

// places returns every path that a role opens.
func (c *Config) places() []place {
	var all []place
	add := func(p place) {
		if usable(p.path) {
			all = append(all, p)
		}
	}
	add(place{key: "state_dir", what: "state_dir", path: c.StateDir, open: true})
	if abs, err := filepath.Abs(c.File); err == nil && c.File != "" {
		add(place{what: "this file", path: abs})
	}
	add(place{key: "tls.cert", what: "tls.cert", path: c.TLS.Cert})
	add(place{key: "tls.key", what: "tls.key", path: c.TLS.Key})
	add(place{key: "tls.ca", what: "tls.ca", path: c.TLS.CA})
	if c.Mount != nil {
		for i := range c.Mount.Rules {
			r := &c.Mount.Rules[i]
			dir, open := fixedPart(r.Output) // a name is no path
			add(place{join(r.key, "output"), "mount.rule.output", dir, open, true})
			add(place{key: join(r.key, "plugin_output"), what: "mount.rule.plugin_output", path: r.PluginOutput, output: true})
			addPlugin(add, r.key, "mount.rule.plugin", r.Plugin)
		}
	}
	outputs := func(role string, list []Output) {
		for i := range list {
			o := &list[i]
			dir, open := fixedPart(o.File)
			if key := join(o.key, "dir"); o.key != "" {
				add(place{key, role + ".output", filepath.Join(o.Dir, dir), open, true})
			} else {
				add(place{role, "the default dir of " + role + ".output", filepath.Join(o.Dir, dir), open, true})
			}
			addPlugin(add, o.key, role+".output.plugin", o.Plugin)
		}
	}
	if c.Mount != nil {
		outputs("mount", c.Mount.Outputs)
	}
	if c.Relay != nil {
		outputs("relay", c.Relay.Outputs)
	}
	if c.Receive != nil {
		outputs("receive", c.Receive.Outputs)
	}
	return all
}

func addPlugin(add func(place), key, what string, plugin []string) {
	if len(plugin) > 0 {
		add(place{key: join(key, "plugin"), what: "the program of " + what, path: plugin[0]})
	}
}

// fixedPart returns what every name that the file template renders has in front, and
// whether more follows it.
func fixedPart(text string) (dir string, open bool) {
	i := strings.IndexByte(text, '%')
	if i < 0 {
		return text, false
	}
	dir = text[:strings.LastIndexByte(text[:i], '/')+1]
	if dir == "/" {
		return dir, true
	}
	return strings.TrimSuffix(dir, "/"), true
}

// below reports whether path is dir or lies in it.
func below(path, dir string) bool {
	return path == dir || strings.HasPrefix(path, strings.TrimSuffix(dir, "/")+"/")
}

func anyBelow(paths, dirs []string) bool {
	for _, p := range paths {
		for _, d := range dirs {
			if below(p, d) {
				return true
			}
		}
	}
	return false
}

// resolver follows symbolic links as far as a path exists, without ever asking about
// anything at or below one of stop: a mount there may have a daemon that is dead or
// that waits for this very process.
type resolver struct {
	stop []string
}

// both returns path as written and as resolved.
func (r *resolver) both(path string) []string {
	if resolved := r.resolve(path); resolved != path {
		return []string{path, resolved}
	}
	return []string{path}
}

// maxLinks is the kernel's limit (path_resolution(7)).
const maxLinks = 40

func (r *resolver) resolve(path string) string {
	done, todo := "/", strings.Split(path, "/")
	for links := 0; len(todo) > 0; {
		name := todo[0]
		todo = todo[1:]
		switch name {
		case "", ".":
			continue
		case "..":
			done = filepath.Dir(done)
			continue
		}
		next := filepath.Join(done, name)
		if anyBelow([]string{next}, r.stop) {
			return filepath.Join(append([]string{next}, todo...)...)
		}
		// readlink(2) of a mount point is answered by the kernel (EINVAL: a directory)
		// without a word to its file system, where stat(2) would ask it.
		target, err := os.Readlink(next)
		if err != nil || links == maxLinks {
			done = next
			continue
		}
		links++
		if filepath.IsAbs(target) {
			done = "/"
		}
		todo = append(strings.Split(target, "/"), todo...)
	}
	return done
}
