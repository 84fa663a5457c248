package rig

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"strconv"
	"sync"
	"time"
)

// ticks is USER_HZ, the unit of the times in /proc/PID/stat: 100 on every Linux that Go
// runs on (proc(5), sysconf(_SC_CLK_TCK)).
const ticks = 100

// CPU returns the CPU seconds that process pid has used, all of its threads, user and
// system together.
func CPU(pid int) (float64, error) {
	path := fmt.Sprintf("/proc/%d/stat", pid)
	b, err := os.ReadFile(path)
	if err != nil {
		return 0, fmt.Errorf("read the CPU time of process %d: %w", pid, err)
	}
	// The second field is the name in parentheses and may hold anything; utime and stime
	// are the fields 14 and 15 (proc_pid_stat(5)).
	f := bytes.Fields(b[bytes.LastIndexByte(b, ')')+1:])
	if len(f) < 13 {
		return 0, fmt.Errorf("read %s: %d fields behind the name, want 13 or more", path, len(f))
	}
	var sum int64
	for _, field := range f[11:13] {
		n, err := strconv.ParseInt(string(field), 10, 64)
		if err != nil {
			return 0, fmt.Errorf("read %s: %w", path, err)
		}
		sum += n
	}
	return float64(sum) / ticks, nil
}

// Memory is what /proc/PID/status says, in bytes.
type Memory struct {
	Anon int64 `json:"rss_anon"` // RssAnon: memory of its own, now
	RSS  int64 `json:"rss"`      // VmRSS: with mapped files, now
	Peak int64 `json:"rss_peak"` // VmHWM: the highest VmRSS so far
}

// MemoryOf reads the memory of process pid.
func MemoryOf(pid int) (Memory, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return Memory{}, fmt.Errorf("read the memory of process %d: %w", pid, err)
	}
	var m Memory
	for line := range bytes.Lines(b) {
		f := bytes.Fields(line)
		if len(f) < 2 {
			continue
		}
		var to *int64
		switch string(f[0]) {
		case "RssAnon:":
			to = &m.Anon
		case "VmRSS:":
			to = &m.RSS
		case "VmHWM:":
			to = &m.Peak
		default:
			continue
		}
		kib, err := strconv.ParseInt(string(f[1]), 10, 64)
		if err != nil {
			return m, fmt.Errorf("read the memory of process %d: %w", pid, err)
		}
		*to = kib << 10
	}
	return m, nil
}

// Watch samples the memory of processes until it is stopped and keeps the highest RssAnon
// and VmHWM of each.
type Watch struct {
	pids []int
	stop context.CancelFunc
	wg   sync.WaitGroup
	peak []Memory
}

// StartWatch begins to look at pids, 20 times a second.
func StartWatch(pids ...int) *Watch {
	ctx, cancel := context.WithCancel(context.Background())
	w := &Watch{pids: pids, stop: cancel, peak: make([]Memory, len(pids))}
	w.wg.Go(func() {
		tick := time.NewTicker(50 * time.Millisecond)
		defer tick.Stop()
		for {
			w.sample()
			select {
			case <-tick.C:
			case <-ctx.Done():
				return
			}
		}
	})
	return w
}

func (w *Watch) sample() {
	for i, pid := range w.pids {
		m, err := MemoryOf(pid)
		if err != nil {
			continue // it has ended; the highest so far stands
		}
		w.peak[i] = Memory{Anon: max(w.peak[i].Anon, m.Anon), RSS: max(w.peak[i].RSS, m.RSS), Peak: max(w.peak[i].Peak, m.Peak)}
	}
}

// Stop takes a last look and returns the highest figures, in the order of the pids.
func (w *Watch) Stop() []Memory {
	w.stop()
	w.wg.Wait()
	w.sample()
	return w.peak
}
