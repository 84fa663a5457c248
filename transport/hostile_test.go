package transport

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"math"
	"net"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"ftfuse/internal/batch"
)

// rawFrame encodes a frame whose header says what the test wants.
func rawFrame(kind Type, metaLen, dataLen uint32, meta []byte) []byte {
	b := make([]byte, frameHeaderSize)
	frameHeader{kind: kind, meta: metaLen, data: dataLen, metaCRC: batch.Checksum(meta)}.put(b)
	return append(b, meta...)
}

// okHello is the HELLO of a good peer.
func okHello() []byte {
	return (&hello{minVersion: 1, maxVersion: 1, node: testNode(9), host: "h", role: "mount"}).append(nil, typeHello)
}

// TestHostileClient sends what no client sends. The server ends that connection, says
// why where there is anyone to tell, serves others, and calls the handler for nothing.
func TestHostileClient(t *testing.T) {
	b := testBatch(testLane(1), 1, []byte("data"))
	good := appendBatch(nil, &b, testNode(1))
	flip := func(p []byte, at int) []byte {
		p = bytes.Clone(p)
		p[at] ^= 0x40
		return p
	}
	badMeta := func(at int, v byte) []byte { // a BATCH whose fields lie, with a good CRC
		meta := bytes.Clone(good[frameHeaderSize:])
		meta[at] = v
		return rawFrame(typeBatch, uint32(len(meta)), 4, meta)
	}
	var futureHeader [frameHeaderSize]byte
	copy(futureHeader[:], okHello())
	futureHeader[2] = 9
	binary.LittleEndian.PutUint32(futureHeader[16:], batch.Checksum(futureHeader[:16]))
	version := func(lo, hi uint16) []byte {
		return (&hello{minVersion: lo, maxVersion: hi, node: testNode(9)}).append(nil, typeHello)
	}
	cases := map[string]struct {
		early, late []byte // before and after the handshake
		bye         ByeCode
	}{
		"HTTP":                    {[]byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n"), nil, ByeProtocol},
		"zeros":                   {make([]byte, 100), nil, ByeProtocol},
		"header flipped":          {flip(okHello(), 5), nil, ByeProtocol},
		"header CRC flipped":      {flip(okHello(), 17), nil, ByeProtocol},
		"fields flipped":          {flip(okHello(), 30), nil, ByeProtocol},
		"header of tomorrow":      {futureHeader[:], nil, ByeVersion},
		"HELLO cut short":         {rawFrame(typeHello, 3, 0, []byte{1, 0, 1}), nil, ByeProtocol},
		"HELLO of 4 GiB":          {rawFrame(typeHello, math.MaxUint32, 0, nil), nil, ByeTooLarge},
		"HELLO of 5 KiB":          {rawFrame(typeHello, 5<<10, 0, make([]byte, 5<<10)), nil, ByeTooLarge},
		"HELLO with data":         {rawFrame(typeHello, 0, 10, nil), nil, ByeProtocol},
		"BATCH before HELLO":      {rawFrame(typeBatch, 10, 0, make([]byte, 10)), nil, ByeProtocol},
		"BATCH data before HELLO": {rawFrame(typeBatch, 10, 1<<20, make([]byte, 10)), nil, ByeTooLarge},
		"version of tomorrow":     {version(2, 9), nil, ByeVersion},
		"version 0":               {version(0, 0), nil, ByeVersion},
		"versions upside down":    {version(5, 1), nil, ByeVersion},
		"own node":                {(&hello{minVersion: 1, maxVersion: 1, node: testNode(0xee)}).append(nil, typeHello), nil, ByeLoop},
		"unwanted":                {(&hello{minVersion: 1, maxVersion: 1, node: testNode(0xdd)}).append(nil, typeHello), nil, ByeDenied},

		"HELLO twice":         {nil, okHello(), ByeProtocol},
		"ACK from a client":   {nil, rawFrame(typeAck, 0, 0, nil), ByeProtocol},
		"unknown type":        {nil, rawFrame(77, 0, 0, nil), ByeProtocol},
		"type 0":              {nil, rawFrame(0, 0, 0, nil), ByeProtocol},
		"BATCH of 4 GiB":      {nil, rawFrame(typeBatch, 100, math.MaxUint32, make([]byte, 100)), ByeTooLarge},
		"BATCH above the cap": {nil, rawFrame(typeBatch, 100, 1<<20+1, make([]byte, 100)), ByeTooLarge},
		"fields of 1 GiB":     {nil, rawFrame(typePing, 1<<30, 0, nil), ByeTooLarge},
		"BATCH cut short":     {nil, rawFrame(typeBatch, 50, 0, bytes.Repeat([]byte{0}, 50)), ByeProtocol},
		"BATCH number 0":      {nil, badMeta(batch.LaneSize, 0), ByeProtocol},
		"BATCH bucket 99":     {nil, badMeta(36, 99), ByeProtocol},
		"BATCH via 255":       {nil, badMeta(batch.IDSize+26, 255), ByeProtocol},
		"BATCH via 60":        {nil, badMeta(batch.IDSize+26, 60), ByeProtocol},
		"PING cut short":      {nil, rawFrame(typePing, 3, 0, []byte{1, 2, 3}), ByeProtocol},
		"HORIZON cut short":   {nil, rawFrame(typeHorizon, 47, 0, make([]byte, 47)), ByeProtocol},
		"HORIZON bad lane":    {nil, rawFrame(typeHorizon, 48, 0, bytes.Repeat([]byte{0xff}, 48)), ByeProtocol},
		"BYE cut short":       {nil, rawFrame(typeBye, 1, 0, []byte{1}), ByeProtocol},
		"flipped in a batch":  {nil, flip(good, 9), ByeProtocol},
	}
	h := newTestHandler()
	_, ln := serve(t, ServerOptions{MaxData: 1 << 20, Admit: func(p Peer, _ net.Conn) error {
		if p.Node == testNode(0xdd) {
			return errors.New("not on the list")
		}
		return nil
	}}, h)
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			nc, err := net.Dial("tcp", ln.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer nc.Close()
			if err := nc.SetDeadline(time.Now().Add(testLimit)); err != nil {
				t.Fatal(err)
			}
			fr := &frameReader{r: nc, lim: limits{meta: maxMeta}}
			send := c.early
			if c.early == nil {
				if _, err := nc.Write(okHello()); err != nil {
					t.Fatal(err)
				}
				awaitFrame(t, fr, typeWelcome)
				send = c.late
			}
			if _, err := nc.Write(send); err != nil {
				t.Fatal(err)
			}
			bye, err := parseBye(awaitFrame(t, fr, typeBye))
			if err != nil || bye.Code != c.bye || bye.Text == "" {
				t.Errorf("BYE %+v %v, want %v and a reason", bye, err, c.bye)
			}
			for err == nil {
				_, _, err = fr.next()
			}
			if err != io.EOF && !strings.Contains(err.Error(), "reset") {
				t.Errorf("the connection ended with %v", err)
			}
		})
	}
	if n := len(h.batches()); n != 0 {
		t.Errorf("the handler was called %d times", n)
	}
	src := newTestSource()
	src.push(b)
	connect(t, ClientOptions{Address: ln.Addr().String()}, src)
	src.awaitAcked(t, 1)
}

