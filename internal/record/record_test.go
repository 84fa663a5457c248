package record

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"ftfuse/internal/batch"
)

// testID is the id under which the tests seal.
func testID(n uint64) batch.ID {
	l := batch.Lane{Epoch: batch.Epoch{Counter: 7, Random: 0x0123456789abcdef}, Route: 3, Bucket: 5}
	for i := range l.Origin {
		l.Origin[i] = byte(0xa0 + i)
	}
	return batch.ID{Lane: l, N: n}
}

// want is a record as it was added.
type want struct {
	a    Attr
	data []byte
}

// readAll reads s to its end and copies the records.
func readAll(t *testing.T, r *Reader) []want {
	t.Helper()
	var got []want
	for {
		rec, err := r.Next()
		if err == io.EOF {
			return got
		}
		if err != nil {
			t.Fatalf("record %d: %v", len(got), err)
		}
		if !bytes.Equal(rec.Data, r.all[rec.Off:rec.Off+len(rec.Data)]) {
			t.Fatalf("record %d: Off %d is not where its data stand", len(got), rec.Off)
		}
		got = append(got, want{rec.Attr, bytes.Clone(rec.Data)})
	}
}

func equal(t *testing.T, got, wanted []want) {
	t.Helper()
	if len(got) != len(wanted) {
		t.Fatalf("%d records, want %d", len(got), len(wanted))
	}
	for i := range got {
		if !same(got[i].a, wanted[i].a) || !bytes.Equal(got[i].data, wanted[i].data) {
			t.Fatalf("record %d: got %+v %q, want %+v %q", i, got[i].a, got[i].data, wanted[i].a, wanted[i].data)
		}
	}
}

// same compares attributes, processes by what they say.
func same(a, b Attr) bool {
	if (a.Process == nil) != (b.Process == nil) || a.Exe() != b.Exe() || a.Cgroup() != b.Cgroup() {
		return false
	}
	a.Process, b.Process = nil, nil
	return a == b
}

// TestRoundTrip seals random records through one Builder and reads them through one
// Reader, batch after batch, so that what either keeps between batches is seen.
func TestRoundTrip(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	var r Reader
	b := NewBuilder(20_000)
	procs := []*Process{nil, {}, {Exe: "/usr/bin/a"}, {Exe: "/usr/bin/a", Cgroup: "/a.slice"}, {Cgroup: strings.Repeat("c", MaxProcess)}}
	for n := uint64(1); n < 300; n++ {
		var wanted []want
		b.Compress(Codec(rng.IntN(3)))
		letters := 1 + rng.IntN(256)
		writers := 1 + rng.IntN(9)
		for len(wanted) < 400 {
			w := rng.IntN(writers)
			a := Attr{
				Host: fmt.Sprint("host-", n%2), Path: strings.Repeat("p", rng.IntN(3)*w) + fmt.Sprint(w),
				PID: rng.Uint32() >> rng.IntN(32), UID: uint32(w), GID: uint32(w / 2),
				Time: rng.Int64N(1 << (1 + rng.IntN(62))), Flags: uint16(rng.Uint32()) & knownFlags,
			}
			if n%3 > 0 { // else of version 1
				a.Process = procs[rng.IntN(len(procs))]
			}
			if rng.IntN(3) == 0 {
				a.Time, a.PID = -a.Time, 1
			}
			data := make([]byte, rng.IntN(1+rng.IntN(200)))
			for i := range data {
				data[i] = byte(rng.IntN(letters))
			}
			cut := rng.IntN(len(data) + 1)
			if !b.Add(&a, data[:cut], data[cut:]) {
				break
			}
			wanted = append(wanted, want{a, data})
		}
		length, records, payload := b.Len(), b.Records(), b.Payload()
		s := b.Seal(testID(n), int64(n))
		if len(s.Data) > length || Codec(s.Data[6]) == CodecNone && len(s.Data) != length || int(s.Records) != records || int(s.Payload) != payload || records != len(wanted) {
			t.Fatalf("sealed %d bytes, %d records, %d payload; Builder said %d, %d, %d; added %d",
				len(s.Data), s.Records, s.Payload, length, records, payload, len(wanted))
		}
		if batch.Checksum(s.Data) != s.CRC {
			t.Fatal("CRC is not that of Data")
		}
		if s.Host != fmt.Sprint("host-", n%2) {
			t.Fatalf("the envelope's host is %q", s.Host)
		}
		if b.Len() != 0 || b.Records() != 0 || b.Payload() != 0 {
			t.Fatal("Builder is not empty after Seal")
		}
		if err := r.Reset(s); err != nil {
			t.Fatal(err)
		}
		equal(t, readAll(t, &r), wanted)
	}
}

