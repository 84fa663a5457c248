package transport

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"
)

// TestTooManyConnectionsOfOneAddress: one address cannot take the places of others.
func TestTooManyConnectionsOfOneAddress(t *testing.T) {
	s, ln := serve(t, ServerOptions{MaxConns: 10, MaxConnsPerAddress: 2, DeadAfter: time.Hour}, newTestHandler())
	rawClient(t, ln.Addr().String())
	rawClient(t, ln.Addr().String())
	src := newTestSource()
	pushMany(src, 1, 10)
	c := connect(t, ClientOptions{Address: ln.Addr().String(), DeadAfter: time.Hour}, src)
	await(t, nil, "being turned away", func() bool { return strings.Contains(c.Stats().LastError, "connections of 127.0.0.1 at most") })
	if s.Stats().TurnedAway == 0 {
		t.Error("not counted")
	}
	other := newTestSource()
	pushMany(other, 1, 10)
	connect(t, ClientOptions{Dial: dialFrom("127.0.0.2", ln.Addr().String()), Identity: Identity{Node: testNode(2)}}, other)
	other.awaitAcked(t, 1)
}

// dialFrom connects to addr from another address of this host.
func dialFrom(from, addr string) func(context.Context, string, string) (net.Conn, error) {
	return func(ctx context.Context, network, _ string) (net.Conn, error) {
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
		return d.DialContext(ctx, network, addr)
	}
}

// TestStrangersGiveWay: connections that do not finish their handshake cannot keep a good
// peer out, neither all places nor those of its own address; the oldest of them goes, and
// is told.
func TestStrangersGiveWay(t *testing.T) {
	for name, o := range map[string]ServerOptions{
		"in all":      {MaxConns: 5, MaxConnsPerAddress: 100},
		"per address": {MaxConns: 100, MaxConnsPerAddress: 5},
	} {
		t.Run(name, func(t *testing.T) {
			o.Handshake = time.Hour
			s, ln := serve(t, o, newTestHandler())
			var strangers []net.Conn
			for range 5 {
				nc, err := net.Dial("tcp", ln.Addr().String())
				if err != nil {
					t.Fatal(err)
				}
				defer nc.Close()
				strangers = append(strangers, nc)
			}
			await(t, nil, "five strangers", func() bool {
				s.mu.Lock()
				defer s.mu.Unlock()
				return len(s.places.conns) == 5
			})
			src := newTestSource()
			pushMany(src, 1, 10)
			connect(t, ClientOptions{Address: ln.Addr().String()}, src)
			src.awaitAcked(t, 1)
			if st := s.Stats(); st.Evicted != 1 || st.TurnedAway != 0 || len(st.Peers) != 1 {
				t.Errorf("%+v", st)
			}
			if err := strangers[0].SetReadDeadline(time.Now().Add(testLimit)); err != nil {
				t.Fatal(err)
			}
			fr := &frameReader{r: strangers[0], lim: limits{meta: maxMeta}}
			if bye, err := parseBye(awaitFrame(t, fr, typeBye)); err != nil || bye.Code != ByeTooMany {
				t.Errorf("the oldest was told %v %v", bye, err)
			}
			s.mu.Lock()
			defer s.mu.Unlock()
			if n, early := len(s.places.conns), s.places.early.Len(); n != 5 || early != 4 {
				t.Errorf("%d places taken, %d by strangers", n, early)
			}
		})
	}
}

// TestPlacesAreGivenBack: what places know is what there is, whatever ends in which order.
func TestPlacesAreGivenBack(t *testing.T) {
	s, ln := serve(t, ServerOptions{MaxConns: 8, MaxConnsPerAddress: 3, Handshake: 30 * time.Millisecond, Logger: discard}, newTestHandler())
	for i := range 200 {
		nc, err := dialFrom(fmt.Sprintf("127.0.0.%d", 2+i%5), ln.Addr().String())(t.Context(), "tcp", "")
		if err != nil {
			continue // turned away faster than connect returned
		}
		defer nc.Close()
		switch i % 3 {
		case 0:
			_, _ = nc.Write(okHello())
		case 1:
			nc.Close()
		}
	}
	await(t, nil, "all to be gone", func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return len(s.places.conns) == 0 && s.places.early.Len() == 0 && len(s.places.byAddress) == 0
	})
}

