package capture

import (
	"errors"
	"fmt"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"testing"

	"ftfuse/internal/filter"
	"ftfuse/internal/record"
	"ftfuse/mount/spool"
)

func denyAll(pattern string) *filter.Filter {
	return filter.New(filter.Spec{Deny: []filter.Entry{{Pattern: regexp.MustCompile(pattern)}}, Default: true})
}

// TestRulesChangeForOpenFiles: filter, mode, route and transfer of a file that stays open.
func TestRulesChangeForOpenFiles(t *testing.T) {
	r := newRig(t, Options{})
	r.start()
	h := r.writer("f")
	set := func(rules ...Rule) {
		t.Helper()
		r.drain()
		r.must(r.c.SetRules(r.ctx(), rules))
	}
	r.write(h, "a1\nx1\nhalf ")
	set(Rule{Path: "f", Transfer: true, Filter: denyAll("x")})
	r.write(h, "a2\nx2\nhalf x")
	set(Rule{Path: "f", Transfer: true, Route: 7})
	r.write(h, "3\nx3\nhalf ")
	set(Rule{Path: "f"})
	r.write(h, "not 4\n5 ")
	set(Rule{Path: "f", Transfer: true, Mode: ModeBinary, MaxRecord: 3})
	r.write(h, "bin")
	set(Rule{Path: "f", Transfer: true})
	r.write(h, "6\n")
	r.drain()
	r.want("f", "a1\nx1\nhalf a2\nhalf x3\nx3\nhalf bin6\n")
	var routes []uint32
	for _, s := range r.sealed() {
		routes = append(routes, s.ID.Lane.Route)
	}
	if got := fmt.Sprint(routes); !strings.HasPrefix(got, "[0 0 7 ") {
		t.Errorf("routes of the batches are %s", got)
	}
}

// TestCountersStayWithTheRulesOfTheSamePath.
func TestCountersStayWithTheRulesOfTheSamePath(t *testing.T) {
	r := newRig(t, Options{Rules: []Rule{{Path: "a"}, {Path: "f", Transfer: true, Filter: denyAll("x")}}})
	r.start()
	h := r.writer("f")
	r.write(h, "x\n")
	r.drain()
	r.o.Rules = []Rule{{Path: "f", Transfer: true, Filter: denyAll("y")}, {Path: "f"}, {Path: "b"}}
	r.must(r.c.SetRules(r.ctx(), r.o.Rules))
	r.write(h, "x\ny\n")
	r.drain()
	r.want("f", "x\n")
	r.wantRule(0, RuleStats{DeniedLines: 2, DeniedBytes: 4})
	r.wantRule(1, RuleStats{})
	r.wantRule(2, RuleStats{})
}

// TestRulesChangeWhileTheQueueIsFull: nobody who reloads waits for a destination.
func TestRulesChangeWhileTheQueueIsFull(t *testing.T) {
	r := newRig(t, Options{BatchBytes: 1000})
	r.start()
	h := r.writer("f")
	r.write(h, "a\n")
	r.drain()
	r.q.set(func() { r.q.full = true })
	for range 100 {
		r.write(h, strings.Repeat("b", 99)+"\n")
	}
	for waits := false; !waits; runtime.Gosched() { // for room
		r.c.mu.Lock()
		waits = r.c.hurry != nil
		r.c.mu.Unlock()
	}
	r.must(r.c.SetRules(r.ctx(), []Rule{{Path: "f", Transfer: true, Filter: denyAll("c")}}))
	r.write(h, "c\nd\n")
	r.q.set(func() { r.q.full = false })
	r.drain()
	r.want("f", "a\n"+strings.Repeat(strings.Repeat("b", 99)+"\n", 100)+"d\n")
}

// TestBadRulesChangeNothing.
func TestBadRulesChangeNothing(t *testing.T) {
	r := newRig(t, Options{Rules: []Rule{{Path: "f", Transfer: true, Filter: denyAll("x")}}})
	r.start()
	for _, bad := range []Rule{{Path: "["}, {Path: "f", Mode: 9}, {Path: "f", Mode: ModeBinary, Filter: denyAll("x")}} {
		if err := r.c.SetRules(r.ctx(), []Rule{{Path: "f"}, bad}); err == nil {
			t.Errorf("%+v is taken", bad)
		}
	}
	r.write(r.writer("f"), "x\na\n")
	r.drain()
	r.want("f", "a\n")
}

// TestRulesChangeUnderLoad: writers of many files never lose or double a byte, whatever the
// rules are at the moment. Nobody is more than some lines ahead of the changes.
func TestRulesChangeUnderLoad(t *testing.T) {
	r := newRig(t, Options{BatchBytes: 10_000})
	r.start()
	const lines, perChange = 4000, 100 // at most
	var wg sync.WaitGroup
	var mu sync.Mutex
	sets, changed := 0, sync.NewCond(&mu)
	for i := range 4 {
		h := r.writer(fmt.Sprint("f", i))
		wg.Go(func() {
			write := func(text string) {
				n, err := h.Write([]byte(text), 0, true, &spool.Meta{PID: uint32(i + 1)})
				for errors.Is(err, spool.ErrJournalFull) {
					<-r.s.Changed()
					n, err = h.Write([]byte(text), 0, true, &spool.Meta{PID: uint32(i + 1)})
				}
				if err != nil || n != len(text) {
					t.Errorf("write %d bytes: %d, %v", len(text), n, err)
				}
			}
			for n := range lines {
				mu.Lock()
				for sets < n/perChange {
					changed.Wait()
				}
				mu.Unlock()
				text := fmt.Sprintf("%d of %d\n", n, i)
				if n%2 == 0 { // in two writes
					write(text[:3])
					text = text[3:]
				}
				write(text)
			}
		})
	}
	done := make(chan struct{})
	go func() { wg.Wait(); close(done) }()
	for running := true; running; {
		select {
		case <-done:
			running = false
		default:
		}
		r.must(r.c.SetRules(r.ctx(), [][]Rule{
			nil,
			{{Path: "f*", Transfer: true, Filter: denyAll("^no such line$")}},
			{{Path: "f[01]", Transfer: true, Route: 3}, {Path: "**", Transfer: true, MaxLine: 4}},
			{{Path: "*", Transfer: true, Route: 4, Filter: denyAll("x")}},
		}[sets%4]))
		mu.Lock()
		sets++
		mu.Unlock()
		changed.Broadcast()
	}
	r.drain()
	for i := range 4 {
		name, want := fmt.Sprint("f", i), ""
		for n := range lines {
			want += fmt.Sprintf("%d of %d\n", n, i)
		}
		r.want(name, want)
	}
	for _, x := range r.records() {
		if x.flags&record.Break != 0 {
			t.Fatalf("a break: %v", x)
		}
	}
}
