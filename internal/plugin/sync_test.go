package plugin

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"ftfuse/internal/failpoint"
	"ftfuse/internal/record"
	"ftfuse/internal/roletest"
	"ftfuse/internal/status"
)

// thinDisk mounts an ext4 that thinks it has 64 MiB on a disk of 6: what is written beyond that
// is taken by write(2), and lost at the sync, with ENOSPC. grow gives it room.
func thinDisk(t *testing.T) (dir string, grow func()) {
	t.Helper()
	below := roletest.SmallDisk(t, "size=6m")
	image, dir := filepath.Join(below, "image"), filepath.Join(t.TempDir(), "thin")
	must(t, os.Mkdir(dir, 0o755))
	must(t, os.WriteFile(image, nil, 0o600))
	must(t, os.Truncate(image, 64<<20))
	for _, argv := range [][]string{{"mkfs.ext4", "-q", "-O", "^has_journal", image}, {"mount", "-o", "loop", image, dir}} {
		if out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput(); err != nil {
			t.Skipf("make a thin disk: %v: %s", err, out)
		}
	}
	t.Cleanup(func() { must(t, syscall.Unmount(dir, 0)) })
	return dir, func() { must(t, syscall.Mount("tmpfs", below, "tmpfs", syscall.MS_REMOUNT, "size=80m")) }
}

func (r *rig) trouble() string {
	var role status.Role
	r.set.Report(&role)
	return strings.Join(role.Trouble, "\n")
}

func wide(p *Plugin) { p.Ack, p.Format = AckLine, "%L"+strings.Repeat(".", 64<<10) }

// stripped are the lines of a file without what wide adds, and without cut-off ones.
func stripped(t *testing.T, path string) (lines []string) {
	t.Helper()
	for _, l := range read(t, path) {
		l = l[max(0, strings.LastIndex(l, "line ")):] // behind what a kill cut off
		if name, whole := strings.CutSuffix(l, strings.Repeat(".", 64<<10)); whole {
			lines = append(lines, name)
		}
	}
	return lines
}

const batchSh = `while read -r w n lines s; do i=0; while [ $i -lt $lines ]; do IFS= read -r l || exit 0; printf '%s\n' "$l"; i=$((i+1)); done; echo "ok $n" >&3; done`

// A sync that failed left the plugin alive, its cursor still, and nobody was told: what it had
// printed came again only when the role was started again.
func TestWhatAFullDiskDidNotSyncIsGivenAgain(t *testing.T) {
	t.Run("told the role", func(t *testing.T) { notSynced(t, lineCat, 150) })
	t.Run("told the plugin first", func(t *testing.T) { // which knows better
		notSynced(t, strings.ReplaceAll(lineCat, "pass # SYNC", "try: os.fsync(1)\n    except OSError: pass"), 1)
	})
}

// notSynced has the plugin print 9.6 MiB, in so many batches.
func notSynced(t *testing.T, script string, batches int) {
	disk, grow := thinDisk(t)
	p := shell("", func(p *Plugin) { wide(p); to(disk, "a")(p) })
	p.Command, p.Args = "/usr/bin/python3", Arguments([]string{"-c", script})
	other := shell("cat >/dev/null", nil)
	other.Cursor = CursorOf("other plugin")
	r := newRig(t, p, other)
	for i := range batches {
		var b strings.Builder
		for k := range 150 / batches {
			fmt.Fprintf(&b, "line %d\n", i+k)
		}
		r.put(rec{path: "logs/a", data: b.String()})
	}
	await(t, "it is trouble", func() bool { return strings.Contains(r.trouble(), "no space left on device") })
	await(t, "the other plugin has all", func() bool { return r.backlog(other.Cursor) == 0 })
	if r.backlog(p.Cursor) == 0 {
		t.Fatal("what was not synced was acknowledged")
	}
	grow()
	await(t, "all is taken", func() bool { return r.backlog(p.Cursor) == 0 })
	if r.trouble() != "" {
		t.Errorf("still trouble: %s", r.trouble())
	}
	r.drain()
	wantEach(t, stripped(t, filepath.Join(disk, "a")), 150)
	if n := r.set.Stats()[0].SyncErrors; n == 0 {
		t.Error("it was not counted")
	}
}

// lineCat prints what it gets and acknowledges it.
const lineCat = `
import sys, os
i = sys.stdin.buffer
while h := i.readline():
    _, n, _, size = h.split()
    b = i.read(int(size))
    if len(b) != int(size): break
    while b: b = b[os.write(1, b):]
    pass # SYNC
    os.write(3, b"ok %d\n" % int(n))
`