func TestAddressesAreCountedByNetwork(t *testing.T) {
	for addr, want := range map[string]string{
		"10.1.2.3:4":                   "10.1.2.3",
		"[::ffff:10.1.2.3]:4":          "10.1.2.3",
		"[2001:db8:1:2:3:4:5:6]:7":     "2001:db8:1:2::/64",
		"[fe80::1%eth0]:7":             "fe80::/64",
		"pipe":                         "",
		"/run/somewhere/a/unix.socket": "",
	} {
		if got := addressOf(fakeConn{addr: addr}); got != want {
			t.Errorf("%s is counted as %q, want %q", addr, got, want)
		}
	}
}

type fakeConn struct {
	net.Conn
	addr string
}

func (c fakeConn) RemoteAddr() net.Addr { return c }
func (c fakeConn) Network() string      { return "" }
func (c fakeConn) String() string       { return c.addr }

// loris is this test's binary run as a server that says on its standard input what it
// costs.
const loris = "FTFUSE_TEST_LORIS"

// runLoris serves, and answers each line of standard input with its resident memory.
func runLoris() {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	o := ServerOptions{Identity: Identity{Node: testNode(0xee)}, MaxConns: 4096}
	if os.Getenv(loris) == "defaults" {
		o.MaxConns = 0
	}
	if file := os.Getenv(loris + "_CERT"); file != "" {
		cert, err := tls.LoadX509KeyPair(file, file)
		if err != nil {
			panic(err)
		}
		o.TLS = func() *tls.Config {
			return &tls.Config{Certificates: []tls.Certificate{cert}, ClientAuth: tls.RequireAnyClientCert, MinVersion: tls.VersionTLS13}
		}
	}
	go func() { panic(NewServer(o, newTestHandler()).Serve(context.Background(), ln)) }()
	fmt.Println(ln.Addr())
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		fmt.Println(residentKiB())
	}
}

// residentKiB is VmRSS of this process.
func residentKiB() int {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		panic(err)
	}
	for line := range strings.Lines(string(status)) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "VmRSS:" {
			n, err := strconv.Atoi(f[1])
			if err != nil {
				panic(err)
			}
			return n
		}
	}
	panic("no VmRSS in /proc/self/status")
}

// TestSlowLoris: 2,000 peers of 40 addresses that say nothing, dribble their handshake,
// are idle behind it, or dribble a batch of 4 MiB behind it cost a server less than 64 MiB,
// and a good peer is served meanwhile; with the default limits too, where most of them
// find no place; and below TLS, where they dribble that handshake.
func TestSlowLoris(t *testing.T) {
	for _, limits := range []string{"room", "defaults", "tls"} {
		t.Run(limits, func(t *testing.T) {
			cmd := exec.Command(os.Args[0])
			cmd.Env = append(os.Environ(), loris+"="+limits)
			o := ClientOptions{Heartbeat: DefaultHeartbeat, DeadAfter: DefaultDeadAfter, Logger: discard}
			if limits == "tls" {
				cert := newTestCA(t).host("agg")
				cmd.Env = append(cmd.Env, loris+"_CERT="+writePEM(t, cert))
				o.TLS = func() *tls.Config {
					return &tls.Config{Certificates: []tls.Certificate{cert}, InsecureSkipVerify: true}
				}
			}
			in, err := cmd.StdinPipe()
			if err != nil {
				t.Fatal(err)
			}
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
			lines := bufio.NewScanner(out)
			ask := func() int {
				if _, err := fmt.Fprintln(in); err != nil {
					t.Fatal(err)
				}
				lines.Scan()
				n, err := strconv.Atoi(lines.Text())
				if err != nil {
					t.Fatal(err)
				}
				return n
			}
			lines.Scan()
			o.Address = lines.Text()
			serveOne(t, o, 1) // what the first connection costs is not the point
			before := ask()
			attackers := attack(t, o, 2000)
			most, slowest := before, time.Duration(0)
			for n := range 30 { // dribble while good peers come and go
				for i, nc := range attackers {
					dribble(nc, i, n, o.TLS != nil)
				}
				slowest = max(slowest, serveOne(t, o, byte(n+2)))
				most = max(most, ask())
			}
			t.Logf("%d KiB before, %d KiB at most; the slowest of 30 good peers took %v", before, most, slowest)
			if memoryCounts && most-before > 64<<10 {
				t.Errorf("%d KiB for 2,000 slow peers", most-before)
			}
			if slowest > 2*time.Second {
				t.Errorf("a good peer waited %v", slowest)
			}
		})
	}
}

