package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"ftfuse/bench/rig"
	"ftfuse/bench/tally"
)

// reloading is one host whose file is changed while writers have files of a source open.
type reloading struct {
	t       *testing.T
	h       *rig.Host
	text    string
	writers []*rig.Writer
	path    string // of the file that they have open
	good    string // a configuration that status can be asked with, whatever is in the file
}

// set is the host's configuration from its next start, or reload, on.
func (r *reloading) set(format string, args ...any) {
	r.text = fmt.Sprintf(format, args...)
	r.h.Config = func() string { return r.text }
}

// reload has the running role read a file, and returns what its status says of it.
func (r *reloading) reload(format string, args ...any) *reloadStatus {
	r.t.Helper()
	r.set(format, args...)
	if r.good == "" {
		r.good = r.h.File() + ".good"
		must(r.t, os.WriteFile(r.good, read(r.t, r.h.File()), 0o644))
	}
	must(r.t, r.h.WriteConfig())
	return r.again()
}

// again has it read the file as it is.
func (r *reloading) again() *reloadStatus {
	r.t.Helper()
	before := r.status().Reload
	must(r.t, r.h.Role.Signal(syscall.SIGHUP))
	var now *reloadStatus
	eventually(r.t, patience, func() error {
		if now = r.status().Reload; now == nil || before != nil && now.Time == before.Time {
			return fmt.Errorf("no reload since %+v", before)
		}
		return nil
	})
	return now
}

// status is what the role says, asked with a good file.
func (r *reloading) status() *roleStatus {
	r.t.Helper()
	st, err := askStatus(r.t.Context(), r.good)
	must(r.t, err)
	return st
}

// taken is reload where nothing may be refused or wait for a restart.
func (r *reloading) taken(format string, args ...any) *reloadStatus {
	r.t.Helper()
	s := r.reload(format, args...)
	if len(s.Refused)+len(s.NeedsRestart) > 0 {
		r.t.Fatalf("refused %q, needs a restart %q", s.Refused, s.NeedsRestart)
	}
	return s
}

// write starts programs that append to a file of the source and keep it open.
func (r *reloading) write(source *rig.Host, count int) {
	r.t.Helper()
	r.path = filepath.Join(source.Point(), siteLoad)
	for i := range count {
		w, err := rig.StartWriter(bin, rig.Job{Path: r.path, Writer: i, Size: 64, Lines: tally.MaxLines, Rate: 4000})
		must(r.t, err)
		r.t.Cleanup(w.Kill)
		r.writers = append(r.writers, w)
	}
	for _, w := range r.writers {
		must(r.t, w.Go())
	}
}

// finish ends the writers, none of which may have seen an error, and returns what they wrote.
func (r *reloading) finish() tally.Plan {
	r.t.Helper()
	plan := tally.Plan{Writers: len(r.writers), Size: 64, Lines: 1}
	var results []rig.Result
	for _, w := range r.writers {
		w.Finish()
	}
	for i, w := range r.writers {
		res, err := w.Wait()
		must(r.t, err)
		if len(res.Maybe)+len(res.Errors) > 0 {
			r.t.Errorf("writer %d saw errors: %q", i, res.Errors)
		}
		results, plan.Lines = append(results, res), max(plan.Lines, res.Lines)
	}
	for i, res := range results {
		for n := res.Lines; n < plan.Lines; n++ {
			plan.Maybe = append(plan.Maybe, tally.Name{Writer: i, N: n})
		}
	}
	return plan
}

// came returns what of a plan came out at an aggregator: whole, in order, and nothing twice.
func came(t *testing.T, g *rig.Host, source string, plan tally.Plan) *tally.Seen {
	t.Helper()
	c, seen, err := part(filepath.Join(g.Out(), source, siteLoad), plan)
	must(t, err)
	if c.Doubled+c.Altered+c.Partial+c.Disorder > 0 {
		t.Errorf("at %s: %v", g.Name, c)
	}
	return seen
}

// atLeast are how many lines of writer 0 there are at an aggregator, and the last one of them.
func spread(seen *tally.Seen, plan tally.Plan) (first, last, count int) {
	first, last = -1, -1
	for n := range plan.Lines {
		if seen.Has(tally.Name{Writer: 0, N: n}) {
			if first < 0 {
				first = n
			}
			last = n
			count++
		}
	}
	return first, last, count
}

