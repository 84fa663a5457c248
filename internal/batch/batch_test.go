package batch

import (
	"bytes"
	"errors"
	"flag"
	"math"
	"math/rand/v2"
	"os"
	"slices"
	"testing"
)

var update = flag.Bool("update", false, "write the golden files anew; never for a released version")

// sample is a lane whose every byte is another.
func sample() Lane {
	l := Lane{Epoch: Epoch{Counter: 0x0102030405060708, Random: 0x1112131415161718}, Route: 0x21222324, Bucket: 15}
	for i := range l.Origin {
		l.Origin[i] = byte(0xf0 - i)
	}
	return l
}

func TestNames(t *testing.T) {
	id := ID{Lane: sample(), N: math.MaxUint64}
	b := id.Append([]byte("before"))
	if len(b) != 6+IDSize {
		t.Fatalf("an id takes %d bytes, want %d", len(b)-6, IDSize)
	}
	got, err := ParseID(append(b[6:], "behind"...))
	if err != nil || got != id {
		t.Errorf("%v %v", got, err)
	}
	if want := "f0efeeedecebeae9e8e7e6e5e4e3e2e1/72623859790382856-1112131415161718/555885348/15/18446744073709551615"; id.String() != want {
		t.Errorf("text %s, want %s", id, want)
	}
	for n := range IDSize {
		if _, err := ParseID(b[6 : 6+n]); !errors.Is(err, ErrShort) {
			t.Errorf("%d bytes of an id: %v", n, err)
		}
	}
}

func TestMalformedNames(t *testing.T) {
	good := ID{Lane: sample(), N: 1}.Append(nil)
	for name, at := range map[string]int{"bucket": 36, "reserved 1": 37, "reserved 2": 38, "reserved 3": 39} {
		b := bytes.Clone(good)
		b[at] = 16
		if _, err := ParseID(b); !errors.Is(err, ErrName) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := ParseID(ID{Lane: sample()}.Append(nil)); !errors.Is(err, ErrName) {
		t.Errorf("number 0: %v", err)
	}
}

// TestRangesAgainstModel: random additions against a plain map.
func TestRangesAgainstModel(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 3))
	for range 300 {
		base := uint64(1)
		if rng.IntN(4) == 0 {
			base = math.MaxUint64 - 120
		}
		var s Ranges
		model := make(map[uint64]bool)
		for range rng.IntN(60) {
			n := base + rng.Uint64N(100)
			if rng.IntN(3) > 0 {
				if s.Add(n) == model[n] {
					t.Fatalf("Add(%d) on %v said %v", n, &s, model[n])
				}
				model[n] = true
				continue
			}
			r := Range{n, n + rng.Uint64N(20)}
			if rng.IntN(2) == 0 {
				s.RemoveRange(r)
				for ; n <= r.Last; n++ {
					delete(model, n)
				}
				continue
			}
			s.AddRange(r)
			for ; n <= r.Last; n++ {
				model[n] = true
			}
		}
		checkRanges(t, &s, model, base)
	}
}

func checkRanges(t *testing.T, s *Ranges, model map[uint64]bool, base uint64) {
	t.Helper()
	for n := base - 1; n != base+121 && n != 0; n++ {
		if s.Contains(n) != model[n] {
			t.Fatalf("%v contains %d: %v", s, n, !model[n])
		}
	}
	if s.Count() != uint64(len(model)) {
		t.Fatalf("%v counts %d, want %d", s, s.Count(), len(model))
	}
	all := s.All()
	for i := 1; i < len(all); i++ {
		if all[i].First <= all[i-1].Last+1 {
			t.Fatalf("%v overlaps or touches", s)
		}
	}
	if base == 1 {
		want := uint64(1)
		for model[want] {
			want++
		}
		if s.Next() != want {
			t.Fatalf("%v: next %d, want %d", s, s.Next(), want)
		}
	}
	got, rest, err := ParseRanges(append(s.Append(nil), 1, 2, 3))
	if err != nil || len(rest) != 3 || !slices.Equal(got.All(), all) || got.String() != s.String() {
		t.Fatalf("%v came back as %v, rest %d, %v", s, &got, len(rest), err)
	}
}

func TestRangesAtTheEnds(t *testing.T) {
	var s Ranges
	s.AddRange(Range{5, 4}) // empty
	s.AddRange(Range{math.MaxUint64, math.MaxUint64})
	s.AddRange(Range{0, 3})
	s.Add(math.MaxUint64)
	if s.String() != "0-3,18446744073709551615" || s.Len() != 2 {
		t.Errorf("%v", &s)
	}
	s.Add(5)
	s.AddRange(Range{4, math.MaxUint64 - 1})
	if s.String() != "0-18446744073709551615" {
		t.Errorf("%v", &s)
	}
}

func FuzzParseRanges(f *testing.F) {
	var s Ranges
	f.Add(s.Append(nil))
	s.AddRange(Range{1, 5})
	s.AddRange(Range{9, math.MaxUint64})
	f.Add(s.Append(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, rest, err := ParseRanges(b)
		if err != nil {
			if !errors.Is(err, ErrName) {
				t.Fatalf("error of no kind: %v", err)
			}
			return
		}
		again, _, err := ParseRanges(s.Append(nil))
		if err != nil || !slices.Equal(again.All(), s.All()) || len(rest) > len(b) {
			t.Fatalf("%v came back as %v, %v", &s, &again, err)
		}
		var built Ranges
		for _, r := range s.All() {
			built.AddRange(r)
		}
		if !slices.Equal(built.All(), s.All()) {
			t.Fatalf("parsed %v is not normal: %v", &s, &built)
		}
	})
}

func TestGolden(t *testing.T) {
	var r Ranges
	for _, x := range []Range{{1, 5}, {7, 7}, {1000, 1 << 40}} {
		r.AddRange(x)
	}
	got := r.Append(ID{Lane: sample(), N: 0x3132333435363738}.Append(nil))
	const file = "testdata/names.bin"
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
		t.Errorf("wrote\n% x\nwant\n% x", got, want)
	}
}

// TestChecksum: CRC-32C of the check string, as RFC 3720 and every catalogue has it.
func TestChecksum(t *testing.T) {
	if got := Checksum([]byte("123456789")); got != 0xe3069283 {
		t.Errorf("%08x", got)
	}
}
