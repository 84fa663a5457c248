package capture

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime/pprof"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"ftfuse/internal/failpoint"
	"ftfuse/mount/spool"
)

// pidMask takes the writer out of a pid: what is above it tells the openers of one file of
// open mode apart, whose lines are one writer's.
const pidMask = 1<<20 - 1

// modelFile is a file of open mode from its first open for writing to its last close, with
// everything that is to come out of it, in the order of the file.
type modelFile struct {
	*modelWriter
	number   spool.Number
	handles  []*modelHandle
	unlinked bool
	orphan   bool
	size     int64 // as the model has it, to see that a truncation was kept
}

// modelHandle is one open of it: by the kernel (fd is the program's) or by the daemon.
type modelHandle struct {
	h    *spool.Handle
	fd   int // -1: the daemon writes
	pid  uint32
	time int64
}

var kernelPaths = []string{"k1", "k2", "d/k3", "bin/k", "no/k", "short/k", "keep/k"}

func (m *model) kernelStep() {
	if len(m.open) == 0 {
		m.kernelOpen()
		return
	}
	switch n := m.rnd.IntN(100); {
	case n < 15:
		m.kernelOpen()
	case n < 60:
		m.kernelWrite(m.someOpen())
	case n < 72:
		m.daemonWrite(m.someOpen())
	case n < 84:
		m.kernelClose(m.someOpen())
	case n < 90:
		m.kernelTruncate(m.someOpen())
	case n < 94:
		m.kernelOverwrite(m.someOpen())
	case n < 96:
		m.kernelUnlink(m.someOpen())
	case n < 97:
		m.unhold()
		m.note(m.c.DrainNow(m.ctx(), m.someOpen().number))
	default:
		f := m.someOpen()
		m.flush(f.handles[m.rnd.IntN(len(f.handles))].h, m.meta())
	}
}

func (m *model) someOpen() *modelFile { return m.open[m.rnd.IntN(len(m.open))] }

func (m *model) kernelOpen() {
	path := kernelPaths[m.rnd.IntN(len(kernelPaths))]
	file := m.file(path)
	var f *modelFile
	for _, g := range m.open {
		if g.number == file.Number() {
			f = g
		}
	}
	if f == nil {
		m.ticks++
		f = &modelFile{modelWriter: &modelWriter{path: path, pid: uint32(len(m.all) + 1), era: m.era, opened: m.ticks}, number: file.Number(), size: file.Size()}
		m.all = append(m.all, f.modelWriter)
		m.open = append(m.open, f)
	}
	x := m.meta()
	f.opens++
	x.PID = f.pid | uint32(f.opens%3)<<20
	h := &modelHandle{fd: -1, pid: x.PID, time: x.Time}
	mode := spool.Shared
	if m.rnd.IntN(4) > 0 {
		mode = spool.Kernel
	}
	var err error
	h.h, err = m.s.OpenHandle(file, path, mode, x)
	m.must(err)
	if mode == spool.Kernel {
		h.fd = m.backing(f.number)
	}
	f.handles = append(f.handles, h)
	m.Logf("open %s of %s by %#x, mode %d, size %d", f.number, path, h.pid, mode, file.Size())
}

// flush is a close(2) of one descriptor of h.
func (m *model) flush(h *spool.Handle, x *spool.Meta) {
	err := h.Flush(x)
	for errors.Is(err, spool.ErrJournalFull) && !m.died() {
		m.unhold()
		err = h.Flush(x)
	}
	if !m.died() {
		m.must(err)
	}
}

// kernelWrite appends behind the daemon's back.
func (m *model) kernelWrite(f *modelFile) {
	for _, i := range m.rnd.Perm(len(f.handles)) {
		if h := f.handles[i]; h.fd >= 0 {
			data := m.text()
			n, err := unix.Write(h.fd, []byte(data))
			m.must(err)
			m.Logf("kernel write of %s, %d at %d", f.number, n, f.size)
			f.want.WriteString(data[:n])
			f.size += int64(n)
			return
		}
	}
}