// fakeServer answers one connection after the other: WELCOME, then what reply wants.
func fakeServer(t *testing.T, first []byte, rest []byte) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	t.Cleanup(func() { ln.Close(); <-done })
	go func() {
		defer close(done)
		for {
			nc, err := ln.Accept()
			if err != nil {
				return
			}
			fr := &frameReader{r: nc, lim: limits{meta: maxMeta, data: 1 << 20}}
			_, _, _ = fr.next()
			_, _ = nc.Write(first)
			if rest != nil {
				_, _, _ = fr.next() // the first batch
				_, _ = nc.Write(rest)
			}
			linger(nc)
		}
	}()
	return ln.Addr().String()
}

// TestHostileServer answers what no server answers: the client ends the connection with
// an error, gives nothing up and tries again. The loop over an ack of 2^64 batches ends.
func TestHostileServer(t *testing.T) {
	welcome := (&hello{minVersion: 1, maxVersion: 1, node: testNode(0xee), maxData: 1 << 20}).append(nil, typeWelcome)
	lane := testLane(1)
	var others batch.Ranges // everything but the batch in flight
	others.AddRange(batch.Range{First: 2, Last: math.MaxUint64})
	ackOthers := appendSets(nil, typeAck, map[batch.Lane]*batch.Ranges{lane: &others})
	for name, c := range map[string]struct {
		first, rest []byte
		want        string
	}{
		"not ours":          {[]byte("SSH-2.0-OpenSSH_10.0\r\n 1234567890"), nil, "malformed frame"},
		"version 7":         {(&hello{minVersion: 7, maxVersion: 7}).append(nil, typeWelcome), nil, "version 7"},
		"HELLO back":        {okHello(), nil, "want WELCOME"},
		"WELCOME of 1 GiB":  {rawFrame(typeWelcome, 1<<30, 0, nil), nil, "too large"},
		"BYE":               {appendBye(nil, ByeTooMany, "go away"), nil, "go away"},
		"closed":            {nil, nil, "EOF"},
		"BATCH":             {welcome, rawFrame(typeBatch, 0, 0, nil), "from a server"},
		"data":              {welcome, rawFrame(typeBatch, 0, 1, nil), "too large"},
		"ACK garbage":       {welcome, rawFrame(typeAck, 41, 0, bytes.Repeat([]byte{0xff}, 41)), "malformed"},
		"ACK of the others": {welcome, ackOthers, "without a BYE"},
		"REFUSE cut":        {welcome, rawFrame(typeRefuse, 20, 0, make([]byte, 20)), "malformed"},
		"REFUSE taken":      {welcome, appendRefuse(nil, batch.ID{Lane: lane, N: 1}, Verdict{Taken, "x"}), "malformed"},
		"REFUSE duplicate":  {welcome, appendRefuse(nil, batch.ID{Lane: lane, N: 1}, Verdict{Duplicate, "x"}), "malformed"},
		"FINAL garbage":     {welcome, rawFrame(typeFinal, 3, 0, []byte{1, 2, 3}), "malformed"},
	} {
		t.Run(name, func(t *testing.T) {
			src := newTestSource()
			src.push(testBatch(lane, 1, []byte("x")))
			c2 := connect(t, ClientOptions{Address: fakeServer(t, c.first, c.rest)}, src)
			await(t, nil, "two failures", func() bool { return c2.Stats().Failures >= 2 })
			st := c2.Stats()
			if len(src.acked) != 0 || len(src.refused) != 0 {
				t.Error("the batch was given up")
			}
			await(t, nil, "error "+c.want, func() bool { return strings.Contains(c2.Stats().LastError, c.want) })
			if st.Connects > 0 && st.InFlight != 1 {
				t.Errorf("%+v", st)
			}
		})
	}
}

