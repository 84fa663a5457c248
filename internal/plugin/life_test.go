package plugin

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ftfuse/internal/record"
	"ftfuse/internal/status"
	"ftfuse/queue"
)

// alive reports whether a process is there and no zombie.
func alive(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err == nil && !strings.Contains(string(stat[strings.LastIndexByte(string(stat), ')'):]), " Z ")
}

func (r *rig) pid() int { return r.set.Stats()[0].PID }

func TestAStopWaitsUntilAPluginHasEndedByItself(t *testing.T) {
	out := t.TempDir()
	p := shell(`cat >/dev/null; sleep 0.3; echo the end`, to(out, "a"))
	r := newRig(t, p)
	r.lines(0, 10)
	r.drain()
	if got := read(t, filepath.Join(out, "a")); !slices.Equal(got, []string{"the end"}) {
		t.Errorf("the stop did not wait: got %q", got)
	}
	if !strings.Contains(r.log.String(), `state="exit status 0"`) {
		t.Error("it was forced")
	}
}

func TestAPluginThatDoesNotEndIsForced(t *testing.T) {
	out := t.TempDir()
	for name, script := range map[string]string{
		"asked":  `trap 'echo asked >>%s; exit 3' TERM; echo up; while :; do sleep 0.05; done`,
		"forced": `trap '' TERM; echo up; while :; do sleep 0.05; done`,
	} {
		t.Run(name, func(t *testing.T) {
			mark := filepath.Join(out, name+".mark")
			script := strings.ReplaceAll(script, "%s", mark)
			p := shell(script, to(out, name))
			r := newRig(t, p)
			await(t, "it runs", func() bool { return len(read(t, filepath.Join(out, name))) == 1 })
			pid := r.pid()
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
			defer cancel()
			if err := r.set.Drain(ctx); !errors.Is(err, context.DeadlineExceeded) {
				t.Fatalf("drain of a plugin that does not end: %v", err)
			}
			must(t, r.stop())
			if alive(pid) {
				t.Error("it is still there")
			}
			if asked := len(read(t, mark)) == 1; asked != (name == "asked") {
				t.Errorf("it was asked with SIGTERM and obeyed: %v", asked)
			}
		})
	}
}

func TestWhatAPluginLeavesInItsGroupEndsWithIt(t *testing.T) {
	out := t.TempDir()
	p := shell(`sleep 1000 & echo $!; read x; exit 1`, to(out, "a"))
	r := newRig(t, p)
	await(t, "it runs", func() bool { return len(read(t, filepath.Join(out, "a"))) == 1 })
	var child int
	_, err := fmt.Sscan(read(t, filepath.Join(out, "a"))[0], &child)
	must(t, err)
	r.lines(0, 1)
	await(t, "its child is gone", func() bool { return !alive(child) })
}

func TestAPluginThatEndsAgainAndAgainIsTrouble(t *testing.T) {
	r := newRig(t, shell("exit 7", nil))
	await(t, "some starts", func() bool { return r.set.Stats()[0].Starts >= 4 })
	await(t, "it is trouble", func() bool {
		var role status.Role
		r.set.Report(&role)
		return len(role.Trouble) == 1 && strings.Contains(role.Trouble[0], "exit status 7")
	})
}

func TestAPluginThatCannotBeStartedIsTriedAgain(t *testing.T) {
	out := t.TempDir()
	p := shell("", to(out, "a"))
	p.Command, p.Args = filepath.Join(out, "late"), ""
	r := newRig(t, p)
	r.lines(0, 3)
	await(t, "it is tried", func() bool { return r.set.Stats()[0].Starts >= 2 })
	must(t, os.WriteFile(p.Command+".new", []byte("#!/bin/sh\nexec cat\n"), 0o755))
	must(t, os.Rename(p.Command+".new", p.Command)) // executable at once
	await(t, "all is taken", func() bool { return r.backlog(p.Cursor) == 0 })
	r.drain()
	wantOnce(t, read(t, filepath.Join(out, "a")), 3)
}

func TestStandardErrorIsLoggedEscapedAndLimited(t *testing.T) {
	r := newRig(t, shell(`printf 'a\033[31mb\001 \302\233 \342\200\256 \377 "q"\\\n' >&2; i=0; while [ $i -lt 300 ]; do echo "noise $i" >&2; i=$((i+1)); done; head -c 5000 /dev/zero | tr '\0' x >&2; exec cat`, nil))
	await(t, "it has said all", func() bool { return r.set.Stats()[0].LogLines >= 301 })
	r.drain()
	text := r.log.String()
	want := `line="a\\x1b[31mb\\x01 \\u009b \\u202e \\xff \"q\"\\"`
	if !strings.Contains(text, want) {
		t.Errorf("no %s in the log", want)
	}
	if n := strings.Count(text, "noise"); n < 40 || n > 100 {
		t.Errorf("%d of 300 lines are in the log", n)
	}
	if !strings.Contains(text, "left_out=") {
		t.Error("the log does not say that lines were left out")
	}
	for i, line := range strings.Split(text, "\n") {
		if len(line) > 2000 {
			t.Errorf("line %d of the log has %d bytes", i, len(line))
		}
	}
}

