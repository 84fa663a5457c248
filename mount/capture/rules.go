package capture

import (
	"fmt"

	"github.com/bmatcuk/doublestar/v4"
)

// Mode says where records end.
type Mode uint8

// Modes of a rule.
const (
	ModeLine   Mode = iota // at line ends; an unfinished line waits for its end
	ModeBinary             // where each write ended
)

// Rule says what becomes of the files whose path matches. The first rule that
// matches counts; a file that none matches is transferred in line mode.
type Rule struct {
	Path     string // doublestar glob on the path below the mount point that a handle was opened with
	Transfer bool
	Mode     Mode
	MaxLine  int    // bytes without the line end; 0: Options.MaxLine
	Route    uint32 // of the lanes of its paths: which groups of destinations get them; 0: every one
}

func (r *Rule) check() error {
	if !doublestar.ValidatePattern(r.Path) {
		return fmt.Errorf("path %q is not a glob: close its brackets and braces", r.Path)
	}
	if r.Mode != ModeLine && r.Mode != ModeBinary {
		return fmt.Errorf("path %q: mode %d, want line or binary", r.Path, r.Mode)
	}
	return nil
}

// Match returns the index of the first rule whose glob matches name, -1 if none does.
func Match(rules []Rule, name string) int {
	for i := range rules {
		if ok, _ := doublestar.Match(rules[i].Path, name); ok {
			return i
		}
	}
	return -1
}

// path is a path that a handle was opened with, and what the rules say about it.
type path struct {
	id      uint32 // in Capture.pathList
	name    string
	rule    int // index, -1 for none
	route   uint32
	lane    *lane // nil: not asked for yet, see laneOf
	skip    bool
	binary  bool
	maxLine int // at most record's longest, at least 1

	files int     // that have it as their newest
	users []*file // those, and some that had it
	tail  tail
	dirty bool // tail changed since the last transaction
}

// tail tells whose bytes the last record of a path was, when it did not end a line.
// Another writer that was open then must not go on in that line.
type tail struct {
	writer uint64
	mark   uint64 // the newest writer that was open at that time; 0: at a line's start
}

// pathOf returns the path with the journal's id and name. Names are the identity:
// two ids of one name share what is kept here.
func (c *Capture) pathOf(id uint32, name string) *path {
	if p := c.lastPath; p != nil && c.lastPathID == id && p.name == name {
		return p
	}
	p := c.paths[name]
	if p == nil {
		p = c.newPath(name)
		p.id = uint32(len(c.pathList))
		c.paths[name] = p
		c.pathList = append(c.pathList, p)
	}
	c.lastPath, c.lastPathID = p, id
	return p
}

func (c *Capture) newPath(name string) *path {
	p := &path{name: name, rule: -1, maxLine: c.o.MaxLine}
	if i := Match(c.o.Rules, name); i >= 0 {
		r := &c.o.Rules[i]
		p.rule, p.skip, p.binary, p.route = i, !r.Transfer, r.Mode == ModeBinary, r.Route
		if r.MaxLine > 0 {
			p.maxLine = r.MaxLine
		}
	}
	p.maxLine = min(p.maxLine, maxPiece)
	return p
}

// sweepPaths drops paths that nothing refers to, when there are many.
func (c *Capture) sweepPaths() {
	if c.queued > 0 || len(c.paths) < 2*len(c.files)+1000 {
		return
	}
	used := map[*path]bool{}
	for _, f := range c.files {
		used[f.path] = true
		used[f.by.path] = true
		for _, w := range f.writers {
			used[w.path] = true
		}
	}
	c.pathList, c.lastPath = c.pathList[:0], nil
	for name, p := range c.paths {
		if !used[p] && p.tail.mark == 0 && !p.dirty {
			delete(c.paths, name)
			continue
		}
		p.id = uint32(len(c.pathList))
		c.pathList = append(c.pathList, p)
	}
}
