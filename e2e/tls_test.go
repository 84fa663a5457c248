package e2e

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"ftfuse/bench/rig"
	"ftfuse/internal/batch"
	"ftfuse/internal/certs"
	"ftfuse/transport"
)

// authority is a CA and the certificates it made, with the command that operators use.
type authority struct {
	t   *testing.T
	dir string
}

func newAuthority(t *testing.T, name string) authority {
	t.Helper()
	a := authority{t, filepath.Join(t.TempDir(), name)}
	must(t, os.Mkdir(a.dir, 0o700))
	a.run("cert", "ca", "--dir", a.dir)
	return a
}

func (a authority) run(args ...string) {
	a.t.Helper()
	if out, complaint, code := ftfuse(a.t, args...); code != 0 {
		a.t.Fatalf("ftfuse %s: exit %d\n%s%s", strings.Join(args, " "), code, out, complaint)
	}
}

// issue makes a certificate; the first name is that of its files.
func (a authority) issue(names ...string) {
	a.t.Helper()
	a.run("cert", "host", "--dir", a.dir, strings.Join(names, ","))
}

func (a authority) file(name string) string { return filepath.Join(a.dir, name+".pem") }

// toml is the key `tls` of a host with a certificate.
func (a authority) toml(name string) string {
	return fmt.Sprintf("tls = { cert = %q, key = %q, ca = %q }\n", a.file(name), a.file(name+"-key"), a.file("ca"))
}

// client is how a peer with a certificate connects; with the name "" it shows none.
func (a authority) client(name string) func() *tls.Config {
	a.t.Helper()
	if name != "" {
		s, err := certs.Open(a.file(name), a.file(name+"-key"), a.file("ca"))
		must(a.t, err)
		return s.Client
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(read(a.t, a.file("ca")))
	return func() *tls.Config { return &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS13} }
}

// claim is a peer that sends a batch, and whether it may.
type claim struct {
	name           string
	tls            func() *tls.Config
	hello, role    string
	envelope, host string // of the batch and of the record in it
	taken          bool
}

// claims are the right combinations and every kind of wrong one.
func claims(good, other authority) []claim {
	stolen := func() *tls.Config { // the right CA's clients are asked for, another's is shown
		c := good.client("")().Clone()
		c.Certificates = other.client("web-01")().Certificates
		c.GetClientCertificate = other.client("web-01")().GetClientCertificate
		return c
	}
	return []claim{
		{"a source for itself", good.client("web-01"), "web-01", "mount", "web-01", "web-01", true},
		{"a relay for its set", good.client("relay-1"), "relay-1", "relay", "web-07", "web-07", true},
		{"a source as another", good.client("web-01"), "web-02", "mount", "web-02", "web-02", false},
		{"a source with another's batch", good.client("web-01"), "web-01", "mount", "web-02", "web-02", false},
		{"a source as a relay", good.client("web-01"), "relay-1", "relay", "web-02", "web-02", false},
		{"a relay beyond its set", good.client("relay-1"), "relay-1", "relay", "db-01", "db-01", false},
		{"one who is not listed", good.client("stranger"), "stranger", "mount", "stranger", "stranger", false},
		{"one who is not listed, as another", good.client("stranger"), "web-01", "mount", "web-01", "web-01", false},
		{"another CA's certificate", stolen, "web-01", "mount", "web-01", "web-01", false},
		{"no certificate", good.client(""), "web-01", "mount", "web-01", "web-01", false},
		{"no TLS", nil, "web-01", "mount", "web-01", "web-01", false},
	}
}

