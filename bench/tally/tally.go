// Package tally makes numbered lines and counts them again wherever they come out. It
// knows nothing of ftfuse: the benchmark, the demo and the end-to-end tests use it to
// say, independently of the code they measure, what was lost, doubled, altered or
// brought out of order.
//
// A line names its writer and its number:
//
//	w nnnnnnnn filler… \n
//
// one character for the writer (0-9, a-z), eight digits for the number, which counts
// from 0, and filler that follows from both, up to the line's length. The shortest line,
// MinLine, has no filler.
package tally

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
)

// MinLine is the length of the shortest line, its line end included: writer, number, LF.
const MinLine = 10

// MaxWriters is how many writers a line can tell apart.
const MaxWriters = 36

// MaxLines is how many lines one writer can number.
const MaxLines = 100_000_000

const writerNames = "0123456789abcdefghijklmnopqrstuvwxyz"

// filler is longer than any line and has no period that a line's length could hide.
var filler = func() []byte {
	var b bytes.Buffer
	for i := 0; b.Len() < 1<<20; i++ {
		fmt.Fprintf(&b, "|%07d.abcdefghijklmnopqrstuvwxyz~", i*7919%10_000_000)
	}
	return b.Bytes()[:1<<20]
}()

// fill is the filler of a line: it begins at another place for each writer and number,
// so that a piece of one line inside another is noticed.
func fill(writer, n, size int) []byte {
	at := (writer*131 + n*17) & 0xffff
	return filler[at : at+size-MinLine]
}

// quads holds the four digits of 0 to 9999, in memory order.
var quads = sync.OnceValue(func() *[10_000][4]byte {
	var t [10_000][4]byte
	for i := range t {
		t[i] = [4]byte{byte('0' + i/1000), byte('0' + i/100%10), byte('0' + i/10%10), byte('0' + i%10)}
	}
	return &t
})

// Append appends the line of writer with number n and size bytes, its line end included.
func Append(b []byte, writer, n, size int) []byte {
	return AppendRun(b, writer, n, 1, size)
}

// AppendRun appends count lines of writer, numbered from first. It is fast enough (a few
// nanoseconds a line) that a benchmark does not measure it.
func AppendRun(b []byte, writer, first, count, size int) []byte {
	t, name := quads(), writerNames[writer]
	for n := first; n < first+count; n++ {
		hi, lo := &t[n/10_000], &t[n%10_000]
		if size == MinLine {
			b = append(b, name, hi[0], hi[1], hi[2], hi[3], lo[0], lo[1], lo[2], lo[3], '\n')
			continue
		}
		b = append(b, name, hi[0], hi[1], hi[2], hi[3], lo[0], lo[1], lo[2], lo[3])
		b = append(b, fill(writer, n, size)...)
		b = append(b, '\n')
	}
	return b
}

// Name names one line of a plan.
type Name struct{ Writer, N int }

// Plan says what must come out: Writers writers, each with Lines lines of Size bytes.
type Plan struct {
	Writers int
	Lines   int
	Size    int
	// Maybe names the lines whose write(2) returned an error because the daemon was killed
	// while it was in flight: each may be missing, or have come once, or as a prefix.
	Maybe []Name
}

// Bytes is what the plan comes to.
func (p Plan) Bytes() int64 { return int64(p.Writers) * int64(p.Lines) * int64(p.Size) }

// Validate refuses a plan that lines of this form cannot carry.
func (p Plan) Validate() error {
	switch {
	case p.Writers < 1 || p.Writers > MaxWriters:
		return fmt.Errorf("%d writers, want 1 to %d", p.Writers, MaxWriters)
	case p.Lines < 1 || p.Lines > MaxLines:
		return fmt.Errorf("%d lines a writer, want 1 to %d", p.Lines, MaxLines)
	case p.Size < MinLine || p.Size > len(filler)/2:
		return fmt.Errorf("lines of %d bytes, want %d to %d", p.Size, MinLine, len(filler)/2)
	}
	return nil
}

// Count is what was found. The zero value is "nothing wrong".
type Count struct {
	Lines    int64  `json:"lines"`           // good lines of the plan, each counted the first time it is seen
	Lost     int64  `json:"lost"`            // lines of the plan that never came
	Doubled  int64  `json:"doubled"`         // further sightings of a line that had come before
	Disorder int64  `json:"disorder"`        // first sightings after a higher number of the same writer
	Altered  int64  `json:"altered"`         // lines that are none of the plan's: cut, mixed, changed
	Torn     int64  `json:"torn,omitempty"`  // prefixes of lines that may be missing (Plan.Maybe)
	Partial  int64  `json:"partial"`         // bytes at the end without a line end
	First    string `json:"first,omitempty"` // where the first thing wrong is, in words
}

// OK reports whether every line of the plan came exactly once, whole and in order.
func (c Count) OK() bool {
	return c.Lost == 0 && c.Doubled == 0 && c.Disorder == 0 && c.Altered == 0 && c.Partial == 0
}

// String is one line for a person.
func (c Count) String() string {
	s := fmt.Sprintf("%d lines: %d lost, %d doubled, %d out of order, %d altered", c.Lines, c.Lost, c.Doubled, c.Disorder, c.Altered)
	if c.Partial > 0 {
		s += fmt.Sprintf(", %d bytes of an unfinished line", c.Partial)
	}
	if c.First != "" {
		s += " (first: " + c.First + ")"
	}
	return s
}

