package e2e

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"ftfuse/bench/rig"
	"ftfuse/bench/tally"
)

// plainAgg adds an aggregator that writes lines as they are.
func (s *site) plainAgg(name string) *rig.Host {
	s.t.Helper()
	h := s.add(name, "receive", func(h *rig.Host) string {
		return fmt.Sprintf("[receive]\nlisten = %q\n[[receive.output]]\ndir = %q\n", h.Addr(port), h.Out())
	})
	s.aggs = append(s.aggs, h)
	return h
}

// Rules name the groups that a file goes to; a file of a rule without names goes to all.
func TestRulesChooseTheGroups(t *testing.T) {
	s := newSite(t)
	g1, g2 := s.plainAgg("g1"), s.plainAgg("g2")
	groups := []group{
		{name: "one", mode: "any", primary: []*rig.Host{g1}},
		{name: "two", mode: "hash", primary: []*rig.Host{g2}},
	}
	src := s.add("s1", "mount", func(h *rig.Host) string {
		return fmt.Sprintf(`[mount]
point = %q
[[mount.rule]]
path = "one/**"
forward = ["one"]
[[mount.rule]]
path = "two/**"
forward = ["two"]
[[mount.rule]]
path = "none/**"
transfer = false
[[mount.rule]]
path = "**"
%s`, h.Point(), forwards("mount", groups))
	})
	s.sources = []*rig.Host{src}
	s.start()
	var want []string
	for round := range 2 { // again after a restart: routes are stored
		for _, dir := range []string{"one", "two", "none", "all"} {
			sh(t, `mkdir -p "$1"; echo "$2" >>"$1/a.log"`, filepath.Join(src.Point(), dir), fmt.Sprint(round))
		}
		want = append(want, fmt.Sprint(round))
		text := []byte(strings.Join(want, "\n") + "\n")
		arrives(t, filepath.Join(g1.Out(), "s1/one/a.log"), text)
		arrives(t, filepath.Join(g2.Out(), "s1/two/a.log"), text)
		arrives(t, filepath.Join(g1.Out(), "s1/all/a.log"), text)
		arrives(t, filepath.Join(g2.Out(), "s1/all/a.log"), text)
		must(t, src.Stop())
		must(t, src.Start(t.Context()))
	}
	s.stop()
	for _, path := range []string{filepath.Join(g1.Out(), "s1/two"), filepath.Join(g2.Out(), "s1/one"), filepath.Join(g1.Out(), "s1/none"), filepath.Join(g2.Out(), "s1/none")} {
		if _, err := os.Stat(path); err == nil {
			t.Errorf("%s is there: it was to go elsewhere, or nowhere", path)
		}
	}
}

// Compressed at the source, kept so through a relay that writes a copy on its way, and
// byte-exact at its end.
func TestCompressedThroughARelayThatKeepsACopy(t *testing.T) {
	for _, codec := range []string{"s2", "zstd"} {
		t.Run(codec, func(t *testing.T) {
			s := newSite(t)
			g := s.plainAgg("g1")
			a := s.add("a1", "relay", func(h *rig.Host) string {
				return fmt.Sprintf("[relay]\nlisten = %q\n[[relay.output]]\ndir = %q\n%s", h.Addr(port), h.Out(), group{mode: "any", primary: []*rig.Host{g}}.toml("relay"))
			})
			s.relays = []*rig.Host{a}
			src := s.source("s1", fmt.Sprintf("compression = %q", codec), group{mode: "any", primary: []*rig.Host{a}})
			s.start()
			want := filepath.Join(s.Dir, "want")
			sh(t, `{ seq -f 'request %.0f answered' 150000; head -c 1500000 /dev/urandom | base64 -w 200; } >"$2"; cat "$2" >>"$1"`, filepath.Join(src.Point(), "a.log"), want)
			for _, h := range []*rig.Host{g, a} {
				arrives(t, filepath.Join(h.Out(), "s1/a.log"), read(t, want))
			}
			for _, h := range []*rig.Host{src, a} {
				if sent, all := statusOf(t, h).Forward[0].Destinations[0].SentBytes, len(read(t, want)); sent > int64(all)*8/10 {
					t.Errorf("%s sent %d bytes for %d", h.Name, sent, all)
				}
			}
			s.stop()
			for _, h := range []*rig.Host{g, a} {
				same(t, filepath.Join(h.Out(), "s1/a.log"), read(t, want))
			}
		})
	}
}

