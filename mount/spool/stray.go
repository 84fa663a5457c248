package spool

import (
	"errors"
	"fmt"
	"hash/crc32"
	"slices"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// A program whose descriptor reads and writes, beside others for which the kernel has the spool
// file, can map it (fs/fuse/passthrough.c, fuse_passthrough_mmap). Nothing tells of a store
// through a mapping. One over bytes that are not captured yet is captured with them; one over
// bytes that were is a stray: it is in no record. So while there is such a descriptor the file is
// guarded: what its captured bytes were is known block by block, and compared before the daemon
// itself changes them, and at the end.

// guardMost bounds what Guard reads, while the program waits for its open(2). There is more only
// where space is not given back.
const guardMost = 32 << 20

var errGuardMost = errors.New("too many bytes that were captured still lie in the spool")

// guard is what the captured bytes of a file were.
type guard struct {
	on      atomic.Bool // changed under mu
	mu      sync.Mutex
	handles []*Handle
	end     int64            // the bytes below are guarded
	sums    map[int64]uint32 // CRC-32C of each block that has bytes, by its offset, up to end. What has none was a hole
	found   int64            // bytes at most of strays that nobody was told of yet
}

// Guard looks for strays from here on. It has to be called before the program has the
// descriptor of h, and Unguard when that is closed.
func (h *Handle) Guard() error {
	f, g := h.File, &h.guard
	g.mu.Lock()
	defer g.mu.Unlock()
	g.handles = append(g.handles, h)
	if g.on.Load() {
		return nil
	}
	g.on.Store(true) // before captured is read: see caught
	g.end, g.sums = 0, map[int64]uint32{}
	err := f.look(0, f.captured.Load(), guardMost)
	if err != nil {
		g.remove(h)
	}
	return err
}

// Unguard takes a Guard back, and says what strays there are. Without one it does nothing.
func (h *Handle) Unguard() error {
	g := &h.guard
	g.mu.Lock()
	defer g.mu.Unlock()
	if !slices.Contains(g.handles, h) {
		return nil
	}
	defer g.remove(h)
	return h.look(0, g.end, noLimit)
}

// remove needs g.mu.
func (g *guard) remove(h *Handle) {
	g.handles = slices.DeleteFunc(g.handles, func(o *Handle) bool { return o == h })
	if len(g.handles) == 0 {
		g.on.Store(false)
		g.sums = nil
	}
}

// caught says that the bytes below to are being captured. It comes before they are read, so that
// no store falls in between, and costs nothing where f is not guarded.
func (f *File) caught(to int64) {
	if to > f.captured.Load() {
		f.captured.Store(to) // before on is read: either Guard sees it, or this sees the guard
	}
	if !f.guard.on.Load() {
		return
	}
	f.guard.mu.Lock()
	defer f.guard.mu.Unlock()
	if g := &f.guard; g.on.Load() && to > g.end {
		f.unlooked(f.look(g.end, to, noLimit))
	}
}

// changing lets the daemon itself change captured bytes, those from from to to.
func (f *File) changing(from, to int64, change func()) {
	g := &f.guard
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.on.Load() {
		change()
		return
	}
	f.unlooked(f.look(from, to, noLimit))
	change()
	for at := from / blockSize * blockSize; at < to; at += blockSize {
		delete(g.sums, at)
	}
	f.unlooked(f.eachBlock(from, to, func(at int64, b []byte) error {
		g.sums[at] = crc32.Checksum(b, castagnoli)
		return nil
	}))
}

// cut says that f has size bytes now, all captured, whatever they were before. Their strays were
// looked for.
func (f *File) cut(size int64) {
	g := &f.guard
	g.mu.Lock()
	defer g.mu.Unlock()
	f.captured.Store(size)
	if g.on.Load() {
		g.end = 0
		clear(g.sums)
		f.unlooked(f.look(0, size, noLimit))
	}
}

const noLimit = 1 << 62

// look compares the blocks from from to to with what they were, as far as they are guarded, and
// guards what they are. It reads most bytes at most. It needs guard.mu.
func (f *File) look(from, to, most int64) error {
	g := &f.guard
	err := f.eachBlock(from, to, func(at int64, b []byte) error {
		if most -= int64(len(b)); most < 0 {
			return errGuardMost
		}
		if old := b[:max(0, min(g.end-at, int64(len(b))))]; len(old) > 0 {
			was, ok := g.sums[at]
			if !ok {
				was = crc32.Checksum(make([]byte, len(old)), castagnoli)
			}
			if crc32.Checksum(old, castagnoli) != was {
				g.found += int64(len(old))
			}
		}
		g.sums[at] = crc32.Checksum(b, castagnoli)
		return nil
	})
	g.end = max(g.end, to)
	if g.found > 0 {
		h := g.handles[len(g.handles)-1]
		f.s.sayStray("a program stored into a shared mapping over bytes that were captured", h.Path, h.by.PID, g.found)
		g.found = 0
	}
	return err
}

// eachBlock reads the blocks from from to to that are in no hole, those at the ends whole, but
// nothing behind both to and what is guarded. It needs guard.mu.
func (f *File) eachBlock(from, to int64, do func(at int64, b []byte) error) error {
	buf := make([]byte, blockSize)
	limit := max(to, f.guard.end)
	for at := from / blockSize * blockSize; at < to; {
		data, err := unix.Seek(f.fd, at, unix.SEEK_DATA)
		if err == unix.ENXIO {
			return nil
		}
		hole := int64(0)
		if err == nil {
			hole, err = unix.Seek(f.fd, data, unix.SEEK_HOLE)
		}
		for at = max(at, data/blockSize*blockSize); err == nil && at < min(hole, to); at += blockSize {
			n := 0
			if n, err = f.ReadAt(buf[:min(blockSize, limit-at)], at); err == nil {
				err = do(at, buf[:n])
			}
		}
		if err != nil {
			return fmt.Errorf("look for stores into spool file %s: %w", f.number, err)
		}
	}
	return nil
}

// Stored says that the process pid closed h, and keeps n bytes of the file mapped shared: what it
// stores there from now on is not looked for.
func (h *Handle) Stored(pid uint32, n int64) {
	h.s.sayStray("a program closed a file and keeps it mapped shared", h.Path, pid, n)
}

func (s *Store) sayStray(what, path string, pid uint32, n int64) {
	s.strays.Add(uint64(n))
	s.o.Logger.Warn(what+": what it stores there is not transferred; let it write(2), or give the file a rule with attribution = \"write\", where such a mapping is refused",
		"path", path, "pid", pid, "bytes_at_most", n)
}

// Strays is how many bytes at most were stored through shared mappings and are in no record.
func (s *Store) Strays() uint64 { return s.strays.Load() }

func (f *File) unlooked(err error) {
	if err != nil {
		f.s.o.Logger.Warn("stores through a shared mapping are not noticed", "file", f.number.String(), "err", err)
	}
}
