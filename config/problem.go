package config

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Kinds of problem, for errors.Is on what Load, Parse and CheckRole return.
var (
	// ErrRead: the file could not be read.
	ErrRead = errors.New("configuration cannot be read")
	// ErrSyntax: the file is not TOML.
	ErrSyntax = errors.New("not valid TOML")
	// ErrUnknownKey: a key that ftfuse does not know.
	ErrUnknownKey = errors.New("unknown key")
	// ErrType: a value of another type than the key takes.
	ErrType = errors.New("wrong type")
	// ErrValue: a value that the key cannot have.
	ErrValue = errors.New("bad value")
	// ErrMissing: something that must be given is not.
	ErrMissing = errors.New("missing")
	// ErrConflict: two settings that exclude each other, such as a state_dir below
	// the mount point.
	ErrConflict = errors.New("conflict")
	// ErrUnsupported: a value that the role of this version would ignore.
	ErrUnsupported = errors.New("not in this version")
)

// Problem is one thing that is wrong with a configuration.
type Problem struct {
	Kind error  // one of the errors above
	File string // as given to Load or Parse; the option's name for the command line
	Line int    // counted from 1; 0 when the problem has no place in a file
	Key  string // dotted, without array indices, e.g. mount.rule.path
	What string // what is wrong
	Fix  string // what to write instead

	path string // Key with indices
}

// Error is FILE:LINE: what is wrong: what to write instead.
func (p *Problem) Error() string {
	var b strings.Builder
	b.WriteString(p.File)
	if p.Line > 0 {
		fmt.Fprintf(&b, ":%d", p.Line)
	}
	b.WriteString(": ")
	b.WriteString(p.What)
	if p.Fix != "" {
		b.WriteString("; ")
		b.WriteString(p.Fix)
	}
	return b.String()
}

// Unwrap returns the kind.
func (p *Problem) Unwrap() error { return p.Kind }

// Error lists everything that is wrong with a configuration, in the order of the
// file. errors.Is finds the kinds, errors.As the first *Problem.
type Error struct {
	Problems []*Problem
}

// maxShown bounds the message; all problems are in the slice.
const maxShown = 30

// Error is one line per problem.
func (e *Error) Error() string {
	var b strings.Builder
	for i, p := range e.Problems {
		if i > 0 {
			b.WriteByte('\n')
		}
		if i == maxShown {
			fmt.Fprintf(&b, "%s: and %d more problems", p.File, len(e.Problems)-i)
			break
		}
		b.WriteString(p.Error())
	}
	return b.String()
}

// Unwrap returns the problems.
func (e *Error) Unwrap() []error {
	all := make([]error, len(e.Problems))
	for i, p := range e.Problems {
		all[i] = p
	}
	return all
}

// Join returns what several checks of one file found, each problem once; nil when
// there is none. Every error must be an *Error of this package.
func Join(all ...error) error {
	joined := &Error{}
	said := map[string]bool{}
	for _, err := range all {
		var e *Error
		if !errors.As(err, &e) {
			continue
		}
		for _, p := range e.Problems {
			if text := p.Error(); !said[text] {
				said[text] = true
				joined.Problems = append(joined.Problems, p)
			}
		}
	}
	if len(joined.Problems) == 0 {
		return nil
	}
	joined.sort()
	return joined
}

func (e *Error) sort() {
	slices.SortStableFunc(e.Problems, func(a, b *Problem) int { return a.Line - b.Line })
}

// problems collects while a file is read.
type problems struct {
	file   string
	pos    positions
	origin map[string]string // key path -> where else than in the file it was given
	list   []*Problem
}

// add notes a problem at the key with the given path.
func (ps *problems) add(kind error, path, fix, what string, args ...any) {
	p := &Problem{
		Kind: kind, File: ps.file, Line: ps.pos.line(path), Key: plainKey(path), path: path,
		What: fmt.Sprintf(what, args...), Fix: fix,
	}
	if origin := ps.origin[path]; origin != "" {
		p.File, p.Line = origin, 0
	}
	ps.list = append(ps.list, p)
}

// has reports whether the key at path has a problem already.
func (ps *problems) has(path string) bool {
	return slices.ContainsFunc(ps.list, func(p *Problem) bool { return p.path == path })
}

// err returns nil or the sorted *Error.
func (ps *problems) err() error {
	if len(ps.list) == 0 {
		return nil
	}
	e := &Error{Problems: ps.list}
	e.sort()
	return e
}
