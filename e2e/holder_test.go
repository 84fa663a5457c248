package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ftfuse/bench/rig"
	"ftfuse/bench/tally"
)

// installed gives the pair a binary of its own that can be replaced, and returns what
// replaces it, as a package manager does: a new file in its place.
func installed(t *testing.T, p *rig.Pair) (put func(from string)) {
	t.Helper()
	p.Bin = filepath.Join(p.Dir, "ftfuse")
	put = func(from string) {
		t.Helper()
		content, err := os.ReadFile(from)
		must(t, err)
		must(t, os.WriteFile(p.Bin+".new", content, 0o755))
		must(t, os.Rename(p.Bin+".new", p.Bin))
	}
	put(bin)
	return put
}

// build builds a program of this module.
func build(t *testing.T, version, pkg string) string {
	t.Helper()
	out := filepath.Join(t.TempDir(), "program")
	cmd := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-ldflags", "-X main.version="+version, "-o", out, pkg)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if text, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build %s: %v\n%s", pkg, err, text)
	}
	return out
}

// versionOf is what the binary under test says of itself.
func versionOf(t *testing.T) string {
	t.Helper()
	text, _, _ := ftfuse(t, "version", "--json")
	var v struct{ Version string }
	must(t, json.Unmarshal([]byte(text), &v))
	return v.Version
}

// handover runs `ftfuse mount --handover`.
func handover(t *testing.T, p *rig.Pair) (stdout, stderr string, code int) {
	t.Helper()
	return ftfuse(t, "mount", "--handover", "-c", p.MountConfig())
}

// The worker is swapped for another version under full load, there and back. No program
// sees an error, none waits long, and every line arrives once, in order.
func TestAHandoverUnderLoadIsNotNoticed(t *testing.T) {
	one, two := versionOf(t), build(t, "two", "ftfuse")
	eachCapture(t, func(t *testing.T, c capture, p *rig.Pair) {
		put := installed(t, p)
		c.start(t, p)
		l := startLoad(t, p, "load.log", 2, fullLoad)
		looping, names := beside(t, p, "appending", appending), beside(t, p, "naming", naming)
		for i, from := range []string{two, bin, two} {
			grows(t, p.Out("load.log"), rand.Int64N(2<<20))
			put(from)
			n := p.MountRole.Readies()
			out, complaint, code := handover(t, p)
			version := []string{"two", one, "two"}[i]
			if code != 0 || !strings.Contains(out, "version "+version+" ") {
				t.Fatalf("handover to %s: exit code %d\n%s%s", version, code, out, complaint)
			}
			must(t, p.MountRole.ReadyAgain(t.Context(), n+1))
			for _, pid := range []int{p.MountRole.PID(), p.MountRole.Worker()} {
				sameFile(t, fmt.Sprintf("/proc/%d/exe", pid), p.Bin)
			}
		}
		killWorker(t, p) // the holder that became another binary is one
		grows(t, p.Out("load.log"), 1)
		plan, results := l.finish(t)
		checkStall(t, results)
		looping.end(t)
		names.end(t)
		drained(t, l, results)
		stop(t, p)
		t.Log(l.count(t, plan, results))
		wholeLoop(t, p.Out("appending/loop.log"))
	}, "open", "write")
}

func sameFile(t *testing.T, a, b string) {
	t.Helper()
	x, err := os.Stat(a)
	must(t, err)
	y, err := os.Stat(b)
	must(t, err)
	if !os.SameFile(x, y) {
		t.Errorf("%s is not %s", a, b)
	}
}

