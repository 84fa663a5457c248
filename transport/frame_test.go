package transport

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"testing"
	"time"

	"ftfuse/internal/batch"
)

var update = flag.Bool("update", false, "write the golden files anew; for a new protocol version only")

// goldenFrames is one frame of each kind, as this version writes it.
func goldenFrames() map[string][]byte {
	id := batch.ID{Lane: batch.Lane{
		Origin: batch.Origin(testNode(0xa1)), Epoch: batch.Epoch{Counter: 3, Random: 0x1122334455667788}, Route: 9, Bucket: 4,
	}, N: 77}
	b := batch.Sealed{
		ID: id, CRC: batch.Checksum([]byte("sealed bytes")), Flags: batch.FlagResent, Records: 5, Payload: 600,
		Time: 1_763_800_000_000_000_000, Via: []batch.Node{testNode(0xb2)}, Host: "web-01", Data: []byte("sealed bytes"),
	}
	h := hello{
		minVersion: 1, maxVersion: 1, node: testNode(0xc3), maxData: 4 << 20, window: 64 << 20, features: 0,
		host: "web-01", role: "mount", product: "0.1.0",
	}
	set := func() map[batch.Lane]*batch.Ranges {
		var r batch.Ranges
		for _, x := range []batch.Range{{First: 1, Last: 5}, {First: 77, Last: 77}, {First: 1000, Last: math.MaxUint64}} {
			r.AddRange(x)
		}
		return map[batch.Lane]*batch.Ranges{id.Lane: &r}
	}
	return map[string][]byte{
		"hello":   h.append(nil, typeHello),
		"welcome": h.append(nil, typeWelcome),
		"batch":   append(appendBatch(nil, &b, testNode(0xc3)), b.Data...),
		"ack":     appendSets(nil, typeAck, set()),
		"final":   appendSets(nil, typeFinal, set()),
		"refuse":  appendRefuse(nil, id, Verdict{BadCRC, "CRC"}),
		"skip":    appendSkips(nil, id.Lane, []Skip{{Reason: "max_age", Ranges: rangesOf([]batch.Range{{First: 3, Last: 9}, {First: 11, Last: 11}}), Records: 800, Payload: 90_000}}),
		"horizon": appendHorizons(nil, []LaneHorizon{{id.Lane, 70}}),
		"ping":    appendToken(nil, typePing, 123456789),
		"pong":    appendToken(nil, typePong, 123456789),
		"drain":   appendEmpty(nil, typeDrain),
		"bye":     appendBye(nil, ByeVersion, "no version in common"),
	}
}