// The backlog of a host that died is moved to another one with the queue's commands, from
// its disk into a running role, and delivered once, even though the dead host comes back.
func TestBacklogOfADeadHostIsMovedAndStandsOnce(t *testing.T) {
	for _, kind := range []string{"mount", "relay"} {
		t.Run(kind, func(t *testing.T) {
			s := newSite(t)
			g := s.agg("g1")
			to := group{mode: "any", primary: []*rig.Host{g}}
			src := s.source("s1", "", to)
			var heir *rig.Host
			if kind == "mount" {
				heir = s.source("s2", "", to)
			} else {
				heir = s.relay("a1", "", to)
			}
			must(t, src.Start(t.Context())) // no aggregator yet
			const lines = 2000
			for i := range 10 {
				appendLines(t, src, 0, i*lines/10, lines/10)
			}
			eventually(t, patience, func() error { return holdsLines(t, src, lines) })
			must(t, src.Kill())
			must(t, heir.Start(t.Context()))
			backlog := filepath.Join(s.Dir, "backlog")
			queueTool(t, "export", "-c", src.File(), "-o", backlog)
			queueTool(t, "import", "-c", heir.File(), backlog)
			queueTool(t, "import", "-c", heir.File(), backlog) // by mistake, twice
			must(t, g.Start(t.Context()))
			plan := tally.Plan{Writers: 1, Lines: lines, Size: 64}
			comesOut(t, g, "s1", plan)
			must(t, src.Start(t.Context()))
			plan.Writers = 2
			appendLines(t, src, 1, 0, lines)
			comesOut(t, g, "s1", plan)
			s.stop()
			must(t, once(filepath.Join(g.Out(), "s1", siteLoad), plan))
		})
	}
}

// queueTool runs `ftfuse queue` as an operator does; it must succeed.
func queueTool(t *testing.T, args ...string) string {
	t.Helper()
	out, complaint, code := ftfuse(t, append([]string{"queue"}, args...)...)
	if code != 0 {
		t.Fatalf("ftfuse queue %s: exit %d\n%s%s", strings.Join(args, " "), code, out, complaint)
	}
	return out
}

// What each role says over HTTP, for programs that scrape and for load balancers.
func TestMetricsAndHealthOfEveryRole(t *testing.T) {
	s := newSite(t)
	const http80 = 7480
	top := func(h *rig.Host) string { return fmt.Sprintf("http = { listen = %q }\n", h.Addr(http80)) }
	var g, a *rig.Host
	g = s.add("g1", "receive", func(h *rig.Host) string {
		return top(h) + fmt.Sprintf("[receive]\nlisten = %q\n[[receive.output]]\ndir = %q\n", h.Addr(port), h.Out())
	})
	a = s.add("a1", "relay", func(h *rig.Host) string {
		return top(h) + fmt.Sprintf("[relay]\nlisten = %q\n", h.Addr(port)) + group{mode: "any", primary: []*rig.Host{g}}.toml("relay")
	})
	src := s.add("s1", "mount", func(h *rig.Host) string {
		return top(h) + fmt.Sprintf("[mount]\npoint = %q\n", h.Point()) + group{mode: "any", primary: []*rig.Host{a}}.toml("mount")
	})
	s.aggs, s.relays, s.sources = []*rig.Host{g}, []*rig.Host{a}, []*rig.Host{src}
	s.start()
	sh(t, `echo hello >>"$1"`, filepath.Join(src.Point(), "a.log"))
	arrives(t, filepath.Join(g.Out(), "s1/a.log"), []byte("hello\n"))
	for _, h := range s.Hosts() {
		for _, path := range []string{"/healthz", "/readyz", "/metrics", "/"} {
			if code, text := get(t, h, http80, path); code != http.StatusOK {
				t.Errorf("%s of %s: %d %s", path, h.Name, code, text)
			}
		}
		_, text := get(t, h, http80, "/metrics")
		found := 0
		for line := range strings.Lines(text) {
			if name, _, _ := strings.Cut(line, "{"); strings.HasPrefix(name, "ftfuse_") && strings.Contains(name, "_total") {
				found++
			}
		}
		if found < 3 {
			t.Errorf("%s has %d counters named ftfuse_…_total:\n%s", h.Name, found, text)
		}
	}
	s.stop()
}

// get asks a host for a page, from its own network.
func get(t *testing.T, h *rig.Host, port int, path string) (int, string) {
	t.Helper()
	c := http.Client{Transport: &http.Transport{DialContext: dialFrom(h), DisableKeepAlives: true}, Timeout: patience}
	r, err := c.Get("http://" + h.Addr(port) + path)
	must(t, err)
	defer r.Body.Close()
	text, err := io.ReadAll(r.Body)
	must(t, err)
	return r.StatusCode, string(text)
}
