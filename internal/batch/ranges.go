package batch

import (
	"encoding/binary"
	"fmt"
	"slices"
	"sort"
	"strconv"
	"strings"
)

// Range is the batch numbers First to Last, both included.
type Range struct{ First, Last uint64 }

// Ranges is a set of batch numbers, kept as sorted ranges that neither overlap nor
// touch. The zero value is the empty set. It is not safe for concurrent use.
//
// It is a set and never a high-water mark: a mark loses every batch that arrives
// after a later one did, which is what failover does.
type Ranges struct{ r []Range }

// Add puts n into the set and reports whether it was new.
func (s *Ranges) Add(n uint64) bool {
	if k := len(s.r); k > 0 && s.r[k-1].Last+1 == n { // the common case: the next number
		s.r[k-1].Last = n
		return true
	}
	if s.Contains(n) {
		return false
	}
	s.AddRange(Range{n, n})
	return true
}

// AddRange puts every number of r into the set. A range whose First is above its
// Last is empty.
func (s *Ranges) AddRange(r Range) {
	if r.First > r.Last {
		return
	}
	// [i, j) are the ranges that overlap or touch r.
	i := sort.Search(len(s.r), func(k int) bool { return s.r[k].Last >= r.First || s.r[k].Last+1 == r.First })
	j := i
	for j < len(s.r) && (s.r[j].First <= r.Last || s.r[j].First-1 == r.Last) {
		r.First, r.Last = min(r.First, s.r[j].First), max(r.Last, s.r[j].Last)
		j++
	}
	s.r = slices.Replace(s.r, i, j, r)
}

// Contains reports whether n is in the set.
func (s *Ranges) Contains(n uint64) bool {
	i := sort.Search(len(s.r), func(k int) bool { return s.r[k].Last >= n })
	return i < len(s.r) && s.r[i].First <= n
}

// All returns a copy of the ranges in ascending order.
func (s *Ranges) All() []Range { return append([]Range(nil), s.r...) }

// At returns the range i, of Len, in ascending order.
func (s *Ranges) At(i int) Range { return s.r[i] }

// Clone returns a set of its own with the same numbers.
func (s *Ranges) Clone() Ranges { return Ranges{r: s.All()} }

// Gap returns the smallest number of at least n that is not in the set.
func (s *Ranges) Gap(n uint64) uint64 {
	i := sort.Search(len(s.r), func(k int) bool { return s.r[k].Last >= n })
	if i < len(s.r) && s.r[i].First <= n {
		return s.r[i].Last + 1
	}
	return n
}

// DropBelow takes every number below n out of the set.
func (s *Ranges) DropBelow(n uint64) {
	i := sort.Search(len(s.r), func(k int) bool { return s.r[k].Last >= n })
	s.r = slices.Delete(s.r, 0, i)
	if len(s.r) > 0 {
		s.r[0].First = max(s.r[0].First, n)
	}
}

// RemoveRange takes every number of r out of the set.
func (s *Ranges) RemoveRange(r Range) {
	if r.First > r.Last {
		return
	}
	// [i, j) are the ranges that overlap r; of the first and the last one something may stay.
	i := sort.Search(len(s.r), func(k int) bool { return s.r[k].Last >= r.First })
	j := i
	var rest []Range
	for ; j < len(s.r) && s.r[j].First <= r.Last; j++ {
		if s.r[j].First < r.First {
			rest = append(rest, Range{s.r[j].First, r.First - 1})
		}
		if s.r[j].Last > r.Last {
			rest = append(rest, Range{r.Last + 1, s.r[j].Last})
		}
	}
	s.r = slices.Replace(s.r, i, j, rest...)
}

// Len returns the number of ranges, which is what the set costs to keep.
func (s *Ranges) Len() int { return len(s.r) }

// Count returns how many numbers are in the set.
func (s *Ranges) Count() uint64 {
	var n uint64
	for _, r := range s.r {
		n += r.Last - r.First + 1
	}
	return n
}

// Next returns the smallest number of at least 1 such that it and all above it that
// are in the set, if any, leave a gap: the first number missing, counted from 1.
func (s *Ranges) Next() uint64 {
	if len(s.r) == 0 || s.r[0].First > 1 {
		return 1
	}
	return s.r[0].Last + 1
}

// Append appends the binary form: a count (uvarint), then for each range the gap
// from the end of the one before and its length less one, both uvarint.
func (s *Ranges) Append(b []byte) []byte {
	b = binary.AppendUvarint(b, uint64(len(s.r)))
	var end uint64
	for _, r := range s.r {
		b = binary.AppendUvarint(b, r.First-end)
		b = binary.AppendUvarint(b, r.Last-r.First)
		end = r.Last
	}
	return b
}

// ParseRanges reads the binary form from the front of b and returns the rest. What
// it allocates is bounded by len(b).
func ParseRanges(b []byte) (Ranges, []byte, error) {
	bad := func(what string) (Ranges, []byte, error) {
		return Ranges{}, nil, fmt.Errorf("%w: ranges: %s", ErrName, what)
	}
	count, n := binary.Uvarint(b)
	if n <= 0 {
		return bad("no count")
	}
	b = b[n:]
	if count > uint64(len(b))/2 {
		return bad(fmt.Sprintf("%d ranges in %d bytes", count, len(b)))
	}
	s := Ranges{r: make([]Range, 0, count)}
	var end uint64
	for i := range count {
		gap, n := binary.Uvarint(b)
		if n <= 0 {
			return bad("cut short")
		}
		b = b[n:]
		length, n := binary.Uvarint(b)
		if n <= 0 {
			return bad("cut short")
		}
		b = b[n:]
		first := end + gap
		last := first + length
		if first < end || last < first || (i > 0 && gap < 2) {
			return bad("they overlap, touch or overflow")
		}
		s.r = append(s.r, Range{first, last})
		end = last
	}
	return s, b, nil
}

// String lists the ranges as "1-5,7,9-12".
func (s *Ranges) String() string {
	parts := make([]string, len(s.r))
	for i, r := range s.r {
		parts[i] = strconv.FormatUint(r.First, 10)
		if r.Last != r.First {
			parts[i] += "-" + strconv.FormatUint(r.Last, 10)
		}
	}
	return strings.Join(parts, ",")
}
