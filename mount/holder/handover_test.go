package holder

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func (b *bench) handover() (string, error) {
	return RequestHandover(filepath.Join(b.dir, "state"))
}

func (b *bench) inode(path string) uint64 {
	b.t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		b.t.Fatal(err)
	}
	return st.Ino
}

func TestAHandoverSwapsWorkerAndHolder(t *testing.T) {
	b := newBench(t)
	b.start(nil)
	old := b.served("1", "mounted")
	for _, version := range []string{"2", "3"} {
		b.install("@version=" + version)
		b.write("config", "config of "+version)
		now, err := b.handover()
		if err != nil || now != version {
			t.Fatalf("version %q, %v", now, err)
		}
		b.says("left")
		pid := b.served(version, "taken")
		if runs(t, old) {
			t.Error("the old worker still runs")
		}
		old = pid
		if a, c := b.inode(fmt.Sprintf("/proc/%d/exe", b.cmd.Pid)), b.inode(b.bin); a != c {
			t.Errorf("the holder is inode %d, installed is %d", a, c)
		}
	}
	kill(t, old) // the holder that replaced itself still knows its child
	b.served("3", "taken")
	b.signal(unix.SIGHUP)
	b.says("hangup")
	b.signal(unix.SIGTERM)
	b.says("drained")
	b.exits(0)
	b.dropped()
}

func TestAHandoverThatCannotBeginLeavesTheOldWorkerAlone(t *testing.T) {
	b := newBench(t)
	b.start(nil)
	old := b.served("1", "mounted")
	for name, f := range map[string]func(){
		"no program":            func() { b.put([]byte("broken")) },
		"gone":                  func() { os.Remove(b.bin) },
		"bad configuration":     func() { b.install("@version=2", "@fault=exit78") },
		"dies":                  func() { b.install("@version=2", "@fault=dies first") },
		"another mount point":   func() { b.install("@version=2"); b.write("elsewhere", "/elsewhere") },
		"a holder_timeout of 0": func() { os.Remove(b.dir + "/elsewhere"); b.write("timeout", "0s") },
	} {
		f()
		_, err := b.handover()
		if !errors.Is(err, ErrHandover) {
			t.Errorf("%s: %v", name, err)
		}
		t.Log(name, err)
		os.Remove(b.dir + "/elsewhere")
		os.Remove(b.dir + "/timeout")
	}
	b.install("@version=2")
	if _, err := b.handover(); err != nil {
		t.Fatal(err)
	}
	b.says("left")
	if b.served("2", "taken") == old {
		t.Error("the same worker")
	}
}

func TestANewBinaryThatDoesNotServeIsFollowedByTheOldOne(t *testing.T) {
	for _, fault := range []string{"panics", "exit1", "hangs"} {
		t.Run(fault, func(t *testing.T) {
			b := newBench(t)
			b.start(nil)
			b.served("1", "mounted")
			b.install("@version=2", "@fault="+fault)
			b.write("config", "bad")
			_, err := b.handover()
			if !errors.Is(err, ErrHandover) || !strings.Contains(err.Error(), "serves again") {
				t.Fatal(err)
			}
			t.Log(err)
			b.says("left")
			pid := b.served("1", "taken") // of the old binary, whose file is gone
			kill(t, pid)
			b.served("1", "taken")
			b.install("@version=3")
			if now, err := b.handover(); err != nil || now != "3" {
				t.Fatal(now, err)
			}
			b.says("left")
			b.served("3", "taken")
			b.signal(unix.SIGTERM)
			b.says("drained")
			b.exits(0)
		})
	}
}

// A holder that cannot become the new binary starts its workers from it all the same.
func TestAHolderThatCannotReplaceItselfGoesOn(t *testing.T) {
	b := newBench(t)
	b.start([]string{"FTFUSE_FAILPOINTS=holder/reexec=error"})
	b.served("1", "mounted")
	b.install("@version=2")
	if now, err := b.handover(); err != nil || now != "2" {
		t.Fatal(now, err)
	}
	b.says("left")
	pid := b.served("2", "taken")
	if b.inode(fmt.Sprintf("/proc/%d/exe", b.cmd.Pid)) == b.inode(b.bin) {
		t.Error("it replaced itself")
	}
	b.put([]byte("broken"))
	kill(t, pid)
	b.served("2", "taken")
	b.signal(unix.SIGTERM)
	b.says("drained")
	b.exits(0)
}

