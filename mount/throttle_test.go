package mount

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"ftfuse/mount/holder"
)

func init() { actors["pour"] = actPour }

// actPour appends lines of SIZE bytes to PATH, for ever. With "unlinked" it removes the
// file first.
func actPour(args []string) error {
	f, err := syscall.Open(args[0], syscall.O_WRONLY|syscall.O_APPEND|syscall.O_CREAT, 0o644)
	if err != nil {
		return err
	}
	if len(args) > 2 {
		if err := syscall.Unlink(args[0]); err != nil {
			return err
		}
	}
	size, _ := strconv.Atoi(args[1])
	line := []byte(strings.Repeat("p", size-1) + "\n")
	fmt.Println("open")
	for {
		if _, err := syscall.Write(f, line); err != nil {
			return err
		}
	}
}

const pourLimit = 32 << 20

func newPourRig(t *testing.T, limit int64, queue string) *rig {
	t.Helper()
	r := newRig(t, fmt.Sprintf("[mount.queue]\nmax_bytes = %d\n%s", limit, queue))
	if !r.logged("capture=passthrough") {
		t.Skip("the kernel does not write by itself here")
	}
	return r
}

// accepted returns how many bytes the spool files ever got.
func (r *rig) accepted() (sum int64) {
	r.t.Helper()
	list, err := os.ReadDir(filepath.Join(r.dir, "state", "mount", "spool"))
	if err != nil {
		r.t.Fatal(err)
	}
	for _, e := range list {
		if st, err := e.Info(); err == nil {
			sum += st.Size()
		}
	}
	return sum
}

// killed kills an actor and returns how long that took.
func killed(o *output) time.Duration {
	o.t.Helper()
	if err := o.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		o.t.Fatal(err)
	}
	return o.ended()
}

// killLimit is how long a held program may take to die: about a second, and what a machine
// with a hundred other things to do needs.
func killLimit() time.Duration {
	if os.Getenv("FTFUSE_SOAK") != "" {
		return 2 * time.Second
	}
	return 15 * time.Second
}

// heldFor is the longest that the daemon kept an answer which a file's writers wait for.
func (r *rig) heldFor() (longest time.Duration) {
	r.t.Helper()
	s, err := r.status()
	must(r.t, err)
	for _, c := range s.Counters {
		if c.Name == "longest_hold_milliseconds" {
			longest = time.Duration(c.Value) * time.Millisecond
		}
	}
	return longest
}

// mostBeyond is how far four programs that write 64 KiB at a time may come beyond max_bytes,
// on a machine that does nothing else.
const mostBeyond = 64 << 20

// throttled waits for a second beyond limit in which programs write less than a third of what
// they did before, and returns that in bytes a second. Whoever comes late to a busy machine,
// the throttle or the test, gets more time, but not without limit.
func (r *rig) throttled(limit int64) (speed float64) {
	r.t.Helper()
	most := limit + 4<<30
	from, at := r.accepted(), time.Now()
	for end := at.Add(2 * time.Minute); ; {
		time.Sleep(time.Second) // what is measured is what happens in it
		now, took := r.accepted(), time.Since(at)
		rate := float64(now-from) / took.Seconds()
		if now >= limit && rate < max(speed, float64(limit))/3 {
			return speed
		}
		if speed = max(speed, rate); now > most || time.Now().After(end) {
			r.t.Fatalf("%.1f MB/s, %.1f at most before, %d bytes beyond max_bytes", rate/1e6, speed/1e6, now-limit)
		}
		from, at = now, time.Now()
	}
}

// TestAFullQueueSlowsKernelWritersDown: nothing is sent. Appending programs are slowed
// down, then nearly stopped; what comes over max_bytes is little and hardly grows; each
// of them can be killed within about a second.
func TestAFullQueueSlowsKernelWritersDown(t *testing.T) {
	for _, c := range []struct {
		name          string
		writers, size int
		one           bool // all on one file
		unlinked      bool
		limit         int64 // of max_bytes; 0: pourLimit
		soak          bool
	}{
		{name: "one", writers: 1, size: 128, soak: true},
		{name: "four", writers: 4, size: 128, soak: true},
		{name: "four on one file", writers: 4, size: 128, one: true},
		{name: "unlinked", writers: 1, size: 4096, unlinked: true},
		{name: "one large", writers: 1, size: 64 << 10, soak: true},
		{name: "four large", writers: 4, size: 64 << 10},
		{name: "a gigabyte", writers: 4, size: 64 << 10, limit: 1 << 30, soak: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			if c.soak && os.Getenv("FTFUSE_SOAK") == "" {
				t.Skip("FTFUSE_SOAK is not set")
			}
			limit := max(c.limit, pourLimit)
			r := newPourRig(t, limit, "")
			var all []*output
			for i := range c.writers {
				name := fmt.Sprintf("f%d", i)
				if c.one {
					name = "f"
				}
				args := []string{r.path(name), strconv.Itoa(c.size)}
				if c.unlinked {
					args = append(args, "unlinked")
				}
				all = append(all, startActor(t, "pour", args...))
			}
			speed := r.throttled(limit)
			beyond, held := r.accepted()-limit, r.heldFor()
			t.Logf("%d writers of %d bytes: %.1f MB/s before; %d bytes beyond max_bytes of %d; held for %v at most", c.writers, c.size, speed/1e6, beyond, limit, held)
			if held == 0 || os.Getenv("FTFUSE_SOAK") != "" && (held >= time.Second || beyond > mostBeyond) {
				t.Errorf("%d bytes beyond max_bytes, want at most %d; programs held for %v at a time, want less than a second, and some", beyond, mostBeyond, held)
			}
			var longest time.Duration
			for _, o := range all {
				longest = max(longest, killed(o))
			}
			t.Logf("longest kill: %v", longest)
			if longest > killLimit() {
				t.Errorf("a program could not be killed for %v", longest)
			}
			r.stop()
		})
	}
}