// TestHandshakeTimeout: a peer that says nothing, or says it too slowly, is let go.
func TestHandshakeTimeout(t *testing.T) {
	_, ln := serve(t, ServerOptions{Handshake: 100 * time.Millisecond}, newTestHandler())
	for name, first := range map[string][]byte{"silent": nil, "half a header": okHello()[:10], "half a HELLO": okHello()[:40]} {
		t.Run(name, func(t *testing.T) {
			nc, err := net.Dial("tcp", ln.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer nc.Close()
			if _, err := nc.Write(first); err != nil {
				t.Fatal(err)
			}
			if err := nc.SetDeadline(time.Now().Add(testLimit)); err != nil {
				t.Fatal(err)
			}
			fr := &frameReader{r: nc, lim: limits{meta: maxMeta}}
			if bye, err := parseBye(awaitFrame(t, fr, typeBye)); err != nil || bye.Code != ByeTimeout {
				t.Errorf("%v %v", bye, err)
			}
		})
	}
}

// TestTLSHandshakeTimeout: the time for both handshakes is one.
func TestTLSHandshakeTimeout(t *testing.T) {
	ca := newTestCA(t)
	s, ln := serve(t, ServerOptions{Handshake: 100 * time.Millisecond, TLS: ca.mutual(ca.host("agg"))}, newTestHandler())
	for name, shake := range map[string]bool{"nothing": false, "TLS and no HELLO": true} {
		t.Run(name, func(t *testing.T) {
			before := s.Stats().Failed
			nc, err := net.Dial("tcp", ln.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer nc.Close()
			if err := nc.SetDeadline(time.Now().Add(testLimit)); err != nil {
				t.Fatal(err)
			}
			if shake {
				nc = clientTLS(nc, ca.mutual(ca.host("x"))(), "agg:1")
			}
			if n, err := io.Copy(io.Discard, nc); errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("%d bytes, %v", n, err)
			}
			await(t, nil, "a failure", func() bool { return s.Stats().Failed == before+1 })
		})
	}
}

// TestTooManyConnections: above MaxConns a peer is told so; a place that becomes free
// is given again.
func TestTooManyConnections(t *testing.T) {
	s, ln := serve(t, ServerOptions{MaxConns: 2}, newTestHandler())
	first, _ := rawClient(t, ln.Addr().String())
	rawClient(t, ln.Addr().String())
	src := newTestSource()
	src.push(testBatch(testLane(1), 1, []byte("x")))
	c := connect(t, ClientOptions{Address: ln.Addr().String(), DeadAfter: time.Hour}, src)
	await(t, nil, "being turned away", func() bool { return strings.Contains(c.Stats().LastError, "too many connections") })
	if s.Stats().TurnedAway == 0 {
		t.Error("not counted")
	}
	first.Close()
	src.awaitAcked(t, 1)
}

// TestAnnouncedBytesCostNothing: peers that announce large batches and send none of
// them make the server allocate next to nothing; idle ones cost little.
func TestAnnouncedBytesCostNothing(t *testing.T) {
	h := newTestHandler()
	s, ln := serve(t, ServerOptions{DeadAfter: time.Hour, Heartbeat: time.Hour, MaxConns: 500, MaxConnsPerAddress: 500, Logger: discard}, h)
	const idle, announcing = 200, 200
	b := testBatch(testLane(1), 1, nil)
	head := appendBatch(nil, &b, testNode(1))
	before := memory()
	conns := make([]net.Conn, 0, idle+announcing)
	for range idle + announcing {
		nc, _ := rawClient(t, ln.Addr().String())
		conns = append(conns, nc)
	}
	await(t, nil, "the connections", func() bool { return len(s.Stats().Peers) == idle+announcing })
	perIdle := (memory() - before) / (idle + announcing)
	for _, nc := range conns[idle:] {
		f := rawFrame(typeBatch, uint32(len(head)-frameHeaderSize), DefaultMaxData, head[frameHeaderSize:])
		if _, err := nc.Write(f); err != nil {
			t.Fatal(err)
		}
	}
	await(t, nil, "the announcements", func() bool {
		n := int64(0)
		for _, p := range s.Stats().Peers {
			n += p.Pending
		}
		return n == announcing
	})
	all := memory() - before
	t.Logf("an idle connection takes %d KiB (both ends), 200 announcements of 4 MiB take %d KiB more", perIdle>>10, (all-perIdle*400)>>10)
	if perIdle > 48<<10 {
		t.Errorf("an idle connection takes %d bytes", perIdle)
	}
	if all > 400*48<<10+announcing*96<<10 {
		t.Errorf("%d bytes for announcements of 800 MiB", all)
	}
}

// memory is the heap and the stacks in use.
func memory() int {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int(m.HeapInuse + m.StackInuse)
}

// TestPendingIsBounded: what the handler has not answered is bounded over all
// connections, and no connection is starved by another's.
func TestPendingIsBounded(t *testing.T) {
	const size, limit = 100_000, 1_000_000
	ch := &hoarder{replies: make(chan func(Verdict), 1000)}
	s, ln := serve(t, ServerOptions{MaxPending: limit}, ch)
	var sources [3]*testSource
	for i := range sources {
		sources[i] = newTestSource()
		for n := range 30 {
			sources[i].push(testBatch(testLane(byte(i)), uint64(n+1), make([]byte, size)))
		}
		connect(t, ClientOptions{Address: ln.Addr().String(), Identity: Identity{Node: testNode(byte(i + 1))}}, sources[i])
		await(t, nil, "a batch of each connection", func() bool {
			peers := s.Stats().Peers
			return len(peers) == i+1 && peers[0].Pending > 0 && peers[len(peers)-1].Pending > 0
		})
	}
	await(t, nil, "the limit", func() bool {
		for _, p := range s.Stats().Peers {
			if !p.Blocked {
				return false
			}
		}
		return true
	})
	if n := s.Stats().Pending; n > limit {
		t.Errorf("%d bytes pending, limit %d", n, limit)
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() {
		for {
			select {
			case reply := <-ch.replies:
				reply(Verdict{Code: Taken})
				reply(Verdict{Code: Denied}) // a second answer is nothing
			case <-ctx.Done():
				return
			}
		}
	}()
	for _, src := range sources {
		src.awaitAcked(t, 30)
	}
	await(t, nil, "an empty budget", func() bool { return s.Stats().Pending == 0 })
}

// hoarder answers nothing by itself.
type hoarder struct{ replies chan func(Verdict) }

func (h *hoarder) Batch(_ context.Context, _ Peer, _ batch.Sealed, reply func(Verdict)) {
	h.replies <- reply
}
func (h *hoarder) Horizon(Peer, batch.Lane, uint64, bool) {}
func (h *hoarder) Skip(Peer, batch.Lane, []Skip)          {}
