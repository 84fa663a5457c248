package k2hft

import (
	"errors"
	"strings"
	"unicode/utf8"
)

// errEncoding is why bytes of a K2HFTFUSE configuration cannot stand in one of ours.
var errEncoding = errors.New("not UTF-8 (EUC-JP or Shift_JIS, perhaps), as TOML and RE2 are")

// errLines is why a text that no line can have in it is no filter.
var errLines = errors.New("a line feed in it, which no line has")

// filters writes default, allow and deny. K2HFTFUSE uses ALLOW where the default is to
// deny, and DENY where it is to allow; an empty one is every line, and the first that
// matches decides.
func (w *writer) filters(s *section) {
	def := s.get("DEFAULTALL")
	allowing := strings.EqualFold(s.value("DEFAULTALL"), "ALLOW")
	used, ignored := "ALLOW", "DENY"
	if allowing {
		used, ignored = ignored, used
	}
	var list []string
	every, lax := false, false // an empty one takes every line; one could not be converted
	for _, e := range s.entries {
		switch {
		case e.filter == nil:
		case e.key == ignored:
			w.none(e, "ignored, as K2HFTFUSE does: with DEFAULTALL = %s only %s counts", defaultAll(allowing), used)
		case every:
			w.none(e, "never reached: an empty %s before it takes every line", used)
		case e.filter.text == "":
			e.said, every = true, true
		default:
			item, ok := w.filter(e)
			if !ok {
				lax = lax || !allowing
				continue
			}
			list = append(list, item)
		}
	}
	verdict := "deny"
	if allowing != every || lax {
		verdict = "allow"
	}
	w.key("default", text(verdict), def)
	if every && def != nil {
		w.say("DEFAULTALL = %s with an %s that takes every line.", defaultAll(allowing), used)
	}
	if def == nil && verdict == "deny" && len(list) == 0 {
		w.none(nil, "without DEFAULTALL and ALLOW K2HFTFUSE passes no line at all; it is likely that default = \"allow\" was meant")
	}
	if len(list) > 0 {
		w.b.WriteString(strings.ToLower(used) + " = [\n" + strings.Join(list, "") + "]\n")
	}
}

func defaultAll(allowing bool) string {
	if allowing {
		return "ALLOW"
	}
	return "DENY"
}

// filter returns one entry of a list. false: it has none, and what it would have let
// through must be let through.
func (w *writer) filter(e *entry) (string, bool) {
	e.said = true
	p := e.filter
	r, err := rewriting(p)
	if !utf8.ValidString(p.text) || p.replace != nil && !utf8.ValidString(*p.replace) {
		err = errEncoding
	}
	if err == nil && strings.ContainsRune(r.literal, '\n') {
		err = errLines
	}
	if e.key == "DENY" && err == nil {
		if p.regex {
			r.match, _, _ = toRE2(p.text)
		}
		r.replace = nil
	}
	if err != nil {
		if e.key == "DENY" {
			w.none(e, "%v: left out, so that lines pass that it kept back", err)
		} else {
			w.none(e, "%v: every line is let through instead, so that none is lost", err)
		}
		return "", false
	}
	if p.guessed {
		w.none(e, "taken for a regular expression, as the samples of K2HFTFUSE mean it; its loader takes it for one only with double quotes inside the value")
	}
	item := "match = " + text(r.match)
	if r.literal != "" {
		item = "literal = " + text(r.literal)
	}
	if r.replace != nil {
		item += ", replace = " + text(*r.replace)
	}
	if r.replace != nil && p.replace == nil {
		w.say("%s: K2HFTFUSE passes on only what the expression matched; without replace it would be the whole line.", e.where())
	}
	if r.replace != nil && strings.Contains(p.text, "|") {
		w.say("%s: where several branches match, RE2 takes the first, POSIX the longest.", e.where())
	}
	return "  { " + item + " },   # " + e.where() + "\n", true
}
