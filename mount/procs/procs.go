// Package procs finds out which program and which control group stand behind a pid, once for
// each process, for records whose rule asks.
//
// A process is looked at while it waits for its open(2) to be answered, so that even one that
// lives for a millisecond is known; then, since a shell opens the file before it executes the
// program, while it waits for its close(2), and once when the first of what it wrote is captured;
// and again each second that it writes, which notices a later exec and a pid that another process got (by the start time,
// field 22 of /proc/PID/stat, proc_pid_stat(5)). Where the kernel writes for a process that opened the
// file it is always that one, however long gone. Nothing here makes a write(2) wait.
package procs

import (
	"bytes"
	"fmt"
	"math"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"ftfuse/internal/record"
)

// Ask says what of a process is wanted.
type Ask uint8

// What can be asked for, any of them together.
const (
	Exe Ask = 1 << iota
	Cgroup
)

const (
	// OpenPatience is how long an open waits for a look at its process, FirstPatience how long
	// the capture does, once for each process. A look takes some 20 microseconds.
	OpenPatience  = 100 * time.Millisecond
	FirstPatience = 20 * time.Millisecond
	again         = time.Second // a process that writes is looked at so often
	most          = 4096        // processes that are remembered
)

// Table remembers processes. It is safe for concurrent use.
type Table struct {
	look  func(pid uint32) (found, error)
	now   func() time.Time
	began func(start uint64) int64

	mu    sync.Mutex
	all   map[uint32]*process
	looks sync.WaitGroup
}

// found is what one look saw.
type found struct {
	start       uint64 // ticks after the boot
	exe, cgroup string
}

// process is what is known of a pid. Table.mu guards it.
type process struct {
	start   uint64
	known   bool               // a look has found it
	by      [4]*record.Process // by what is asked for; nil where no look is over
	used    bool               // something it wrote was captured
	looked  time.Time
	looking chan struct{} // closed when the look that is under way is over; nil: none
}

// New returns an empty Table.
func New() *Table { return &Table{look: look, now: time.Now, began: began, all: map[uint32]*process{}} }

// Opening looks at the process that waits for an open(2). It returns when that is done, or
// OpenPatience is over.
func (t *Table) Opening(pid uint32) {
	t.mu.Lock()
	p := t.of(pid)
	p.used = false // it may execute a program before it writes
	done := t.start(pid, p)
	t.mu.Unlock()
	wait(done, OpenPatience)
}

// Closing looks at the process that waits for a close(2), as Opening does.
func (t *Table) Closing(pid uint32) {
	t.mu.Lock()
	done := t.start(pid, t.of(pid))
	t.mu.Unlock()
	wait(done, OpenPatience)
}

// Wrote has a process looked at that is in a write(2), unless it is known, and returns at
// once.
func (t *Table) Wrote(pid uint32) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if p := t.all[pid]; p == nil {
		t.start(pid, t.of(pid))
	}
}

// Of returns what is known of the process, as far as it is asked for, never nil. With fresh
// something that it wrote is being captured now: the first time Of then waits for another look
// (FirstPatience at most). A process that is gone keeps what was found; where nothing was
// ever found both are empty.
func (t *Table) Of(pid uint32, ask Ask, fresh bool) *record.Process {
	if pid == 0 {
		return &nobody
	}
	t.mu.Lock()
	p := t.of(pid)
	var done chan struct{}
	switch {
	case !fresh:
	case !p.used:
		p.used = true
		done = t.start(pid, p)
	case t.now().Sub(p.looked) >= again:
		t.start(pid, p)
	}
	if done != nil {
		t.mu.Unlock()
		wait(done, FirstPatience)
		t.mu.Lock()
	}
	defer t.mu.Unlock()
	if is := p.by[ask]; is != nil {
		return is
	}
	return &nobody
}

// Opener is one process that opened a file at a time, in nanoseconds since 1970: what the kernel
// writes for it may come long after it is gone and another process has its pid. It is not safe for
// concurrent use.
type Opener struct {
	PID  uint32
	Time int64

	met   bool // its start is known
	start uint64
	by    [4]*record.Process // as of the newest look that found it
}

// OfOpener is Of, with fresh, for that process, whoever has its pid now.
func (t *Table) OfOpener(o *Opener, ask Ask) *record.Process {
	t.meet(o)
	t.Of(o.PID, ask, true)
	t.meet(o)
	if is := o.by[ask]; is != nil {
		return is
	}
	return &nobody
}

// meet has o know what is known of its process, unless that began after o opened the file.
func (t *Table) meet(o *Opener) {
	t.mu.Lock()
	defer t.mu.Unlock()
	p := t.all[o.PID]
	if p == nil || !p.known || o.met && p.start != o.start || !o.met && t.began(p.start) > o.Time+beganSlack {
		return
	}
	o.met, o.start, o.by = true, p.start, p.by
}

// beganSlack is how much later than its open(2) a process may seem to have begun: ticks are
// hundredths of a second, and the clock is set now and then.
const beganSlack = int64(time.Second)

