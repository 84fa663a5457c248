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
	literals [][]byte       // a match has one of them at least; none: nothing is known
	replace  *Rewrite
}

func newMatcher(e Entry) matcher {
	m := matcher{pattern: e.Pattern}
	if e.Pattern == nil {
		m.literals = [][]byte{[]byte(e.Literal)}
	} else if re, err := syntax.Parse(e.Pattern.String(), syntax.Perl); err == nil {
		need := needs(re)
		m.literals = need.any
		if need.exact && len(need.any) > 0 {
			m.pattern = nil
		}
	}
	if e.Replace != nil {
		m.replace = &Rewrite{pattern: e.Pattern, literal: []byte(e.Literal), with: []byte(*e.Replace)}
	}
	return m
}

func (m *matcher) match(line []byte) bool {
	if len(m.literals) == 0 {
		return m.pattern.Match(line)
	}
	for _, l := range m.literals {
		if bytes.Contains(line, l) {
			return m.pattern == nil || m.pattern.Match(line)
		}
	}
	return false
}

// need is what a regular expression needs: every match has one of the literals at least.
type need struct {
	any   [][]byte // empty: nothing is known
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
		return need{}
	}
	var b []byte
	for _, r := range re.Rune {
		if r == utf8.RuneError {
			return need{}
		}
		b = utf8.AppendRune(b, r)
	}
	return need{any: [][]byte{b}, exact: true}
}

// bestOf is what one of the parts of a sequence needs: the one whose shortest literal is the
// longest.
func bestOf(parts []*syntax.Regexp) need {
	var best [][]byte
	for _, p := range parts {
		if n := needs(p).any; shortest(n) > shortest(best) {
			best = n
		}
	}
	return need{any: best}
}

func shortest(all [][]byte) int {
	if len(all) == 0 {
		return 0
	}
	n := len(all[0])
	for _, l := range all {
		n = min(n, len(l))
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
