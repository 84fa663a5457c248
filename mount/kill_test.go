package mount

import (
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"

	"ftfuse/internal/mountinfo"
)

func init() { actors["numbered"] = actNumbered }

// actNumbered appends "NAME 0", "NAME 1" ... to PATH until a write fails, and says how
// many were accepted. It says "going" after the first hundred.
func actNumbered(args []string) error {
	f, err := syscall.Open(args[0], syscall.O_WRONLY|syscall.O_APPEND|syscall.O_CREAT, 0o644)
	if err != nil {
		return err
	}
	for n := 0; ; n++ {
		line := fmt.Appendf(nil, "%s %d %s\n", args[1], n, strings.Repeat("x", n%200))
		k, err := syscall.Write(f, line)
		if err != nil {
			fmt.Printf("accepted %d %v\n", n, err)
			return nil
		}
		if k != len(line) {
			return fmt.Errorf("short write of %d: %d", len(line), k)
		}
		if n == 100 {
			fmt.Println("going")
		}
	}
}

// checkNumbered checks that of each writer all accepted lines are there once, in order,
// and of the one after them at most a prefix at the end.
func checkNumbered(t *testing.T, got map[string]string, path string, accepted map[string]int) {
	t.Helper()
	next := map[string]int{}
	text := got[path]
	for line := range strings.Lines(text) {
		var name, rest string
		var n int
		fmt.Sscanf(line, "%s %d %s", &name, &n, &rest)
		whole := line == fmt.Sprintf("%s %d %s\n", name, n, strings.Repeat("x", n%200))
		limit, known := accepted[name]
		switch {
		case known && whole && n == next[name] && n <= limit: // the one in flight may be there, once
			next[name]++
		case !whole && !strings.HasSuffix(line, "\n") || isPrefixOfNext(line, accepted): // of the one in flight
		default:
			t.Fatalf("%s: line %q of %s, want number %d", path, line, name, next[name])
		}
	}
	for name, limit := range accepted {
		if next[name] < limit {
			t.Fatalf("%s: %d lines of %s, %d were accepted", path, next[name], name, limit)
		}
	}
}

func isPrefixOfNext(line string, accepted map[string]int) bool {
	for name, n := range accepted {
		if strings.HasPrefix(fmt.Sprintf("%s %d %s", name, n, strings.Repeat("x", n%200)), strings.TrimSuffix(line, "\n")) {
			return true
		}
	}
	return false
}

// accepted returns what an actNumbered says at its end.
func (o *output) accepted() int {
	o.t.Helper()
	var n int
	for {
		l := o.next()
		if _, err := fmt.Sscanf(l, "accepted %d", &n); err == nil {
			o.ended()
			return n
		}
	}
}

func TestKilledDaemonLosesAndDoublesNothing(t *testing.T) {
	r := newRig(t, perWrite)
	shared := map[string]int{}
	own := map[string]int{}
	for round := range soak(5, 200) {
		var ws []*output
		names := []string{}
		for w := range 4 {
			path, name := "shared.log", fmt.Sprintf("r%d.w%d", round, w)
			if w == 3 {
				path = "own.log"
			}
			names = append(names, name)
			ws = append(ws, startActor(t, "numbered", r.path(path), name))
		}
		for _, w := range ws {
			if l := w.next(); l != "going" {
				t.Fatal(l)
			}
		}
		r.kill()
		for i, w := range ws {
			if i == 3 {
				own[names[i]] = w.accepted()
			} else {
				shared[names[i]] = w.accepted()
			}
		}
		r.start()
	}
	r.stop()
	got := r.delivered()
	checkNumbered(t, got, "shared.log", shared)
	checkNumbered(t, got, "own.log", own)
}

func TestKillAtEachStepOfAWrite(t *testing.T) {
	for _, fp := range []string{
		"spool/noted=kill@300", "spool/written=kill@300", "capture/seal=kill@3", "capture/committed=kill@3",
	} {
		t.Run(strings.ReplaceAll(fp, "/", "-"), func(t *testing.T) {
			if os.Geteuid() != 0 {
				t.Skip("needs root")
			}
			r := newRigStopped(t, perWrite)
			r.env = []string{"FTFUSE_FAILPOINTS=" + fp}
			r.start()
			w := startActor(t, "numbered", r.path("a.log"), "w")
			n := w.accepted()
			_ = r.wait()
			r.env = nil
			r.start()
			w2 := startActor(t, "numbered", r.path("a.log"), "v")
			if l := w2.next(); l != "going" {
				t.Fatal(l)
			}
			r.stop()
			checkNumbered(t, r.delivered(), "a.log", map[string]int{"w": n, "v": w2.accepted()})
		})
	}
}