// What cannot serve in the old worker's place does not get it, or gives it back.
func TestAHandoverToWhatDoesNotServe(t *testing.T) {
	bad := build(t, "bad", "ftfuse/e2e/testdata/badworker")
	eachCapture(t, func(t *testing.T, c capture, p *rig.Pair) {
		put := installed(t, p)
		c.start(t, p)
		l := startLoad(t, p, "load.log", 2, fullLoad)
		refused := func(what, want string) {
			t.Helper()
			grows(t, p.Out("load.log"), 1<<20)
			out, complaint, code := handover(t, p)
			if code != 1 || !strings.Contains(complaint, want) {
				t.Errorf("%s: exit code %d, want 1 and %q\n%s%s", what, code, want, out, complaint)
			}
		}
		must(t, os.WriteFile(filepath.Join(p.Dir, "garbage"), []byte("garbage"), 0o755))
		old := p.MountRole.Worker()
		put(filepath.Join(p.Dir, "garbage"))
		refused("garbage", "exec format error")
		put(bin)
		good := read(t, p.MountConfig())
		elsewhere := bytes.ReplaceAll(good, []byte(p.Point()), []byte(filepath.Join(p.Dir, "other")))
		must(t, os.WriteFile(p.MountConfig(), elsewhere, 0o644))
		refused("another mount point", "stop and start instead")
		must(t, os.WriteFile(p.MountConfig(), append([]byte("hots = 1\n"), good...), 0o644))
		if out, complaint, code := handover(t, p); code != 78 || !strings.Contains(complaint, ":1: ") {
			t.Errorf("bad configuration: exit code %d, want 78 and the line\n%s%s", code, out, complaint)
		}
		if now := p.MountRole.Worker(); now != old {
			t.Errorf("worker %d serves, want %d: it need not have been disturbed", now, old)
		}
		must(t, os.WriteFile(p.MountConfig(), good, 0o644))
		put(bad)
		n := p.MountRole.Readies()
		refused("a worker that fails", "the old version serves again")
		must(t, p.MountRole.ReadyAgain(t.Context(), n+1)) // its line may come after the answer
		if now := p.MountRole.Worker(); now == old {
			t.Error("the old worker serves, which had left")
		}
		plan, results := l.finish(t)
		checkStall(t, results)
		drained(t, l, results)
		stop(t, p)
		t.Log(l.count(t, plan, results))
	}, "open", "write")
}

func TestAHandoverWithoutAMountSaysSo(t *testing.T) {
	p := newPair(t)
	must(t, p.WriteConfigs())
	if _, complaint, code := handover(t, p); code != 1 || !strings.Contains(complaint, "not running") {
		t.Errorf("exit code %d\n%s", code, complaint)
	}
}

// unmounted checks that nothing is mounted any more.
func unmounted(t *testing.T, p *rig.Pair) {
	t.Helper()
	text, err := os.ReadFile("/proc/self/mountinfo")
	must(t, err)
	if bytes.Contains(text, []byte(" "+p.Point()+" ")) {
		t.Errorf("%s is still mounted", p.Point())
	}
}

// writesUntilError starts a program that writes until a write fails, and tells with which error.
func writesUntilError(t *testing.T, path string) <-chan error {
	t.Helper()
	fd, err := unix.Open(path, unix.O_WRONLY|unix.O_CREAT, 0o644) // not appending: the daemon serves it
	must(t, err)
	failed := make(chan error, 1)
	go func() {
		defer unix.Close(fd)
		for {
			// A daemon that is about to drop the connection may say so first.
			if _, err := unix.Write(fd, []byte("a line\n")); err != nil && err != unix.ESHUTDOWN {
				failed <- err
				return
			}
		}
	}()
	return failed
}

func gaveUp(t *testing.T, failed <-chan error) {
	t.Helper()
	select {
	case err := <-failed:
		if err != unix.ENOTCONN && err != unix.ECONNABORTED {
			t.Errorf("the program got %v, want ENOTCONN or ECONNABORTED", err)
		}
	case <-time.After(patience):
		t.Fatal("the program still waits")
	}
}

func code(t *testing.T, r *rig.Role, want int) {
	t.Helper()
	select {
	case <-r.Done():
	case <-time.After(patience):
		t.Fatal("the mount does not end")
	}
	if got := r.ExitCode(); got != want {
		t.Errorf("exit code %d, want %d", got, want)
	}
}

