package queue

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"os"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"ftfuse/internal/dirty"
)

// pageFile reads a bbolt file (format version 2) with pread, without bbolt and without
// mmap: every offset is checked before it is followed, so that a damaged file gives an
// error and never a panic, a SIGBUS or an endless loop, and an I/O error on the disk
// is an errno. It does not read the freelist. Source of the layout: bbolt 1.5,
// internal/common/{meta,page,inode,bucket}.go.
//
// It is safe for concurrent use.
type pageFile struct {
	f        *os.File
	size     atomic.Int64
	pageSize int64
	metas    []pageMeta            // the valid ones, newest first
	unread   atomic.Pointer[error] // see notRead
}

// pageMeta is one valid meta page.
type pageMeta struct {
	root uint64 // page of the root bucket
	high uint64 // pages from this one on were never used
	txid uint64
}

// Layout of bbolt's pages.
const (
	boltMagic     = 0xED0CDAED
	boltVersion   = 2
	pageHeader    = 16
	pageElem      = 16
	bucketHeader  = 16
	flagBranch    = 1
	flagLeaf      = 2
	leafIsBucket  = 1
	maxTreeDepth  = 24
	wholeRunBytes = 64 << 10 // page runs up to this are read at once
)

// openPages opens the file at path and checks its meta pages.
func openPages(path string) (*pageFile, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open segment: %w", err)
	}
	p := &pageFile{f: f}
	if err := p.readMetas(); err != nil {
		_ = f.Close()
		return nil, err
	}
	_ = unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_SEQUENTIAL) // advice only
	return p, nil
}

func (p *pageFile) Close() error { return p.f.Close() }

// grown tells that the file, which is being written, has at least size bytes.
func (p *pageFile) grown(size int64) {
	if size > p.size.Load() {
		p.size.Store(size)
	}
}

// readAt fills b with what stands at off. That the file ends there is damage.
func (p *pageFile) readAt(b []byte, off int64) error {
	_, err := p.f.ReadAt(b, off)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, io.EOF):
		return p.bad(off, "the file ends")
	}
	err = fmt.Errorf("read %d bytes at offset %d of %s: %w", len(b), off, p.f.Name(), err)
	if !isDamage(err) {
		p.unread.CompareAndSwap(nil, &err)
	}
	return err
}

// notRead returns the first error of reading that was no damage, or nil. Who steps over what
// cannot be read knows by it whether that is all the disk says.
func (p *pageFile) notRead() error {
	if err := p.unread.Load(); err != nil {
		return *err
	}
	return nil
}

func (p *pageFile) bad(off int64, format string, a ...any) error {
	return fmt.Errorf("%w: %s at offset %d: %s", errDamaged, p.f.Name(), off, fmt.Sprintf(format, a...))
}

// readMetas finds the page size and the valid meta pages; one of two is enough.
func (p *pageFile) readMetas() error {
	st, err := p.f.Stat()
	if err != nil {
		return fmt.Errorf("stat segment: %w", err)
	}
	p.size.Store(st.Size())
	var b [80]byte
	try := func(off int64) bool {
		if p.readAt(b[:], off) != nil {
			return false
		}
		m := b[pageHeader:]
		sum := fnv.New64a()
		sum.Write(m[:56])
		if binary.LittleEndian.Uint32(m) != boltMagic || binary.LittleEndian.Uint32(m[4:]) != boltVersion ||
			binary.LittleEndian.Uint64(m[56:]) != sum.Sum64() {
			return false
		}
		size := int64(binary.LittleEndian.Uint32(m[8:]))
		if size < 512 || size > 1<<20 || (off != 0 && off != size) {
			return false
		}
		p.pageSize = size
		p.metas = append(p.metas, pageMeta{
			root: binary.LittleEndian.Uint64(m[16:]),
			high: binary.LittleEndian.Uint64(m[40:]),
			txid: binary.LittleEndian.Uint64(m[48:]),
		})
		return true
	}
	try(0)
	if p.pageSize != 0 {
		try(p.pageSize)
	} else {
		for size := int64(512); size <= 1<<20 && !try(size); size *= 2 {
		}
	}
	if err := p.notRead(); err != nil {
		return err
	}
	if len(p.metas) == 0 {
		return p.bad(0, "no valid meta page in a file of %d bytes", p.size.Load())
	}
	if len(p.metas) == 2 && p.metas[1].txid > p.metas[0].txid {
		p.metas[0], p.metas[1] = p.metas[1], p.metas[0]
	}
	return nil
}