// arriving waits until some more has arrived at an aggregator.
func arriving(t *testing.T, g *rig.Host, source string) {
	t.Helper()
	grows(t, filepath.Join(g.Out(), source, siteLoad), 100_000)
}

// TestGroupsChangeUnderLoad of a source and of a relay: a group comes, another gets other
// destinations, becomes a broadcast and goes, one takes another's name. Programs keep their
// files, every line is where it has to be, once, and in order.
func TestGroupsChangeUnderLoad(t *testing.T) {
	for _, role := range []string{"mount", "relay"} {
		t.Run(role, func(t *testing.T) {
			s := newSite(t)
			g1, g2, g3 := s.agg("g1"), s.agg("g2"), s.agg("g3")
			src := s.source("s1", "")
			r := &reloading{t: t, h: src}
			head := fmt.Sprintf("[mount]\npoint = %q\n", src.Point())
			if role == "relay" {
				r.h = s.relay("r1", "")
				way := head + group{mode: "any", primary: []*rig.Host{r.h}}.toml("mount")
				src.Config = func() string { return way }
				head = fmt.Sprintf("[relay]\nlisten = %q\n", r.h.Addr(port))
			}
			with := func(groups ...group) string { return head + forwards(role, groups) }
			one := func(hosts ...*rig.Host) group { return group{name: "one", mode: "any", primary: hosts} }
			two := group{name: "two", mode: "any", primary: []*rig.Host{g2}}
			r.set("%s", with(one(g1)))
			s.start()
			r.write(src, 3)
			arriving(t, g1, "s1")

			r.taken("%s", with(one(g1), two)) // a group comes
			arriving(t, g2, "s1")
			arriving(t, g1, "s1")
			r.taken("%s", with(one(g3), two)) // one goes elsewhere
			arriving(t, g3, "s1")
			both := one(g3)
			both.mode = "broadcast"
			if st := r.taken("%s", with(both, two)); !slices.Equal(st.Changed, []string{role + ".forward"}) { // other cursors
				t.Errorf("changed are %q", st.Changed)
			}
			arriving(t, g3, "s1")
			two.name = "renamed"
			r.taken("%s", with(both, two))
			arriving(t, g2, "s1")
			arriving(t, g3, "s1")
			r.taken("%s", with(two)) // one goes
			arriving(t, g2, "s1")
			plan := r.finish()
			s.stop()

			a, b, c := came(t, g1, "s1", plan), came(t, g2, "s1", plan), came(t, g3, "s1", plan)
			lost, twice := tally.Across(plan, a, c)
			_, end, _ := spread(c, plan)
			for _, n := range lost { // only what came behind the end of the group
				if n.Writer == 0 && n.N < end {
					t.Fatalf("group one lacks line %d, and has %d", n.N, end)
				}
			}
			if len(twice) > 0 {
				t.Errorf("%d lines of group one went to both of its aggregators, which answered all the time", len(twice))
			}
			first, _, _ := spread(b, plan)
			for n := range plan.Lines {
				if name := (tally.Name{Writer: 0, N: n}); n >= first && !b.Has(name) && !slices.Contains(plan.Maybe, name) {
					t.Fatalf("group two, which began with line %d, lacks line %d", first, n)
				}
			}
			if lost, _ := tally.Across(plan, a, b, c); len(lost) > 0 {
				t.Errorf("%d lines came out nowhere", len(lost))
			}
		})
	}
}