// A worker that can keep its promises no longer is not started again: the mount is gone,
// programs get an error and can end, and what was accepted is sent after the next start.
func TestAFailStopDropsTheConnection(t *testing.T) {
	for _, c := range captures[:2] {
		t.Run(c.name, func(t *testing.T) {
			p := c.pair(t)
			startReceive(t, p)
			startMount(t, p, "FTFUSE_FAILPOINTS=queue/commit-before=error@40")
			failed := writesUntilError(t, p.In("a.log"))
			gaveUp(t, failed)
			code(t, p.MountRole, 1)
			unmounted(t, p)
			if n := p.MountRole.Readies(); n != 1 {
				t.Errorf("%d workers served, want 1", n)
			}
			c.startMount(t, p)
			stop(t, p)
		})
	}
}

// No worker comes to serve: after holder_timeout the programs get an error.
func TestNoWorkerForHolderTimeoutDropsTheConnection(t *testing.T) {
	for _, c := range captures[:2] {
		t.Run(c.name, func(t *testing.T) {
			p := c.pair(t)
			p.Mount = "holder_timeout = \"1s\""
			startReceive(t, p)
			startMount(t, p, "FTFUSE_FAILPOINTS=mount/takeover=pause")
			failed := writesUntilError(t, p.In("a.log"))
			grows(t, p.Out("a.log"), 1)
			began := time.Now()
			must(t, p.MountRole.KillWorker())
			gaveUp(t, failed)
			if d := time.Since(began); d < time.Second {
				t.Errorf("after %v, want holder_timeout (1s)", d)
			}
			code(t, p.MountRole, 1)
			unmounted(t, p)
			c.startMount(t, p)
			stop(t, p)
		})
	}
}

// isGivenUp kills the worker below a program that writes, and returns when the mount, which no
// next one can take over, is gone and the holder has ended.
func isGivenUp(t *testing.T, p *rig.Pair) {
	t.Helper()
	failed := writesUntilError(t, p.In("a.log"))
	grows(t, p.Out("a.log"), 1)
	must(t, p.MountRole.KillWorker())
	gaveUp(t, failed)
	code(t, p.MountRole, 1)
	unmounted(t, p)
}

// A worker that cannot take the connection over gives it up: the holder detaches a mount
// that nobody serves, without asking it anything.
func TestATakeoverThatFailsDropsTheConnection(t *testing.T) {
	c := captures[0]
	p := c.pair(t)
	startReceive(t, p)
	startMount(t, p, "FTFUSE_FAILPOINTS=mount/takeover=error")
	isGivenUp(t, p)
	c.startMount(t, p)
	stop(t, p)
}

// A kernel before 6.9 gives nobody the requests again that a dead worker has not answered:
// the next one cannot go on with the connection, and what was accepted waits for a start.
func TestAKernelWithoutResendDropsTheConnection(t *testing.T) {
	for _, c := range captures[1:] { // no passthrough there either
		t.Run(c.name, func(t *testing.T) {
			p := c.pair(t)
			startReceive(t, p)
			startMount(t, p, "FTFUSE_FAILPOINTS=kernel/no-passthrough=error;kernel/no-resend=error")
			want := []byte("one\nand two\n")
			must(t, os.WriteFile(p.In("b.log"), want, 0o644))
			isGivenUp(t, p)
			if _, err := p.MountRole.WaitLog(t.Context(), "FUSE_NOTIFY_RESEND, Linux 6.9"); err != nil {
				t.Error(err)
			}
			c.startMount(t, p)
			stop(t, p)
			same(t, p.Out("b.log"), want)
		})
	}
}