// Any other error of a sync: what the disk has is not known, the role is to stop.
func TestAFailedSyncOfWhatAPluginPrintedStopsTheRole(t *testing.T) {
	out := t.TempDir()
	p := shell(batchSh, to(out, "a"))
	p.Ack = AckLine
	r := &rig{t: t, dir: t.TempDir(), log: &logBuffer{}, build: record.NewBuilder(1 << 20)}
	r.open(p)
	r.start(p)
	r.lines(0, 10)
	await(t, "it has all", func() bool { return r.backlog(p.Cursor) == 0 })
	must(t, failpoint.Set("output/sync", "error@1"))
	t.Cleanup(func() { failpoint.Clear("output/sync") })
	r.lines(10, 10)
	await(t, "the plugin has ended", func() bool { return r.pid() == 0 })
	err := r.stop()
	if !errors.Is(err, failpoint.ErrInjected) {
		t.Errorf("the role goes on: %v", err)
	}
	failpoint.Clear("output/sync")
	if r.backlog(p.Cursor) != 10 {
		t.Errorf("%d batches wait, want the 10 that are not on disk", r.backlog(p.Cursor))
	}
	r.start(p)
	await(t, "it has all", func() bool { return r.backlog(p.Cursor) == 0 })
	must(t, r.stop())
	must(t, r.q.Close())
	wantEach(t, read(t, filepath.Join(out, "a")), 20)
}

// The name of its file was taken for durable at the second try, which synced nothing of it.
func TestAFailedSyncOfTheDirectoryOfAPluginStopsTheRole(t *testing.T) {
	p := shell("exec cat", to(t.TempDir(), "sub/a"))
	r := &rig{t: t, dir: t.TempDir(), log: &logBuffer{}, build: record.NewBuilder(1 << 20)}
	must(t, failpoint.Set("output/sync-dirs", "error@1"))
	t.Cleanup(func() { failpoint.Clear("output/sync-dirs") })
	r.open(p)
	r.start(p)
	await(t, "it was tried", func() bool { return r.set.Stats()[0].Starts > 0 })
	await(t, "it is over", func() bool {
		select {
		case <-r.set.runners[0].ended:
			return true
		default:
			return r.pid() != 0
		}
	})
	if err := r.stop(); !errors.Is(err, failpoint.ErrInjected) {
		t.Errorf("the role goes on: %v", err)
	}
	must(t, r.q.Close())
}

// The queue and the disk can fail while a role stops, too: it ended with 0.
func TestASyncThatFailsAtAStopFailsTheRole(t *testing.T) {
	out := t.TempDir()
	p := shell(batchSh, to(out, "a"))
	p.Ack = AckLine
	r := &rig{t: t, dir: t.TempDir(), log: &logBuffer{}, build: record.NewBuilder(1 << 20)}
	r.open(p)
	r.syncEvery = time.Hour
	r.start(p)
	r.lines(0, 10)
	await(t, "it has printed all", func() bool { return len(read(t, filepath.Join(out, "a"))) == 10 })
	must(t, failpoint.Set("output/sync", "error@1"))
	t.Cleanup(func() { failpoint.Clear("output/sync") })
	if err := r.stop(); !errors.Is(err, failpoint.ErrInjected) {
		t.Errorf("the role ends as if nothing was: %v", err)
	}
	if r.backlog(p.Cursor) != 10 {
		t.Errorf("%d batches wait, want the 10 that are not on disk", r.backlog(p.Cursor))
	}
	must(t, r.q.Close())
}

// The script of the documentation said "ok" to what it could not print.
func TestThePluginOfTheDocumentationDoesNotAcknowledgeWhatTheDiskDidNotTake(t *testing.T) {
	disk := roletest.SmallDisk(t, "size=64k")
	script, err := filepath.Abs("../../testdata/plugins/batch.sh")
	must(t, err)
	p := shell("exec "+script, to(disk, "a"))
	p.Ack, p.Format = AckLine, "%L"+strings.Repeat(".", 999)
	r := newRig(t, p)
	r.lines(0, 150)
	await(t, "it is trouble, or takes all", func() bool { return r.trouble() != "" || r.backlog(p.Cursor) == 0 })
	if r.backlog(p.Cursor) == 0 {
		t.Error("it has all, of which not a half is in the file")
	}
	must(t, syscall.Mount("tmpfs", disk, "tmpfs", syscall.MS_REMOUNT, "size=2m"))
	await(t, "all is taken", func() bool { return r.backlog(p.Cursor) == 0 })
	r.drain()
	seen := map[string]bool{}
	for _, l := range read(t, filepath.Join(disk, "a")) {
		seen[strings.TrimRight(l[max(0, strings.LastIndex(l, "line ")):], ".")] = true // behind what was cut off
	}
	for i := range 150 {
		if l := fmt.Sprintf("line %d", i); !seen[l] {
			t.Errorf("%q is missing", l)
		}
	}
}
