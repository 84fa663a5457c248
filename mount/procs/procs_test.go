package procs

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"ftfuse/internal/record"
)

func TestAProcessIsWhatProcSays(t *testing.T) {
	tab := New()
	pid := uint32(os.Getpid())
	tab.Opening(pid)
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	both := tab.Of(pid, Exe|Cgroup, false)
	groups, _ := os.ReadFile("/proc/self/cgroup")
	if both.Exe != exe || both.Cgroup == "" || !strings.Contains(string(groups), both.Cgroup) {
		t.Errorf("%+v, want %s and one of %s", both, exe, groups)
	}
	if p := tab.Of(pid, Exe, false); *p != (record.Process{Exe: exe}) {
		t.Errorf("only the program: %+v", p)
	}
	if p := tab.Of(pid, Cgroup, false); *p != (record.Process{Cgroup: both.Cgroup}) {
		t.Errorf("only the group: %+v", p)
	}
	for range 2 {
		if tab.Of(pid, Exe|Cgroup, true) != both {
			t.Error("another pointer for the same process")
		}
	}
	tab.Close()
}

// TestAShellThatExecutesAProgramIsThatProgram: it opened the file before.
func TestAShellThatExecutesAProgramIsThatProgram(t *testing.T) {
	cmd := exec.Command("/bin/sh", "-c", "read x; exec cat")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	tab := New()
	defer tab.Close()
	pid := uint32(cmd.Process.Pid)
	tab.Opening(pid)
	shell, _ := filepath.EvalSymlinks("/bin/sh")
	if p := tab.Of(pid, Exe, false); p.Exe != shell {
		t.Errorf("before: %q, want %q", p.Exe, shell)
	}
	fmt.Fprint(in, "go\nanswer\n")
	if _, err := io.ReadFull(out, make([]byte, 7)); err != nil {
		t.Fatal(err)
	}
	cat, _ := filepath.EvalSymlinks("/bin/cat")
	if p := tab.Of(pid, Exe, true); p.Exe != cat {
		t.Errorf("when its bytes are captured: %q, want %q", p.Exe, cat)
	}
	in.Close()
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	if p := tab.Of(pid, Exe, true); p.Exe != cat {
		t.Errorf("when it is gone: %q, want %q", p.Exe, cat)
	}
}

// fake is a Table of processes that the test makes up, at a time that it says.
type fake struct {
	*Table
	is    map[uint32]found
	looks map[uint32]int
	time  time.Time
	block chan struct{}
}

func newFake() *fake {
	f := &fake{Table: New(), is: map[uint32]found{}, looks: map[uint32]int{}, time: time.Unix(1000, 0)}
	f.now = func() time.Time { return f.time }
	f.began = func(start uint64) int64 { return int64(start) * int64(time.Second) }
	f.look = func(pid uint32) (found, error) {
		if f.block != nil {
			<-f.block
		}
		f.mu.Lock()
		defer f.mu.Unlock()
		f.looks[pid]++
		if p, ok := f.is[pid]; ok {
			return p, nil
		}
		return found{}, os.ErrNotExist
	}
	return f
}

func TestAProcessIsLookedAtOnce(t *testing.T) {
	f := newFake()
	f.is[7] = found{1, "/a", "/g"}
	f.Opening(7)
	for range 1000 {
		f.Wrote(7)
		if p := f.Of(7, Exe, true); p.Exe != "/a" {
			t.Fatal(p)
		}
	}
	f.Close()
	if f.looks[7] != 2 { // at the open, and when it had written
		t.Errorf("%d looks", f.looks[7])
	}
}

func TestAPidThatAnotherProcessGotIsNoticed(t *testing.T) {
	f := newFake()
	f.is[7] = found{1, "/a", "/g"}
	f.Of(7, Exe, true)
	f.is[7] = found{2, "/b", "/h"}
	f.time = f.time.Add(again)
	f.Of(7, Exe, true) // begins a look, and does not wait for it
	f.Close()
	if p := f.Of(7, Exe|Cgroup, true); *p != (record.Process{Exe: "/b", Cgroup: "/h"}) {
		t.Errorf("%+v", p)
	}
	f.is[7] = found{2, "", "/h"} // it is ending
	f.Closing(7)
	if p := f.Of(7, Exe, true); p.Exe != "/b" {
		t.Errorf("ending: %+v", p)
	}
	delete(f.is, 7)
	f.time = f.time.Add(again)
	f.Of(7, Exe, true)
	f.Close()
	if p := f.Of(7, Exe, true); p.Exe != "/b" {
		t.Errorf("gone: %+v", p)
	}
}

