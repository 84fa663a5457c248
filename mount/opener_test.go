package mount

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"ftfuse/internal/record"
	"ftfuse/internal/status"
	"ftfuse/mount/procs"
)

func init() {
	actors["threads"] = actThreads
	actors["process of"] = actProcessOf
}

// onThread runs fn on a thread that is not the first of this process, and gives its id.
func onThread(fn func(tid int)) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if tid := syscall.Gettid(); tid != os.Getpid() {
			fn(tid)
		} else {
			onThread(fn) // this one is kept from it
		}
	}()
	<-done
}

// actThreads appends a line to PATH twice, by opens of its own, each on a thread of its own, and
// says who it is before it ends.
func actThreads(args []string) error {
	for i := range 2 {
		var err error
		onThread(func(int) {
			var f int
			if f, err = syscall.Open(args[0], os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o644); err == nil {
				_, err = syscall.Write(f, fmt.Appendf(nil, "%d\n", i))
			}
		})
		if err != nil {
			return err
		}
	}
	fmt.Println(os.Getpid())
	_, _ = bufio.NewReader(os.Stdin).ReadByte()
	return nil
}

// actProcessOf says what processOf says of each TID.
func actProcessOf(args []string) error {
	for _, a := range args {
		tid, err := strconv.ParseUint(a, 10, 32)
		if err != nil {
			return err
		}
		fmt.Println(processOf(uint32(tid)))
	}
	return nil
}

// TestThreadsOfOneProcessWereTakenForSeveral: whoever opened a file twice, on two threads, had its
// lines flagged as those of several processes, and by a number that ps does not show.
func TestThreadsOfOneProcessWereTakenForSeveral(t *testing.T) {
	needPassthrough(t)
	r := newHeldRig(t, "[[mount.rule]]\nattributes = [\"exe\"]\n", "")
	cmd := actor("threads", r.path("a"))
	in, err := cmd.StdinPipe()
	must(t, err)
	pid, err := strconv.Atoi(startCmd(t, cmd).next())
	must(t, err)
	r.killWorker()
	put(t, appender(t, r.path("b")), "beside\n") // the new worker serves
	in.Close()
	must(t, cmd.Wait())
	r.stop()
	self, err := os.Executable()
	must(t, err)
	got := ""
	for _, one := range r.records() {
		if one.Path != "a" {
			continue
		}
		got += one.data
		if int(one.PID) != pid || one.Flags != record.Opener || one.Process == nil || one.Process.Exe != self {
			t.Errorf("%+v of %+v, want pid %d, %s, alone", one, one.Process, pid, self)
		}
	}
	if got != "0\n1\n" {
		t.Errorf("captured %q", got)
	}
}

// TestProcessOfAThread, also where it cannot be known: then it is the thread itself.
func TestProcessOfAThread(t *testing.T) {
	var tid uint32
	stay, there := make(chan struct{}), make(chan struct{})
	go onThread(func(id int) { tid = uint32(id); close(there); <-stay })
	<-there
	pid := uint32(os.Getpid())
	if tid == pid || processOf(tid) != pid || processOf(pid) != pid {
		t.Errorf("processes %d of %d and %d of %d, want %d", processOf(tid), tid, processOf(pid), pid, pid)
	}
	const gone = 1<<31 - 1 // above the largest pid_max
	if processOf(0) != 0 || processOf(gone) != gone {
		t.Errorf("%d of a thread of another pid namespace, %d of one that is gone", processOf(0), processOf(gone))
	}
	if os.Geteuid() == 0 { // a namespace with the /proc of another
		cmd := actor("process of", fmt.Sprint(tid))
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID}
		if out, err := cmd.Output(); err != nil || strings.TrimSpace(string(out)) != fmt.Sprint(tid) {
			t.Errorf("%q, %v by the /proc of another pid namespace, want %d", out, err, tid)
		}
	}
	close(stay)
}

