package mount

import (
	"sync"
	"sync/atomic"

	"bazil.org/fuse"

	"ftfuse/mount/session"
	"ftfuse/mount/spool"
)

// handle is an open file or directory. What is not said to be guarded never changes.
type handle struct {
	id    fuse.HandleID
	file  *file         // nil for a directory
	node  *fileNode     //
	write *spool.Handle // nil if it is not open for writing
	reply uint32        // how the kernel was told to serve it (kernel.Open...)
	flags fuse.OpenFlags
	pid   uint32 // who opened it: the process where the kernel writes, else the thread
	asks  bool   // its records tell of processes
	path  string // as it stands in the session

	dir     *dirNode // nil for a file
	mu      sync.Mutex
	listing []byte // what READDIR gives, from the newest read at offset 0. Under mu
}

// handlePage is how many handles a page of the table has.
const handlePage = 1024

type handlesPage [handlePage]atomic.Pointer[handle]

// handleTable finds handles by their place in the session. Reading it takes no lock, for
// the sake of WRITE; who changes it holds server.mu.
type handleTable struct {
	pages [session.MaxHandles / handlePage]atomic.Pointer[handlesPage]
}

// get returns the handle id, nil if there is none.
func (t *handleTable) get(id fuse.HandleID) *handle {
	i := session.Index(uint64(id))
	if i >= session.MaxHandles {
		return nil
	}
	p := t.pages[i/handlePage].Load()
	if p == nil {
		return nil
	}
	if h := p[i%handlePage].Load(); h != nil && h.id == id {
		return h
	}
	return nil
}

func (t *handleTable) put(h *handle) {
	i := session.Index(uint64(h.id))
	p := t.pages[i/handlePage].Load()
	if p == nil {
		p = new(handlesPage)
		t.pages[i/handlePage].Store(p)
	}
	p[i%handlePage].Store(h)
}

func (t *handleTable) remove(h *handle) {
	i := session.Index(uint64(h.id))
	t.pages[i/handlePage].Load()[i%handlePage].Store(nil)
}

// openers are handles of one file, in the order in which they were opened.
type openers []*handle

func (o *openers) remove(h *handle) {
	for i, one := range *o {
		if one == h {
			*o = append((*o)[:i], (*o)[i+1:]...)
			return
		}
	}
}
