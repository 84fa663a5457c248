package mount

import (
	"path/filepath"
	"slices"
	"sync/atomic"
	"syscall"

	"bazil.org/fuse"
	"github.com/bmatcuk/doublestar/v4"
	"golang.org/x/sys/unix"

	"ftfuse/config"
	"ftfuse/internal/failpoint"
	"ftfuse/mount/kernel"
	"ftfuse/mount/spool"
)

// way is how a file with one node is open. It is decided with the first handle and stays
// until the last one is closed: for the kernel all handles of an inode are of one kind
// (fs/fuse/iomode.c), and replies reach the openers in no certain order.
type way uint8

const (
	// wayKernel: every handle has the file's backing id. The kernel writes for those that
	// only append; the others come to the daemon.
	wayKernel way = iota
	// wayDaemon: every handle is plain direct I/O, so that none can be mapped shared.
	wayDaemon
)

// serverSettings makes the settings of a server from a configuration. pass: the kernel
// may write by itself, as far as the connection and the file system of the spool go.
func serverSettings(cfg *config.Config, pass bool) settings {
	m, q := cfg.Mount, cfg.QueueFor(config.RoleMount)
	o := settings{
		limits: limitsOf(q), sync: q.Durability == config.DurabilitySync,
		refuse: m.Overwrite == config.OverwriteRefuse, umask: m.Umask,
		uid: m.UID, gid: m.GID, one: func(string) bool { return false },
	}
	rules := newRuleView(m.Rules)
	o.rules = rules
	o.binary = func(path string) bool {
		r := rules.match(path)
		return r != nil && r.Mode == config.ModeBinary
	}
	o.asks = func(path string) bool {
		if !rules.ask.Load() {
			return false
		}
		r := rules.match(path)
		return r != nil && len(r.Attributes) > 0
	}
	if !pass || daemonOnly(cfg) != "" {
		return o
	}
	o.one = func(path string) bool {
		r := rules.match(path)
		return r == nil || r.Attribution == config.AttributionOpen
	}
	return o
}

// ruleView is what a server asks of the rules. It is safe for concurrent use.
type ruleView struct {
	rules atomic.Pointer[[]config.Rule]
	ask   atomic.Bool // a rule has attributes
}

func newRuleView(rules []config.Rule) *ruleView {
	v := new(ruleView)
	v.set(rules)
	return v
}

// set puts rules in force for what is asked from now on: how a file is written to is decided
// when it is opened.
func (v *ruleView) set(rules []config.Rule) {
	v.rules.Store(&rules)
	v.ask.Store(slices.ContainsFunc(rules, func(r config.Rule) bool { return len(r.Attributes) > 0 }))
}

// match is the first rule of path, nil for none.
func (v *ruleView) match(path string) *config.Rule {
	rules := *v.rules.Load()
	for i := range rules {
		if ok, _ := doublestar.Match(rules[i].Path, path); ok {
			return &rules[i]
		}
	}
	return nil
}

func limitsOf(q config.Queue) limits {
	return limits{full: fullPolicies[q.OnFull], maxBytes: int64(q.MaxBytes)}
}

// ownFileSystem reports whether the spool files have a file system of their own: then its
// size is their limit, which the kernel keeps by itself.
func ownFileSystem(dir string) bool {
	var here, above unix.Stat_t
	return unix.Stat(filepath.Join(dir, "spool"), &here) == nil && unix.Stat(dir, &above) == nil && here.Dev != above.Dev
}

// byKernel reports whether the kernel may write for an open with these flags: what only
// appends, and whose writes need not be on the disk when they return.
func byKernel(flags fuse.OpenFlags) bool {
	const never = syscall.O_DIRECT | syscall.O_SYNC | syscall.O_DSYNC
	return flags.IsWriteOnly() && flags&fuse.OpenAppend != 0 && flags&never == 0
}

// how says who writes for a handle of f that is about to be opened, and what the kernel is
// to be answered. With the first handle it decides the file's way: one that could be
// mapped shared keeps the kernel out of it, as long as there is a choice.
func (s *server) how(f *file, sf *spool.File, flags fuse.OpenFlags) (spool.OpenMode, uint32) {
	if !f.one {
		return spool.PerWrite, kernel.OpenDirectIO
	}
	if f.handles == 0 {
		f.way = wayKernel
		if flags.IsReadWrite() || flags&syscall.O_DIRECT != 0 || !s.openBacking(f, sf) {
			f.way = wayDaemon
		}
	}
	switch {
	case f.way == wayDaemon:
		return spool.Shared, kernel.OpenDirectIO
	case byKernel(flags):
		return spool.Kernel, kernel.OpenPassthrough
	}
	return spool.Shared, kernel.OpenPassthrough | kernel.OpenDirectIO
}

// countSlow counts a handle that is opened (1) or closed (-1) if it only appends and the daemon
// writes for it nevertheless, because of the file's way: an operator must be able to see what keeps
// the kernel out.
func (s *server) countSlow(h *handle, n int) {
	if h.write.Mode() != spool.Shared || !byKernel(h.flags) {
		return
	}
	f := h.file
	f.slow += n
	switch {
	case f.slow == 0:
		s.n.slowFiles.Add(-1)
	case f.slow == 1 && n > 0:
		s.n.slowFiles.Add(1)
		if !f.said {
			f.said = true
			s.log.Info("the daemon writes to a file that programs append to: it was opened for reading and writing or with O_DIRECT before, and stays so until all have closed it", "path", h.path, "pid", h.pid)
		}
	}
}

var fpBacking = failpoint.New("mount/backing") // the kernel gave a backing id, nothing keeps it yet

// openBacking gives f's spool file to the kernel. Where that fails, the daemon serves it.
func (s *server) openBacking(f *file, sf *spool.File) bool {
	fd, err := sf.OpenBacking()
	if err == nil {
		f.backing, err = s.dev.OpenBacking(int(fd.Fd()))
		fd.Close()
		_ = fpBacking.Inject()
	}
	if err != nil {
		f.backing = 0
		s.backingFailed.Do(func() {
			s.log.Warn("the kernel does not take a spool file: the daemon writes to it; said once", "file", f.number.String(), "err", err)
		})
		return false
	}
	s.session.Opened(f.backing)
	return true
}

// closeBacking gives the backing id of a file without handles up, after free has
// forgotten the last of them: a kill in between leaves a note that the id may be open.
func (s *server) closeBacking(f *file, free func()) {
	if f.backing == 0 || f.handles > 0 {
		free()
		return
	}
	s.session.Closing(f.backing)
	free()
	if err := s.dev.CloseBacking(f.backing); err != nil {
		s.log.Warn("a spool file stays with the kernel until the mount ends", "file", f.number.String(), "err", err)
	}
	s.session.Closing(0)
	f.backing = 0
}

// kernelFile is a file that the kernel writes to.
type kernelFile struct {
	Number spool.Number
	Path   string   // below the mount; "" for one that has no name any more
	PIDs   []uint32 // processes that opened it, the newest last
}

// kernelWritten returns the files that the kernel may be writing to. It may be called from
// any goroutine.
func (s *server) kernelWritten() []kernelFile {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make([]kernelFile, 0, len(s.written))
	for f := range s.written {
		k := kernelFile{Number: f.number, PIDs: make([]uint32, len(f.kernel))}
		if !f.unlinked {
			k.Path = f.path()
		}
		for i, h := range f.kernel {
			k.PIDs[i] = h.pid
		}
		all = append(all, k)
	}
	return all
}