func TestAWriteThatFailsIsNeverDelivered(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	r := newRigStopped(t, perWrite)
	r.env = []string{"FTFUSE_FAILPOINTS=spool/noted=error@3"}
	r.start()
	f := appender(t, r.path("a"))
	put(t, f, "one\n")
	put(t, f, "two\n")
	if _, err := f.WriteString("failed\n"); !isErrno(err, syscall.EIO) {
		t.Fatalf("%v, want EIO", err)
	}
	put(t, f, "three\n")
	content(t, r.path("a"), "one\ntwo\nthree\n")
	f.Close()
	r.kill()
	r.env = nil
	r.start()
	r.stop()
	r.wantDelivered("a", "one\ntwo\nthree\n")
}

func TestKillInATruncation(t *testing.T) {
	for _, fp := range []string{"capture/intent=kill", "spool/truncated=kill"} {
		t.Run(strings.ReplaceAll(fp, "/", "-"), func(t *testing.T) {
			if os.Geteuid() != 0 {
				t.Skip("needs root")
			}
			r := newRigStopped(t, "")
			r.env = []string{"FTFUSE_FAILPOINTS=" + fp}
			r.start()
			f := appender(t, r.path("a"))
			put(t, f, "one\ntwo\n")
			if err := os.Truncate(r.path("a"), 0); err == nil {
				t.Fatal("the daemon survived its failpoint")
			}
			f.Close()
			_ = r.wait()
			r.env = nil
			r.start()
			g := appender(t, r.path("a"))
			put(t, g, "three\n")
			g.Close()
			r.stop()
			r.wantDelivered("a", "one\ntwo\nthree\n")
		})
	}
}

func TestStaleMountOfAKilledPredecessorIsCleared(t *testing.T) {
	r := newRig(t, perWrite)
	f := appender(t, r.path("a"))
	put(t, f, "one\n")
	r.kill()
	if _, err := os.Stat(r.point); !isErrno(err, syscall.ENOTCONN) {
		t.Fatalf("%v, want ENOTCONN of a mount without its daemon", err)
	}
	r.start()
	content(t, r.path("a"), "one\n")
	if _, err := f.WriteString("x\n"); err == nil {
		t.Fatal("a descriptor of the old mount still works")
	}
	if all, err := mountinfo.On(r.point); err != nil || len(all) != 1 {
		t.Fatalf("%v %v", all, err)
	}
}

func TestASecondDaemonIsRefusedAndTheFirstLives(t *testing.T) {
	r := newRig(t, "")
	second := &rig{t: t, dir: r.dir, point: r.point}
	second.launch()
	if err := second.wait(); err == nil {
		t.Fatal("a second daemon started on a live mount")
	}
	if err := os.WriteFile(r.path("a"), []byte("x\n"), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestAMountOfSomebodyElseIsLeftAlone(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	r := newRigStopped(t, "")
	if err := syscall.Mount("tmpfs", r.point, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	r.launch()
	if err := r.wait(); err == nil {
		t.Fatal("the daemon mounted over a file system of somebody else")
	}
	if all, _ := mountinfo.On(r.point); len(all) != 1 || all[0].Type != "tmpfs" {
		t.Fatalf("%v", all)
	}
}

func TestBusyMountIsDetachedAtStop(t *testing.T) {
	r := newRig(t, perWrite)
	f := appender(t, r.path("a"))
	put(t, f, "one\n")
	r.stop()
	if _, err := f.WriteString("two\n"); err == nil {
		t.Fatal("a write after the stop was accepted")
	}
	if all, _ := mountinfo.On(r.point); len(all) != 0 {
		t.Fatalf("%v is still mounted", all)
	}
	r.wantDelivered("a", "one\n")
}