// began is when a process began that did so so many ticks (proc_pid_stat(5): of 10 ms wherever Linux
// runs) after the boot, by the clock as it is now: one that was set forward since the open makes
// a process look younger, and its records say nothing of it.
func began(start uint64) int64 {
	var now, up unix.Timespec
	if unix.ClockGettime(unix.CLOCK_REALTIME, &now) != nil || unix.ClockGettime(unix.CLOCK_BOOTTIME, &up) != nil {
		return math.MaxInt64
	}
	return now.Nano() - up.Nano() + int64(start)*int64(10*time.Millisecond)
}

var nobody record.Process

func wait(done <-chan struct{}, patience time.Duration) {
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case <-done:
	case <-timer.C:
	}
}

// of returns the state of pid. It needs t.mu.
func (t *Table) of(pid uint32) *process {
	p := t.all[pid]
	if p == nil {
		if len(t.all) >= most {
			t.forget()
		}
		p = &process{looked: t.now()}
		t.all[pid] = p
	}
	return p
}

// forget makes room: of some processes, those that were not looked at for the longest time go.
func (t *Table) forget() {
	for len(t.all) > most*3/4 {
		var oldest uint32
		var when time.Time
		n := 0
		for pid, p := range t.all { // in random order
			if n == 0 || p.looked.Before(when) {
				oldest, when = pid, p.looked
			}
			if n++; n == 8 {
				break
			}
		}
		delete(t.all, oldest)
	}
}

// start begins a look, unless one is under way, and returns what is closed at its end. It
// needs t.mu.
func (t *Table) start(pid uint32, p *process) chan struct{} {
	if p.looking != nil {
		return p.looking
	}
	done := make(chan struct{})
	p.looking, p.looked = done, t.now()
	t.looks.Go(func() {
		f, err := t.look(pid)
		t.mu.Lock()
		defer t.mu.Unlock()
		p.looking = nil
		close(done)
		if err == nil {
			p.found(f)
		}
	})
	return done
}

// found keeps what a look saw. Pointers change only where something did. A process that is
// ending has no program any more.
func (p *process) found(f found) {
	if p.known && p.start == f.start && f.exe == "" {
		f.exe = p.by[Exe].Exe
	}
	if p.known && p.start == f.start && p.by[Exe|Cgroup].Exe == f.exe && p.by[Exe|Cgroup].Cgroup == f.cgroup {
		return
	}
	p.known, p.start = true, f.start
	p.by = [4]*record.Process{{}, {Exe: f.exe}, {Cgroup: f.cgroup}, {Exe: f.exe, Cgroup: f.cgroup}}
}

// Close waits for the looks that are under way.
func (t *Table) Close() { t.looks.Wait() }

// look reads /proc. The start time is read before and after: what lies between is of that
// process.
func look(pid uint32) (f found, err error) {
	dir := fmt.Sprintf("/proc/%d/", pid)
	if f.start, err = startTime(dir); err != nil {
		return f, err
	}
	exe, err := os.Readlink(dir + "exe")
	if err != nil && !os.IsPermission(err) && !os.IsNotExist(err) { // a kernel thread has none
		return f, err
	}
	groups, err := os.ReadFile(dir + "cgroup")
	if err != nil {
		return f, err
	}
	f.exe, f.cgroup = short(strings.TrimSuffix(exe, " (deleted)")), short(cgroupOf(groups))
	if start, err := startTime(dir); err != nil || start != f.start {
		return f, fmt.Errorf("process %d ended meanwhile: %w", pid, os.ErrProcessDone)
	}
	return f, nil
}

func short(s string) string { return s[:min(len(s), record.MaxProcess)] }

// startTime is the 22nd field of stat; the second, in brackets, may have anything in it.
func startTime(dir string) (uint64, error) {
	b, err := os.ReadFile(dir + "stat")
	if err != nil {
		return 0, err
	}
	fields := bytes.Fields(b[bytes.LastIndexByte(b, ')')+1:])
	if len(fields) < 20 {
		return 0, fmt.Errorf("%sstat has %d fields behind the name", dir, len(fields))
	}
	var n uint64
	_, err = fmt.Sscan(string(fields[19]), &n)
	return n, err
}

// cgroupOf is the path in the unified hierarchy (0::PATH, cgroups(7)), else in systemd's, else
// in the first one.
func cgroupOf(groups []byte) string {
	first, systemd := "", ""
	for line := range strings.Lines(string(groups)) {
		parts := strings.SplitN(strings.TrimSuffix(line, "\n"), ":", 3)
		if len(parts) < 3 {
			continue
		}
		path := strings.TrimSuffix(parts[2], " (deleted)")
		switch {
		case parts[0] == "0" && parts[1] == "" && path != "/":
			return path
		case parts[1] == "name=systemd":
			systemd = path
		case first == "" || first == "/":
			first = path
		}
	}
	if systemd != "" {
		return systemd
	}
	return first
}
