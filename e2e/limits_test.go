package e2e

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ftfuse/bench/rig"
	"ftfuse/bench/tally"
)

// killableIn is how long a program may take to be gone after SIGKILL, whatever it waits
// for: a second is promised, the rest is the machine's, of which others may want all.
func killableIn() time.Duration {
	if soak {
		return 2 * time.Second
	}
	return patience / 2
}

const yesLine = "a line of yes, of which each is the same as the one before it\n"

// startYes starts a real program that appends until it is killed.
func startYes(t *testing.T, path string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("sh", "-c", `exec yes "$2" >>"$1"`, "sh", path, strings.TrimSuffix(yesLine, "\n"))
	cmd.Stderr = os.Stderr
	must(t, cmd.Start())
	t.Cleanup(func() {
		if cmd.ProcessState == nil {
			_ = cmd.Process.Kill()
			_ = cmd.Wait() // killed: its status says nothing new
		}
	})
	return cmd
}

// endYes kills the program and returns how long that took.
func endYes(t *testing.T, cmd *exec.Cmd) time.Duration {
	t.Helper()
	began := time.Now()
	must(t, cmd.Process.Kill())
	done := make(chan struct{})
	go func() { _ = cmd.Wait(); close(done) }() // killed: its status says nothing new
	select {
	case <-done:
	case <-time.After(patience):
		stack, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stack", cmd.Process.Pid)) // root may
		t.Fatalf("process %d lives %v after SIGKILL:\n%s", cmd.Process.Pid, patience, stack)
	}
	return time.Since(began)
}

// stands waits until the sum of the files' sizes has stayed much the same for a second, and
// returns it.
func stands(t *testing.T, paths ...string) int64 {
	t.Helper()
	last, since := int64(-1), time.Now()
	eventually(t, 2*patience, func() error {
		sum := int64(0)
		for _, path := range paths {
			st, err := os.Stat(path)
			if err != nil {
				return err
			}
			sum += st.Size()
		}
		if sum-last > 1<<20 || last < 0 {
			last, since = sum, time.Now()
		}
		if time.Since(since) < 1500*time.Millisecond {
			return fmt.Errorf("%d bytes, still growing", sum)
		}
		return nil
	})
	return last
}

// At max_bytes with on_full = "block" programs wait or are slowed down, and every one of
// them can be killed at any moment, several on one file too; how far beyond the limit they
// came is in the output. Once the receiver takes data everything that was accepted goes out.
func TestFullQueueWithBlockLeavesProgramsKillable(t *testing.T) {
	eachCapture(t, func(t *testing.T, c capture, p *rig.Pair) {
		const limit = 32 << 20
		p.MountTop = fmt.Sprintf("[mount.queue]\nmax_bytes = %d\non_full = \"block\"\n", limit)
		c.startMount(t, p)
		names := []string{"shared.log", "shared.log", "alone.log"}
		programs := make([]*exec.Cmd, len(names))
		for i, name := range names {
			programs[i] = startYes(t, p.In(name))
		}
		n := stands(t, p.In("shared.log"), p.In("alone.log"))
		t.Logf("max_bytes = %d: programs wait with %d bytes accepted, %.1f %% of it", limit, n, float64(n)/limit*100)
		var worst time.Duration
		rounds := 4
		if soak {
			rounds = 40
		}
		for range rounds {
			for i, name := range names {
				worst = max(worst, endYes(t, programs[i]))
				programs[i] = startYes(t, p.In(name))
			}
		}
		for _, cmd := range programs {
			worst = max(worst, endYes(t, cmd))
		}
		t.Logf("a program was gone %v after SIGKILL at the latest", worst.Round(time.Millisecond))
		if worst > killableIn() {
			t.Errorf("a program was not gone for %v after SIGKILL, want less than %v", worst, killableIn())
		}
		startReceive(t, p)
		for _, name := range []string{"alone.log", "shared.log"} {
			st, err := os.Stat(p.In(name))
			must(t, err)
			_, err = rig.WaitSize(t.Context(), p.Out(name), st.Size(), patienceLook, patience)
			must(t, err)
		}
		sizes := map[string]int64{}
		for _, name := range []string{"alone.log", "shared.log"} {
			st, err := os.Stat(p.In(name))
			must(t, err)
			sizes[name] = st.Size()
			t.Logf("%s: %d bytes in the end", name, st.Size())
		}
		stop(t, p)
		// A killed yes leaves half a line, which the next one of the same file goes on from.
		for name, size := range sizes {
			if st, err := os.Stat(p.Out(name)); err != nil || st.Size() != size {
				t.Errorf("%s has %v bytes at the aggregator (%v), %d on the mount", name, st.Size(), err, size)
			}
		}
	})
}

