package record

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"

	"github.com/klauspost/compress/s2"
	"github.com/klauspost/compress/zstd"

	"ftfuse/internal/batch"
)

// lines returns n bytes of what a web server logs.
func lines(n int) []byte {
	rng := rand.New(rand.NewPCG(1, 2))
	var b bytes.Buffer
	for at := 1_763_800_000; b.Len() < n; at += rng.IntN(3) {
		fmt.Fprintf(&b, "10.%d.%d.%d - - [%d] \"GET /item/%d?user=%08x HTTP/1.1\" %d %d\n",
			rng.IntN(4), rng.IntN(256), rng.IntN(256), at, rng.IntN(5000), rng.Uint32(), 200+rng.IntN(5), rng.IntN(90_000))
	}
	return b.Bytes()[:n]
}

func noise(n int) []byte {
	rng := rand.New(rand.NewPCG(3, 4))
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(rng.Uint32())
	}
	return b
}

// sealWith seals data as one record.
func sealWith(t testing.TB, c Codec, data []byte) batch.Sealed {
	b := NewBuilder(1 << 20)
	b.Compress(c)
	if !b.Add(&Attr{Path: "p", PID: 7, Time: 5}, data) {
		t.Fatalf("%d bytes do not fit", len(data))
	}
	return b.Seal(testID(1), 9)
}

// TestCompressionIsKeptWhereItSaves: text gets shorter, what cannot be compressed stays
// as it is, and either is read as it was.
func TestCompressionIsKeptWhereItSaves(t *testing.T) {
	part := func(random, all int) []byte { return append(noise(random), make([]byte, all-random)...) }
	for _, c := range []Codec{CodecS2, CodecZstd} {
		for _, x := range []struct {
			name string
			data []byte
			want Codec
		}{
			{"text", lines(1 << 20), c},
			{"noise", noise(1 << 20), CodecNone},
			{"a twentieth saved", part(95_000, 100_000), CodecNone},
			{"a tenth saved", part(90_000, 100_000), c},
			{"short", []byte(strings.Repeat("a", compressLeast/2)), CodecNone},
			{"all the same", make([]byte, 1<<20), c},
			{"the longest record", make([]byte, MaxRecord), c},
			{"nothing", nil, CodecNone},
		} {
			s := sealWith(t, c, x.data)
			if got := Codec(s.Data[6]); got != x.want {
				t.Errorf("%v, %s: sealed with %v, %d of %d bytes, want %v", c, x.name, got, len(s.Data), len(x.data), x.want)
			}
			if cap(s.Data) > len(s.Data)*3/2+64 {
				t.Errorf("%v, %s: a batch of %d bytes holds %d", c, x.name, len(s.Data), cap(s.Data))
			}
			if int(s.Payload) != len(x.data) || s.CRC != batch.Checksum(s.Data) {
				t.Errorf("%v, %s: payload %d, CRC %08x", c, x.name, s.Payload, s.CRC)
			}
			r, err := Open(s)
			if err != nil {
				t.Fatalf("%v, %s: %v", c, x.name, err)
			}
			got := readAll(t, r)
			if len(got) != 1 || !bytes.Equal(got[0].data, x.data) {
				t.Errorf("%v, %s: read %d records, or other bytes", c, x.name, len(got))
			}
		}
	}
}

// TestRatioIsBounded: what compresses too well has zeros behind it, so that no batch
// expands to more than MaxRatio times its length.
func TestRatioIsBounded(t *testing.T) {
	for _, c := range []Codec{CodecS2, CodecZstd} {
		s := sealWith(t, c, make([]byte, 1<<20))
		packed := int(binary.LittleEndian.Uint32(s.Data[80:]))
		if want := HeaderSize + sealedBody(packed, int(s.Payload)+int(binary.LittleEndian.Uint32(s.Data[76:]))); len(s.Data) != want || len(s.Data) < 1<<20/MaxRatio {
			t.Errorf("%v: %d bytes, want %d", c, len(s.Data), want)
		}
		if err := Check(s); err != nil {
			t.Errorf("%v: %v", c, err)
		}
	}
}

