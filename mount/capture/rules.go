package capture

import (
	"context"
	"fmt"
	"slices"

	"github.com/bmatcuk/doublestar/v4"

	"ftfuse/internal/filter"
	"ftfuse/mount/procs"
)

// Mode says where records end.
type Mode uint8

// Modes of a rule.
const (
	ModeLine   Mode = iota // at line ends; an unfinished line waits for its end
	ModeBinary             // at a flush, the last close, and Rule.MaxRecord
)

// Rule says what becomes of the files whose path matches. The first rule that
// matches counts; a file that none matches is transferred in line mode.
type Rule struct {
	Path      string // doublestar glob on the path below the mount point that a handle was opened with
	Transfer  bool
	Mode      Mode
	MaxLine   int            // bytes without the line end; a longer line goes out in pieces as it comes; 0: Options.MaxLine
	MaxRecord int64          // of ModeBinary: a record ends after so many bytes; 0: never
	Filter    *filter.Filter // of ModeLine: which lines are records, nil for all; judged by their first MaxLine bytes
	Ask       procs.Ask      // what its records tell of the process that wrote; with Options.Processes
	Route     uint32         // of the lanes of its paths: which groups of destinations get them; 0: every one
}

func (r *Rule) check() error {
	if !doublestar.ValidatePattern(r.Path) {
		return fmt.Errorf("path %q is not a glob: close its brackets and braces", r.Path)
	}
	if r.Mode != ModeLine && r.Mode != ModeBinary {
		return fmt.Errorf("path %q: mode %d, want line or binary", r.Path, r.Mode)
	}
	if r.Mode == ModeBinary && r.Filter != nil {
		return fmt.Errorf("path %q: a filter looks at lines, and mode binary has none", r.Path)
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
	id        uint32 // in Capture.pathList
	name      string
	counts    *ruleCounts // of the rule that matches, nil for none
	route     uint32
	lane      *lane // nil: not asked for yet, see laneOf
	skip      bool
	binary    bool
	maxLine   int            // of a line that is held until its end comes, at least 1
	piece     int            // of a record; maxLine at most
	most      int64          // of a binary record; 0: any
	filter    *filter.Filter // nil: nobody looks at its lines
	rewritten int            // what a line may become by it
	ask       procs.Ask      // what its records tell of processes

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
	p := &path{name: name}
	c.applyRule(p)
	return p
}

// applyRule gives p what the rules say about it.
func (c *Capture) applyRule(p *path) {
	set := c.rules.Load()
	none := Rule{Transfer: true}
	r, i := &none, Match(set.rules, p.name)
	p.counts = nil
	if i >= 0 {
		r, p.counts = &set.rules[i], set.counts[i]
	}
	p.skip, p.binary, p.route, p.lane = !r.Transfer, r.Mode == ModeBinary, r.Route, nil
	p.most, p.filter, p.ask = r.MaxRecord, r.Filter, r.Ask
	if c.o.Processes == nil {
		p.ask = 0
	}
	p.maxLine = c.o.MaxLine
	if r.MaxLine > 0 {
		p.maxLine = r.MaxLine
	}
	p.piece = min(p.maxLine, maxPiece)
	p.rewritten = max(c.o.MaxRewritten, 2*p.maxLine)
}

// ruleSet is what is in force. It is replaced as a whole.
type ruleSet struct {
	rules  []Rule
	counts []*ruleCounts // of each
}

// checkRules refuses rules that mean nothing.
func checkRules(rules []Rule) error {
	for i := range rules {
		if err := rules[i].check(); err != nil {
			return fmt.Errorf("capture: rule %d: %w", i+1, err)
		}
	}
	return nil
}

// SetRules makes rules the ones that are in force, while programs write: what is cut from
// then on goes by them, whatever file was open. A line or a binary record that had begun to go
// out is ended as it began; one that nothing more is transferred of ends where it is, by the rules
// of before. Counters stay with the rules of the same Path. It does not wait
// for room in the queue. On an error, ctx's among them, the rules stay as they were.
func (c *Capture) SetRules(ctx context.Context, rules []Rule) error {
	if err := checkRules(rules); err != nil {
		return err
	}
	return c.ask(&request{ctx: ctx, beyond: true, run: func() error {
		if err := c.endSkipped(rules); err != nil {
			return err
		}
		c.setRules(slices.Clone(rules))
		return nil
	}}, "change the rules")
}

// endSkipped ends the unfinished lines and records of paths that rules keep from being
// transferred, while those of before are in force: what is skipped is not looked at, and would
// end none of them.
func (c *Capture) endSkipped(rules []Rule) error {
	was := c.collecting
	c.collecting = true // into the transaction of the change
	defer func() { c.collecting = was }()
	for _, f := range c.files {
		for _, w := range f.writers {
			if !w.open() || w.path.skip {
				continue
			}
			if i := Match(rules, w.path.name); i < 0 || rules[i].Transfer {
				continue
			}
			if err := c.end(w, c.newest); err != nil {
				return err
			}
		}
	}
	return nil
}

// skipBegun is endSkipped at a start, which does not know the rules of before: of a line that has
// begun under them and is skipped now nothing more goes out, since nobody judged it and its groups
// are not known. What was held of it counts as skipped. One of which pieces are out ends there.
// A source's line waits for rules that transfer it.
func (c *Capture) skipBegun() error {
	for _, f := range c.files {
		if f.src != nil {
			continue
		}
		for _, w := range f.writers {
			if !w.open() || !w.path.skip {
				continue
			}
			if n := len(w.pend); n > 0 {
				c.skip(w.path, uint64(n))
				w.drop(c, n)
			}
			if err := c.end(w, c.newest); err != nil {
				return err
			}
		}
	}
	return nil
}

func (c *Capture) setRules(rules []Rule) {
	old := c.rules.Load()
	set := &ruleSet{rules: rules, counts: make([]*ruleCounts, len(rules))}
	used := map[*ruleCounts]bool{}
	for i := range rules {
		set.counts[i] = &ruleCounts{}
		for k := 0; old != nil && k < len(old.rules); k++ {
			if old.rules[k].Path == rules[i].Path && !used[old.counts[k]] {
				set.counts[i] = old.counts[k]
				break
			}
		}
		used[set.counts[i]] = true
	}
	c.rules.Store(set)
	c.maxPending = c.o.MaxPending
	for i := range rules {
		c.maxPending = max(c.maxPending, 2*int64(rules[i].MaxLine))
	}
	if c.single && !oneLane(rules, c.o.Buckets) {
		c.single = false
	}
	for _, p := range c.paths {
		c.applyRule(p)
	}
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
