package mount

import (
	"bazil.org/fuse"

	"ftfuse/mount/spool"
)

// The node table is guarded by server.mu, but for what WRITE needs of a handle, which
// never changes.
//
// Node ids need no table on disk: they say what they are of. A file's is odd and has its
// number and a counter, a directory's is even and has the inode number of its directory in
// the tree of names. The root's is fuse.RootID, which no file has: numbers begin at 1.
const (
	numberBits  = 40
	freshMax    = 1<<(63-numberBits) - 1 // the largest counter
	numberMask  = 1<<numberBits - 1
	dirSalt     = 1 << 56 // see nodeTable.dir
	dirIDMask   = dirSalt - 1
	firstDirBit = 1
)

// fileNodeID is the id of a node of file n. Counter 0 is the one node of a file that the
// kernel may write to.
func fileNodeID(n spool.Number, counter uint64) fuse.NodeID {
	return fuse.NodeID(1 | uint64(n)<<1 | counter<<(numberBits+1))
}

func dirNodeID(inode uint64) fuse.NodeID { return fuse.NodeID(inode << firstDirBit) }

// parseFileNode takes a file's node id apart. ok is false for other ids.
func parseFileNode(id fuse.NodeID) (n spool.Number, counter uint64, ok bool) {
	n = spool.Number(uint64(id) >> 1 & numberMask)
	return n, uint64(id) >> (numberBits + 1), id&1 == 1 && n > 0
}

// dirNode is a directory that the kernel knows.
type dirNode struct {
	id       fuse.NodeID
	lookups  uint64
	parent   *dirNode // nil for the root
	name     string
	children map[string]*dirNode // those that the kernel knows
}

// path is the directory's path below the mount, "" for the root.
func (d *dirNode) path() string {
	if d.parent == nil {
		return ""
	}
	return d.parent.child(d.name)
}

// isRemoved reports whether d has lost its name, which another directory may have by now.
func (d *dirNode) isRemoved() bool { return d.parent != nil && d.parent.children[d.name] != d }

// child is the path of a name in d.
func (d *dirNode) child(name string) string {
	if p := d.path(); p != "" {
		return p + "/" + name
	}
	return name
}

// file is a file that the kernel knows, by one node or several.
type file struct {
	number   spool.Number
	parent   *dirNode // where its name is; the last one it had if unlinked
	name     string
	unlinked bool
	nodes    int
	handles  int         // open ones
	spool    *spool.File // held while handles > 0
	gate     gate
	locks    lockTable

	// one: the kernel knows the file by one node and may write to it by itself. Else each
	// lookup gives a node of its own, and the daemon writes.
	one     bool
	way     way     // how it is open, while handles > 0
	backing int32   // backing id, 0 for none
	kernel  openers // handles through which the kernel writes
	slow    int     // handles through which it would, were the file's way another
	said    bool    // that there are such
	writers int     // handles for writing
}

func (f *file) path() string { return f.parent.child(f.name) }

// fileNode is one node id of a file. Where the daemon writes each lookup gets a node of
// its own, and with it each separate open, because the kernel holds the node's lock over
// a write: one writer that blocks would make the others unkillable.
type fileNode struct {
	id      fuse.NodeID
	lookups uint64
	file    *file
	handles int // open ones
}

type nodeTable struct {
	one    func(path string) bool // whether a file gets one node
	fresh  uint64                 // the newest counter given out
	root   *dirNode
	dirs   map[fuse.NodeID]*dirNode
	fnode  map[fuse.NodeID]*fileNode
	files  map[spool.Number]*file
	behind *predecessor // what the kernel may know from before a takeover; nil for nothing
}

func newNodeTable(one func(path string) bool) *nodeTable {
	root := &dirNode{id: fuse.RootID, lookups: 1, children: map[string]*dirNode{}}
	return &nodeTable{
		one: one, root: root, dirs: map[fuse.NodeID]*dirNode{fuse.RootID: root},
		fnode: map[fuse.NodeID]*fileNode{}, files: map[spool.Number]*file{},
	}
}