func (m *model) daemonWrite(f *modelFile) {
	h := f.handles[m.rnd.IntN(len(f.handles))]
	data := m.text()
	off, end := int64(0), true
	if m.rnd.IntN(6) == 0 {
		off, end = h.h.Size()+int64(m.rnd.IntN(9000)), false
	}
	x := m.meta()
	x.PID = h.pid
	n, err := h.h.Write([]byte(data), off, end, x)
	for errors.Is(err, spool.ErrJournalFull) {
		m.unhold()
		if m.died() {
			return
		}
		n, err = h.h.Write([]byte(data), off, end, x)
	}
	m.must(err)
	m.Logf("daemon write of %s, %d at %d", f.number, n, off)
	f.want.WriteString(data[:n])
	if !end {
		f.size = off
	}
	f.size += int64(n)
}

func (m *model) kernelClose(f *modelFile) {
	i := m.rnd.IntN(len(f.handles))
	h := f.handles[i]
	if h.fd >= 0 {
		unix.Close(h.fd)
	}
	h.h.End(m.meta())
	m.Logf("close %s by %#x, size %d", f.number, h.pid, f.size)
	f.handles = append(f.handles[:i], f.handles[i+1:]...)
	if len(f.handles) == 0 {
		m.ticks++
		f.closed = m.ticks
		m.forgetOpen(f)
	}
}

func (m *model) forgetOpen(f *modelFile) {
	for i, g := range m.open {
		if g == f {
			m.open = append(m.open[:i], m.open[i+1:]...)
			return
		}
	}
}

func (m *model) kernelTruncate(f *modelFile) {
	m.unhold()
	h := f.handles[0].h
	old := h.Size()
	if old != f.size {
		m.Errorf("file %s has %d bytes, want %d", f.number, old, f.size)
	}
	size := []int64{0, 0, old / 2, max(0, old-3), old + 700}[m.rnd.IntN(5)]
	if size == old {
		return
	}
	m.Logf("truncate %s %d to %d", f.number, old, size)
	m.truncating = f
	if err := m.c.BeginTruncate(m.ctx(), f.number, size); err != nil {
		m.note(err)
		return
	}
	if m.rnd.IntN(6) == 0 {
		m.broken = errors.New("killed before the truncation")
		return
	}
	f.size = size
	if err := h.Truncate(size); err != nil || m.rnd.IntN(6) == 0 {
		m.broken = fmt.Errorf("killed after the truncation: %w", err)
		return
	}
	m.note(m.c.FinishTruncate(m.ctx(), f.number, size, uint64(m.rnd.Uint32())+1))
	if m.broken == nil {
		m.truncating = nil
	}
}

func (m *model) kernelOverwrite(f *modelFile) {
	h := f.handles[m.rnd.IntN(len(f.handles))]
	size := h.h.Size()
	if size < 64 {
		return
	}
	o := &overwriting{w: f.modelWriter, handle: &h.h, off: m.rnd.Int64N(size - 32), file: f}
	o.data = fmt.Sprintf("over %016x\nby %08x", m.rnd.Uint64(), m.rnd.Uint32())
	o.meta = m.meta()
	o.meta.PID = h.pid
	m.overwrite(o)
}

// kernelUnlink does what the mount does before an unlink, and that.
func (m *model) kernelUnlink(f *modelFile) {
	if f.unlinked {
		return
	}
	m.unhold()
	if m.note(m.c.DrainNow(m.ctx(), f.number)); m.broken != nil {
		return
	}
	m.must(m.s.Unlink(f.path))
	delete(m.files, f.path)
	f.unlinked = true
}

// death is what happens between a kill and the next start: programs go on writing where
// nothing keeps them from it.
func (m *model) death(takeover bool) {
	for _, f := range append(append([]*modelFile(nil), m.open...), m.orphaned...) {
		if takeover && (f == m.truncating || m.over != nil && f == m.over.file) {
			continue // the kernel's lock is held as long as the connection is
		}
		for range m.rnd.IntN(3) {
			m.kernelWrite(f)
		}
	}
	m.truncating = nil
}

// taken starts again with the connection: all handles go on.
func (m *model) taken() error {
	m.rig.open()
	live := map[uint64]bool{}
	restore := func(h *spool.Handle, n spool.Number, pid uint32, time int64) *spool.Handle {
		f, err := m.s.Acquire(n)
		m.must(err)
		live[h.Writer] = true
		h, err = m.s.RestoreHandle(f, h.Path, h.Mode(), h.Writer, &spool.Meta{PID: pid, Time: time})
		m.must(err)
		return h
	}
	for _, f := range m.open {
		for _, h := range f.handles {
			h.h = restore(h.h, f.number, h.pid, h.time)
		}
	}
	for _, w := range m.writers {
		w.h = restore(w.h, w.h.Number(), w.pid, 0)
	}
	return m.c.Recover(m.ctx(), func(w uint64) bool { return live[w] })
}