// The holder is killed, the worker is not: it serves on, and the next start adopts it.
func TestAKilledHolderIsReplacedAndNobodyNotices(t *testing.T) {
	eachCapture(t, func(t *testing.T, c capture, p *rig.Pair) {
		c.start(t, p)
		l := startLoad(t, p, "load.log", 2, fullLoad)
		looping, names := beside(t, p, "appending", appending), beside(t, p, "naming", naming)
		for range 3 {
			grows(t, p.Out("load.log"), rand.Int64N(2<<20))
			old := p.MountRole.Worker()
			must(t, p.MountRole.Signal(syscall.SIGKILL))
			<-p.MountRole.Done()
			grows(t, p.Out("load.log"), 256<<10) // without a holder
			c.startMount(t, p)
			if err := unix.Kill(old, 0); err != unix.ESRCH && !zombie(old) {
				t.Errorf("the old worker still runs")
			}
			killWorker(t, p) // the new holder has the connection
		}
		plan, results := l.finish(t)
		checkStall(t, results)
		looping.end(t)
		names.end(t)
		drained(t, l, results)
		stop(t, p)
		t.Log(l.count(t, plan, results))
		wholeLoop(t, p.Out("appending/loop.log"))
	}, "open", "write")
}

func zombie(pid int) bool {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	_, rest, _ := strings.Cut(string(text), ") ")
	return err != nil || strings.HasPrefix(rest, "Z")
}

// Nobody comes to adopt it: the worker of a killed holder drains, unmounts and ends.
func TestAWorkerThatNobodyAdoptsDrainsAndEnds(t *testing.T) {
	eachCapture(t, func(t *testing.T, c capture, p *rig.Pair) {
		p.Mount = "holder_timeout = \"1s\""
		c.start(t, p)
		want := []byte("one\nand two\n")
		must(t, os.WriteFile(p.In("a.log"), want, 0o644))
		worker := p.MountRole.Worker()
		must(t, p.MountRole.Signal(syscall.SIGKILL))
		eventually(t, patience, func() error {
			if !zombie(worker) {
				return fmt.Errorf("worker %d still runs", worker)
			}
			return nil
		})
		unmounted(t, p)
		same(t, p.Out("a.log"), want)
		c.startMount(t, p)
		stop(t, p)
	}, "open", "write")
}

// TestSystemdKeepsTheMount: systemd (here a stand-in that speaks its protocol) has the
// connection in its store. With KillMode=mixed a killed holder takes its worker along, and
// the next start has the connection again.
func TestSystemdKeepsTheMount(t *testing.T) {
	eachCapture(t, func(t *testing.T, c capture, p *rig.Pair) {
		m := newManager(t)
		must(t, p.StartReceive(t.Context())) // which would tell the manager that it is ready, too
		p.Env = append(p.Env, "NOTIFY_SOCKET="+m.path)
		c.startMount(t, p)
		l := startLoad(t, p, "load.log", 2, fullLoad)
		for range 3 {
			grows(t, p.Out("load.log"), rand.Int64N(2<<20))
			m.ready(t)
			must(t, p.MountRole.Kill())
			m.restart(t, p)
			c.check(t, p)
		}
		for _, f := range m.store { // systemd's copies
			must(t, f.Close())
		}
		plan, results := l.finish(t)
		drained(t, l, results)
		stop(t, p)
		t.Log(l.count(t, plan, results))
		for _, r := range results {
			if r.Lines == 0 || len(r.Errors) > 0 {
				t.Errorf("a program saw %q", r.Errors)
			}
		}
	}, "open", "write")
}

// manager is a stand-in for systemd: it takes what services tell it and keeps the
// descriptors that they store.
type manager struct {
	path  string
	c     *net.UnixConn
	store []*os.File // stays over restarts
}

func newManager(t *testing.T) *manager {
	t.Helper()
	path := filepath.Join(t.TempDir(), "notify")
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	must(t, err)
	t.Cleanup(func() { c.Close() })
	return &manager{path: path, c: c}
}

// ready reads notifications up to READY=1.
func (m *manager) ready(t *testing.T) {
	t.Helper()
	must(t, m.c.SetReadDeadline(time.Now().Add(patience)))
	b, oob := make([]byte, 4096), make([]byte, 256)
	for {
		n, k, _, _, err := m.c.ReadMsgUnix(b, oob)
		must(t, err)
		said := string(b[:n])
		messages, err := unix.ParseSocketControlMessage(oob[:k])
		must(t, err)
		for _, cm := range messages {
			fds, err := unix.ParseUnixRights(&cm)
			must(t, err)
			for _, fd := range fds {
				unix.CloseOnExec(fd)
				m.store = append(m.store, os.NewFile(uintptr(fd), "stored"))
			}
		}
		switch {
		case strings.Contains(said, "READY=1"):
			if len(m.store) != 2 {
				t.Fatalf("%d descriptors are stored when it is ready, want 2", len(m.store))
			}
			return
		case strings.Contains(said, "FDSTOREREMOVE=1"):
			m.store = nil
		}
	}
}

