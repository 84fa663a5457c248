package sink

import (
	"time"

	"ftfuse/internal/output"
)

// A file that is rotated in the middle of a line goes on until the line ends, but not for
// longer than this, nor for more bytes than it had.
const lineWait = 10 * time.Second

// turn is the state of a file's rotation.
type turn struct {
	out  *out        // the output that last named the file in this run
	due  bool        // it has the size, and the rotor knows
	of   *generation // that is due
	not  time.Time   // no attempt before that
	next *generation // it has the name already; cur goes on until its line ends ...
	by   time.Time   // ... or until then
	most int64       // ... or until it has so many bytes
}

// nextID returns the identity of the generation that has the name already, or zero.
func (r *turn) nextID() output.ID {
	if r.next == nil {
		return output.ID{}
	}
	return r.next.id
}

// unfinished reports whether the end of the file is in the middle of a line, which is to be
// waited for. (Of bytes that are no lines nobody knows.)
func (s lineState) unfinished() bool { return s.open && !s.raw }

// succeed lets g follow the current generation of f: at once or, where wait says that this ends
// in the middle of a line that is still being written, when the line has ended. t.mu is held.
func (t *table) succeed(f *file, g *generation, wait bool) {
	if f.turn.next != nil { // that one was replaced in its turn
		t.unturn(f)
	}
	if !wait {
		t.install(f, g)
		return
	}
	t.turns++
	f.turn.next, f.turn.by, f.turn.most = g, time.Now().Add(lineWait), 2*f.cur.end
}

// unturn forgets the generation that was to follow; nothing was assigned to it. t.mu is held.
func (t *table) unturn(f *file) {
	_ = t.cache.Drop(&f.turn.next.slot) // nothing was written
	f.turn.next = nil
	t.turns--
}

// advance makes the generation that has the name the current one, if it is time. t.mu is
// held.
func (t *table) advance(f *file) {
	next, cur := f.turn.next, f.cur
	if next == nil || cur != nil && cur.state.unfinished() && cur.end < f.turn.most && time.Now().Before(f.turn.by) {
		return
	}
	f.turn.next = nil
	t.turns--
	t.install(f, next)
}

// measure looks whether f has the size to be rotated. t.mu is held.
func (t *table) measure(f *file, g *generation, o *out) {
	f.turn.out = o
	size := o.Rotate.Size
	if size > 0 && g.end >= size && !f.turn.due && f.turn.next == nil && !time.Now().Before(f.turn.not) {
		f.turn.due, f.turn.of = true, g
		t.isDue(f)
	}
}

// shed makes files forget a generation that was rotated away and that nothing is pending
// for: the last of them that a redo found, where nothing came since. t.mu is held.
func (t *table) shed() {
	for _, f := range t.files {
		if f.cur == nil || f.cur.pending > 0 || f.turn.next != nil {
			continue
		}
		if _, ok := t.rotated[f.cur.id]; ok {
			t.forget(f.cur)
			f.cur, f.rest = nil, lineState{}
		}
	}
}

// busyIDs returns the inodes that something is pending for, or that may be assigned to.
func (t *table) busyIDs() map[output.ID]struct{} {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.shed()
	busy := map[output.ID]struct{}{}
	for _, g := range t.eras {
		if g.pending > 0 || g.file.cur == g {
			busy[g.id] = struct{}{}
		}
	}
	for _, f := range t.files {
		for _, g := range []*generation{f.cur, f.turn.next} {
			if g != nil {
				busy[g.id] = struct{}{}
			}
		}
	}
	return busy
}

// awaits reports whether bytes are assigned to the file of that path that are not known to be on disk.
func (t *table) awaits(path string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	f := t.files[path]
	return f != nil && f.cur != nil && f.cur.pending > 0
}

// turnable returns the inode of f that may be rotated now, and the output that it is of;
// zero where there is nothing to rotate.
func (t *table) turnable(f *file, byClock bool) (output.ID, *out) {
	t.mu.Lock()
	defer t.mu.Unlock()
	g, o := f.cur, f.turn.out
	if g == nil || f.turn.next != nil || g.end == 0 || o == nil || !o.Rotate.on() || !byClock && g.end < o.Rotate.Size {
		return output.ID{}, nil
	}
	return g.id, o
}

// turned ends what measure began; after a failure nothing is tried for a while. The next file may
// have got its size meanwhile, and its last record for long.
func (t *table) turned(f *file, failed bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	was := f.turn.of
	f.turn.due, f.turn.of = false, nil
	if failed {
		f.turn.not = time.Now().Add(tryAgain)
	} else if f.cur != nil && f.cur != was && f.turn.out != nil {
		t.measure(f, f.cur, f.turn.out)
	}
}

// retire notes an inode that nothing may be assigned to by its new name.
func (t *table) retire(id output.ID) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.rotated[id] = struct{}{}
}

// unretire forgets an inode that is gone.
func (t *table) unretire(id output.ID) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.rotated, id)
}

// rest forgets the generation of a file that nothing is pending for. f.look is held.
func (t *table) rest(f *file) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if f.cur == nil || f.cur.pending > 0 {
		return false
	}
	t.forget(f.cur)
	f.cur, f.rest = nil, lineState{} // the next file is empty
	return true
}

// turnTo lets g follow, which has the name since a rotation. f.look is held.
func (t *table) turnTo(f *file, g *generation) {
	t.mu.Lock()
	defer t.mu.Unlock()
	f.checked = time.Now()
	if same := t.byID[g.id]; same != nil && !g.id.IsZero() { // somebody else gave it the name
		_ = t.cache.Drop(&g.slot)
		f.cur = same
		return
	}
	t.succeed(f, g, f.cur != nil && f.cur.state.unfinished())
}

// birth returns when the current file of f was made, which o names.
func (t *table) birth(f *file, o *out) (time.Time, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if f.turn.out == nil {
		f.turn.out = o
	}
	switch {
	case f.cur == nil || f.cur.id.IsZero():
		return time.Time{}, false
	case f.cur.id.Birth != 0:
		return time.Unix(0, f.cur.id.Birth), true
	}
	return f.cur.since, true
}

// turning reports whether some file waits for the end of a line.
func (t *table) turning() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.turns > 0
}

// advanceAll ends the waits that have taken too long.
func (t *table) advanceAll() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.turns == 0 {
		return
	}
	for _, f := range t.files {
		t.advance(f)
	}
}
