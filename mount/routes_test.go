package mount

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"ftfuse/config"
	"ftfuse/internal/batch"
	"ftfuse/internal/forward"
	"ftfuse/internal/record"
	"ftfuse/internal/service"
	"ftfuse/queue"
)

// routed is a configuration with these groups, and rules that name some of them.
func routed(groups []string, rules ...[]string) *config.Mount {
	m := &config.Mount{}
	for _, g := range groups {
		m.Forwards = append(m.Forwards, config.Forward{Name: g, Mode: config.ForwardAny, Primary: []string{"127.0.0.1:1"}})
	}
	for i, names := range rules {
		m.Rules = append(m.Rules, config.Rule{Path: fmt.Sprint("r", i), Transfer: true, Forward: names})
	}
	return m
}

// routeRun is what a start makes of a queue and a configuration.
func routeRun(t *testing.T, dir string, m *config.Mount) *role {
	t.Helper()
	r := &role{cfg: &config.Config{StateDir: dir, Mount: m}, m: m, log: nil, wiring: make(chan struct{})}
	close(r.wiring)
	if err := r.openQueue(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.queue.Close() })
	if err := r.queue.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	return r
}

func wantRoutes(t *testing.T, r *role, want ...uint32) {
	t.Helper()
	if !slices.Equal(r.byRule, want) {
		t.Errorf("the rules have the routes %d, want %d", r.byRule, want)
	}
}

// TestRoutesKeepTheirNumbers, however the rules change, and a number is never given again.
func TestRoutesKeepTheirNumbers(t *testing.T) {
	dir, all := t.TempDir(), []string{"a", "b", "c"}
	r := routeRun(t, dir, routed(all, []string{"a"}, nil, []string{"c", "b"}, []string{"a"}, []string{"b", "c"}))
	wantRoutes(t, r, 1, 0, 2, 1, 2)
	r.queue.Close()
	r = routeRun(t, dir, routed(all, []string{"b"}, []string{"b", "c"}))
	wantRoutes(t, r, 3, 2)
	for route, want := range map[uint32][]string{0: all, 1: {"a"}, 2: {"b", "c"}, 3: {"b"}, 4: all} {
		if got := r.routes.of(route); !slices.Equal(got, want) {
			t.Errorf("route %d goes to %q, want %q", route, got, want)
		}
	}
	r.queue.Close()
	r = routeRun(t, dir, routed([]string{"d"}, []string{"d"}))
	wantRoutes(t, r, 4)
	if got := r.routes.of(1); !slices.Equal(got, []string{"a"}) {
		t.Errorf("route 1 goes to %q, and meant a", got)
	}
}

// TestARuleThatTransfersNothingHasNoRoute.
func TestARuleThatTransfersNothingHasNoRoute(t *testing.T) {
	m := routed([]string{"a", "b"}, []string{"a"}, []string{"b"})
	m.Rules[0].Transfer = false
	wantRoutes(t, routeRun(t, t.TempDir(), m), 0, 1)
}

// TestLocalConsumersAreMembers: of the route of their rule, beside its groups, and each cursor
// is for the lanes of the routes that it is a member of. What identifies a consumer names it,
// however rules are ordered.
func TestLocalConsumersAreMembers(t *testing.T) {
	dir, m := t.TempDir(), routed([]string{"a", "b"}, nil, []string{"a"}, nil, nil, nil)
	m.Rules[0].Output = "/copies/%F"
	m.Rules[1].Output = "all" // the name of a [[mount.output]]
	m.Rules[2].Output, m.Rules[2].Transfer = "all", false
	m.Rules[3].Plugin = []string{"/bin/cat"}
	m.Rules[4].Transfer = false
	r := routeRun(t, dir, m)
	wantRoutes(t, r, 1, 2, 3, 4, 0)
	plug := pluginMember(&m.Rules[3])
	for route, want := range map[uint32][]string{
		0: {"a", "b"}, 1: {outputMember("/copies/%F"), "a", "b"}, 2: {"a", "output/all"}, 3: {"output/all"}, 4: {plug, "a", "b"},
	} {
		if got := r.routes.of(route); !slices.Equal(got, want) {
			t.Errorf("route %d has %q, want %q", route, got, want)
		}
	}
	for route := range uint32(5) {
		putRoute(t, r, route, 1)
	}
	wantWaiting(t, r, map[string][]uint32{"forward/a": {0, 1, 2, 4}, "forward/b": {0, 1, 4}, outputCursor: {1, 2, 3}, plug: {4}})
	own := batch.Lane{Origin: batch.Origin(r.queue.Node()), Route: 3}
	if r.leaves(own) {
		t.Error("what is for an output alone is told to other nodes")
	}
	imported := own // the number is another host's, and means something else there
	imported.Origin[0]++
	if r.wants(outputCursor, imported) || !r.leaves(imported) || !r.wants(outputCursor, own) {
		t.Error("the backlog of another host is taken for this one's")
	}
	for i, want := range []bool{true, true, true, true, false} {
		if got := captureRules(m.Rules)[i].Transfer; got != want {
			t.Errorf("rule %d: captured %v, want %v", i, got, want)
		}
	}
	r.queue.Close()
	slices.Reverse(m.Rules)
	m.Forwards = append(m.Forwards, config.Forward{Name: "c", Mode: config.ForwardAny, Primary: []string{"127.0.0.1:1"}})
	r = routeRun(t, dir, m)
	wantRoutes(t, r, 0, 4, 3, 2, 1)
	if got, want := r.routes.of(1), []string{outputMember("/copies/%F"), "a", "b", "c"}; !slices.Equal(got, want) {
		t.Errorf("a route for all groups has %q, want %q", got, want)
	}
}