// try sends the claim's batch to dst, behind which g is the end, and looks what became of it.
func (c claim) try(t *testing.T, from, dst, g *rig.Host) {
	line := strings.ReplaceAll(c.name, " ", "-") + "-" + dst.Name
	b := sealedLine(t, batch.ID{Lane: newLane(), N: 1}, c.host, line, line+"\n")
	b.Host = c.envelope
	p := startPeer(t, from, dst, peerOptions{host: c.hello, role: c.role, tls: c.tls, batches: []batch.Sealed{b}})
	var v transport.Verdict
	eventually(t, patience, func() error {
		var ok bool
		if v, ok = p.verdict(b.ID, 0); !ok && p.client.Stats().Failures == 0 {
			return errors.New("neither a verdict nor the end of the connection")
		} else if !ok {
			v = transport.Verdict{Code: transport.Denied, Text: p.client.Stats().LastError}
		}
		return nil
	})
	out := filepath.Join(g.Out(), c.host, line)
	if c.taken {
		if v.Code != transport.Taken {
			t.Fatalf("refused: %v", v)
		}
		arrives(t, out, []byte(line+"\n"))
		return
	}
	p.wait()
	if v.Code != transport.Denied {
		t.Errorf("%v, want %v", v, transport.Denied)
	}
	if _, err := os.Stat(out); err == nil {
		t.Errorf("%s was written", out)
	}
}

// Every wrong combination of certificate, peer and host is refused, by a relay and by a
// receiver, and leaves nothing behind; the right ones go through.
func TestNobodySpeaksForAnother(t *testing.T) {
	good, other := newAuthority(t, "good"), newAuthority(t, "other")
	for _, name := range []string{"web-01", "relay-1", "stranger"} {
		good.issue(name)
	}
	other.issue("web-01")
	const allow = "allow = { \"relay-*\" = [\"web-*\"], \"web-*\" = [\"@self\"] }\n"

	s := newSite(t)
	var g, a *rig.Host
	g = s.add("g1", "receive", func(h *rig.Host) string {
		return good.toml("g1") + fmt.Sprintf("[receive]\nlisten = %q\nallow = { \"a1\" = [\"*\"], \"relay-*\" = [\"web-*\"], \"web-*\" = [\"@self\"] }\n[[receive.output]]\ndir = %q\n", h.Addr(port), h.Out())
	})
	a = s.add("a1", "relay", func(h *rig.Host) string {
		return good.toml("a1") + fmt.Sprintf("[relay]\nlisten = %q\n", h.Addr(port)) + allow + group{mode: "any", primary: []*rig.Host{g}}.toml("relay")
	})
	away := s.add("away", "", nil)
	good.issue("g1", g.IP)
	good.issue("a1", a.IP)
	s.aggs, s.relays = []*rig.Host{g}, []*rig.Host{a}
	s.start()

	for _, c := range claims(good, other) {
		for _, dst := range []*rig.Host{a, g} {
			t.Run(c.name+" to "+dst.Kind, func(t *testing.T) { c.try(t, away, dst, g) })
		}
	}
	for _, h := range []*rig.Host{a, g} {
		if p := statusOf(t, h).Peers; p == nil || p.Denied < 4 || p.Failed < 2 {
			t.Errorf("%s counts %+v, want at least 4 denied and 2 failed handshakes", h.Name, p)
		}
	}
	s.stop()
}

// A source sends nothing to a receiver whose certificate is not for the address it has, and
// a certificate that is replaced is used without a restart.
func TestSourceKnowsItsReceiver(t *testing.T) {
	good := newAuthority(t, "good")
	s := newSite(t)
	g := s.add("g1", "receive", func(h *rig.Host) string {
		return good.toml("g1") + fmt.Sprintf("[receive]\nlisten = %q\n[[receive.output]]\ndir = %q\n", h.Addr(port), h.Out())
	})
	src := s.add("s1", "mount", func(h *rig.Host) string {
		return good.toml("s1") + fmt.Sprintf("[mount]\npoint = %q\n", h.Point()) + group{mode: "any", primary: []*rig.Host{g}}.toml("mount")
	})
	s.aggs, s.sources = []*rig.Host{g}, []*rig.Host{src}
	good.issue("g1", "10.77.0.99") // somebody else's address
	good.issue("s1", src.IP)
	s.start()
	sh(t, `echo hello >>"$1"`, filepath.Join(src.Point(), "a.log"))
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	_, err := src.Role.WaitLog(ctx, "certificate")
	must(t, err)
	out := filepath.Join(g.Out(), "s1", "a.log")
	if text := read(t, out); len(text) > 0 {
		t.Fatalf("%s has %q although the receiver could not prove who it is", out, text)
	}
	good.run("cert", "host", "--dir", good.dir, "--replace", "g1,"+g.IP)
	arrives(t, out, []byte("hello\n"))
	s.stop()
}