func TestARenamedOutputFileGivesThePluginANewOne(t *testing.T) {
	out := t.TempDir()
	p := shell("exec cat", to(out, "a"))
	r := newRig(t, p)
	r.lines(0, 10)
	await(t, "the first lines", func() bool { return len(read(t, filepath.Join(out, "a"))) == 10 })
	must(t, os.Rename(filepath.Join(out, "a"), filepath.Join(out, "a.1")))
	r.set.Reopen()
	await(t, "a new file", func() bool { _, err := os.Stat(filepath.Join(out, "a")); return err == nil })
	r.lines(10, 10)
	r.drain()
	if n := len(read(t, filepath.Join(out, "a"))); n == 0 {
		t.Error("nothing went to the new file")
	}
	wantOnce(t, append(read(t, filepath.Join(out, "a.1")), read(t, filepath.Join(out, "a"))...), 20)
	if strings.Contains(r.log.String(), "SIGTERM") {
		t.Error("it was forced to end")
	}
}

func TestReconfigureTouchesOnlyWhatChanged(t *testing.T) {
	out := t.TempDir()
	same, changed := shell("exec cat", to(out, "same")), shell("exec cat", to(out, "old"))
	changed.Cursor = CursorOf("changed")
	r := newRig(t, same, changed)
	r.lines(0, 50)
	await(t, "both have all", func() bool { return r.backlog(same.Cursor) == 0 && r.backlog(changed.Cursor) == 0 })
	pid := r.pid()
	now := changed
	now.File = "new"
	done := make(chan error, 1)
	go func() { done <- r.set.Reconfigure([]Plugin{now, same}) }()
	r.lines(50, 200) // meanwhile
	must(t, <-done)
	r.lines(250, 50)
	await(t, "both have all", func() bool { return r.backlog(same.Cursor) == 0 && r.backlog(changed.Cursor) == 0 })
	if s := r.set.Stats(); s[1].PID != pid || s[1].Starts != 1 {
		t.Errorf("the plugin that did not change was started again: %+v", s[1])
	}
	bad := now
	bad.Format = "%"
	if err := r.set.Reconfigure([]Plugin{bad}); !errors.Is(err, ErrPlugin) {
		t.Errorf("a bad plugin: %v", err)
	}
	r.drain()
	wantOnce(t, read(t, filepath.Join(out, "same")), 300)
	wantOnce(t, append(read(t, filepath.Join(out, "old")), read(t, filepath.Join(out, "new"))...), 300)
	must(t, r.set.Reconfigure(nil))
	if n := len(r.set.Stats()); n != 0 {
		t.Errorf("%d plugins are left", n)
	}
}

// TestThePluginOfAKilledRoleIsWaitedForOrForced: there are never two of one plugin.
func TestThePluginOfAKilledRoleIsWaitedForOrForced(t *testing.T) {
	out := t.TempDir()
	p := shell("exec cat", to(out, "a"))
	for name, script := range map[string]string{"ends": "read x; exit", "stuck": "trap '' TERM; while :; do sleep 0.05; done"} {
		t.Run(name, func(t *testing.T) {
			c, err := startChild(&Plugin{Command: "/bin/sh", Args: Arguments([]string{"-c", script}), Ack: AckPipe}, nil, nil, newLineLog(slog.New(slog.DiscardHandler), "x", &counters{}))
			must(t, err)
			r := &rig{t: t, dir: t.TempDir(), log: &logBuffer{}, build: record.NewBuilder(1 << 20)}
			r.open(p)
			r.start(p)
			must(t, r.stop())
			r.set.notePID(r.set.runners[0], c.cmd.Process.Pid) // as if the role had been killed
			r.start(p)
			await(t, "it is waited for", func() bool { return strings.Contains(r.log.String(), "earlier run to end") })
			if r.pid() != 0 {
				t.Error("another was started beside it")
			}
			if name == "ends" {
				c.endInput()
			}
			for e := range c.events {
				if e.exit != nil {
					break
				}
			}
			await(t, "the next one runs", func() bool { return r.pid() != 0 })
			if forced := strings.Contains(r.log.String(), "it is killed"); forced != (name == "stuck") {
				t.Errorf("it was killed: %v", forced)
			}
			r.drain()
			must(t, r.stop())
			must(t, r.q.Close())
		})
	}
}

