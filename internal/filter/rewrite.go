package filter

import (
	"bytes"
	"regexp"
)

// Rewrite replaces what an entry matches.
type Rewrite struct {
	pattern *regexp.Regexp
	literal []byte
	with    []byte
	refs    int  // to groups, in with, at most
	all     bool // one may be to all of the match
}

func newRewrite(e Entry) *Rewrite {
	r := &Rewrite{pattern: e.Pattern, literal: []byte(e.Literal), with: []byte(*e.Replace)}
	if r.pattern != nil {
		r.refs = bytes.Count(r.with, []byte{'$'})
		r.all = bytes.Contains(r.with, []byte("$0")) || bytes.Contains(r.with, []byte("${0"))
	}
	return r
}

// Append appends line with every match replaced to dst. Where that would be more than most
// bytes, which are len(line) at least, the matches are taken out instead, and whole is false:
// what was to be hidden is hidden. (A match counts as if each reference were to its longest group;
// of more than manyMatches, to all of it.) What dst grows by, and what is needed meanwhile, is in
// proportion to most.
func (r *Rewrite) Append(dst, line []byte, most int) (out []byte, whole bool) {
	n := len(line)
	if n*max(1, r.refs)+(n+1)*len(r.with) <= most { // whatever matches
		return r.replace(dst, line), true
	}
	matches, size := r.matches(line)
	if n-size+r.refs*size+matches*len(r.with) <= most {
		return r.replace(dst, line), true
	}
	if r.refs > 0 && matches <= manyMatches {
		if out, ok := r.expand(dst, line, most); ok {
			return out, true
		}
	}
	return r.remove(dst, line), false
}

// manyMatches is how many are kept in memory at once.
const manyMatches = 4096

// matches returns how many there are, and how many bytes they have.
func (r *Rewrite) matches(line []byte) (n, size int) {
	if r.pattern == nil {
		n = bytes.Count(line, r.literal)
		return n, n * len(r.literal)
	}
	r.pattern.ReplaceAllFunc(line, func(m []byte) []byte {
		n++
		size += len(m)
		return nil
	})
	return n, size
}

func (r *Rewrite) replace(dst, line []byte) []byte {
	if r.pattern != nil {
		return append(dst, r.pattern.ReplaceAll(line, r.with)...)
	}
	return r.each(dst, line, r.with)
}

func (r *Rewrite) remove(dst, line []byte) []byte {
	if r.pattern != nil {
		return append(dst, r.pattern.ReplaceAllLiteral(line, nil)...)
	}
	return r.each(dst, line, nil)
}

// each puts with in the place of each literal.
func (r *Rewrite) each(dst, line, with []byte) []byte {
	for {
		i := bytes.Index(line, r.literal)
		if i < 0 {
			return append(dst, line...)
		}
		dst = append(append(dst, line[:i]...), with...)
		line = line[i+len(r.literal):]
	}
}

// expand is replace, and gives up where that might have more than most bytes.
func (r *Rewrite) expand(dst, line []byte, most int) (out []byte, ok bool) {
	begin, at := len(dst), 0
	for _, m := range r.pattern.FindAllSubmatchIndex(line, -1) {
		if len(dst)-begin+m[0]-at+len(r.with)+r.refs*r.longest(m) > most {
			return nil, false
		}
		dst = append(dst, line[at:m[0]]...)
		dst = r.pattern.Expand(dst, r.with, line, m)
		at = m[1]
	}
	return append(dst, line[at:]...), len(dst)-begin+len(line)-at <= most
}

// longest returns the length of the longest group that a reference may be to.
func (r *Rewrite) longest(m []int) (n int) {
	for k := range len(m) / 2 {
		if k > 0 || r.all {
			n = max(n, m[2*k+1]-m[2*k])
		}
	}
	return n
}
