package tally_test

import (
	"bytes"
	"strings"
	"testing"
	"testing/iotest"

	"ftfuse/bench/tally"
)

// all is every line of the plan, the writers taking turns.
func all(p tally.Plan) [][]byte {
	var lines [][]byte
	for n := range p.Lines {
		for w := range p.Writers {
			lines = append(lines, tally.Append(nil, w, n, p.Size))
		}
	}
	return lines
}

func check(t *testing.T, p tally.Plan, data []byte) tally.Count {
	t.Helper()
	c, err := tally.Check(bytes.NewReader(data), p)
	if err != nil {
		t.Fatal(err)
	}
	slow, err := tally.Check(iotest.HalfReader(bytes.NewReader(data)), p)
	if err != nil {
		t.Fatal(err)
	}
	if c != slow {
		t.Fatalf("the count depends on how the lines are read: %v, then %v", c, slow)
	}
	return c
}

func TestLineIsWriterNumberFillerAndLineEnd(t *testing.T) {
	if got := string(tally.Append(nil, 3, 42, tally.MinLine)); got != "300000042\n" {
		t.Errorf("shortest line %q", got)
	}
	got := string(tally.Append([]byte("before "), 11, 99_999_999, 128))
	if !strings.HasPrefix(got, "before b99999999") || len(got) != 128+7 || strings.Count(got, "\n") != 1 {
		t.Errorf("line of 128 bytes: %q", got)
	}
}

func TestEveryLineOnceIsOK(t *testing.T) {
	for _, size := range []int{10, 11, 128, 4096} {
		p := tally.Plan{Writers: 4, Lines: 500, Size: size}
		c := check(t, p, bytes.Join(all(p), nil))
		if !c.OK() || c.Lines != 2000 {
			t.Errorf("size %d: %v", size, c)
		}
	}
}

// Each kind of damage is counted as what it is, once, and nothing else is.
func TestDamageIsCounted(t *testing.T) {
	for _, size := range []int{10, 128} {
		p := tally.Plan{Writers: 2, Lines: 300, Size: size}
		for name, tc := range map[string]struct {
			damage func([][]byte) [][]byte
			want   tally.Count
		}{
			"lost":    {func(l [][]byte) [][]byte { return append(l[:77], l[78:]...) }, tally.Count{Lines: 599, Lost: 1}},
			"doubled": {func(l [][]byte) [][]byte { return append(l, l[13]) }, tally.Count{Lines: 600, Doubled: 1}},
			"order":   {func(l [][]byte) [][]byte { l[10], l[12] = l[12], l[10]; return l }, tally.Count{Lines: 600, Disorder: 1}},
			"altered": {func(l [][]byte) [][]byte { l[5][3] = 'x'; return l }, tally.Count{Lines: 599, Lost: 1, Altered: 1}},
			"cut":     {func(l [][]byte) [][]byte { l[599] = l[599][:4]; return l }, tally.Count{Lines: 599, Lost: 1, Partial: 4}},
			"merged":  {func(l [][]byte) [][]byte { l[8] = l[8][:9]; return l }, tally.Count{Lines: 598, Lost: 2, Altered: 1}},
			"nothing": {func([][]byte) [][]byte { return nil }, tally.Count{Lost: 600}},
			"foreign": {func(l [][]byte) [][]byte { return append(l, []byte("hello\n")) }, tally.Count{Lines: 600, Altered: 1}},
		} {
			got := check(t, p, bytes.Join(tc.damage(all(p)), nil))
			if got.First == "" {
				t.Errorf("size %d, %s: says nothing about where", size, name)
			}
			got.First = ""
			if got != tc.want {
				t.Errorf("size %d, %s: got %v, want %v", size, name, got, tc.want)
			}
		}
	}
}

// A piece of another line in the filler is noticed although writer and number are right.
func TestFillerOfAnotherLineIsAltered(t *testing.T) {
	p := tally.Plan{Writers: 2, Lines: 10, Size: 200}
	l := all(p)
	copy(l[4][100:150], l[5][100:150])
	if c := check(t, p, bytes.Join(l, nil)); c.Altered != 1 || c.Lost != 1 {
		t.Errorf("got %v, want 1 altered and 1 lost", c)
	}
}

// A line whose write was in flight when the daemon was killed may be missing, may be there,
// may be there as a prefix before the next line; it is doubled when it comes twice.
func TestMaybeLines(t *testing.T) {
	p := tally.Plan{Writers: 2, Lines: 20, Size: 64, Maybe: []tally.Name{{Writer: 1, N: 7}}}
	lines := all(p)
	at := 7*2 + 1
	whole := bytes.Join(lines, nil)
	missing := bytes.Join(append(append([][]byte{}, lines[:at]...), lines[at+1:]...), nil)
	prefix := append([][]byte{}, lines...)
	prefix[at] = prefix[at][:30]
	twice := append(append([]byte{}, whole...), lines[at]...)
	for name, tc := range map[string]struct {
		data []byte
		want tally.Count
	}{
		"there":   {whole, tally.Count{Lines: 40}},
		"missing": {missing, tally.Count{Lines: 39}},
		"prefix":  {bytes.Join(prefix, nil), tally.Count{Lines: 39, Torn: 1}},
		"twice":   {twice, tally.Count{Lines: 40, Doubled: 1}},
	} {
		got := check(t, p, tc.data)
		got.First = ""
		if got != tc.want || got.OK() != (name != "twice") {
			t.Errorf("%s: got %v, want %v", name, got, tc.want)
		}
	}
	prefix[4] = prefix[4][:30] // one that was accepted
	if c := check(t, p, bytes.Join(prefix, nil)); c.OK() || c.Altered != 1 || c.Lost != 2 {
		t.Errorf("a torn accepted line: got %v, want 1 altered, 2 lost", c)
	}
}

func TestEndlessLineIsBounded(t *testing.T) {
	p := tally.Plan{Writers: 1, Lines: 1, Size: 10}
	data := append(bytes.Repeat([]byte("x"), 9<<20), tally.Append([]byte("\n"), 0, 0, 10)...)
	if c := check(t, p, data); c.Lines != 1 || c.Altered < 1 {
		t.Errorf("got %v, want the one line found behind the endless one", c)
	}
}

func BenchmarkCheck10(b *testing.B) {
	p := tally.Plan{Writers: 4, Lines: 500_000, Size: 10}
	data := bytes.Join(all(p), nil)
	b.SetBytes(int64(len(data)))
	for b.Loop() {
		if c, err := tally.Check(bytes.NewReader(data), p); err != nil || !c.OK() {
			b.Fatal(c, err)
		}
	}
}

func BenchmarkAppendRun10(b *testing.B) {
	buf := make([]byte, 0, 64<<10)
	b.SetBytes(65530)
	for b.Loop() {
		buf = tally.AppendRun(buf[:0], 3, 12_345_678, 6553, 10)
	}
}
