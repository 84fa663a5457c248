package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"ftfuse/bench/rig"
	"ftfuse/bench/tally"
)

// alone is the writers on a mount where the kernel writes by itself, while every role is
// stopped (SIGSTOP): what passthrough reaches beside nobody, which no capture can pass. It
// returns nil where the kernel does not write by itself.
func (b *bench) alone(p tally.Plan, mode string) (_ *Rate, err error) {
	pair, err := b.pair("alone", AttrOpen)
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(pair.Dir)
	defer pair.Close()
	if pair.Captures() != "passthrough" {
		return nil, nil
	}
	// The first write asks the daemon for an attribute, and no later one of the mount does.
	if err := appendLine(pair.In("first.log")); err != nil {
		return nil, fmt.Errorf("write a first line to the mount: %w", err)
	}
	ctx, cancel := context.WithCancel(b.ctx)
	defer cancel()
	var took time.Duration
	var waiting error
	var wg sync.WaitGroup
	_, err = b.write(p, mode, pair.In("bench.log"), func() {
		roles := slices.Concat(pair.MountRole.Family(), pair.ReceiveRole.Family())
		waiting = signalAll(roles, syscall.SIGSTOP)
		wg.Go(func() {
			if waiting == nil {
				took, waiting = waitSpool(ctx, pair.MountState, p.Bytes())
			}
			waiting = errors.Join(waiting, signalAll(roles, syscall.SIGCONT)) // close(2) waits for the mount
		})
	})
	if err != nil {
		cancel()
	}
	wg.Wait()
	if err := errors.Join(err, waiting); err != nil {
		return nil, fmt.Errorf("%w%s", err, logs(pair))
	}
	return rate(p, took, took, 0), nil
}

// waitSpool waits until the newest spool file has size bytes, and returns how long that took.
func waitSpool(ctx context.Context, state string, size int64) (time.Duration, error) {
	files, err := filepath.Glob(filepath.Join(state, "mount", "spool", "0*"))
	if err != nil || len(files) == 0 {
		return 0, fmt.Errorf("look for the spool file below %s: %d there (%w)", state, len(files), err)
	}
	return rig.WaitSize(ctx, slices.Max(files), size, time.Millisecond, 20*time.Second)
}

func signalAll(pids []int, sig syscall.Signal) error {
	var errs []error
	for _, pid := range pids {
		if err := syscall.Kill(pid, sig); err != nil {
			errs = append(errs, fmt.Errorf("send %v to process %d of a role: %w", sig, pid, err))
		}
	}
	return errors.Join(errs...)
}

func appendLine(path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	_, err = f.WriteString("a line\n")
	return errors.Join(err, f.Close())
}
