package sink

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/crc32"

	"golang.org/x/sys/unix"

	"ftfuse/internal/output"
	"ftfuse/queue"
)

// Sizes of the applier.
const (
	compareBytes = 256 << 10 // read at once while a redo compares
	maxReplace   = 8         // files removed under one write before it is held
	blockBytes   = 4096      // what a disk loses or keeps as one
)

func pathCheck(path string) uint32 { return crc32.Checksum([]byte(path), castagnoli) }

// write brings n bytes of segs to off of g. It returns false where g cannot be written
// to for now. fresh says that the batch was assigned by this run, so that no byte of it
// can be in the file already.
func (a *applier) write(ctx context.Context, g *generation, off, n int64, segs [][]byte, fresh bool) (bool, error) {
	if g.next >= off+n {
		return true, nil // written before a Rewind
	}
	if g.hold != nil {
		return false, nil
	}
	if done := g.next - off; done > 0 {
		segs = output.Skip(segs, done)
	}
	pos := max(off, g.next)
	if fresh {
		g.live = true
	}
	err := a.put(ctx, g, pos, off+n, segs)
	var stop *stopError
	switch {
	case err == nil:
		return true, nil
	case ctx.Err() != nil:
		return false, ctx.Err()
	case errors.Is(err, output.ErrRefused), errors.As(err, &stop):
		return false, err
	}
	if written := g.next - pos; written > 0 {
		pos, segs = g.next, output.Skip(segs, written)
	}
	a.hold(g, err, pos, segs)
	return false, nil
}

// stopError is an error of ours, not of an output file: the role stops.
type stopError struct{ error }

func (e *stopError) Unwrap() error { return e.error }

// put writes segs from pos to end.
func (a *applier) put(ctx context.Context, g *generation, pos, end int64, segs [][]byte) error {
	for try := 0; pos < end; try++ {
		f, err := a.open(ctx, g, pos)
		if err != nil {
			return err
		}
		n, gone, err := a.putOpen(ctx, g, f, pos, segs)
		if uerr := a.table.cache.Unpin(f); err == nil {
			err = uerr
		}
		if err != nil {
			return err
		}
		if gone && try == maxReplace {
			return fmt.Errorf("write output file %q: it is removed as soon as it is written to", g.file.path)
		}
		pos, segs = pos+n, output.Skip(segs, n)
		if gone { // what was written since a name was last seen may have gone with it
			if err := a.replace(ctx, g, pos, true); err != nil {
				return err
			}
		}
	}
	return nil
}

// putOpen writes segs, which begin at pos, to the open file. gone says that the file
// turned out to have no name any more, and that only n bytes are to count as written.
func (a *applier) putOpen(ctx context.Context, g *generation, f *output.File, pos int64, segs [][]byte) (n int64, gone bool, err error) {
	if !g.live {
		n, err = a.redo(ctx, g, f, pos, segs)
		g.next = max(g.next, pos+n)
		if err != nil {
			return n, false, err
		}
		segs = output.Skip(segs, n)
	}
	start := n
	for len(segs) > 0 {
		at, k, err := f.Append(segs)
		if err != nil {
			return n, false, err
		}
		if at != g.place(pos+n) {
			a.log.Warn("output file was changed by somebody else; going on at its end",
				"file", f.Path(), "expected", g.place(pos+n), "end", at)
			if err := a.move(ctx, g, pos+n, g.id, at, false); err != nil {
				return n, false, err
			}
		}
		n, segs = n+k, output.Skip(segs, k)
		g.next = pos + n
		a.wrote(g, k)
	}
	info, err := f.Stat()
	if err != nil {
		return n, false, err
	}
	if info.Links == 0 {
		g.next = pos + start
		return start, true, nil
	}
	return n, false, nil
}

// wrote notes n bytes written.
func (a *applier) wrote(g *generation, n int64) {
	a.count.written.Add(uint64(n))
	a.markDirty(g, n)
}

func (a *applier) markDirty(g *generation, n int64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !g.dirty {
		g.dirty = true
		a.dirty = append(a.dirty, g)
	}
	a.bytes += n
}

// open returns g's file, pinned. Where it is gone, or was never there, the bytes from
// pos on go to the file that has the name now.
func (a *applier) open(ctx context.Context, g *generation, pos int64) (*output.File, error) {
	for {
		if g.id.IsZero() {
			if err := a.replace(ctx, g, pos, false); err != nil {
				return nil, err
			}
		}
		f, err := a.table.cache.Pin(&g.slot, func() (*output.File, error) { return g.file.root.OpenID(g.file.name, g.id) })
		if !errors.Is(err, output.ErrGone) {
			return f, err
		}
		a.log.Warn("output file is gone; going on in a new one", "file", g.file.path, "id", g.id.String())
		if err := a.replace(ctx, g, pos, !g.live); err != nil {
			return nil, err
		}
	}
}

// replace sends what was assigned to g from pos on to the end of the file that has the
// name now, which is made where there is none.
func (a *applier) replace(ctx context.Context, g *generation, pos int64, double bool) error {
	f, err := openNew(g.file)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if err := a.leave(g); err != nil {
		return err
	}
	g.live = true
	if err := a.move(ctx, g, pos, info.ID, info.Size, double); err != nil {
		return err
	}
	return a.stored(ctx)
}

