// Package sched tells the kernel's scheduler what a role is: woken often, for little.
package sched

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// Slice is the turn that ShortTurns asks for; the kernel's own is 2.8 ms on two CPUs.
const Slice = 500 * time.Microsecond

// ShortTurns asks for shorter and thereby earlier turns on a CPU for all threads of this
// process and those they start, without a larger share of it: a line goes through a dozen
// wake-ups on its way, and where programs write at full speed on every CPU each of them
// would wait for one's whole turn.
//
// Linux 6.12 and later take it for a thread of the normal policy (sched_attr.sched_runtime,
// kernel/sched/syscalls.c), without privilege; older kernels ignore it. Threads of another
// policy, which the operator chose, are left alone. Call it first of all.
func ShortTurns() error {
	for seen := map[int]bool{}; ; {
		threads, err := threads()
		if err != nil {
			return err
		}
		more := false
		for _, tid := range threads {
			if seen[tid] {
				continue
			}
			seen[tid], more = true, true // and look again for those it started meanwhile
			if err := shorten(tid); err != nil && !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("ask for short turns for thread %d: %w", tid, err)
			}
		}
		if !more {
			return nil
		}
	}
}

func shorten(tid int) error {
	attr, err := unix.SchedGetAttr(tid, 0)
	if err != nil || attr.Policy != unix.SCHED_NORMAL {
		return err
	}
	attr.Runtime = uint64(Slice)
	return unix.SchedSetAttr(tid, attr, 0)
}

// threads lists the threads of this process.
func threads() ([]int, error) {
	entries, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return nil, fmt.Errorf("list the threads of this process: %w", err)
	}
	out := make([]int, 0, len(entries))
	for _, e := range entries {
		tid, err := strconv.Atoi(e.Name())
		if err != nil {
			return nil, fmt.Errorf("list the threads of this process: %w", err)
		}
		out = append(out, tid)
	}
	return out, nil
}
