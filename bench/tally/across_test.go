package tally

import (
	"bytes"
	"slices"
	"testing"
)

func TestPartsAtTwoReceivers(t *testing.T) {
	plan := Plan{Writers: 2, Lines: 10, Size: 20, Maybe: []Name{{1, 9}}}
	lines := func(names ...Name) []byte {
		var b []byte
		for _, n := range names {
			b = append(b, "tag "...)
			b = Append(b, n.Writer, n.N, plan.Size)
		}
		return b
	}
	var first, second []Name
	for n := range 10 {
		first = append(first, Name{0, n})
		if n < 9 {
			second = append(second, Name{1, n})
		}
	}
	part := func(b []byte) (*Seen, Count) {
		t.Helper()
		r, err := Untagged(bytes.NewReader(b))
		if err != nil {
			t.Fatal(err)
		}
		c, s, err := CheckSeen(r, plan)
		if err != nil {
			t.Fatal(err)
		}
		return s, c
	}
	a, _ := part(lines(first...))
	b, _ := part(lines(second...))
	if lost, twice := Across(plan, a, b); len(lost) != 0 || len(twice) != 0 {
		t.Errorf("lost %v, twice %v, want none", lost, twice)
	}
	b, _ = part(lines(append(slices.Clone(second[1:]), Name{0, 4}, Name{0, 6})...))
	lost, twice := Across(plan, a, b)
	if !slices.Equal(lost, []Name{{1, 0}}) || !slices.Equal(twice, []Name{{0, 4}, {0, 6}}) {
		t.Errorf("lost %v, twice %v, want line 0 of writer 1, and 4 and 6 of writer 0", lost, twice)
	}
	if _, c := part(append(lines(Name{0, 1}, Name{0, 1}), "tag changed\n"...)); c.Doubled != 1 || c.Altered != 1 {
		t.Errorf("%v, want 1 doubled and 1 altered", c)
	}
}

func TestParse(t *testing.T) {
	good := Append(nil, 11, 1234567, 64)
	if n, ok := Parse(good); !ok || n != (Name{11, 1234567}) {
		t.Errorf("%q is %v, %v", good, n, ok)
	}
	for _, bad := range [][]byte{good[1:], good[:60], bytes.Replace(good, []byte("7"), []byte("x"), 1), nil} {
		if n, ok := Parse(bad); ok {
			t.Errorf("%q passes as %v", bad, n)
		}
	}
}