// memoryCounts is false where what a process takes says nothing.
var memoryCounts = true

// attack makes connections from 40 addresses, a quarter of each kind of dribble.
func attack(t *testing.T, o ClientOptions, n int) []net.Conn {
	t.Helper()
	var all []net.Conn
	t.Cleanup(func() {
		for _, nc := range all {
			nc.Close()
		}
	})
	for i := range n {
		nc, err := dialFrom(fmt.Sprintf("127.0.1.%d", 1+i%40), o.Address)(t.Context(), "tcp", "")
		if err != nil {
			t.Fatalf("attacker %d: %v", i, err)
		}
		all = append(all, nc)
		if o.TLS != nil {
			// A record of 4 KiB with a ClientHello of as much, of which little comes.
			_, _ = nc.Write([]byte{22, 3, 1, 0x0f, 0xff, 1, 0, 0x0f, 0xfb})
			continue
		}
		if i%4 >= 2 {
			_, _ = nc.Write((&hello{minVersion: 1, maxVersion: 1, node: testNode(9), host: "h", role: "mount"}).append(nil, typeHello))
		}
		if i%4 == 3 { // announces a batch
			b := testBatch(testLane(9), 1, nil)
			head := appendBatch(nil, &b, testNode(9))
			_, _ = nc.Write(rawFrame(typeBatch, uint32(len(head)-frameHeaderSize), DefaultMaxData, head[frameHeaderSize:]))
		}
	}
	return all
}

// dribble sends the next byte or so, if there is a connection still.
func dribble(nc net.Conn, kind, step int, tls bool) {
	_ = nc.SetWriteDeadline(time.Now().Add(time.Second))
	if tls {
		_, _ = nc.Write(make([]byte, 100))
		return
	}
	switch kind % 4 {
	case 1:
		_, _ = nc.Write(okHello()[step : step+1])
	case 2:
		_, _ = nc.Write(appendToken(nil, typePing, 1))
	case 3:
		_, _ = nc.Write(make([]byte, 500))
	}
}

// serveOne has a good peer deliver one batch and returns how long that took.
func serveOne(t *testing.T, o ClientOptions, node byte) time.Duration {
	t.Helper()
	src := newTestSource()
	src.push(testBatch(testLane(node), 1, []byte("x")))
	start := time.Now()
	o.Identity = Identity{Node: testNode(node), Host: "good", Role: "mount"}
	_, stop := connectStoppable(t, o, src)
	src.awaitAcked(t, 1)
	took := time.Since(start)
	_ = stop()
	return took
}