// TestAThreadThatOpensIsLookedAtAsItsProcess: records of what the kernel writes name the process,
// which may be gone when they are made.
func TestAThreadThatOpensIsLookedAtAsItsProcess(t *testing.T) {
	for _, turns := range []int{0, 1} { // none is free, one is
		s := &server{looking: make(chan struct{}, turns), procs: procs.New()}
		var seen []uint32
		onThread(func(tid int) {
			s.afterLook(uint32(tid), func(pid uint32) { seen = append(seen, pid) }, func() {})
			s.wg.Wait()
			s.procs.Close()
			for _, want := range []int{tid, os.Getpid()} {
				if turns > 0 {
					if !slices.Contains(seen, uint32(want)) {
						t.Errorf("%d were looked at, want %d", seen, want)
					}
				} else if s.procs.Of(uint32(want), procs.Exe, false).Exe == "" {
					t.Errorf("%d was not looked at", want)
				}
			}
		})
	}
}

// shell is sh as uid with group gid, which opens path with `>>` and then writes a line each time
// it is given one.
type shell struct {
	t   *testing.T
	cmd *exec.Cmd
	in  io.WriteCloser
	out *output
}

func startShell(t *testing.T, path string, uid, gid uint32) *shell {
	t.Helper()
	s := &shell{t: t, cmd: exec.Command("sh", "-c", `umask 0; exec 3>>"$1"; echo open; while read -r line; do echo "$line" >&3; echo done; done`, "sh", path)}
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: gid}}
	var err error
	s.in, err = s.cmd.StdinPipe()
	must(t, err)
	s.out = startCmd(t, s.cmd)
	s.said("open")
	return s
}

func (s *shell) said(want string) {
	s.t.Helper()
	if l := s.out.next(); l != want {
		s.t.Fatalf("the shell says %q, want %q", l, want)
	}
}

func (s *shell) line(text string) {
	s.t.Helper()
	_, err := io.WriteString(s.in, text+"\n")
	must(s.t, err)
	s.said("done")
}

// end returns when the shell has closed the file and ended.
func (s *shell) end() {
	s.in.Close()
	must(s.t, s.cmd.Wait())
}

// TestWhatTheKernelWritesBearsItsOpener: pid, uid, gid and path of the newest, whoever wrote it,
// and whether there were several; also after a takeover, and as long as one of them stays.
func TestWhatTheKernelWritesBearsItsOpener(t *testing.T) {
	needPassthrough(t)
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	r := newRigStopped(t, "allow_other = true\numask = \"000\"\n")
	r.held = true
	for _, dir := range []string{r.point, r.dir, filepath.Dir(r.dir)} {
		must(t, os.Chmod(dir, 0o755))
	}
	r.start()
	must(t, os.Chmod(r.point, 0o777))
	var want []string
	wrote := func(line string, s *shell, uid, gid int, flags uint16) {
		want = append(want, fmt.Sprintf("%s pid %d uid %d gid %d flags %#x", line, s.cmd.Process.Pid, uid, gid, flags))
	}
	const several = record.Opener | record.Several
	a := startShell(t, r.path("a"), 1234, 4321)
	a.line("alone")
	wrote("alone", a, 1234, 4321, record.Opener)
	b := startShell(t, r.path("a"), 2345, 5432)
	a.line("beside")
	wrote("beside", b, 2345, 5432, several)
	r.killWorker()
	b.line("takeover")
	wrote("takeover", b, 2345, 5432, several)
	b.end()
	_, err := os.Stat(r.path("a")) // is answered after the RELEASE, which nobody waits for
	must(t, err)
	a.line("left")
	wrote("left", a, 1234, 4321, record.Opener)
	r.killWorker()
	a.line("again")
	wrote("again", a, 1234, 4321, record.Opener)
	a.end()
	r.stop()
	var got []string
	for _, one := range r.records() {
		for line := range strings.Lines(one.data) { // lines of one opener may share a record
			got = append(got, fmt.Sprintf("%s pid %d uid %d gid %d flags %#x", strings.TrimSuffix(line, "\n"), one.PID, one.UID, one.GID, one.Flags))
		}
	}
	if g, w := strings.Join(got, "\n"), strings.Join(want, "\n"); g != w {
		t.Errorf("records\n%s\nwant\n%s", g, w)
	}
}

