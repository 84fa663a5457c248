package k2hft

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
)

// parseINI reads sections of KEY = VALUE lines, which may be repeated, and INCLUDE = FILE.
// within are the files that are being read.
func (d *document) parseINI(name string, text []byte, open func(string) ([]byte, error), within []string) error {
	if slices.Contains(within, name) {
		return fmt.Errorf("%s: %w: it includes itself", name, ErrSyntax)
	}
	if err := d.spend(len(text)); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	within = append(within, name)
	n := 0
	for line := range strings.Lines(string(text)) {
		n++
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		if line[0] == '[' && line[len(line)-1] == ']' && !strings.Contains(line, "=") {
			d.sections = append(d.sections, &section{name: strings.ToUpper(strings.TrimSpace(line[1 : len(line)-1])), line: n})
			continue
		}
		key, value, _ := strings.Cut(line, "=")
		key, value = strings.ToUpper(strings.Trim(strings.TrimSpace(key), `"'`)), strings.TrimSpace(value)
		if key == "INCLUDE" {
			if err := d.include(name, unquote(value), open, within); err != nil {
				return err
			}
			continue
		}
		if len(d.sections) == 0 {
			return fmt.Errorf("%s:%d: %w: %q stands before the first [SECTION]", name, n, ErrSyntax, line)
		}
		e := &entry{key: key, line: n}
		if len(within) > 1 {
			e.file = name
		}
		if key == "ALLOW" || key == "DENY" {
			e.value = value
			e.filter = iniPattern(value)
		} else {
			e.value = unquote(value)
		}
		s := d.sections[len(d.sections)-1]
		s.entries = append(s.entries, e)
	}
	return nil
}

// include reads another file in this one's place: as it is named, or beside this one.
func (d *document) include(from, name string, open func(string) ([]byte, error), within []string) error {
	text, err := open(name)
	if err != nil && !filepath.IsAbs(name) {
		name = filepath.Join(filepath.Dir(from), name)
		text, err = open(name)
	}
	if err != nil {
		return fmt.Errorf("%s: INCLUDE: %w", from, err)
	}
	return d.parseINI(name, text, open, within)
}

// unquote takes the quotes off a value, or a comment behind it.
func unquote(v string) string {
	if v == "" {
		return v
	}
	if q := v[0]; q == '"' || q == '\'' {
		if end := strings.LastIndexByte(v[1:], q); end >= 0 {
			v = v[1 : 1+end]
			if q == '"' {
				v = strings.ReplaceAll(v, `\"`, `"`)
			}
			return v
		}
	}
	if at := strings.IndexAny(v, " \t"); at >= 0 {
		if hash := strings.Index(v, "#"); hash > 0 && (v[hash-1] == ' ' || v[hash-1] == '\t') {
			v = strings.TrimSpace(v[:hash])
		}
	}
	return v
}

// iniPattern reads a literal, or "REGEX" and, behind a comma, "REPLACEMENT".
func iniPattern(v string) *pattern {
	first, rest, ok := quoted(v)
	if !ok {
		return &pattern{text: unquote(v)}
	}
	p := &pattern{text: first, regex: true}
	if rest = strings.TrimSpace(rest); strings.HasPrefix(rest, ",") {
		if second, _, ok := quoted(strings.TrimSpace(rest[1:])); ok {
			p.replace = &second
		}
	}
	return p
}

// quoted returns what stands in the double quotes that v begins with, \" as a quote and all
// else as it is, and what follows. A quote inside that is not followed by a comma, a comment
// or the end does not end it.
func quoted(v string) (text, rest string, ok bool) {
	if v == "" || v[0] != '"' {
		return "", v, false
	}
	var b strings.Builder
	for i := 1; i < len(v); i++ {
		switch {
		case v[i] == '\\' && i+1 < len(v):
			if v[i+1] != '"' {
				b.WriteByte('\\')
			}
			i++
			b.WriteByte(v[i])
		case v[i] == '"' && ends(v[i+1:]):
			return b.String(), v[i+1:], true
		default:
			b.WriteByte(v[i])
		}
	}
	return "", v, false
}

func ends(rest string) bool {
	rest = strings.TrimLeft(rest, " \t")
	return rest == "" || rest[0] == ',' || rest[0] == '#'
}
