package transport

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"ftfuse/internal/dest"
)

// dnsServer is a small name server over UDP.
type dnsServer struct {
	pc net.PacketConn

	mu    sync.Mutex
	srv   map[string][]dnsmessage.SRVResource
	a     map[string][]string
	fail  bool // answers SERVFAIL
	mute  bool // answers nothing
	asked map[string]int
}

func newDNS(t testing.TB) *dnsServer {
	t.Helper()
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	d := &dnsServer{pc: pc, srv: make(map[string][]dnsmessage.SRVResource), a: make(map[string][]string), asked: make(map[string]int)}
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 1500)
		for {
			n, from, err := pc.ReadFrom(buf)
			if err != nil {
				return
			}
			if answer := d.answer(buf[:n]); answer != nil {
				_, _ = pc.WriteTo(answer, from)
			}
		}
	}()
	t.Cleanup(func() { pc.Close(); <-done })
	return d
}

// resolver asks d and nobody else.
func (d *dnsServer) resolver() *Resolver {
	return &Resolver{Net: &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "udp", d.pc.LocalAddr().String())
	}}}
}

func (d *dnsServer) change(f func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	f()
}

func (d *dnsServer) answer(p []byte) []byte {
	d.mu.Lock()
	defer d.mu.Unlock()
	var parser dnsmessage.Parser
	head, err := parser.Start(p)
	if err != nil {
		return nil
	}
	q, err := parser.Question()
	if err != nil {
		return nil
	}
	name := strings.ToLower(strings.TrimSuffix(q.Name.String(), "."))
	d.asked[name]++
	if d.mute {
		return nil
	}
	m := dnsmessage.Message{
		Header:    dnsmessage.Header{ID: head.ID, Response: true, Authoritative: true, RecursionAvailable: true},
		Questions: []dnsmessage.Question{q},
	}
	rh := dnsmessage.ResourceHeader{Name: q.Name, Class: dnsmessage.ClassINET, TTL: 1}
	switch {
	case d.fail:
		m.RCode = dnsmessage.RCodeServerFailure
	case q.Type == dnsmessage.TypeSRV:
		for _, s := range d.srv[name] {
			m.Answers = append(m.Answers, dnsmessage.Resource{Header: rh, Body: &s})
		}
	case q.Type == dnsmessage.TypeA:
		for _, a := range d.a[name] {
			m.Answers = append(m.Answers, dnsmessage.Resource{Header: rh, Body: &dnsmessage.AResource{A: netip.MustParseAddr(a).As4()}})
		}
	}
	if len(m.Answers) == 0 && m.RCode == 0 && q.Type != dnsmessage.TypeAAAA {
		m.RCode = dnsmessage.RCodeNameError
	}
	out, err := m.Pack()
	if err != nil {
		return nil
	}
	return out
}

func srv(host string, port, priority, weight uint16) dnsmessage.SRVResource {
	return dnsmessage.SRVResource{Target: dnsmessage.MustNewName(host + "."), Port: port, Priority: priority, Weight: weight}
}

