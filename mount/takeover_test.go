package mount

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ftfuse/mount/holder"
)

func init() {
	actors["counted"] = actCounted
	actors["flock"] = actFlock
}

// actCounted appends "NAME 0", "NAME 1" ... to PATH, opened with FLAGS, until its stdin is
// closed, and says how many there were and how long the longest write took. Any error is
// one.
func actCounted(args []string) error {
	flags, _ := strconv.Atoi(args[2])
	f, err := syscall.Open(args[0], flags|syscall.O_CREAT, 0o644)
	if err != nil {
		return err
	}
	done := make(chan struct{})
	go func() { io.Copy(io.Discard, os.Stdin); close(done) }()
	fmt.Println("going")
	var longest time.Duration
	for n := 0; ; n++ {
		select {
		case <-done:
			fmt.Printf("%d lines, longest %d ms\n", n, longest.Milliseconds())
			return syscall.Close(f)
		default:
		}
		begun := time.Now()
		line := fmt.Appendf(nil, "%s %d %s\n", args[1], n, strings.Repeat("x", n%100))
		if k, err := syscall.Write(f, line); k != len(line) {
			return fmt.Errorf("write %d: %d, %w", n, k, err)
		}
		longest = max(longest, time.Since(begun))
	}
}

// actFlock locks PATH (flock, waiting) and says so.
func actFlock(args []string) error {
	f, err := syscall.Open(args[0], syscall.O_RDWR, 0)
	if err != nil {
		return err
	}
	runtime.LockOSThread()
	fmt.Printf("tid %d\n", syscall.Gettid())
	if err := syscall.Flock(f, syscall.LOCK_EX); err != nil {
		return err
	}
	fmt.Println("has it")
	bufio.NewReader(os.Stdin).ReadByte()
	return nil
}

// startCounted starts an actCounted, which stop ends.
func startCounted(t testing.TB, path, name string, flags int) (o *output, stop func() (lines int)) {
	t.Helper()
	cmd := actor("counted", path, name, strconv.Itoa(flags))
	in, err := cmd.StdinPipe()
	must(t, err)
	o = startCmd(t, cmd)
	if l := o.next(); l != "going" {
		t.Fatal(l)
	}
	return o, func() int {
		t.Helper()
		in.Close()
		var n, ms int
		if l := o.next(); l != "" {
			if _, err := fmt.Sscanf(l, "%d lines, longest %d ms", &n, &ms); err != nil {
				t.Fatalf("%s: %s", name, l)
			}
		}
		if ms > 20_000 { // how long it takes is measured in e2e
			t.Errorf("%s: a write took %d ms", name, ms)
		}
		return n
	}
}

// countedLines checks that text has n lines of each writer, once and in order.
func countedLines(t testing.TB, text string, want map[string]int) {
	t.Helper()
	next := map[string]int{}
	for line := range strings.Lines(text) {
		name, _, _ := strings.Cut(line, " ")
		if line != fmt.Sprintf("%s %d %s\n", name, next[name], strings.Repeat("x", next[name]%100)) {
			t.Fatalf("%s, want number %d of %q", brief(line), next[name], name)
		}
		next[name]++
	}
	for name, n := range want {
		if next[name] != n {
			t.Errorf("%d lines of %s, want %d", next[name], name, n)
		}
	}
}

// killWorker kills the newest worker and waits for the next.
func (r *rig) killWorker() {
	r.t.Helper()
	pids := r.readies()
	must(r.t, syscall.Kill(pids[len(pids)-1], syscall.SIGKILL))
	r.awaitReadies(len(pids) + 1)
}

// awaitGrowth waits until a file is longer than it was.
func awaitGrowth(t testing.TB, path string) {
	t.Helper()
	first := int64(-1)
	for limit := time.Now().Add(30 * time.Second); ; time.Sleep(time.Millisecond) { // there is no event for it
		st, err := os.Stat(path)
		must(t, err)
		if first < 0 {
			first = st.Size()
		}
		if st.Size() > first {
			return
		}
		if time.Now().After(limit) {
			t.Fatalf("%s does not grow", path)
		}
	}
}