// TestGolden: this version writes what it always wrote, and reads it.
func TestGolden(t *testing.T) {
	for name, got := range goldenFrames() {
		file := filepath.Join("testdata", fmt.Sprintf("v%d-%s.frame", MaxVersion, name))
		if *update {
			if err := os.WriteFile(file, got, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("%s: wrote\n% x\nwant\n% x", file, got, want)
		}
		fr := &frameReader{r: bytes.NewReader(want), lim: limits{meta: maxMeta, data: 100}}
		h, meta, err := fr.next()
		if err != nil {
			t.Errorf("%s: %v", file, err)
			continue
		}
		if err := parseAny(h, meta); err != nil {
			t.Errorf("%s: %v", file, err)
		}
	}
}

// parseAny parses the fields of any frame.
func parseAny(h frameHeader, meta []byte) (err error) {
	switch h.kind {
	case typeHello, typeWelcome:
		_, err = parseHello(meta)
	case typeBatch:
		_, err = parseBatch(meta)
	case typeAck, typeFinal:
		err = parseSets(meta, func(batch.Lane, batch.Ranges) {})
	case typeRefuse:
		_, _, err = parseRefuse(meta)
	case typeHorizon:
		err = parseHorizons(meta, func(LaneHorizon) {})
	case typeSkip:
		_, _, err = parseSkip(meta)
	case typePing, typePong:
		_, err = parseToken(meta)
	case typeBye:
		_, err = parseBye(meta)
	}
	return err
}

// TestRoundTripOfFields: what is encoded is decoded, field for field.
func TestRoundTripOfFields(t *testing.T) {
	frames := goldenFrames()
	fields := func(name string) []byte { return frames[name][frameHeaderSize:] }
	h, err := parseHello(fields("hello"))
	wantHello := hello{1, 1, testNode(0xc3), 4 << 20, 64 << 20, 0, "web-01", "mount", "0.1.0"}
	if err != nil || h != wantHello {
		t.Errorf("%+v %v", h, err)
	}
	b, err := parseBatch(fields("batch")[:len(fields("batch"))-12])
	if err != nil || b.ID.N != 77 || b.Flags != batch.FlagResent || b.Records != 5 || b.Payload != 600 ||
		b.Time != 1_763_800_000_000_000_000 || !reflect.DeepEqual(b.Via, []batch.Node{testNode(0xb2), testNode(0xc3)}) {
		t.Errorf("%+v %v", b, err)
	}
	err = parseSets(fields("ack"), func(l batch.Lane, r batch.Ranges) {
		if l != b.ID.Lane || r.String() != "1-5,77,1000-18446744073709551615" {
			t.Errorf("%v %v", l, &r)
		}
	})
	if err != nil {
		t.Error(err)
	}
	id, v, err := parseRefuse(fields("refuse"))
	if err != nil || id != b.ID || v != (Verdict{BadCRC, "CRC"}) {
		t.Errorf("%v %v %v", id, v, err)
	}
	bye, err := parseBye(fields("bye"))
	if err != nil || *bye != (ByeError{ByeVersion, "no version in common"}) {
		t.Errorf("%v %v", bye, err)
	}
	// A later version may append fields: they are read over.
	if more, err := parseHello(append(bytes.Clone(fields("hello")), "more"...)); err != nil || more != wantHello {
		t.Errorf("with fields of tomorrow: %+v %v", more, err)
	}
}

// TestLargeSetsAreSplit: more ranges and horizons than a frame takes go into several.
func TestLargeSetsAreSplit(t *testing.T) {
	want := make(map[batch.Lane]string)
	sets := make(map[batch.Lane]*batch.Ranges)
	for i := range byte(200) {
		l := testLane(i)
		sets[l] = new(batch.Ranges)
		for n := range uint64(i) * 40 {
			sets[l].Add(1<<60 + n*3)
		}
		if i > 0 {
			want[l] = sets[l].String()
		}
	}
	got := make(map[batch.Lane]*batch.Ranges)
	fr := &frameReader{r: bytes.NewReader(appendSets(nil, typeFinal, sets)), lim: limits{meta: maxMeta}}
	frames := 0
	for {
		_, meta, err := fr.next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		frames++
		err = parseSets(meta, func(l batch.Lane, r batch.Ranges) {
			for _, x := range r.All() {
				addTo(got, l, x)
			}
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if frames < 2 || len(got) != len(want) || len(sets) != 0 {
		t.Errorf("%d frames, %d lanes, want %d; %d left", frames, len(got), len(want), len(sets))
	}
	for l, w := range want {
		if got[l].String() != w {
			t.Errorf("lane %v differs", l)
		}
	}
	hs := make([]LaneHorizon, 5000)
	for i := range hs {
		hs[i] = LaneHorizon{testLane(byte(i)), uint64(i)}
	}
	fr = &frameReader{r: bytes.NewReader(appendHorizons(nil, hs)), lim: limits{meta: maxMeta}}
	var back []LaneHorizon
	for {
		_, meta, err := fr.next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if err := parseHorizons(meta, func(h LaneHorizon) { back = append(back, h) }); err != nil {
			t.Fatal(err)
		}
	}
	if !reflect.DeepEqual(back, hs) {
		t.Errorf("%d horizons came back, want %d", len(back), len(hs))
	}
}

// TestEveryFlippedBitIsNoticed in everything but a batch's data, which has a CRC of its
// own.
func TestEveryFlippedBitIsNoticed(t *testing.T) {
	for name, good := range goldenFrames() {
		for bit := range len(good) * 8 {
			frame := bytes.Clone(good)
			frame[bit/8] ^= 1 << (bit % 8)
			fr := &frameReader{r: bytes.NewReader(frame), lim: limits{meta: maxMeta, data: 1 << 20}}
			h, _, err := fr.next()
			if inData := name == "batch" && bit/8 >= len(good)-12; err == nil && !inData {
				t.Fatalf("%s: bit %d flipped and read as good", name, bit)
			} else if inData && err == nil {
				data := make([]byte, h.data)
				crc, err := fr.fill(data, 0)
				if err != nil || crc != batch.Checksum(data) || crc == batch.Checksum([]byte("sealed bytes")) {
					t.Fatalf("%s: bit %d: %v", name, bit, err)
				}
			}
		}
		for n := range good {
			fr := &frameReader{r: bytes.NewReader(good[:n]), lim: limits{meta: maxMeta, data: 1 << 20}}
			h, _, err := fr.next()
			if err == nil {
				_, err = fr.fill(make([]byte, h.data), 0)
			}
			if err == nil || (n == 0) != (err == io.EOF) {
				t.Fatalf("%s cut to %d of %d bytes: %v", name, n, len(good), err)
			}
		}
	}
}

// TestFillGoesOn: data that are read in two pieces have the CRC of the whole.
func TestFillGoesOn(t *testing.T) {
	data := make([]byte, 3<<20+17)
	for i := range data {
		data[i] = byte(i * 7)
	}
	for _, first := range []int{0, 1, firstPiece, len(data)} {
		fr := &frameReader{r: bytes.NewReader(data)}
		got := make([]byte, len(data))
		crc, err := fr.fill(got[:first], 0)
		if err == nil {
			crc, err = fr.fill(got[first:], crc)
		}
		if err != nil || !bytes.Equal(got, data) || crc != batch.Checksum(data) {
			t.Errorf("%d bytes first: CRC %08x, want %08x, %v", first, crc, batch.Checksum(data), err)
		}
		if _, err := fr.fill(make([]byte, 1), 0); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Error(err)
		}
	}
}

func FuzzFrames(f *testing.F) {
	for _, frame := range goldenFrames() {
		f.Add(frame)
	}
	f.Fuzz(func(t *testing.T, p []byte) {
		fr := &frameReader{r: bytes.NewReader(p), lim: limits{meta: maxMeta, data: 1 << 16}}
		for {
			h, meta, err := fr.next()
			if err != nil {
				return
			}
			if len(meta) > len(p) {
				t.Fatalf("%d bytes of fields from %d", len(meta), len(p))
			}
			if err := parseAny(h, meta); err != nil && !errors.Is(err, ErrFrame) {
				t.Fatalf("error of no kind: %v", err)
			}
			if _, err := fr.fill(make([]byte, h.data), 0); err != nil {
				return
			}
		}
	})
}

// FuzzFields reaches the parsers behind the checksums.
func FuzzFields(f *testing.F) {
	for _, frame := range goldenFrames() {
		f.Add(frame[3], frame[frameHeaderSize:])
	}
	f.Fuzz(func(t *testing.T, kind byte, meta []byte) {
		h := frameHeader{kind: Type(kind % 13)}
		if err := parseAny(h, meta); err != nil && !errors.Is(err, ErrFrame) {
			t.Fatalf("error of no kind: %v", err)
		}
		if h.kind == typeAck {
			var again []byte
			err := parseSets(meta, func(l batch.Lane, r batch.Ranges) { again = r.Append(l.Append(again)) })
			if err == nil && len(again) > len(meta) {
				t.Fatalf("sets of %d bytes become %d", len(meta), len(again))
			}
		}
	})
}

// FuzzPeers gives the bytes to a whole server behind a good handshake, and to a whole
// client behind a good WELCOME: neither panics, hangs or takes a batch that fails its
// CRC.
func FuzzPeers(f *testing.F) {
	for _, frame := range goldenFrames() {
		f.Add(frame, true)
		f.Add(frame, false)
	}
	welcome := (&hello{minVersion: 1, maxVersion: 1, node: testNode(0xee), maxData: 1 << 20}).append(nil, typeWelcome)
	f.Fuzz(func(t *testing.T, p []byte, toServer bool) {
		mine, theirs := net.Pipe()
		done := make(chan struct{})
		go func() { // reads whatever comes
			_, _ = io.Copy(io.Discard, mine)
			close(done)
		}()
		ended := make(chan struct{})
		if toServer {
			s := NewServer(ServerOptions{Identity: Identity{Node: testNode(0xee)}, Logger: discard, MaxData: 1 << 16}, crcChecker{t})
			c, err := s.add(t.Context(), theirs)
			if err != nil {
				t.Fatal(err)
			}
			go func() { c.run(); close(ended) }()
			p = append(okHello(), p...)
		} else {
			c := NewClient(ClientOptions{Identity: Identity{Node: testNode(1)}, Logger: discard}, newTestSource())
			go func() { _ = newSession(t.Context(), c, theirs).run(); close(ended) }()
			p = append(bytes.Clone(welcome), p...)
		}
		_ = mine.SetWriteDeadline(time.Now().Add(testLimit))
		_, _ = mine.Write(p)
		mine.Close()
		<-done
		<-ended
	})
}

// crcChecker fails the test when it is given a damaged batch.
type crcChecker struct{ t *testing.T }

func (c crcChecker) Batch(_ context.Context, _ Peer, b batch.Sealed, reply func(Verdict)) {
	if batch.Checksum(b.Data) != b.CRC {
		c.t.Error("a damaged batch reached the handler")
	}
	reply(Verdict{Code: Taken})
}
func (crcChecker) Horizon(Peer, batch.Lane, uint64, bool) {}
func (crcChecker) Skip(Peer, batch.Lane, []Skip)          {}