// TestSealedIsNotTouchedAgain: what Seal gave away never changes, whether the buffer
// went along or a copy did.
func TestSealedIsNotTouchedAgain(t *testing.T) {
	b := NewBuilder(10_000)
	var sealed []batch.Sealed
	for i := range 40 {
		for j := 0; ; j++ {
			if !b.Add(&Attr{Path: "p", Time: int64(i)}, bytes.Repeat([]byte{byte(i)}, 500)) || (i%2 == 0 && j == 3) {
				break
			}
		}
		sealed = append(sealed, b.Seal(testID(uint64(i+1)), 0))
	}
	for i, s := range sealed {
		if batch.Checksum(s.Data) != s.CRC {
			t.Fatalf("batch %d changed after Seal", i)
		}
		if i%2 == 0 && cap(s.Data) > 2*len(s.Data) {
			t.Errorf("batch %d of %d bytes holds %d", i, len(s.Data), cap(s.Data))
		}
	}
}

func TestLimits(t *testing.T) {
	b := NewBuilder(1 << 20)
	big := make([]byte, MaxRecord)
	if !b.Add(&Attr{Host: strings.Repeat("h", batch.MaxHost), Path: strings.Repeat("p", MaxString)}, big) {
		t.Fatal("a record of MaxRecord does not fit an empty batch")
	}
	if b.Add(&Attr{}, []byte("x")) {
		t.Error("a record fits behind one of MaxRecord")
	}
	s := b.Seal(testID(1), 0)
	if len(s.Data) > MaxBatch {
		t.Errorf("sealed %d bytes, above MaxBatch", len(s.Data))
	}
	if err := Check(s); err != nil {
		t.Error(err)
	}
	if b.Add(&Attr{}, make([]byte, MaxBatch)) {
		t.Error("a record of MaxBatch was taken")
	}
	if b.Add(&Attr{Path: strings.Repeat("p", MaxString+1)}) {
		t.Error("a path above MaxString was taken")
	}
	if b.Add(&Attr{Host: strings.Repeat("h", batch.MaxHost+1)}) {
		t.Error("a host above batch.MaxHost was taken")
	}
	if b.Records() != 0 || b.Len() != 0 {
		t.Error("a refused record was counted")
	}
	for i := range 16 {
		if !b.Add(&Attr{Path: "f", Time: int64(i)}, make([]byte, 64<<10)) {
			t.Fatalf("record %d of 64 KiB does not fit a batch of 1 MiB", i)
		}
	}
	if s = b.Seal(testID(2), 0); Check(s) != nil || s.Payload != 1<<20 {
		t.Errorf("payload %d, %v", s.Payload, Check(s))
	}
	for i := range MaxWriters {
		if !b.Add(&Attr{PID: uint32(i)}) {
			if b.Len() < 900<<10 {
				t.Fatalf("refused at %d writers, %d bytes", i, b.Len())
			}
			break
		}
	}
	if err := Check(b.Seal(testID(3), 0)); err != nil {
		t.Error(err)
	}
	if err := Check(b.Seal(testID(4), 0)); err != nil {
		t.Error("an empty batch:", err)
	}
}

// TestTheEnvelopeHasTheHost of its records, and none of a batch before.
func TestTheEnvelopeHasTheHost(t *testing.T) {
	b := NewBuilder(1 << 20)
	for i, host := range []string{"a", "", "b"} {
		b.Add(&Attr{Host: host, Path: "p"}, []byte("x"))
		if s := b.Seal(testID(uint64(i+1)), 0); s.Host != host {
			t.Errorf("host %q, want %q", s.Host, host)
		}
	}
	if s := b.Seal(testID(9), 0); s.Host != "" {
		t.Errorf("host of an empty batch: %q", s.Host)
	}
}

