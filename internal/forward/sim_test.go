package forward

import (
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"ftfuse/internal/batch"
)

// schedule is what a seed stands for.
type schedule struct {
	seed      uint64
	mounts    int
	relays    int
	receivers int
	mode      [2]Mode // of the mounts, of the relays
	pair      [2]bool // two destinations are primary and secondary, else both primary
	loop      bool    // a relay's last secondary is the other relay
	keepFinal bool
	relayHop  bool // but not by the relays
	failback  time.Duration
	timeout   time.Duration
	commit    time.Duration
	faults    int
	changes   bool // of the relays' configuration
}

func newSchedule(seed uint64) schedule {
	rng := rand.New(rand.NewPCG(seed, 11))
	modes := []Mode{Any, Any, Hash, Broadcast}
	s := schedule{
		seed: seed, mounts: 1 + rng.IntN(2), relays: rng.IntN(3), receivers: 1 + rng.IntN(2),
		mode: [2]Mode{modes[rng.IntN(4)], modes[rng.IntN(4)]}, pair: [2]bool{rng.IntN(2) == 0, rng.IntN(2) == 0},
		keepFinal: rng.IntN(3) == 0, failback: time.Duration(1+rng.IntN(20)) * time.Second,
		timeout: time.Duration(3+rng.IntN(20)) * time.Second, faults: 1 + rng.IntN(8),
	}
	s.commit = []time.Duration{8 * time.Millisecond, 8 * time.Millisecond, 300 * time.Millisecond}[rng.IntN(3)]
	s.loop = s.relays == 2 && s.mode[1] != Broadcast && rng.IntN(3) == 0
	s.relayHop = s.keepFinal && rng.IntN(2) == 0
	s.changes = s.relays > 0 && rng.IntN(3) == 0
	return s
}

func (s *schedule) String() string {
	return fmt.Sprintf("seed %d: %d mounts (%s, pair %v), %d relays (%s, pair %v, loop %v), %d receivers, keep final %v (relays not: %v), changes %v, failback %v, %d faults",
		s.seed, s.mounts, s.mode[0], s.pair[0], s.relays, s.mode[1], s.pair[1], s.loop, s.receivers, s.keepFinal, s.relayHop, s.changes, s.failback, s.faults)
}

// everyReceiver says that each batch must stand at each receiver.
func (s *schedule) everyReceiver() bool {
	last := min(s.relays, 1)
	return s.receivers == 2 && s.mode[last] == Broadcast && !s.pair[last]
}

// apart says that a batch stands at one receiver, but for those in flight at a failover.
func (s *schedule) apart() bool {
	return !s.everyReceiver() && !(s.relays == 2 && s.mode[0] == Broadcast && !s.pair[0]) && !s.changes
}

func names(kind string, n int) (all []string) {
	for i := range n {
		all = append(all, kind+strconv.Itoa(i+1))
	}
	return all
}

// group is the group of a node at level 0 (mount) or 1 (relay) that sends to to.
func (s *schedule) group(level int, to []string, last string) []GroupConfig {
	g := GroupConfig{Name: "g", Mode: s.mode[level], FailbackAfter: s.failback}
	for i, host := range to {
		if i > 0 && s.pair[level] {
			g.Secondary = append(g.Secondary, host+simPort)
		} else {
			g.Primary = append(g.Primary, host+simPort)
		}
	}
	if last != "" {
		g.Secondary = append(g.Secondary, last+simPort)
	}
	return []GroupConfig{g}
}