// TestAMountThatKeepsEverythingNeedsNoGroup: it writes its local output; a reload gives it a
// group, and takes that away again, and each line stands once in the copy, and once at the
// receiver if it was written while there was one.
func TestAMountThatKeepsEverythingNeedsNoGroup(t *testing.T) {
	s := newSite(t)
	g, src := s.agg("g1"), s.source("s1", "")
	r := &reloading{t: t, h: src}
	copies := t.TempDir()
	rule := fmt.Sprintf("[mount]\npoint = %q\n[[mount.rule]]\npath = \"**\"\noutput = %q\ntransfer = ", src.Point(), copies+"/%F")
	way := rule + "true\n" + forwards("mount", []group{{name: "one", mode: "any", primary: []*rig.Host{g}}})
	r.set("%s", rule+"false\n")
	s.start()
	line := func(text, all string) {
		t.Helper()
		sh(t, `echo "$2" >>"$1"`, filepath.Join(src.Point(), "a.log"), text)
		arrives(t, copies+"/a.log", []byte(all))
	}
	received := func(want string) {
		t.Helper()
		eventually(t, patience, func() error {
			came, err := exec.Command("sh", "-c", `cut -d' ' -f2- "$1"`, "sh", filepath.Join(g.Out(), "s1", "a.log")).Output() // behind the names of the lines
			if err != nil || string(came) != want {
				return fmt.Errorf("received %q, %w, want %q", came, err, want)
			}
			return nil
		})
	}
	line("alone", "alone\n")
	r.taken("%s", way)
	line("sent", "alone\nsent\n")
	received("sent\n")
	r.taken("%s", rule+"false\n")
	line("here", "alone\nsent\nhere\n")
	r.taken("%s", way)
	line("again", "alone\nsent\nhere\nagain\n")
	received("sent\nagain\n")
	if s := r.reload("%s", rule+"true\n"); len(s.Refused) == 0 {
		t.Error("a rule that has nowhere to send to was taken")
	}
	s.stop()
}

// TestRulesChangeUnderLoad while programs have the file open: what they write goes by the new
// ones, each line goes one way, also where a rule's group comes and another goes with it.
func TestRulesChangeUnderLoad(t *testing.T) {
	s := newSite(t)
	g1, g2, g3 := s.agg("g1"), s.agg("g2"), s.agg("g3")
	src := s.source("s1", "")
	r := &reloading{t: t, h: src}
	one, two, three := group{name: "one", mode: "any", primary: []*rig.Host{g1}}, group{name: "two", mode: "any", primary: []*rig.Host{g2}}, group{name: "three", mode: "any", primary: []*rig.Host{g3}}
	with := func(to string, groups ...group) string {
		return fmt.Sprintf("[mount]\npoint = %q\n[[mount.rule]]\npath = \"**\"\nforward = [%q]\n%s", src.Point(), to, forwards("mount", groups))
	}
	r.set("%s", with("one", one, two))
	s.start()
	r.write(src, 3)
	arriving(t, g1, "s1")
	for range 3 {
		r.taken("%s", with("two", one, two))
		arriving(t, g2, "s1")
		r.taken("%s", with("one", one, two))
		arriving(t, g1, "s1")
		r.taken("%s", with("three", two, three))
		arriving(t, g3, "s1")
		r.taken("%s", with("one", two, one))
		arriving(t, g1, "s1")
	}
	if st := r.status(); len(st.Dropped) > 0 {
		t.Errorf("dropped %+v", st.Dropped)
	}
	plan := r.finish()
	s.stop()
	lost, twice := tally.Across(plan, came(t, g1, "s1", plan), came(t, g2, "s1", plan), came(t, g3, "s1", plan))
	if len(lost)+len(twice) > 0 {
		t.Errorf("%d lines are lost, %d went two ways", len(lost), len(twice))
	}
}

