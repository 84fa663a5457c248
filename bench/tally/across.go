package tally

import (
	"bytes"
	"io"
	"strings"
)

// Seen is the set of a plan's lines that one reader of Check had.
type Seen struct {
	size int
	bits [][]uint64 // a bit a line, a slice a writer
}

// Has reports whether a line was there.
func (s *Seen) Has(n Name) bool {
	return n.Writer < len(s.bits) && n.N/64 < len(s.bits[n.Writer]) && s.bits[n.Writer][n.N/64]&(1<<(n.N%64)) != 0
}

// CheckSeen is Check, and tells which lines were there: for the parts of one plan that came
// out at several receivers, each of which may lack what another has.
func CheckSeen(r io.Reader, plan Plan) (Count, *Seen, error) {
	k, err := check(r, plan)
	if err != nil {
		return Count{}, nil, err
	}
	return k.c, &Seen{size: plan.Size, bits: k.seen}, nil
}

// Across puts the parts of a plan together: the lines that came out nowhere and need not be
// missing, and those that came out at more than one place.
func Across(plan Plan, parts ...*Seen) (lost, twice []Name) {
	maybe := make(map[Name]bool, len(plan.Maybe))
	for _, n := range plan.Maybe {
		maybe[n] = true
	}
	for w := range plan.Writers {
		for i := range plan.Lines {
			name, places := Name{w, i}, 0
			for _, p := range parts {
				if p.Has(name) {
					places++
				}
			}
			switch {
			case places == 0 && !maybe[name]:
				lost = append(lost, name)
			case places > 1:
				twice = append(twice, name)
			}
		}
	}
	return lost, twice
}

// Parse reads the name of a whole line, its line end included; false if it is no line that
// Append makes.
func Parse(line []byte) (Name, bool) {
	if len(line) < MinLine || len(line) > len(filler)/2 {
		return Name{}, false
	}
	w, n := strings.IndexByte(writerNames, line[0]), 0
	for _, d := range line[1:9] {
		if d -= '0'; d > 9 {
			return Name{}, false
		}
		n = n*10 + int(d)
	}
	if w < 0 || !bytes.Equal(line, Append(nil, w, n, len(line))) {
		return Name{}, false
	}
	return Name{w, n}, true
}

// Untagged reads lines of the form "TAG LINE" and yields them without TAG and the space. A
// line without a space comes as it is. The whole of r is held in memory.
func Untagged(r io.Reader) (io.Reader, error) {
	all, err := io.ReadAll(r)
	if err != nil {
		return nil, err
	}
	out := make([]byte, 0, len(all))
	for line := range bytes.Lines(all) {
		_, rest := Tag(line)
		out = append(out, rest...)
	}
	return bytes.NewReader(out), nil
}

// Tag cuts a line "TAG LINE" in two; TAG is empty if there is no space.
func Tag(line []byte) (tag, rest []byte) {
	if i := bytes.IndexByte(line, ' '); i >= 0 {
		return line[:i], line[i+1:]
	}
	return nil, line
}