// TestKilledWorkerUnderLoad: whoever writes, no program notices that the worker dies.
func TestKilledWorkerUnderLoad(t *testing.T) {
	r := newHeldRig(t, "[[mount.rule]]\npath = \"write*\"\nattribution = \"write\"\n", "")
	files := map[string]int{
		"open": os.O_WRONLY | os.O_APPEND, "open2": os.O_RDWR | os.O_APPEND, "write": os.O_WRONLY | os.O_APPEND, "write2": os.O_WRONLY,
	}
	stops := map[string]map[string]func() int{}
	for path, flags := range files {
		stops[path] = map[string]func() int{}
		for i := range 2 {
			if i == 1 && flags&os.O_APPEND == 0 {
				continue // two would write over each other
			}
			name := fmt.Sprintf("%s-%d", path, i)
			_, stops[path][name] = startCounted(t, r.path(path), name, flags)
		}
	}
	for range soak(4, 10) {
		for path := range files {
			awaitGrowth(t, r.path(path))
		}
		r.killWorker()
	}
	want := map[string]map[string]int{}
	for path := range files {
		want[path] = map[string]int{}
		for name, stop := range stops[path] {
			want[path][name] = stop()
		}
	}
	nothingOpen(t, r)
	r.stop()
	got := r.delivered()
	for path := range files {
		countedLines(t, got[path], want[path])
	}
}

// TestHandoverUnderLoad: workers that leave in order answer nothing twice and lose nothing.
func TestHandoverUnderLoad(t *testing.T) {
	r := newHeldRig(t, "[[mount.rule]]\npath = \"write*\"\nattribution = \"write\"\n", "")
	var stops []func() int
	names := []string{"open", "open", "write", "write"}
	for i, path := range names {
		_, stop := startCounted(t, r.path(path), fmt.Sprintf("%s-%d", path, i), os.O_WRONLY|os.O_APPEND)
		stops = append(stops, stop)
	}
	for i := range soak(3, 5) {
		if _, err := holder.RequestHandover(filepath.Join(r.dir, "state", "mount")); err != nil {
			t.Fatal(err)
		}
		r.awaitReadies(i + 2)
	}
	want := map[string]map[string]int{"open": {}, "write": {}}
	for i, stop := range stops {
		want[names[i]][fmt.Sprintf("%s-%d", names[i], i)] = stop()
	}
	r.stop()
	got := r.delivered()
	for path, lines := range want {
		countedLines(t, got[path], lines)
	}
}

// TestLeavingAnswersNothingThatWaits: a write that waits for room and a lock that somebody
// else has are the successor's.
func TestLeavingAnswersNothingThatWaits(t *testing.T) {
	r := newHeldRig(t, tinyQueue, "")
	must(t, os.WriteFile(r.path("locked"), nil, 0o644))
	mine := openFlags(t, r.path("locked"), os.O_RDWR)
	must(t, syscall.Flock(int(mine.Fd()), syscall.LOCK_EX))
	waits := startActor(t, "flock", r.path("locked"))
	var waiter, tid int
	fmt.Sscanf(waits.next(), "tid %d", &waiter)
	inWrite(t, waiter)
	taken := fillUp(t, r, "full.log")
	blocked := startActor(t, "catch", r.path("a.log"))
	fmt.Sscanf(blocked.next(), "tid %d", &tid)
	inWrite(t, tid)
	for i := range 3 {
		begun := time.Now()
		if i == 1 {
			r.killWorker()
		} else if _, err := holder.RequestHandover(filepath.Join(r.dir, "state", "mount")); err != nil {
			t.Fatal(err)
		}
		r.awaitReadies(i + 2)
		if d := time.Since(begun); d > 5*time.Second { // it waited for the next request, once
			t.Errorf("it took %v", d)
		}
		inWrite(t, tid)
		inWrite(t, waiter)
	}
	must(t, syscall.Flock(int(mine.Fd()), syscall.LOCK_UN))
	if l := waits.next(); l != "has it" {
		t.Fatal(l)
	}
	must(t, syscall.Tgkill(blocked.cmd.Process.Pid, tid, syscall.SIGUSR1)) // an INTERRUPT of a request that came thrice
	var lines int
	l := blocked.next()
	if fmt.Sscanf(l, "%d", &lines); l != fmt.Sprintf("%d interrupted system call", lines) {
		t.Fatal(l)
	}
	waits.cmd.Process.Kill()
	closeOpen(t)
	r.stop()
	r.held = false
	r.moreRoom()
	got := r.delivered()
	if got["a.log"] != strings.Repeat("interrupted\n", lines) || len(got["full.log"]) != taken {
		t.Fatalf("%d lines of %d, %d bytes of %d", len(got["a.log"])/12, lines, len(got["full.log"]), taken)
	}
}