func TestAnotherProcessWithThatIDIsLeftAlone(t *testing.T) {
	p := shell("exec cat", nil)
	r := newRig(t, p)
	r.drain()
	must(t, r.stop())
	must(t, os.WriteFile(r.set.pidFile(r.set.runners[0]), fmt.Appendf(nil, "%d 1 %s\n", os.Getpid(), bootName()), 0o600))
	began := time.Now()
	r.start(p)
	await(t, "it runs", func() bool { return r.pid() != 0 })
	if strings.Contains(r.log.String(), "earlier run") || time.Since(began) > 5*time.Second {
		t.Error("a process that only has the number of the plugin is waited for")
	}
}

func TestAPluginThatClosesItsInputIsStartedAgain(t *testing.T) {
	out := t.TempDir()
	mark := filepath.Join(out, "mark")
	p := shell(fmt.Sprintf(`[ -e %[1]s ] && exec cat; touch %[1]s; sleep 0.1; exec <&-; while :; do sleep 0.05; done`, mark), to(out, "a"))
	r := newRig(t, p)
	r.lines(0, 20) // it may be given some of them before it closes its input
	await(t, "all is taken by the next", func() bool { return r.backlog(p.Cursor) == 0 })
	r.drain()
	wantOnce(t, read(t, filepath.Join(out, "a")), 20)
}

func TestAcksThatAcknowledgeNothingAreCountedAndIgnored(t *testing.T) {
	out := t.TempDir()
	p := shell(`while read -r b n l s; do i=0; while [ $i -lt $l ]; do read -r x; echo "$x"; i=$((i+1)); done; echo "ok 999999" >&3; echo nonsense >&3; echo "ok $n" >&3; echo "ok $n" >&3; done`, to(out, "a"))
	p.Ack = AckLine
	r := newRig(t, p)
	r.lines(0, 10)
	await(t, "all is taken", func() bool { return r.backlog(p.Cursor) == 0 })
	r.drain()
	wantOnce(t, read(t, filepath.Join(out, "a")), 10)
	if n := r.set.Stats()[0].BadAcks; n != 30 {
		t.Errorf("%d bad acknowledgements, want 30", n)
	}
}

// An input that is closed for the end of the role still shows what is left in it.
func TestWhatIsLeftInAClosedInputIsKnown(t *testing.T) {
	out := t.TempDir()
	p := shell(`read -r l; echo "$l"; echo up >&2; kill -STOP $$; exit 0`, to(out, "a"))
	r := newRig(t, p)
	r.lines(0, 10)
	await(t, "one line is taken", func() bool { return r.backlog(p.Cursor) == 9 && strings.Contains(r.log.String(), "line=up") })
	pid := r.pid()
	if !writes(pid) {
		t.Fatal("the test does not see the pipe")
	}
	r.set.runners[0].finishNow()
	await(t, "its input has ended", func() bool { return !writes(pid) })
	must(t, syscall.Kill(pid, syscall.SIGCONT))
	must(t, r.stop())
	if n := r.backlog(p.Cursor); n != 9 {
		t.Errorf("%d batches wait, want the 9 that were not read", n)
	}
}

// writes reports whether this process has a write end of pid's standard input.
func writes(pid int) bool {
	want, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/0", pid))
	if err != nil {
		return false
	}
	entries, _ := os.ReadDir("/proc/self/fd")
	for _, e := range entries {
		if got, _ := os.Readlink("/proc/self/fd/" + e.Name()); got != want {
			continue
		}
		var pos, flags uint64
		info, err := os.ReadFile("/proc/self/fdinfo/" + e.Name())
		if n, _ := fmt.Sscanf(string(info), "pos: %d\nflags: %o", &pos, &flags); err == nil && n == 2 && flags&syscall.O_ACCMODE == syscall.O_WRONLY {
			return true
		}
	}
	return false
}

// TestNoLineIsCutOffInThePipe: of what is in the pipe of a plugin that stands still when the role
// is killed, the last line is whole.
func TestNoLineIsCutOffInThePipe(t *testing.T) {
	r := newRig(t, shell("exec sleep 1000", nil))
	for i := range 60 {
		var text strings.Builder
		for k := range 300 {
			fmt.Fprintf(&text, "line %d %s\n", k, strings.Repeat("x", (i*7+k*13)%390))
		}
		r.put(rec{path: "logs/a", data: text.String()})
	}
	await(t, "it runs", func() bool { return r.pid() != 0 })
	f, err := os.OpenFile(fmt.Sprintf("/proc/%d/fd/0", r.pid()), os.O_RDONLY|syscall.O_NONBLOCK, 0)
	must(t, err)
	defer f.Close()
	await(t, "there is much in the pipe", func() bool {
		n, err := unix.IoctlGetInt(int(f.Fd()), unix.TIOCINQ)
		return err == nil && n > 40<<10
	})
	data := make([]byte, 2<<20)
	n, err := syscall.Read(int(f.Fd()), data) // at once: the writer goes on when there is room
	must(t, err)
	if n < 32<<10 || data[n-1] != '\n' {
		t.Errorf("%d bytes that end in %q", n, data[max(0, n-20):n])
	}
}

