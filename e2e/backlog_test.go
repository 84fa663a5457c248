package e2e

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

	"ftfuse/bench/rig"
)

// The receiver is away; programs go on writing. When it comes back the backlog arrives,
// and the disk of the source gets its space back.
func TestBacklogDrainsAndGivesSpaceBack(t *testing.T) {
	p := newPair(t)
	startMount(t, p)
	n := int64(150 << 20)
	if soak {
		n = 2 << 30
	}
	a := startAppender(t, p.In("app.log"), n)
	must(t, a.wait(t))
	n = a.accepted.Load()
	full := diskUse(t, p.MountState)
	if full < n {
		t.Errorf("%d bytes wait for the receiver, the state takes only %d", n, full)
	}
	began := time.Now()
	startReceive(t, p)
	eventually(t, 4*patience, func() error {
		if st, err := os.Stat(p.Out("app.log")); err != nil || st.Size() < n {
			return fmt.Errorf("%v of %d bytes arrived (%v)", st, n, err)
		}
		return nil
	})
	t.Logf("a backlog of %d MB (%d MB of disk) arrived in %v", n/1e6, full/1e6, time.Since(began).Round(time.Millisecond))
	if n < 1<<30 {
		blockLines(t, p.Out("app.log"), n)
	}
	var left int64
	eventually(t, patience, func() error {
		if left = diskUse(t, p.MountState); left > 48<<20 {
			return fmt.Errorf("the source still takes %d MB of disk after everything has arrived", left/1e6)
		}
		return nil
	})
	t.Logf("the source then takes %d MB of disk", left/1e6)
	var st syscall.Stat_t
	must(t, syscall.Stat(p.In("app.log"), &st))
	if st.Size != n || st.Blocks*512 > 8<<20 {
		t.Errorf("on the mount the file has %d bytes in %d of blocks, want %d in next to none", st.Size, st.Blocks*512, n)
	}
	stop(t, p)
}

// At max_bytes with on_full = "error" programs get ENOSPC, a short count or nothing; what
// was accepted arrives.
func TestFullQueueWithErrorGivesENOSPC(t *testing.T) {
	p := newPair(t)
	p.Queue = "max_bytes = \"32MiB\"\non_full = \"error\""
	startMount(t, p)
	a := startAppender(t, p.In("app.log"), 1<<30)
	blocked, err := a.stuck(t)
	if blocked || !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("a write to a full queue: blocked %v, error %v, want ENOSPC", blocked, err)
	}
	n := a.accepted.Load()
	t.Logf("%d bytes accepted with max_bytes = 32 MiB", n)
	if n < 16<<20 || n > 200<<20 {
		t.Errorf("%d bytes were accepted, want about 32 MiB", n)
	}
	startReceive(t, p)
	eventually(t, patience, func() error {
		if st, err := os.Stat(p.Out("app.log")); err != nil || st.Size() < n {
			return fmt.Errorf("%v of %d bytes arrived (%v)", st, n, err)
		}
		return nil
	})
	blockLines(t, p.Out("app.log"), n)
	eventually(t, patience, func() error { // there is room again
		f, err := os.OpenFile(p.In("app.log"), os.O_APPEND|os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		defer f.Close()
		_, err = f.WriteString(blockLine(n / 64))
		return err
	})
	eventually(t, patience, func() error {
		if st, err := os.Stat(p.Out("app.log")); err != nil || st.Size() < n+64 {
			return fmt.Errorf("the line behind the full queue has not arrived (%v)", err)
		}
		return nil
	})
	stop(t, p)
	blockLines(t, p.Out("app.log"), n+64)
}

