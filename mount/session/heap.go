package session

import (
	"fmt"
	"math/bits"
	"slices"
	"sync/atomic"
)

// heap keeps the paths of open files, each once, in blocks of 1, 2, 4 ... cells. A path
// is written before the first handle that names it is stored, and never changes.
type heap struct {
	s      *Session
	byName map[string]*name
	free   [16][]uint32 // first cells of free blocks, by class
	used   uint32       // cells that were given out at some time
	have   uint32       // cells that are allocated
}

type name struct {
	cell uint32
	refs int
}

// class is the size of a block for a path: 1<<class cells.
func class(size int) int { return bits.Len(uint(max(size, 1)-1) / cellSize) }

func (p *heap) acquire(path string) (uint32, error) {
	if n := p.byName[path]; n != nil {
		n.refs++
		return n.cell, nil
	}
	c := class(len(path))
	if c >= len(p.free) {
		return 0, fmt.Errorf("%w: a path of %d bytes", ErrHandles, len(path))
	}
	var cell uint32
	if f := p.free[c]; len(f) > 0 {
		cell, p.free[c] = f[len(f)-1], f[:len(f)-1]
	} else {
		end := p.used + 1<<c
		if err := p.grow(end); err != nil {
			return 0, err
		}
		cell, p.used = p.used, end
	}
	copy(p.s.mem[pathsAt+int(cell)*cellSize:], path)
	p.byName[path] = &name{cell: cell, refs: 1}
	return cell, nil
}

// grow allocates until there are end cells.
func (p *heap) grow(end uint32) error {
	for p.have < end {
		from := int(p.have) * cellSize
		if from+chunk > maxPaths {
			return fmt.Errorf("%w: their paths take %d bytes", ErrHandles, from)
		}
		if err := p.s.allocate(pathsAt+from, pathsAt+from+chunk); err != nil {
			return fmt.Errorf("%w: %w", ErrHandles, err)
		}
		p.have += chunk / cellSize
		atomic.StoreUint32(p.s.word(hdrPaths), uint32(from+chunk))
	}
	return nil
}

func (p *heap) release(path string) {
	n := p.byName[path]
	if n == nil {
		return
	}
	if n.refs--; n.refs > 0 {
		return
	}
	delete(p.byName, path)
	c := class(len(path))
	p.free[c] = append(p.free[c], n.cell)
}

// read returns the path that begins at a cell.
func (p *heap) read(cell, size uint32) (string, bool) {
	have := int(atomic.LoadUint32(p.s.word(hdrPaths)))
	from := int(cell) * cellSize
	if have > maxPaths || from+int(size) > have {
		return "", size == 0
	}
	return string(p.s.mem[pathsAt+from : pathsAt+from+int(size)]), true
}

// keep notes that a handle has the path at cell.
func (p *heap) keep(path string, cell uint32) {
	if n := p.byName[path]; n != nil {
		n.refs++
		return
	}
	p.byName[path] = &name{cell: cell, refs: 1}
}

// load finds, after keep was called for every handle, what is free.
func (p *heap) load() error {
	bytes := atomic.LoadUint32(p.s.word(hdrPaths))
	if bytes%chunk != 0 || bytes > maxPaths {
		return p.s.bad("%d bytes of paths are in use, which cannot be", bytes)
	}
	p.have = bytes / cellSize
	type block struct{ from, end uint32 }
	var blocks []block
	for path, n := range p.byName {
		blocks = append(blocks, block{n.cell, n.cell + 1<<class(len(path))})
	}
	slices.SortFunc(blocks, func(a, b block) int { return int(a.from) - int(b.from) })
	at := uint32(0)
	for _, b := range blocks {
		if b.from < at || b.end > p.have {
			return p.s.bad("paths overlap at cell %d", b.from)
		}
		p.gap(at, b.from)
		at = b.end
	}
	p.used = at
	return nil
}

// gap frees the cells between two blocks.
func (p *heap) gap(from, end uint32) {
	for from < end {
		c := min(bits.Len32(end-from)-1, len(p.free)-1)
		p.free[c] = append(p.free[c], from)
		from += 1 << c
	}
}