// TestMalformedCompression damages one named thing each.
func TestMalformedCompression(t *testing.T) {
	for _, c := range []Codec{CodecS2, CodecZstd} {
		other := sealWith(t, CodecS2+CodecZstd-c, lines(50_000))
		text, same := sealWith(t, c, lines(50_000)), sealWith(t, c, make([]byte, 1<<20))
		put32 := func(at int, v uint32) func(*batch.Sealed) {
			return func(s *batch.Sealed) { binary.LittleEndian.PutUint32(s.Data[at:], v) }
		}
		add := func(at int, v int32) func(*batch.Sealed) {
			return func(s *batch.Sealed) {
				put32(at, uint32(int32(binary.LittleEndian.Uint32(s.Data[at:]))+v))(s)
			}
		}
		grow := func(n uint64) func(*batch.Sealed) { // claims to be more than was compressed
			return func(s *batch.Sealed) {
				s.Payload += n
				binary.LittleEndian.PutUint64(s.Data[64:], s.Payload)
			}
		}
		for name, x := range map[string]struct {
			good   batch.Sealed
			change func(*batch.Sealed)
			want   error
		}{
			"compressed length 0":      {text, put32(80, 0), ErrMalformed},
			"one byte less":            {text, add(80, -1), ErrMalformed},
			"one byte more":            {text, add(80, 1), ErrMalformed},
			"compressed length beyond": {text, put32(80, 1<<31), ErrMalformed},
			"expands to more":          {text, grow(^uint64(0)), ErrMalformed},
			"expands to less":          {text, grow(1), ErrMalformed},
			"heads longer":             {text, add(76, 1), ErrMalformed},
			"heads shorter":            {text, add(76, -1), ErrMalformed},
			"above MaxBatch":           {text, grow(MaxBatch), ErrMalformed},
			"above MaxRatio":           {same, grow(1 << 20), ErrMalformed},
			"cut":                      {text, func(s *batch.Sealed) { s.Data = s.Data[:len(s.Data)-1] }, ErrMalformed},
			"cut in the zeros":         {same, func(s *batch.Sealed) { s.Data = s.Data[:len(s.Data)-1] }, ErrMalformed},
			"a byte behind":            {same, func(s *batch.Sealed) { s.Data[len(s.Data)-1] = 1 }, ErrMalformed},
			"nothing but the header":   {text, func(s *batch.Sealed) { s.Data = s.Data[:HeaderSize] }, ErrMalformed},
			"no compression":           {text, func(s *batch.Sealed) { s.Data[6] = 0 }, ErrMalformed},
			"the other codec":          {text, func(s *batch.Sealed) { s.Data[6] = byte(CodecS2 + CodecZstd - c) }, ErrMalformed},
			"the other's bytes":        {other, func(s *batch.Sealed) { s.Data[6] = byte(c) }, ErrMalformed},
			"codec of tomorrow":        {text, func(s *batch.Sealed) { s.Data[6] = byte(CodecZstd + 1) }, ErrVersion},
			"reserved":                 {text, func(s *batch.Sealed) { s.Data[84] = 1 }, ErrMalformed},
		} {
			s := x.good
			s.Data = bytes.Clone(s.Data)
			x.change(&s)
			if _, err := Open(s); !errors.Is(err, x.want) {
				t.Errorf("%v, %s: got %v, want %v", c, name, err, x.want)
			}
		}
	}
}

