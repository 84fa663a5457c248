package offline

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path"
	"sync"

	"golang.org/x/sys/unix"

	"ftfuse/internal/inotify"
)

// watcher tells which files below the directory are written to (inotify(7)). Watches are of
// inodes: they also see what programs do through descriptors from before the mount.
type watcher struct {
	log  *slog.Logger
	wake chan struct{} // capacity 1
	wg   sync.WaitGroup

	mu    sync.Mutex
	in    *os.File // nil: no inotify
	dirs  map[int32]string
	dirty map[string]bool
	all   bool // something happened of which nobody knows where
	lame  bool // not every directory has a watch
}

func newWatcher(log *slog.Logger) *watcher {
	w := &watcher{log: log, wake: make(chan struct{}, 1), dirs: map[int32]string{}, dirty: map[string]bool{}}
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		w.cannot(fmt.Errorf("inotify_init1: %w; raise fs.inotify.max_user_instances", err))
		return w
	}
	in := os.NewFile(uintptr(fd), "inotify")
	w.in = in
	w.wg.Go(func() { w.read(in) })
	return w
}

// cannot says, once, that everything is looked at every second instead.
func (w *watcher) cannot(err error) {
	if !w.lame {
		w.log.Warn("files below the mount point are looked at every second, since they cannot be watched", "err", err)
	}
	w.lame = true
}

// works reports whether it tells of everything.
func (w *watcher) works() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return !w.lame
}

// add watches a directory, whose path is at.
func (w *watcher) add(dir *os.File, at string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.in == nil {
		return
	}
	const events = unix.IN_MODIFY | unix.IN_CLOSE_WRITE | unix.IN_CREATE | unix.IN_MOVED_TO | unix.IN_ONLYDIR
	conn, err := w.in.SyscallConn()
	wd := 0
	if err == nil {
		cerr := conn.Control(func(fd uintptr) {
			wd, err = unix.InotifyAddWatch(int(fd), fmt.Sprintf("/proc/self/fd/%d", dir.Fd()), events)
		})
		err = errors.Join(cerr, err)
	}
	if err != nil {
		if errors.Is(err, unix.ENOSPC) {
			err = fmt.Errorf("%w: raise fs.inotify.max_user_watches", err)
		}
		w.cannot(fmt.Errorf("watch %q: %w", at, err))
		return
	}
	w.dirs[int32(wd)] = at
}

// read takes events until the descriptor is closed.
func (w *watcher) read(in *os.File) {
	if err := inotify.Read(in, w.events); err != nil {
		w.mu.Lock()
		w.cannot(fmt.Errorf("read inotify events: %w", err))
		w.mu.Unlock()
	}
}

// events takes what one read gave.
func (w *watcher) events(b []byte) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for e := range inotify.Events(b) {
		dir, ok := w.dirs[e.Watch]
		switch {
		case e.Mask&unix.IN_IGNORED != 0:
			delete(w.dirs, e.Watch)
		case e.Mask&(unix.IN_Q_OVERFLOW|unix.IN_ISDIR) != 0, !ok:
			w.all = true
		default:
			w.dirty[path.Join(dir, string(e.Name))] = true
		}
	}
	w.poke()
}

func (w *watcher) poke() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// mark has a file looked at again.
func (w *watcher) mark(at string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.dirty[at] = true
	w.poke()
}

// everything has all looked at.
func (w *watcher) everything() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.all = true
	w.poke()
}

// wantsAll reports, once, whether everything has to be looked at.
func (w *watcher) wantsAll() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	all := w.all
	w.all = false
	return all
}

// take returns the paths of the files that were written to since the last call.
func (w *watcher) take() map[string]bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	dirty := w.dirty
	w.dirty = map[string]bool{}
	return dirty
}

func (w *watcher) close() {
	w.mu.Lock()
	in := w.in
	w.in = nil
	w.mu.Unlock()
	if in != nil {
		in.Close()
	}
	w.wg.Wait()
}