// checker keeps what was seen of a plan. Not safe for concurrent use.
type checker struct {
	plan Plan
	seen [][]uint64 // a bit a line, a slice a writer
	next []int      // one more than the highest number seen
	pos  int64      // offset of the line at hand
	c    Count
}

// Check reads everything from r and counts it against plan. It returns an error only
// when r does; what is wrong with the lines is in Count.
func Check(r io.Reader, plan Plan) (Count, error) {
	k, err := check(r, plan)
	if k == nil {
		return Count{}, err
	}
	return k.c, err
}

// check is Check; the checker is nil only for a plan that cannot be.
func check(r io.Reader, plan Plan) (*checker, error) {
	if err := plan.Validate(); err != nil {
		return nil, fmt.Errorf("check lines: %w", err)
	}
	k := &checker{plan: plan, seen: make([][]uint64, plan.Writers), next: make([]int, plan.Writers)}
	for w := range k.seen {
		k.seen[w] = make([]uint64, (plan.Lines+63)/64)
	}
	buf := make([]byte, 4<<20)
	have := 0
	for {
		n, err := r.Read(buf[have:])
		have += n
		rest := k.block(buf[:have])
		have = copy(buf, rest)
		if have == len(buf) { // a line longer than any of the plan's
			k.bad(buf)
			k.pos += int64(have)
			have = 0
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return k, fmt.Errorf("read the lines to check at offset %d: %w", k.pos, err)
		}
	}
	k.c.Partial = int64(have)
	if have > 0 {
		k.note("unfinished line %s", quote(buf[:have]))
	}
	k.c.Lost = int64(plan.Writers)*int64(plan.Lines) - k.c.Lines - k.maybeMissing()
	if k.c.Lost > 0 {
		k.noteLost()
	}
	return k, nil
}

// block checks the whole lines in b and returns what is left behind the last one.
func (k *checker) block(b []byte) []byte {
	size := k.plan.Size
	for len(b) > 0 {
		if len(b) >= size && b[size-1] == '\n' && k.line(b[:size]) {
			b = b[size:]
			k.pos += int64(size)
			continue
		}
		end := bytes.IndexByte(b, '\n')
		if end < 0 {
			return b
		}
		k.bad(b[:end+1])
		b = b[end+1:]
		k.pos += int64(end + 1)
	}
	return b
}

// line takes one line of the plan's size and reports whether it is one of the plan's.
func (k *checker) line(l []byte) bool {
	w := strings.IndexByte(writerNames, l[0])
	if w < 0 || w >= k.plan.Writers {
		return false
	}
	n := 0
	for _, d := range l[1:9] {
		d -= '0'
		if d > 9 {
			return false
		}
		n = n*10 + int(d)
	}
	if n >= k.plan.Lines || (len(l) > MinLine && !bytes.Equal(l[9:len(l)-1], fill(w, n, len(l)))) {
		return false
	}
	word, bit := &k.seen[w][n/64], uint64(1)<<(n%64)
	switch {
	case *word&bit != 0:
		k.c.Doubled++
		k.note("line %d of writer %c again", n, l[0])
		return true
	case n < k.next[w]:
		k.c.Disorder++
		k.note("line %d of writer %c after line %d", n, l[0], k.next[w]-1)
	default:
		k.next[w] = n + 1
	}
	*word |= bit
	k.c.Lines++
	return true
}

// bad takes a line that is none of the plan's.
func (k *checker) bad(l []byte) {
	if k.torn(l) {
		k.c.Torn++
		return
	}
	k.c.Altered++
	k.note("%s is no line of the plan", quote(l))
}

// torn reports whether l is a prefix of a line that may be missing, before a whole line
// of the plan, and counts that one.
func (k *checker) torn(l []byte) bool {
	if len(l) <= k.plan.Size || len(l) >= 2*k.plan.Size {
		return false
	}
	head, tail := l[:len(l)-k.plan.Size], l[len(l)-k.plan.Size:]
	for _, m := range k.plan.Maybe {
		if bytes.HasPrefix(Append(nil, m.Writer, m.N, k.plan.Size), head) {
			return k.line(tail)
		}
	}
	return false
}

// maybeMissing counts the lines that did not come and need not have.
func (k *checker) maybeMissing() int64 {
	var missing int64
	for _, m := range k.plan.Maybe {
		if k.seen[m.Writer][m.N/64]&(1<<(m.N%64)) == 0 {
			missing++
		}
	}
	return missing
}

func (k *checker) note(format string, args ...any) {
	if k.c.First == "" {
		k.c.First = fmt.Sprintf("offset %d: ", k.pos) + fmt.Sprintf(format, args...)
	}
}

func (k *checker) noteLost() {
	if k.c.First != "" {
		return
	}
	for w := range k.seen {
		for n := range k.plan.Lines {
			if k.seen[w][n/64]&(1<<(n%64)) == 0 && !slices.Contains(k.plan.Maybe, Name{w, n}) {
				k.c.First = fmt.Sprintf("line %d of writer %c never came", n, writerNames[w])
				return
			}
		}
	}
}

func quote(b []byte) string {
	if len(b) > 60 {
		return fmt.Sprintf("%q… (%d bytes)", b[:60], len(b))
	}
	return fmt.Sprintf("%q", b)
}