func TestAReloadThatFailsLeavesThePluginsAsTheyWere(t *testing.T) {
	out := t.TempDir()
	p := shell("exec cat", to(out, "a"))
	r := newRig(t, p)
	await(t, "it runs", func() bool { return r.pid() != 0 })
	pid, now := r.pid(), p
	now.Cursor, now.File = CursorOf("new"), "b"
	if err := r.set.Reconfigure([]Plugin{now}); !errors.Is(err, queue.ErrNoCursor) {
		t.Errorf("a plugin without a cursor: %v", err)
	}
	r.lines(0, 20)
	await(t, "all is taken", func() bool { return r.backlog(p.Cursor) == 0 })
	if r.pid() != pid {
		t.Error("it was started again")
	}
	r.drain()
	wantOnce(t, read(t, filepath.Join(out, "a")), 20)
}

func TestAnAddedPluginGetsItsCursorAndAGoneOneLosesIt(t *testing.T) {
	out := t.TempDir()
	p := shell("exec cat", to(out, "a"))
	r := newRig(t, p)
	r.lines(0, 20)
	await(t, "it has all", func() bool { return r.backlog(p.Cursor) == 0 })
	now := p
	now.Cursor, now.File = CursorOf("new"), "b"
	cursors := func(names ...string) {
		must(t, r.q.SetCursors(queue.CursorSet{Cursors: names, Copies: []string{CursorPrefix}}))
	}
	cursors("other", p.Cursor, now.Cursor)
	must(t, r.set.Reconfigure([]Plugin{now}))
	cursors("other", now.Cursor)
	r.lines(20, 20)
	r.drain()
	// A new cursor begins with what another one still needs, which is everything here.
	wantOnce(t, read(t, filepath.Join(out, "b")), 40)
	wantOnce(t, read(t, filepath.Join(out, "a")), 20)
}

// TestAnAbandonedPluginHandlesWhatItHas: no line is lost to it, and the next start waits.
func TestAnAbandonedPluginHandlesWhatItHas(t *testing.T) {
	out := t.TempDir()
	gate := filepath.Join(out, "gate")
	p := shell("while [ ! -e "+gate+" ]; do sleep 0.01; done; exec cat", to(out, "a"))
	r := newRig(t, p)
	r.lines(0, 20)
	await(t, "it is given all", func() bool { return r.set.Stats()[0].GivenRecords == 20 })
	pid, began := r.pid(), time.Now()
	r.set.Abandon()
	must(t, r.stop())
	if !alive(pid) || time.Since(began) > time.Second {
		t.Error("it was ended, or waited for")
	}
	c := r.set.runners[0].child
	go func() { // the end of the process
		for e := range c.events {
			if e.exit != nil {
				return
			}
		}
	}()
	c.endInput()
	r.start(p)
	await(t, "it is waited for", func() bool { return strings.Contains(r.log.String(), "earlier run to end") })
	must(t, os.WriteFile(gate, nil, 0o600))
	await(t, "it has ended", func() bool { return !alive(pid) })
	r.drain()
	if doubles := wantEach(t, read(t, filepath.Join(out, "a")), 20); doubles != 20 {
		t.Errorf("%d lines twice, want each: none was acknowledged", doubles)
	}
}

// TestAReloadThatChangesNothingLeavesThePlugin, though who may read its file is told by other
// pointers to the same modes.
func TestAReloadThatChangesNothingLeavesThePlugin(t *testing.T) {
	out := t.TempDir()
	make1 := func(mode uint32) Plugin {
		p := shell("cat", to(out, "a"))
		p.Files.Perm.Mode = &mode
		return p
	}
	r := newRig(t, make1(0o600))
	await(t, "it runs", func() bool { return r.pid() != 0 })
	pid := r.pid()
	must(t, r.set.Reconfigure([]Plugin{make1(0o600)}))
	if r.pid() != pid {
		t.Error("it was started again")
	}
	must(t, r.set.Reconfigure([]Plugin{make1(0o640)}))
	await(t, "another one runs", func() bool { return r.pid() != 0 && r.pid() != pid })
}
