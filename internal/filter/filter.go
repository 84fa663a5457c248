// Package filter decides which lines of a file are kept, and rewrites some of them.
//
// A line is given without its end. An entry of Deny that matches it drops it; else the
// first entry of Allow that matches keeps it and, where it has a replacement, replaces all
// its matches; else Default decides. What is changed nowhere is not copied, and what is changed
// has a length that whoever asks for it chooses.
package filter

import "regexp"

// Entry is one pattern: a regular expression, or bytes that are looked for as they stand
// where that is nil.
type Entry struct {
	Pattern *regexp.Regexp
	Literal string
	Replace *string // of Allow: for each match; with a Pattern as Regexp.Expand takes it. nil: nothing
}

// Spec says what a Filter does.
type Spec struct {
	Deny, Allow []Entry
	Default     bool // keep what no entry matches
}

// Verdict is what becomes of a line.
type Verdict uint8

// Verdicts.
const (
	Keep      Verdict = iota
	Denied            // an entry of Deny matched
	Unmatched         // nothing matched, and the default is to drop
)

// Filter is a Spec made ready. It is safe for concurrent use and never changes.
type Filter struct {
	deny, allow []matcher
	keep        bool
}

// New returns a Filter, or nil where s keeps every line as it is: then nobody needs to look
// at lines.
func New(s Spec) *Filter {
	changes := len(s.Deny) > 0 || !s.Default
	for i := range s.Allow {
		changes = changes || s.Allow[i].Replace != nil
	}
	if !changes {
		return nil
	}
	f := &Filter{keep: s.Default}
	for _, e := range s.Deny {
		f.deny = append(f.deny, newMatcher(e))
	}
	for _, e := range s.Allow {
		f.allow = append(f.allow, newMatcher(e))
	}
	for len(f.allow) > 0 && f.keep && f.allow[len(f.allow)-1].replace == nil { // keeps what is kept anyway
		f.allow = f.allow[:len(f.allow)-1]
	}
	return f
}

// Judge says what becomes of line, which has no line end. r is not nil where it is kept and
// rewritten; line is not changed.
func (f *Filter) Judge(line []byte) (v Verdict, r *Rewrite) {
	for i := range f.deny {
		if f.deny[i].match(line) {
			return Denied, nil
		}
	}
	for i := range f.allow {
		if m := &f.allow[i]; m.match(line) {
			return Keep, m.replace
		}
	}
	if f.keep {
		return Keep, nil
	}
	return Unmatched, nil
}

// Content is line without its end: a newline, and a carriage return before that.
func Content(line []byte) []byte {
	if n := len(line); n > 0 && line[n-1] == '\n' {
		line = line[:n-1]
		if n > 1 && line[n-2] == '\r' {
			line = line[:n-2]
		}
	}
	return line
}
