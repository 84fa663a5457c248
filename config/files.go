package config

import (
	"path"
	"path/filepath"
	"reflect"
	"strings"

	"ftfuse/internal/template"
)

// written is a file, or a template of files, that a role writes.
type written struct {
	key, what string
	path      string  // or what stands for a template
	plugin    bool    // by what the standard output of a plugin is
	output    *Output // else
}

// validateFiles refuses a file that two write each in its own way: an output and the standard
// output of a plugin, whose bytes would stand between those that the output counts, and two
// outputs of which one says that it is rotated, or who owns it, and the other something else. Only
// what is sure to be one file is found.
func (c *Config) validateFiles(ps *problems) {
	for _, all := range c.writtenFiles() {
		for i := range all {
			for j := range all[:i] {
				ps.files(&all[j], &all[i])
			}
		}
	}
}

// files refuses b beside a.
func (ps *problems) files(a, b *written) {
	switch line := ps.pos.line(a.key); {
	case a.path != b.path:
	case a.plugin != b.plugin:
		ps.add(ErrConflict, b.key, "write another file for one of them", "%s and %s (line %d) both write %s", b.what, a.what, line, b.shown())
	case a.plugin: // each appends what it prints
	case a.output.Rotate != b.output.Rotate || !reflect.DeepEqual(a.output.Files, b.output.Files):
		ps.add(ErrConflict, b.key, "write the same rotate, mode, dir_mode, uid and gid in both, or another file",
			"%s and %s (line %d) both write %s, and say different things of it", b.what, a.what, line, b.shown())
	}
}

func (w *written) shown() string {
	name, _, _ := strings.Cut(w.path, "\x00")
	return name
}

// writtenFiles returns what each role writes, as far as it can be told of two whether they are one.
func (c *Config) writtenFiles() [][]written {
	var roles [][]written
	if c.Mount != nil {
		roles = append(roles, append(writtenBy("mount", c.Mount.Outputs), c.Mount.writtenByRules()...))
	}
	if c.Relay != nil {
		roles = append(roles, writtenBy("relay", c.Relay.Outputs))
	}
	if c.Receive != nil {
		roles = append(roles, writtenBy("receive", c.Receive.Outputs))
	}
	return roles
}

func writtenBy(role string, list []Output) (all []written) {
	for i := range list {
		o := &list[i]
		if name, ok := o.fileName(role == "mount"); ok && o.key != "" {
			all = append(all, written{key: o.key, what: role + ".output", path: name, plugin: len(o.Plugin) > 0, output: o})
		}
	}
	return all
}

// fileName returns what tells o's file from others. false: it writes none, or two outputs with the
// same template need not have a file in common, since it names what records have and o gets those
// that its hosts and path, or its rules, let come to it.
func (o *Output) fileName(byRule bool) (string, bool) {
	t, err := template.Compile(template.File, o.File, o.Time)
	if err != nil || o.File == "" {
		return "", false
	}
	if text, ok := t.Literal(); ok {
		return path.Join(o.Dir, text), true
	}
	name := path.Join(o.Dir, o.File) + "\x00" + o.Time
	if t.Fields()&^template.Time == 0 {
		return name, true
	}
	return name + "\x00" + o.Hosts + "\x00" + o.Path, !byRule
}

// writtenByRules returns the files that rules name themselves.
func (m *Mount) writtenByRules() (all []written) {
	for i := range m.Rules {
		r := &m.Rules[i]
		if filepath.IsAbs(r.Output) {
			o := DefaultOutput()
			o.Dir, o.File = r.OutputPath()
			if name, ok := o.fileName(true); ok {
				all = append(all, written{key: join(r.key, "output"), what: "mount.rule.output", path: name, output: &o})
			}
		}
		if r.PluginOutput != "" {
			all = append(all, written{key: join(r.key, "plugin_output"), what: "mount.rule.plugin_output", path: r.PluginOutput, plugin: true})
		}
	}
	return all
}