func parse(t testing.TB, text string) dest.Destination {
	t.Helper()
	d, err := dest.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// TestServiceTargets: SRV records become hosts by priority and weight, the same order for
// everybody; the lowest priority value is primary.
func TestServiceTargets(t *testing.T) {
	d := newDNS(t)
	service := parse(t, "srv+_ftfuse._tcp.example.org")
	d.change(func() {
		d.srv["_ftfuse._tcp.example.org"] = []dnsmessage.SRVResource{
			srv("spare.example.org", 7400, 20, 100), srv("B.example.org", 7400, 10, 5), srv("a.example.org", 7400, 10, 5),
			srv("heavy.example.org", 7401, 10, 60), srv("a.example.org", 7400, 10, 5),
		}
		d.srv["_none._tcp.example.org"] = []dnsmessage.SRVResource{srv("", 0, 0, 0)} // "." says: not here
	})
	r := d.resolver()
	want := []Target{
		{"heavy.example.org", 7401, 10, 60}, {"a.example.org", 7400, 10, 5}, {"b.example.org", 7400, 10, 5}, {"spare.example.org", 7400, 20, 100},
	}
	for range 5 { // the DNS and the library may shuffle
		got, err := r.Targets(t.Context(), service)
		if err != nil || !slices.Equal(got, want) {
			t.Fatalf("%v, %v", got, err)
		}
	}
	primary, secondary := Tiers(want)
	if len(primary) != 3 || len(secondary) != 1 || secondary[0].Address() != "spare.example.org:7400" {
		t.Errorf("primary %v, secondary %v", primary, secondary)
	}
	if p, s := Tiers(nil); len(p)+len(s) != 0 {
		t.Errorf("%v %v of nothing", p, s)
	}
	for _, none := range []string{"srv+_none._tcp.example.org", "srv+_ftfuse._tcp.nowhere.example.org"} {
		if got, err := r.Targets(t.Context(), parse(t, none)); !errors.Is(err, ErrName) || got != nil {
			t.Errorf("%s: %v, %v", none, got, err)
		}
	}
	if got, err := r.Targets(t.Context(), parse(t, "[::1]:7400")); err != nil || len(got) != 1 || got[0].Address() != "[::1]:7400" {
		t.Errorf("an address: %v, %v", got, err)
	}
}

// TestDNSThatFailsChangesNothing: what was known once stays known while the name server
// does not answer, and what it says later counts.
func TestDNSThatFailsChangesNothing(t *testing.T) {
	d := newDNS(t)
	service := parse(t, "srv+_ftfuse._tcp.example.org")
	set := func(host string) func() {
		return func() {
			d.fail = false
			d.srv["_ftfuse._tcp.example.org"] = []dnsmessage.SRVResource{srv(host, 1, 1, 1)}
		}
	}
	r := d.resolver()
	d.change(func() { d.fail = true })
	if _, err := r.Targets(t.Context(), service); !errors.Is(err, ErrName) {
		t.Errorf("never looked up: %v", err)
	}
	d.change(set("a.example.org"))
	for _, step := range []struct {
		change func()
		want   string
	}{{func() {}, "a.example.org"}, {func() { d.fail = true }, "a.example.org"}, {set("b.example.org"), "b.example.org"}} {
		d.change(step.change)
		got, err := r.Targets(t.Context(), service)
		if err != nil || len(got) != 1 || got[0].Host != step.want {
			t.Errorf("%v, %v; want %s", got, err, step.want)
		}
	}
}

// TestDNSThatHangsStopsNoConnection: an old answer is used while there is time to connect.
func TestDNSThatHangsStopsNoConnection(t *testing.T) {
	d := newDNS(t)
	d.change(func() { d.a["agg.test"] = []string{"127.0.0.1"} })
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	_, port, _ := net.SplitHostPort(ln.Addr().String())
	r := d.resolver()
	dial := func() error {
		ctx, cancel := context.WithTimeout(t.Context(), DefaultDial)
		defer cancel()
		nc, err := (&dialer{r: r}).dial(ctx, "tcp", "agg.test.:"+port)
		if err == nil {
			nc.Close()
		}
		return err
	}
	if err := dial(); err != nil {
		t.Fatal(err)
	}
	d.change(func() { d.mute = true })
	if err := dial(); err != nil {
		t.Errorf("a name server that hangs stops a connection to an address that is known: %v", err)
	}
}

// TestAddressesAreTriedInTurn: of a name with several addresses those that do not answer
// are passed over; the one that answered goes first the next time, and the name is looked
// up again at each reconnect.
func TestAddressesAreTriedInTurn(t *testing.T) {
	d := newDNS(t)
	h, src := newTestHandler(), newTestSource()
	ln, err := net.Listen("tcp", "127.0.0.3:0")
	if err != nil {
		t.Fatal(err)
	}
	first := serveOn(t, ln, ServerOptions{}, h)
	_, port, _ := net.SplitHostPort(ln.Addr().String())
	d.change(func() { d.a["relay.example.org"] = []string{"127.0.0.2", "127.0.0.3", "127.0.0.4"} })
	var connects atomic.Pointer[Peer]
	connect(t, ClientOptions{Address: "relay.example.org:" + port, Resolver: d.resolver(), OnConnect: func(p Peer) { connects.Store(&p) }}, src)
	pushMany(src, 1, 10)
	src.awaitAcked(t, 1)
	if p := connects.Load(); !strings.HasPrefix(p.Addr, "127.0.0.3:") {
		t.Errorf("connected to %v", p)
	}
	d.mu.Lock()
	before := d.asked["relay.example.org"]
	d.mu.Unlock()

	// Another address takes over.
	ln5, err := net.Listen("tcp", "127.0.0.5:"+port)
	if err != nil {
		t.Skip("the port is taken on 127.0.0.5:", err)
	}
	d.change(func() { d.a["relay.example.org"] = []string{"127.0.0.2", "127.0.0.5"} })
	serveOn(t, ln5, ServerOptions{Identity: Identity{Node: testNode(0xef), Host: "other"}}, h)
	if err := first.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	src.push(testBatch(testLane(1), 2, []byte("x")))
	src.awaitAcked(t, 2)
	d.mu.Lock()
	defer d.mu.Unlock()
	if p := connects.Load(); !strings.HasPrefix(p.Addr, "127.0.0.5:") || d.asked["relay.example.org"] == before {
		t.Errorf("connected to %v, asked %d times, %d before", p, d.asked["relay.example.org"], before)
	}
}

// TestTheAddressThatAnsweredGoesFirst the next time.
func TestTheAddressThatAnsweredGoesFirst(t *testing.T) {
	d := newDNS(t)
	second, err := net.Listen("tcp", "127.0.0.3:0")
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close()
	_, port, _ := net.SplitHostPort(second.Addr().String())
	d.change(func() { d.a["relay.example.org"] = []string{"127.0.0.2", "127.0.0.3"} })
	dl := &dialer{r: d.resolver()}
	for range 3 {
		nc, err := dl.dial(t.Context(), "tcp", "relay.example.org:"+port)
		if err != nil {
			t.Fatal(err)
		}
		nc.Close()
		if got := nc.RemoteAddr().String(); got != second.Addr().String() {
			t.Fatalf("connected to %v", got)
		}
		first, err := net.Listen("tcp", "127.0.0.2:"+port) // from now on both listen
		if err == nil {
			defer first.Close()
		}
	}
}

// TestSilentAddressDelaysLittle: an address that does not even refuse costs a quarter of a
// second, not the time for a connection.
func TestSilentAddressDelaysLittle(t *testing.T) {
	good, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer good.Close()
	_, port, _ := net.SplitHostPort(good.Addr().String())
	// 192.0.2.1 is of TEST-NET-1 (RFC 5737): nobody answers, or there is no route.
	ctx, cancel := context.WithTimeout(t.Context(), testLimit)
	defer cancel()
	start := time.Now()
	nc, used, err := dialFirst(ctx, "tcp", []string{"192.0.2.1", "127.0.0.1"}, port)
	if err != nil {
		t.Fatal(err)
	}
	nc.Close()
	if took := time.Since(start); used != "127.0.0.1" || took > 2*time.Second {
		t.Errorf("%s after %v", used, took)
	}
	if _, _, err := dialFirst(ctx, "tcp", []string{"127.0.0.9", "127.0.0.8"}, port); err == nil || !strings.Contains(err.Error(), "127.0.0.9") || !strings.Contains(err.Error(), "127.0.0.8") {
		t.Errorf("nobody there: %v", err)
	}
}
