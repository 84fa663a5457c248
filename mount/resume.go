package mount

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"

	"bazil.org/fuse"

	"ftfuse/mount/kernel"
	"ftfuse/mount/session"
	"ftfuse/mount/spool"
)

// heldFile is an open file of a predecessor, acquired and with its writer.
type heldFile struct {
	session.Handle
	file  *spool.File   // nil for a directory
	write *spool.Handle // nil if it was not open for writing
}

// openSession opens the session file. A damaged one is replaced, unless there is a
// connection that it is needed for.
func openSession(path string, taken bool, log *slog.Logger) (*session.Session, error) {
	sess, err := session.Open(path)
	if err == nil || taken || !errors.Is(err, session.ErrFormat) {
		return sess, err
	}
	log.Warn("the session file of an earlier connection is made anew", "err", err)
	if err := os.Remove(path); err != nil {
		return nil, fmt.Errorf("replace the session file: %w", err)
	}
	return session.Open(path)
}

// takeSession restores the open files of a connection that is taken over, before the
// capture recovers: it gets to know who of the writers lives. nil is a new connection.
func (r *role) takeSession() (live func(writer uint64) bool, err error) {
	if r.taken.fd < 0 {
		return nil, nil
	}
	if err := r.sess.Resume(r.taken.id); err != nil {
		return nil, fmt.Errorf("take the mount over: %w", err)
	}
	if r.held, err = restoreHandles(r.store, r.sess); err != nil {
		return nil, err
	}
	if err := fpRestored.Inject(); err != nil {
		return nil, err
	}
	return r.sess.Live()
}

// restoreHandles acquires the files of the handles in a session that was resumed, before
// the capture recovers: else what has no name would be removed, and unfinished lines of
// writers that live would be ended.
func restoreHandles(store *spool.Store, sess *session.Session) ([]heldFile, error) {
	all, err := sess.Handles()
	if err != nil {
		return nil, err
	}
	slices.SortFunc(all, func(a, b session.Handle) int { return int(a.Time - b.Time) })
	held := make([]heldFile, 0, len(all))
	for _, h := range all {
		one := heldFile{Handle: h}
		if h.Kind != session.Dir {
			if one.file, err = store.Acquire(spool.Number(h.File)); err != nil {
				return nil, fmt.Errorf("restore the open file %q: %w", h.Path, err)
			}
		}
		if h.Kind == session.Write {
			m := spool.Meta{Unique: h.Unique, PID: h.PID, UID: h.UID, GID: h.GID, Time: h.Time}
			if one.write, err = store.RestoreHandle(one.file, h.Path, spool.OpenMode(h.Mode), h.Writer, &m); err != nil {
				return nil, fmt.Errorf("restore the open file %q: %w", h.Path, err)
			}
		}
		held = append(held, one)
	}
	return held, nil
}

// resume makes the server go on with the connection of a predecessor, whose open files are
// given. It comes before serve.
func (s *server) resume(held []heldFile) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.nodes.takeOver(s.store)
	s.restored = make(map[uint64]*handle, len(held))
	for i := range held {
		s.restore(&held[i])
	}
	for number, locks := range s.session.Locks() {
		f := s.nodes.files[spool.Number(number)]
		if f == nil {
			s.log.Warn("locks of a file that nobody has open are dropped", "file", spool.Number(number).String())
			if err := s.session.SetLocks(number, nil); err != nil {
				return fmt.Errorf("drop locks: %w", err)
			}
			continue
		}
		f.locks.held = restoredLocks(locks)
	}
	s.log.Info("open files of the predecessor are taken over", "handles", len(held), "files", len(s.nodes.files))
	return nil
}

// restore makes one handle again.
func (s *server) restore(k *heldFile) {
	h := &handle{
		id: fuse.HandleID(k.ID), reply: uint32(k.Reply), flags: fuse.OpenFlags(k.Flags), pid: k.PID, path: k.Path, write: k.write,
	}
	h.asks = h.write != nil && s.asksOf(h.flags, func() string { return h.write.Path })
	s.restored[k.Unique] = h
	if k.Poll != 0 {
		s.pollers.add(h.id, wakeup(k.Poll))
		s.pollers.ask(h.id)
	}
	if k.Kind == session.Dir {
		if h.dir = s.dirNode(fuse.NodeID(k.Node)); h.dir == nil { // removed: it reads as empty
			_, name := splitPath(k.Path)
			h.dir = &dirNode{id: fuse.NodeID(k.Node), parent: s.nodes.root, name: name, children: map[string]*dirNode{}}
		}
		s.handles.put(h)
		return
	}
	n, counter, _ := parseFileNode(fuse.NodeID(k.Node))
	f := s.nodes.files[n]
	if f == nil {
		if path, ok := s.nodes.behind.names[n]; ok {
			f = s.named(n, path, counter == 0)
		}
		if f == nil {
			f = s.nodes.file(n, counter == 0)
			f.parent, f.name, f.unlinked = s.nodes.root, k.Path, true
		}
	}
	f.spool = k.file
	h.file, h.node = f, s.nodes.node(f, fuse.NodeID(k.Node))
	if f.one {
		f.way = wayDaemon
		if h.reply&kernel.OpenPassthrough != 0 {
			f.way, f.backing = wayKernel, k.Backing
		}
	}
	s.count(h)
	s.handles.put(h)
	if h.mappable() {
		s.log.Warn("a program has this file open for reading and writing: what it stored through a shared mapping while the worker changed is not transferred, and not noticed", "path", h.path, "pid", h.pid)
		s.guard(h)
	}
}

// leave ends the server for a successor: nothing more is read and nothing answered. What
// is under way either is done, and the successor finds it done when the kernel gives it
// the request again, or is not done at all. When it returns nothing uses the store any
// more. serve must be running.
func (s *server) leave() {
	s.leaving.Store(true)
	s.cancel()
	s.wake()
	s.wg.Wait()
}
