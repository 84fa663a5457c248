package mount

import (
	"math/rand/v2"
	"strings"

	"bazil.org/fuse"

	"ftfuse/mount/spool"
)

// After a takeover the kernel goes on using node ids that a predecessor gave out. They say
// what they are of, so a node that is asked for is made again; only the name has to be
// found. What the kernel has looked up before is not counted: a node is forgotten too
// early, and made again.

// predecessor is what is known of names from before a takeover.
type predecessor struct {
	names map[spool.Number]string // as the store found them at the start
	dirs  map[uint64]string       // by inode; nil until one is asked for
}

// takeOver makes the table find nodes of a predecessor. Counters go on where the
// predecessor's hardly are: two lookups that get one node only share its lock.
func (t *nodeTable) takeOver(store *spool.Store) {
	t.fresh = rand.Uint64N(freshMax)
	t.behind = &predecessor{names: map[spool.Number]string{}}
	_ = store.Files(func(i spool.FileInfo) bool {
		if i.Path != "" {
			t.behind.names[i.Number] = i.Path
		}
		return true
	})
}

// fileNode returns the node of a file, nil if there is none.
func (s *server) fileNode(id fuse.NodeID) *fileNode {
	t := s.nodes
	if fn := t.fnode[id]; fn != nil || t.behind == nil {
		return fn
	}
	n, counter, ok := parseFileNode(id)
	if !ok {
		return nil
	}
	f := t.files[n]
	if f == nil {
		path, ok := s.nameOf(n)
		if !ok {
			return nil // nobody has it open, and it has no name
		}
		if f = s.named(n, path, counter == 0); f == nil {
			return nil
		}
	}
	if f.one != (counter == 0) {
		return nil
	}
	return t.node(f, id)
}

// named adds a file with its path to the table.
func (s *server) named(n spool.Number, path string, one bool) *file {
	dir, name := splitPath(path)
	parent := s.dirAt(dir)
	if parent == nil {
		return nil
	}
	f := s.nodes.file(n, one)
	f.parent, f.name = parent, name
	return f
}

func splitPath(path string) (dir, name string) {
	if i := strings.LastIndexByte(path, '/'); i >= 0 {
		return path[:i], path[i+1:]
	}
	return "", path
}

// dirNode returns the node of a directory, nil if there is none.
func (s *server) dirNode(id fuse.NodeID) *dirNode {
	t := s.nodes
	if d := t.dirs[id]; d != nil || t.behind == nil || id&1 == 1 {
		return d
	}
	inode := uint64(id&dirIDMask) >> firstDirBit
	path, ok := t.behind.dirs[inode]
	if st, err := s.store.StatDir(path); !ok || err != nil || st.Ino != inode {
		t.behind.dirs = s.scanDirs()
		if path, ok = t.behind.dirs[inode]; !ok {
			return nil
		}
	}
	return s.dirAt(path)
}

// noteDead is for the directory name in parent, which was just made. One that was removed before the
// takeover may have had its inode number, and somebody still be in it: then the kernel knows its
// node, and would take the new directory for the removed one. So that node is noted, and the new
// directory gets another.
func (s *server) noteDead(parent *dirNode, name string) {
	t := s.nodes
	st, err := s.store.StatDir(parent.child(name))
	if t.behind == nil || err != nil {
		return
	}
	for id := dirNodeID(st.Ino); t.dirs[id] != nil || s.dev.Knows(uint64(id)); id += dirSalt {
		if t.dirs[id] == nil {
			t.dirs[id] = &dirNode{id: id, lookups: 1, parent: parent, name: name, children: map[string]*dirNode{}}
		}
	}
}

// dirAt returns the node of the directory at path, with those above it.
func (s *server) dirAt(path string) *dirNode {
	d := s.nodes.root
	if path == "" {
		return d
	}
	for name := range strings.SplitSeq(path, "/") {
		st, err := s.store.StatDir(d.child(name))
		if err != nil {
			return nil
		}
		d = s.nodes.dir(d, name, st.Ino, 0)
	}
	return d
}

// nameOf finds the path of file n. ok is false if it has no name.
func (s *server) nameOf(n spool.Number) (path string, ok bool) {
	names := s.nodes.behind.names
	if path, ok = names[n]; ok {
		if dir, now, err := s.store.Lookup(path); err == nil && !dir && now == n {
			return path, true
		}
	}
	if _, err := s.store.StatFile(n); err != nil {
		return "", false
	}
	// Renamed since, or a directory above it: look at all names once more.
	clear(names)
	s.walkTree(func(e spool.Dirent) {
		if e.Number != 0 {
			names[e.Number] = e.Name
		}
	})
	path, ok = names[n]
	return path, ok
}

func (s *server) scanDirs() map[uint64]string {
	dirs := map[uint64]string{}
	s.walkTree(func(e spool.Dirent) {
		if e.Dir {
			dirs[e.Inode] = e.Name
		}
	})
	return dirs
}

// walkTree gives fn every name below the mount.
func (s *server) walkTree(fn func(spool.Dirent)) {
	err := s.store.Walk(func(e spool.Dirent) error {
		fn(e)
		return nil
	})
	if err != nil {
		s.log.Error("look for names after a takeover", "err", err)
	}
}
