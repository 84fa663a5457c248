package e2e

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// disk is a small ext4 of the test's own on a loop device.
type disk struct {
	image, dir string
	mounted    bool
}

func newDisk(t *testing.T, mib int) *disk {
	t.Helper()
	needRoot(t)
	need(t, "mkfs.ext4", "losetup")
	base := t.TempDir()
	d := &disk{image: filepath.Join(base, "image"), dir: filepath.Join(base, "disk")}
	sh(t, `truncate -s "$3"M "$1"; mkfs.ext4 -q -m 0 "$1"; mkdir "$2"`, d.image, d.dir, fmt.Sprint(mib))
	d.mount(t)
	t.Cleanup(func() {
		if d.mounted {
			_ = syscall.Unmount(d.dir, syscall.MNT_DETACH)
		}
	})
	return d
}

func (d *disk) mount(t *testing.T) {
	t.Helper()
	sh(t, `mount -o loop "$1" "$2"`, d.image, d.dir)
	d.mounted = true
}

// cut takes the power away: the file system stops in this instant, its journal is not
// flushed, and what was in memory is gone (FS_IOC_SHUTDOWN with the flag NOLOGFLUSH,
// fs/ext4/ioctl.c and include/uapi/linux/fs.h; xfstests tests file systems with it).
func (d *disk) cut(t *testing.T) {
	t.Helper()
	const fsIocShutdown, noLogFlush = 0x8004587d, 2
	f, err := os.Open(d.dir)
	must(t, err)
	defer f.Close()
	if err := unix.IoctlSetPointerInt(int(f.Fd()), fsIocShutdown, noLogFlush); err != nil {
		t.Fatalf("take the power from %s: %v", d.dir, err)
	}
}

// again mounts the disk as after the power has come back. Nobody may hold a file of it.
func (d *disk) again(t *testing.T) {
	t.Helper()
	eventually(t, patience, func() error { return syscall.Unmount(d.dir, 0) })
	d.mounted = false
	d.mount(t)
}

// fill takes all space of the disk but left bytes and returns the file that holds it.
func (d *disk) fill(t *testing.T, left int64) string {
	t.Helper()
	var st syscall.Statfs_t
	must(t, syscall.Statfs(d.dir, &st))
	path := filepath.Join(d.dir, "ballast")
	f, err := os.Create(path)
	must(t, err)
	defer f.Close()
	n := int64(st.Bavail)*st.Bsize - left
	for n > 0 && errors.Is(syscall.Fallocate(int(f.Fd()), 0, 0, n), syscall.ENOSPC) {
		n -= 64 << 10 // what the file's own extents take
	}
	must(t, syscall.Statfs(d.dir, &st))
	if room := int64(st.Bavail) * st.Bsize; room > left+1<<20 {
		t.Fatalf("%d bytes are left on the disk, want %d", room, left)
	}
	return path
}

// appender appends numbered blocks of lines until it is told to stop or fails, and knows
// what was accepted.
type appender struct {
	accepted atomic.Int64 // bytes
	done     chan error
}

// line is one of the appender's lines: 64 bytes.
func blockLine(n int64) string { return fmt.Sprintf("%-63d\n", n) }

// startAppender writes with bare system calls, as a program in C does.
func startAppender(t *testing.T, path string, limit int64) *appender {
	t.Helper()
	fd, err := syscall.Open(path, syscall.O_CREAT|syscall.O_APPEND|syscall.O_WRONLY|syscall.O_CLOEXEC, 0o644)
	must(t, err)
	return append1000(func(b []byte) (int, error) {
		for {
			n, err := syscall.Write(fd, b)
			if !errors.Is(err, syscall.EINTR) { // Go's runtime sends itself signals
				return n, err
			}
		}
	}, func() { syscall.Close(fd) }, limit)
}

// append1000 appends blocks of 1,000 lines until limit bytes have been accepted.
func append1000(write func([]byte) (int, error), end func(), limit int64) *appender {
	a := &appender{done: make(chan error, 1)}
	go func() {
		defer end()
		var block []byte
		for a.accepted.Load() < limit {
			block = block[:0]
			first := a.accepted.Load() / 64
			for n := range int64(1000) {
				block = append(block, blockLine(first+n)...)
			}
			n, err := write(block)
			a.accepted.Add(int64(max(n, 0)))
			if err != nil {
				a.done <- err
				return
			}
			if n%64 != 0 {
				a.done <- fmt.Errorf("a short write of %d bytes without an error", n)
				return
			}
		}
		a.done <- nil
	}()
	return a
}

// wait waits until the appender has failed or written all.
func (a *appender) wait(t *testing.T) error {
	t.Helper()
	select {
	case err := <-a.done:
		return err
	case <-time.After(4 * patience):
		t.Fatalf("the writer still waits after %v, %d bytes were accepted", 4*patience, a.accepted.Load())
		return nil
	}
}

// stuck waits until the appender has failed, ended or stopped getting anywhere, and
// returns its error; blocked is true if it waits in write(2).
func (a *appender) stuck(t *testing.T) (blocked bool, err error) {
	t.Helper()
	last, since := int64(-1), time.Now()
	eventually(t, 2*patience, func() error {
		select {
		case err = <-a.done:
			return nil
		default:
		}
		if now := a.accepted.Load(); now != last {
			last, since = now, time.Now()
		}
		if time.Since(since) > 2*time.Second {
			blocked = true
			return nil
		}
		return fmt.Errorf("still going, %d bytes accepted", last)
	})
	return blocked, err
}