// TestABadFileIsRefusedWholeByAllRoles: nothing of it is taken, log and status say line and
// reason, and what needs a restart is named.
func TestABadFileIsRefusedWholeByAllRoles(t *testing.T) {
	s := newSite(t)
	g := s.agg("g1")
	relay := s.relay("r1", "", group{mode: "any", primary: []*rig.Host{g}})
	src := s.source("s1", "", group{mode: "any", primary: []*rig.Host{relay}})
	s.start()
	load := &reloading{t: t, h: src}
	load.write(src, 2)
	for _, h := range []*rig.Host{src, relay, g} {
		good := h.Config()
		r := &reloading{t: t, h: h}
		head := fmt.Sprintf("[%s]\n", h.Kind)
		bad := strings.Replace(good, head, head+"queue.max_bytes = \"1MiB\"\nqueue.nonsense = 1\n", 1)
		bad = strings.Replace(bad, fmt.Sprintf("[%s.queue]\n", h.Kind), "", 1)
		st := r.reload("%s", bad)
		if len(st.Refused) != 1 || !strings.HasPrefix(st.Refused[0], h.File()+":5: ") || !strings.Contains(st.Refused[0], "nonsense") {
			t.Errorf("%s: refused %q", h.Kind, st.Refused)
		}
		if out, errs, code := ftfuse(t, "status", "-c", h.File()); code != 78 || !strings.Contains(out, "reload refused") || !strings.Contains(out, ":5: ") || !strings.Contains(errs, ":5: ") {
			t.Errorf("%s: status says, with exit code %d,\n%s%s", h.Kind, code, out, errs)
		}
		if max := r.status().Queue.MaxBytes; max != 8<<30 {
			t.Errorf("%s: of a bad file max_bytes = %d was taken", h.Kind, max)
		}
		if log := strings.Join(h.Role.Log(), "\n"); !strings.Contains(log, "reload refused") || !strings.Contains(log, h.File()+":5: ") {
			t.Errorf("%s: the log does not say so", h.Kind)
		}
		moved := strings.NewReplacer(h.Point(), h.Point()+"-2", h.Addr(port), h.Addr(port+1)).Replace(good)
		st = r.reload("%s", moved)
		want := map[string]string{"mount": "mount.point: ", "relay": "relay.listen: ", "receive": "receive.listen: "}[h.Kind]
		if len(st.Refused) > 0 || len(st.NeedsRestart) != 1 || !strings.HasPrefix(st.NeedsRestart[0], want) {
			t.Errorf("%s: refused %q, needs a restart %q", h.Kind, st.Refused, st.NeedsRestart)
		}
		if out, _, _ := ftfuse(t, "status", "-c", h.File()); !strings.Contains(out, "needs a restart: "+want) {
			t.Errorf("%s: status says\n%s", h.Kind, out)
		}
		r.taken("%s", good)
		arriving(t, g, "s1")
	}
	plan := load.finish()
	comesOut(t, g, "s1", plan)
	s.stop()
	came(t, g, "s1", plan)
}

// TestANextWorkerGoesOnWithWhatWasReloaded: the holder has it, whatever the file says by then.
func TestANextWorkerGoesOnWithWhatWasReloaded(t *testing.T) {
	s := newSite(t)
	g1, g2 := s.agg("g1"), s.agg("g2")
	src := s.source("s1", "")
	r := &reloading{t: t, h: src}
	with := func(point string, groups ...group) string {
		return fmt.Sprintf("[mount]\npoint = %q\n", point) + forwards("mount", groups)
	}
	one, two := group{name: "one", mode: "any", primary: []*rig.Host{g1}}, group{name: "two", mode: "any", primary: []*rig.Host{g2}}
	r.set("%s", with(src.Point(), one))
	s.start()
	r.write(src, 2)
	if st := r.reload("%s", with(src.Point()+"-2", one, two)); len(st.NeedsRestart) != 1 || len(st.Refused) > 0 {
		t.Fatalf("needs a restart %q, refused %q", st.NeedsRestart, st.Refused)
	}
	arriving(t, g2, "s1")
	must(t, os.WriteFile(src.File(), []byte("broken"), 0o644))
	for range 2 {
		n := src.Role.Readies()
		must(t, src.Role.KillWorker())
		must(t, src.Role.ReadyAgain(t.Context(), n+1))
		arriving(t, g1, "s1")
		arriving(t, g2, "s1")
	}
	must(t, src.WriteConfig())
	plan := r.finish()
	comesOut(t, g1, "s1", plan)
	s.stop()
	came(t, g1, "s1", plan)
	came(t, g2, "s1", plan)
}

