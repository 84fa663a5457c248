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

	"ftfuse/internal/systemd"
)

func TestAKilledWorkerIsFollowedByAnotherWithTheSameConnection(t *testing.T) {
	b := newBench(t)
	b.start(nil)
	pid := b.served("1", "mounted")
	for range 5 {
		kill(t, pid)
		next := b.served("1", "taken")
		if next == pid {
			t.Fatal("the same worker")
		}
		pid = next
	}
	b.signal(unix.SIGTERM)
	b.says("drained")
	b.exits(0)
	b.dropped()
}

func TestTheWorkerHasAProcessGroupOfItsOwnAndTheCommandsName(t *testing.T) {
	b := newBench(t)
	b.start(nil)
	pid := b.served("1", "mounted")
	if g, err := unix.Getpgid(pid); err != nil || g != pid {
		t.Errorf("process group %d of worker %d (%v)", g, pid, err)
	}
	for _, p := range []int{pid, b.cmd.Pid} {
		comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", p))
		if err != nil || string(comm) != "ftfuse\n" {
			t.Errorf("process %d is called %q (%v)", p, comm, err)
		}
		args, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", p))
		if err != nil || string(args) != b.bin+"\x00-x\x00" {
			t.Errorf("command line of %d: %q (%v)", p, args, err)
		}
	}
	env, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
	if err != nil || !strings.Contains(string(env), FDEnv+"=3\x00") {
		t.Errorf("environment of the worker: %q (%v)", env, err)
	}
}

func TestTheExitCodeOfTheFirstWorkerIsPassedOn(t *testing.T) {
	for fault, code := range map[string]int{"exit78": 78, "exit1": 1} {
		b := newBench(t)
		b.start([]string{fakeTest + "=" + fault})
		b.exits(code)
	}
}

func TestAWorkerThatPanicsOrIsKilledBeforeItServesIsFollowedByAnother(t *testing.T) {
	for _, fault := range []string{"panics", "dies first"} {
		b := newBench(t)
		b.start([]string{fakeTest + "=" + fault})
		b.served("1", "mounted")
		b.signal(unix.SIGINT)
		b.cmd.Kill()
	}
}

func TestAFailedWorkerEndsTheConnection(t *testing.T) {
	b := newBench(t)
	b.start(nil)
	pid := b.served("1", "mounted")
	if err := unix.Kill(pid, unix.SIGUSR1); err != nil {
		t.Fatal(err)
	}
	b.exits(1)
	b.dropped()
}

func TestAWorkerThatFailsAtATakeoverEndsTheConnection(t *testing.T) {
	b := newBench(t)
	b.write("faulted", "")
	b.start([]string{fakeTest + "=exit1"})
	pid := b.served("1", "mounted")
	if err := os.Remove(filepath.Join(b.dir, "faulted")); err != nil {
		t.Fatal(err)
	}
	kill(t, pid)
	b.exits(1)
	b.dropped()
}

func TestNoWorkerForHolderTimeoutEndsTheConnection(t *testing.T) {
	b := newBench(t)
	b.write("timeout", "1s")
	b.start([]string{fakeTest + "=hangs"})
	began := time.Now()
	b.exits(1) // the connection was there, and nobody served
	if d := time.Since(began); d < time.Second {
		t.Errorf("after %v, want holder_timeout (1s)", d)
	}
	b.dropped()
}