// TestDribbledFramesEndTheConnection: a peer may be idle for ever, but not between two
// bytes of a frame; the time that a batch waits for the handler's hands to be free is not
// the peer's.
func TestDribbledFramesEndTheConnection(t *testing.T) {
	b := testBatch(testLane(1), 1, make([]byte, 1<<20))
	frame := append(appendBatch(nil, &b, testNode(9)), b.Data...)
	for name, c := range map[string]struct {
		frame []byte
		first int // bytes sent at once; then one by one
		ok    bool
	}{
		"fields":       {frame, 1, false},
		"batch":        {frame, len(frame) - len(b.Data), false},
		"half a batch": {frame[:len(frame)/2], len(frame) / 2, true}, // and then nothing: it has sent enough for a while
	} {
		t.Run(name, func(t *testing.T) {
			mine, theirs := net.Pipe()
			defer mine.Close()
			s := NewServer(ServerOptions{Identity: Identity{Node: testNode(0xee)}, Heartbeat: time.Hour, DeadAfter: time.Hour}, newTestHandler())
			s.grace = 20 * time.Millisecond
			sc, err := s.add(t.Context(), theirs)
			if err != nil {
				t.Fatal(err)
			}
			ended := make(chan struct{})
			go func() { sc.run(); close(ended) }()
			if err := mine.SetDeadline(time.Now().Add(testLimit)); err != nil {
				t.Fatal(err)
			}
			if _, err := mine.Write(okHello()); err != nil {
				t.Fatal(err)
			}
			fr := &frameReader{r: mine, lim: limits{meta: maxMeta}}
			awaitFrame(t, fr, typeWelcome)
			byes := make(chan *ByeError, 1)
			go func() {
				h, meta, err := fr.next()
				if err == nil && h.kind == typeBye {
					bye, _ := parseBye(meta)
					byes <- bye
				}
				close(byes)
			}()
			tick := time.NewTicker(time.Millisecond)
			defer tick.Stop()
			_, err = mine.Write(c.frame[:c.first])
			for at := c.first; err == nil && at < len(c.frame); at++ {
				_, err = mine.Write(c.frame[at : at+1])
				<-tick.C
			}
			if c.ok {
				select {
				case bye := <-byes:
					t.Errorf("ended with %v", bye)
				case <-time.After(5 * s.grace): // nothing is to happen
				}
				mine.Close()
			} else if bye := <-byes; bye == nil || bye.Code != ByeTimeout {
				t.Errorf("ended with %v", bye)
			}
			mine.Close()
			<-ended
		})
	}
}

// writePEM writes a certificate and its key to a file.
func writePEM(t *testing.T, cert tls.Certificate) string {
	t.Helper()
	key, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Certificate[0]})
	text = append(text, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key})...)
	path := t.TempDir() + "/cert.pem"
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestWaitingForTheHandlerIsNotSlow: the time that a batch waits because others are in
// the handler's hands is not its peer's.
func TestWaitingForTheHandlerIsNotSlow(t *testing.T) {
	mine, theirs := net.Pipe()
	defer mine.Close()
	h := &hoarder{replies: make(chan func(Verdict), 10)}
	s := NewServer(ServerOptions{Identity: Identity{Node: testNode(0xee)}, Heartbeat: time.Hour, DeadAfter: time.Hour, MaxPending: 1}, h)
	s.grace = 20 * time.Millisecond
	sc, err := s.add(t.Context(), theirs)
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { sc.run(); close(ended) }()
	defer func() { mine.Close(); <-ended }()
	if err := mine.SetDeadline(time.Now().Add(testLimit)); err != nil {
		t.Fatal(err)
	}
	if _, err := mine.Write(okHello()); err != nil {
		t.Fatal(err)
	}
	fr := &frameReader{r: mine, lim: limits{meta: maxMeta}}
	awaitFrame(t, fr, typeWelcome)
	frame := func(n uint64) []byte {
		b := testBatch(testLane(1), n, make([]byte, 2*firstPiece))
		return append(appendBatch(nil, &b, testNode(9)), b.Data...)
	}
	if _, err := mine.Write(frame(1)); err != nil {
		t.Fatal(err)
	}
	reply := <-h.replies
	second := frame(2)
	if _, err := mine.Write(second[:len(second)-firstPiece]); err != nil { // what the server reads before it waits
		t.Fatal(err)
	}
	<-time.After(15 * s.grace) // at 4 KiB/s it would have to be there long since
	reply(Verdict{Code: Taken})
	awaitFrame(t, fr, typeAck)
	if _, err := mine.Write(second[len(second)-firstPiece:]); err != nil {
		t.Fatal(err)
	}
	select {
	case <-h.replies:
	case <-ended:
		t.Fatal("the connection was ended")
	}
	if _, err := mine.Write(appendToken(nil, typePing, 1)); err != nil {
		t.Fatal(err)
	}
	awaitFrame(t, fr, typePong)
}
