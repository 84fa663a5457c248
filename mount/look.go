package mount

import "bazil.org/fuse"

// Records that tell of processes (Rule.Attributes): whoever opens a file of theirs for writing
// or closes one is looked at before it gets its answer, while it cannot end. The request loop goes on
// meanwhile. Nobody's write waits.

// lookTurns is how many of them wait at once, each with a request's buffer; more are answered at
// once, and looked at meanwhile.
const lookTurns = 16

// openAfterLook is open, after a look at the process where that is wanted. It is called as open
// is.
func (s *server) openAfterLook(r *fuse.OpenRequest) {
	if fn := s.fileNode(r.Node); fn == nil || r.Dir || !s.asksOf(r.Flags, fn.file.path) {
		s.open(r)
		return
	}
	s.afterLook(r.Pid, s.procs.Opening, func() { s.open(r) })
}

func (s *server) createAfterLook(r *fuse.CreateRequest) {
	if d := s.dirNode(r.Node); d == nil || !s.asksOf(r.Flags, func() string { return d.child(r.Name) }) {
		s.create(r)
		return
	}
	s.afterLook(r.Pid, s.procs.Opening, func() { s.create(r) })
}

// flushAfterLook is flush, after another look: a shell opened the file before it executed the
// program, and the program may be gone when what it wrote is captured. Whoever closes what can be
// mapped is looked at, too.
func (s *server) flushAfterLook(r *fuse.FlushRequest) {
	h := s.fileHandle(r.Handle)
	switch {
	case h != nil && h.mappable():
		pid := r.Pid
		s.afterwards(func() {
			if h.asks {
				both(pid, s.procs.Closing)
			}
			s.lookForMapping(h, pid)
		}, func() { s.flush(r) })
	case h != nil && h.asks:
		s.afterLook(r.Pid, s.procs.Closing, func() { s.flush(r) })
	default:
		s.flush(r)
	}
}

func (s *server) asksOf(flags fuse.OpenFlags, path func() string) bool {
	return s.o.asks != nil && !flags.IsReadOnly() && s.o.asks(path())
}

// both looks at a process by both names that its records can have: the thread's and its own.
func both(tid uint32, look func(pid uint32)) {
	look(tid)
	if pid := processOf(tid); pid != tid {
		look(pid)
	}
}

// afterLook answers a request, which needs mu, on a goroutine once the process that waits for it
// was looked at. A successor that takes over meanwhile gets the request again.
func (s *server) afterLook(tid uint32, look func(pid uint32), answer func()) {
	select {
	case s.looking <- struct{}{}:
	default:
		both(tid, s.procs.Wrote)
		answer()
		return
	}
	s.afterwards(func() {
		defer func() { <-s.looking }()
		both(tid, look)
	}, answer)
}

// afterwards looks on a goroutine, and then answers with mu held.
func (s *server) afterwards(look, answer func()) {
	s.wg.Go(func() {
		look()
		s.mu.Lock()
		defer s.mu.Unlock()
		if !s.leaving.Load() {
			answer()
		}
	})
}