// pageNode is one page run, or an inline bucket's page.
type pageNode struct {
	p     *pageFile
	leaf  bool
	count int
	off   int64  // of the run in the file
	run   int64  // its length
	buf   []byte // its beginning, or all of it
}

// node reads the page run that begins with page id.
func (p *pageFile) node(id, high uint64) (*pageNode, error) {
	off := int64(id) * p.pageSize
	if id < 2 || id >= high || off+p.pageSize > p.size.Load() {
		return nil, p.bad(off, "page %d of %d is outside of the file", id, high)
	}
	buf := make([]byte, p.pageSize)
	if err := p.readAt(buf, off); err != nil {
		return nil, err
	}
	if got := binary.LittleEndian.Uint64(buf); got != id {
		return nil, p.bad(off, "page says it is %d, want %d", got, id)
	}
	run := (int64(binary.LittleEndian.Uint32(buf[12:])) + 1) * p.pageSize
	if off+run > p.size.Load() || uint64(run/p.pageSize) > high-id {
		return nil, p.bad(off, "run of %d bytes ends outside of the file", run)
	}
	if run > p.pageSize && run <= wholeRunBytes {
		whole := make([]byte, run)
		copy(whole, buf)
		if err := p.readAt(whole[p.pageSize:], off+p.pageSize); err != nil {
			return nil, err
		}
		buf = whole
	}
	return p.parse(buf, off, run)
}

func (p *pageFile) parse(buf []byte, off, run int64) (*pageNode, error) {
	n := &pageNode{p: p, off: off, run: run, buf: buf}
	if len(buf) < pageHeader {
		return nil, p.bad(off, "page of %d bytes", len(buf))
	}
	switch flags := binary.LittleEndian.Uint16(buf[8:]); flags {
	case flagLeaf:
		n.leaf = true
	case flagBranch:
	default:
		return nil, p.bad(off, "page flags %#x, want branch or leaf", flags)
	}
	n.count = int(binary.LittleEndian.Uint16(buf[10:]))
	if int64(pageHeader+n.count*pageElem) > run || (!n.leaf && n.count == 0) {
		return nil, p.bad(off, "page with %d elements in %d bytes", n.count, run)
	}
	return n, nil
}

// bytes returns [at, at+size) of the run.
func (n *pageNode) bytes(at, size int64) ([]byte, error) {
	if at < 0 || size < 0 || at+size > n.run {
		return nil, n.p.bad(n.off, "element at %d of %d bytes in a run of %d", at, size, n.run)
	}
	if at+size <= int64(len(n.buf)) {
		return n.buf[at : at+size : at+size], nil
	}
	b := dirty.Make(int(size))[:size:size]
	if err := n.p.readAt(b, n.off+at); err != nil {
		return nil, err
	}
	return b, nil
}

// pageItem is one element of a leaf: its value is read by value.
type pageItem struct {
	n        *pageNode
	key      []byte
	bucket   bool
	valueAt  int64
	valueLen int64
}

func (n *pageNode) item(i int) (pageItem, error) {
	at := int64(pageHeader + i*pageElem)
	e, err := n.bytes(at, pageElem)
	if err != nil {
		return pageItem{}, err
	}
	flags, pos := binary.LittleEndian.Uint32(e), int64(binary.LittleEndian.Uint32(e[4:]))
	klen, vlen := int64(binary.LittleEndian.Uint32(e[8:])), int64(binary.LittleEndian.Uint32(e[12:]))
	if flags > leafIsBucket || pos < pageElem {
		return pageItem{}, n.p.bad(n.off, "leaf element %d has flags %#x, position %d", i, flags, pos)
	}
	it := pageItem{n: n, bucket: flags == leafIsBucket, valueAt: at + pos + klen, valueLen: vlen}
	if it.valueAt+vlen > n.run {
		return pageItem{}, n.p.bad(n.off, "leaf element %d ends outside of its run", i)
	}
	it.key, err = n.bytes(at+pos, klen)
	return it, err
}

func (n *pageNode) child(i int) (key []byte, id uint64, err error) {
	at := int64(pageHeader + i*pageElem)
	e, err := n.bytes(at, pageElem)
	if err != nil {
		return nil, 0, err
	}
	pos, klen := int64(binary.LittleEndian.Uint32(e)), int64(binary.LittleEndian.Uint32(e[4:]))
	key, err = n.bytes(at+pos, klen)
	return key, binary.LittleEndian.Uint64(e[8:]), err
}