// TestNobodyIsSlowedDownWhereTheQueueDrops: the policy makes room.
func TestNobodyIsSlowedDownWhereTheQueueDrops(t *testing.T) {
	r := newPourRig(t, pourLimit, "on_full = \"drop_newest\"\n")
	if helpers(t, r.point) != 0 {
		t.Error("there is a helper")
	}
	o := startActor(t, "pour", r.path("f"), "4096")
	eventually(t, "three times max_bytes", func() bool { return r.accepted() > 3*pourLimit })
	if r.logged("slowed down") {
		t.Error("programs are slowed down")
	}
	killed(o)
	r.stop()
}

// TestTheThrottleHelperDiesWithItsDaemon, whatever ends that; and another comes where it
// is killed itself.
func TestTheThrottleHelperDiesWithItsDaemon(t *testing.T) {
	r := newPourRig(t, pourLimit, "")
	eventually(t, "a helper", func() bool { return helpers(t, r.point) == 1 })
	for _, pid := range helperPIDs(t, r.point) {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		eventually(t, "another helper", func() bool {
			now := helperPIDs(t, r.point)
			return len(now) == 1 && now[0] != pid
		})
	}
	r.kill()
	eventually(t, "no helper", func() bool { return helpers(t, r.point) == 0 })
	r.start()
	eventually(t, "a helper", func() bool { return helpers(t, r.point) == 1 })
	r.stop()
	if n := helpers(t, r.point); n != 0 {
		t.Errorf("%d helpers after a stop", n)
	}
}

// TestAWorkerThatIsKilledHoldsNobody: its helper's changes of times are answered by the
// next worker, which goes on slowing down. A handover does the same in order.
func TestAWorkerThatIsKilledHoldsNobody(t *testing.T) {
	needPassthrough(t)
	r := newHeldRig(t, fmt.Sprintf("[mount.queue]\nmax_bytes = %d\n", pourLimit), "")
	o := startActor(t, "pour", r.path("f"), "4096")
	eventually(t, "the limit is reached", func() bool { return r.accepted() >= pourLimit })
	for i := range 4 {
		if i%2 == 0 {
			r.killWorker()
		} else if _, err := holder.RequestHandover(filepath.Join(r.dir, "state", "mount")); err != nil {
			t.Fatal(err)
		}
		r.awaitReadies(i + 2)
		before := r.accepted()
		eventually(t, "the program goes on", func() bool { return r.accepted() > before })
		eventually(t, "one helper", func() bool { return helpers(t, r.point) == 1 })
	}
	r.throttled(pourLimit)
	t.Logf("%d bytes beyond max_bytes after four takeovers", r.accepted()-pourLimit)
	if d := killed(o); d > killLimit() {
		t.Errorf("the program could not be killed for %v", d)
	}
	r.stop()
}

func helpers(t *testing.T, point string) int { return len(helperPIDs(t, point)) }

// helperPIDs returns the throttle's helpers of the mount on point.
func helperPIDs(t *testing.T, point string) (pids []int) {
	t.Helper()
	all, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range all {
		if text, err := os.ReadFile(name); err == nil && string(text) == throttleName+"\x00"+point+"\x00" {
			pid, _ := strconv.Atoi(strings.Split(name, "/")[2])
			pids = append(pids, pid)
		}
	}
	return pids
}

// TestSlice: never longer than a second with what comes on top, and the closer to the
// limit, the less is written.
func TestSlice(t *testing.T) {
	last := 1.0
	for p := 0.01; p < 3; p += 0.01 {
		hold, gap := slice(p)
		if hold+askAhead+askLate > time.Second-50*time.Millisecond || hold <= 0 || gap < 0 {
			t.Fatalf("pressure %.2f: %v, %v", p, hold, gap)
		}
		share := float64(gap) / float64(hold+gap)
		if share > last+0.001 {
			t.Fatalf("pressure %.2f: programs write for %.3f of the time, %.3f before", p, share, last)
		}
		last = share
	}
	if last != 0 {
		t.Errorf("at the limit programs write for %.3f of the time", last)
	}
}

// eventually waits until cond holds.
func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	limit := time.After(30 * time.Second)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !cond() {
		select {
		case <-tick.C:
		case <-limit:
			t.Fatal("waited in vain: ", what)
		}
	}
}
