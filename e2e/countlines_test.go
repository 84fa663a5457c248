package e2e

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"ftfuse/bench/rig"
)

// counter is examples/countlines, a receiver of somebody else's, as a process.
type counter struct {
	bin, dir, listen string
	log              io.Writer
}

func (c *counter) start(t *testing.T, env ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(c.bin, "-dir", filepath.Join(c.dir, "state"), "-db", filepath.Join(c.dir, "lines.db"), "-listen", c.listen)
	cmd.Stderr, cmd.Env = c.log, append(os.Environ(), env...)
	must(t, cmd.Start())
	t.Cleanup(func() {
		if cmd.ProcessState == nil {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		}
	})
	return cmd
}

// counts is what it prints of its file.
func (c *counter) counts(t *testing.T) string {
	t.Helper()
	out, err := exec.Command(c.bin, "-db", filepath.Join(c.dir, "lines.db"), "-print").CombinedOutput()
	if err != nil {
		t.Fatalf("print the counts: %v\n%s", err, out)
	}
	return string(out)
}

// The example of a receiver of one's own counts each line of two mounts once, however often
// it is killed.
func TestTheExampleCountsEachLineOnceThoughKilled(t *testing.T) {
	kills := 9
	if soak {
		kills = 300
	}
	a, b := newPair(t), newPair(t)
	a.Host, b.Host, b.Addr = "web-01", "web-02", a.Addr
	c := &counter{bin: filepath.Join(t.TempDir(), "countlines"), dir: t.TempDir(), listen: a.Addr, log: roleLog(t)}
	if out, err := exec.Command("go", "build", "-trimpath", "-o", c.bin, "ftfuse/examples/countlines").CombinedOutput(); err != nil {
		t.Fatalf("build the example: %v\n%s", err, out)
	}
	startMount(t, a)
	startMount(t, b)
	la := startLoad(t, a, "app.log", 2, rig.Job{Lines: 1 << 30, Size: 64, Rate: 20000})
	lb := startLoad(t, b, "app.log", 1, rig.Job{Lines: 1 << 30, Size: 64, Rate: 20000})
	rnd := seeded(t)
	for i := range kills {
		// At a step of its own, which is a moment that chance rarely finds, or at any.
		step := []string{"receive/handled", "receive/stored", ""}[i%3]
		if step == "" {
			cmd := c.start(t)
			<-time.After(time.Duration(50+rnd.IntN(700)) * time.Millisecond)
			must(t, cmd.Process.Kill())
			_ = cmd.Wait()
			continue
		}
		cmd := c.start(t, fmt.Sprintf("FTFUSE_FAILPOINTS=%s=kill@%d", step, 1+rnd.IntN(3)))
		if err := cmd.Wait(); err == nil {
			t.Fatalf("it ended by itself instead of being killed at %s", step)
		}
	}
	_, ra := la.finish(t)
	_, rb := lb.finish(t)
	want := fmt.Sprintf("web-01 %d\nweb-02 %d\n", accepted(ra), accepted(rb))
	cmd := c.start(t)
	must(t, a.MountRole.Stop(rig.StopIn)) // it drains
	must(t, b.MountRole.Stop(rig.StopIn))
	must(t, cmd.Process.Signal(syscall.SIGTERM))
	must(t, cmd.Wait())
	if got := c.counts(t); got != want {
		t.Errorf("after %d kills it has counted\n%swant\n%s", kills, got, want)
	} else {
		t.Logf("%d kills; %s", kills, strings.ReplaceAll(strings.TrimSpace(got), "\n", ", "))
	}
	if dead, err := os.ReadDir(filepath.Join(c.dir, "state", "dead")); err == nil {
		t.Errorf("%d dead letters", len(dead))
	}
}
