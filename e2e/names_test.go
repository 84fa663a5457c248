package e2e

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/net/dns/dnsmessage"

	"ftfuse/bench/rig"
	"ftfuse/bench/tally"
)

// nameServer is a small DNS server on a host of a site. Its answers can be changed.
type nameServer struct {
	conn net.PacketConn
	done chan struct{}

	mu       sync.Mutex
	services map[string][]dnsmessage.SRVResource
	hosts    map[string][]*rig.Host
}

func startNameServer(t *testing.T, on *rig.Host) *nameServer {
	t.Helper()
	n := &nameServer{done: make(chan struct{}), services: map[string][]dnsmessage.SRVResource{}, hosts: map[string][]*rig.Host{}}
	must(t, on.Do(func() (err error) {
		n.conn, err = net.ListenPacket("udp", on.Addr(53))
		return err
	}))
	go n.serve()
	t.Cleanup(func() { n.conn.Close(); <-n.done })
	return n
}

func (n *nameServer) serve() {
	defer close(n.done)
	buf := make([]byte, 4096)
	for {
		size, from, err := n.conn.ReadFrom(buf)
		if err != nil {
			return
		}
		if reply, err := n.answer(buf[:size]); err == nil {
			_, _ = n.conn.WriteTo(reply, from) // lost: asked again
		}
	}
}

func (n *nameServer) answer(query []byte) ([]byte, error) {
	var m dnsmessage.Message
	if err := m.Unpack(query); err != nil || len(m.Questions) != 1 {
		return nil, fmt.Errorf("a query that this server does not know: %w", err)
	}
	q := m.Questions[0]
	name := strings.TrimSuffix(q.Name.String(), ".")
	head := dnsmessage.ResourceHeader{Name: q.Name, Class: dnsmessage.ClassINET, TTL: 1}
	m.Response, m.Authoritative, m.Additionals = true, true, nil
	n.mu.Lock()
	defer n.mu.Unlock()
	switch q.Type {
	case dnsmessage.TypeSRV:
		for _, s := range n.services[name] {
			m.Answers = append(m.Answers, dnsmessage.Resource{Header: head, Body: &s})
		}
	case dnsmessage.TypeA:
		for _, h := range n.hosts[name] {
			m.Answers = append(m.Answers, dnsmessage.Resource{Header: head, Body: &dnsmessage.AResource{A: [4]byte(net.ParseIP(h.IP).To4())}})
		}
	}
	if len(n.services[name])+len(n.hosts[name]) == 0 {
		m.RCode = dnsmessage.RCodeNameError
	}
	return m.Pack()
}

// set changes what a name stands for.
func (n *nameServer) set(name string, hosts []*rig.Host, services ...dnsmessage.SRVResource) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.hosts[name], n.services[name] = hosts, services
}

// A relay finds its destinations by DNS: the service with the lowest priority is used, the
// other while that one is away, and a host that moves to another address is found there.
func TestServiceNamesAreLookedUp(t *testing.T) {
	s := newSite(t)
	s.needLinks()
	dns := s.add("dns", "", nil)
	g1, g2, g3 := s.agg("g1"), s.agg("g2"), s.agg("g3")
	const service = "_ftfuse._tcp.example.org"
	n := startNameServer(t, dns)
	n.set("g1.example.org", []*rig.Host{g1})
	n.set("g2.example.org", []*rig.Host{g2})
	n.set(service, nil,
		dnsmessage.SRVResource{Priority: 20, Weight: 1, Port: port, Target: dnsmessage.MustNewName("g2.example.org.")},
		dnsmessage.SRVResource{Priority: 10, Weight: 1, Port: port, Target: dnsmessage.MustNewName("g1.example.org.")})
	a := s.add("a1", "relay", func(h *rig.Host) string {
		return fmt.Sprintf("[relay]\nlisten = %q\n[[relay.forward]]\nprimary = [\"srv+%s\"]\nfailback_after = \"1s\"\n", h.Addr(port), service)
	})
	s.relays = []*rig.Host{a}
	a.Resolv = filepath.Join(s.Dir, "resolv.conf")
	must(t, os.WriteFile(a.Resolv, fmt.Appendf(nil, "nameserver %s\noptions timeout:1 attempts:1\n", dns.IP), 0o644))
	s.source("s1", "", group{mode: "any", primary: []*rig.Host{a}})
	for _, h := range []*rig.Host{g1, g2, a, s.sources[0]} {
		must(t, h.Start(t.Context()))
	}
	f := s.startFlow(1, rig.Job{Size: 64, Lines: tally.MaxLines, Rate: 1000})
	grows(t, outFile(g1, s.sources[0]), 10_000)
	if st, err := os.Stat(outFile(g2, s.sources[0])); err == nil {
		t.Errorf("the service with the higher priority value got %d bytes while the other was there", st.Size())
	}
	must(t, g1.Kill())
	grows(t, outFile(g2, s.sources[0]), 10_000)
	must(t, g3.Start(t.Context()))
	n.set("g1.example.org", []*rig.Host{g3}) // g1 has moved
	grows(t, outFile(g3, s.sources[0]), 10_000)
	must(t, g1.Start(t.Context()))
	f.finish()
	f.settle(false)
	s.stop()
	v, err := f.count()
	must(t, err)
	f.exact(v, false)
	must(t, s.flagged(v))
}
