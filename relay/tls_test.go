package relay

import (
	"crypto/tls"
	"net"
	"testing"
	"time"

	"ftfuse/config"
	"ftfuse/internal/batch"
	"ftfuse/internal/certs"
	"ftfuse/transport"
)

// site makes certificates of one CA.
type site struct {
	t   *testing.T
	dir string
}

func newSite(t *testing.T) site {
	t.Helper()
	s := site{t, t.TempDir()}
	_, err := certs.MakeCA(s.dir, "test", time.Hour)
	must(t, err)
	return s
}

// host makes the certificate of a host, good for addr too.
func (s site) host(name string, addr string) config.TLS {
	s.t.Helper()
	names := []string{name}
	if addr != "" {
		ip, _, err := net.SplitHostPort(addr)
		must(s.t, err)
		names = append(names, ip)
	}
	m, err := certs.MakeHost(s.dir, s.dir, names, time.Hour, true)
	must(s.t, err)
	return config.TLS{Cert: m.Cert, Key: m.Key, CA: s.dir + "/ca.pem"}
}

func (s site) open(c config.TLS) *certs.Store {
	s.t.Helper()
	store, err := certs.Open(c.Cert, c.Key, c.CA)
	must(s.t, err)
	return store
}

// secure gives a and a relay before it certificates; allow is the aggregator's list.
func (s site) secure(a *aggregator, r *setup, allow map[string][]string) {
	s.t.Helper()
	a.stop()
	admission, err := transport.NewAdmission(allow)
	must(s.t, err)
	a.tls, a.admission = s.open(s.host("aggregator", a.addr)).Server, admission
	a.start()
	r.TLS = s.host("relay", r.Listen)
}

// TestARelaySpeaksForWhomItIsAllowedTo: both ways over TLS.
func TestARelaySpeaksForWhomItIsAllowedTo(t *testing.T) {
	a, site := newAggregator(t, 9), newSite(t)
	s := newSetup(t, a)
	site.secure(a, &s, map[string][]string{"relay": {"h"}})
	x := start(t, s)
	f := newFeeder(1)
	f.tls = site.open(site.host("h", "")).Client
	f.connect(t, s.Listen)
	f.add("f", "one")
	f.expect(t, "acks and finals", func() bool { return f.allAcked() && f.allFinal() })
	if p := x.r.status().Peers; len(p.Connections) != 1 || p.Denied != 0 || !x.r.status().TLS {
		t.Errorf("peers %+v", p)
	}
	x.end()
	a.check(f)
}

// TestWhoMayNotSpeakIsRefused: at the relay, by connection and by batch.
func TestWhoMayNotSpeakIsRefused(t *testing.T) {
	a, site := newAggregator(t, 9), newSite(t)
	s := newSetup(t, a)
	site.secure(a, &s, map[string][]string{"relay": {"*"}})
	s.Allow = map[string][]string{"h": {"@self"}, "other": {"other"}}
	x := start(t, s)
	deny := func(f *feeder, what string, denied func() bool) {
		t.Helper()
		stop := f.connect(t, s.Listen)
		waitFor(t, what, denied)
		stop()
		f.Lock()
		defer f.Unlock()
		if len(f.acked) != 0 {
			t.Errorf("%s: %d batches were acked", what, len(f.acked))
		}
	}
	stats := func() transport.ServerStats { return x.r.server.Stats() }

	plain := newFeeder(1)
	plain.add("f", "over plain TCP")
	deny(plain, "plain TCP", func() bool { return stats().Failed > 0 })

	foreign := newFeeder(2)
	foreign.tls = newSite(t).clientOf("h")
	foreign.add("f", "by another CA")
	failed := stats().Failed
	deny(foreign, "a certificate of another CA", func() bool { return stats().Failed > failed })

	wrong := newFeeder(3) // calls itself h
	wrong.tls = site.clientOf("other")
	wrong.add("f", "as somebody else")
	deny(wrong, "a peer with another's name", func() bool { return stats().Denied > 0 })

	unlisted := newFeeder(4)
	unlisted.tls = site.clientOf("stranger")
	unlisted.add("f", "not listed")
	denied := stats().Denied
	deny(unlisted, "a peer that is not in the list", func() bool { return stats().Denied > denied })

	lying := newFeeder(5)
	lying.tls = site.clientOf("h")
	b := lying.seal("victim", "f", "for somebody else\n")
	lying.send(b)
	deny(lying, "a batch of another host", func() bool { return stats().DeniedData == 1 })

	honest := newFeeder(6)
	honest.tls = site.clientOf("h")
	honest.connect(t, s.Listen)
	honest.add("f", "mine")
	honest.expect(t, "acks and finals", func() bool { return honest.allAcked() && honest.allFinal() })
	x.end()
	a.check(honest)
}

