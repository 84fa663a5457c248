package output

import (
	"container/list"
	"errors"
	"fmt"
	"sync"

	"golang.org/x/sys/unix"
)

// DefaultOpenFiles is the limit of descriptors that a Cache keeps.
const DefaultOpenFiles = 512

// Cache keeps the files used last open, up to a limit; pinned ones may exceed it. It is
// safe for concurrent use.
type Cache struct {
	limit int
	evict func(s *Slot, f *File) error

	mu  sync.Mutex
	lru list.List // of *File without a pin, the one unused for longest in front
	n   int       // open files
}

// Slot is a place in the cache for one file. The zero value is empty. Owner is the
// user's.
type Slot struct {
	Owner any

	file *File
}

// NewCache returns a cache of limit descriptors. evict is called before a file is closed
// to make room, without any lock of the cache's; it may be nil.
func NewCache(limit int, evict func(s *Slot, f *File) error) *Cache {
	if limit <= 0 {
		limit = DefaultOpenFiles
	}
	return &Cache{limit: limit, evict: evict}
}

// Pin returns the slot's file and keeps it open until Unpin. open is called where the
// slot is empty; a slot that may be empty is pinned by one goroutine at a time.
func (c *Cache) Pin(s *Slot, open func() (*File, error)) (*File, error) {
	if f := c.PinOpen(s); f != nil {
		return f, nil
	}
	if err := c.makeRoom(); err != nil {
		return nil, err
	}
	f, err := open()
	if err != nil {
		if errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE) {
			err = fmt.Errorf("%w (raise the limit of open files: %d output files are open)", err, c.Len())
		}
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	s.file, f.slot, f.pins = f, s, 1
	c.n++
	return f, nil
}

// PinOpen is Pin for a file that is open already; nil otherwise.
func (c *Cache) PinOpen(s *Slot) *File {
	c.mu.Lock()
	defer c.mu.Unlock()
	f := s.file
	if f == nil {
		return nil
	}
	if f.elem != nil {
		c.lru.Remove(f.elem)
		f.elem = nil
	}
	f.pins++
	return f
}

// Unpin lets the file be closed when room is needed, or at once when its slot was
// emptied by Drop.
func (c *Cache) Unpin(f *File) error {
	c.mu.Lock()
	f.pins--
	if f.pins > 0 {
		c.mu.Unlock()
		return nil
	}
	if f.slot != nil {
		f.elem = c.lru.PushBack(f)
		c.mu.Unlock()
		return nil
	}
	c.n--
	c.mu.Unlock()
	return f.Close()
}

// Len returns how many files are open.
func (c *Cache) Len() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.n
}

// makeRoom closes the files unused for longest until one more fits.
func (c *Cache) makeRoom() error {
	for {
		c.mu.Lock()
		front := c.lru.Front()
		if c.n < c.limit || front == nil {
			c.mu.Unlock()
			return nil
		}
		f := front.Value.(*File)
		s := f.slot
		c.take(f)
		c.mu.Unlock()
		if c.evict != nil {
			if err := c.evict(s, f); err != nil {
				return errors.Join(err, f.Close())
			}
		}
		if err := f.Close(); err != nil {
			return err
		}
	}
}

// take removes an unpinned file; c.mu is held.
func (c *Cache) take(f *File) {
	c.lru.Remove(f.elem)
	f.elem = nil
	f.slot.file, f.slot = nil, nil
	c.n--
}

// Drop empties the slot. Its file is closed now, or when the last who has it pinned
// unpins it.
func (c *Cache) Drop(s *Slot) error {
	c.mu.Lock()
	f := s.file
	if f == nil || f.pins > 0 {
		if f != nil {
			s.file, f.slot = nil, nil
		}
		c.mu.Unlock()
		return nil
	}
	c.take(f)
	c.mu.Unlock()
	return f.Close()
}

// Close closes every file that is not pinned.
func (c *Cache) Close() error {
	var errs []error
	for {
		c.mu.Lock()
		front := c.lru.Front()
		if front == nil {
			c.mu.Unlock()
			return errors.Join(errs...)
		}
		f := front.Value.(*File)
		c.take(f)
		c.mu.Unlock()
		errs = append(errs, f.Close())
	}
}
