package mount

import (
	"bufio"
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"bazil.org/fuse"
	"golang.org/x/sys/unix"

	"ftfuse/mount/holder"
	"ftfuse/mount/kernel"
	"ftfuse/mount/session"
	"ftfuse/mount/spool"
)

func init() {
	actors["rename"] = actRename
	actors["upgrade"] = actUpgrade
}

// besideKernel is a configuration in which "full.log" fills a small queue, and everything
// else may be written to by the kernel.
const besideKernel = "[[mount.rule]]\npath = \"full.log\"\nattribution = \"write\"\n[mount.queue]\nmax_bytes = \"1MiB\"\n"

// blocking opens a file and returns what writes to it, without the O_NONBLOCK that the os
// package adds.
func blocking(t *testing.T, path string, flags int) (write func(text string)) {
	t.Helper()
	fd, err := unix.Open(path, flags|unix.O_CLOEXEC, 0o644)
	must(t, err)
	t.Cleanup(func() { unix.Close(fd) })
	return func(text string) {
		t.Helper()
		if n, err := unix.Write(fd, []byte(text)); n != len(text) || err != nil {
			t.Fatalf("write of %d bytes: %d, %v", len(text), n, err)
		}
	}
}

// TestASynchronousWriteAtAFullQueueKeptTheFilesWritersWaiting: it waited for room, and with it,
// behind the inode's lock, every program for which the kernel writes.
func TestASynchronousWriteAtAFullQueueKeptTheFilesWritersWaiting(t *testing.T) {
	needPassthrough(t)
	r := newRig(t, besideKernel)
	f := appender(t, r.path("a"))
	put(t, f, "first\n")
	fillUp(t, r, "full.log")
	g := blocking(t, r.path("a"), os.O_WRONLY|os.O_APPEND|os.O_SYNC)
	g("second\n")
	put(t, f, "third\n")
	f.Close()
	r.kill()
	r.moreRoom()
	r.wantDelivered("a", "first\nsecond\nthird\n")
}

// TestADaemonServedWriteAtAFullJournalKeptTheFilesWritersWaiting: behind a full queue the
// journal fills up too, and a write waited for a place in it for ever.
func TestADaemonServedWriteAtAFullJournalKeptTheFilesWritersWaiting(t *testing.T) {
	needPassthrough(t)
	r := newRigStopped(t, besideKernel)
	r.env = []string{envPatience + "=1ms"} // else it takes a minute to fill the journal
	r.start()
	fillUp(t, r, "full.log")
	g := blocking(t, r.path("a"), os.O_RDWR|os.O_APPEND|os.O_CREATE) // alone: nobody is slowed down
	line := strings.Repeat("x", 1<<20-1) + "\n"
	const lines = 80 // the journal takes notes of 64 MiB
	for range lines {
		g(line)
	}
	r.kill()
	r.moreRoom()
	r.wantDelivered("a", strings.Repeat(line, lines))
}

// TestAFailedSyncOfTheSpoolStopsTheRole: fsync(2) said EIO once, and the next one, of bytes
// that the kernel had thrown away, that all was well.
func TestAFailedSyncOfTheSpoolStopsTheRole(t *testing.T) {
	needPassthrough(t)
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	r := newRigStopped(t, besideKernel)
	r.env = []string{"FTFUSE_FAILPOINTS=spool/sync-file=error"}
	r.start()
	f := appender(t, r.path("a"))
	put(t, f, "first\n")
	fillUp(t, r, "full.log")
	put(t, f, "second\n")
	if err := f.Sync(); err == nil {
		t.Error("fsync succeeded")
	}
	if err := r.wait(); err == nil {
		t.Error("the role ended well")
	}
	f.Close()
}