// putRoute gives the queue one batch of a route.
func putRoute(t *testing.T, r *role, route uint32, n uint64) batch.Lane {
	t.Helper()
	b := record.NewBuilder(1000)
	b.Add(&record.Attr{Host: "h", Path: "p"}, []byte("line\n"))
	lane := batch.Lane{Origin: batch.Origin(r.queue.Node()), Route: route}
	txn := &queue.Txn{Entries: []queue.Entry{{Batch: b.Seal(batch.ID{Lane: lane, N: n}, 1)}}}
	if _, err := r.queue.Submit(t.Context(), txn); err != nil {
		t.Fatal(err)
	}
	if err := r.queue.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	return lane
}

// wantWaiting checks of which routes each cursor has a batch before it.
func wantWaiting(t *testing.T, r *role, want map[string][]uint32) {
	t.Helper()
	for cursor, routes := range want {
		var got []uint32
		err := r.queue.List(t.Context(), cursor, func(l queue.Listed) error {
			got = append(got, l.ID.Lane.Route)
			return nil
		})
		if err != nil || !slices.Equal(got, routes) {
			t.Errorf("%s waits for routes %d, %v, want %d", cursor, got, err, routes)
		}
	}
}

// TestNumbersAfterARepair: what was given out right before the damage is not known any more.
func TestNumbersAfterARepair(t *testing.T) {
	dir := t.TempDir()
	r := routeRun(t, dir, routed([]string{"a", "b"}, []string{"a"}))
	if _, err := r.queue.Submit(t.Context(), &queue.Txn{Set: []queue.KV{{Key: queue.RepairedKey, Value: []byte("a test")}}}); err != nil {
		t.Fatal(err)
	}
	r.queue.Close()
	wantRoutes(t, routeRun(t, dir, routed([]string{"a", "b"}, []string{"b"}, []string{"a"})), 2+repairGap, 1)
}

// TestNumbersAfterARepairStayPassedOver: batches of a number whose meaning a repair lost may
// still be queued when a later configuration needs a new one. Were it that one they would
// miss groups that they were for, and nobody would count them.
func TestNumbersAfterARepairStayPassedOver(t *testing.T) {
	dir := t.TempDir()
	r := routeRun(t, dir, routed([]string{"a", "b"}, []string{"a"}))
	if _, err := r.queue.Submit(t.Context(), &queue.Txn{Set: []queue.KV{{Key: queue.RepairedKey, Value: []byte("a test")}}}); err != nil {
		t.Fatal(err)
	}
	r.queue.Close()
	r = routeRun(t, dir, routed([]string{"a", "b"}, []string{"a"})) // needs no new number
	if _, err := r.queue.Submit(t.Context(), &queue.Txn{Set: []queue.KV{{Key: queue.RepairedKey}}}); err != nil {
		t.Fatal(err)
	}
	r.queue.Close()
	wantRoutes(t, routeRun(t, dir, routed([]string{"a", "b"}, []string{"b"}, []string{"a"})), 2+repairGap, 1)
}

