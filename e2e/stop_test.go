package e2e

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"ftfuse/bench/rig"
)

// pkill, or systemd with KillMode=control-group, sends SIGTERM to every process of the
// mount, and the holder passes its own on: that is one stop, not a second signal.
func TestSignallingEveryProcessAtOnceIsOneStop(t *testing.T) {
	eachCapture(t, func(t *testing.T, c capture, p *rig.Pair) {
		c.start(t, p)
		want := []byte("one\nand two\n")
		must(t, os.WriteFile(p.In("a.log"), want, 0o644))
		for _, pid := range p.MountRole.Family() {
			if err := unix.Kill(pid, unix.SIGTERM); err != nil && err != unix.ESRCH {
				t.Error(err)
			}
		}
		code(t, p.MountRole, 0)
		unmounted(t, p)
		same(t, p.Out("a.log"), want)
		stop(t, p)
	}, "open", "write")
}

// The worker of a killed holder gives up waiting and unmounts while the next `ftfuse mount`
// is taking over from it: that one mounts anew.
func TestAMountStartsWhileTheLastOneIsDrained(t *testing.T) {
	eachCapture(t, func(t *testing.T, c capture, p *rig.Pair) {
		p.Mount = "holder_timeout = \"1s\""
		c.startMount(t, p)
		want := []byte("one\nand two\n")
		must(t, os.WriteFile(p.In("a.log"), want, 0o644))
		old := p.MountRole
		must(t, old.Signal(syscall.SIGKILL))
		_, err := old.WaitLog(t.Context(), "no other holder came") // it drains: nobody takes the lines
		must(t, err)
		c.startMount(t, p)
		must(t, os.WriteFile(p.In("b.log"), want, 0o644))
		startReceive(t, p)
		arrives(t, p.Out("a.log"), want)
		arrives(t, p.Out("b.log"), want)
		stop(t, p)
	}, "open", "write")
}

// The connection was dropped, the worker that had it is dead: the next worker has nothing
// to take over and mounts anew.
func TestAConnectionThatWasDroppedIsReplaced(t *testing.T) {
	eachCapture(t, func(t *testing.T, c capture, p *rig.Pair) {
		c.start(t, p)
		want := []byte("one\nand two\n")
		must(t, os.WriteFile(p.In("a.log"), want, 0o644))
		worker := p.MountRole.Worker()
		must(t, unix.Kill(worker, unix.SIGSTOP)) // it must not see what follows
		eventually(t, patience, func() error {
			tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", worker)) // the pattern is well-formed
			for _, name := range tasks {
				if text, err := os.ReadFile(name); err == nil && !strings.Contains(string(text), ") T ") {
					return fmt.Errorf("a thread is not stopped: %s", text)
				}
			}
			return nil
		})
		must(t, unix.Unmount(p.Point(), unix.MNT_FORCE|unix.MNT_DETACH))
		must(t, unix.Kill(worker, unix.SIGKILL))
		must(t, p.MountRole.ReadyAgain(t.Context(), 2))
		must(t, os.WriteFile(p.In("b.log"), want, 0o644))
		arrives(t, p.Out("a.log"), want)
		arrives(t, p.Out("b.log"), want)
		stop(t, p)
	}, "open", "write")
}

// The holder is the init of a container: what its dead workers leave behind is its own to
// wait for.
func TestAHolderThatIsInitLeavesNoZombies(t *testing.T) {
	need(t, "unshare")
	p := newPair(t)
	script := filepath.Join(p.Dir, "container.sh")
	text := fmt.Sprintf("#!/bin/sh\nexec unshare --pid --fork --mount --mount-proc --kill-child %s \"$@\"\n", p.Bin)
	must(t, os.WriteFile(script, []byte(text), 0o755))
	p.Bin = script
	startMount(t, p)
	init := p.MountRole.Family()[1] // the first is unshare
	for n := range 3 {
		must(t, unix.Kill(p.MountRole.Family()[2], unix.SIGKILL))
		must(t, p.MountRole.ReadyAgain(t.Context(), n+2))
	}
	eventually(t, patience, func() error { // of the newest dead worker's the next one is told
		left := 0
		dirs, _ := filepath.Glob("/proc/[0-9]*") // the pattern is well-formed
		for _, dir := range dirs {
			var pid, parent int
			var name, state string
			stat, err := os.ReadFile(dir + "/stat")
			if err != nil {
				continue
			}
			if n, _ := fmt.Sscan(string(stat), &pid, &name, &state, &parent); n == 4 && parent == init && state == "Z" {
				left++
			}
		}
		if left > 1 {
			return fmt.Errorf("%d zombies are left of 3 workers", left)
		}
		return nil
	})
	must(t, unix.Kill(init, syscall.SIGTERM))
	code(t, p.MountRole, 0)
}

// TestAStopWaitsForNoOtherMountNamespace: a container that was started while the mount was
// there has a copy of it, which keeps the connection to the kernel open after the unmount. The
// stop does not wait for it, and its programs get ENOTCONN.
func TestAStopWaitsForNoOtherMountNamespace(t *testing.T) {
	need(t, "unshare")
	p := startPair(t)
	must(t, os.WriteFile(p.In("a.log"), []byte("before\n"), 0o644))
	cmd := exec.Command("unshare", "-m", "--propagation", "private", "sh", "-c", `echo ready; read x; ls "$1" && exit 8; exit 0`, "sh", p.Point())
	in, err := cmd.StdinPipe()
	must(t, err)
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || line != "ready\n" {
		t.Fatalf("%q, %v", line, err)
	}
	stop(t, p)
	if log := strings.Join(p.MountRole.Log(), "\n"); !strings.Contains(log, "another mount namespace") || strings.Contains(log, "level=ERROR") {
		t.Errorf("the log:\n%s", log)
	}
	in.Close()
	if err := cmd.Wait(); err != nil {
		t.Errorf("a program in the other namespace: %v", err)
	}
	arrives(t, p.Out("a.log"), []byte("before\n"))
}
