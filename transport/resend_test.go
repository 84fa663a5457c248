package transport

import (
	"bufio"
	"bytes"
	"context"
	"encoding/hex"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"ftfuse/internal/batch"
)

// TestReconnectsLoseAndDoubleNothing cuts the connection at random bytes of either
// direction, over and over. Every batch arrives, in order of its first arrival, and is
// acked once; what was sent before says so.
func TestReconnectsLoseAndDoubleNothing(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	var mu sync.Mutex
	limit := make(map[int]int64)
	mangle := func(conn int, up bool, offset int64, p []byte) (int, bool) {
		mu.Lock()
		defer mu.Unlock()
		key := conn * 2
		if up {
			key++
		}
		if _, ok := limit[key]; !ok {
			limit[key] = rng.Int64N(400_000)
			if !up {
				limit[key] = 100 + rng.Int64N(3000)
			}
		}
		if left := limit[key] - offset; left < int64(len(p)) {
			return int(max(left, 0)), true
		}
		return len(p), false
	}
	h, src := newTestHandler(), newTestSource()
	unmarked := make(map[uint64]int) // copies without FlagResent: only the first may be one
	h.before = func(_ context.Context, b batch.Sealed) *Verdict {
		mu.Lock()
		defer mu.Unlock()
		if b.Flags&batch.FlagResent == 0 {
			unmarked[b.ID.N]++
		}
		return nil
	}
	_, ln := serve(t, ServerOptions{}, h)
	p := newProxy(t, ln.Addr().String(), mangle)
	const n = 2000
	for i := range n {
		data := make([]byte, 1+rng.IntN(20_000))
		data[0] = byte(i)
		src.push(testBatch(testLane(1), uint64(i+1), data))
	}
	c := connect(t, ClientOptions{Address: p.addr(), Window: 300_000, MinWait: time.Millisecond, MaxWait: 2 * time.Millisecond}, src)
	src.awaitAcked(t, n)
	checkInOrder(t, h, n)
	for seq := uint64(1); seq <= n; seq++ {
		if src.acked[seq] != 1 {
			t.Errorf("seq %d acked %d times", seq, src.acked[seq])
		}
	}
	st := c.Stats()
	t.Logf("%d connections, %d of %d batches resent", st.Connects, st.Resent, st.Sent)
	if st.Connects < 20 || st.Resent == 0 {
		t.Errorf("only %d connections and %d resent: the test cut too little", st.Connects, st.Resent)
	}
	if st.InFlight != 0 || st.InFlightBytes != 0 {
		t.Errorf("in flight in the end: %+v", st)
	}
	mu.Lock()
	defer mu.Unlock()
	for id, copies := range unmarked {
		if copies > 1 {
			t.Errorf("batch %d came %d times without FlagResent", id, copies)
		}
	}
}

// TestDamagedOnTheWay: a flipped byte inside a batch is refused, not acked, and the
// batch sent again; a flipped byte in a frame's header or fields ends the connection.
func TestDamagedOnTheWay(t *testing.T) {
	const fields = frameHeaderSize + batch.IDSize + 27 + batch.NodeSize + 1 // no host
	hello := int64(len((&hello{host: "web-01", role: "mount", product: "test"}).append(nil, typeHello)))
	for name, c := range map[string]struct {
		at       int64
		connects uint64
	}{
		"data":   {hello + fields + 1000, 2},
		"length": {hello + 5, 2},
		"id":     {hello + frameHeaderSize + 3, 2},
	} {
		t.Run(name, func(t *testing.T) {
			h, src := newTestHandler(), newTestSource()
			_, ln := serve(t, ServerOptions{}, h)
			p := newProxy(t, ln.Addr().String(), func(conn int, up bool, offset int64, b []byte) (int, bool) {
				if i := c.at - offset; conn == 1 && up && i >= 0 && i < int64(len(b)) {
					b[i] ^= 0x10
				}
				return len(b), false
			})
			pushMany(src, 3, 5000)
			cl := connect(t, ClientOptions{Address: p.addr()}, src)
			src.awaitAcked(t, 3)
			if st := cl.Stats(); st.Connects != c.connects || st.Resent == 0 || st.Refused != 0 {
				t.Errorf("%+v, want %d connections", st, c.connects)
			}
			checkInOrder(t, h, 3)
			for _, b := range h.batches() {
				if batch.Checksum(b.Data) != b.CRC {
					t.Error("a damaged batch was taken")
				}
			}
		})
	}
}