// TestMalformed damages one named thing each and wants the right sentinel.
func TestMalformed(t *testing.T) {
	b := NewBuilder(1000)
	b.Add(&Attr{Host: "h", Path: "p", PID: 1, Time: 5, Flags: Binary}, []byte("hello"))
	b.Add(&Attr{Host: "h", Path: "p", PID: 1, Time: 5}, []byte("world"))
	good := b.Seal(testID(1), 99)
	heads := HeaderSize + 10
	put32 := func(at int, v uint32) func(*batch.Sealed) {
		return func(s *batch.Sealed) { binary.LittleEndian.PutUint32(s.Data[at:], v) }
	}
	set := func(at int, v byte) func(*batch.Sealed) { return func(s *batch.Sealed) { s.Data[at] = v } }
	for name, c := range map[string]struct {
		change func(*batch.Sealed)
		want   error
	}{
		"magic":             {set(0, 'x'), ErrMalformed},
		"version":           {set(4, Version+1), ErrVersion},
		"version 0":         {set(4, 0), ErrVersion},
		"codec of tomorrow": {set(6, 3), ErrVersion},
		"codec s2":          {set(6, byte(CodecS2)), ErrMalformed},
		"compressed length": {set(80, 1), ErrMalformed},
		"reserved":          {set(7, 1), ErrMalformed},
		"reserved at end":   {set(HeaderSize-1, 1), ErrMalformed},
		"other id":          {set(8, 1), ErrMalformed},
		"id of bucket 200":  {set(44, 200), ErrMalformed},
		"envelope's time":   {func(s *batch.Sealed) { s.Time++ }, ErrMalformed},
		"envelope's count":  {func(s *batch.Sealed) { s.Records++ }, ErrMalformed},
		"payload":           {func(s *batch.Sealed) { s.Data[64]++; s.Payload++ }, ErrMalformed},
		"payload enormous":  {func(s *batch.Sealed) { s.Data[71], s.Payload = 0xff, s.Payload|0xff<<56 }, ErrMalformed},
		"heads":             {put32(76, 1<<31), ErrMalformed},
		"record too many":   {func(s *batch.Sealed) { s.Data[72]++; s.Records++ }, ErrMalformed},
		"record too few":    {func(s *batch.Sealed) { s.Data[72]--; s.Records-- }, ErrMalformed},
		"empty":             {func(s *batch.Sealed) { s.Data = nil }, ErrMalformed},
		"cut header":        {func(s *batch.Sealed) { s.Data = s.Data[:HeaderSize-1] }, ErrMalformed},
		"cut heads":         {func(s *batch.Sealed) { s.Data = s.Data[:len(s.Data)-1] }, ErrMalformed},
		"control bits":      {set(heads, 0xff), ErrMalformed},
		"no writer":         {set(heads, ctlSame|ctlLen), ErrMalformed},
		"writer 3":          {set(heads, ctlWriter), ErrMalformed},
		"unknown writer":    {set(heads, ctlKnown), ErrMalformed},
		"string from ahead": {set(heads+1, 7), ErrMalformed},
		"string too long":   {set(heads+2, 0x7f), ErrMalformed},
		"flag of tomorrow":  {set(heads+11, 0x10), ErrVersion}, // makes the two-byte flags 0x800
	} {
		t.Run(name, func(t *testing.T) {
			s := good
			s.Data = bytes.Clone(good.Data)
			c.change(&s)
			if err := Check(s); !errors.Is(err, c.want) {
				t.Errorf("got %v, want %v", err, c.want)
			}
		})
	}
	if err := Check(good); err != nil {
		t.Error(err)
	}
}

// TestErrorStays: after an error every Next fails.
func TestErrorStays(t *testing.T) {
	b := NewBuilder(1000)
	for range 3 {
		b.Add(&Attr{Path: "p"}, []byte("data"))
	}
	s := b.Seal(testID(1), 0)
	s.Data[len(s.Data)-1] = 0xff
	r, err := Open(s)
	if err != nil {
		t.Fatal(err)
	}
	for err == nil {
		_, err = r.Next()
	}
	for range 10 {
		if _, again := r.Next(); !errors.Is(again, ErrMalformed) {
			t.Fatalf("after %v came %v", err, again)
		}
	}
}

func TestAllocations(t *testing.T) {
	b := NewBuilder(1 << 20)
	line := []byte("123456789\n")
	attrs := make([]Attr, 6)
	for i := range attrs {
		attrs[i] = Attr{Host: "host", Path: fmt.Sprint("logs/", i), PID: uint32(i)}
	}
	fill := func() batch.Sealed {
		for i := range 10_000 {
			a := &attrs[i%len(attrs)]
			a.Time += 7000
			if !b.Add(a, line) {
				t.Fatal("full")
			}
		}
		return b.Seal(testID(1), 0)
	}
	s := fill()
	if n := testing.AllocsPerRun(20, func() { s = fill() }); n > 2 {
		t.Errorf("%v allocations to build and seal 10,000 records, want at most 2", n)
	}
	var r Reader
	read := func() {
		if err := r.Reset(s); err != nil {
			t.Fatal(err)
		}
		for {
			if _, err := r.Next(); err != nil {
				if err != io.EOF {
					t.Fatal(err)
				}
				return
			}
		}
	}
	read()
	if n := testing.AllocsPerRun(20, read); n > 1 {
		t.Errorf("%v allocations to read 10,000 records, want at most 1", n)
	}
	if over := (len(s.Data) - HeaderSize - int(s.Payload)) / 10_000; over > 6 {
		t.Errorf("%d bytes of overhead a record of 6 interleaved writers", over)
	}
}