// TestANextWorkerKeepsWhatWaitsForARestart: a worker took on_full = "error" over that the one before
// it had put off, while the kernel wrote to the files that programs had open: those had no limit.
func TestANextWorkerKeepsWhatWaitsForARestart(t *testing.T) {
	s := newSite(t)
	g := s.agg("g1")
	src := s.source("s1", "")
	r := &reloading{t: t, h: src}
	with := func(point, full string) string {
		return fmt.Sprintf("[mount]\npoint = %q\nqueue.on_full = %q\n", point, full) + forwards("mount", []group{{mode: "any", primary: []*rig.Host{g}}})
	}
	r.set("%s", with(src.Point(), "block"))
	s.start()
	ready := func() string {
		log := src.Role.Log()
		return log[slices.IndexFunc(log, func(l string) bool { return strings.Contains(l, "msg=ready") && !strings.Contains(l, "done") })]
	}
	if !strings.Contains(ready(), "capture=passthrough") {
		t.Skip("no passthrough here")
	}
	r.write(src, 2)
	r.reload("%s", with(src.Point()+"-2", "drop_oldest")) // the newest that was taken over
	if st := r.reload("%s", with(src.Point()+"-2", "error")); len(st.NeedsRestart) != 2 || !strings.HasPrefix(st.NeedsRestart[1], "mount.queue.on_full: \"drop_oldest\" stays") {
		t.Fatalf("needs a restart %q", st.NeedsRestart)
	}
	for range 2 {
		n := src.Role.Readies()
		must(t, src.Role.KillWorker())
		must(t, src.Role.ReadyAgain(t.Context(), n+1))
		arriving(t, g, "s1")
	}
	for _, l := range src.Role.Log() {
		if strings.Contains(l, "msg=ready") && strings.Contains(l, "capture=daemon") {
			t.Error(l)
		}
	}
	if st := r.reload("%s", with(src.Point(), "drop_oldest")); len(st.Changed)+len(st.NeedsRestart) > 0 {
		t.Errorf("drop_oldest is not in force: changed %q, needs a restart %q", st.Changed, st.NeedsRestart)
	}
	plan := r.finish()
	comesOut(t, g, "s1", plan)
	s.stop()
	came(t, g, "s1", plan)
}

// TestAKilledReloadLosesAndDoublesNothing: the mount's worker and a relay are killed at each
// step of a change of groups, and the next one goes on.
func TestAKilledReloadLosesAndDoublesNothing(t *testing.T) {
	for _, point := range []string{"forward/added", "forward/paused", "forward/cursors", "forward/replaced"} {
		t.Run(filepath.Base(point), func(t *testing.T) {
			s := newSite(t)
			g1, g2 := s.agg("g1"), s.agg("g2")
			relay := s.relay("r1", "")
			src := s.source("s1", "")
			head := fmt.Sprintf("[relay]\nlisten = %q\n", relay.Addr(port))
			one, two := group{name: "one", mode: "any", primary: []*rig.Host{g1}}, group{name: "two", mode: "any", primary: []*rig.Host{g2}}
			way := func(name string) string {
				return fmt.Sprintf("[mount]\npoint = %q\n", src.Point()) + group{name: name, mode: "any", primary: []*rig.Host{relay}}.toml("mount")
			}
			r, m := &reloading{t: t, h: relay}, &reloading{t: t, h: src}
			r.set("%s", head+forwards("relay", []group{one}))
			m.set("%s", way("a"))
			relay.Env = []string{"FTFUSE_FAILPOINTS=" + point + "=kill"}
			src.Env = relay.Env
			s.start()
			m.write(src, 2)
			arriving(t, g1, "s1")

			n := src.Role.Readies()
			m.set("%s", way("b"))
			must(t, src.WriteConfig())
			must(t, src.Role.Signal(syscall.SIGHUP))
			must(t, src.Role.ReadyAgain(t.Context(), n+1)) // another worker, which is told again
			eventually(t, patience, func() error {
				if st := statusOf(t, src).Reload; st == nil || len(st.Refused) > 0 {
					return fmt.Errorf("the next worker's reload: %+v", st)
				}
				return nil
			})
			arriving(t, g1, "s1")

			r.set("%s", head+forwards("relay", []group{two, one}))
			must(t, relay.WriteConfig())
			must(t, relay.Role.Signal(syscall.SIGHUP))
			<-relay.Role.Done()
			relay.Env = nil
			must(t, relay.Start(t.Context()))
			arriving(t, g1, "s1")
			arriving(t, g2, "s1")
			plan := m.finish()
			comesOut(t, g1, "s1", plan)
			s.stop()
			came(t, g1, "s1", plan)
		})
	}
}

