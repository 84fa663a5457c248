package spool

// FindUnique returns the note of the write request with the kernel's id unique, if it is
// among those with a sequence number of since or more and its place in the ring was not
// given to another since. Len is what was written, 0 where nothing was: such a request is
// to be done again. Path may be lost. It is for requests that a connection sends again to a worker that took
// it over, after Begin; since is what Next said when the connection began, because another
// connection uses the same ids.
func (s *Store) FindUnique(unique, since uint64) (Entry, bool) {
	j := s.journal
	next := j.next.Load()
	low := max(since, 1)
	if next > j.cap {
		low = max(low, next-j.cap)
	}
	for seq := next; seq > low; seq-- {
		b := j.slot(seq - 1)
		if leUint64(b[entUnique:]) != unique || b[entKind] != byte(Write) {
			continue
		}
		if e, ok := j.load(seq-1, true); ok {
			e.Path = s.paths.name(e.PathID)
			return e, true
		}
	}
	return Entry{}, false
}

// Lowest returns up to where, none at most, what no note with a smaller sequence number
// than from covers is known to be the kernel's: what it wrote behind a note cannot be told
// from what the note is about before that is read, nor what lies before a write that may
// leave a hole. False: there are too many notes to look at.
func (s *Store) Lowest(n Number, from uint64, none int64) (int64, bool) {
	const most = 1024
	j := s.journal
	next := j.next.Load()
	if next > from+most {
		return 0, false
	}
	for seq := max(from, j.done.Load()+1); seq < next; seq++ {
		b := j.slot(seq)
		if leUint64(b[entFile:]) != uint64(n) {
			continue
		}
		switch kind := le32(b[entKind:]); Kind(kind) {
		case Write:
			if kind>>8&FlagJoined == 0 {
				return 0, true
			}
			fallthrough
		case Opened, Grown:
			none = min(none, int64(leUint64(b[entOff:])))
		}
	}
	return none, true
}
