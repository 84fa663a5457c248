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
	lru list.List // of *Slot with a file and no pin, oldest in front
	n   int       // open files
}

// Slot is a place in the cache for one file. The zero value is empty. Owner is the
// user's.
type Slot struct {
	Owner any

	file *File
	pins int
	elem *list.Element // in Cache.lru
}

// NewCache returns a cache of limit descriptors. evict is called before a file is closed
// to make room, without any lock of the cache's, while nobody else can pin the slot's
// file; it may be nil.
func NewCache(limit int, evict func(s *Slot, f *File) error) *Cache {
	if limit <= 0 {
		limit = DefaultOpenFiles
	}
	return &Cache{limit: limit, evict: evict}
}

// Pin returns the slot's file and keeps it open until Unpin. open is called where the
// slot is empty; one slot is pinned by one goroutine at a time when it may be empty.
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
	s.file, s.pins = f, s.pins+1
	c.n++
	return f, nil
}

// PinOpen is Pin for a file that is open already; nil otherwise.
func (c *Cache) PinOpen(s *Slot) *File {
	c.mu.Lock()
	defer c.mu.Unlock()
	if s.file == nil {
		return nil
	}
	if s.elem != nil {
		c.lru.Remove(s.elem)
		s.elem = nil
	}
	s.pins++
	return s.file
}

// File returns the file of a slot that the caller has pinned.
func (c *Cache) File(s *Slot) *File {
	c.mu.Lock()
	defer c.mu.Unlock()
	return s.file
}

// Unpin lets the slot's file be closed when room is needed.
func (c *Cache) Unpin(s *Slot) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if s.pins--; s.pins == 0 && s.file != nil {
		s.elem = c.lru.PushBack(s)
	}
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
		s := front.Value.(*Slot)
		f := c.take(s)
		c.mu.Unlock()
		if c.evict != nil {
			if err := c.evict(s, f); err != nil {
				f.Close()
				return err
			}
		}
		if err := f.Close(); err != nil {
			return err
		}
	}
}

// take empties s; c.mu is held.
func (c *Cache) take(s *Slot) *File {
	f := s.file
	if s.elem != nil {
		c.lru.Remove(s.elem)
		s.elem = nil
	}
	s.file = nil
	c.n--
	return f
}

// Drop closes the slot's file, if it is open and nobody has it pinned.
func (c *Cache) Drop(s *Slot) error {
	c.mu.Lock()
	if s.file == nil || s.pins > 0 {
		c.mu.Unlock()
		return nil
	}
	f := c.take(s)
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
		f := c.take(front.Value.(*Slot))
		c.mu.Unlock()
		errs = append(errs, f.Close())
	}
}
