package e2e

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"ftfuse/bench/rig"
	"ftfuse/bench/tally"
	"ftfuse/transport"
)

// copyState copies the state of a host's stopped role, as a clone of its disk has it.
func copyState(t *testing.T, from, to string) {
	t.Helper()
	must(t, os.RemoveAll(to))
	sh(t, `cp -a --sparse=always "$1" "$2"`, from, to)
}

// append lines of a writer to the load file of a source, with one write(2).
func appendLines(t *testing.T, h *rig.Host, writer, first, count int) {
	t.Helper()
	f, err := os.OpenFile(filepath.Join(h.Point(), siteLoad), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	must(t, err)
	_, err = f.Write(tally.AppendRun(nil, writer, first, count, 64))
	must(t, errors.Join(err, f.Close()))
}

// comesOut waits until the file that source writes has come out at the aggregator with
// every line of the plan once.
func comesOut(t *testing.T, g *rig.Host, source string, plan tally.Plan) {
	t.Helper()
	path := filepath.Join(g.Out(), source, siteLoad)
	eventually(t, patience, func() error { return once(path, plan) })
}

// once says what is wrong with an output file, order apart.
func once(path string, plan tally.Plan) error {
	c, _, err := part(path, plan)
	if err == nil && c.Lost+c.Doubled+c.Altered+c.Partial > 0 {
		err = errors.New(c.String())
	}
	return err
}

// A source's disk is cloned with a backlog on it, and both machines are started: the backlog,
// which both send, stands once, and what each is given from then on stands once too.
func TestClonedSourcesSendTheirBacklogOnceAndGoOn(t *testing.T) {
	s := newSite(t)
	g := s.agg("g1")
	to := group{mode: "any", primary: []*rig.Host{g}}
	src, clone := s.source("s1", "", to), s.source("clone", "", to)
	clone.HostName = "s1"
	must(t, src.Start(t.Context())) // no aggregator yet
	const lines = 2000
	for i := range 10 {
		appendLines(t, src, 0, i*lines/10, lines/10)
	}
	eventually(t, patience, func() error { return holdsLines(t, src, lines) }) // all of it is sealed
	must(t, src.Kill())
	copyState(t, src.State(), clone.State())
	must(t, g.Start(t.Context()))
	must(t, src.Start(t.Context()))
	must(t, clone.Start(t.Context()))
	appendLines(t, src, 1, 0, lines)
	appendLines(t, clone, 2, 0, lines)
	plan := tally.Plan{Writers: 3, Lines: lines, Size: 64}
	comesOut(t, g, "s1", plan)
	s.stop()
	must(t, once(filepath.Join(g.Out(), "s1", siteLoad), plan))
}

// holdsLines says whether a source's queue holds as many lines.
func holdsLines(t *testing.T, h *rig.Host, lines uint64) error {
	for _, c := range statusOf(t, h).Queue.Cursors {
		if c.Name != "apply" && c.Backlog.Bytes != 64*lines { // that of outputs, of which there are none
			return fmt.Errorf("cursor %s of %s has %d lines, want %d", c.Name, h.Name, c.Backlog.Bytes/64, lines)
		}
	}
	return nil
}

// A relay is restored from an older copy of its disk. It sends again what it had sent, which
// is known by id, and what it takes from then on is passed on.
func TestRestoredRelaySwallowsAndDoublesNothing(t *testing.T) {
	s, a1, _, g := oneRelayAndItsStandIn(t, "")
	s.start()
	f := s.startFlow(1, rig.Job{Size: 64, Lines: tally.MaxLines, Rate: 2000})
	f.moves(50_000)
	must(t, errors.Join(a1.Cut(rig.Out, g), a1.Cut(rig.In, g)))
	holds(t, a1, 50_000)
	must(t, a1.Kill())
	older := a1.State() + ".older"
	copyState(t, a1.State(), older)
	must(t, a1.Start(t.Context()))
	must(t, a1.Heal())
	eventually(t, patience, func() error { // all of that is passed on
		if left := statusOf(t, a1).backlog(); left > 20_000 {
			return fmt.Errorf("a1 still holds %d bytes", left)
		}
		return nil
	})
	must(t, a1.Kill())
	copyState(t, older, a1.State())
	must(t, a1.Start(t.Context()))
	f.moves(500_000)
	f.finish()
	f.settle(true)
	if statusOf(t, g).Duplicates == 0 {
		t.Error("the aggregator was sent nothing twice: the test did not test anything")
	}
	s.stop()
	v, err := f.count()
	must(t, err)
	f.exact(v, true)
}

// useIDs sends lines of a clone under the ids of the source that has written the output file
// out: those that it has used, which must be refused, and those that it will use next, which
// are taken. It returns how many were.
func useIDs(t *testing.T, away, g *rig.Host, out string) (taken int) {
	t.Helper()
	name, _ := tally.Tag(read(t, out))
	id, err := parseTag(tag(name[:strings.LastIndexByte(string(name), '-')]))
	must(t, err)
	o := peerOptions{host: "s1", role: "mount"}
	for n := uint64(1); n <= 20; n++ {
		id.N = n
		o.batches = append(o.batches, sealedLine(t, id, "s1", "clone.log", fmt.Sprintf("line %d of the clone\n", n)))
	}
	p := startPeer(t, away, g, o)
	for _, b := range o.batches {
		v, ok := p.verdict(b.ID, patience)
		switch {
		case !ok:
			t.Fatalf("no verdict on batch %d", b.ID.N)
		case v.Code == transport.Taken:
			taken++
		case v.Code != transport.Conflict:
			t.Errorf("batch %d: %v, want taken or refused as a conflict", b.ID.N, v)
		}
	}
	if taken == 0 || taken == len(o.batches) {
		t.Fatalf("%d of %d batches of the clone were taken, want some", taken, len(o.batches))
	}
	return taken
}

// Two contents under one id: somebody (a clone that was resumed from memory) used the ids
// that the source is about to use. The aggregator refuses the second content loudly, the
// source goes on under a fresh epoch, and both contents stand. Sent directly and through a
// relay. Who seals it again has an output of its own that can take nothing meanwhile, is
// killed, and gets every line there once, in order.
func TestSecondContentOfAnIdIsRelabelled(t *testing.T) {
	for _, relayed := range []bool{false, true} {
		t.Run(fmt.Sprintf("relayed %v", relayed), func(t *testing.T) {
			s := newSite(t)
			g := s.agg("g1")
			copies, ballast := fullDir(t)
			to := group{mode: "any", primary: []*rig.Host{g}}
			mine := "[[mount.rule]]\npath = \"**\"\noutput = \"" + copies + "/%F\"\n"
			if relayed {
				to.primary = []*rig.Host{s.relay("a1", "[[relay.output]]\ndir = \""+copies+"\"\nfile = \"%F\"\n", to)}
				mine = ""
			}
			src := s.source("s1", mine, to)
			away := s.add("clone", "", nil)
			s.start()
			const lines = 200
			appendLines(t, src, 0, 0, lines)
			out := filepath.Join(g.Out(), "s1", siteLoad)
			comesOut(t, g, "s1", tally.Plan{Writers: 1, Lines: lines, Size: 64})

			taken := useIDs(t, away, g, out)
			must(t, g.Kill())
			for i := range 40 { // each a batch, some of them under ids that were taken
				appendLines(t, src, 1, i*lines/40, lines/40)
				must(t, rig.Wait(t.Context(), 10*time.Millisecond))
			}
			must(t, g.Start(t.Context()))
			plan := tally.Plan{Writers: 2, Lines: lines, Size: 64}
			comesOut(t, g, "s1", plan)
			last := s.beforeLast()
			if statusOf(t, last).Relabelled == 0 {
				t.Error("nobody says that a batch was relabelled")
			}
			must(t, last.Kill())
			must(t, last.Start(t.Context()))
			must(t, os.Remove(ballast))
			arrives(t, filepath.Join(copies, siteLoad), read(t, filepath.Join(src.Point(), siteLoad)))
			s.stop()
			must(t, once(out, plan))
			if got := strings.Count(string(read(t, filepath.Join(g.Out(), "s1", "clone.log"))), "of the clone\n"); got != taken {
				t.Errorf("%d lines of the clone stand, want %d", got, taken)
			}
		})
	}
}

// beforeLast is the host that sends to the aggregator: a relay, or else the source.
func (s *site) beforeLast() *rig.Host {
	if len(s.relays) > 0 {
		return s.relays[len(s.relays)-1]
	}
	return s.sources[0]
}

// Two relays are each other's stand-in while the aggregator is down. What goes from one to
// the other and back is refused there and kept; with the aggregator back, each line stands
// once.
func TestRelaysThatAreEachOthersStandInLoseNothing(t *testing.T) {
	s := newSite(t)
	g := s.agg("g1")
	var a1, a2 *rig.Host
	between := func(other **rig.Host) func(h *rig.Host) string {
		return func(h *rig.Host) string {
			return fmt.Sprintf("[relay]\nlisten = %q\n%s", h.Addr(port),
				group{mode: "any", primary: []*rig.Host{g}, secondary: []*rig.Host{*other}}.toml("relay"))
		}
	}
	a1 = s.add("a1", "relay", between(&a2))
	a2 = s.add("a2", "relay", between(&a1))
	s.relays = []*rig.Host{a1, a2}
	s.source("s1", "", group{mode: "any", primary: []*rig.Host{a1}, secondary: []*rig.Host{a2}})
	s.source("s2", "", group{mode: "any", primary: []*rig.Host{a2}, secondary: []*rig.Host{a1}})
	s.start()
	f := s.startFlow(1, rig.Job{Size: 64, Lines: tally.MaxLines, Rate: 1000})
	f.moves(50_000)
	must(t, g.Kill())
	looped := func(h *rig.Host) error {
		for _, line := range h.Role.Log() {
			if strings.Contains(line, "code=loop") {
				return nil
			}
		}
		return fmt.Errorf("%s has not said that a batch came through it before", h.Name)
	}
	eventually(t, patience, func() error { return errors.Join(looped(a1), looped(a2)) })
	must(t, a1.Kill()) // and no copy was deleted on the strength of the other
	must(t, a1.Start(t.Context()))
	must(t, g.Start(t.Context()))
	f.moves(50_000)
	f.finish()
	f.settle(true)
	s.stop()
	v, err := f.count()
	must(t, err)
	f.exact(v, true)
}
