package mount

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"ftfuse/internal/mountinfo"
	"ftfuse/mount/kernel"
	"ftfuse/mount/spool"
)

// throttleName is the name under which this binary is the throttle's helper. It is a
// process of its own, since it waits in the kernel for answers of the daemon.
const throttleName = "ftfuse-throttle"

// touch is a command to the helper, a line of JSON: change the times of a file.
type touch struct {
	Number spool.Number `json:"number"`
	Inode  uint64       `json:"inode"` // as programs see it
	Path   string       `json:"path"`  // below the mount point; "" if it has no name
	PIDs   []uint32     `json:"pids"`  // processes that may have it open
	Err    string       `json:"err,omitempty"`
}

// throttleHelper is the daemon's side of the helper.
type throttleHelper struct {
	pid  int
	in   *os.File
	mu   sync.Mutex
	done chan struct{} // closed when it has ended
	kill func()
}

// startThrottleHelper starts a helper for the mount on point. heard is told when the
// helper is about to wait for the lock of a file, or why it cannot get at it. The helper
// dies with this process.
func startThrottleHelper(point string, heard func(spool.Number, string)) (*throttleHelper, error) {
	cmd := exec.Command("/proc/self/exe", point)
	cmd.Args[0] = throttleName
	cmd.Dir = "/"
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	stdin, in, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("make a pipe to the throttle's helper: %w", err)
	}
	defer stdin.Close()
	cmd.Stdin = stdin
	out, err := cmd.StdoutPipe()
	if err != nil {
		in.Close()
		return nil, fmt.Errorf("make a pipe from the throttle's helper: %w", err)
	}
	h := &throttleHelper{in: in, done: make(chan struct{})}
	started := make(chan error)
	go func() {
		// The signal comes when the thread ends that started it (prctl(2), PR_SET_PDEATHSIG).
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err != nil {
			return
		}
		_ = h.listen(out, heard)
		_ = cmd.Wait()
		in.Close()
		close(h.done)
	}()
	if err := <-started; err != nil {
		in.Close()
		return nil, fmt.Errorf("start the throttle's helper: %w", err)
	}
	h.pid, h.kill = cmd.Process.Pid, func() { _ = cmd.Process.Kill() }
	return h, nil
}

func (h *throttleHelper) listen(out io.Reader, heard func(spool.Number, string)) error {
	sc := bufio.NewScanner(out)
	for sc.Scan() {
		var c touch
		if err := json.Unmarshal(sc.Bytes(), &c); err != nil {
			return fmt.Errorf("read what the throttle's helper says: %w", err)
		}
		heard(c.Number, c.Err)
	}
	return sc.Err()
}

// touchLimit is how long the helper may take to read a command. Who waits for that does
// not end holds meanwhile.
const touchLimit = 100 * time.Millisecond

// touch gives the helper a command. A helper that does not read, since somebody stopped it,
// is killed: another follows.
func (h *throttleHelper) touch(c touch) error {
	b, err := json.Marshal(c)
	if err != nil {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if err := h.in.SetWriteDeadline(time.Now().Add(touchLimit)); err != nil {
		return err
	}
	if _, err = h.in.Write(append(b, '\n')); errors.Is(err, os.ErrDeadlineExceeded) {
		h.kill()
	}
	return err
}

// end ends the helper. Its threads that wait for an answer of the daemon must have got it,
// or get it: else it is left behind, killed, until somebody answers.
func (h *throttleHelper) end() {
	if h == nil {
		return
	}
	h.in.Close()
	h.kill()
	select {
	case <-h.done:
	case <-time.After(throttlePatience):
	}
}

// isHelper reports whether thread tid is of a helper of the mount on point, whosever it is.
func isHelper(tid uint32, point string) bool {
	text, err := os.ReadFile("/proc/" + strconv.FormatUint(uint64(tid), 10) + "/cmdline")
	return err == nil && string(text) == throttleName+"\x00"+point+"\x00"
}

// throttleMain is the helper: it reads commands until the daemon has gone.
func throttleMain(point string) error {
	dev, err := deviceOf(point)
	if err != nil {
		return err
	}
	w := &toucher{point: point, dev: dev, files: map[spool.Number]*found{}}
	in := bufio.NewReader(os.Stdin)
	for {
		line, err := in.ReadBytes('\n')
		if err != nil {
			return nil
		}
		var c touch
		if err := json.Unmarshal(line, &c); err != nil {
			return fmt.Errorf("read a command: %w", err)
		}
		go w.do(c) // it waits for the lock of the file, then for the daemon
	}
}

// toucher is the helper's work. It remembers the files that it found for a while: a
// descriptor with O_PATH is no handle of the file system.
type toucher struct {
	point string
	dev   uint64
	mu    sync.Mutex
	files map[spool.Number]*found
}

type found struct {
	fd   int
	uses int
	idle *time.Timer
}

// foundRest is how long a file is remembered after its last use. Meanwhile the mount is in
// use.
const foundRest = 2 * time.Second

func (w *toucher) do(c touch) {
	urgent()
	f, err := w.find(&c)
	if err != nil {
		w.say(touch{Number: c.Number, Err: err.Error()})
		return
	}
	defer w.put(c.Number, f)
	w.say(touch{Number: c.Number})
	now := []unix.Timespec{{Nsec: unix.UTIME_OMIT}, {Nsec: unix.UTIME_NOW}}
	if err := unix.UtimesNanoAt(f.fd, "", now, unix.AT_EMPTY_PATH); err != nil {
		w.say(touch{Number: c.Number, Err: fmt.Sprintf("change the times of %q: %v", c.Path, err)})
	}
}

// say tells the daemon.
func (w *toucher) say(c touch) {
	b, _ := json.Marshal(c)
	w.mu.Lock()
	defer w.mu.Unlock()
	_, _ = os.Stdout.Write(append(b, '\n'))
}

// find returns the file; put gives it back.
func (w *toucher) find(c *touch) (*found, error) {
	w.mu.Lock()
	f := w.files[c.Number]
	if f != nil {
		f.uses++
		f.idle.Stop()
	}
	w.mu.Unlock()
	if f != nil {
		return f, nil
	}
	fd, err := c.open(w.point, w.dev)
	if err != nil {
		return nil, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if f = w.files[c.Number]; f != nil { // found twice
		unix.Close(fd)
		f.idle.Stop()
	} else {
		f = &found{fd: fd}
		f.idle = time.AfterFunc(time.Hour, func() { w.drop(c.Number, f) })
		w.files[c.Number] = f
	}
	f.uses++
	return f, nil
}

func (w *toucher) put(n spool.Number, f *found) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if f.uses--; f.uses == 0 {
		f.idle.Reset(foundRest)
	}
}

func (w *toucher) drop(n spool.Number, f *found) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if f.uses == 0 && w.files[n] == f {
		delete(w.files, n)
		unix.Close(f.fd)
	}
}