// byHand compresses body under a header that says what h does.
func byHand(t *testing.T, h header, body []byte) batch.Sealed {
	var packed bytes.Buffer
	if h.codec == CodecS2 {
		packed.Write(s2.Encode(nil, body))
	} else { // frames that do not tell their length
		w, err := zstd.NewWriter(&packed, zstd.WithEncoderLevel(zstd.SpeedFastest))
		if err != nil {
			t.Fatal(err)
		}
		for len(body) > 0 {
			n, err := w.Write(body[:min(len(body), 64<<10)])
			if err != nil {
				t.Fatal(err)
			}
			body = body[n:]
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
	}
	h.version, h.id, h.packed = versionOld, testID(1), uint32(packed.Len())
	data := make([]byte, HeaderSize+sealedBody(packed.Len(), int(h.payload)+int(h.heads)))
	h.put(data)
	copy(data[HeaderSize:], packed.Bytes())
	return batch.Sealed{ID: h.id, Records: h.records, Payload: h.payload, Data: data}
}

// TestMaxBatchIsExpanded: more than MaxBatch is not, though all of it is as it says.
func TestMaxBatchIsExpanded(t *testing.T) {
	for _, c := range []Codec{CodecS2, CodecZstd} {
		for _, more := range []int{0, 1} {
			n := MaxBatch - HeaderSize + more
			h := header{codec: c, records: 1, heads: 10, payload: uint64(n - 10)}
			if _, err := Open(byHand(t, h, make([]byte, n))); errors.Is(err, ErrMalformed) != (more > 0) {
				t.Errorf("%v, MaxBatch + %d: %v", c, more, err)
			}
		}
	}
}

// TestAnExpandedBatchAllocatesItsSize: a bomb costs the reader no more than what its
// header says, which is at most MaxBatch.
func TestAnExpandedBatchAllocatesItsSize(t *testing.T) {
	for _, c := range []Codec{CodecS2, CodecZstd} {
		s := byHand(t, header{codec: c, records: 1, payload: 4000, heads: 96}, make([]byte, MaxBatch/2))
		if err := Check(s); !errors.Is(err, ErrMalformed) {
			t.Errorf("%v: %v", c, err)
		}
		res := testing.Benchmark(func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				_ = Check(s)
			}
		})
		if per := res.AllocedBytesPerOp(); per > 256<<10 {
			t.Errorf("%v: %d bytes allocated for one that says it has 4096", c, per)
		}
	}
}

// TestRecordsOutliveReset: an applier keeps the bytes of a batch while the next is read.
func TestRecordsOutliveReset(t *testing.T) {
	var r Reader
	var kept [][]byte
	var sent [][]byte
	for i := range 6 {
		data := bytes.Repeat([]byte{byte('a' + i), '\n'}, 20_000)
		if err := r.Reset(sealWith(t, Codec(i%3), data)); err != nil {
			t.Fatal(err)
		}
		rec, err := r.Next()
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(r.Bytes()[rec.Off:rec.Off+len(rec.Data)], data) {
			t.Errorf("batch %d: Bytes has something else at Off", i)
		}
		kept, sent = append(kept, rec.Data), append(sent, data)
	}
	for i := range kept {
		if !bytes.Equal(kept[i], sent[i]) {
			t.Errorf("batch %d changed when another was read", i)
		}
	}
}

// TestExpandingAtOnce: readers of several goroutines share the decoders.
func TestExpandingAtOnce(t *testing.T) {
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			data := lines(100_000 + i)
			for n := range 20 {
				s := sealWith(t, Codec(1+n%2), data)
				r, err := Open(s)
				if err != nil {
					t.Error(err)
					return
				}
				if rec, err := r.Next(); err != nil || !bytes.Equal(rec.Data, data) {
					t.Errorf("%v, %d bytes", err, len(rec.Data))
				}
			}
		})
	}
	wg.Wait()
}

func TestRelabel(t *testing.T) {
	id := testID(77)
	id.Lane.Epoch.Counter, id.Lane.Route, id.Lane.Bucket = 8, 9, 10
	for _, c := range []Codec{CodecNone, CodecS2, CodecZstd} {
		s := sealWith(t, c, lines(70_000))
		s.Flags, s.Via = batch.FlagResent, []batch.Node{{1}}
		was := bytes.Clone(s.Data)
		n, err := Relabel(s, id)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(s.Data, was) || s.ID != testID(1) {
			t.Errorf("%v: the batch itself changed", c)
		}
		if n.ID != id || n.CRC != batch.Checksum(n.Data) || n.CRC == s.CRC || n.Flags != 0 || len(n.Via) != 1 ||
			n.Records != s.Records || n.Payload != s.Payload || n.Time != s.Time || len(n.Data) != len(s.Data) {
			t.Errorf("%v: relabelled %v, flags %d, %d records", c, n.ID, n.Flags, n.Records)
		}
		old, err := Open(s)
		if err != nil {
			t.Fatal(err)
		}
		r, err := Open(n)
		if err != nil {
			t.Fatal(err)
		}
		equal(t, readAll(t, r), readAll(t, old))
		back, err := Relabel(n, s.ID)
		if err != nil || !bytes.Equal(back.Data, s.Data) {
			t.Errorf("%v: back again: %v", c, err)
		}
		s.CRC++
		if _, err := Relabel(s, id); !errors.Is(err, ErrMalformed) {
			t.Errorf("%v: with a wrong CRC: %v", c, err)
		}
		was[4] = Version + 1
		s.Data, s.CRC = was, batch.Checksum(was)
		if _, err := Relabel(s, id); !errors.Is(err, ErrVersion) {
			t.Errorf("%v: of a version that is not known: %v", c, err)
		}
	}
}