// Killed at a step of its own, a holder leaves a worker that is adopted.
func TestAHolderKilledInAHandoverLeavesAWorkerThatIsAdopted(t *testing.T) {
	b := newBench(t)
	b.start([]string{"FTFUSE_FAILPOINTS=holder/reexec=kill"})
	b.served("1", "mounted")
	b.install("@version=2")
	if _, err := b.handover(); err == nil {
		t.Fatal("it survived its failpoint")
	}
	b.says("left")
	b.served("2", "taken")
	b.says("orphan")
	b.start(nil)
	b.says("left")
	b.served("2", "adopted")
}

func TestAWorkerThatIsKilledWhileItsSuccessorStartsIsFollowedByIt(t *testing.T) {
	b := newBench(t)
	b.start(nil)
	old := b.served("1", "mounted")
	b.install("@version=2")
	done := make(chan error, 1)
	b.signal(unix.SIGSTOP)
	go func() {
		_, err := b.handover()
		done <- err
	}()
	kill(t, old)
	b.signal(unix.SIGCONT)
	err := <-done // refused or done, by which came first; served in any case
	t.Log(err)
	if l := b.next(); !strings.Contains(l, "taken") {
		t.Fatal(l)
	}
}

// A hangup that comes while the holder replaces itself does not kill it.
func TestSignalsDuringAHandover(t *testing.T) {
	b := newBench(t)
	b.start(nil)
	b.served("1", "mounted")
	stop := make(chan struct{})
	sent := make(chan int)
	go func() {
		tick := time.NewTicker(200 * time.Microsecond)
		defer tick.Stop()
		for n := 0; ; n++ {
			select {
			case <-stop:
				sent <- n
				return
			case <-tick.C:
				_ = b.cmd.Signal(unix.SIGHUP)
			}
		}
	}()
	versions := 0
	for i := range 10 {
		version := fmt.Sprint(2 + i)
		b.install("@version=" + version)
		b.write("config", strings.Repeat("x", 1000))
		now, err := b.handover()
		if err != nil || now != version {
			st, _ := b.cmd.Wait()
			t.Fatalf("version %q, %v, %v", now, err, st)
		}
		if b.inode(fmt.Sprintf("/proc/%d/exe", b.cmd.Pid)) == b.inode(b.bin) {
			versions++
		}
	}
	if versions == 0 {
		t.Errorf("it replaced itself %d times of 10", versions) // not where one was waiting to be passed on
	}
	close(stop)
	t.Logf("%d signals; replaced itself %d times of 10", <-sent, versions)
	b.signal(unix.SIGTERM)
	for l := b.next(); l != "drained"; l = b.next() {
		if l == "" {
			t.Fatal("it ended without draining")
		}
	}
	b.exits(0)
}

// A worker that follows a dead one has the configuration that was in force; a handover
// reads the file.
func TestTheConfigurationChangesWithAHandoverOnly(t *testing.T) {
	b := newBench(t)
	b.start(nil)
	pid := b.served("1", "mounted")
	has := func(want string) {
		t.Helper()
		if b.config != want {
			t.Fatalf("the worker has the configuration %q, want %q", b.config, want)
		}
	}
	has("first")
	b.write("config", "second")
	kill(t, pid)
	b.served("1", "taken")
	has("first")
	if _, err := b.handover(); err != nil {
		t.Fatal(err)
	}
	b.says("left")
	b.served("1", "taken")
	has("second")
	b.write("config", "third")
	b.install("@version=2", "@fault=exit1")
	if _, err := b.handover(); err == nil {
		t.Fatal("a worker that fails was taken")
	}
	b.says("left")
	pid = b.served("1", "taken")
	has("second")
	kill(t, pid)
	b.served("1", "taken")
	has("second")
}

func TestAHandoverWaitsForAWorkerThatStarts(t *testing.T) {
	b := newBench(t)
	b.start(nil)
	pid := b.served("1", "mounted")
	b.install("@version=2")
	b.write("wait", "")
	kill(t, pid)
	b.says("waiting")
	done := make(chan error, 1)
	go func() {
		_, err := b.handover()
		done <- err
	}()
	b.logs("handover: waiting")
	if err := os.Remove(filepath.Join(b.dir, "wait")); err != nil {
		t.Fatal(err)
	}
	b.signal(unix.SIGHUP)
	b.served("1", "taken")
	b.says("left")
	b.served("2", "taken")
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}