// TestLimitsChangeUnderLoad: programs that wait at max_bytes go on when there is more of it.
func TestLimitsChangeUnderLoad(t *testing.T) {
	for _, attribution := range []string{"open", "write"} {
		t.Run(attribution, func(t *testing.T) {
			s := newSite(t)
			g := s.agg("g1")
			src := s.source("s1", "")
			r := &reloading{t: t, h: src}
			with := func(max string) string {
				return fmt.Sprintf("[mount]\npoint = %q\n[mount.queue]\nmax_bytes = %q\n[[mount.rule]]\npath = \"**\"\nattribution = %q\n", src.Point(), max, attribution) +
					forwards("mount", []group{{mode: "any", primary: []*rig.Host{g}}})
			}
			r.set("%s", with("4MiB"))
			must(t, src.Start(t.Context())) // no aggregator yet
			r.write(src, 3)
			full := func(max int64) {
				t.Helper()
				eventually(t, patience, func() error {
					q := statusOf(t, src).Queue
					if q.MaxBytes != max || q.Bytes < max/2 {
						return fmt.Errorf("%d of %d bytes, want about %d", q.Bytes, q.MaxBytes, max)
					}
					return nil
				})
			}
			full(4 << 20)
			r.taken("%s", with("8MiB"))
			full(8 << 20)
			r.taken("%s", with("2MiB")) // less than there is: nothing of that goes
			must(t, g.Start(t.Context()))
			arriving(t, g, "s1")
			r.taken("%s", with("1GiB"))
			arriving(t, g, "s1")
			plan := r.finish()
			comesOut(t, g, "s1", plan)
			s.stop()
			came(t, g, "s1", plan)
		})
	}
}

// TestOutputsChangeUnderLoad of a receiver and of a relay's copies: from file to file, each
// line stands in one, and SIGUSR1 makes a file that was moved away a new one.
func TestOutputsChangeUnderLoad(t *testing.T) {
	for _, role := range []string{"receive", "relay"} {
		t.Run(role, func(t *testing.T) {
			s := newSite(t)
			g := s.agg("g1")
			src := s.source("s1", "")
			r := &reloading{t: t, h: g}
			head := fmt.Sprintf("[receive]\nlisten = %q\n", g.Addr(port))
			to := g
			if role == "relay" {
				r.h = s.relay("r1", "")
				to = r.h
				head = fmt.Sprintf("[relay]\nlisten = %q\n%s", r.h.Addr(port), group{mode: "any", primary: []*rig.Host{g}}.toml("relay"))
			}
			src.Config = func() string {
				return fmt.Sprintf("[mount]\npoint = %q\n", src.Point()) + group{mode: "any", primary: []*rig.Host{to}}.toml("mount")
			}
			out := func(name string) string { return filepath.Join(r.h.Out(), name) }
			with := func(name string) string {
				return head + fmt.Sprintf("[[%s.output]]\ndir = %q\nfile = %q\nformat = \"%%N %%L\"\n", role, r.h.Out(), name)
			}
			r.set("%s", with("0"))
			s.start()
			r.write(src, 2)
			grows(t, out("0"), 50_000)
			for i := 1; i < 4; i++ {
				r.taken("%s", with(fmt.Sprint(i)))
				grows(t, out(fmt.Sprint(i)), 50_000)
			}
			must(t, os.Rename(out("3"), out("4")))
			must(t, r.h.Role.Signal(syscall.SIGUSR1))
			grows(t, out("3"), 50_000)
			plan := r.finish()
			s.stop()
			var parts []*tally.Seen
			for i := range 5 {
				c, seen, err := part(out(fmt.Sprint(i)), plan)
				must(t, err)
				if c.Doubled+c.Altered+c.Partial+c.Disorder > 0 || c.Lines == 0 {
					t.Errorf("file %d: %v", i, c)
				}
				parts = append(parts, seen)
			}
			if lost, twice := tally.Across(plan, parts...); len(lost)+len(twice) > 0 {
				t.Errorf("%d lines are lost, %d stand in two files", len(lost), len(twice))
			}
		})
	}
}