// TestAppendsStayWithTheDaemonUntilTheLastClose of a file that was opened for reading and writing or
// with O_DIRECT first, and an operator can see it; then the kernel has them again.
func TestAppendsStayWithTheDaemonUntilTheLastClose(t *testing.T) {
	needPassthrough(t)
	r := newHeldRig(t, "", "")
	wantServed := func(want uint64) {
		t.Helper()
		_, err := os.Stat(r.point) // answered behind every RELEASE
		must(t, err)
		s, err := r.status()
		must(t, err)
		i := slices.IndexFunc(s.Counters, func(c status.Counter) bool { return c.Name == "daemon_served_files" })
		if i < 0 || !s.Counters[i].Gauge || s.Counters[i].Value != want {
			t.Errorf("daemon_served_files is not %d: %+v", want, s.Counters)
		}
	}
	for i, flags := range []int{os.O_RDWR, os.O_WRONLY | syscall.O_DIRECT} {
		name := fmt.Sprint(i)
		f, err := os.OpenFile(r.path(name), flags|os.O_CREATE, 0o644)
		must(t, err)
		wantServed(0)
		g, h := appender(t, r.path(name)), appender(t, r.path(name))
		wantServed(1)
		r.awaitLog("path=" + name + " pid=")
		put(t, g, "beside\n")
		f.Close()
		r.killWorker()
		h.Close()
		wantServed(1)
		h = appender(t, r.path(name))
		put(t, h, "still\n")
		h.Close()
		wantServed(1)
		g.Close()
		wantServed(0)
		h = appender(t, r.path(name))
		put(t, h, "after\n")
		wantServed(0)
		h.Close()
	}
	r.stop()
	got := map[string]string{}
	for _, one := range r.records() {
		for line := range strings.Lines(one.data) {
			got[one.Path] += fmt.Sprintf("%s opener %t|", strings.TrimSpace(line), one.Flags&record.Opener != 0)
		}
	}
	for path, lines := range got {
		if want := "beside opener false|still opener false|after opener true|"; lines != want || len(got) != 2 {
			t.Errorf("%s: %s, want %s", path, lines, want)
		}
	}
}

// TestTheTimeOfWhatTheKernelWritesIsThatOfItsCapture: not of the open, and after a start that of
// the start.
func TestTheTimeOfWhatTheKernelWritesIsThatOfItsCapture(t *testing.T) {
	needPassthrough(t)
	r := newRig(t, "")
	f := appender(t, r.path("a"))
	before := time.Now().UnixNano()
	put(t, f, "served\n")
	must(t, f.Sync()) // it is in the queue
	after := time.Now().UnixNano()
	r.kill()
	put(t, f, "alone\n")
	f.Close()
	started := time.Now().UnixNano()
	r.start()
	serves := time.Now().UnixNano()
	r.stop()
	all := r.records()
	if len(all) != 2 || all[0].data != "served\n" || all[1].data != "alone\n" {
		t.Fatalf("%+v", all)
	}
	if got := all[0].Time; got < before || got > after || all[0].Flags != record.Opener {
		t.Errorf("%+v: %d ns after the write, want 0 to %d, of the opener", all[0].Attr, got-before, after-before)
	}
	if got := all[1].Time; got < started || got > serves || all[1].PID != uint32(os.Getpid()) || all[1].Flags != record.Opener {
		t.Errorf("%+v: %d ns after the start, want 0 to %d, of the opener", all[1].Attr, got-started, serves-started)
	}
}