func TestParseCodec(t *testing.T) {
	for _, c := range []Codec{CodecNone, CodecS2, CodecZstd} {
		if got, err := ParseCodec(c.String()); got != c || err != nil {
			t.Errorf("%v: %v, %v", c, got, err)
		}
	}
	if _, err := ParseCodec("lz4"); err == nil {
		t.Error("lz4 is known")
	}
}

// FuzzExpand gives the decoders any bytes behind a header that fits them.
func FuzzExpand(f *testing.F) {
	for _, c := range []Codec{CodecS2, CodecZstd} {
		for _, data := range [][]byte{lines(5000), make([]byte, 3000), []byte(strings.Repeat("ab\n", 200))} {
			s := sealWith(f, c, data)
			f.Add(byte(c), uint32(len(data)), binary.LittleEndian.Uint32(s.Data[76:]), s.Data[HeaderSize:HeaderSize+binary.LittleEndian.Uint32(s.Data[80:])])
		}
	}
	f.Fuzz(func(t *testing.T, codec byte, payload, heads uint32, packed []byte) {
		h := header{
			version: versionOld, codec: Codec(1 + codec%2), id: testID(1), records: 1, payload: uint64(payload % MaxBatch), heads: heads % MaxBatch,
			packed: uint32(len(packed)),
		}
		data := make([]byte, HeaderSize+sealedBody(len(packed), int(h.payload)+int(h.heads)))
		h.put(data)
		copy(data[HeaderSize:], packed)
		s := batch.Sealed{ID: h.id, Records: 1, Payload: h.payload, Data: data}
		r, err := Open(s)
		for total := 0; err == nil; {
			var rec Record
			if rec, err = r.Next(); err == nil {
				if total += len(rec.Data); total > int(h.payload) {
					t.Fatalf("%d bytes of records, the header has %d", total, h.payload)
				}
			}
		}
		if err != io.EOF && !errors.Is(err, ErrMalformed) && !errors.Is(err, ErrVersion) {
			t.Fatalf("error of no kind: %v", err)
		}
	})
}

// BenchmarkCompress is Seal of 1 MiB with each codec, and Open of that.
func BenchmarkCompress(b *testing.B) {
	for _, x := range []struct {
		name string
		data []byte
	}{{"text", lines(1 << 20)}, {"noise", noise(1 << 20)}} {
		for _, c := range []Codec{CodecNone, CodecS2, CodecZstd} {
			b.Run(fmt.Sprintf("seal/%s/%v", x.name, c), func(b *testing.B) {
				b.SetBytes(int64(len(x.data)))
				b.ReportAllocs()
				bld := NewBuilder(1 << 20)
				bld.Compress(c)
				var s batch.Sealed
				for b.Loop() {
					bld.Add(&Attr{Path: "p"}, x.data)
					s = bld.Seal(testID(1), 1)
				}
				b.ReportMetric(float64(len(x.data))/float64(len(s.Data)), "ratio")
			})
			b.Run(fmt.Sprintf("open/%s/%v", x.name, c), func(b *testing.B) {
				s := sealWith(b, c, x.data)
				var r Reader
				b.SetBytes(int64(len(x.data)))
				b.ReportAllocs()
				for b.Loop() {
					if err := r.Reset(s); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}
