package mount

import "bazil.org/fuse"

// lookedUp knows by which name each thread found a file last. The kernel caches no names here
// (EntryValid is 0), so that open(2) of a file is a LOOKUP and an OPEN of one thread. A rename may
// come in between, and the OPEN tells the file only, whose name is another by then: a program
// that opened app.log in the moment of its rotation would be taken for one that opened
// app.log.1. It is guarded by server.mu.
type lookedUp map[uint32]lastFound

// lastFound is what a thread found.
type lastFound struct {
	node fuse.NodeID
	path string
}

// mostLooked is how many threads are remembered: those between their two requests count, the
// others have looked at a file without opening it.
const mostLooked = 1024

// note remembers that a thread found a file by a path.
func (l lookedUp) note(tid uint32, node fuse.NodeID, path string) {
	if len(l) >= mostLooked {
		clear(l)
	}
	l[tid] = lastFound{node, path}
}

// take returns the path by which a thread that opens a file has found it, or the other where
// that is not known: it came by /proc/PID/fd, or another worker looked it up.
func (l lookedUp) take(tid uint32, node fuse.NodeID, other string) string {
	f, ok := l[tid]
	delete(l, tid)
	if !ok || f.node != node {
		return other
	}
	return f.path
}
