package capture

import (
	"bytes"
	"errors"
	"fmt"
	"io"

	"ftfuse/mount/spool"
)

// closeCut returns the position of a file whose truncation was under way, which has size
// bytes now. Everything below t.Old was in the queue before the intent was.
//
// Nobody but an orphan (see spool.DetachOrphans) has written to it since the intent: the
// kernel keeps writers out until the truncation is answered, and when every ftfuse process
// is killed that lock goes with the connection. So what stands behind the old end, if the
// truncation had not happened, or behind the new end, if it had, is an orphan's, to be
// captured from there on.
//
// A file that got shorter tells by its mark, 16 random bytes right below the old end: they
// are there if it was not cut, and cannot be there if it was, since an ftruncate to less
// takes them away and writers only append. (Where less than 16 bytes were to be cut off the
// mark has that many; its bytes are none of UTF-8 text.) After power loss there are no
// orphans, and mark and length were synced before the intent. A file that got longer has
// nothing but zeros between the two ends if that had happened; an orphan who wrote as many
// NULs there is taken for it.
func (c *Capture) closeCut(f *file, t spool.Cut, size int64) (int64, error) {
	switch {
	case t.New < t.Old && len(t.Mark) == 0:
		return c.closeOldCut(f, t, size)
	case size < t.Old: // only the truncation makes it shorter
		return min(t.New, size), nil
	case t.New < t.Old:
		b := make([]byte, len(t.Mark))
		if n, err := c.o.Store.ReadAt(f.number, b, t.Old-int64(len(b))); err != nil {
			return 0, fmt.Errorf("look for the mark of a truncation in file %s: got %d bytes: %w", f.number, n, err)
		}
		if bytes.Equal(b, t.Mark) {
			return f.pos, nil
		}
		return t.New, nil
	case size < t.New:
		return f.pos, nil
	}
	zero, err := c.zeros(f, t.Old, t.New)
	if err != nil || !zero {
		return f.pos, err
	}
	c.hole(t.New - t.Old)
	return t.New, nil
}

// closeOldCut is for an intent of a version that punched after it was committed, and knew no
// orphans: data below the old end was written since the truncation.
func (c *Capture) closeOldCut(f *file, t spool.Cut, size int64) (int64, error) {
	switch size {
	case t.New:
		return t.New, nil
	case t.Old:
		return f.pos, nil
	}
	at, err := c.o.Store.SeekData(f.number, 0)
	switch {
	case errors.Is(err, io.EOF):
	case err != nil:
		return 0, fmt.Errorf("look for data in file %s after a truncation: %w", f.number, err)
	case at < t.Old:
		return min(t.New, size), nil
	}
	return min(f.pos, size), nil
}

// zeros reports whether the bytes of f from from to to are all zeros.
func (c *Capture) zeros(f *file, from, to int64) (bool, error) {
	buf := make([]byte, 64<<10)
	for from < to {
		at, err := c.o.Store.SeekData(f.number, from)
		if errors.Is(err, io.EOF) || err == nil && at >= to {
			return true, nil
		}
		if err != nil {
			return false, fmt.Errorf("look for data in file %s: %w", f.number, err)
		}
		b := buf[:min(int64(len(buf)), to-at)]
		if _, err := c.o.Store.ReadAt(f.number, b, at); err != nil {
			return false, fmt.Errorf("look for data in file %s: %w", f.number, err)
		}
		for _, x := range b {
			if x != 0 {
				return false, nil
			}
		}
		from = at + int64(len(b))
	}
	return true, nil
}