// TestNothingOvertakesARefusedBatch: what stands in the connection behind a batch that its
// sender will send again is not taken, however far it has come already. (A handler refused
// one as busy because its connection was ending, and took the next, which had been read.)
func TestNothingOvertakesARefusedBatch(t *testing.T) {
	lane := testLane(1)
	for name, second := range map[string]batch.Sealed{
		"busy":    testBatch(lane, 2, []byte("two")),
		"bad crc": {ID: batch.ID{Lane: lane, N: 2}, CRC: 1, Records: 1, Data: []byte("two")},
	} {
		t.Run(name, func(t *testing.T) {
			h := newTestHandler()
			h.before = func(_ context.Context, b batch.Sealed) *Verdict {
				if b.ID.N == 2 {
					return &Verdict{Code: Busy, Text: "the connection ends"}
				}
				return nil
			}
			_, ln := serve(t, ServerOptions{}, h)
			nc, fr := rawClient(t, ln.Addr().String())
			var frames []byte
			for _, b := range []batch.Sealed{testBatch(lane, 1, []byte("one")), second, testBatch(lane, 3, []byte("three"))} {
				frames = append(appendBatch(frames, &b, testNode(1)), b.Data...)
			}
			if _, err := nc.Write(frames); err != nil {
				t.Fatal(err)
			}
			for n := uint64(2); n <= 3; n++ {
				id, v, err := parseRefuse(awaitFrame(t, fr, typeRefuse))
				if err != nil || id.N != n || n == 3 && v.Code != Busy {
					t.Errorf("refused %v %v %v, want batch %d", id, v, err, n)
				}
			}
			checkInOrder(t, h, 1)
		})
	}
}

// TestRefusals: what each verdict means to the sender.
func TestRefusals(t *testing.T) {
	h, src := newTestHandler(), newTestSource()
	verdicts := map[uint64]Code{3: Version, 4: Conflict, 5: Denied, 6: Busy}
	var mu sync.Mutex
	h.before = func(_ context.Context, b batch.Sealed) *Verdict {
		mu.Lock()
		defer mu.Unlock()
		if code := verdicts[b.ID.N]; code != Taken {
			if code == Busy {
				delete(verdicts, b.ID.N) // the next time it is welcome
			}
			return &Verdict{code, "because " + strings.Repeat("x", 300)}
		}
		return nil
	}
	_, ln := serve(t, ServerOptions{MaxData: 1 << 20}, h)
	lane := testLane(1)
	bad := testBatch(lane, 2, []byte("damaged at home"))
	bad.CRC++
	loop := testBatch(lane, 7, []byte("was there"))
	loop.Via = []batch.Node{testNode(0xee)}
	long := testBatch(lane, 8, []byte("came far"))
	long.Via = make([]batch.Node, maxVia)
	src.push(testBatch(lane, 1, []byte("good")), bad)
	for n := uint64(3); n <= 6; n++ {
		src.push(testBatch(lane, n, []byte("x")))
	}
	src.push(loop, long, testBatch(lane, 9, make([]byte, 1<<20+1)), testBatch(lane, 10, []byte("good")))
	c := connect(t, ClientOptions{Address: ln.Addr().String()}, src)
	src.awaitAcked(t, 3) // 1, 6 after Busy, 10
	await(t, src.changed, "the refusals", func() bool { return c.Stats().Refused >= 7 && c.Stats().InFlight == 0 })
	src.mu.Lock()
	defer src.mu.Unlock()
	for seq, want := range map[uint64]Code{2: BadCRC, 3: Version, 4: Conflict, 5: Denied, 7: Loop, 8: Loop, 9: TooLarge} {
		if v, ok := src.refused[seq]; !ok || v.Code != want || v.Text == "" || src.acked[seq] != 0 {
			t.Errorf("batch %d: refused %v %v, acked %d; want %v", seq, ok, v, src.acked[seq], want)
		}
	}
	for _, seq := range []uint64{1, 6, 10} {
		if src.acked[seq] != 1 {
			t.Errorf("batch %d acked %d times", seq, src.acked[seq])
		}
	}
	if st := c.Stats(); st.Connects < 2 {
		t.Errorf("Busy did not end the connection: %+v", st)
	}
}

