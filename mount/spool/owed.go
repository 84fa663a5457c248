package spool

// mark makes the note of a writer's release or flush. It names the newest writer there
// is now: one that opens later is known to have come after it, however late the note is.
func (h *Handle) mark(k Kind, m *Meta) Entry {
	return Entry{
		File: h.number, Writer: h.Writer, Off: int64(h.s.newest.Load()), PathID: h.PathID, Kind: k,
		PID: m.PID, UID: m.UID, GID: m.GID, Time: m.Time, Unique: m.Unique,
	}
}

// End notes the last close of h and gives it up. A handle that never wrote leaves no
// note. A ring without a place makes nobody wait: the note is owed, and made before any
// later one of the file, at the latest by the Committed that frees a place.
func (h *Handle) End(m *Meta) {
	if !h.ever.Load() {
		h.s.paths.release(h.PathID)
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.owed = append(h.owed, h.mark(Release, m))
	if h.noteOwed() == nil {
		return
	}
	h.s.owe(h.File)
	_ = h.noteOwed() // a Committed between the two has not seen it
}

// noteOwed makes the notes that are owed, with f.mu held. ErrJournalFull: some still are.
func (f *File) noteOwed() error {
	for len(f.owed) > 0 {
		e := f.owed[0]
		if err := f.noteMark(&e); err != nil {
			return err
		}
		f.s.paths.release(e.PathID)
		f.owed = f.owed[1:]
	}
	f.owed = nil
	return nil
}

// noteMark notes a release or a flush, with f.mu held.
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
