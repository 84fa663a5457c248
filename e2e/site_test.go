package e2e

import (
	"fmt"
	"strconv"
	"strings"
	"testing"

	"ftfuse/bench/rig"
)

// port is where every relay and receiver of a site listens: each has an address of its own.
const port = 7400

// siteLoad is the file that the writers of a source append to, unless a test says otherwise.
const siteLoad = "load.log"

// site is a network of real roles, see rig.Site.
type site struct {
	*rig.Site
	t       *testing.T
	sources []*rig.Host
	relays  []*rig.Host
	aggs    []*rig.Host
	files   []string // that the writers of each source append to
}

// newSite is a network without hosts. It is gone after the test, however that ends.
func newSite(t *testing.T) *site {
	t.Helper()
	needRoot(t)
	need(t, "ip", "nft")
	s, err := rig.NewSite(bin, t.TempDir(), roleLog(t))
	must(t, err)
	return watchSite(t, s)
}

// watchSite logs what the roles said if the test fails, and ends them and their network.
func watchSite(t *testing.T, s *rig.Site) *site {
	t.Cleanup(func() {
		s.Close()
		if !t.Failed() {
			return
		}
		for _, h := range s.Hosts() {
			if h.Role != nil {
				lines := h.Role.Log()
				t.Logf("log of %s (%s):\n  %s", h.Name, h.Kind, strings.Join(lines[max(0, len(lines)-25):], "\n  "))
			}
		}
	})
	return &site{Site: s, t: t, files: []string{siteLoad}}
}

// needLinks skips what needs links that can be cut.
func (s *site) needLinks() {
	s.t.Helper()
	if !s.Linked() {
		s.t.Skip("needs network namespaces, veth and bridges in the kernel")
	}
}

// group is one [[….forward]] table.
type group struct {
	name, mode         string
	primary, secondary []*rig.Host
	more               string // further keys
}

func addresses(hosts []*rig.Host) string {
	quoted := make([]string, len(hosts))
	for i, h := range hosts {
		quoted[i] = strconv.Quote(h.Addr(port))
	}
	return "[" + strings.Join(quoted, ", ") + "]"
}

// toml is the group as a table of the role.
func (g group) toml(role string) string {
	text := fmt.Sprintf("[[%s.forward]]\nmode = %q\nprimary = %s\nfailback_after = \"1s\"\n%s\n", role, g.mode, addresses(g.primary), g.more)
	if g.name != "" {
		text += fmt.Sprintf("name = %q\n", g.name)
	}
	if len(g.secondary) > 0 {
		text += "secondary = " + addresses(g.secondary) + "\n"
	}
	return text
}

func forwards(role string, groups []group) string {
	var text strings.Builder
	for _, g := range groups {
		text.WriteString(g.toml(role))
	}
	return text.String()
}

func (s *site) add(name, kind string, config func(h *rig.Host) string) *rig.Host {
	s.t.Helper()
	h, err := s.Add(name)
	must(s.t, err)
	if h.Kind = kind; config != nil {
		h.Config = func() string { return config(h) }
	}
	return h
}

// source adds a host that mounts; queue is put into [mount.queue].
func (s *site) source(name, queue string, groups ...group) *rig.Host {
	s.t.Helper()
	h := s.add(name, "mount", func(h *rig.Host) string {
		return fmt.Sprintf("[mount]\npoint = %q\n[mount.queue]\n%s\n%s", h.Point(), queue, forwards("mount", groups))
	})
	s.sources = append(s.sources, h)
	return h
}

// relay adds a host that passes on.
func (s *site) relay(name, queue string, groups ...group) *rig.Host {
	s.t.Helper()
	h := s.add(name, "relay", func(h *rig.Host) string {
		return fmt.Sprintf("[relay]\nlisten = %q\n[relay.queue]\n%s\n%s", h.Addr(port), queue, forwards("relay", groups))
	})
	s.relays = append(s.relays, h)
	return h
}

// agg adds a host that writes lines to files, each behind the name of its batch.
func (s *site) agg(name string) *rig.Host {
	s.t.Helper()
	h := s.add(name, "receive", func(h *rig.Host) string {
		return fmt.Sprintf("[receive]\nlisten = %q\n[[receive.output]]\ndir = %q\nformat = \"%%N %%L\"\n", h.Addr(port), h.Out())
	})
	s.aggs = append(s.aggs, h)
	return h
}

// start starts every role, the last of the way first.
func (s *site) start() {
	s.t.Helper()
	hosts := s.Hosts()
	for _, kind := range []string{"receive", "relay", "mount"} {
		for i := len(hosts) - 1; i >= 0; i-- {
			if hosts[i].Kind == kind {
				must(s.t, hosts[i].Start(s.t.Context()))
			}
		}
	}
}

// stop stops every role, the first of the way first; each must exit with 0.
func (s *site) stop() {
	s.t.Helper()
	for _, hosts := range [][]*rig.Host{s.sources, s.relays, s.aggs} {
		for _, h := range hosts {
			must(s.t, h.Stop())
		}
	}
}
