package k2hft

import (
	"fmt"
	"strings"
)

// writer writes TOML with comments.
type writer struct {
	b     strings.Builder
	notes int // comments about what has no counterpart

	plugins map[string]bool // files that rules name: whether it is a plugin that writes them
}

// apart returns the name of a rule's file, or another one where that is taken: ftfuse has no file
// that both lines and what a plugin prints go to.
func (w *writer) apart(name string, plugin bool, e *entry) string {
	if w.plugins == nil {
		w.plugins = map[string]bool{}
	}
	for {
		was, taken := w.plugins[name]
		if !taken || was == plugin {
			w.plugins[name] = plugin
			return name
		}
		name += ".2"
		w.none(e, "lines and what a plugin prints go to one file with K2HFTFUSE; here to one each")
	}
}

// text returns s as a TOML string.
func text(s string) string {
	plain := !strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f || r == '\'' || r == 0xfffd })
	if plain && strings.ContainsAny(s, `\"`) {
		return "'" + s + "'"
	}
	var b strings.Builder
	b.WriteByte('"')
	for _, r := range strings.ToValidUTF8(s, "\ufffd") {
		switch {
		case r == '"' || r == '\\':
			b.WriteByte('\\')
			b.WriteRune(r)
		case r < ' ' || r == 0x7f:
			fmt.Fprintf(&b, `\u%04X`, r)
		default:
			b.WriteRune(r)
		}
	}
	b.WriteByte('"')
	return b.String()
}

// list returns all as a TOML array of strings.
func list(all []string) string {
	quoted := make([]string, len(all))
	for i, s := range all {
		quoted[i] = text(s)
	}
	return "[" + strings.Join(quoted, ", ") + "]"
}

// table begins [name] or [[name]].
func (w *writer) table(head string) { fmt.Fprintf(&w.b, "\n%s\n", head) }

// key writes a line, and behind it where it is from.
func (w *writer) key(name, value string, from ...*entry) {
	line := name + " = " + value
	var where []string
	for _, e := range from {
		if e != nil {
			e.said = true
			where = append(where, e.where())
		}
	}
	if len(where) > 0 {
		line += "   # " + strings.Join(where, "; ")
	}
	w.b.WriteString(line + "\n")
}

// say writes a comment.
func (w *writer) say(format string, args ...any) { w.comment("# ", fmt.Sprintf(format, args...)) }

// none writes a comment about an entry that has no counterpart, or another one than it
// may seem.
func (w *writer) none(e *entry, format string, args ...any) {
	w.notes++
	what := ""
	if e != nil {
		e.said = true
		what = fmt.Sprintf("%s = %s (%s): ", e.key, e.value, e.place())
	}
	w.comment("# NOTE ", what+fmt.Sprintf(format, args...))
}

// comment writes text in lines of at most about 100 characters.
func (w *writer) comment(lead, text string) {
	text = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, text)
	line := lead
	for i, word := range strings.Split(text, " ") {
		if i > 0 && len(line)+len(word) > 100 {
			w.b.WriteString(strings.TrimRight(line, " ") + "\n")
			line = "#   "
		}
		line += word + " "
	}
	w.b.WriteString(strings.TrimRight(line, " ") + "\n")
}
