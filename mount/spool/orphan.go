package spool

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"ftfuse/internal/failpoint"
)

// Orphan writers. When every ftfuse process was killed, programs that had a file open
// through passthrough go on appending to its spool file, and nobody answers for the dead
// connection any more. A start that makes a new connection finds them by a lease, which
// nobody gets on a file that is open for writing, and moves the name of such a file to a
// fresh, empty spool file: whoever opens, truncates or removes it from now on never meets
// the orphan. The old spool file is followed under its old path until the last writer has
// closed it, then its line ends, and it goes as soon as it is committed.

var (
	fpOrphanMade  = failpoint.New("spool/orphan-made")  // the fresh spool file is there, its name is not moved
	fpOrphanMoved = failpoint.New("spool/orphan-moved") // the name is moved
)

// orphanRetry is how often a writer is asked whether it has gone, within OrphanPatience.
const orphanRetry = 5 * time.Millisecond

// DetachOrphans finds the spool files that somebody still writes to and takes their names
// away; Files tells of them. It has to be called before Begin, and before any file is
// acquired, but for those of a connection that is taken over, whose writers they have. All
// others of that connection have closed their files, so that only files that lost their
// names to an orphan before can have one then.
func (s *Store) DetachOrphans(taken bool) (int, error) {
	var left []int
	for i := range s.found {
		n := s.found[i].Number
		if taken && (s.files[n] != nil || !s.orphans[n]) {
			continue
		}
		if s.writtenTo(n) {
			left = append(left, i)
		}
	}
	for until := time.Now().Add(s.o.OrphanPatience); len(left) > 0 && time.Now().Before(until); {
		time.Sleep(orphanRetry)
		kept := left[:0]
		for _, i := range left {
			if s.writtenTo(s.found[i].Number) {
				kept = append(kept, i)
			}
		}
		left = kept
	}
	for _, i := range left {
		if err := s.detach(i); err != nil {
			return 0, err
		}
	}
	return len(left), nil
}

// writtenTo reports whether any process has file n open for writing.
func (s *Store) writtenTo(n Number) bool {
	fd, err := unix.Openat(int(s.spool.Fd()), n.String(), unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	_, err = unix.FcntlInt(uintptr(fd), unix.F_SETLEASE, unix.F_RDLCK)
	switch err {
	case nil:
		_, _ = unix.FcntlInt(uintptr(fd), unix.F_SETLEASE, unix.F_UNLCK)
		return false
	case unix.EAGAIN:
		return true
	}
	// No leases here: then there is no passthrough either (it needs root and a local disk).
	s.o.Logger.Debug("no lease on a spool file", "file", n.String(), "err", err)
	return false
}

// detach takes the name of the file found[i], if it has one, and begins to follow it.
func (s *Store) detach(i int) error {
	old := s.found[i]
	if !s.orphans[old.Number] {
		fresh, err := s.moveName(old)
		if err != nil {
			return fmt.Errorf("move the name %q away from spool file %s, which a program of an earlier mount still writes to: %w", old.Path, old.Number, err)
		}
		s.orphans[old.Number] = true
		s.found = append(s.found, fresh)
	}
	s.found[i].Orphan = true
	s.o.Logger.Warn("a program that opened this file on an earlier mount still writes to it: it is captured until the program closes it, and the file of that name is a new one",
		"path", old.Path, "file", old.Number.String())
	s.mu.Lock()
	s.followed[old.Number] = nil
	f, err := s.get(old.Number)
	if err == nil {
		f.refs++
		s.followed[old.Number] = f
	}
	s.mu.Unlock()
	if err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.addKernel()
	f.told = 0
	return nil
}

// moveName makes a fresh spool file for a name.
func (s *Store) moveName(old FileInfo) (FileInfo, error) {
	st, err := s.StatFile(old.Number)
	if err != nil {
		return FileInfo{}, err
	}
	s.mu.Lock()
	id, err := s.numbers.take()
	s.mu.Unlock()
	if err != nil {
		return FileInfo{}, err
	}
	n := Number(id)
	fd, err := s.makeFile(n, st.Mode&0o7777)
	if err != nil {
		return FileInfo{}, err
	}
	unix.Close(fd)
	if err := s.Chown(n, st.Uid, st.Gid); err != nil {
		return FileInfo{}, err
	}
	if err := s.Chmod(n, st.Mode); err != nil { // a change of owner clears bits
		return FileInfo{}, err
	}
	if err := s.Utimens(n, st.Atim, st.Mtim); err != nil {
		return FileInfo{}, err
	}
	if err := fpOrphanMade.Inject(); err != nil {
		return FileInfo{}, err
	}
	link := filepath.Join(s.dir, "orphan.link")
	if err := os.Remove(link); err != nil && !os.IsNotExist(err) {
		return FileInfo{}, err
	}
	if err := os.Symlink(n.String(), link); err != nil {
		return FileInfo{}, err
	}
	if err := unix.Renameat(unix.AT_FDCWD, link, int(s.tree.Fd()), old.Path); err != nil {
		return FileInfo{}, err
	}
	if err := fpOrphanMoved.Inject(); err != nil {
		return FileInfo{}, err
	}
	return FileInfo{Number: n, Path: old.Path, UID: st.Uid, GID: st.Gid}, nil
}

// follow looks after the orphans until they are gone or ctx ends.
func (s *Store) follow(ctx context.Context) {
	tick := time.NewTicker(s.o.OrphanPoll)
	defer tick.Stop()
	for {
		s.mu.Lock()
		var list []*File
		for _, f := range s.followed {
			list = append(list, f)
		}
		s.mu.Unlock()
		if len(list) == 0 {
			return
		}
		for _, f := range list {
			s.letGo(f)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// letGo ends the following of f if nobody writes to it any more.
func (s *Store) letGo(f *File) {
	f.punch.mu.Lock() // punching opens it for writing
	defer f.punch.mu.Unlock()
	if s.writtenTo(f.number) {
		return
	}
	f.mu.Lock()
	size := f.end()
	f.size.Store(size)
	f.kernel.Store(0)
	s.watch.remove(f, size)
	f.owe(f.grownNote(size, FlagEnd|FlagOrphan))
	f.mu.Unlock()
	s.mu.Lock()
	delete(s.followed, f.number)
	s.mu.Unlock()
	s.o.Logger.Info("the last program of an earlier mount has closed its file", "file", f.number.String(), "bytes", size)
	f.Release()
}

// writable gives fn a descriptor of f to write to. An orphan's is open only meanwhile,
// since a lease is refused as long as it is.
func (f *File) writable(fn func(fd int) error) error {
	if !f.readOnly {
		return fn(f.fd)
	}
	fd, err := unix.Openat(int(f.s.spool.Fd()), f.number.String(), unix.O_RDWR|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return fn(fd)
}
