package mount

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"
)

func init() {
	actors["fill"] = actFill
	actors["catch"] = actCatch
}

// actFill opens PATH for appending and writes lines, shorter ones when a write fails,
// until not one byte more is taken. It says how many were.
func actFill(args []string) error {
	flags := syscall.O_WRONLY | syscall.O_APPEND | syscall.O_CREAT
	if len(args) > 1 && args[1] == "nonblock" {
		flags |= syscall.O_NONBLOCK
	}
	f, err := syscall.Open(args[0], flags, 0o644)
	if err != nil {
		return err
	}
	total, last := 0, 0
	for size := 64 << 10; ; {
		line := []byte(strings.Repeat("f", size-1) + "\n")
		n, err := syscall.Write(f, line)
		switch {
		case err == nil: // a full disk may take a part
			total += n
			fmt.Println("wrote")
		case size > 1:
			size /= 2
		case last < 5: // bytes on their way into the queue may count twice for a moment
			last++
		default:
			fmt.Printf("%d %v\n", total, err)
			return nil
		}
	}
}

// actCatch opens PATH, says so, writes lines until a write fails, and reports how many
// were taken. A SIGUSR1 interrupts a write that waits.
func actCatch(args []string) error {
	runtime.LockOSThread() // the thread that it names is the one that writes
	f, err := syscall.Open(args[0], syscall.O_WRONLY|syscall.O_APPEND|syscall.O_CREAT, 0o644)
	if err != nil {
		return err
	}
	ch := make(chan os.Signal, 1)
	signal.Notify(ch, syscall.SIGUSR1)
	fmt.Printf("tid %d\n", syscall.Gettid())
	for n := 0; ; n++ {
		if _, err := syscall.Write(f, []byte("interrupted\n")); err != nil {
			fmt.Println(n, err)
			return nil
		}
	}
}

// output collects what an actor says.
type output struct {
	t    testing.TB
	cmd  *exec.Cmd
	line chan string
}

func startActor(t testing.TB, name string, args ...string) *output {
	t.Helper()
	return startCmd(t, actor(name, args...))
}

func startCmd(t testing.TB, cmd *exec.Cmd) *output {
	t.Helper()
	o := &output{t: t, cmd: cmd, line: make(chan string, 1<<16)}
	pipe, err := o.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := o.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = o.cmd.Process.Kill() })
	go func() {
		var rest string
		buf := make([]byte, 4096)
		for {
			n, err := pipe.Read(buf)
			rest += string(buf[:n])
			for {
				line, more, ok := strings.Cut(rest, "\n")
				if !ok {
					break
				}
				o.line <- line
				rest = more
			}
			if err != nil {
				close(o.line)
				return
			}
		}
	}()
	return o
}

// next returns the actor's next line.
func (o *output) next() string {
	o.t.Helper()
	select {
	case l, ok := <-o.line:
		if !ok {
			o.t.Fatal("the actor ended")
		}
		return l
	case <-time.After(20 * time.Second):
		o.t.Fatal("the actor says nothing")
		return ""
	}
}

// ended waits for the actor's end and returns how long it took.
func (o *output) ended() time.Duration {
	o.t.Helper()
	begun := time.Now()
	done := make(chan error, 1)
	go func() { done <- o.cmd.Wait() }()
	select {
	case <-done:
		return time.Since(begun)
	case <-time.After(20 * time.Second):
		o.t.Fatal("the process cannot be killed")
		return 0
	}
}

// inWrite waits until thread tid sleeps in a request of the file system, and stays there.
func inWrite(t testing.TB, tid int) {
	t.Helper()
	there := 0
	for limit := time.Now().Add(20 * time.Second); time.Now().Before(limit); {
		where, _ := os.ReadFile(fmt.Sprintf("/proc/%d/wchan", tid))
		stack, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stack", tid))
		if strings.Contains(string(where)+string(stack), "request_wait_answer") {
			there++
		} else {
			there = 0
		}
		if there == 30 {
			return
		}
		time.Sleep(5 * time.Millisecond) // there is no event for it
	}
	t.Fatalf("thread %d does not wait in the file system", tid)
}

const tinyQueue = perWrite + "[mount.queue]\nmax_bytes = \"1MiB\"\n"

