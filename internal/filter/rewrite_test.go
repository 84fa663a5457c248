package filter

import (
	"bytes"
	"math/rand/v2"
	"runtime"
	"strings"
	"testing"
)

// rewriteOf is what an entry makes of what it matches.
func rewriteOf(e Entry, replace string) *Rewrite { return newRewrite(with(e, replace)) }

// TestALineThatWouldBecomeTooLongHasItsMatchesTakenOut: not one byte earlier, where what the
// replacement has is known.
func TestALineThatWouldBecomeTooLongHasItsMatchesTakenOut(t *testing.T) {
	for _, c := range []struct {
		e             Entry
		replace, line string
		full, cut     string
	}{
		{Entry{Literal: "ab"}, "$1$1", "ab-ab", "$1$1-$1$1", "-"},
		{re("[0-9]"), "number", "a1b2", "anumberbnumber", "ab"},
		{re("([0-9])x"), "$1$1$1", "1x2x3", "1112223", "3"},
		{re("^.*user=(\\w+).*$"), "$1$1$1$1", "0123456789 user=j", "jjjj", ""},
		{re("a*"), "-", "baac", "-b-c-", "bc"},
	} {
		r := rewriteOf(c.e, c.replace)
		for most := len(c.line); most < 100; most++ {
			got, whole := r.Append([]byte("x"), []byte(c.line), most)
			want := "x" + c.full
			if !whole {
				want = "x" + c.cut
			}
			if string(got) != want || whole != (most >= max(len(c.full), len(c.line))) && r.refs == 0 || !whole && most > 2*len(c.full)+len(c.replace)+len(c.line) {
				t.Errorf("%q in %q by %q, at most %d bytes: %q, whole %v, want %q", c.e.Literal, c.line, c.replace, most, got, whole, want)
			}
		}
	}
}

// TestALimitChangesNothingBelowIt: whichever way a line is rewritten, and whatever is matched.
func TestALimitChangesNothingBelowIt(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 2))
	cut, exact := 0, 0
	for range 50_000 {
		e, line := randomEntry(rng), randomLine(rng)
		replace := []string{"", "$0$0", "x", "é", "<$1$2>", "$$${1}x"}[rng.IntN(6)]
		r := rewriteOf(e, replace)
		want, whole := r.Append(nil, line, 1<<30)
		if !whole {
			t.Fatalf("%v %q in %q has more than a gigabyte", e.Pattern, replace, line)
		}
		most := len(line) + rng.IntN(20)
		got, whole := r.Append(nil, line, most)
		switch {
		case len(got) > most:
			t.Fatalf("%v %q in %q: %d bytes, at most %d", e.Pattern, replace, line, len(got), most)
		case whole && !bytes.Equal(got, want):
			t.Fatalf("%v %q in %q, at most %d: %q, want %q", e.Pattern, replace, line, most, got, want)
		case !whole:
			cut++
		}
		if e.Pattern != nil {
			if got, ok := r.expand(nil, line, 1<<30); !ok || !bytes.Equal(got, want) {
				t.Fatalf("%v %q in %q: expanded %q, want %q", e.Pattern, replace, line, got, want)
			}
			exact++
		}
	}
	if cut < 1000 || exact < 1000 {
		t.Errorf("%d lines were cut, %d expanded: too few to tell anything", cut, exact)
	}
}

// TestAReplacementThatGrowsALineNeedsNoGigabytes: of a line of a MiB.
func TestAReplacementThatGrowsALineNeedsNoGigabytes(t *testing.T) {
	const most = 16 << 20
	line := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	for name, r := range map[string]*Rewrite{
		"literal":     rewriteOf(Entry{Literal: "0"}, strings.Repeat("x", 16<<10)),
		"each byte":   rewriteOf(re("."), strings.Repeat("x", 1<<10)),
		"each twice":  rewriteOf(re("(.)(.)"), strings.Repeat("$1$2", 1<<10)),
		"one group":   rewriteOf(re("^(.*)$"), strings.Repeat("$1", 1<<10)),
		"all of it":   rewriteOf(re("(?s).*"), strings.Repeat("$0", 1<<10)),
		"empty match": rewriteOf(re("x*"), strings.Repeat("-", 1<<10)),
	} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		out, whole := r.Append(nil, line, most)
		runtime.ReadMemStats(&after)
		if whole || len(out) > len(line) {
			t.Errorf("%s: %d bytes, whole %v", name, len(out), whole)
		}
		if took := int64(after.HeapSys) - int64(before.HeapSys); took > 8*most {
			t.Errorf("%s: the heap grew by %d MiB", name, took>>20)
		}
	}
}
