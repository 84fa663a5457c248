package sink

import (
	"errors"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"ftfuse/internal/output"
)

// A file's name is compared with the file that is written to every lookEvery while
// records come for it; with many files less often, so that looking stays a small part of
// the work.
const (
	lookEvery   = 20 * time.Millisecond
	lookPerFile = 20 * time.Microsecond
	lookAtLeast = time.Second
)

// generation is one life of an output file: one inode, from one place on. Offsets are
// assigned in it without a gap, in commit order; off stands for the same place of the
// file unless a shift says otherwise.
//
// Fields up to shifts are guarded by table.mu; the others belong to the applier.
type generation struct {
	era     uint64 // 64 random bits; never used again
	file    *file
	id      output.ID // zero: the file could not be looked at when it began
	since   time.Time // when this run learned of it
	end     int64     // where the next byte is assigned
	state   lineState // at end
	pending int       // extents that are not known to be on disk
	close   bool      // its descriptor, when nothing is pending
	shifts  []shift   // ascending by from

	slot  output.Slot
	live  bool  // what is assigned goes behind what is there; else a restart is being redone
	next  int64 // everything below is written, in this run; -1: not yet known
	dirty bool  // written to since the last checkpoint took it (guarded by applier.mu)
	hold  *hold // set while it cannot be written to
}

func newGeneration(f *file, era uint64) *generation {
	g := &generation{era: era, file: f, next: -1, since: time.Now()}
	g.slot.Owner = g
	return g
}

// place returns where off stands in the file.
func (g *generation) place(off int64) int64 {
	for i := len(g.shifts) - 1; i >= 0; i-- {
		if s := &g.shifts[i]; s.from <= off {
			return off - s.from + s.at
		}
	}
	return off
}

// file is one output path.
type file struct {
	path string
	root *output.Root
	name string
	perm atomic.Pointer[output.Perm] // of the output that named it last

	look    sync.Mutex // held while the name is looked up
	cur     *generation
	rest    lineState // at the end of the one that was forgotten, where cur is nil
	turn    turn      // of its rotation, guarded by table.mu
	checked time.Time // of the last look; monotonic
}

// table is all output files that something was assigned to, and their generations.
type table struct {
	roots   *roots
	cache   *output.Cache
	count   *counters
	maxIdle int // files kept beyond those with something pending

	// doubt is told of bytes in files that were not known to a queue that was repaired;
	// nil: it was not. Set before the first batch comes.
	doubt func(path string, from, to int64)

	mu    sync.Mutex
	files map[string]*file
	eras  map[uint64]*generation
	byID  map[output.ID]*generation // the newest generation of each inode

	rotated map[output.ID]struct{} // inodes that were rotated away, or compressed: nothing may be assigned to them
	turns   int                    // files with a turn.next
	isDue   func(f *file)          // told once of a file that has the size to be rotated; t.mu is held
}

func newTable(r *roots, c *output.Cache, n *counters) *table {
	return &table{
		roots: r, cache: c, count: n, maxIdle: 1 << 14,
		files: map[string]*file{}, eras: map[uint64]*generation{}, byID: map[output.ID]*generation{},
		rotated: map[output.ID]struct{}{}, isDue: func(*file) {},
	}
}