// fillUp writes until the queue is full, and returns how many bytes were taken.
func fillUp(t testing.TB, r *rig, name string) int {
	o := startActor(t, "fill", r.path(name), "nonblock")
	for {
		l := o.next()
		if l == "wrote" {
			continue
		}
		var n int
		var rest string
		fmt.Sscanf(l, "%d %s", &n, &rest)
		if !strings.Contains(l, "resource temporarily unavailable") {
			t.Fatalf("a write with O_NONBLOCK to a full queue: %s, want EAGAIN", l)
		}
		o.ended()
		return n
	}
}

// moreRoom runs the daemon once with a larger queue: what was accepted last may still
// be in the spool, since a full queue has no room for what a batch adds.
func (r *rig) moreRoom() {
	r.t.Helper()
	r.extra = ""
	r.start()
	r.stop()
}

func TestBlockedWritesGiveWayToSignals(t *testing.T) {
	r := newRig(t, tinyQueue)
	taken := fillUp(t, r, "full.log")
	if taken == 0 {
		t.Fatal("nothing was taken")
	}
	a := startActor(t, "catch", r.path("a.log"))
	var tid int
	fmt.Sscanf(a.next(), "tid %d", &tid)
	inWrite(t, tid)
	if err := syscall.Tgkill(a.cmd.Process.Pid, tid, syscall.SIGUSR1); err != nil {
		t.Fatal(err)
	}
	l := a.next()
	var lines int
	fmt.Sscanf(l, "%d", &lines)
	if l != fmt.Sprintf("%d interrupted system call", lines) {
		t.Fatalf("an interrupted write: %s", l)
	}
	a.ended()
	r.stop()
	r.moreRoom()
	got := r.delivered()
	if got["a.log"] != strings.Repeat("interrupted\n", lines) {
		t.Fatalf("%d lines were taken before EINTR, delivered is %q", lines, got["a.log"])
	}
	if len(got["full.log"]) != taken {
		t.Fatalf("%d bytes delivered, %d were taken", len(got["full.log"]), taken)
	}
}

