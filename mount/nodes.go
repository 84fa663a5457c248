package mount

import (
	"bazil.org/fuse"

	"ftfuse/mount/spool"
)

// The node table belongs to the request loop: nothing in this file is locked.

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
	opens    int         // open handles
	spool    *spool.File // held while opens > 0
	gate     gate
	locks    lockTable
}

func (f *file) path() string { return f.parent.child(f.name) }

// fileNode is one node id of a file. Each lookup gets a node of its own, and with it each
// separate open, because the kernel holds the node's lock over a write: one writer that
// blocks would make the others unkillable.
type fileNode struct {
	id      fuse.NodeID
	lookups uint64
	file    *file
	writers int // open handles for writing
}

type nodeTable struct {
	last  fuse.NodeID
	root  *dirNode
	dirs  map[fuse.NodeID]*dirNode
	fnode map[fuse.NodeID]*fileNode
	files map[spool.Number]*file
}

func newNodeTable() *nodeTable {
	root := &dirNode{id: fuse.RootID, lookups: 1, children: map[string]*dirNode{}}
	return &nodeTable{
		last: fuse.RootID, root: root, dirs: map[fuse.NodeID]*dirNode{fuse.RootID: root},
		fnode: map[fuse.NodeID]*fileNode{}, files: map[spool.Number]*file{},
	}
}

// dir returns the node of the directory name in parent and counts a lookup.
func (t *nodeTable) dir(parent *dirNode, name string) *dirNode {
	d := parent.children[name]
	if d == nil {
		t.last++
		d = &dirNode{id: t.last, parent: parent, name: name, children: map[string]*dirNode{}}
		parent.children[name] = d
		t.dirs[d.id] = d
	}
	d.lookups++
	return d
}

// lookup returns a fresh node for file n, named name in parent, and counts a lookup. Each
// time a fresh one, and not only when the newest is open for writing: two opens that look
// the name up before either of them opens it would share the node.
func (t *nodeTable) lookup(n spool.Number, parent *dirNode, name string) *fileNode {
	f := t.files[n]
	if f == nil {
		f = &file{number: n, gate: newGate()}
		t.files[n] = f
	}
	f.parent, f.name = parent, name
	t.last++
	fn := &fileNode{id: t.last, file: f, lookups: 1}
	f.nodes++
	t.fnode[fn.id] = fn
	return fn
}

// forget takes n lookups off a node.
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
	if d.lookups == 0 {
		delete(t.dirs, id)
		if d.parent.children[d.name] == d {
			delete(d.parent.children, d.name)
		}
	}
}

// drop removes a node that the kernel has forgotten and that has no open handle.
func (t *nodeTable) drop(fn *fileNode) {
	if fn.lookups > 0 || fn.writers > 0 {
		return
	}
	f := fn.file
	if t.fnode[fn.id] == fn {
		delete(t.fnode, fn.id)
		f.nodes--
	}
	if f.nodes == 0 && f.opens == 0 {
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