// TestBusyPeerIsProbed: while a peer is busy, a reconnect costs one batch, not the whole
// window; in the end all arrive in order.
func TestBusyPeerIsProbed(t *testing.T) {
	h, src := newTestHandler(), newTestSource()
	var busy atomic.Int64
	busy.Store(10)
	var calls atomic.Int64
	h.before = func(_ context.Context, b batch.Sealed) *Verdict {
		calls.Add(1)
		if busy.Load() > 0 && b.ID.N == 1 {
			busy.Add(-1)
			return &Verdict{Code: Busy}
		}
		if busy.Load() > 0 {
			return &Verdict{Code: Busy}
		}
		return nil
	}
	_, ln := serve(t, ServerOptions{}, h)
	pushMany(src, 200, 1000)
	connect(t, ClientOptions{Address: ln.Addr().String(), MinWait: time.Millisecond, MaxWait: time.Millisecond}, src)
	src.awaitAcked(t, 200)
	checkInOrder(t, h, 200)
	if n := calls.Load(); n > 200+200+10 { // the first connection, the probes, the last connection
		t.Errorf("the handler was called %d times for 200 batches and 10 refusals", n)
	}
}

// TestLoopIsRefusedByTheServer too, for a sender that does not look.
func TestLoopIsRefusedByTheServer(t *testing.T) {
	_, ln := serve(t, ServerOptions{}, newTestHandler())
	nc, fr := rawClient(t, ln.Addr().String())
	b := testBatch(testLane(1), 1, []byte("x"))
	b.Via = []batch.Node{testNode(0xee)}
	b.CRC++ // it is not even looked at
	if _, err := nc.Write(append(appendBatch(nil, &b, testNode(1)), b.Data...)); err != nil {
		t.Fatal(err)
	}
	id, v, err := parseRefuse(awaitFrame(t, fr, typeRefuse))
	if err != nil || id != b.ID || v.Code != Loop {
		t.Errorf("%v %+v %v, want Loop", id, v, err)
	}
}

// serverProcess is this test's binary run as a server that keeps what it took in a
// file: the handler's durable delivered set.
const serverProcess = "FTFUSE_TEST_SERVER"

func TestMain(m *testing.M) {
	if file := os.Getenv(serverProcess); file != "" {
		runServerProcess(file)
		return
	}
	if os.Getenv(loris) != "" {
		runLoris()
		return
	}
	os.Exit(m.Run())
}

// fileHandler appends a line for each batch it takes, by one write, before it replies.
type fileHandler struct {
	mu   sync.Mutex
	f    *os.File
	seen map[string]bool
}

func (h *fileHandler) Batch(_ context.Context, _ Peer, b batch.Sealed, reply func(Verdict)) {
	h.mu.Lock()
	defer h.mu.Unlock()
	line := b.ID.String() + " " + hex.EncodeToString(b.Data[:8]) + "\n"
	if h.seen[line] {
		reply(Verdict{Code: Duplicate})
		return
	}
	if _, err := h.f.WriteString(line); err != nil {
		panic(err)
	}
	h.seen[line] = true
	reply(Verdict{Code: Taken})
}
func (h *fileHandler) Horizon(Peer, batch.Lane, uint64, bool) {}
func (h *fileHandler) Skip(Peer, batch.Lane, []Skip)          {}