// TestAFailedSyncOfNamesNumbersOrACutStopsTheRole: the program that asked for it got an
// error, and everybody else went on as if nothing were.
func TestAFailedSyncOfNamesNumbersOrACutStopsTheRole(t *testing.T) {
	cut := func(r *rig) error {
		must(r.t, os.WriteFile(r.path("a"), []byte("line\n"), 0o644))
		return os.Truncate(r.path("a"), 2)
	}
	for point, do := range map[string]func(r *rig) error{
		"spool/sync-dir": func(r *rig) error {
			d, err := os.Open(r.point)
			must(r.t, err)
			defer d.Close()
			return d.Sync()
		},
		"spool/sync-header": func(r *rig) error { return os.WriteFile(r.path("a"), nil, 0o644) },
		"spool/sync-cut":    cut,
		"spool/sync-length": cut,
	} {
		t.Run(filepath.Base(point), func(t *testing.T) {
			if os.Geteuid() != 0 {
				t.Skip("needs root")
			}
			r := newRigStopped(t, "")
			r.env = []string{"FTFUSE_FAILPOINTS=" + point + "=error"}
			r.start()
			if err := do(r); err == nil {
				t.Error("the program got no error")
			}
			if err := r.wait(); err == nil {
				t.Error("the role ended well")
			}
		})
	}
}

// actRename renames PATH to TO and says what came of it. SIGUSR1 only interrupts.
func actRename(args []string) error {
	runtime.LockOSThread() // the thread that it names is the one that waits
	signal.Notify(make(chan os.Signal, 1), syscall.SIGUSR1)
	fmt.Printf("tid %d\n", syscall.Gettid())
	fmt.Println(unix.Rename(args[0], args[1]))
	return nil
}

// TestASignalFailedARename: one that waited for the capture for longer than signalGrace was
// EINTR, which no program expects of rename(2).
func TestASignalFailedARename(t *testing.T) {
	needPassthrough(t)
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	r := newRigStopped(t, "")
	r.env = []string{"FTFUSE_FAILPOINTS=capture/seal=pause@2"}
	r.start()
	f := appender(t, r.path("a"))
	put(t, f, "first\n")
	o := startActor(t, "rename", r.path("a"), r.path("b"))
	var tid int
	fmt.Sscanf(o.next(), "tid %d", &tid)
	inWrite(t, tid)
	must(t, syscall.Tgkill(o.cmd.Process.Pid, tid, syscall.SIGUSR1))
	if l := o.next(); l != "<nil>" {
		t.Errorf("rename: %s", l)
	}
	if _, err := os.Stat(r.path("b")); err != nil {
		t.Error(err)
	}
	f.Close()
	r.kill()
}

// actUpgrade shares the lock of PATH, says so, and after a line on its input wants it for
// itself.
func actUpgrade(args []string) error {
	f, err := syscall.Open(args[0], syscall.O_RDWR, 0)
	if err != nil {
		return err
	}
	if err := syscall.Flock(f, syscall.LOCK_SH); err != nil {
		return err
	}
	fmt.Println("shares it")
	_, _ = bufio.NewReader(os.Stdin).ReadByte()
	if err := syscall.Flock(f, syscall.LOCK_EX); err != nil {
		return err
	}
	fmt.Println("has it")
	return nil
}

// TestTwoThatShareALockAndBothWantItWaitedForEachOther: on ext4 a conversion gives the old
// lock up first, flock(2).
func TestTwoThatShareALockAndBothWantItWaitedForEachOther(t *testing.T) {
	r := newRig(t, "")
	must(t, os.WriteFile(r.path("a"), nil, 0o644))
	var both []*output
	var ins []interface{ Close() error }
	for range 2 {
		cmd := actor("upgrade", r.path("a"))
		in, err := cmd.StdinPipe()
		must(t, err)
		o := startCmd(t, cmd)
		if l := o.next(); l != "shares it" {
			t.Fatal(l)
		}
		both, ins = append(both, o), append(ins, in)
	}
	for _, in := range ins {
		in.Close()
	}
	for _, o := range both {
		if l := o.next(); l != "has it" {
			t.Fatal(l)
		}
	}
	for _, o := range both {
		o.ended()
	}
	r.stop()
}

// TestTheLockOfAClosedDescriptionStayed (F_OFD_SETLK): the kernel says nothing of its end, and
// nobody got the file's lock any more.
func TestTheLockOfAClosedDescriptionStayed(t *testing.T) {
	r := newHeldRig(t, "", "")
	must(t, os.WriteFile(r.path("a"), nil, 0o644))
	lock := func(f *os.File) error {
		return unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_WRLCK})
	}
	for _, killed := range []bool{false, true} {
		f, g := openFlags(t, r.path("a"), os.O_RDWR), openFlags(t, r.path("a"), os.O_RDWR)
		must(t, lock(f))
		if killed {
			r.killWorker()
		}
		if err := lock(g); err != syscall.EAGAIN {
			t.Fatalf("a second description: %v, want EAGAIN", err)
		}
		f.Close()
		eventually(t, "the lock is free", func() bool { return lock(g) == nil }) // RELEASE comes after close(2)
		g.Close()
	}
	r.stop()
}

