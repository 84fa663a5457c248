package transport

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"io"
	"log/slog"
	"math/big"
	"net"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"ftfuse/internal/batch"
)

// testCA signs certificates for tests.
type testCA struct {
	t    testing.TB
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pool *x509.CertPool
}

func newTestCA(t testing.TB) *testCA {
	t.Helper()
	ca := &testCA{t: t, pool: x509.NewCertPool()}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test CA"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	ca.key = newKey(t)
	der, err := x509.CreateCertificate(rand.Reader, template, template, &ca.key.PublicKey, ca.key)
	if err != nil {
		t.Fatal(err)
	}
	if ca.cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	ca.pool.AddCert(ca.cert)
	return ca
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// host makes a certificate for a host; change may alter it before it is signed.
func (ca *testCA) host(name string, change ...func(*x509.Certificate)) tls.Certificate {
	ca.t.Helper()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(2), DNSNames: []string{name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	for _, f := range change {
		f(template)
	}
	key := newKey(ca.t)
	der, err := x509.CreateCertificate(rand.Reader, template, ca.cert, &key.PublicKey, ca.key)
	if err != nil {
		ca.t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// mutual is what a node with certificate cert uses.
func (ca *testCA) mutual(cert tls.Certificate) func() *tls.Config {
	cfg := &tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{cert}, RootCAs: ca.pool, ClientCAs: ca.pool,
		ClientAuth: tls.RequireAndVerifyClientCert, SessionTicketsDisabled: true,
	}
	return func() *tls.Config { return cfg }
}

// dialTo connects to addr, whatever the address is called.
func dialTo(addr string) func(context.Context, string, string) (net.Conn, error) {
	return func(ctx context.Context, network, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, addr)
	}
}

// TestImpersonation is the matrix of certificates, host names and batches: what fits is
// taken, and everything else is refused with a reason, and never reaches the handler.
func TestImpersonation(t *testing.T) {
	ca, other := newTestCA(t), newTestCA(t)
	lists := map[string]map[string][]string{
		"no list": nil,
		"list":    {"relay-*": {"web-*", "db-01"}, "web-01*": {OwnNames}, "odd": {}},
		"for all": {"*": {"*"}},
		"nobody":  {},
	}
	serverOnly := func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }
	over := func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) }
	onlyCN := func(c *x509.Certificate) { c.DNSNames, c.Subject.CommonName = nil, "Web-01" }
	noName := func(c *x509.Certificate) { c.DNSNames = nil }
	twoNames := func(c *x509.Certificate) { c.DNSNames = []string{"relay-a", "web-09"} }
	wild := func(c *x509.Certificate) { c.DNSNames = []string{"*"} }
	const refusedTLS, refusedPeer, refusedBatch, taken = "tls", "peer", "batch", "taken"
	for name, c := range map[string]struct {
		list   string
		cert   *tls.Certificate // nil: none at all
		host   string           // of HELLO
		sealed string           // host of the batch
		want   string
	}{
		"own host":                             {"no list", certOf(ca.host("web-01")), "web-01", "web-01", taken},
		"own host, other case":                 {"no list", certOf(ca.host("WEB-01")), "web-01", "Web-01", taken},
		"own host by common name":              {"no list", certOf(ca.host("", onlyCN)), "web-01", "web-01", taken},
		"another's batch":                      {"no list", certOf(ca.host("web-01")), "web-01", "web-02", refusedBatch},
		"a batch of nobody":                    {"no list", certOf(ca.host("web-01")), "web-01", "", refusedBatch},
		"another's name":                       {"no list", certOf(ca.host("web-02")), "web-01", "web-01", refusedPeer},
		"a longer name":                        {"no list", certOf(ca.host("web-01.example.org")), "web-01", "web-01", refusedPeer},
		"a name of nobody":                     {"no list", certOf(ca.host("web-01")), "", "web-01", refusedPeer},
		"a certificate without a name":         {"no list", certOf(ca.host("", noName)), "web-01", "web-01", refusedPeer},
		"a certificate for everything":         {"no list", certOf(ca.host("", wild)), "web-01", "web-01", refusedPeer},
		"an unlisted relay":                    {"no list", certOf(ca.host("relay-a")), "relay-a", "web-01", refusedBatch},
		"another CA":                           {"no list", certOf(other.host("web-01")), "web-01", "web-01", refusedTLS},
		"no certificate":                       {"no list", nil, "web-01", "web-01", refusedTLS},
		"a certificate that is over":           {"no list", certOf(ca.host("web-01", over)), "web-01", "web-01", refusedTLS},
		"a certificate not for clients":        {"no list", certOf(ca.host("web-01", serverOnly)), "web-01", "web-01", refusedTLS},
		"a relay for its set":                  {"list", certOf(ca.host("relay-a")), "relay-a", "web-77", taken},
		"a relay for a single host":            {"list", certOf(ca.host("relay-a")), "relay-a", "db-01", taken},
		"a relay for itself":                   {"list", certOf(ca.host("relay-a")), "relay-a", "relay-a", taken},
		"a relay beyond its set":               {"list", certOf(ca.host("relay-a")), "relay-a", "db-02", refusedBatch},
		"a relay by one of two names":          {"list", certOf(ca.host("", twoNames)), "web-09", "web-33", taken},
		"a relay that calls itself a source":   {"list", certOf(ca.host("relay-a")), "db-02", "web-01", refusedPeer},
		"a listed source":                      {"list", certOf(ca.host("web-01")), "web-01", "web-01", taken},
		"a listed source for another":          {"list", certOf(ca.host("web-01")), "web-01", "web-010", refusedBatch},
		"a source listed with nobody":          {"list", certOf(ca.host("odd")), "odd", "odd", taken},
		"an unlisted source":                   {"list", certOf(ca.host("db-01")), "db-01", "db-01", refusedPeer},
		"@self is no host":                     {"list", certOf(ca.host("web-01")), "@self", "web-01", refusedPeer},
		"everybody for everybody":              {"for all", certOf(ca.host("x")), "y.example.org", "z", taken},
		"everybody, but of another CA":         {"for all", certOf(other.host("x")), "x", "x", refusedTLS},
		"everybody, but without a certificate": {"for all", nil, "x", "x", refusedTLS},
		"nobody at all":                        {"nobody", certOf(ca.host("web-01")), "web-01", "web-01", refusedPeer},
	} {
		t.Run(name, func(t *testing.T) {
			a, err := NewAdmission(lists[c.list])
			if err != nil {
				t.Fatal(err)
			}
			h, src := newTestHandler(), newTestSource()
			s, ln := serve(t, ServerOptions{TLS: ca.mutual(ca.host("agg")), Admission: func() *Admission { return a }}, h)
			b := testBatch(testLane(1), 1, []byte("x"))
			b.Host = c.sealed
			src.push(b)
			cert := tls.Certificate{}
			if c.cert != nil {
				cert = *c.cert
			}
			cfg := ca.mutual(cert)
			if c.cert == nil {
				cfg = func() *tls.Config { return &tls.Config{RootCAs: ca.pool} }
			}
			var last atomic.Pointer[StateChange]
			connect(t, ClientOptions{
				Address: "agg:1", Dial: dialTo(ln.Addr().String()), TLS: cfg, Identity: Identity{Node: testNode(1), Host: c.host, Role: "mount"},
				OnState: func(ch StateChange) {
					if ch.State == StateWaiting {
						last.CompareAndSwap(nil, &ch)
					}
				},
			}, src)
			switch c.want {
			case taken:
				src.awaitAcked(t, 1)
				if peers := s.Stats().Peers; len(peers) != 1 || len(peers[0].Peer.Names) == 0 {
					t.Errorf("peers %+v", peers)
				}
				return
			case refusedBatch:
				var v Verdict
				await(t, src.changed, "a refusal", func() bool {
					src.mu.Lock()
					defer src.mu.Unlock()
					v = src.refused[1]
					return v.Code != 0
				})
				if v.Code != Denied || !strings.Contains(v.Text, c.sealed) {
					t.Errorf("refused with %+v", v)
				}
				if st := s.Stats(); st.DeniedData != 1 || st.Peers[0].Denied != 1 {
					t.Errorf("stats %+v", st)
				}
			case refusedPeer:
				await(t, nil, "the end of the connection", func() bool { return last.Load() != nil })
				var bye *ByeError
				if ch := last.Load(); ch.Why != WhyBye || !errors.As(ch.Err, &bye) || bye.Code != ByeDenied || !strings.Contains(bye.Text, "certificate") {
					t.Errorf("ended with %v %v", ch.Why, ch.Err)
				}
				if st := s.Stats(); st.Denied == 0 {
					t.Errorf("stats %+v", st)
				}
			case refusedTLS:
				await(t, nil, "the end of the connection", func() bool { return last.Load() != nil })
				if ch := last.Load(); ch.Why != WhyTLS {
					t.Errorf("ended with %v %v", ch.Why, ch.Err)
				}
			}
			if n := len(h.batches()); n != 0 || len(src.acked) != 0 {
				t.Errorf("%d batches were taken", n)
			}
		})
	}
}