// TestWhatIsOpenStaysOpen: files and directories that were open when a worker was killed, in
// every state, are as they were.
func TestWhatIsOpenStaysOpen(t *testing.T) {
	for _, mode := range []struct{ name, extra string }{{"open", ""}, {"write", perWrite}} {
		t.Run(mode.name, func(t *testing.T) {
			r := newHeldRig(t, mode.extra, "")
			must(t, os.MkdirAll(r.path("d/e/f"), 0o755))
			must(t, os.Mkdir(r.path("gone"), 0o755))
			appends := os.O_WRONLY | os.O_APPEND | os.O_CREATE
			deep := openFlags(t, r.path("d/e/f/deep"), appends)
			moved := openFlags(t, r.path("d/moved"), appends)
			dead := openFlags(t, r.path("dead"), os.O_RDWR|os.O_APPEND|os.O_CREATE)
			both := openFlags(t, r.path("both"), appends)
			reader := openFlags(t, r.path("both"), os.O_RDONLY)
			dir := openFlags(t, r.path("d"), os.O_RDONLY)
			lost := openFlags(t, r.path("gone"), os.O_RDONLY)
			for _, f := range []*os.File{deep, moved, dead, both} {
				put(t, f, "before\n")
			}
			must(t, os.Rename(r.path("d/moved"), r.path("d/e/elsewhere")))
			must(t, os.Rename(r.path("d/e"), r.path("e2")))
			must(t, os.Remove(r.path("dead")))
			must(t, os.Remove(r.path("gone")))
			for range 2 {
				r.killWorker()
				for _, f := range []*os.File{deep, moved, dead, both} {
					put(t, f, "after\n")
				}
				var st unix.Stat_t
				if err := unix.Fstat(int(dead.Fd()), &st); err != nil || st.Nlink != 0 {
					t.Fatalf("the file that was removed: %v, %d links", err, st.Nlink)
				}
				if err := unix.Fstat(int(moved.Fd()), &st); err != nil || st.Nlink != 1 {
					t.Fatalf("the file that was moved: %v, %d links", err, st.Nlink)
				}
				if err := unix.Fstat(int(lost.Fd()), &st); err != nil && err != unix.ENOENT && err != unix.ESTALE {
					t.Fatalf("the directory that was removed: %v", err)
				}
				// Opened by what is open: no name is looked up.
				again, err := os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", moved.Fd()), os.O_WRONLY|os.O_APPEND, 0)
				must(t, err)
				put(t, again, "again\n")
				again.Close()
				fd, err := unix.Openat(int(dir.Fd()), "new", unix.O_WRONLY|unix.O_CREAT|unix.O_APPEND, 0o644)
				must(t, err)
				_, err = unix.Write(fd, []byte("new\n"))
				must(t, err)
				unix.Close(fd)
			}
			content(t, r.path("e2/f/deep"), "before\nafter\nafter\n")
			content(t, r.path("e2/elsewhere"), "before\nafter\nagain\nafter\nagain\n")
			content(t, r.path("d/new"), "new\nnew\n")
			buf := make([]byte, 100)
			if n, err := reader.Read(buf); string(buf[:n]) != "before\nafter\nafter\n" || err != nil {
				t.Fatalf("%q, %v", buf[:n], err)
			}
			if n, err := dead.ReadAt(buf, 0); string(buf[:n]) != "before\nafter\nafter\n" {
				t.Fatalf("%q, %v", buf[:n], err)
			}
			if names, err := dir.Readdirnames(-1); err != nil || len(names) != 1 {
				t.Fatal(names, err)
			}
			must(t, os.Remove(r.path("both")))
			closeOpen(t)
			nothingOpen(t, r)
			r.stop()
			got := r.delivered()
			want := map[string]string{
				"d/e/f/deep": "before\nafter\nafter\n", "d/moved": "before\nafter\nafter\n", "e2/elsewhere": "again\nagain\n",
				"dead": "before\nafter\nafter\n", "both": "before\nafter\nafter\n", "d/new": "new\nnew\n",
			}
			if mode.extra == "" && os.Getenv(envCapture) != "daemon" {
				// What the kernel writes is the oldest opener's, whoever else has the file open.
				want["d/moved"], want["e2/elsewhere"] = "before\nafter\nagain\nafter\nagain\n", ""
			}
			for path, text := range want {
				if got[path] != text {
					t.Errorf("captured of %s: %q, want %q", path, got[path], text)
				}
			}
			if names, err := os.ReadDir(filepath.Join(r.dir, "state/mount/spool")); err != nil || len(names) != 3 {
				t.Errorf("%d spool files are left, want those of 3 names: %v", len(names), err)
			}
		})
	}
}