// restart starts the mount with the store, as systemd does: LISTEN_PID is the process's
// own, so a shell sets it and becomes ftfuse.
func (m *manager) restart(t *testing.T, p *rig.Pair) {
	t.Helper()
	real := p.Bin
	script := filepath.Join(p.Dir, "service.sh")
	text := fmt.Sprintf("#!/bin/sh\nLISTEN_PID=$$ LISTEN_FDS=%d LISTEN_FDNAMES=ftfuse:ftfuse exec %s \"$@\"\n", len(m.store), real)
	must(t, os.WriteFile(script, []byte(text), 0o755))
	p.Bin = script
	defer func() { p.Bin = real }()
	r, err := rig.StartWith(m.store, p.Bin, "mount", p.MountConfig(), p.Log, p.Env...)
	must(t, err)
	p.MountRole = r
	must(t, r.Ready(t.Context()))
}

// holdsNothing fails the test if a process of the mount has a file of it: a holder or a worker that
// is killed would wait for itself.
func holdsNothing(t *testing.T, p *rig.Pair, who string, pid int) {
	t.Helper()
	dir := fmt.Sprintf("/proc/%d/", pid)
	links := []string{"cwd", "root", "exe"}
	for _, sub := range []string{"fd", "map_files"} {
		list, err := os.ReadDir(dir + sub)
		must(t, err)
		for _, e := range list {
			links = append(links, sub+"/"+e.Name())
		}
	}
	for _, link := range links { // one may be closed by now
		if to, err := os.Readlink(dir + link); err == nil && strings.HasPrefix(to, p.Point()) {
			t.Errorf("the %s has %s open", who, to)
		}
	}
}

// throttleHelper waits for the worker's helper, and returns it.
func throttleHelper(t *testing.T, p *rig.Pair) (pid int) {
	t.Helper()
	eventually(t, patience, func() error {
		for _, pid = range p.MountRole.Family() {
			if text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid)); err == nil && strings.HasPrefix(string(text), "ftfuse-throttle\x00") {
				return nil
			}
		}
		return errors.New("the worker has no helper for the throttle")
	})
	return pid
}

// The holder is a small process that has nothing open on its own mount; neither have the worker
// and the throttle's helper, under load too.
func TestTheHolderIsSmallAndHoldsNothingOfItsMount(t *testing.T) {
	eachCapture(t, func(t *testing.T, c capture, p *rig.Pair) {
		c.start(t, p)
		l := startLoad(t, p, "load.log", 2, rig.Job{Size: 64, Lines: tally.MaxLines, Rate: 20_000})
		grows(t, p.Out("load.log"), 1<<20)
		killWorker(t, p)
		holdsNothing(t, p, "holder", p.MountRole.PID())
		holdsNothing(t, p, "worker", p.MountRole.Worker())
		holdsNothing(t, p, "throttle's helper", throttleHelper(t, p))
		status := string(read(t, fmt.Sprintf("/proc/%d/status", p.MountRole.PID())))
		var rss int
		_, rest, _ := strings.Cut(status, "VmRSS:")
		if _, err := fmt.Sscanf(rest, "%d kB", &rss); err != nil || rss > 16<<10 {
			t.Errorf("resident memory %d KiB (%v), want less than 16 MiB\n%s", rss, err, status)
		}
		t.Logf("resident memory of the holder: %d KiB", rss)
		plan, results := l.finish(t)
		drained(t, l, results)
		stop(t, p)
		l.count(t, plan, results)
	}, "open")
}
