package config

import (
	"fmt"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"ftfuse/internal/template"
)

// Files is who owns the files and directories that an output makes, and who may use them.
// What is nil is as the kernel makes it: 0644 and 0755 less the umask, of the process's user
// and group. What is given holds exactly, whatever the umask.
type Files struct {
	Mode    *uint32
	DirMode *uint32
	UID     *uint32
	GID     *uint32
}

func (f *Files) decode(t *table) {
	f.Mode = t.mode("mode", 0o600, "0644")
	f.DirMode = t.mode("dir_mode", 0o700, "0755")
	f.UID = t.id("uid")
	f.GID = t.id("gid")
}

// mode reads octal permission bits, which must have those of need.
func (t *table) mode(key string, need uint32, example string) *uint32 {
	var text string
	if !t.str(key, example, &text) {
		return nil
	}
	n, err := strconv.ParseUint(text, 8, 32)
	switch {
	case err != nil || n > 0o7777:
		t.ps.add(ErrValue, t.key(key), fmt.Sprintf("write octal digits, such as %q", example), "%s = %q is not permission bits", plainKey(t.key(key)), text)
		return nil
	case uint32(n)&need != need:
		t.ps.add(ErrValue, t.key(key), fmt.Sprintf("add 0%o, as in %q", need, example), "%s = %q keeps the owner out, and ftfuse has to come back to what it made", plainKey(t.key(key)), text)
		return nil
	}
	mode := uint32(n)
	return &mode
}

// reservedGroup reports whether a group's name would be taken for another member of a route;
// see mount.
func reservedGroup(name string) bool {
	return name == "*" || strings.HasPrefix(name, "output/") || strings.HasPrefix(name, "plugin/")
}

// validateOutputs checks the outputs that rules name.
func (m *Mount) validateOutputs(ps *problems) {
	for i := range m.Outputs {
		o := &m.Outputs[i]
		key := join(o.key, "name")
		switch {
		case !ps.given(key):
			ps.add(ErrMissing, o.key, `add name = "…", and output = "…" with it to a rule`, "a [[mount.output]] has no name, so that no rule can have it")
		case o.Name == "" || strings.Contains(o.Name, "/"):
			ps.add(ErrValue, key, `write a name without a slash, such as "copies"`, "mount.output.name = %q is not a name", o.Name)
		case slices.ContainsFunc(m.Outputs[:i], func(p Output) bool { return p.Name == o.Name }):
			ps.add(ErrConflict, key, "give each output another name", "two [[mount.output]] have the name %q", o.Name)
		}
		if len(o.Plugin) > 0 {
			ps.add(ErrConflict, join(o.key, "plugin"), "write plugin in the rule, and plugin_output with it", "mount.output has a plugin: on a mount plugins are the rules'")
		}
		o.validate(ps)
	}
}

// validateOutput checks what a rule says of its output: the name of one of all, or a template.
func (r *Rule) validateOutput(ps *problems, all []Output) {
	key := join(r.key, "output")
	if !ps.given(key) {
		return
	}
	if !path.IsAbs(r.Output) {
		if !slices.ContainsFunc(all, func(o Output) bool { return o.Name == r.Output }) {
			ps.add(ErrValue, key, "write a template that begins with a slash, or the name of a [[mount.output]]",
				"mount.rule.output = %q does not begin with a slash, and no [[mount.output]] has that name", r.Output)
		}
		return
	}
	if ps.fileName(key, &r.Output); filepath.IsAbs(r.Output) && !strings.HasSuffix(r.Output, "/") {
		ps.template(key, template.File, strings.TrimLeft(r.Output, "/"), DefaultOutput().Time)
	}
}

// OutputPath splits the template that is the rule's output into the directory that every name has
// in front, and the template of the name below it.
func (r *Rule) OutputPath() (dir, file string) {
	dir, open := fixedPart(r.Output)
	if !open {
		return path.Dir(r.Output), path.Base(r.Output)
	}
	return dir, strings.TrimPrefix(r.Output[len(dir):], "/")
}

// RuleOutputs are the outputs that the rules have, each once: those with a name first, then
// for each template one with it for a name.
func (m *Mount) RuleOutputs() []Output {
	var all []Output
	for i := range m.Outputs {
		if slices.ContainsFunc(m.Rules, func(r Rule) bool { return r.Output == m.Outputs[i].Name }) {
			all = append(all, m.Outputs[i])
		}
	}
	for i := range m.Rules {
		r := &m.Rules[i]
		if !path.IsAbs(r.Output) || slices.ContainsFunc(all, func(o Output) bool { return o.Name == r.Output }) {
			continue
		}
		o := DefaultOutput()
		o.Name = r.Output
		o.Dir, o.File = r.OutputPath()
		all = append(all, o)
	}
	return all
}
