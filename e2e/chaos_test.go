package e2e

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"ftfuse/bench/rig"
	"ftfuse/bench/tally"
	"ftfuse/internal/batch"
)

// trouble is one thing that can befall a host that passes on or receives. It ends with the
// host as well as before.
type trouble struct {
	name string
	do   func(t *testing.T, h *rig.Host, for_ time.Duration) error
}

// troubles are those of issue 4's list.
func (s *site) troubles() []trouble {
	wait := func(t *testing.T, d time.Duration) error { return rig.Wait(t.Context(), d) }
	all := []trouble{
		{"kill -9", func(t *testing.T, h *rig.Host, d time.Duration) error {
			return errors.Join(h.Kill(), wait(t, d), h.Start(t.Context()))
		}},
		{"freeze", func(t *testing.T, h *rig.Host, d time.Duration) error {
			return errors.Join(h.Freeze(), wait(t, d), h.Thaw())
		}},
		{"flap, 1 s up and 1 s down", func(t *testing.T, h *rig.Host, d time.Duration) error {
			for range max(2, int(d/(2*time.Second))) {
				if err := errors.Join(h.Kill(), wait(t, time.Second), h.Start(t.Context()), wait(t, time.Second)); err != nil {
					return err
				}
			}
			return nil
		}},
	}
	if !s.Linked() {
		return all
	}
	link := func(name string, fault func(h *rig.Host) error) trouble {
		return trouble{name, func(t *testing.T, h *rig.Host, d time.Duration) error {
			return errors.Join(fault(h), wait(t, d), h.Heal())
		}}
	}
	return append(all,
		link("deaf", func(h *rig.Host) error { return h.Cut(rig.In) }),
		link("dumb", func(h *rig.Host) error { return h.Cut(rig.Out) }),
		link("cable pulled", func(h *rig.Host) error { return errors.Join(h.Cut(rig.In), h.Cut(rig.Out)) }),
		link("RST storm", func(h *rig.Host) error { return h.Reset(60) }),
		link("30 % loss", func(h *rig.Host) error { return h.Lose(rig.In, 30) }),
	)
}

// chaos lets troubles befall the hosts, one after the other with load between, each trouble
// once before any comes again, until rounds of them are over.
func (s *site) chaos(chance *rand.Rand, hosts []*rig.Host, rounds int, longest time.Duration) error {
	var left []trouble
	for range rounds {
		if len(left) == 0 {
			left = s.troubles()
		}
		i := chance.IntN(len(left))
		now := left[i]
		left = slices.Delete(left, i, i+1)
		h := hosts[chance.IntN(len(hosts))]
		d := time.Duration(chance.Int64N(int64(longest)))
		s.t.Logf("%s of %s for %v", now.name, h.Name, d.Round(time.Millisecond))
		if err := now.do(s.t, h, d); err != nil {
			return fmt.Errorf("%s of %s: %w", now.name, h.Name, err)
		}
	}
	return nil
}

// killWorkers kills the process that serves a source's mount now and then, until done is
// closed. Its programs see nothing of it: the kernel writes for them, the holder starts
// another worker.
func (s *site) killWorkers(chance *rand.Rand, done <-chan struct{}) error {
	for {
		t := time.NewTimer(time.Second + time.Duration(chance.Int64N(int64(4*time.Second))))
		select {
		case <-done:
			t.Stop()
			return nil
		case <-t.C:
		}
		h := s.sources[chance.IntN(len(s.sources))]
		s.t.Logf("kill -9 of the worker of %s", h.Name)
		n := h.Role.Readies()
		if err := errors.Join(h.Role.KillWorker(), h.Role.ReadyAgain(s.t.Context(), n+1)); err != nil {
			return fmt.Errorf("kill the worker of %s: %w", h.Name, err)
		}
	}
}

// twoStages is the network of issue 4: two sources, two relays in each of two colos, two
// aggregators.
//
//	s1 ─┐   ┌─ a1 ─┐   ┌─ b1 ─┐   ┌─ g1
//	    ├───┤      ├───┤      ├───┤
//	s2 ─┘   └─ a2 ─┘   └─ b2 ─┘   └─ g2
func twoStages(s *site, mode string) {
	s.t.Helper()
	s.files = []string{"1.log", "2.log", "3.log", "4.log"} // of several buckets
	to := func(hosts ...*rig.Host) group { return group{mode: mode, primary: hosts} }
	g := []*rig.Host{s.agg("g1"), s.agg("g2")}
	last := to(g...)
	if mode == "any" {
		last = group{mode: mode, primary: g[:1], secondary: g[1:]}
	}
	b := []*rig.Host{s.relay("b1", "", last), s.relay("b2", "", last)}
	a := []*rig.Host{s.relay("a1", "", to(b...)), s.relay("a2", "", to(b...))}
	s.source("s1", "", to(a...))
	s.source("s2", "", to(a...))
}

