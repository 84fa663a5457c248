package spool

// FindUnique returns the note of the write request with the kernel's id unique, if it is
// among those with a sequence number of since or more and its place in the ring was not
// given to another since. Len is what was written, 0 where nothing was: such a request is
// to be done again. It is for requests that a connection sends again to a worker that took
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

// Lowest returns the smallest offset that a note of file n names which has a sequence
// number of from or more, or none: what the kernel wrote behind it cannot be told from
// what the note is about before it is read. False: there are too many of them to look.
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
		switch Kind(b[entKind]) {
		case Write, Opened, Grown:
			none = min(none, int64(leUint64(b[entOff:])))
		}
	}
	return none, true
}