// TestHostileAllocation: a batch of nothing but definitions of writers may make the
// reader allocate a small multiple of its length and no more.
func TestHostileAllocation(t *testing.T) {
	var heads []byte
	records := uint32(0)
	for i := range uint64(MaxWriters) {
		heads = append(heads, ctlNew)
		heads = binary.AppendUvarint(heads, 2*i) // a new empty string each time
		heads = append(heads, 0)
		heads = binary.AppendUvarint(heads, 2*i+1)
		heads = append(heads, 0, 1, 1, 1)
		records++
	}
	h := header{version: versionOld, id: testID(1), records: records, heads: uint32(len(heads))}
	data := make([]byte, HeaderSize)
	h.put(data)
	data = append(data, heads...)
	s := batch.Sealed{ID: h.id, Records: records, Data: data}
	if err := Check(s); err != nil {
		t.Fatal(err)
	}
	res := testing.Benchmark(func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			_ = Check(s)
		}
	})
	if per := res.AllocedBytesPerOp(); per > int64(32*len(data)) {
		t.Errorf("%d bytes allocated for a batch of %d", per, len(data))
	}
}

func FuzzReader(f *testing.F) {
	for _, s := range append(goldenBatches(), goldenPacked(f)...) {
		f.Add(s.Data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		s := batch.Sealed{ID: testID(1), Data: data}
		if len(data) >= HeaderSize { // an envelope that agrees, so that the heads are reached
			if id, err := batch.ParseID(data[8:]); err == nil {
				s.ID = id
			}
			s.Time = int64(binary.LittleEndian.Uint64(data[56:]))
			s.Payload = binary.LittleEndian.Uint64(data[64:])
			s.Records = binary.LittleEndian.Uint32(data[72:])
		}
		before := bytes.Clone(data)
		r, err := Open(s)
		var got []want
		total := 0
		for err == nil {
			var rec Record
			if rec, err = r.Next(); err == nil && len(got) < 1000 {
				got = append(got, want{rec.Attr, rec.Data})
			}
			total += len(rec.Data)
		}
		if total > MaxBatch || total > MaxRatio*len(data) {
			t.Fatalf("%d bytes of records from %d", total, len(data))
		}
		if !bytes.Equal(before, data) {
			t.Fatal("the reader wrote to the batch")
		}
		if err != io.EOF {
			if !errors.Is(err, ErrMalformed) && !errors.Is(err, ErrVersion) {
				t.Fatalf("error of no kind: %v", err)
			}
			return
		}
		if int(s.Records) != len(got) {
			return
		}
		b := NewBuilder(MaxBatch) // what could be read can be written, and read again
		for i := range got {
			if !b.Add(&got[i].a, got[i].data) {
				return
			}
		}
		again := b.Seal(s.ID, s.Time)
		r2, err := Open(again)
		if err != nil {
			t.Fatal(err)
		}
		equal(t, readAll(t, r2), got)
	})
}

// TestEveryFlippedBitIsHarmless flips each bit of a batch: the CRC notices every one,
// and the reader neither panics nor gives bytes from outside.
func TestEveryFlippedBitIsHarmless(t *testing.T) {
	for _, good := range append(goldenPacked(t), goldenBatches()[1]) {
		for bit := range len(good.Data) * 8 {
			s := good
			s.Data = bytes.Clone(good.Data)
			s.Data[bit/8] ^= 1 << (bit % 8)
			if batch.Checksum(s.Data) == s.CRC {
				t.Fatalf("bit %d: the CRC did not change", bit)
			}
			_ = Check(s)
		}
		for n := range good.Data {
			s := good
			s.Data = good.Data[:n]
			if Check(s) == nil {
				t.Fatalf("cut to %d of %d bytes and read as good", n, len(good.Data))
			}
		}
	}
}

func TestKnownFlagsAreTheFlags(t *testing.T) {
	all := []uint16{Unterminated, Break, PieceFirst, PieceMiddle, PieceLast, Recovered, Offline, Overwrite, Binary, Opener, Several}
	var or uint16
	for _, f := range all {
		or |= f
	}
	if or != knownFlags || len(slices.Compact(slices.Clone(all))) != len(all) {
		t.Errorf("known %#x, listed %#x", knownFlags, or)
	}
}