// TestNobodySwallowsAnothersBatches: a horizon makes duplicates of all that is below it.
// Another host's is not believed, neither before the lane's first batch nor after it; and a
// batch that claims the lane first makes the victim's refused, so that it labels them anew.
func TestNobodySwallowsAnothersBatches(t *testing.T) {
	a, site := newAggregator(t, 9), newSite(t)
	s := newSetup(t, a)
	site.secure(a, &s, map[string][]string{"relay": {"*"}})
	x := start(t, s)
	newEvil := func(lane batch.Lane) *feeder {
		evil := newFeeder(66)
		evil.tls, evil.host, evil.says = site.clientOf("evil"), "evil", 100
		evil.lane = lane
		evil.connect(t, s.Listen)
		return evil
	}
	victim := newFeeder(1)
	victim.tls = site.clientOf("h")
	newEvil(victim.lane)
	waitFor(t, "the evil one", func() bool { return len(x.r.server.Stats().Peers) == 1 })
	victim.connect(t, s.Listen)
	victim.add("f", "one")
	victim.expect(t, "acks and finals", func() bool { return victim.allAcked() && victim.allFinal() })
	newEvil(victim.lane)
	waitFor(t, "the second evil one", func() bool { return len(x.r.server.Stats().Peers) == 3 })
	for range 5 {
		victim.add("f", "more")
	}
	victim.expect(t, "acks and finals", func() bool { return victim.allAcked() && victim.allFinal() })
	if n := x.r.Stats().Duplicates; n != 0 {
		t.Errorf("%d batches of the victim were taken for duplicates", n)
	}

	a.check(victim)

	claimed := newFeeder(2)
	claimed.tls = site.clientOf("h")
	evil := newEvil(claimed.lane)
	b := evil.seal("evil", "f", "mine\n")
	b.ID.N = 200
	evil.send(b)
	evil.expect(t, "an ack", evil.allAcked)
	claimed.connect(t, s.Listen)
	claimed.add("f", "one")
	claimed.expect(t, "a refusal", func() bool { return len(claimed.refused) == 1 && claimed.refused[0].Code == transport.Conflict })
	x.end()
}

func (s site) clientOf(name string) func() *tls.Config { return s.open(s.host(name, "")).Client }

// TestARelayThatMayNotSpeakKeepsTheBatch: until the list of the next node is mended.
func TestARelayThatMayNotSpeakKeepsTheBatch(t *testing.T) {
	a, site := newAggregator(t, 9), newSite(t)
	s := newSetup(t, a)
	site.secure(a, &s, map[string][]string{"relay": {"@self"}})
	x := start(t, s)
	f := newFeeder(1)
	f.tls = site.clientOf("h")
	f.connect(t, s.Listen)
	f.add("f", "one")
	f.expect(t, "a hop ack", f.allAcked)
	waitFor(t, "the refusal", func() bool { return a.server.Stats().DeniedData > 0 })
	a.Lock()
	if len(a.taken) != 0 {
		t.Error("the aggregator took it")
	}
	a.Unlock()
	site.secure(a, &s, map[string][]string{"relay": {"h"}})
	f.expect(t, "final acks", f.allFinal)
	x.end()
	a.check(f)
}