func TestARouteThatCannotBeReadStopsTheStart(t *testing.T) {
	for key, value := range map[string]string{
		"route/0000000g": `["a"]`, "route/00000000": `["a"]`, "route/100000000": `["a"]`, "route/": `["a"]`,
		"routes-from": "x", "route/00000001": `[]`, "route/00000002": `a`, "route/00000003": `{}`,
	} {
		dir := t.TempDir()
		r := routeRun(t, dir, routed([]string{"a"}))
		if _, err := r.queue.Submit(t.Context(), &queue.Txn{Set: []queue.KV{{Key: key, Value: []byte(value)}}}); err != nil {
			t.Fatal(err)
		}
		r.queue.Close()
		m := routed([]string{"a"})
		again := &role{cfg: &config.Config{StateDir: dir, Mount: m}, m: m, wiring: make(chan struct{})}
		if err := again.openQueue(); !errors.Is(err, ErrRoute) {
			t.Errorf("%s %s: %v", key, value, err)
		}
		again.queue.Close()
	}
}

// TestWhatNoGroupIsLeftForIsCounted: batches of a route whose groups are not configured any
// more are lost, by number and reason, whether they were queued before or come from a rule
// of the old kind afterwards; those of others are not.
func TestWhatNoGroupIsLeftForIsCounted(t *testing.T) {
	dir := t.TempDir()
	r := routeRun(t, dir, routed([]string{"a", "b"}, []string{"a"}, []string{"b"}))
	for route := range uint32(3) {
		putRoute(t, r, route, 1)
	}
	r.queue.Close()
	r = routeRun(t, dir, routed([]string{"b", "c"}))
	lane := putRoute(t, r, 1, 2)
	eventually(t, "two are lost", func() bool { return r.queue.Stats().Losses[queue.LostNoCursor].Batches == 2 })
	if lost := r.queue.LostRanges(lane); len(lost) != 1 || lost[0].Reason != queue.LostNoCursor || lost[0].Batches != 2 {
		t.Errorf("lost of the route that only a had: %+v", lost)
	}
	wantWaiting(t, r, map[string][]uint32{"forward/b": {0, 2}, "forward/c": {0}})
}

// TestRulesChooseTheirGroups: by a running mount, what is below a rule's glob is there for
// its groups and no others, in as many lanes as there are buckets.
func TestRulesChooseTheirGroups(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: it mounts by itself")
	}
	r := newRigStopped(t, `buckets = 4
[mount.queue]
compression = "zstd"
[[mount.rule]]
path = "web/**"
forward = ["one"]
[[mount.rule]]
path = "both/**"
forward = ["two", "one"]`)
	r.groups = `[[mount.forward]]
name = "one"
primary = ["127.0.0.1:1"]
[[mount.forward]]
name = "two"
mode = "broadcast"
primary = ["127.0.0.1:2", "127.0.0.1:3"]
[[mount.forward]]
name = "three"
primary = ["127.0.0.1:1"]`
	r.start()
	for _, dir := range []string{"web", "both", "db"} {
		if err := os.Mkdir(r.path(dir), 0o755); err != nil {
			t.Fatal(err)
		}
		for i := range 20 {
			f := appender(t, r.path(fmt.Sprintf("%s/%d.log", dir, i)))
			put(t, f, dir+"\n")
			if err := f.Close(); err != nil {
				t.Fatal(err)
			}
		}
	}
	r.stop()
	v, err := queue.OpenView(filepath.Join(r.dir, "state", "mount", "queue"))
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	want := map[string]map[string]int{
		"forward/one": {"web": 20, "both": 20, "db": 20}, "forward/three": {"db": 20},
		"forward/two/127.0.0.1:2": {"both": 20, "db": 20}, "forward/two/127.0.0.1:3": {"both": 20, "db": 20},
	}
	lanes := map[batch.Lane]bool{}
	for cursor, lines := range want {
		got := map[string]int{}
		err := v.Cat(t.Context(), cursor, func(l queue.Listed, s batch.Sealed) error {
			lanes[s.ID.Lane] = true
			rd, err := record.Open(s)
			for err == nil {
				var x record.Record
				if x, err = rd.Next(); err == nil {
					got[filepath.Dir(x.Path)] += len(x.Data) / (len(filepath.Dir(x.Path)) + 1)
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		for dir, n := range lines {
			if got[dir] != n {
				t.Errorf("%s has %d lines of %s, want %d", cursor, got[dir], dir, n)
			}
		}
		if len(got) != len(lines) {
			t.Errorf("%s has %v, want %v", cursor, got, lines)
		}
	}
	if len(lanes) != 12 {
		t.Errorf("%d lanes of 3 routes and 4 buckets with 20 paths each", len(lanes))
	}
}

// TestCursorsAreThoseOfTheForwarder.
func TestCursorsAreThoseOfTheForwarder(t *testing.T) {
	m := routed([]string{"default"})
	if got := forward.Cursors(service.Groups(m.Forwards)); !slices.Equal(got, []string{testCursor}) {
		t.Errorf("cursors %q, want %q", got, testCursor)
	}
}