// orphans turns all open files into those of orphans.
func (m *model) orphans() {
	for _, f := range m.open {
		kept := f.handles[:0]
		for _, h := range f.handles {
			if h.fd >= 0 {
				kept = append(kept, h)
			}
		}
		if f.handles = kept; len(kept) > 0 {
			f.orphan = true
			m.orphaned = append(m.orphaned, f)
		}
	}
	m.open = nil
}

// isOpen reports whether w is a file of open mode that a program has open.
func (m *model) isOpen(w *modelWriter) bool {
	return m.isOrphan(w) || slices.ContainsFunc(m.open, func(f *modelFile) bool { return f.modelWriter == w })
}

func (m *model) isOrphan(w *modelWriter) bool {
	for _, f := range m.orphaned {
		if f.modelWriter == w {
			return true
		}
	}
	return false
}

// endOrphans closes what orphans have open and waits until they are forgotten. A kill
// meanwhile may make more of them.
func (m *model) endOrphans() {
	for len(m.orphaned) > 0 {
		f := m.orphaned[0]
		for _, h := range f.handles {
			unix.Close(h.fd)
		}
		f.handles = nil
		m.orphanEnd(f)
		m.ticks++
		f.closed = m.ticks
		m.orphaned = m.orphaned[1:]
	}
}

func (m *model) orphanEnd(f *modelFile) {
	started, said := time.Now(), false
	m.waitFor("the end of an orphan", func() bool {
		if !said && time.Since(started) > 15*time.Second {
			said = true
			m.Logf("still there: %s, %d bytes, next %d, committed %d, owes %v, stats %+v", f.number, m.s.Size(f.number), m.s.Next(), m.s.CommittedSeq(), m.s.Owes(0), m.c.Stats())
			var stacks strings.Builder
			_ = pprof.Lookup("goroutine").WriteTo(&stacks, 1)
			open, _ := filepath.Glob("/proc/self/fd/*")
			for _, fd := range open {
				if to, _ := os.Readlink(fd); to == m.spoolFile(f.number) {
					info, _ := os.ReadFile(strings.Replace(fd, "/fd/", "/fdinfo/", 1))
					fmt.Fprintf(&stacks, "%s is open: %s\n", fd, info)
				}
			}
			m.Log(stacks.String())
		}
		_, err := os.Stat(m.spoolFile(f.number))
		if m.died() {
			m.crashed()
		}
		return os.IsNotExist(err)
	})
}

// closeAll is the end of all programs.
func (m *model) closeAll() {
	for _, f := range m.open {
		for _, h := range f.handles {
			if h.fd >= 0 {
				unix.Close(h.fd)
			}
		}
	}
	m.open = nil
}

// start again after a kill, perhaps killed once more meanwhile.
func (m *model) again(start func() error) {
	if m.rnd.IntN(3) == 0 {
		point := startPoints[m.rnd.IntN(len(startPoints))]
		m.must(failpoint.Set(point, fmt.Sprintf("error@%d", 1+m.rnd.IntN(3))))
		m.q.reopen()
		err := start()
		failpoint.Clear(point)
		if err != nil && !errors.Is(err, failpoint.ErrInjected) {
			m.Fatal(err)
		}
		m.Logf("killed at the start, at %s: %v", point, err)
		m.cancel = nil
		m.crash()
	}
	m.q.reopen()
	m.must(start())
	m.run()
}

var startPoints = []string{
	"capture/epoch", "capture/replayed", "capture/seal", "capture/committed", "spool/orphan-made", "spool/orphan-moved",
}

func modelOptions(rnd *rand.Rand) spool.Options {
	rings := []uint64{0}
	if os.Getenv("FTFUSE_SOAK") != "" {
		rings = []uint64{8, 100, 0, 0}
	}
	return spool.Options{
		OrphanPatience: time.Millisecond, OrphanPoll: 5 * time.Millisecond,
		Readback: []int64{0, 100, 64 << 10}[rnd.IntN(3)], PunchEvery: []int64{4096, 4 << 20}[rnd.IntN(2)],
		Entries: rings[rnd.IntN(len(rings))],
	}
}