// file returns the entry of a path.
func (t *table) file(dir, name, path string, p *output.Perm) (*file, error) {
	t.mu.Lock()
	f := t.files[path]
	t.mu.Unlock()
	if f != nil {
		f.perm.Store(p)
		return f, nil
	}
	root, err := t.roots.get(dir, p)
	if err != nil {
		return nil, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if f := t.files[path]; f != nil {
		return f, nil
	}
	if len(t.files) >= 2*t.maxIdle {
		t.forgetIdle()
	}
	f = &file{path: path, root: root, name: name}
	f.perm.Store(p)
	t.files[path] = f
	return f, nil
}

// forgetIdle drops files with nothing pending; t.mu is held. They are looked up again
// when the next record comes for them.
func (t *table) forgetIdle() {
	for path, f := range t.files {
		if f.turn.next != nil || f.cur != nil && f.cur.pending > 0 || !f.look.TryLock() {
			continue
		}
		if f.cur != nil {
			t.forget(f.cur)
			f.rest, f.cur = f.cur.state, nil
		}
		if !f.checked.IsZero() { // else it is about to be looked at for the first time
			delete(t.files, path)
		}
		f.look.Unlock()
	}
}

// forget drops a generation; t.mu is held.
func (t *table) forget(g *generation) {
	delete(t.eras, g.era)
	if t.byID[g.id] == g {
		delete(t.byID, g.id)
	}
	_ = t.cache.Drop(&g.slot) // nothing of it is waiting for the disk; a pinned one is closed when room is needed
}

// touch makes sure that f has a generation, and that it is of the file that has the name
// now. A *output.RefusedError means that f can never be written to. Where the file can
// be neither looked at nor made for now, the generation has no identity.
func (t *table) touch(f *file) error {
	f.look.Lock()
	defer f.look.Unlock()
	t.mu.Lock()
	cur := f.cur
	var id output.ID
	pending := 0
	if cur != nil {
		id, pending = cur.id, cur.pending
	}
	next := f.turn.nextID()
	every := min(max(lookEvery, time.Duration(len(t.files))*lookPerFile), lookAtLeast)
	t.mu.Unlock()
	now := time.Now()
	if cur != nil && now.Sub(f.checked) < every {
		return nil
	}
	info, err := f.root.Stat(f.name)
	switch {
	case errors.Is(err, output.ErrRefused):
		return err
	case err == nil && cur != nil && (info.ID == id || !next.IsZero() && info.ID == next):
		f.checked = now
		return nil
	case cur != nil && id.IsZero() && pending > 0: // the applier will find its place
		f.checked = now
		return nil
	case err != nil && !errors.Is(err, unix.ENOENT) && cur != nil: // it cannot be looked at for now
		f.checked = now
		return nil
	}
	return t.begin(f, cur, now)
}

// begin opens the file that has the name now, makes it where there is none, and begins
// a generation at its end. f.look is held.
func (t *table) begin(f *file, old *generation, now time.Time) error {
	g, err := t.fresh(f)
	if err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	f.checked = now
	if same := t.byID[g.id]; same != nil && !g.id.IsZero() {
		// The inode is known, under this name or another: go on there. (What is pending
		// is not in its size yet.)
		f.cur = same
		return nil
	}
	if old != nil {
		t.count.generations.Add(1)
	}
	if t.doubt != nil && g.end > 0 {
		t.doubt(f.path, 0, g.end)
	}
	t.succeed(f, g, old != nil && old == f.cur && old.pending > 0 && old.state.mid != 0)
	return nil
}

// fresh opens the file that has f's name now, makes it where there is none, and returns a
// generation at its end, which nobody knows yet; without an identity where it can be neither
// looked at nor made for now.
func (t *table) fresh(f *file) (*generation, error) {
	g := newGeneration(f, newEra())
	g.live = true
	marked := false // one that was rotated, and that the rotor forgot
	out, err := t.cache.Pin(&g.slot, func() (*output.File, error) { return openNew(f) })
	switch {
	case errors.Is(err, output.ErrRefused):
		return nil, err
	case err == nil:
		defer t.cache.Unpin(out) // it is not dropped in between: nothing is closed here
		info, err := out.Stat()
		if err != nil {
			return nil, err
		}
		g.id, g.end, marked = info.ID, info.Size, info.Size > 0 && out.Marked()
		if g.state, err = lastState(out, info.Size); err != nil {
			return nil, err
		}
	default: // no permission, or no room for it: as much as is known
		if info, serr := f.root.Stat(f.name); serr == nil {
			g.id, g.end = info.ID, info.Size
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if _, ok := t.rotated[g.id]; marked || ok && !g.id.IsZero() {
		return nil, errors.Join(&output.RefusedError{Dir: f.root.Dir(), Name: f.name, Reason: output.ReasonRotated}, t.cache.Drop(&g.slot))
	}
	return g, nil
}

// install makes g the current generation of f; t.mu is held.
func (t *table) install(f *file, g *generation) {
	old := f.cur
	f.cur = g
	t.eras[g.era] = g
	if !g.id.IsZero() {
		t.byID[g.id] = g
	}
	if old != nil && old != g && old.pending == 0 {
		t.forget(old)
	}
}

// lastState looks at the last byte of a file of that size.
func lastState(f *output.File, size int64) (lineState, error) {
	if size == 0 {
		return lineState{}, nil
	}
	var b [1]byte
	if _, err := f.ReadAt(b[:], size-1); err != nil {
		return lineState{}, err
	}
	return lineState{open: b[0] != '\n'}, nil
}

func newEra() uint64 {
	for {
		if era := rand.Uint64(); era != 0 {
			return era
		}
	}
}

// assign gives n bytes and what the lead adds a place in f, and returns it. It is called
// in commit order.
func (t *table) assign(f *file, pf *planFile) (extent, *generation) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.advance(f)
	g := f.cur
	if g == nil { // it was forgotten since touch: the applier will find its place
		g = newGeneration(f, newEra())
		g.live, g.state = true, f.rest
		t.install(f, g)
		if t.files[f.path] == nil {
			t.files[f.path] = f
		}
	}
	t.eras[g.era] = g
	front, after, split := pf.join(g.state)
	if split {
		t.count.pieces.Add(1)
	}
	e := extent{era: g.era, off: g.end, n: pf.n + int64(len(front)), before: g.state, id: g.id}
	g.end += e.n
	g.state = after
	g.pending++
	t.measure(f, g, pf.out)
	return e, g
}

// adopt makes a generation known that a batch of an earlier run was assigned to.
func (t *table) adopt(f *file, e *extent, after lineState, shifts []shift) *generation {
	t.mu.Lock()
	defer t.mu.Unlock()
	g := t.eras[e.era]
	if g == nil {
		g = newGeneration(f, e.era)
		g.id, g.shifts = e.id, shifts
		if len(shifts) > 0 {
			g.id = shifts[len(shifts)-1].id
		}
		t.install(f, g)
	}
	g.end, g.state = e.off+e.n, after
	g.pending++
	return g
}

// settle notes that an extent of g is on disk, or is not to be waited for. It reports
// whether it was the last and stored shifts of g are of no more use.
func (t *table) settle(g *generation) (stale bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	g.pending--
	if g.pending == 0 && g.close {
		g.close = false
		_ = t.cache.Drop(&g.slot) // as forget does
	}
	if g.pending > 0 || g.file.cur == g && t.files[g.file.path] == g.file {
		return false
	}
	t.forget(g)
	return len(g.shifts) > 0
}

// move notes that what was assigned to g from off on goes to at of the file id, and
// begins a new generation behind it for what is assigned from now on.
func (t *table) move(g *generation, off int64, id output.ID, at int64) []shift {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.byID[g.id] == g {
		delete(t.byID, g.id)
	}
	g.shifts = append(g.shifts, shift{from: off, id: id, at: at})
	g.id = id
	t.count.generations.Add(1)
	if g.file.cur == g {
		next := newGeneration(g.file, newEra())
		next.id, next.end, next.state, next.live = id, g.place(g.end), g.state, true
		t.install(g.file, next)
	}
	return append([]shift(nil), g.shifts...)
}

// identity returns the inode that g is in now.
func (t *table) identity(g *generation) output.ID {
	t.mu.Lock()
	defer t.mu.Unlock()
	return g.id
}

// generation returns the generation of an era.
func (t *table) generation(era uint64) *generation {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.eras[era]
}

// current returns the generation of each file.
func (t *table) current() []*generation {
	t.mu.Lock()
	defer t.mu.Unlock()
	all := make([]*generation, 0, len(t.files))
	for _, f := range t.files {
		if f.cur != nil {
			all = append(all, f.cur)
		}
	}
	return all
}