// blockLines checks that the file is the appender's lines from 0 on, n bytes of them.
func blockLines(t *testing.T, path string, n int64) {
	t.Helper()
	got := read(t, path)
	if int64(len(got)) != n {
		t.Fatalf("%s has %d bytes, want %d", path, len(got), n)
	}
	for i := int64(0); i < n/64; i++ {
		if line := string(got[i*64 : i*64+64]); line != blockLine(i) {
			t.Fatalf("%s: line %d is %q", path, i, line)
		}
	}
	if rest := got[n/64*64:]; string(rest) != blockLine(n / 64)[:len(rest)] {
		t.Fatalf("%s ends in %q", path, rest)
	}
}

// The source's disk is full: programs get ENOSPC or wait, nothing is damaged, and when
// the receiver comes every accepted byte goes out and writing works again.
func TestSourceDiskFull(t *testing.T) {
	d := newDisk(t, 96)
	p := newPair(t)
	p.MountState = filepath.Join(d.dir, "state")
	t.Cleanup(p.Close) // before the disk goes away
	startMount(t, p)
	a := startAppender(t, p.In("app.log"), 1<<30)
	blocked, err := a.stuck(t)
	if !blocked && !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("the writer on a full disk got %v, want ENOSPC or to wait", err)
	}
	t.Logf("%d bytes accepted on a disk of 96 MiB, then blocked: %v, error: %v", a.accepted.Load(), blocked, err)
	if a.accepted.Load() < 10<<20 {
		t.Errorf("only %d bytes were accepted before the disk was full", a.accepted.Load())
	}
	startReceive(t, p)
	if blocked { // it goes on as space comes back; end it
		grows(t, p.Out("app.log"), 30<<20)
		must(t, p.ReceiveRole.Stop(patience))
		blocked, err = a.stuck(t)
		t.Logf("%d bytes accepted, then blocked: %v, error: %v", a.accepted.Load(), blocked, err)
		startReceive(t, p)
		return
	}
	n := a.accepted.Load()
	eventually(t, 2*patience, func() error {
		if st, err := os.Stat(p.Out("app.log")); err != nil || st.Size() < n {
			return fmt.Errorf("%v of %d bytes arrived (%v)", st, n, err)
		}
		return nil
	})
	blockLines(t, p.Out("app.log"), n)
	eventually(t, patience, func() error { // room again, at the latest with the next commit
		f, err := os.OpenFile(p.In("later.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
		if err != nil {
			return err
		}
		defer f.Close()
		_, err = f.WriteString("later\n")
		return err
	})
	arrives(t, p.Out("later.log"), []byte("later\n"))
	stop(t, p)
	blockLines(t, p.Out("app.log"), n)
}

// The receiver's output disk is full: it holds the data in its queue, says so, and goes
// on when there is room.
func TestReceiverOutputDiskFull(t *testing.T) {
	d := newDisk(t, 64)
	p := newPair(t)
	p.Outputs = fmt.Sprintf("[[receive.output]]\ndir = %q\n", filepath.Join(d.dir, "out"))
	must(t, os.Mkdir(filepath.Join(d.dir, "out"), 0o755))
	t.Cleanup(p.Close)
	start(t, p)
	ballast := d.fill(t, 8<<20)
	const n = 32 << 20
	a := startAppender(t, p.In("app.log"), n)
	if err := a.wait(t); err != nil {
		t.Fatalf("the source must not notice a full disk of the receiver: %v", err)
	}
	eventually(t, patience, func() error {
		for _, line := range p.ReceiveRole.Log() {
			if strings.Contains(line, "no space left on device") {
				return nil
			}
		}
		return errors.New("the receiver did not say that its disk is full")
	})
	sh(t, `echo small >>"$1"`, p.In("small.log"))
	must(t, os.Remove(ballast))
	out := filepath.Join(d.dir, "out", p.Host, "app.log")
	accepted := a.accepted.Load()
	eventually(t, 2*patience, func() error {
		if st, err := os.Stat(out); err != nil || st.Size() < accepted {
			return fmt.Errorf("%v of %d bytes arrived (%v)", st, accepted, err)
		}
		return nil
	})
	blockLines(t, out, accepted)
	arrives(t, filepath.Join(d.dir, "out", p.Host, "small.log"), []byte("small\n"))
	stop(t, p)
}

// The disk under the receiver's queue is full: the source keeps what is not acked.
func TestReceiverQueueDiskFull(t *testing.T) {
	d := newDisk(t, 64)
	p := newPair(t)
	p.ReceiveState = filepath.Join(d.dir, "state")
	t.Cleanup(p.Close)
	start(t, p)
	sh(t, `echo before >>"$1"`, p.In("before.log"))
	arrives(t, p.Out("before.log"), []byte("before\n"))
	ballast := d.fill(t, 0)
	const n = 64 << 20
	a := startAppender(t, p.In("app.log"), n)
	if err := a.wait(t); err != nil {
		t.Fatalf("the source must not notice: %v", err)
	}
	eventually(t, patience, func() error {
		for _, line := range p.ReceiveRole.Log() {
			if strings.Contains(line, "no space left on device") || strings.Contains(line, "full") {
				return nil
			}
		}
		return errors.New("the receiver did not say that its disk is full")
	})
	must(t, os.Remove(ballast))
	accepted := a.accepted.Load()
	eventually(t, 2*patience, func() error {
		if st, err := os.Stat(p.Out("app.log")); err != nil || st.Size() < accepted {
			if p.ReceiveRole.Gone() { // fail-stop is an answer; the operator starts it again
				if code := p.ReceiveRole.ExitCode(); code != 1 {
					t.Fatalf("the receiver stopped with exit code %d, want 1", code)
				}
				startReceive(t, p)
			}
			return fmt.Errorf("%v of %d bytes arrived (%v)", st, accepted, err)
		}
		return nil
	})
	stop(t, p)
	blockLines(t, p.Out("app.log"), accepted)
}
