package spool

import "slices"

// owedNote is a note that the ring had no place for, and the paths that nobody needs once
// it is made.
type owedNote struct {
	Entry
	release []uint32
}

// mostOwed is how many notes a file owes before those who open and close it are no longer
// told apart.
const mostOwed = 256

// ended is what the last handles of a file leave, for one that comes before that is noted.
type ended struct {
	writer uint64
	noted  opener
}

// takeBack takes those notes back that are owed and say that all handles are closed, because
// there is one again: programs that open a file, append and close it, again and again, must
// not owe more and more while the ring is full. From mostOwed on their lines go on as those of one writer.
// It reports whether the end of the kernel's bytes was among them. It needs f.mu.
func (f *File) takeBack(mode OpenMode) bool {
	if len(f.owed) < f.s.mostOwed {
		return false
	}
	if o := f.lastOwed(); o != nil && f.shared == 0 && o.Kind == Release && o.Writer == f.ended.writer {
		f.shared = o.Writer
		f.dropOwed()
	}
	if o := f.lastOwed(); o != nil && mode == Kernel && o.Kind == Grown && o.Flags == FlagEnd {
		f.noted = f.ended.noted
		f.dropOwed()
		return true
	}
	return false
}

func (f *File) lastOwed() *owedNote {
	if len(f.owed) == 0 {
		return nil
	}
	return &f.owed[len(f.owed)-1]
}

// dropOwed forgets the last note that is owed. Its paths stay as long as those before need
// them.
func (f *File) dropOwed() {
	o := *f.lastOwed()
	f.owed = f.owed[:len(f.owed)-1]
	last := f.lastOwed()
	for _, id := range o.release {
		if last == nil || slices.Contains(last.release, id) {
			f.s.paths.release(id)
		} else {
			last.release = append(last.release, id)
		}
	}
	f.owes.Store(len(f.owed) > 0)
}

// merge reports whether a note needs no place of its own: of the many whose opening is owed
// none is told from the others.
func (f *File) merge(e *Entry) bool {
	o := f.lastOwed()
	if len(f.owed) < f.s.mostOwed-2 || o == nil || e.Kind != Opened || o.Kind != Opened || o.Writer != e.Writer || o.PathID != e.PathID {
		return false
	}
	o.PID, o.UID, o.GID, o.Flags = e.PID, e.UID, e.GID, o.Flags|e.Flags|FlagSeveral
	return true
}

// mark makes the note of a writer's release or flush. It names the newest writer there
// is now: one that opens later is known to have come after it, however late the note is.
func (h *Handle) mark(k Kind, m *Meta) Entry {
	return Entry{
		File: h.number, Writer: h.Writer, Off: int64(h.s.newest.Load()), PathID: h.PathID, Kind: k,
		PID: m.PID, UID: m.UID, GID: m.GID, Time: m.Time, Unique: m.Unique,
	}
}

// End notes the last close of h and gives it up. A PerWrite handle that never wrote
// leaves no note. A ring without a place makes nobody wait: the notes are owed, and made
// before any later one of the file, at the latest by the Committed that frees a place.
func (h *Handle) End(m *Meta) {
	if h.mode == PerWrite && !h.ever.Load() {
		h.s.paths.release(h.PathID)
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.mode != PerWrite {
		h.endShared(m)
		return
	}
	h.owed = append(h.owed, owedNote{h.mark(Release, m), []uint32{h.PathID}})
	h.owes.Store(true)
	h.pay()
}

// owe adds notes to what is to be noted and makes what there is a place for, with f.mu
// held.
func (f *File) owe(notes ...Entry) {
	if len(notes) == 0 {
		return
	}
	for i := range notes {
		if !f.merge(&notes[i]) {
			f.owed = append(f.owed, owedNote{Entry: notes[i]})
		}
	}
	f.owes.Store(true)
	f.pay()
}

// pay makes the notes that are owed, or sees to it that they are made later. It needs
// f.mu.
func (f *File) pay() {
	if f.noteOwed() == nil {
		return
	}
	f.s.owe(f)
	_ = f.noteOwed() // a Committed between the two has not seen it
}

// noteOwed makes the notes that are owed, with f.mu held. ErrJournalFull: some still are.
func (f *File) noteOwed() error {
	for len(f.owed) > 0 {
		o := &f.owed[0]
		if err := f.noteMark(&o.Entry); err != nil {
			return err
		}
		for _, id := range o.release {
			f.s.paths.release(id)
		}
		f.owed = f.owed[1:]
	}
	f.owed = nil
	f.owes.Store(false)
	return nil
}

// Owes reports whether there are notes of file n, or of any file for 0, that the ring had no
// place for: what Next says does not cover them. They are made as soon as Committed has
// freed places.
func (s *Store) Owes(n Number) bool { return len(s.owers(n)) > 0 }

// OwesOpening returns the files, n or any for 0, of which it is owed who opened them: a start
// would take what was written to them since by the name that they have then.
func (s *Store) OwesOpening(n Number) (list []Number) {
	for _, f := range s.owers(n) {
		f.mu.Lock()
		if slices.ContainsFunc(f.owed, func(o owedNote) bool { return o.Kind == Opened }) {
			list = append(list, f.number)
		}
		f.mu.Unlock()
	}
	return list
}

// owers returns the files, n or any for 0, that owe notes.
func (s *Store) owers(n Number) (list []*File) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if n != 0 {
		if f := s.files[n]; f != nil && f.owes.Load() {
			list = append(list, f)
		}
		return list
	}
	for _, f := range s.files {
		if f.owes.Load() {
			list = append(list, f)
		}
	}
	return list
}

// noteMark makes a note without bytes, with f.mu held.
func (f *File) noteMark(e *Entry) error {
	seq, err := f.s.journal.note(e)
	if err != nil {
		return err
	}
	f.last.Store(seq)
	f.s.journal.complete(seq, 0, 0)
	return nil
}

// owe remembers that f has notes to be made, and keeps it until they are.
func (s *Store) owe(f *File) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.owing[f] {
		return
	}
	if s.owing == nil {
		s.owing = map[*File]bool{}
	}
	s.owing[f] = true
	f.refs++
}

// payOwed makes what notes of all files there is a place for.
func (s *Store) payOwed() {
	s.mu.Lock()
	list := s.owing
	s.owing = nil
	s.mu.Unlock()
	for f := range list {
		f.mu.Lock()
		if f.noteOwed() != nil {
			s.owe(f)
		}
		f.mu.Unlock()
		f.Release()
	}
}