// The two look the name up at the same time, before either has opened it.
func TestTwoBlockedOpensOfOneFileCanBothBeKilled(t *testing.T) {
	r := newRig(t, tinyQueue)
	if err := os.WriteFile(r.path("a.log"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	fillUp(t, r, "full.log")
	a, b := startActor(t, "catch", r.path("a.log")), startActor(t, "catch", r.path("a.log"))
	for _, o := range []*output{a, b} {
		var tid int
		fmt.Sscanf(o.next(), "tid %d", &tid)
		inWrite(t, tid)
	}
	st, err := os.Stat(r.path("a.log"))
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range []*output{b, a} { // the later one first: it must not wait behind the other
		o.cmd.Process.Kill()
		if d := o.ended(); d > time.Second {
			t.Errorf("it took %v to die", d)
		}
	}
	r.stop()
	r.moreRoom()
	if got := r.delivered()["a.log"]; int64(len(got)) != st.Size() {
		t.Fatalf("%d bytes are delivered, the file had %d when its writers blocked", len(got), st.Size())
	}
}

// TestDfShowsTheRoomOfTheQueue: what it holds is in use, and the disk limits what is free,
// not what is in use.
func TestDfShowsTheRoomOfTheQueue(t *testing.T) {
	const mib = 256 // blocks
	for _, c := range []struct {
		maxBytes, room, disk int64
		used, free           uint64
	}{
		{100 << 20, 100 << 20, 1 << 40, 0, 100 * mib},
		{100 << 20, 90 << 20, 1 << 40, 10 * mib, 90 * mib},
		{100 << 20, 90<<20 - 1, 1 << 40, 10*mib + 1, 90*mib - 1},
		{100 << 20, 90 << 20, 20 << 20, 10 * mib, 20 * mib}, // a small disk
		{100 << 20, 90 << 20, 0, 10 * mib, 0},
		{100 << 20, -5 << 20, 1 << 40, 105 * mib, 0}, // above the limit
	} {
		total, free := capacity(c.maxBytes, c.room, c.disk)
		if free != c.free || total-free != c.used {
			t.Errorf("%+v: used %d, free %d", c, total-free, free)
		}
	}
}

func TestFullQueueWithErrorPolicyIsENOSPC(t *testing.T) {
	r := newRig(t, "[mount.queue]\nmax_bytes = \"1MiB\"\non_full = \"error\"\n")
	o := startActor(t, "fill", r.path("a.log"))
	var taken int
	for l := o.next(); ; l = o.next() {
		if l == "wrote" {
			continue
		}
		fmt.Sscanf(l, "%d", &taken)
		if !strings.Contains(l, "no space left") {
			t.Fatalf("a write to a full queue: %s, want ENOSPC", l)
		}
		break
	}
	var st syscall.Statfs_t
	if err := syscall.Statfs(r.point, &st); err != nil || st.Bavail*uint64(st.Bsize) > 128<<10 {
		t.Errorf("statfs of a full queue: %d free, %v", st.Bavail*uint64(st.Bsize), err)
	}
	if used := (st.Blocks - st.Bfree) * uint64(st.Bsize); used < 896<<10 || used > 2<<20 {
		t.Errorf("statfs of a full queue of 1 MiB: %d in use", used)
	}
	r.stop()
	r.moreRoom()
	if got := len(r.delivered()["a.log"]); got != taken {
		t.Fatalf("%d bytes delivered, %d were taken", got, taken)
	}
}

func TestDropPoliciesNeverBlock(t *testing.T) {
	for _, policy := range []string{"drop_oldest", "drop_newest"} {
		r := newRig(t, fmt.Sprintf("[mount.queue]\nmax_bytes = \"1MiB\"\non_full = %q\n", policy))
		f, err := os.Create(r.path("a.log"))
		if err != nil {
			t.Fatal(err)
		}
		line := []byte(strings.Repeat("d", 64<<10-1) + "\n")
		for range 100 {
			if _, err := f.Write(line); err != nil {
				t.Fatalf("%s: %v", policy, err)
			}
		}
		f.Close()
		r.stop()
		if got := len(r.delivered()["a.log"]); got == 0 || got > 2<<20 {
			t.Errorf("%s: %d bytes are left in a queue of 1 MiB", policy, got)
		}
	}
}

// TestStartWithAFullQueueAndBytesInTheSpool: the start waited for room in the queue before
// it served anything or sent anything, for ever.
func TestStartWithAFullQueueAndBytesInTheSpool(t *testing.T) {
	r := newRig(t, tinyQueue)
	taken := fillUp(t, r, "full.log")
	for range 2 {
		r.kill()
		r.start()
	}
	r.stop()
	if got := len(r.delivered()["full.log"]); got != taken {
		t.Fatalf("%d bytes are in the queue, %d were taken", got, taken)
	}
}

// TestSynchronousWriteToAFullQueueToldAnErrorOfBytesItKept: room was for the bytes and not
// for what a batch adds, so that the wait for the disk ended with ENOSPC (and with
// ESHUTDOWN at a stop), and what had been denied was delivered after all.
func TestSynchronousWriteToAFullQueueToldAnErrorOfBytesItKept(t *testing.T) {
	r := newRig(t, "[mount.queue]\nmax_bytes = \"1MiB\"\ndurability = \"sync\"\non_full = \"error\"\n")
	o := startActor(t, "fill", r.path("a.log"))
	l := o.next()
	for l == "wrote" {
		l = o.next()
	}
	var taken int
	fmt.Sscanf(l, "%d", &taken)
	if !strings.Contains(l, "no space left") {
		t.Errorf("a write to a full queue: %s, want ENOSPC", l)
	}
	r.stop()
	r.moreRoom()
	if got := len(r.delivered()["a.log"]); got != taken {
		t.Errorf("%d bytes delivered, %d were taken", got, taken)
	}
}

// TestAnFsyncAtAFullQueueDeniedWhatWasKept: what was taken last may not get into the queue, which has
// no room for what a batch adds. Then fsync(2) was ENOSPC, and a program that wrote again what it
// was told is not kept had it delivered twice.
func TestAnFsyncAtAFullQueueDeniedWhatWasKept(t *testing.T) {
	r := newRig(t, "[mount.queue]\nmax_bytes = \"1MiB\"\non_full = \"error\"\n")
	f := appender(t, r.path("a.log"))
	taken := 0
	for size := 64 << 10; size > 0; { // to the last byte
		_, err := f.WriteString(strings.Repeat("f", size-1) + "\n")
		switch {
		case err == nil:
			taken += size
		case errors.Is(err, syscall.ENOSPC):
			size /= 2
		default:
			t.Fatal(err)
		}
	}
	if err := f.Sync(); err != nil {
		t.Errorf("fsync: %v", err)
	}
	must(t, f.Close())
	r.stop()
	r.moreRoom()
	if got := len(r.delivered()["a.log"]); got != taken {
		t.Errorf("%d bytes delivered, %d were taken", got, taken)
	}
}