// urgent makes the calling goroutine's thread, which it keeps, run as soon as it is woken:
// until it gets the lock of a file, a program that is running takes it again and again,
// write by write. Where that is not allowed (CAP_SYS_NICE), more is written meanwhile.
func urgent() {
	runtime.LockOSThread()
	_ = unix.SchedSetAttr(0, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_FIFO, Priority: 1, Flags: unix.SCHED_FLAG_RESET_ON_FORK}, 0)
}

var errNotFound = errors.New("neither its name nor a process leads to the file")

// open finds the file, by its name or by who has it open.
func (c *touch) open(point string, dev uint64) (int, error) {
	fd, err := c.byName(point, dev)
	for i := len(c.PIDs) - 1; i >= 0 && fd < 0; i-- {
		fd = c.byProcess(strconv.FormatUint(uint64(c.PIDs[i]), 10), dev)
	}
	if fd < 0 { // a child of the opener, or whom it was passed on to
		all, _ := os.ReadDir("/proc")
		for i := 0; i < len(all) && fd < 0; i++ {
			if name := all[i].Name(); name[0] >= '1' && name[0] <= '9' {
				fd = c.byProcess(name, dev)
			}
		}
	}
	if fd < 0 {
		return -1, errors.Join(errNotFound, err)
	}
	return fd, nil
}

// byName looks the path up below the mount point; -1 if that is not the file.
func (c *touch) byName(point string, dev uint64) (int, error) {
	if c.Path == "" {
		return -1, nil
	}
	root, err := unix.Open(point, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open %s: %w", point, err)
	}
	defer unix.Close(root)
	if !is(root, dev, 0) {
		return -1, fmt.Errorf("something else is mounted on %s", point)
	}
	fd, err := unix.Openat2(root, c.Path, &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_XDEV,
	})
	if err != nil {
		return -1, fmt.Errorf("look up %q: %w", c.Path, err)
	}
	if !is(fd, dev, c.Inode) {
		unix.Close(fd)
		return -1, nil
	}
	return fd, nil
}

// byProcess looks through what a process has open.
func (c *touch) byProcess(pid string, dev uint64) int {
	dir := "/proc/" + pid + "/fd/"
	list, _ := os.ReadDir(dir)
	for _, e := range list {
		fd, err := unix.Open(dir+e.Name(), unix.O_PATH|unix.O_CLOEXEC, 0)
		if err != nil {
			continue
		}
		if is(fd, dev, c.Inode) {
			return fd
		}
		unix.Close(fd)
	}
	return -1
}

// is reports whether fd is the file system dev's inode, or anything of it with inode 0. It
// asks nobody (AT_STATX_DONT_SYNC).
func is(fd int, dev, inode uint64) bool {
	var st unix.Statx_t
	err := unix.Statx(fd, "", unix.AT_EMPTY_PATH|unix.AT_STATX_DONT_SYNC, unix.STATX_TYPE|unix.STATX_INO, &st)
	return err == nil && unix.Mkdev(st.Dev_major, st.Dev_minor) == dev && (inode == 0 || st.Ino == inode)
}

// deviceOf returns the device number of the FUSE file system mounted on point, without
// asking it.
func deviceOf(point string) (uint64, error) {
	all, err := mountinfo.On(point)
	if err != nil {
		return 0, err
	}
	var dev uint64
	for _, m := range all {
		var major, minor uint32
		if _, err := fmt.Sscanf(m.Dev, "%d:%d", &major, &minor); err == nil && m.Type == kernel.FSType {
			dev = unix.Mkdev(major, minor)
		}
	}
	if dev == 0 {
		return 0, fmt.Errorf("no %s is mounted on %s", kernel.FSType, point)
	}
	return dev, nil
}
