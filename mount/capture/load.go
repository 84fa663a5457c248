package capture

import (
	"fmt"
	"slices"

	"ftfuse/mount/spool"
)

// stored is what the queue and the spool know of an earlier run.
type stored struct {
	seq     uint64 // the journal's, committed
	files   []spool.FileInfo
	pos     map[spool.Number]storedPos // of files not yet taken up
	cuts    map[spool.Number]spool.Cut
	orphans map[spool.Number]bool // not in the spool any more

	repaired bool // the queue was: values may be older than what it holds, or missing
}

// load reads the state. Unfinished lines become writers, tails paths.
func (c *Capture) load() (*stored, error) {
	st := &stored{pos: map[spool.Number]storedPos{}, cuts: map[spool.Number]spool.Cut{}, orphans: map[spool.Number]bool{}}
	st.repaired = c.repairNote()
	if v, ok := c.o.Queue.Get(keyJournal); ok {
		if err := checkValue(keyJournal, v, 9); err != nil {
			return nil, err
		}
		st.seq = le.Uint64(v[1:])
	}
	err := c.o.Store.Files(func(f spool.FileInfo) bool {
		st.files = append(st.files, f)
		return true
	})
	if err != nil {
		return nil, fmt.Errorf("list spool files: %w", err)
	}
	for _, read := range []func() error{
		func() error {
			return c.eachFile(prefixPos, func(n spool.Number, key string, v []byte) (err error) {
				st.pos[n], err = parsePos(key, v)
				return err
			})
		},
		func() error {
			return c.eachFile(prefixCut, func(n spool.Number, key string, v []byte) (err error) {
				st.cuts[n], err = parseCut(key, v)
				return err
			})
		},
		func() error { return c.each(prefixTail, c.loadTail) },
		func() error { return c.eachFile(prefixDone, c.loadDone) },
		func() error { return c.eachFile(prefixSrc, c.loadSource) },
		func() error { return c.loadPending(st.repaired) },
	} {
		if err := read(); err != nil {
			return nil, err
		}
	}
	return st, nil
}

func (c *Capture) loadTail(key string, v []byte) error {
	if err := checkValue(key, v, 17); err != nil {
		return err
	}
	c.pathOf(0, key[len(prefixTail):]).tail = tail{le.Uint64(v[1:]), le.Uint64(v[9:])}
	return nil
}

func (c *Capture) loadDone(n spool.Number, key string, v []byte) error {
	if err := checkValue(key, v, 9); err != nil {
		return err
	}
	c.fileOf(n).finished = le.Uint64(v[1:])
	return nil
}

// each gives fn the stored values below prefix.
func (c *Capture) each(prefix string, fn func(key string, v []byte) error) (err error) {
	c.o.Queue.Range(prefix, func(key string, v []byte) bool {
		err = fn(key, v)
		return err == nil
	})
	return err
}

// eachFile is each for values of files.
func (c *Capture) eachFile(prefix string, fn func(n spool.Number, key string, v []byte) error) error {
	return c.each(prefix, func(key string, v []byte) error {
		n, err := fileKey(key, prefix)
		if err != nil {
			return err
		}
		return fn(n, key, v)
	})
}

func fileKey(key, prefix string) (spool.Number, error) {
	var n uint64
	_, err := parseKey(key, prefix, &n)
	return spool.Number(n), err
}

type chunk struct {
	off  int64
	data []byte
}

// loadPending makes writers of the unfinished lines. After a repair those that are not
// whole are given up.
func (c *Capture) loadPending(repaired bool) error {
	heads := map[*writer]storedHead{}
	chunks := map[*writer][]chunk{}
	err := c.each(prefixPend, func(key string, v []byte) error {
		var n, id uint64
		more, err := parseKey(key, prefixPend, &n, &id)
		if err != nil {
			return err
		}
		f := c.fileOf(spool.Number(n))
		w := f.writers[id]
		if w == nil {
			w = f.writerOf(id, nil)
		}
		if more == "h" {
			heads[w], err = parseHead(key, v)
			return err
		}
		var off uint64
		if _, err := parseKey(more, "", &off); err != nil {
			return err
		}
		chunks[w] = append(chunks[w], chunk{int64(off), v})
		return nil
	})
	if err != nil {
		return err
	}
	for w, list := range chunks {
		if _, ok := heads[w]; ok {
			continue
		}
		err := fmt.Errorf("%w: %s has chunks and no head", ErrState, pendKey(w.file.number, w.id))
		if !repaired {
			return err
		}
		c.giveUp(w, list, nil, err)
	}
	for w, h := range heads {
		err := c.loadWriter(w, h, chunks[w])
		switch {
		case err == nil:
		case !repaired:
			return err
		default:
			c.giveUp(w, chunks[w], h.rest, err)
		}
	}
	return nil
}

func (c *Capture) loadWriter(w *writer, h storedHead, list []chunk) error {
	w.path = c.pathOf(0, h.path)
	w.attr = h.attr
	w.attr.Host, w.attr.Path = c.o.Host, h.path
	w.dropped, w.length = h.dropped, h.length
	w.inPiece, w.base, w.stored, w.saved = h.inPiece, h.base, h.stored, true
	slices.SortFunc(list, func(a, b chunk) int { return int(a.off - b.off) })
	at := h.base
	var pend []byte
	for _, k := range list {
		end := k.off + int64(len(k.data))
		if k.off > at || end < at {
			return fmt.Errorf("%w: %s: chunk of %d bytes at %d, want one that has %d", ErrState, pendKey(w.file.number, w.id), len(k.data), k.off, at)
		}
		w.chunks = append(w.chunks, k.off)
		pend = append(pend, k.data[at-k.off:]...)
		at = end
	}
	if at != max(h.stored, h.base) {
		return fmt.Errorf("%w: %s: chunks end at %d, want %d", ErrState, pendKey(w.file.number, w.id), at, h.stored)
	}
	w.pend = append(pend, h.rest...)
	if len(w.pend) > 0 {
		c.pendCount++
		c.pendBytes += int64(len(w.pend))
	}
	return nil
}

// dropGone deletes what is stored of files that the spool no longer has. Unfinished
// lines of theirs are in the queue and will be ended.
func (st *stored) dropGone(c *Capture) {
	for n := range st.pos {
		c.extra = append(c.extra, kv{Key: posKey(n)})
	}
	have := map[spool.Number]bool{}
	for i := range st.files {
		have[st.files[i].Number] = true
	}
	for n := range st.cuts {
		if !have[n] {
			c.extra = append(c.extra, kv{Key: cutKey(n)})
		}
	}
	for n, f := range c.files {
		st.orphans[n] = !have[n] && f.src == nil
	}
}