func TestAWorkerThatDoesNotAnswerIsReplaced(t *testing.T) {
	b := newBench(t)
	b.write("timeout", "2s")
	b.start(nil)
	pid := b.served("1", "mounted")
	if err := unix.Kill(pid, unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	b.served("1", "taken")
}

func TestAHangupIsPassedOn(t *testing.T) {
	b := newBench(t)
	b.start(nil)
	b.served("1", "mounted")
	b.signal(unix.SIGHUP)
	b.says("hangup")
}

func TestAWorkerThatDoesNotStopIsKilledAndTheConnectionDropped(t *testing.T) {
	b := newBench(t)
	b.start([]string{fakeTest + "=does not stop"})
	b.served("1", "mounted")
	b.signal(unix.SIGTERM)
	b.exits(1)
	b.dropped()
}

// A stop that the first worker hears before it serves has a limit all the same.
func TestAStopBeforeTheFirstWorkerServesHasALimit(t *testing.T) {
	b := newBench(t)
	b.write("wait early", "")
	b.start([]string{fakeTest + "=does not stop"})
	for _, err := os.Stat(filepath.Join(b.dir, "early")); err != nil; _, err = os.Stat(filepath.Join(b.dir, "early")) {
		pause(t)
	}
	b.signal(unix.SIGTERM)
	b.logs("told to stop")
	b.signal(unix.SIGHUP) // lets it mount and become ready
	b.exits(1)
	b.dropped()
}

func TestAStopWhileNoWorkerServesWaitsForOne(t *testing.T) {
	b := newBench(t)
	b.start(nil)
	pid := b.served("1", "mounted")
	b.write("wait", "")
	kill(t, pid)
	b.says("waiting") // the next worker is not ready
	b.signal(unix.SIGTERM)
	b.signal(unix.SIGHUP) // passed on: lets it go on
	b.served("1", "taken")
	b.says("drained")
	b.exits(0)
	b.dropped()
}

func TestAWorkerThatDiesWhileItStopsIsFollowedByOneThatDrains(t *testing.T) {
	b := newBench(t)
	b.start(nil)
	pid := b.served("1", "mounted")
	b.signal(unix.SIGSTOP)
	kill(t, pid)
	b.signal(unix.SIGTERM) // to a worker that is gone, or while none serves
	b.signal(unix.SIGCONT)
	b.served("1", "taken")
	b.says("drained")
	b.exits(0)
}

func TestASecondHolderIsRefused(t *testing.T) {
	b := newBench(t)
	b.start(nil)
	b.served("1", "mounted")
	first := b.cmd
	b.start(nil)
	b.exits(1)
	text, _ := os.ReadFile(b.log)
	if !strings.Contains(string(text), ErrRunning.Error()) {
		t.Errorf("it does not say why:\n%s", text)
	}
	b.cmd = first
	b.signal(unix.SIGTERM)
	b.says("drained")
	b.exits(0)
}

func TestTheWorkerOfAKilledHolderIsAdopted(t *testing.T) {
	b := newBench(t)
	b.start(nil)
	old := b.served("1", "mounted")
	b.signal(unix.SIGKILL)
	b.says("orphan")
	b.start(nil)
	b.says("left")
	now := b.served("1", "adopted")
	if runs(t, old) {
		t.Error("the old worker still runs")
	}
	kill(t, now) // the new holder has the connection
	b.served("1", "taken")
	b.signal(unix.SIGTERM)
	b.says("drained")
	b.exits(0)
	b.dropped()
}

func TestAWorkerWhoseHolderLivesIsNotAdopted(t *testing.T) {
	b := newBench(t)
	b.start(nil)
	b.served("1", "mounted")
	if a, err := Adopt(filepath.Join(b.dir, "state")); !errors.Is(err, ErrRunning) {
		t.Errorf("got %v, %v", a, err)
	}
}

func TestNobodyToAdopt(t *testing.T) {
	dir := t.TempDir()
	if a, err := Adopt(dir); a != nil || err != nil {
		t.Fatal(a, err)
	}
	l, err := listen(dir, workerSocket)
	if err != nil {
		t.Fatal(err)
	}
	l.Close() // leaves the socket's file, as a kill does
	if a, err := Adopt(dir); a != nil || err != nil {
		t.Fatal(a, err)
	}
	if _, err := RequestHandover(dir); !errors.Is(err, ErrHandover) {
		t.Fatal(err)
	}
}

func TestTheSocketsAreForTheirOwnerOnly(t *testing.T) {
	b := newBench(t)
	b.start(nil)
	b.served("1", "mounted")
	for _, name := range []string{holderSocket, workerSocket, lockName} {
		st, err := os.Stat(filepath.Join(b.dir, "state", name))
		if err != nil || st.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v %v", name, st.Mode(), err)
		}
	}
}

func TestALongStateDirHasItsSockets(t *testing.T) {
	dir := filepath.Join(t.TempDir(), strings.Repeat("long/", 30))
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	l, err := listen(dir, holderSocket)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ch, err := dial(dir, holderSocket)
	if err != nil {
		t.Fatal(err)
	}
	ch.close()
}

func TestWhatIsNoMessageIsRefused(t *testing.T) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET, 0)
	if err != nil {
		t.Fatal(err)
	}
	ch, err := fileChannel(pair[0])
	if err != nil {
		t.Fatal(err)
	}
	defer ch.close()
	defer unix.Close(pair[1])
	for _, b := range []string{"x", `{"v":2,"type":"go"}`, strings.Repeat(" ", maxMessage+1)} {
		if _, err := unix.Write(pair[1], []byte(b)); err != nil {
			t.Fatal(err)
		}
		if m, err := ch.recv(); !errors.Is(err, errMessage) {
			t.Errorf("%.20q: %+v, %v", b, m, err)
		}
	}
	if _, err := unix.Write(pair[1], []byte(`{"v":1,"type":"later","more":[1]}`)); err != nil {
		t.Fatal(err)
	}
	if m, err := ch.recv(); err != nil || m.Type != "later" || m.fd != -1 {
		t.Errorf("%+v, %v", m, err)
	}
}

func TestEnvironmentOfAWorker(t *testing.T) {
	in := []string{"A=1", FDEnv + "=3", systemd.Env + "=/x", "LISTEN_FDS=2", "FTFUSE_FAILPOINTS=a/b=kill@3;c/d=error;e=kill;i=pause@2;f=kill#2;g=error@2#3;h=kill@4#2"}
	for n, want := range []string{"c/d=error", "a/b=kill@3;c/d=error;e=kill;i=pause@2", "c/d=error;f=kill;h=kill@4", "c/d=error;g=error@2", "c/d=error"} {
		if got := strings.Join(workerEnv(in, n), " "); got != "A=1 FTFUSE_FAILPOINTS="+want {
			t.Errorf("worker %d: %s", n, got)
		}
	}
}
