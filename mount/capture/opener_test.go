package capture

import (
	"fmt"
	"slices"
	"sync"
	"testing"

	"ftfuse/internal/record"
	"ftfuse/mount/procs"
)

// asked notes of whom is asked.
type asked struct {
	mu  sync.Mutex
	all []string
}

func (a *asked) note(who string) *record.Process {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.all) == 0 || a.all[len(a.all)-1] != who {
		a.all = append(a.all, who)
	}
	return &record.Process{Exe: who}
}

func (a *asked) Of(pid uint32, _ procs.Ask, _ bool) *record.Process {
	return a.note(fmt.Sprint("pid ", pid))
}

func (a *asked) OfOpener(o *procs.Opener, _ procs.Ask) *record.Process {
	return a.note(fmt.Sprintf("opener %d at %d", o.PID, o.Time))
}

// TestWhatTheKernelWritesIsOfTheOpenersProcess, also for the next worker: whoever had its pid when
// it was captured was said to have written it.
func TestWhatTheKernelWritesIsOfTheOpenersProcess(t *testing.T) {
	who := &asked{}
	r := newRig(t, Options{Processes: who, Rules: []Rule{{Path: "**", Transfer: true, Ask: procs.Exe}}})
	r.start()
	k := r.kernel("a", 11)
	opened := r.clock
	k.write(r, "one\nha")
	r.drain()
	r.takenOver(k) // restores a time of 4711
	k.write(r, "lf\ntwo\n")
	r.drain()
	r.write(r.writer("b"), "x\n")
	r.drain()
	k.close(r)
	r.drain()
	want := []string{fmt.Sprint("opener 11 at ", opened), "opener 11 at 4711", "pid 4711"}
	if !slices.Equal(who.all, want) {
		t.Errorf("asked of %q, want %q", who.all, want)
	}
}