// TestAThrottleHelperThatIsStoppedIsReplaced: once its pipe was full nobody ended holds any
// more, and programs were held for as long as it was stopped.
func TestAThrottleHelperThatIsStoppedIsReplaced(t *testing.T) {
	needPassthrough(t)
	r := newRig(t, "")
	h, err := startThrottleHelper(r.point, func(spool.Number, string) {})
	must(t, err)
	defer h.end()
	must(t, syscall.Kill(h.pid, syscall.SIGSTOP))
	for err == nil { // until the pipe is full
		err = h.touch(touch{Path: strings.Repeat("p", 200)})
	}
	<-h.done
}

// TestWhoOpenedUnderAnEarlierConfigurationIsSlowedDownToo: a worker whose own configuration
// keeps the kernel from writing had no throttle for those for whom it writes on.
func TestWhoOpenedUnderAnEarlierConfigurationIsSlowedDownToo(t *testing.T) {
	needPassthrough(t)
	r := newHeldRig(t, "", "")
	f := appender(t, r.path("a"))
	put(t, f, "first\n")
	r.extra = perWrite
	must(t, os.WriteFile(filepath.Join(r.dir, "a.toml"), []byte(r.config()), 0o644))
	if _, err := holder.RequestHandover(filepath.Join(r.dir, "state", "mount")); err != nil {
		t.Fatal(err)
	}
	r.awaitReadies(2)
	put(t, f, "second\n")
	eventually(t, "a helper", func() bool { return helpers(t, r.point) == 1 })
	f.Close()
	r.stop()
	r.wantDelivered("a", "first\nsecond\n")
}

// TestAResentWriteThatWasKeptWasDeniedBecauseOfASignal: it waited for whoever had the file,
// and a signal made it EINTR, though its bytes were noted and delivered.
func TestAResentWriteThatWasKeptWasDeniedBecauseOfASignal(t *testing.T) {
	dir := t.TempDir()
	log := slog.New(slog.DiscardHandler)
	store, err := spool.Open(dir, spool.Options{Logger: log})
	must(t, err)
	defer store.Close()
	sess, err := session.Open(filepath.Join(dir, "session"))
	must(t, err)
	defer sess.Close()
	store.Begin(0)
	must(t, sess.Begin(session.NewID(), store.Next()))
	sf, err := store.Create("a", 0o644, ^uint32(0), ^uint32(0))
	must(t, err)
	h, err := store.OpenHandle(sf, "a", spool.PerWrite, &spool.Meta{})
	must(t, err)
	if _, err := h.Write([]byte("kept\n"), 0, true, &spool.Meta{Unique: 8}); err != nil {
		t.Fatal(err)
	}
	s := newServer(nil, unconnected(t), store, neverOver{}, sess, func() int64 { return 1 << 20 }, settings{one: func(string) bool { return false }, binary: func(string) bool { return false }}, log)
	f := s.nodes.file(sf.Number(), false)
	must(t, f.gate.enter(t.Context())) // somebody has the file
	ctx, signal := context.WithCancel(t.Context())
	signal()
	w := &pwrite{Header: fuse.Header{ID: 8 | kernel.Resent}, handle: &handle{file: f, write: h}, data: []byte("kept\n")}
	if !s.writtenBefore(ctx, w) {
		t.Fatal("the note was not found")
	}
	if n := s.n.bytes.Load(); n != 5 || s.n.interrupted.Load() != 0 {
		t.Errorf("the program is told of %d bytes, %d interrupted writes", n, s.n.interrupted.Load())
	}
}

// neverOver is a capture that has finished nothing.
type neverOver struct{ capturer }

func (neverOver) Finished(spool.Number) (uint64, bool) { return 0, false }

// unconnected is a device whose replies go nowhere.
func unconnected(t *testing.T) *kernel.Device {
	t.Helper()
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Skip("no /dev/fuse: ", err)
	}
	state, err := os.ReadFile("kernel/testdata/state-v1")
	must(t, err)
	d, err := kernel.Attach(fd, state)
	must(t, err)
	t.Cleanup(func() { d.Close() })
	return d
}