// At max_bytes with on_full = "block" a program that the daemon serves waits, and gives way
// to a signal within a second; once the receiver takes data the others go on. Those that
// the kernel serves are slowed down: TestFullQueueWithBlockLeavesProgramsKillable.
func TestFullQueueWithBlockWaitsAndObeysSignals(t *testing.T) {
	p := newPair(t)
	p.Attribution = "write"
	p.Queue = "max_bytes = \"32MiB\"\non_full = \"block\""
	startMount(t, p)
	a := startAppender(t, p.In("app.log"), 96<<20)
	if blocked, err := a.stuck(t); !blocked {
		t.Fatalf("a write to a full queue returned %v, want it to wait", err)
	}
	victim := exec.Command("dd", "if=/dev/zero", "of="+p.In("victim.log"), "bs=64k", "count=2000", "oflag=append", "conv=notrunc", "status=none")
	must(t, victim.Start())
	t.Cleanup(func() { _ = victim.Process.Kill() })
	eventually(t, patience, func() error { // it waits in a FUSE request
		wchan, err := os.ReadFile(fmt.Sprintf("/proc/%d/syscall", victim.Process.Pid))
		if err != nil || !strings.HasPrefix(string(wchan), "1 ") {
			return fmt.Errorf("dd is in %q (%v), not in write(2)", wchan, err)
		}
		return nil
	})
	began := time.Now()
	must(t, victim.Process.Signal(syscall.SIGTERM))
	ended := make(chan struct{})
	go func() { _ = victim.Wait(); close(ended) }() // terminated: its status says so
	select {
	case <-ended:
	case <-time.After(patience):
		t.Fatalf("a program in a blocked write(2) did not end within %v of SIGTERM", patience)
	}
	took := time.Since(began)
	t.Logf("a blocked program ended %v after SIGTERM", took.Round(time.Millisecond))
	if took > patience/2 {
		t.Errorf("a blocked program could not be ended for %v", took)
	}
	startReceive(t, p)
	must(t, a.wait(t))
	allArrive(t, p, a.accepted.Load())
}

// allArrive waits until the n bytes that were accepted of app.log stand in its output, stops
// both roles and checks every line.
func allArrive(t *testing.T, p *rig.Pair, n int64) {
	t.Helper()
	eventually(t, 2*patience, func() error {
		if st, err := os.Stat(p.Out("app.log")); err != nil || st.Size() < n {
			return fmt.Errorf("%v of %d bytes arrived (%v)", st, n, err)
		}
		return nil
	})
	stop(t, p)
	blockLines(t, p.Out("app.log"), n)
}

// A Go program's os.File is in its poller when the file system can be polled, which FUSE
// can and ext4 cannot: it writes with O_NONBLOCK and waits for the poller to say that
// there is room. It must be told.
func TestGoProgramOutlivesAFullQueue(t *testing.T) {
	p := newPair(t)
	p.Attribution = "write"
	p.Queue = "max_bytes = \"32MiB\"\non_full = \"block\""
	startMount(t, p)
	f, err := os.OpenFile(p.In("app.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	must(t, err)
	a := append1000(f.Write, func() { f.Close() }, 96<<20)
	if blocked, err := a.stuck(t); !blocked {
		t.Fatalf("a write to a full queue returned %v, want it to wait", err)
	}
	startReceive(t, p)
	must(t, a.wait(t))
	allArrive(t, p, a.accepted.Load())
}

// The receiver is restarted while the mount runs and the other way round; a receiver that
// comes up late is found without anyone's help.
func TestReceiverComesLate(t *testing.T) {
	p := newPair(t)
	startMount(t, p)
	sh(t, `echo early >>"$1"`, p.In("app.log"))
	startReceive(t, p)
	arrives(t, p.Out("app.log"), []byte("early\n"))
	must(t, p.ReceiveRole.Stop(patience))
	sh(t, `echo between >>"$1"`, p.In("app.log"))
	startReceive(t, p)
	arrives(t, p.Out("app.log"), []byte("early\nbetween\n"))
	stop(t, p)
	if _, err := os.Stat(filepath.Join(p.OutDir(), p.Host, "app.log")); err != nil {
		t.Error(err)
	}
}