// openNew opens the file that has the name, or makes it.
func openNew(f *file) (*output.File, error) {
	out, err := f.root.OpenAs(f.name, f.perm.Load())
	if errors.Is(err, unix.ENOENT) { // the output's directory itself is gone
		if err := f.root.Revive(); err != nil {
			return nil, err
		}
		return f.root.OpenAs(f.name, f.perm.Load())
	}
	return out, err
}

// leave closes the file that g was written to. What was written is synced now, or by
// the next checkpoint with the whole file system.
func (a *applier) leave(g *generation) error {
	old := a.table.cache.PinOpen(&g.slot)
	if old == nil {
		g.file.root.NeedWhole()
		return nil
	}
	err := old.Sync()
	if err != nil {
		err = &stopError{err}
	}
	return errors.Join(err, a.table.cache.Drop(&g.slot), a.table.cache.Unpin(old))
}

// move notes a new place for what was assigned to g from pos on. The note is on disk
// after the next stored.
func (a *applier) move(ctx context.Context, g *generation, pos int64, id output.ID, at int64, double bool) error {
	if double {
		a.count.doubles.Add(1)
		a.log.Warn("bytes may stand twice: they may have been written to a file that was removed or shrunk",
			"file", g.file.path, "offset", pos)
	}
	shifts := a.table.move(g, pos, id, at)
	return a.set(ctx, shiftKey(g.era), appendShifts(nil, shifts))
}

func shiftKey(era uint64) string { return fmt.Sprintf(shiftPrefix+"%016x", era) }

// set changes one key of the queue's state, past those who wait for the room that only this
// applier can make.
func (a *applier) set(ctx context.Context, key string, value []byte) error {
	_, err := a.q.Submit(ctx, &queue.Txn{Set: []queue.KV{{Key: key, Value: value}}, Sync: true, Aside: true})
	if err != nil {
		return &stopError{fmt.Errorf("store %s: %w", key, err)}
	}
	return nil
}

// stored waits until everything set before is on disk.
func (a *applier) stored(ctx context.Context) error {
	ch := make(chan error, 1)
	if _, err := a.q.Submit(ctx, &queue.Txn{Sync: true, Aside: true, Done: func(err error) { ch <- err }}); err != nil {
		return &stopError{fmt.Errorf("store the place in an output file: %w", err)}
	}
	select {
	case err := <-ch:
		if err != nil {
			return &stopError{err}
		}
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// redo looks at what an earlier run left of the bytes that were assigned to g at pos. It
// returns how many of segs are in place. When it makes g live, the rest is to be
// appended; otherwise all of segs was there.
func (a *applier) redo(ctx context.Context, g *generation, f *output.File, pos int64, segs [][]byte) (int64, error) {
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	at := g.place(pos)
	if info.Size < at { // shrunk: nobody knows what was read of it before
		g.live = true
		return 0, a.move(ctx, g, pos, g.id, info.Size, true)
	}
	var matched int64
	for _, seg := range segs {
		for len(seg) > 0 && at < info.Size {
			n := min(int64(len(seg)), info.Size-at, compareBytes-at%blockBytes)
			k, err := a.compare(f, seg[:n], at, info.Size)
			matched, at, seg = matched+k, at+k, seg[k:]
			if err != nil {
				return matched, err
			}
			if k < n { // somebody else's bytes: ours follow them
				g.live = true
				a.markDirty(g, matched)
				a.log.Warn("output file was appended to by somebody else", "file", f.Path(), "offset", at)
				if a.repaired { // or by us
					a.doubt(f.Path(), at, info.Size)
				}
				return matched, a.move(ctx, g, pos+matched, g.id, info.Size, false)
			}
		}
	}
	g.live = at == info.Size
	a.count.redone.Add(uint64(matched))
	a.markDirty(g, matched)
	return matched, nil
}

// compare brings want and the file at at into agreement, and returns how many bytes
// agree. Blocks that read as zeros, at their end or whole, are what a power loss left of
// ours and are written again; other bytes are somebody else's.
func (a *applier) compare(f *output.File, want []byte, at, size int64) (int64, error) {
	if a.buf == nil {
		a.buf = make([]byte, compareBytes)
	}
	have := a.buf[:len(want)]
	if n, err := f.ReadAt(have, at); err != nil || n < len(have) {
		if err == nil {
			err = fmt.Errorf("compare %q at %d: the file has %d bytes, had %d", f.Path(), at, at+int64(n), size)
		}
		return 0, err
	}
	if bytes.Equal(have, want) {
		return int64(len(want)), nil
	}
	for i := 0; i < len(want); {
		n := min(len(want)-i, blockBytes-int((at+int64(i))%blockBytes))
		h, w := have[i:i+n], want[i:i+n]
		if !bytes.Equal(h, w) {
			k := 0
			for h[k] == w[k] {
				k++
			}
			if len(bytes.TrimRight(h[k:], "\x00")) > 0 {
				return int64(i + k), nil
			}
			if _, err := f.WriteAt(w[k:], at+int64(i+k)); err != nil {
				return int64(i), err
			}
		}
		i += n
	}
	return int64(len(want)), nil
}