// Whatever befalls relays and aggregators under load, each line stands at every aggregator
// (broadcast) or at one of them, once; at two of them only lines of batches that both were
// told may have been sent before.
func TestTwoStagesOfRelaysInTrouble(t *testing.T) {
	for _, mode := range []string{"any", "hash", "broadcast"} {
		t.Run(mode, func(t *testing.T) {
			s := newSite(t)
			twoStages(s, mode)
			chance := seeded(t)
			s.start()
			f := s.startFlow(1, rig.Job{Size: 64, Lines: tally.MaxLines, Rate: flowRate()})
			f.moves(1)
			s.trouble(chance)
			f.finish()
			f.settle(mode == "broadcast")
			s.sizes()
			s.stop()
			v, err := f.count()
			must(t, err)
			f.exact(v, mode == "broadcast")
			if mode != "broadcast" {
				must(t, s.flagged(v))
			}
		})
	}
}

// The same network where no namespaces can be made: each host is an address of the loopback,
// and nothing can befall its links.
func TestRelaysOnTheLoopback(t *testing.T) {
	needRoot(t)
	s := watchSite(t, rig.LoopbackSite(bin, t.TempDir(), roleLog(t)))
	twoStages(s, "any")
	s.start()
	f := s.startFlow(1, rig.Job{Size: 64, Lines: tally.MaxLines, Rate: flowRate()})
	f.moves(10_000)
	must(t, s.chaos(seeded(t), s.relays, 2, time.Second))
	f.finish()
	f.settle(false)
	s.stop()
	v, err := f.count()
	must(t, err)
	f.exact(v, false)
	must(t, s.flagged(v))
}

// trouble lets chaos loose on both halves of the network at once, and on the sources, until
// all of it is over.
func (s *site) trouble(chance *rand.Rand) {
	s.t.Helper()
	halves := make([][]*rig.Host, 2)
	for i, h := range slices.Concat(s.relays, s.aggs) {
		halves[i%2] = append(halves[i%2], h)
	}
	rounds, longest := chaosRounds(s.t), chaosLongest()
	done := make(chan struct{})
	var both, all sync.WaitGroup
	errs := make([]error, 3)
	for i, half := range halves {
		own := rand.New(rand.NewPCG(chance.Uint64(), chance.Uint64()))
		both.Go(func() { errs[i] = s.chaos(own, half, rounds, longest) })
	}
	own := rand.New(rand.NewPCG(chance.Uint64(), chance.Uint64()))
	all.Go(func() { errs[2] = s.killWorkers(own, done) })
	both.Wait()
	close(done)
	all.Wait()
	must(s.t, errors.Join(errs...))
}

// sizes logs how large the delivered sets have become.
func (s *site) sizes() {
	s.t.Helper()
	for _, h := range slices.Concat(s.relays, s.aggs) {
		q := statusOf(s.t, h).Queue
		s.t.Logf("delivered set of %s: %d lanes, %d ranges, %d bytes", h.Name, q.Lanes, q.Ranges, q.Stored)
	}
}

// flowRate is how many lines a second each writer writes.
func flowRate() int {
	if soak {
		return 1000
	}
	return 500
}

// chaosRounds is how many troubles befall each half of a network: FTFUSE_ROUNDS, or 3, or about 20
// minutes' worth in the long form.
func chaosRounds(t *testing.T) int {
	t.Helper()
	if text := os.Getenv("FTFUSE_ROUNDS"); text != "" {
		n, err := strconv.Atoi(text)
		must(t, err)
		return n
	}
	if soak {
		return 150
	}
	return 3
}

func chaosLongest() time.Duration {
	if soak {
		return 12 * time.Second
	}
	return 3 * time.Second
}

// flagged checks the batches of which lines stand at two aggregators: each was taken by one of
// them at least with the mark that another may have it too.
func (s *site) flagged(v *verdict) error {
	marked := map[string][][2]uint64{}
	for _, g := range s.aggs {
		if err := g.Start(s.t.Context()); err != nil { // what it has taken is in its queue's state
			return err
		}
		r, err := askStatus(s.t.Context(), g.File())
		if err = errors.Join(err, g.Stop()); err != nil {
			return err
		}
		for _, l := range r.Resent {
			marked[l.Lane] = append(marked[l.Lane], l.Ranges...)
		}
	}
	var wrong error
	count := map[batch.ID]bool{}
	for name, tags := range v.twice {
		for _, text := range tags {
			id, err := parseTag(text)
			if err != nil {
				return err
			}
			count[id] = true
			if !slices.ContainsFunc(marked[id.Lane.String()], func(r [2]uint64) bool { return r[0] <= id.N && id.N <= r[1] }) {
				wrong = errors.Join(wrong, fmt.Errorf("batch %v stands at %s and elsewhere, and nobody was told that it may", id, name))
			}
		}
	}
	var all uint64
	for _, ranges := range marked {
		for _, r := range ranges {
			all += r[1] - r[0] + 1
		}
	}
	s.t.Logf("%d batches stand at two aggregators; %d were taken with the mark that they may", len(count), all)
	return wrong
}
