package plugin

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ftfuse/internal/record"
)

// hangingDir mounts a file system that answers nothing: who looks a name up there cannot be
// killed once asked is closed, as on a server that is gone. release ends that. (A request that was
// read from /dev/fuse is waited for, whatever signals come: fs/fuse/dev.c, request_wait_answer.)
func hangingDir(t *testing.T) (dir string, asked <-chan struct{}, release func()) {
	t.Helper()
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Skipf("open /dev/fuse: %v", err)
	}
	dir = t.TempDir()
	if err := unix.Mount("hanging", dir, "fuse", 0, fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0", fd)); err != nil {
		unix.Close(fd)
		t.Skipf("mount a FUSE file system: %v (needs root)", err)
	}
	closed := make(chan struct{})
	release = func() { // aborts the connection
		select {
		case <-closed:
		default:
			close(closed)
			_ = unix.Unmount(dir, unix.MNT_DETACH|unix.MNT_FORCE)
			unix.Close(fd)
		}
	}
	t.Cleanup(release)
	requests := make(chan struct{})
	buf := make([]byte, 1<<20)
	if _, err := unix.Read(fd, buf); err != nil { // INIT
		t.Fatal(err)
	}
	reply := make([]byte, 16+64)
	binary.NativeEndian.PutUint32(reply, uint32(len(reply)))
	copy(reply[8:], buf[8:16])                                  // unique
	for i, v := range map[int]uint32{16: 7, 20: 31, 36: 4096} { // version, max_write
		binary.NativeEndian.PutUint32(reply[i:], v)
	}
	if _, err := unix.Write(fd, reply); err != nil {
		t.Fatal(err)
	}
	go func() {
		if _, err := unix.Read(fd, make([]byte, 1<<20)); err == nil {
			close(requests)
		}
	}()
	return dir, requests, release
}

// A plugin that the kernel does not end, for it waits for a disk that is gone, held up the stop of
// its role, and a reload, for ever.
func TestAPluginThatCannotBeKilledHoldsUpNoStop(t *testing.T) {
	for _, how := range []string{"stop", "reload"} {
		t.Run(how, func(t *testing.T) {
			dir, asked, release := hangingDir(t)
			p := shell(": <"+filepath.Join(dir, "x"), nil)
			r := &rig{t: t, dir: t.TempDir(), log: &logBuffer{}, build: record.NewBuilder(1 << 20), exitGrace: 100 * time.Millisecond}
			r.open(p)
			r.start(p)
			<-asked
			await(t, "it is known", func() bool { return r.pid() != 0 })
			pid := r.pid()
			done := make(chan error, 1)
			go func() {
				if how == "reload" {
					done <- r.set.Reconfigure(nil)
				} else {
					done <- r.stop()
				}
			}()
			select {
			case err := <-done:
				must(t, err)
				if !alive(pid) || !strings.Contains(r.log.String(), "it is left") {
					t.Error("it could be killed: the test tells nothing")
				}
			case <-time.After(20 * time.Second):
				t.Error("not within 20 s")
			}
			if _, err := os.Stat(r.set.pidFile(&runner{p: p})); err != nil {
				t.Errorf("the next start would not know of it: %v", err)
			}
			release()
			must(t, r.stop())
			await(t, "it has ended", func() bool { return !alive(pid) })
			must(t, r.q.Close())
		})
	}
}

// A plugin that was killed and is still there was in the log alone: `ftfuse status` said that it
// ran, though it takes nothing and no other is started. So did one of an earlier run that is
// waited for.
func TestAPluginThatCannotBeKilledIsTrouble(t *testing.T) {
	dir, asked, release := hangingDir(t)
	p := shell("read -r l; : <"+filepath.Join(dir, "x"), func(p *Plugin) { p.Timeout = 100 * time.Millisecond })
	r := &rig{t: t, dir: t.TempDir(), log: &logBuffer{}, build: record.NewBuilder(1 << 20), exitGrace: 50 * time.Millisecond}
	r.open(p)
	r.start(p)
	r.lines(0, 2)
	<-asked
	pid := r.pid()
	trouble := r.trouble
	await(t, "it is trouble", func() bool { return strings.Contains(trouble(), fmt.Sprintf("(pid %d) was killed", pid)) })
	must(t, r.stop())
	must(t, r.q.Close())
	r.exitGrace = 30 * time.Second
	r.open(p)
	r.start(p)
	await(t, "that it is waited for is trouble", func() bool { return strings.Contains(trouble(), fmt.Sprintf("pid %d of an earlier run", pid)) })
	release()
	await(t, "another one runs", func() bool { return r.pid() != 0 && r.pid() != pid })
	if got := trouble(); got != "" {
		t.Errorf("trouble remains: %s", got)
	}
	must(t, r.stop())
	must(t, r.q.Close())
}

// A process that a reload gave up, and one of an earlier run that another was started beside, were
// in the log alone; and it was not said either when they had ended.
func TestAProcessThatIsGivenUpIsTroubleUntilItHasEnded(t *testing.T) {
	for _, how := range []string{"reload", "earlier run"} {
		t.Run(how, func(t *testing.T) {
			dir, asked, release := hangingDir(t)
			p := shell(": <"+filepath.Join(dir, "x"), nil)
			r := &rig{t: t, dir: t.TempDir(), log: &logBuffer{}, build: record.NewBuilder(1 << 20), exitGrace: 50 * time.Millisecond}
			r.open(p)
			r.start(p)
			<-asked
			await(t, "it is known", func() bool { return r.pid() != 0 })
			pid := r.pid()
			if how == "reload" {
				must(t, r.set.Reconfigure(nil))
			} else {
				must(t, r.stop())
				must(t, r.q.Close())
				r.open(p)
				r.start(p)
			}
			want := fmt.Sprintf("(pid %d) was killed and is still there: it waits for a disk or a server; it is waited for no longer", pid)
			await(t, "it is trouble", func() bool { return strings.Contains(r.trouble(), want) })
			release()
			await(t, "it is no trouble any more", func() bool { return !strings.Contains(r.trouble(), want) })
			must(t, r.stop())
			must(t, r.q.Close())
		})
	}
}

// A role that hands over before the plugin of an earlier run had ended killed it, though that was
// handling what it had.
func TestAHandoverLeavesThePluginOfAnEarlierRun(t *testing.T) {
	gate := filepath.Join(t.TempDir(), "gate")
	p := shell("cat >/dev/null; while [ ! -e "+gate+" ]; do sleep 0.01; done", nil)
	r := newRig(t, p)
	await(t, "it runs", func() bool { return r.pid() != 0 })
	pid, first := r.pid(), r.set.runners[0]
	r.set.Abandon()
	must(t, r.stop())
	go func() {
		for e := range first.child.events {
			if e.exit != nil {
				return
			}
		}
	}()
	first.child.endInput()
	r.start(p)
	await(t, "it is waited for", func() bool { return strings.Contains(r.log.String(), "earlier run to end") })
	r.set.Abandon()
	must(t, r.stop())
	if !alive(pid) {
		t.Error("it was killed")
	}
	if _, err := os.Stat(r.set.pidFile(first)); err != nil {
		t.Errorf("the next start would not know of it: %v", err)
	}
	must(t, os.WriteFile(gate, nil, 0o600))
	await(t, "it has ended", func() bool { return !alive(pid) })
}