// dir returns the node of the directory name in parent, whose inode in the tree is given,
// and counts n lookups.
func (t *nodeTable) dir(parent *dirNode, name string, inode uint64, n uint64) *dirNode {
	d := parent.children[name]
	if d == nil || d.id&dirIDMask != dirNodeID(inode)&dirIDMask {
		d = &dirNode{id: dirNodeID(inode), parent: parent, name: name, children: map[string]*dirNode{}}
		// The inode number of a directory that was removed and that somebody still is in may
		// have come again.
		for t.dirs[d.id] != nil {
			d.id += dirSalt
		}
		parent.children[name] = d
		t.dirs[d.id] = d
	}
	d.lookups += n
	return d
}

// lookup returns the node for file n, named name in parent, and counts a lookup. Unless
// the file has one node it is a fresh one each time, and not only when the newest is open
// for writing: two opens that look the name up before either of them opens it would share
// the node.
func (t *nodeTable) lookup(n spool.Number, parent *dirNode, name string) *fileNode {
	f := t.files[n]
	if f == nil {
		f = t.file(n, t.one(parent.child(name)))
	}
	f.parent, f.name = parent, name
	counter := uint64(0)
	if !f.one {
		counter = t.counter(n)
	}
	fn := t.node(f, fileNodeID(n, counter))
	fn.lookups++
	return fn
}

// file adds a file to the table.
func (t *nodeTable) file(n spool.Number, one bool) *file {
	f := &file{number: n, one: one, gate: newGate()}
	t.files[n] = f
	return f
}

// node returns the node id of f, which is made if there is none.
func (t *nodeTable) node(f *file, id fuse.NodeID) *fileNode {
	fn := t.fnode[id]
	if fn == nil {
		fn = &fileNode{id: id, file: f}
		f.nodes++
		t.fnode[id] = fn
	}
	return fn
}

// counter gives out the next one that no node of file n has.
func (t *nodeTable) counter(n spool.Number) uint64 {
	for {
		if t.fresh++; t.fresh > freshMax {
			t.fresh = 1
		}
		if t.fnode[fileNodeID(n, t.fresh)] == nil {
			return t.fresh
		}
	}
}

// forget takes n lookups off a node. One that is not known is from before a takeover.
func (t *nodeTable) forget(id fuse.NodeID, n uint64) {
	if fn := t.fnode[id]; fn != nil {
		fn.lookups -= min(n, fn.lookups)
		t.drop(fn)
		return
	}
	d := t.dirs[id]
	if d == nil || d.parent == nil {
		return
	}
	d.lookups -= min(n, d.lookups)
	t.dropDir(d)
}

// dropDir removes a directory that the kernel has forgotten, with those above it that are
// only there for its path.
func (t *nodeTable) dropDir(d *dirNode) {
	for d.parent != nil && d.lookups == 0 && len(d.children) == 0 {
		delete(t.dirs, d.id)
		if d.parent.children[d.name] == d {
			delete(d.parent.children, d.name)
		}
		d = d.parent
	}
}

// drop removes a node that the kernel has forgotten and that has no open handle.
func (t *nodeTable) drop(fn *fileNode) {
	if fn.lookups > 0 || fn.handles > 0 {
		return
	}
	f := fn.file
	if t.fnode[fn.id] == fn {
		delete(t.fnode, fn.id)
		f.nodes--
	}
	if f.nodes == 0 && f.handles == 0 {
		delete(t.files, f.number)
	}
}

// unlinked tells the table that file n has lost its name.
func (t *nodeTable) unlinked(n spool.Number) {
	if f := t.files[n]; f != nil {
		f.unlinked = true
	}
}

// removed tells the table that the directory name in parent is gone.
func (t *nodeTable) removed(parent *dirNode, name string) {
	delete(parent.children, name)
}

// renamed moves what the table knows under the old name.
func (t *nodeTable) renamed(n spool.Number, dir bool, from *dirNode, old string, to *dirNode, name string) {
	if !dir {
		if f := t.files[n]; f != nil {
			f.parent, f.name = to, name
		}
		return
	}
	d := from.children[old]
	delete(from.children, old)
	delete(to.children, name)
	if d != nil {
		d.parent, d.name = to, name
		to.children[name] = d
	}
}
