package config

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// decodeAttributes reads what records are to tell of their writers.
func decodeAttributes(t *table) (all []Attribute) {
	var names []string
	if !t.strings("attributes", `["exe", "cgroup"]`, &names) {
		return nil
	}
	key := t.key("attributes")
	for i, name := range names {
		switch a := Attribute(name); {
		case a != AttributeExe && a != AttributeCgroup:
			t.ps.add(ErrValue, element(key, i), `write "exe" or "cgroup"; host, pid, uid, gid, time and path are always there`, "%s names %q", plainKey(key), name)
		case slices.Contains(all, a):
			t.ps.add(ErrConflict, element(key, i), "name it once", "%s names %q twice", plainKey(key), name)
		default:
			all = append(all, a)
		}
	}
	return all
}

func decodeFilters(t *table, key string, replace bool) []Filter {
	var all []Filter
	for _, s := range t.subs(key) {
		var f Filter
		var match, with string
		_, hasMatch := s.m["match"]
		_, hasLiteral := s.m["literal"]
		s.str("literal", "[error]", &f.Literal)
		switch {
		case hasMatch && hasLiteral:
			t.ps.add(ErrConflict, s.key("literal"), "write two entries", "%s has both match and literal", plainKey(s.path))
		case hasLiteral && f.Literal == "" && !t.ps.has(s.key("literal")):
			t.ps.add(ErrValue, s.key("literal"), "write what lines have that it is about", "%s is empty", plainKey(s.key("literal")))
		case strings.ContainsRune(f.Literal, '\n'):
			t.ps.add(ErrValue, s.key("literal"), "write an entry for each line", "%s = %q has a line feed, and no line has one in it", plainKey(s.key("literal")), f.Literal)
		case !hasMatch && !hasLiteral:
			t.ps.add(ErrMissing, s.path, `write { match = "…" } or { literal = "…" }`, "%s has no match", plainKey(s.path))
		}
		if !s.str("match", "ERROR|WARN", &match) {
			// a literal, or refused already
		} else if re, err := regexp.Compile(match); err != nil {
			t.ps.add(ErrValue, s.key("match"), "see https://pkg.go.dev/regexp/syntax for what RE2 takes", "%s is not a regular expression: %v", plainKey(s.key("match")), err)
		} else {
			f.Match = re
		}
		if replace && s.str("replace", "user=$1", &with) {
			f.Replace = &with
		}
		s.done()
		all = append(all, f)
	}
	return all
}

// validateFilter checks what says which lines of a rule are kept.
func (r *Rule) validateFilter(ps *problems) {
	for i := range r.Allow {
		r.Allow[i].validate(ps, element(join(r.key, "allow"), i))
	}
	_, bounded := ps.pos[join(r.key, "max_record")]
	if r.Mode != ModeBinary {
		if bounded {
			ps.add(ErrConflict, join(r.key, "max_record"), `write mode = "binary", or remove it; max_line is for lines`, "mount.rule.max_record is for mode = %q, and this rule has %q", ModeBinary, r.Mode)
		}
		return
	}
	if key := join(r.key, "max_line"); ps.given(key) {
		ps.add(ErrConflict, key, `write mode = "line", or remove it; max_record is for binary records`, "mount.rule.max_line is for lines, and mode = %q has none", r.Mode)
	}
	for _, key := range []string{"allow", "deny"} {
		if key == "allow" && len(r.Allow) > 0 || key == "deny" && len(r.Deny) > 0 {
			ps.add(ErrConflict, join(r.key, key), `write mode = "line", or remove it`, "mount.rule.%s looks at lines, and mode = %q has none", key, r.Mode)
		}
	}
	if r.Default != VerdictAllow {
		ps.add(ErrConflict, join(r.key, "default"), `write transfer = false to keep all of it here`, "mount.rule.default is for lines, and mode = %q has none", r.Mode)
	}
}

// idleAllow reports whether the rule allows what is allowed anyway, and does nothing else
// with it.
func (r *Rule) idleAllow() bool {
	return len(r.Allow) > 0 && r.Default == VerdictAllow && !slices.ContainsFunc(r.Allow, func(f Filter) bool { return f.Replace != nil })
}

// reference finds what Regexp.Expand takes for the name of a group.
var reference = regexp.MustCompile(`\$(?:\$|(\w+)|\{(\w+)\})`)

// validate refuses a replacement that names a group which match does not have: it
// would put nothing there, in silence.
func (f *Filter) validate(ps *problems, path string) {
	if f.Match == nil || f.Replace == nil {
		return
	}
	for _, m := range reference.FindAllStringSubmatch(*f.Replace, -1) {
		name := m[1] + m[2]
		if name == "" || slices.Contains(f.Match.SubexpNames(), name) {
			continue
		}
		digits := name[:len(name)-len(strings.TrimLeft(name, "0123456789"))]
		if digits == name && atMost(digits, f.Match.NumSubexp()) {
			continue
		}
		fix := fmt.Sprintf("match has the groups 0 to %d; write $$ for a dollar sign", f.Match.NumSubexp())
		if digits != "" && digits != name {
			fix = fmt.Sprintf("write ${%s}%s", digits, name[len(digits):])
		}
		ps.add(ErrValue, join(path, "replace"), fix, "%s = %q names the group %q, which match does not have", plainKey(join(path, "replace")), *f.Replace, name)
	}
}

func atMost(digits string, limit int) bool {
	n := 0
	for _, d := range digits {
		if n = n*10 + int(d-'0'); n > limit {
			return false
		}
	}
	return true
}
