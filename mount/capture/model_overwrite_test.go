package capture

import (
	"strings"

	"ftfuse/mount/spool"
)

// overwriting is a write over captured bytes that a program waits for: until it is answered
// nobody else writes through the handle, and, to a file of open mode, nobody else at all.
type overwriting struct {
	w      *modelWriter
	handle **spool.Handle // a takeover makes a new one
	file   *modelFile     // nil: not of open mode
	data   string
	off    int64
	meta   *spool.Meta
	err    error
	done   bool // its record is on disk
}

func (m *model) overwrite(o *overwriting) {
	m.unhold()
	o.meta.Unique = m.rnd.Uint64()>>1 | 1
	m.over = o
	size := (*o.handle).Size()
	o.err = m.commitOverwrite(o)
	m.Logf("overwrite by %d of %s, %d at %d, size %d: %v", o.w.pid, o.w.path, len(o.data), o.off, size, o.err)
	if o.err != nil {
		m.note(o.err)
		return
	}
	if m.rnd.IntN(8) == 0 {
		m.broken = errKilledOver
		return
	}
	o.w.want.WriteString(o.data)
	m.putOver(o)
	m.over = nil
}

func (m *model) commitOverwrite(o *overwriting) error {
	h := *o.handle
	e := spool.Entry{Writer: h.Writer, PathID: h.PathID, Path: o.w.path, PID: o.meta.PID, UID: o.meta.UID, GID: o.meta.GID, Time: o.meta.Time, Unique: o.meta.Unique}
	err := m.c.Overwrite(m.ctx(), h.Number(), e, []byte(o.data), o.off+int64(len(o.data)))
	if got, ok := m.c.Finished(h.Number()); err == nil && (!ok || got != o.meta.Unique) {
		m.Errorf("finished %d %v, want %d", got, ok, o.meta.Unique)
	}
	return err
}

func (m *model) putOver(o *overwriting) {
	if n, err := (*o.handle).Overwrite([]byte(o.data), o.off); err != nil || n != len(o.data) {
		m.Fatal(n, err)
	}
}

// settleOverwrite comes after a kill: an overwrite that was under way is on disk, all of
// it, or nothing of it ever comes out. It is there if nothing went wrong before
// capture/overwrite, and only then: on any other error the program would have been told
// that none of its bytes is kept.
func (m *model) settleOverwrite() {
	o := m.over
	if o == nil {
		return
	}
	v, ok := m.q.disk[doneKey((*o.handle).Number())]
	o.done = ok && le.Uint64(v[1:]) == o.meta.Unique
	if want := o.err == nil || strings.Contains(o.err.Error(), "capture/overwrite"); o.done != want {
		m.Errorf("overwrite by %d of %s: it is on disk: %v, want %v; it ended with: %v", o.w.pid, o.w.path, o.done, want, o.err)
	}
	if o.done {
		o.w.want.WriteString(o.data)
	}
}

// resendOverwrite does what a worker does that took the connection over and gets the
// request again, perhaps after another program's write to that file.
func (m *model) resendOverwrite() {
	o := m.over
	if o == nil {
		return
	}
	m.over = nil
	n := (*o.handle).Number()
	if got, ok := m.c.Finished(n); o.done != (ok && got == o.meta.Unique) {
		m.Errorf("resent overwrite %d by %d of %s: finished %d %v, want it: %v", o.meta.Unique, o.w.pid, o.w.path, got, ok, o.done)
	}
	for _, w := range m.writers {
		if w != o.w && w.h.Number() == n && m.rnd.IntN(2) == 0 {
			m.writeBy(w)
		}
	}
	if !o.done {
		m.must(m.commitOverwrite(o))
		o.w.want.WriteString(o.data)
	}
	m.putOver(o)
}
