package receive

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ftfuse/config"
)

// extShutdown is EXT4_IOC_SHUTDOWN, _IOR('X', 125, __u32); noLogFlush drops what the
// journal has not written yet (fs/ext4/ext4.h).
const (
	extShutdown = 0x8004587d
	noLogFlush  = 2
)

// loopDisk is an ext4 of its own, which can lose power.
type loopDisk struct {
	t          *testing.T
	image, dir string
}

func newLoopDisk(t *testing.T, size int64) *loopDisk {
	t.Helper()
	d := &loopDisk{t: t, image: filepath.Join(t.TempDir(), "image"), dir: filepath.Join(t.TempDir(), "disk")}
	must(t, os.Mkdir(d.dir, 0o755))
	must(t, os.WriteFile(d.image, nil, 0o600))
	must(t, os.Truncate(d.image, size))
	if out, err := exec.Command("mkfs.ext4", "-q", "-F", d.image).CombinedOutput(); err != nil {
		t.Skipf("mkfs.ext4: %v %s", err, out)
	}
	if out, err := exec.Command("mount", "-o", "loop", d.image, d.dir).CombinedOutput(); err != nil {
		t.Skipf("mount: %v %s (needs root and loop devices)", err, out)
	}
	t.Cleanup(func() { unix.Unmount(d.dir, unix.MNT_DETACH) })
	return d
}

// losePower stops the file system at once: what was not synced is gone.
func (d *loopDisk) losePower() {
	d.t.Helper()
	f, err := os.Open(d.dir)
	must(d.t, err)
	defer f.Close()
	if err := unix.IoctlSetPointerInt(int(f.Fd()), extShutdown, noLogFlush); err != nil {
		d.t.Skipf("shut the file system down: %v", err)
	}
}

// restore mounts the file system again, as after the power came back.
func (d *loopDisk) restore() {
	d.t.Helper()
	for _, args := range [][]string{{"umount", d.dir}, {"mount", "-o", "loop", d.image, d.dir}} {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			d.t.Fatalf("%s: %v %s", strings.Join(args, " "), err, out)
		}
	}
}

// TestPowerLossOfTheFileSystem takes the power from queue and output files while batches
// come, again and again. What was acked must stand once.
func TestPowerLossOfTheFileSystem(t *testing.T) {
	rounds := 5
	if os.Getenv("FTFUSE_SOAK") != "" {
		rounds = 60
	}
	d := newLoopDisk(t, 512<<20)
	s := newSetup(t, output1(d.dir+"/out", func(o *config.Output) {}))
	s.State, s.CheckpointEvery, s.SegmentBytes = d.dir+"/state", 20*time.Millisecond, 8<<20
	f := newFeeder(1)
	f.connect(t, s.Listen)
	l := newLoad(t, f, "a", "b/c", "d")
	for range rounds {
		p := spawn(t, s, "")
		for until := time.Now().Add(time.Duration(100+l.rnd.IntN(200)) * time.Millisecond); time.Now().Before(until); {
			l.batch()
			n := len(f.queue)
			f.until(t, "some acks", func() bool { return len(f.acked) > n-20 })
		}
		d.losePower()
		for ended := false; !ended; { // a write or a sync fails: the role must stop by itself
			l.batch()
			select {
			case <-p.done:
				ended = true
			case <-time.After(5 * time.Millisecond):
			}
		}
		if p.cmd.ProcessState.Success() {
			t.Errorf("the receiver ended as if nothing had happened:\n%s", p.log)
		}
		d.restore()
	}
	x := start(t, s)
	f.until(t, "final acks", f.allFinal)
	l.check(t, s.out())
	st := x.r.Stats()
	t.Logf("%d batches in %d power losses; last run: %s", len(f.queue), rounds, fmt.Sprintf("%+v", st))
	if st.Generations != 0 {
		t.Errorf("%d generations were counted", st.Generations)
	}
	x.end()
}