func certOf(c tls.Certificate) *tls.Certificate { return &c }

// TestServerImpersonation: a client sends nothing to a server whose certificate is not
// for the name that it was called by.
func TestServerImpersonation(t *testing.T) {
	ca, other := newTestCA(t), newTestCA(t)
	clientOnly := func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} }
	byIP := func(c *x509.Certificate) { c.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 1)} }
	for name, c := range map[string]struct {
		address string
		cert    tls.Certificate
		good    bool
	}{
		"right":        {"agg:1", ca.host("agg"), true},
		"by address":   {"127.0.0.1:1", ca.host("agg", byIP), true},
		"other name":   {"agg:1", ca.host("web-01"), false},
		"other CA":     {"agg:1", other.host("agg"), false},
		"not a server": {"agg:1", ca.host("agg", clientOnly), false},
		"not by IP":    {"127.0.0.1:1", ca.host("agg"), false},
	} {
		t.Run(name, func(t *testing.T) {
			h, src := newTestHandler(), newTestSource()
			_, ln := serve(t, ServerOptions{TLS: ca.mutual(c.cert)}, h)
			pushMany(src, 1, 10)
			cl := connect(t, ClientOptions{Address: c.address, Dial: dialTo(ln.Addr().String()), TLS: ca.mutual(ca.host("web-01"))}, src)
			if c.good {
				src.awaitAcked(t, 1)
				return
			}
			await(t, nil, "a failure", func() bool { return cl.Stats().Failures > 0 })
			if st := cl.Stats(); st.Connects != 0 || len(h.batches()) != 0 {
				t.Errorf("%+v", st)
			}
		})
	}
}

