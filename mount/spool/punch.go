package spool

import (
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"ftfuse/internal/failpoint"
)

var fpPunch = failpoint.New("spool/punch")

// tidyEvery is how often what is left below PunchEvery is looked at, while there is
// any.
const tidyEvery = 2 * time.Second

// blockSize is the granularity of the last punch of a file that rests.
const blockSize = 4096

// fileholes is what of a file may be punched out and what has been. Its numbers are
// under tidier.mu.
type fileholes struct {
	mu   sync.Mutex // held while the file is punched or truncated
	upto int64      // everything below is committed
	done int64      // everything below is a hole
	seen int64      // upto at the last look
}

// tidier gives the space of committed bytes back, on one goroutine: at once where
// PunchEvery bytes have come together, else when the file rests.
type tidier struct {
	s    *Store
	mu   sync.Mutex
	todo []*File // enough to punch now
	rest map[*File]bool
	wake chan struct{}
	quit chan struct{}
	wg   sync.WaitGroup
}

func (t *tidier) start(s *Store) {
	t.s, t.rest = s, map[*File]bool{}
	t.wake, t.quit = make(chan struct{}, 1), make(chan struct{})
	t.wg.Go(t.run)
}

func (t *tidier) stop() {
	close(t.quit)
	t.wg.Wait()
}

// Punch says that everything below upto of file n is committed, so that its space can
// be given back but for the last Readback bytes. It returns at once.
func (s *Store) Punch(n Number, upto int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f := s.files[n]
	if f == nil {
		var err error
		if f, err = s.get(n); err != nil {
			return
		}
		defer s.retire(f)
	}
	if s.watch.captured(f, upto) {
		s.journal.wakeRoom()
	}
	s.tidy.add(f, upto)
}

// add needs Store.mu.
func (t *tidier) add(f *File, upto int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if upto > f.punch.upto {
		f.punch.upto = upto
	}
	switch ready := f.punch.upto - t.s.o.Readback - f.punch.done; {
	case ready >= t.s.o.PunchEvery:
		t.todo = append(t.todo, f)
	case ready >= blockSize && !t.rest[f]:
		t.rest[f] = true
	default:
		return
	}
	f.refs++
	select {
	case t.wake <- struct{}{}:
	default:
	}
}

// last is asked when nobody else uses f. It keeps f, and returns true, if there is
// something to punch. It needs Store.mu.
func (t *tidier) last(f *File) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if f.punch.upto-t.s.o.Readback-f.punch.done < blockSize {
		return false
	}
	f.refs++
	t.todo = append(t.todo, f)
	select {
	case t.wake <- struct{}{}:
	default:
	}
	return true
}

// restart is told that f was cut to size, with f.punch.mu held.
func (t *tidier) restart(f *File, size int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	f.punch.upto, f.punch.done = min(f.punch.upto, size), 0
}

func (t *tidier) run() {
	var tick <-chan time.Time
	for {
		select {
		case <-t.quit:
			return
		case <-t.wake:
		case <-tick:
			t.resting()
		}
		for f := t.next(); f != nil; f = t.next() {
			t.punch(f)
			f.Release()
		}
		tick = nil
		t.mu.Lock()
		if len(t.rest) > 0 {
			tick = time.After(tidyEvery)
		}
		t.mu.Unlock()
	}
}

func (t *tidier) next() *File {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.todo) == 0 {
		t.todo = nil
		return nil
	}
	f := t.todo[0]
	t.todo = t.todo[1:]
	return f
}

// resting moves those files to the work list that did not grow since the last look.
func (t *tidier) resting() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for f := range t.rest {
		if f.punch.upto != f.punch.seen {
			f.punch.seen = f.punch.upto
			continue
		}
		delete(t.rest, f)
		t.todo = append(t.todo, f)
	}
}

// punch punches out what may be. The times of the file stay as its writers left them.
func (t *tidier) punch(f *File) {
	if err := fpPunch.Inject(); err != nil {
		return
	}
	f.punch.mu.Lock()
	defer f.punch.mu.Unlock()
	// What the caller said may be from before a truncation: never touch what has an
	// entry that is not committed, nor what comes after this size.
	size := f.Size()
	limit := min(size, t.s.journal.lowest(f.number, size))
	t.mu.Lock()
	from, end := f.punch.done, (min(f.punch.upto, limit)-t.s.o.Readback)/blockSize*blockSize
	t.mu.Unlock()
	if end <= from {
		return
	}
	if err := f.punchQuietly(from, end-from); err != nil {
		if err != unix.EOPNOTSUPP {
			t.s.o.Logger.Warn("space of committed bytes not given back", "file", f.number.String(), "err", err)
		}
	}
	t.mu.Lock()
	f.punch.done = end
	t.mu.Unlock()
}

// punchQuietly punches a hole and, if nobody wrote meanwhile, puts the times back that
// punching changes.
func (f *File) punchQuietly(off, size int64) error {
	var before, after unix.Stat_t
	if err := unix.Fstat(f.fd, &before); err != nil {
		return err
	}
	return f.writable(func(fd int) error {
		var err error
		f.changing(off, off+size, func() { err = punchHole(fd, off, size) })
		if err != nil {
			return err
		}
		f.mu.Lock()
		defer f.mu.Unlock()
		if err := unix.Fstat(fd, &after); err != nil || after.Size != before.Size {
			return nil
		}
		_ = futimens(fd, before.Atim, before.Mtim)
		return nil
	})
}