func (it pageItem) value() ([]byte, error) { return it.n.bytes(it.valueAt, it.valueLen) }

// subBucket is where a bucket's tree begins: a page, or an inline page.
type subBucket struct {
	p      *pageFile
	high   uint64
	root   uint64
	seq    uint64 // bbolt's bucket sequence
	inline *pageNode
}

// open returns the bucket that a leaf element holds.
func (it pageItem) open(high uint64) (subBucket, error) {
	p := it.n.p
	if !it.bucket || it.valueLen < bucketHeader {
		return subBucket{}, p.bad(it.n.off, "element %q is not a bucket", it.key)
	}
	v, err := it.value()
	if err != nil {
		return subBucket{}, err
	}
	s := subBucket{p: p, high: high, root: binary.LittleEndian.Uint64(v), seq: binary.LittleEndian.Uint64(v[8:])}
	if s.root == 0 {
		s.inline, err = p.parse(v[bucketHeader:], it.n.off, it.valueLen-bucketHeader)
	}
	return s, err
}

func (p *pageFile) rootBucket(m pageMeta) subBucket {
	return subBucket{p: p, high: m.high, root: m.root}
}

// leaf returns the leaf page under which key stands, if it stands anywhere.
func (s subBucket) leaf(key []byte) (n *pageNode, err error) {
	if n = s.inline; n == nil {
		if n, err = s.p.node(s.root, s.high); err != nil {
			return nil, err
		}
	}
	for depth := 0; !n.leaf; depth++ {
		if depth > maxTreeDepth {
			return nil, s.p.bad(n.off, "tree deeper than %d pages", maxTreeDepth)
		}
		next, err := n.search(key)
		if err != nil {
			return nil, err
		}
		if n, err = s.p.node(next, s.high); err != nil {
			return nil, err
		}
	}
	return n, nil
}

// find returns the element called key.
func (s subBucket) find(key []byte) (it pageItem, found bool, err error) {
	it, found, err = s.floor(key)
	return it, found && bytes.Equal(it.key, key), err
}

// search returns the child page under which key stands, if it stands anywhere.
func (n *pageNode) search(key []byte) (uint64, error) {
	_, page, err := n.child(0)
	if err != nil {
		return 0, err
	}
	for lo, hi := 1, n.count; lo < hi; {
		mid := (lo + hi) / 2
		k, id, err := n.child(mid)
		if err != nil {
			return 0, err
		}
		if bytes.Compare(k, key) <= 0 {
			page, lo = id, mid+1
		} else {
			hi = mid
		}
	}
	return page, nil
}

// walk calls fn for each element in order. A damaged page or element is handed to
// damage and stepped over; walk ends when fn or damage returns an error.
func (s subBucket) walk(fn func(it pageItem) error, damage func(err error) error) error {
	seen := map[uint64]bool{}
	var visit func(n *pageNode, depth int) error
	visit = func(n *pageNode, depth int) error {
		for i := range n.count {
			if n.leaf {
				it, err := n.item(i)
				if err == nil {
					err = fn(it)
				} else {
					err = damage(err)
				}
				if err != nil {
					return err
				}
				continue
			}
			_, id, err := n.child(i)
			if err == nil && (seen[id] || depth > maxTreeDepth) {
				err = s.p.bad(n.off, "page %d stands twice in the tree", id)
			}
			var c *pageNode
			if err == nil {
				seen[id] = true
				c, err = s.p.node(id, s.high)
			}
			if err != nil {
				err = damage(err)
			} else {
				err = visit(c, depth+1)
			}
			if err != nil {
				return err
			}
		}
		return nil
	}
	n, err := s.inline, error(nil)
	if n == nil {
		if n, err = s.p.node(s.root, s.high); err != nil {
			return damage(err)
		}
	}
	return visit(n, 0)
}

// Names inside a segment file.
var (
	bucketMeta    = []byte("meta")
	bucketState   = []byte("state")
	bucketBatches = []byte("batches")
	keyFormat     = []byte("format")
	keyData       = []byte("d")
	keyHead       = []byte("h")
)

// bucket returns the top bucket called name as of m.
func (p *pageFile) bucket(m pageMeta, name []byte) (subBucket, error) {
	it, ok, err := p.rootBucket(m).find(name)
	if err != nil {
		return subBucket{}, err
	}
	if !ok {
		return subBucket{}, p.bad(0, "no bucket %q", name)
	}
	return it.open(m.high)
}