// TestAnOpenerStaysItselfWhenAnotherProcessGetsItsPid: what the kernel went on writing for it, by a
// child that has its descriptor, was said to be the other's.
func TestAnOpenerStaysItselfWhenAnotherProcessGetsItsPid(t *testing.T) {
	f := newFake()
	defer f.Close()
	f.is[7] = found{1, "/a", "/g"}
	f.Opening(7)
	first := &Opener{PID: 7, Time: int64(5 * time.Second)}
	says := func(o *Opener, want string) {
		t.Helper()
		f.OfOpener(o, Exe)
		f.Close() // a look that was begun is over
		if p := f.OfOpener(o, Exe); p.Exe != want {
			t.Errorf("the opener is %+v, want %q", p, want)
		}
	}
	says(first, "/a")
	f.is[7] = found{1, "/b", "/g"} // it executes a program
	f.time = f.time.Add(again)
	says(first, "/b")
	f.is[7] = found{20, "/c", "/h"} // another process
	f.time = f.time.Add(again)
	says(first, "/b")
	f.Opening(7) // opens a file, too
	says(&Opener{PID: 7, Time: int64(20 * time.Second)}, "/c")
	says(first, "/b")
	says(&Opener{PID: 7, Time: int64(5 * time.Second)}, "") // of one that nothing was known of, as at a takeover
}

// TestAProcessBeganBeforeItOpens.
func TestAProcessBeganBeforeItOpens(t *testing.T) {
	began := time.Now()
	cmd := exec.Command("/bin/cat")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	tab, pid := New(), uint32(cmd.Process.Pid)
	defer tab.Close()
	tab.Opening(pid)
	cat, _ := filepath.EvalSymlinks("/bin/cat")
	if p := tab.OfOpener(&Opener{PID: pid, Time: time.Now().UnixNano()}, Exe); p.Exe != cat {
		t.Errorf("%+v", p)
	}
	if p := tab.OfOpener(&Opener{PID: pid, Time: began.Add(-time.Minute).UnixNano()}, Exe); p.Exe != "" {
		t.Errorf("a process that began later: %+v", p)
	}
	in.Close()
	_ = cmd.Wait()
}

// TestALookThatHangsHoldsNobodyUp for longer than it may, and Wrote not at all.
func TestALookThatHangsHoldsNobodyUp(t *testing.T) {
	f := newFake()
	f.block = make(chan struct{})
	begin := time.Now()
	f.Wrote(7)
	f.Opening(7)
	if p := f.Of(7, Exe, true); p == nil || *p != (record.Process{}) {
		t.Errorf("%+v", p)
	}
	for range 100 {
		f.Of(7, Exe, true)
		f.Wrote(7)
	}
	if d := time.Since(begin); d > 100*(OpenPatience+FirstPatience)/10 {
		t.Errorf("it took %v", d)
	}
	close(f.block)
	f.Close()
}

func TestTheTableIsBounded(t *testing.T) {
	f := newFake()
	for pid := range uint32(3 * most) {
		f.time = f.time.Add(time.Millisecond)
		f.Wrote(pid + 1)
	}
	f.Close()
	if n := len(f.all); n > most {
		t.Errorf("%d processes are remembered", n)
	}
	if f.all[3*most] == nil {
		t.Error("the newest one is forgotten")
	}
}

func TestCgroup(t *testing.T) {
	for text, want := range map[string]string{
		"0::/system.slice/nginx.service\n": "/system.slice/nginx.service",
		"0::/\n":                           "/",
		"12:pids:/docker/ab\n1:name=systemd:/docker/cd\n0::/\n": "/docker/cd",
		"12:pids:/docker/ab\n11:memory:/x\n":                    "/docker/ab",
		"0::/a:b (deleted)\n":                                   "/a:b",
		"":                                                      "",
		"rubbish\n1:name=systemd:/s\n0::/kubepods.slice/kubepods-pod1.slice/c.scope\n": "/kubepods.slice/kubepods-pod1.slice/c.scope",
	} {
		if got := cgroupOf([]byte(text)); got != want {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
}

func TestAProcessThatIsNotThere(t *testing.T) {
	if _, err := look(1 << 30); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
	if p := New().Of(0, Exe, true); *p != (record.Process{}) {
		t.Error(p)
	}
}
