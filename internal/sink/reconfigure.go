package sink

import (
	"sync"
	"time"
)

// outputs is one configuration of a sink. It is immutable.
type outputs struct {
	set      *set
	planners sync.Pool // of *planner
}

// compile makes all, opens their directories and locks them. An error changes nothing
// that anybody sees, but that directories may have been made.
func (s *Sink) compile(all []Output) (*outputs, error) {
	set, err := newSet(all)
	if err != nil {
		return nil, err
	}
	set.members = s.o.Members
	for _, o := range set.outputs {
		if _, err := s.roots.get(o.Dir, &o.Files); err != nil {
			return nil, err
		}
	}
	now := &outputs{set: set}
	now.planners.New = func() any { return newPlanner(set) }
	return now, nil
}

// has reports whether an output writes below dir.
func (o *outputs) has(dir string) bool {
	for _, out := range o.set.outputs {
		if out.Dir == dir {
			return true
		}
	}
	return false
}

// Reconfigure replaces the outputs, while everything runs: every batch whose Take begins
// after it returned goes to all, by them alone. What was taken before stays assigned as it
// was, by the old ones, also across a restart; no byte is lost or written twice. Files that
// old and new ones have in common go on at their ends. An error changes nothing: a template
// that does not compile, a directory that cannot be made or that another process has.
//
// A directory that no output is for any more is unlocked once all that was assigned there is
// on disk.
func (s *Sink) Reconfigure(all []Output) error {
	s.change.Lock()
	defer s.change.Unlock()
	next, err := s.compile(all)
	if err == nil {
		s.current.Store(next)
	} // else give back what was opened for those before the bad one
	s.retire.Store(true)
	s.retireRoots()
	signal(s.rotor.dueNow) // there may be another period
	signal(s.rotor.work)
	return err
}

// trimmed is called when a checkpoint is through.
func (s *Sink) trimmed() {
	signal(s.rotor.work)
	if s.retire.Load() && s.change.TryLock() {
		s.retireRoots()
		s.change.Unlock()
	}
}

// retireRoots unlocks the directories that no output is for and nothing is assigned to;
// s.change is held.
func (s *Sink) retireRoots() {
	now := s.current.Load()
	busy, waits := s.table.busyDirs(), false
	err := s.roots.retire(func(dir string) bool {
		waits = waits || busy[dir] && !now.has(dir)
		return busy[dir] || now.has(dir)
	})
	if err != nil {
		s.log.Error("output directory cannot be unlocked", "error", err)
	}
	s.retire.Store(waits)
}

// Reopen looks at the name of every output file again before more is assigned to it, and
// closes those that wait for nothing: after it returned, what is taken goes to the files that
// have the names, and no descriptor keeps a removed one alive, but where bytes for it are
// still to be brought to disk; those are closed then. Nothing is lost, doubled or
// interrupted. It is what SIGUSR1 asks for.
func (s *Sink) Reopen() error { return s.table.reopen() }

// reopen drops the descriptors of files with nothing pending, and forgets when names were
// looked at.
func (t *table) reopen() error {
	t.mu.Lock()
	all := make([]*file, 0, len(t.files))
	for _, f := range t.files {
		all = append(all, f)
	}
	t.mu.Unlock()
	var first error
	for _, f := range all {
		f.look.Lock()
		f.checked = time.Time{}
		t.mu.Lock()
		if f.cur != nil && f.cur.pending > 0 {
			f.cur.close = true
		} else if f.cur != nil {
			if err := t.cache.Drop(&f.cur.slot); err != nil && first == nil {
				first = err
			}
		}
		t.mu.Unlock()
		f.look.Unlock()
	}
	return first
}

// busyDirs returns the directories that something is pending in.
func (t *table) busyDirs() map[string]bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	busy := map[string]bool{}
	for _, g := range t.eras {
		if g.pending > 0 {
			busy[g.file.root.Dir()] = true
		}
	}
	return busy
}