func (s *schedule) build(m mutant) *world {
	rng := rand.New(rand.NewPCG(s.seed, 12))
	w := &world{rng: rng, mutant: m, commit: s.commit, output: map[string]map[string][]uint16{}, log: slog.New(slog.DiscardHandler)}
	if os.Getenv("FTFUSE_SIM_LOG") != "" {
		w.log = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	w.net = newSimNet(func() time.Duration { return w.within(50*time.Microsecond, 20*time.Millisecond) })
	relays, receivers := names("relay", s.relays), names("recv", s.receivers)
	add := func(role, name string, groups []GroupConfig) {
		n := &simNode{w: w, name: name, role: role, groups: groups, keepFinal: s.keepFinal && !(s.relayHop && role == "relay"), timeout: s.timeout}
		n.disk = newSimDisk(n.id(0))
		if role == "mount" {
			n.batches.Store(int64(60 + rng.IntN(60)))
		}
		w.nodes = append(w.nodes, n)
	}
	for i, name := range relays {
		last := ""
		if s.loop {
			last = relays[1-i]
		}
		add("relay", name, s.group(1, receivers, last))
	}
	for _, name := range receivers {
		w.output[name] = map[string][]uint16{}
		add("receive", name, nil)
	}
	first := relays
	if s.relays == 0 {
		first = receivers
	}
	for _, name := range names("mount", s.mounts) {
		add("mount", name, s.group(0, first, ""))
	}
	return w
}

// run runs the schedule and returns what the checker found.
func (s *schedule) run(m mutant) error {
	w := s.build(m)
	for _, i := range w.rng.Perm(len(w.nodes)) {
		w.nodes[i].start()
		time.Sleep(w.within(0, 300*time.Millisecond))
	}
	for range s.faults {
		time.Sleep(w.within(0, 5*time.Second))
		s.fault(w)
	}
	time.Sleep(w.within(0, 20*time.Second))
	err := s.finish(w)
	for _, n := range w.nodes {
		n.kill()
	}
	if err == nil {
		err = s.check(w)
	}
	return err
}

// fault breaks something, and often mends it after a while.
func (s *schedule) fault(w *world) {
	n := w.nodes[w.random(len(w.nodes))]
	other := w.nodes[w.random(len(w.nodes))]
	for k := w.random(4); k < 2 && n.role == "mount"; k++ { // mounts die less often
		n = w.nodes[w.random(len(w.nodes))]
	}
	short, long := w.within(10*time.Millisecond, 3*time.Second), w.within(time.Second, 40*time.Second)
	if s.changes && n.role == "relay" && w.random(3) == 0 {
		s.change(w, n)
		return
	}
	switch w.random(9) {
	case 0: // dead until the end
		n.kill()
	case 1:
		n.kill()
		time.Sleep(short)
		n.restart()
	case 2:
		n.kill()
		time.Sleep(long)
		n.restart()
	case 3: // flaps
		for range 2 + w.random(6) {
			n.kill()
			time.Sleep(short / 2)
			n.restart()
			time.Sleep(w.within(10*time.Millisecond, 2*time.Second))
		}
	case 4: // half open
		w.net.cut(n.name, other.name, true)
		time.Sleep(long / 2)
		if w.random(3) > 0 {
			w.net.cut(n.name, other.name, false)
		}
	case 5: // frozen
		w.isolate(n, true)
		time.Sleep(long / 2)
		w.isolate(n, false)
	case 6:
		for range 1 + w.random(4) {
			w.net.reset(n.name)
			time.Sleep(short / 4)
		}
	case 7:
		n.stop()
		time.Sleep(short)
		n.restart()
	case 8: // the disk is gone; a source's cannot be
		n.kill()
		if s.keepFinal && n.role == "relay" && !(s.relayHop && s.loop) {
			n.disk = newSimDisk(n.id(byte(1 + w.random(255))))
		}
		time.Sleep(short)
		n.restart()
	}
}

// change restarts a relay with another configuration: its group has another name, or there
// is one more, to one of the receivers, or less.
func (s *schedule) change(w *world, n *simNode) {
	if w.random(2) == 0 {
		n.stop()
	} else {
		n.kill()
	}
	switch {
	case w.random(2) == 0:
		n.groups = slices.Clone(n.groups)
		n.groups[0].Name += "+"
	case len(n.groups) > 1:
		n.groups = n.groups[:1]
	default:
		last := fmt.Sprintf("recv%d%s", s.receivers, simPort)
		n.groups = []GroupConfig{n.groups[0], {Name: "more", Mode: Any, Primary: []string{last}}}
	}
	n.restart()
}

func (n *simNode) restart() {
	if n.ended == nil {
		n.start()
	}
}

func (w *world) isolate(n *simNode, cut bool) {
	for _, o := range w.nodes {
		w.net.cut(n.name, o.name, cut)
		w.net.cut(o.name, n.name, cut)
	}
}

// finish mends everything and waits until every queue is empty.
func (s *schedule) finish(w *world) error {
	for _, n := range w.nodes {
		n.restart()
		w.isolate(n, false)
	}
	left := func() (out []string) {
		for _, n := range w.nodes {
			if n.role == "mount" && n.batches.Load() > 0 || !n.q.empty() {
				out = append(out, n.name)
			}
		}
		return out
	}
	start := time.Now()
	for len(left()) > 0 {
		if time.Since(start) > 30*time.Minute {
			return fmt.Errorf("queues are not empty after half an hour of peace: %v", left())
		}
		time.Sleep(500 * time.Millisecond)
	}
	return nil
}

// check compares what was accepted with what stands at the receivers.
func (s *schedule) check(w *world) error {
	receivers := names("recv", s.receivers)
	for _, r := range receivers {
		for content, copies := range w.output[r] {
			if len(copies) != 1 {
				return fmt.Errorf("doubled: %q stands %d times at %s", content, len(copies), r)
			}
		}
	}
	if len(w.accepted) == 0 {
		return fmt.Errorf("nothing was accepted")
	}
	for _, content := range w.accepted {
		at, flagged := 0, false
		for _, r := range receivers {
			if copies := w.output[r][content]; len(copies) > 0 {
				at++
				flagged = flagged || copies[0]&batch.FlagResent != 0
			}
		}
		switch {
		case at == 0 || s.everyReceiver() && at < len(receivers):
			return fmt.Errorf("lost: %q stands at %d of %d receivers", content, at, len(receivers))
		case at > 1 && s.apart() && !flagged:
			return fmt.Errorf("doubled between receivers without the flag: %q", content)
		}
	}
	return nil
}

// simulate runs schedules first to first+n-1, on all CPUs, until fn wants no more.
func simulate(t *testing.T, first uint64, n int, m mutant, fn func(s schedule, err error) bool) {
	const workers = 2
	var next atomic.Int64
	var over atomic.Bool
	t.Run("schedules", func(t *testing.T) {
		for range workers {
			t.Run("worker", func(t *testing.T) {
				t.Parallel()
				for i := next.Add(1) - 1; i < int64(n) && !over.Load(); i = next.Add(1) - 1 {
					s := newSchedule(first + uint64(i))
					if m == mutantStrength { // rare but where both relays have everything
						s.relays, s.loop, s.mode, s.pair[0] = 2, true, [2]Mode{Broadcast, Any}, false
					}
					synctest.Test(t, func(t *testing.T) {
						if !fn(s, s.run(m)) {
							over.Store(true)
						}
					})
				}
			})
		}
	})
}

// TestSimulation: nothing is lost or doubled whatever breaks, over random schedules.
func TestSimulation(t *testing.T) {
	first, n := rand.Uint64()>>16, 2000
	switch {
	case os.Getenv("FTFUSE_SEED") != "":
		var err error
		if first, err = strconv.ParseUint(os.Getenv("FTFUSE_SEED"), 10, 64); err != nil {
			t.Fatal(err)
		}
		n = 1
	case os.Getenv("FTFUSE_SOAK") != "":
		n = 100_000
	case testing.Short():
		n = 100
	}
	t.Logf("schedules %d to %d; one alone: FTFUSE_SEED=", first, first+uint64(n)-1)
	start := time.Now()
	simulate(t, first, n, mutantNone, func(s schedule, err error) bool {
		if err != nil {
			t.Errorf("%v\n%v", &s, err)
		}
		return true
	})
	t.Logf("%d schedules, %.1f a second", n, float64(n)/time.Since(start).Seconds())
}

// TestTheSimulationFindsWhatIsBroken: the same schedules and the same checker, and code
// that is wrong.
func TestTheSimulationFindsWhatIsBroken(t *testing.T) {
	for _, m := range []mutant{mutantEarlyAck, mutantHighWater, mutantNewID, mutantNoMark, mutantStrength} {
		t.Run(string(m), func(t *testing.T) {
			var found, ran atomic.Int64
			simulate(t, 1, 2000, m, func(s schedule, err error) bool {
				ran.Add(1)
				if err != nil {
					if found.Add(1) == 1 {
						t.Logf("found: %v\n%v", &s, err)
					}
					return false
				}
				return true
			})
			if found.Load() == 0 {
				t.Errorf("not found in %d schedules", ran.Load())
			}
		})
	}
}