// TestPlainPeersAndTLS: neither side talks to one that lacks TLS, or has it when it is not
// wanted, and both say what is wrong.
func TestPlainPeersAndTLS(t *testing.T) {
	ca := newTestCA(t)
	t.Run("plain client", func(t *testing.T) {
		h, src := newTestHandler(), newTestSource()
		_, ln := serve(t, ServerOptions{TLS: ca.mutual(ca.host("agg"))}, h)
		pushMany(src, 1, 10)
		cl := connect(t, ClientOptions{Address: ln.Addr().String()}, src)
		await(t, nil, "a failure", func() bool { return cl.Stats().Failures > 0 })
		if cl.Stats().Connects != 0 || len(h.batches()) != 0 {
			t.Errorf("%+v", cl.Stats())
		}
	})
	t.Run("plain server", func(t *testing.T) {
		h, src := newTestHandler(), newTestSource()
		_, ln := serve(t, ServerOptions{}, h)
		pushMany(src, 1, 10)
		var why atomic.Value
		connect(t, ClientOptions{
			Address: "agg:1", Dial: dialTo(ln.Addr().String()), TLS: ca.mutual(ca.host("web-01")),
			OnState: func(ch StateChange) {
				if ch.State == StateWaiting {
					why.Store(ch.Why)
				}
			},
		}, src)
		await(t, nil, "a failure", func() bool { return why.Load() != nil })
		if why.Load() != WhyTLS || len(h.batches()) != 0 {
			t.Errorf("ended with %v", why.Load())
		}
	})
}

// TestCertificatesAndListChange: a new connection uses what the functions return by then,
// and a list that changes counts for the connections that there are.
func TestCertificatesAndListChange(t *testing.T) {
	ca, next := newTestCA(t), newTestCA(t)
	h, src := newTestHandler(), newTestSource()
	var serverTLS, clientTLS atomic.Pointer[tls.Config]
	serverTLS.Store(ca.mutual(ca.host("agg"))())
	clientTLS.Store(ca.mutual(ca.host("web-01"))())
	var list atomic.Pointer[Admission]
	self, err := NewAdmission(nil)
	if err != nil {
		t.Fatal(err)
	}
	list.Store(self)
	s, ln := serve(t, ServerOptions{TLS: serverTLS.Load, Admission: list.Load}, h)
	p := newProxy(t, ln.Addr().String(), nil)
	cl := connect(t, ClientOptions{Address: "agg:1", Dial: dialTo(p.addr()), TLS: clientTLS.Load}, src)
	push := func(n uint64) {
		b := testBatch(testLane(1), n, []byte("x"))
		b.Host = "web-01"
		src.push(b)
	}
	push(1)
	src.awaitAcked(t, 1)

	nobody, err := NewAdmission(map[string][]string{})
	if err != nil {
		t.Fatal(err)
	}
	list.Store(nobody)
	push(2)
	await(t, src.changed, "a refusal", func() bool { return cl.Stats().Refused == 1 })
	list.Store(self)
	push(3)
	src.awaitAcked(t, 2)

	serverTLS.Store(next.mutual(next.host("agg"))())
	clientTLS.Store(next.mutual(next.host("web-01"))())
	p.cutAll()
	push(4)
	src.awaitAcked(t, 3)
	if st := s.Stats(); cl.Stats().Connects != 2 || len(st.Peers) != 1 {
		t.Errorf("%+v", cl.Stats())
	}
}

