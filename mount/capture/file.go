package capture

import (
	"ftfuse/internal/filter"
	"ftfuse/internal/record"
	"ftfuse/mount/spool"
)

// item is one extent of a spool file that waits to be cut, or the end of a writer or
// of its record. It is a journal entry without what capture has no use for, and has
// no pointers, so that the garbage collector has nothing to do with a long queue.
type item struct {
	seq           uint64 // of the journal; 0 where the extent came from elsewhere
	writer        uint64
	off           int64 // of a release: the newest writer id given out before it
	time          int64
	n             uint32
	path          uint32 // in Capture.pathList
	pid, uid, gid uint32
	flags         uint16 // of the record
	kind          spool.Kind
}

func (it *item) end() int64 { return it.off + int64(it.n) }

// file is the state of one spool file.
//
// pos is the position: every byte before it is in a batch, in the unfinished line of
// a writer, or counted as a hole or as not to be transferred. seq is the newest entry
// of this file that was used up. Both stand in the same transaction as the batches,
// so a replayed entry tells by its number whether it was used up, and by the position
// how much of it.
type file struct {
	number  spool.Number
	src     *Source // nil: a spool file; else pos is the source's
	pos     int64
	seq     uint64
	gen     uint64 // raised by a truncation: what was decided before must not be done after
	path    *path  // newest, for bytes that no entry covers
	uid     uint32 // owner, for those
	gid     uint32
	writers map[uint64]*writer
	last    *writer

	q     []item
	head  int
	ready bool // in Capture.ready

	// What is taken in of it, ahead of what is cut.
	known   int64 // everything below is cut or in q, or is a hole
	size    int64 // when it was last looked at
	kernel  bool  // the kernel writes to it
	growing bool  // in Capture.growing
	orphan  bool  // a program of an earlier connection writes to it

	by opened // whose the kernel's bytes at pos are

	// A truncation is under way: what is written behind it has offsets that mean
	// nothing until the position is that of the truncated file.
	frozen bool

	finished uint64 // see Finished; 0: nothing is stored

	dirty bool   // since the last transaction
	key   string // of the position in the queue
}

// writer is one open handle and its unfinished line.
type writer struct {
	id   uint64
	file *file
	path *path

	pend    []byte // the unfinished line, without the pieces that went out
	attr    record.Attr
	inPiece bool           // a piece of the line went out, or would have but for dropped
	dropped filter.Verdict // the line was judged by its beginning: the rest of it is dropped too
	length  int64          // of the binary record so far

	// Where pend stands in the queue. Offsets count all bytes that this writer ever
	// left unfinished, so that no chunk key is used twice.
	base   int64   // of pend[0]
	stored int64   // below it, chunks hold the bytes
	chunks []int64 // offsets of chunks that stand in the queue
	saved  bool    // a head stands in the queue
	dirty  bool
	key    string
}

func (f *file) empty() bool { return f.head == len(f.q) }

func (f *file) push(it item) {
	if f.head > 0 && f.head == len(f.q) {
		f.q, f.head = f.q[:0], 0
	} else if f.head > 1024 && f.head > len(f.q)/2 {
		n := copy(f.q, f.q[f.head:])
		f.q, f.head = f.q[:n], 0
	}
	f.q = append(f.q, it)
}

// writerOf returns the state of the handle id.
func (f *file) writerOf(id uint64, p *path) *writer {
	if f.last != nil && f.last.id == id {
		f.last.path = p
		return f.last
	}
	w := f.writers[id]
	if w == nil {
		w = &writer{id: id, file: f}
		if f.writers == nil {
			f.writers = make(map[uint64]*writer, 1)
		}
		f.writers[id] = w
	}
	w.path = p
	f.last = w
	return w
}

func (f *file) forget(w *writer) {
	delete(f.writers, w.id)
	if f.last == w {
		f.last = nil
	}
}

// open reports whether the writer is inside a line or a binary record.
func (w *writer) open() bool { return len(w.pend) > 0 || w.inPiece }
