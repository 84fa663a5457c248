package forward

import (
	"slices"

	"ftfuse/internal/batch"
)

// intersect returns the numbers that are in both; each is ascending.
func intersect(a, b []batch.Range) (both []batch.Range) {
	for len(a) > 0 && len(b) > 0 {
		if r := (batch.Range{First: max(a[0].First, b[0].First), Last: min(a[0].Last, b[0].Last)}); r.First <= r.Last {
			both = append(both, r)
		}
		if a[0].Last < b[0].Last {
			a = a[1:]
		} else {
			b = b[1:]
		}
	}
	return both
}

// subtract returns the numbers of a that are not in b; each is ascending.
func subtract(a, b []batch.Range) (left []batch.Range) {
	for _, r := range a {
		for len(b) > 0 && b[0].Last < r.First {
			b = b[1:]
		}
		whole := true
		for _, x := range b {
			if x.First > r.Last {
				break
			}
			if x.First > r.First {
				left = append(left, batch.Range{First: r.First, Last: x.First - 1})
			}
			if x.Last >= r.Last {
				whole = false
				break
			}
			r.First = x.Last + 1
		}
		if whole {
			left = append(left, r)
		}
	}
	return left
}

// unite returns the numbers that are in a or in b.
func unite(a, b []batch.Range) []batch.Range {
	set := setOf(a)
	for _, r := range b {
		set.AddRange(r)
	}
	return set.All()
}

func setOf(ranges []batch.Range) (set batch.Ranges) {
	for _, r := range ranges {
		set.AddRange(r)
	}
	return set
}

// contains reports whether every node of part is in all.
func contains(all, part []batch.Node) bool {
	for i := range part {
		if !slices.Contains(all, part[i]) {
			return false
		}
	}
	return true
}
