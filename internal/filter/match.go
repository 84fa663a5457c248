package filter

import (
	"bytes"
	"regexp"
	"regexp/syntax"
	"unicode/utf8"
)

// matcher tells whether a line matches an entry. Most patterns need some literal: a line
// without it is done with at the speed of bytes.Index, which is a hundred times that of the
// regular expression.
type matcher struct {
	pattern  *regexp.Regexp // nil: any of the literals is a match
	literals []needle       // a match has one of them at least; none: nothing is known
	replace  *Rewrite
}

// needle is bytes that are looked for.
type needle struct {
	text []byte
	fold bool // ASCII letters in either case; text is in lower case
}

func (l *needle) in(line []byte) bool {
	if !l.fold {
		return bytes.Contains(line, l.text)
	}
	first, n := l.text[0], len(l.text)
	for i := 0; i+n <= len(line); i++ {
		if lower[line[i]] == first && equalFold(line[i:i+n], l.text) {
			return true
		}
	}
	return false
}

func equalFold(s, text []byte) bool {
	for i, c := range s {
		if lower[c] != text[i] {
			return false
		}
	}
	return true
}

// lower has ASCII letters in lower case, and all other bytes as they are.
var lower = func() (t [256]byte) {
	for i := range t {
		t[i] = byte(i)
		if i >= 'A' && i <= 'Z' {
			t[i] += 'a' - 'A'
		}
	}
	return t
}()

func newMatcher(e Entry) matcher {
	m := matcher{pattern: e.Pattern}
	if e.Pattern == nil {
		m.literals = []needle{{text: []byte(e.Literal)}}
	} else if re, err := syntax.Parse(e.Pattern.String(), syntax.Perl); err == nil {
		need := needs(re)
		m.literals = need.any
		if need.exact && len(need.any) > 0 {
			m.pattern = nil
		}
	}
	if e.Replace != nil {
		m.replace = newRewrite(e)
	}
	return m
}

func (m *matcher) match(line []byte) bool {
	if len(m.literals) == 0 {
		return m.pattern.Match(line)
	}
	for i := range m.literals {
		if m.literals[i].in(line) {
			return m.pattern == nil || m.pattern.Match(line)
		}
	}
	return false
}

// need is what a regular expression needs: every match has one of the literals at least.
type need struct {
	any   []needle // empty: nothing is known
	exact bool     // whatever has one of them matches
}

// maxLiterals is how many are worth looking for one after the other.
const maxLiterals = 16

func needs(re *syntax.Regexp) need {
	switch re.Op {
	case syntax.OpLiteral:
		return literal(re)
	case syntax.OpCapture, syntax.OpPlus:
		return needs(re.Sub[0])
	case syntax.OpRepeat:
		if re.Min > 0 {
			return need{any: needs(re.Sub[0]).any, exact: false}
		}
	case syntax.OpConcat:
		return bestOf(re.Sub)
	case syntax.OpAlternate:
		return anyOf(re.Sub)
	}
	return need{}
}

// literal: its runes stand in a line as their UTF-8 and nowhere else, but for U+FFFD, which
// bytes that are none of UTF-8 match too.
func literal(re *syntax.Regexp) need {
	if re.Flags&syntax.FoldCase != 0 {
		return foldLiteral(re.Rune)
	}
	var b []byte
	for _, r := range re.Rune {
		if r == utf8.RuneError {
			return need{}
		}
		b = utf8.AppendRune(b, r)
	}
	return need{any: []needle{{text: b}}, exact: true}
}

// foldLiteral is the longest part that has no other spellings than those of ASCII: k and s are
// also the Kelvin sign and the long s.
func foldLiteral(runes []rune) need {
	var best, part []byte
	for _, r := range runes {
		c := byte('k')
		if r < utf8.RuneSelf {
			c = lower[byte(r)]
		}
		if c == 'k' || c == 's' {
			part = nil
			continue
		}
		if part = append(part, c); len(part) > len(best) {
			best = part
		}
	}
	if len(best) == 0 {
		return need{}
	}
	return need{any: []needle{{text: best, fold: true}}}
}

// bestOf is what one of the parts of a sequence needs: the one whose shortest literal is the
// longest.
func bestOf(parts []*syntax.Regexp) need {
	var best []needle
	for _, p := range parts {
		if n := needs(p).any; shortest(n) > shortest(best) {
			best = n
		}
	}
	return need{any: best}
}

func shortest(all []needle) int {
	if len(all) == 0 {
		return 0
	}
	n := len(all[0].text)
	for _, l := range all {
		n = min(n, len(l.text))
	}
	return n
}

func anyOf(parts []*syntax.Regexp) need {
	all := need{exact: true}
	for _, p := range parts {
		n := needs(p)
		if len(n.any) == 0 || len(all.any)+len(n.any) > maxLiterals {
			return need{}
		}
		all.any = append(all.any, n.any...)
		all.exact = all.exact && n.exact
	}
	return all
}