// TestLocksSurviveATakeover: who has a lock has it after the worker was killed, and a
// second process does not get it.
func TestLocksSurviveATakeover(t *testing.T) {
	r := newHeldRig(t, "", "")
	a := openFlags(t, r.path("a"), os.O_RDWR|os.O_CREATE)
	must(t, syscall.Flock(int(a.Fd()), syscall.LOCK_EX))
	range1 := syscall.Flock_t{Type: syscall.F_WRLCK, Start: 5, Len: 10}
	must(t, syscall.FcntlFlock(a.Fd(), syscall.F_SETLK, &range1))
	for range 2 {
		r.killWorker()
		if err := exec.Command("flock", "-n", r.path("a"), "true").Run(); err == nil {
			t.Fatal("another process has the lock too")
		}
		out, err := exec.Command("python3", "-c", `
import fcntl,sys
f=open(sys.argv[1],"r+")
fcntl.lockf(f,fcntl.LOCK_EX|fcntl.LOCK_NB,5,0)
try:
    fcntl.lockf(f,fcntl.LOCK_EX|fcntl.LOCK_NB,5,3)
    sys.exit("got it")
except BlockingIOError:
    pass
`, r.path("a")).CombinedOutput()
		if err != nil {
			t.Fatalf("%v %s", err, out)
		}
	}
	a.Close()
	if err := exec.Command("flock", "-n", r.path("a"), "true").Run(); err != nil {
		t.Fatal("the lock of a closed file stays")
	}
}

// TestADamagedSessionEndsTheMountAndLosesNothing: a worker that cannot know what is open
// must not guess; programs get an error, and what was accepted is delivered.
func TestADamagedSessionEndsTheMountAndLosesNothing(t *testing.T) {
	r := newHeldRig(t, perWrite, "")
	f := openFlags(t, r.path("a"), os.O_WRONLY|os.O_APPEND|os.O_CREATE)
	put(t, f, "one\n")
	session, err := os.OpenFile(filepath.Join(r.dir, "state/mount/session"), os.O_RDWR, 0)
	must(t, err)
	defer session.Close()
	_, err = session.WriteAt([]byte{0xff}, 4096+20) // of the first handle
	must(t, err)
	pids := r.readies()
	must(t, syscall.Kill(pids[0], syscall.SIGKILL))
	if err := r.wait(); err == nil {
		t.Fatal("the holder ended well")
	}
	if _, err := f.WriteString("two\n"); err == nil {
		t.Fatal("a write without a worker was accepted")
	}
	closeOpen(t)
	r.start()
	r.stop()
	r.wantDelivered("a", "one\n")
}