// The spool has a small file system of its own, and that is full: the program gets ENOSPC,
// what was accepted goes out once the receiver comes, and then writing works again.
func TestSpoolDiskOfItsOwnFull(t *testing.T) {
	for _, q := range []struct {
		name, onFull, max string
		left              int64
	}{
		// The queue takes next to nothing, so the spool must hold what comes.
		{"block", "block", "1GiB", 1 << 20}, // less than is ever punched out at once
		{"error", "error", "1GiB", 1 << 20},
		{"error and a full queue", "error", "2MiB", 16 << 20},
	} {
		t.Run(q.name, func(t *testing.T) {
			eachCapture(t, func(t *testing.T, c capture, p *rig.Pair) {
				d := newDisk(t, 48)
				spool := filepath.Join(p.MountState, "mount", "spool")
				must(t, os.MkdirAll(spool, 0o755))
				must(t, os.Remove(filepath.Join(d.dir, "lost+found")))
				sh(t, `mount --bind "$1" "$2"`, d.dir, spool)
				t.Cleanup(func() { p.Close(); _ = syscall.Unmount(spool, syscall.MNT_DETACH) })
				p.MountTop = fmt.Sprintf("[mount.queue]\nmax_bytes = %q\non_full = %q\n", q.max, q.onFull)
				c.startMount(t, p)
				ballast := d.fill(t, q.left)
				a := startAppender(t, p.In("app.log"), 256<<20)
				blocked, err := a.stuck(t)
				if c.passthrough && (blocked || !errors.Is(err, syscall.ENOSPC)) {
					t.Errorf("the program on a full spool: blocked %v, error %v, want ENOSPC", blocked, err)
				}
				if err != nil && !errors.Is(err, syscall.ENOSPC) {
					t.Errorf("the program on a full spool got %v, want ENOSPC or to wait", err)
				}
				t.Logf("%d bytes accepted; blocked %v, error %v", a.accepted.Load(), blocked, err)
				must(t, os.Remove(ballast))
				startReceive(t, p)
				if blocked {
					must(t, a.wait(t))
				}
				n := a.accepted.Load()
				_, err = rig.WaitSize(t.Context(), p.Out("app.log"), n, patienceLook, patience)
				must(t, err)
				sh(t, `echo later >>"$1"`, p.In("later.log"))
				arrives(t, p.Out("later.log"), []byte("later\n"))
				stop(t, p)
				blockLines(t, p.Out("app.log"), a.accepted.Load())
			})
		})
	}
}

// durability = "sync" and on_full = "error" are the daemon's: what fsync(2) promises holds
// after each write(2), ENOSPC comes at the limit; the log says who writes and why.
func TestSyncAndErrorAreServedByTheDaemon(t *testing.T) {
	for name, queue := range map[string]string{"sync": `durability = "sync"`, "error": "max_bytes = \"16MiB\"\non_full = \"error\""} {
		t.Run(name, func(t *testing.T) {
			p := newPair(t)
			p.MountTop = "[mount.queue]\n" + queue + "\n"
			startMount(t, p)
			if got, why := p.Captures(), p.MountRole.ReadyAttr("why"); got != "daemon" || why == "" {
				t.Errorf("capture %q, why %q, want daemon and the reason", got, why)
			}
			out, _, code := ftfuse(t, "check", "-c", p.MountConfig())
			if code != 0 || !strings.Contains(out, "capture: daemon") {
				t.Errorf("check says (%d):\n%s", code, out)
			}
			want := ""
			for i := range 20 {
				line := fmt.Sprintf("line %d\n", i)
				sh(t, `printf %s "$2" >>"$1"`, p.In("app.log"), line)
				want += line
			}
			must(t, p.MountRole.Kill())
			startMount(t, p)
			startReceive(t, p)
			arrives(t, p.Out("app.log"), []byte(want))
			stop(t, p)
			same(t, p.Out("app.log"), []byte(want))
		})
	}
}

// The load writers took EINTR for no error, and tests that no program sees one did not see it.
func TestAWriterThatIsInterruptedSaysSo(t *testing.T) {
	needRoot(t)
	p := newPair(t)
	p.Attribution = "write"
	p.MountTop = "[mount.queue]\nmax_bytes = \"16MiB\"\non_full = \"block\"\n"
	startMount(t, p)
	w, err := rig.StartWriter(bin, rig.Job{Path: p.In("app.log"), Size: 64, Chunk: 64 << 10, Lines: tally.MaxLines, IgnoreClose: true})
	must(t, err)
	t.Cleanup(w.Kill)
	must(t, w.Go())
	ended := make(chan error, 1)
	go func() { _, err := w.Wait(); ended <- err }()
	eventually(t, patience, func() error {
		select {
		case err := <-ended:
			ended <- err
			return nil
		default:
		}
		threads, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", w.PID()))
		for _, thread := range threads { // one of them waits in write(2)
			tid, err := strconv.Atoi(filepath.Base(thread))
			must(t, err)
			_ = unix.Tgkill(w.PID(), tid, unix.SIGURG) // which Go's runtime handles, and does nothing
		}
		return errors.New("the writer ignores signals at a full queue")
	})
	if err := <-ended; err == nil {
		t.Error("a write(2) was interrupted, and the writer reports no error")
	}
	stop(t, p)
}

// `ftfuse check` and the ready line agree on who writes.
func TestCheckSaysWhichCaptureIsInForce(t *testing.T) {
	eachCapture(t, func(t *testing.T, c capture, p *rig.Pair) {
		c.startMount(t, p)
		stop(t, p)
		out, _, code := ftfuse(t, "check", "-c", p.MountConfig())
		want := "mount: capture: daemon"
		if c.passthrough {
			want = "mount: capture: passthrough"
		}
		if code != 0 || !strings.Contains(out, want) {
			t.Errorf("check says (%d), want %q:\n%s", code, want, out)
		}
	}, "open", "write")
}