// TestEarlyBytesAreBounded: a peer that is not known yet cannot make the server read on
// and on.
func TestEarlyBytesAreBounded(t *testing.T) {
	ca := newTestCA(t)
	log := make(logLines, 100)
	_, ln := serve(t, ServerOptions{TLS: ca.mutual(ca.host("agg")), Logger: slog.New(slog.NewTextHandler(log, nil))}, newTestHandler())
	nc, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	if err := nc.SetDeadline(time.Now().Add(testLimit)); err != nil {
		t.Fatal(err)
	}
	// A ClientHello that goes on for ever: records of 4 KiB, one message of 64 KiB.
	record := make([]byte, 5+1<<12)
	copy(record, []byte{22, 3, 1, 1 << 4, 0, 1, 0, 0xff, 0xff})
	sent := 0
	for {
		n, err := nc.Write(record)
		sent += n
		if err != nil {
			if errors.Is(err, os.ErrDeadlineExceeded) {
				t.Fatalf("the server took %d bytes and let go of nothing", sent)
			}
			break
		}
		copy(record, []byte{22, 3, 1, 1 << 4, 0, 0, 0, 0, 0})
	}
	if line := <-log; !strings.Contains(line, "more than 32768 bytes before the handshake") {
		t.Errorf("the server took up to %d bytes, and said %s", sent, line)
	}
}

// TestLongFirstRecordIsRefused before there is room made for it.
func TestLongFirstRecordIsRefused(t *testing.T) {
	ca := newTestCA(t)
	log := make(logLines, 100)
	_, ln := serve(t, ServerOptions{TLS: ca.mutual(ca.host("agg")), Logger: slog.New(slog.NewTextHandler(log, nil))}, newTestHandler())
	nc, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	for _, part := range [][]byte{{22, 3}, {1, 0x10, 0x01}} {
		if _, err := nc.Write(part); err != nil {
			t.Fatal(err)
		}
	}
	if line := <-log; !strings.Contains(line, "record of 4097 bytes") {
		t.Errorf("said %s", line)
	}
}

// logLines is a log that a test reads line by line.
type logLines chan string

func (l logLines) Write(p []byte) (int, error) {
	l <- string(p)
	return len(p), nil
}

// TestAdmissionRefusesBadLists: what cannot mean anything is an error at once.
func TestAdmissionRefusesBadLists(t *testing.T) {
	for name, allow := range map[string]map[string][]string{
		"empty name": {"": {"*"}}, "bad name": {"a[": {"*"}}, "empty host": {"a": {""}}, "bad host": {"a": {"b["}},
	} {
		if _, err := NewAdmission(allow); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
	var everybody *Admission
	if everybody.Peer(Peer{}) != nil || !everybody.May(Peer{}, "x") {
		t.Error("no admission at all is to admit everybody")
	}
}

// TestSenderMustBeThePeer: a batch says last which node it comes from, and that is the one
// of the handshake.
func TestSenderMustBeThePeer(t *testing.T) {
	h := newTestHandler()
	_, ln := serve(t, ServerOptions{}, h)
	nc, fr := rawClient(t, ln.Addr().String()) // node 1
	b := testBatch(testLane(1), 1, []byte("x"))
	if _, err := nc.Write(append(appendBatch(nil, &b, testNode(2)), b.Data...)); err != nil {
		t.Fatal(err)
	}
	if id, v, err := parseRefuse(awaitFrame(t, fr, typeRefuse)); err != nil || id != b.ID || v.Code != Denied {
		t.Errorf("%v %+v %v, want Denied", id, v, err)
	}
	b.Via = nil
	frame := appendBatch(nil, &b, testNode(1))
	meta := frame[frameHeaderSize : len(frame)-batch.NodeSize-1]
	meta[batch.IDSize+26] = 0 // no node at all, then no host
	meta = append(meta, 0)
	if _, err := nc.Write(append(rawFrame(typeBatch, uint32(len(meta)), 1, meta), b.Data...)); err != nil {
		t.Fatal(err)
	}
	if _, v, err := parseRefuse(awaitFrame(t, fr, typeRefuse)); err != nil || v.Code != Denied {
		t.Errorf("%+v %v, want Denied", v, err)
	}
	if len(h.batches()) != 0 {
		t.Error("taken")
	}
	nc.Close()
	_, _ = io.Copy(io.Discard, nc)
}