func runServerProcess(file string) {
	f, err := os.OpenFile(file, os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		panic(err)
	}
	h := &fileHandler{f: f, seen: make(map[string]bool)}
	for sc := bufio.NewScanner(f); sc.Scan(); {
		h.seen[sc.Text()+"\n"] = true
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	fmt.Println(ln.Addr())
	s := NewServer(ServerOptions{Identity: Identity{Node: testNode(0xee)}}, h)
	panic(s.Serve(context.Background(), ln))
}

// TestKillServerLosesAndDoublesNothing kills the server process with SIGKILL again and
// again while the client sends. In the end the file has every batch once, in order.
func TestKillServerLosesAndDoublesNothing(t *testing.T) {
	file := t.TempDir() + "/taken"
	var address struct {
		sync.Mutex
		s string
	}
	start := func() *exec.Cmd {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), serverProcess+"="+file)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		line, err := bufio.NewReader(out).ReadString('\n')
		if err != nil {
			t.Fatal(err)
		}
		address.Lock()
		address.s = strings.TrimSpace(line)
		address.Unlock()
		return cmd
	}
	const n, kills = 6000, 12
	src := newTestSource()
	for i := range n {
		data := bytes.Repeat([]byte{byte(i), byte(i >> 8)}, 2000)
		src.push(testBatch(testLane(1), uint64(i+1), data))
	}
	cmd := start()
	c := connect(t, ClientOptions{Window: 1 << 18, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		address.Lock()
		defer address.Unlock()
		return new(net.Dialer).DialContext(ctx, network, address.s)
	}}, src)
	for k := range kills {
		src.awaitAcked(t, n*(k+1)/(kills+1))
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		cmd = start()
	}
	src.awaitAcked(t, n)
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	got, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSuffix(string(got), "\n"), "\n")
	if len(lines) != n {
		t.Fatalf("%d batches in the file, want %d", len(lines), n)
	}
	for i, line := range lines {
		want := fmt.Sprintf("%v %s", batch.ID{Lane: testLane(1), N: uint64(i + 1)},
			hex.EncodeToString(bytes.Repeat([]byte{byte(i), byte(i >> 8)}, 4)))
		if line != want {
			t.Fatalf("line %d is %q, want %q", i, line, want)
		}
	}
	st := c.Stats()
	t.Logf("%d connections, %d resent", st.Connects, st.Resent)
	if st.Connects < kills {
		t.Errorf("%d connections for %d kills", st.Connects, kills)
	}
}

// rawClient makes a connection whose handshake is done, for a test to misuse.
func rawClient(t testing.TB, addr string) (net.Conn, *frameReader) {
	t.Helper()
	nc, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { nc.Close() })
	if err := nc.SetDeadline(time.Now().Add(testLimit)); err != nil {
		t.Fatal(err)
	}
	m := hello{minVersion: 1, maxVersion: 1, node: testNode(1), host: "raw", role: "mount"}
	if _, err := nc.Write(m.append(nil, typeHello)); err != nil {
		t.Fatal(err)
	}
	fr := &frameReader{r: nc, lim: limits{meta: maxMeta, data: DefaultMaxData}}
	awaitFrame(t, fr, typeWelcome)
	return nc, fr
}

// awaitFrame reads up to the next frame of a kind and returns its fields.
func awaitFrame(t testing.TB, fr *frameReader, kind Type) []byte {
	t.Helper()
	for {
		h, meta, err := fr.next()
		if err != nil {
			t.Fatalf("waiting for %v: %v", kind, err)
		}
		if h.kind == kind {
			return meta
		}
		if _, err := io.CopyN(io.Discard, fr.r, int64(h.data)); err != nil {
			t.Fatal(err)
		}
	}
}