// TestPluginsChangeUnderLoad of a receiver and of a relay: one gets another output, others come
// and go; what it was given before its change and after it is all there is, each line once.
func TestPluginsChangeUnderLoad(t *testing.T) {
	for _, role := range []string{"receive", "relay"} {
		t.Run(role, func(t *testing.T) {
			s := newSite(t)
			g := s.agg("g1")
			src := s.source("s1", "")
			r, to := &reloading{t: t, h: g}, g
			head := fmt.Sprintf("[receive]\nlisten = %q\n", g.Addr(port))
			if role == "relay" {
				r.h = s.relay("r1", "")
				to = r.h
				head = fmt.Sprintf("[relay]\nlisten = %q\n%s", r.h.Addr(port), group{mode: "any", primary: []*rig.Host{g}}.toml("relay"))
			}
			src.Config = func() string {
				return fmt.Sprintf("[mount]\npoint = %q\n", src.Point()) + group{mode: "any", primary: []*rig.Host{to}}.toml("mount")
			}
			out := func(name string) string { return filepath.Join(r.h.Out(), name) }
			plugin := func(path, name string) string {
				return fmt.Sprintf("[[%s.output]]\npath = %q\ndir = %q\nfile = %q\nplugin = [\"/bin/cat\"]\n", role, path, r.h.Out(), name)
			}
			files := ""
			if role == "receive" { // it has another output, too
				files = fmt.Sprintf("[[receive.output]]\ndir = %q\n", g.Out())
			}
			r.set("%s", head+files+plugin("**", "0"))
			s.start()
			r.write(src, 2)
			grows(t, out("0"), 50_000)
			r.taken("%s", head+files+plugin("**", "1"))
			grows(t, out("1"), 50_000)
			r.taken("%s", head+files+plugin("*.log", "guest")+plugin("**", "2"))
			grows(t, out("guest"), 50_000)
			grows(t, out("2"), 50_000)
			r.taken("%s", head+files+plugin("**", "2"))
			grows(t, out("2"), 50_000)
			plan := r.finish()
			s.stop()
			var parts []*tally.Seen
			for _, name := range []string{"0", "1", "2", "guest"} {
				f, err := os.Open(out(name))
				must(t, err)
				defer f.Close()
				c, seen, err := tally.CheckSeen(f, plan)
				must(t, err)
				if c.Doubled+c.Altered+c.Partial+c.Disorder > 0 || c.Lines == 0 {
					t.Errorf("file %s: %v", name, c)
				}
				parts = append(parts, seen)
			}
			if lost, twice := tally.Across(plan, parts[:3]...); len(lost)+len(twice) > 0 {
				t.Errorf("%d lines are lost, %d stand in two files", len(lost), len(twice))
			}
		})
	}
}

// TestAGroupThatGoesSendsWhatItHas first: it has shutdown_timeout for that.
func TestAGroupThatGoesSendsWhatItHas(t *testing.T) {
	s := newSite(t)
	g1, g2 := s.agg("g1"), s.agg("g2")
	src := s.source("s1", "")
	r := &reloading{t: t, h: src}
	one, two := group{name: "one", mode: "any", primary: []*rig.Host{g1}, more: "window = \"64KiB\""}, group{name: "two", mode: "any", primary: []*rig.Host{g2}}
	with := func(to group) string {
		return fmt.Sprintf("shutdown_timeout = \"1m\"\n[mount]\npoint = %q\n[[mount.rule]]\npath = \"**\"\nforward = [%q]\n%s", src.Point(), to.name, forwards("mount", []group{to}))
	}
	r.set("%s", with(one))
	s.start()
	r.write(src, 2)
	arriving(t, g1, "s1")
	must(t, g1.Freeze())
	eventually(t, patience, func() error {
		if b := statusOf(t, src).backlog(); b < 1<<20 {
			return fmt.Errorf("%d bytes wait for a destination that is frozen", b)
		}
		return nil
	})
	r.set("%s", with(two))
	must(t, src.WriteConfig())
	must(t, src.Role.Signal(syscall.SIGHUP))
	_, err := src.Role.WaitLog(t.Context(), "a new cursor begins")
	must(t, err)
	must(t, g1.Thaw())
	_, err = src.Role.WaitLog(t.Context(), "msg=reloaded")
	must(t, err)
	arriving(t, g2, "s1")
	if st := statusOf(t, src); len(st.Dropped) > 0 {
		t.Errorf("dropped %+v", st.Dropped)
	}
	plan := r.finish()
	s.stop()
	lost, twice := tally.Across(plan, came(t, g1, "s1", plan), came(t, g2, "s1", plan))
	if len(lost)+len(twice) > 0 {
		t.Errorf("%d lines are lost, %d went both ways", len(lost), len(twice))
	}
}
