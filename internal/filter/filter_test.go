package filter

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"regexp"
	"strings"
	"testing"
)

func re(s string) Entry { return Entry{Pattern: regexp.MustCompile(s)} }

func with(e Entry, s string) Entry {
	e.Replace = &s
	return e
}

// naive is what the package says, without any short cut.
func naive(s Spec, line []byte) (Verdict, []byte) {
	match := func(e Entry) bool {
		if e.Pattern == nil {
			return bytes.Contains(line, []byte(e.Literal))
		}
		return e.Pattern.Match(line)
	}
	for _, e := range s.Deny {
		if match(e) {
			return Denied, nil
		}
	}
	for _, e := range s.Allow {
		switch {
		case !match(e):
		case e.Replace == nil:
			return Keep, line
		case e.Pattern == nil:
			return Keep, bytes.ReplaceAll(line, []byte(e.Literal), []byte(*e.Replace))
		default:
			return Keep, e.Pattern.ReplaceAll(line, []byte(*e.Replace))
		}
	}
	if s.Default {
		return Keep, line
	}
	return Unmatched, nil
}

func judge(f *Filter, line []byte) (Verdict, []byte) {
	if f == nil {
		return Keep, line
	}
	v, r := f.Judge(line)
	switch {
	case v != Keep:
		return v, nil
	case r == nil:
		return v, line
	}
	out, _ := r.Append(nil, line, 1<<30)
	return v, out
}

func TestDenyComesFirstThenTheFirstAllowThenTheDefault(t *testing.T) {
	s := Spec{
		Deny:  []Entry{{Literal: "health"}, re(`^#`)},
		Allow: []Entry{with(re(`user=(\w+)`), "user=<${1}>"), re("ERROR|WARN"), with(Entry{Literal: "a.b"}, "$1")},
	}
	for _, c := range []struct {
		line string
		v    Verdict
		out  string
	}{
		{"ERROR healthcheck", Denied, ""},
		{"# ERROR", Denied, ""},
		{"ERROR user=joe user=ann", Keep, "ERROR user=<joe> user=<ann>"},
		{"WARN a.b", Keep, "WARN a.b"},
		{"a.b aXb a.b", Keep, "$1 aXb $1"},
		{"aXb", Unmatched, ""},
		{"", Unmatched, ""},
	} {
		for _, keep := range []bool{false, true} {
			s.Default = keep
			want, out := c.v, c.out
			if c.v == Unmatched && keep {
				want, out = Keep, c.line
			}
			if v, got := judge(New(s), []byte(c.line)); v != want || string(got) != out {
				t.Errorf("%q, default %v: verdict %d, %q; want %d, %q", c.line, keep, v, got, want, out)
			}
		}
	}
}

func TestAFilterThatChangesNothingIsNone(t *testing.T) {
	for _, s := range []Spec{{Default: true}, {Default: true, Allow: []Entry{re("x")}}} {
		if New(s) != nil {
			t.Errorf("%+v looks at lines", s)
		}
	}
	for _, s := range []Spec{{}, {Default: true, Deny: []Entry{re("x")}}, {Default: true, Allow: []Entry{with(re("x"), "")}}} {
		if New(s) == nil {
			t.Errorf("%+v is taken for one that changes nothing", s)
		}
	}
}

// TestWhatAPatternNeeds: the literals are those that a match cannot do without.
func TestWhatAPatternNeeds(t *testing.T) {
	for pattern, want := range map[string]string{
		"ERROR|WARN":             "ERROR,WARN exact",
		"(ERROR)|(?:WARN)":       "ERROR,WARN exact",
		"(?i)error":              "error(i)",
		"(?i)a1_Kelvinsss":       "elvin(i)",
		"(?i)ks":                 "",
		`user=(\w+)`:             "user=",
		`\d+ GET /x`:             " GET /x",
		`[0-9]+ms`:               "ms",
		`a*`:                     "",
		`(abc)+`:                 "abc exact",
		`(?:abc){2,}`:            "abc",
		`(?:abc){0,2}x`:          "x",
		`abc|\d`:                 "",
		`^abc$`:                  "abc",
		`x|`:                     "",
		"\uFFFD":                 "",
		"é":                      "é exact",
		`(ab|cd)e?(f|ghi)jk`:     "ab,cd",
		`(?s).*ERROR.*`:          "ERROR",
		`(?:a|(?i)b)c`:           "c",
		strings.Repeat("..|", 5): "",
	} {
		r, err := regexp.Compile(pattern)
		if err != nil {
			t.Fatal(err)
		}
		m := newMatcher(Entry{Pattern: r})
		var got []string
		for _, l := range m.literals {
			text := string(l.text)
			if l.fold {
				text += "(i)"
			}
			got = append(got, text)
		}
		text := strings.Join(got, ",")
		if m.pattern == nil {
			text += " exact"
		}
		if text != want {
			t.Errorf("%q needs %q, want %q", pattern, text, want)
		}
	}
}

// TestShortCutsChangeNothing: random patterns and lines get the verdict of the plain regular
// expression, invalid UTF-8 and U+FFFD among them.
func TestShortCutsChangeNothing(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	n := 0
	for range 20_000 {
		s := Spec{Default: rng.IntN(2) == 0}
		for range rng.IntN(3) {
			s.Deny = append(s.Deny, randomEntry(rng))
		}
		for range rng.IntN(3) {
			e := randomEntry(rng)
			if rng.IntN(2) == 0 {
				e = with(e, []string{"", "$0$0", "x", "é"}[rng.IntN(4)])
			}
			s.Allow = append(s.Allow, e)
		}
		f := New(s)
		for range 5 {
			line := randomLine(rng)
			v, got := judge(f, line)
			if want, out := naive(s, line); v != want || !bytes.Equal(got, out) {
				t.Fatalf("%s: line %q: verdict %d, %q; want %d, %q", describe(s), line, v, got, want, out)
			}
			if v != Keep {
				n++
			}
		}
	}
	if n < 10_000 {
		t.Errorf("only %d lines were dropped: the patterns match too rarely to tell anything", n)
	}
}

func describe(s Spec) string {
	text := func(all []Entry) (out []string) {
		for _, e := range all {
			r := "-"
			if e.Replace != nil {
				r = fmt.Sprintf("%q", *e.Replace)
			}
			out = append(out, fmt.Sprintf("%v/%q/%s", e.Pattern, e.Literal, r))
		}
		return out
	}
	return fmt.Sprintf("deny %v, allow %v, default %v", text(s.Deny), text(s.Allow), s.Default)
}

var atoms = []string{"a", "b", "ab", "ba", ".", "é", "\uFFFD", "a*", "b+", "(?:ab)+", "(a|b)", "[ab]", "(?i:a)", "(?i:kab)", "(?i:aks)", "^", "$", "(?:ab){2}", "(?:b){0,1}", "(ab|ba)", "(|a)"}

func randomEntry(rng *rand.Rand) Entry {
	if rng.IntN(4) == 0 {
		return Entry{Literal: []string{"a", "ab", "é", "\xff"}[rng.IntN(4)]}
	}
	var b strings.Builder
	for i := range 1 + rng.IntN(4) {
		if i > 0 && rng.IntN(4) == 0 {
			b.WriteByte('|')
		}
		b.WriteString(atoms[rng.IntN(len(atoms))])
	}
	return re(b.String())
}

func randomLine(rng *rand.Rand) []byte {
	var b []byte
	for range rng.IntN(8) {
		b = append(b, []string{"a", "b", "ab", "A", "é", "\xff", "\xc3", "\uFFFD", "c", "K", "\u212a", "\u017f"}[rng.IntN(12)]...)
	}
	return b
}

func TestContent(t *testing.T) {
	for line, want := range map[string]string{"": "", "\n": "", "\r\n": "", "a": "a", "a\n": "a", "a\r\n": "a", "a\r\r\n": "a\r", "a\r": "a\r"} {
		if got := Content([]byte(line)); string(got) != want {
			t.Errorf("%q: %q, want %q", line, got, want)
		}
	}
}

// BenchmarkJudge judges lines of 128 bytes of which one in ten has what the pattern wants.
func BenchmarkJudge(b *testing.B) {
	var lines [][]byte
	for i := range 100 {
		level := "INFO"
		if i%10 == 0 {
			level = "ERROR"
		}
		l := fmt.Appendf(nil, "2026-11-23T06:50:00.%03d web-01 app[4711]: %s request id=%06d user=u%d status=200 bytes=1234 ", i, level, i*7919, i)
		lines = append(lines, append(l, bytes.Repeat([]byte{'x'}, 127-len(l))...))
	}
	for name, s := range map[string]Spec{
		"literal":            {Deny: []Entry{{Literal: "healthcheck"}}, Default: true},
		"literal and regexp": {Deny: []Entry{{Literal: "healthcheck"}}, Allow: []Entry{re(`ERROR .*user=\w+`)}},
		"words":              {Allow: []Entry{re("ERROR|WARN")}},
		"either case":        {Allow: []Entry{re(`(?i)error`)}},
		"no literal":         {Allow: []Entry{re(`^\d+[a-z]`)}},
		"replace":            {Allow: []Entry{with(re(`user=(\w+)`), "user=-")}},
	} {
		b.Run(name, func(b *testing.B) {
			f := New(s)
			b.SetBytes(128)
			var out []byte
			for i := 0; b.Loop(); i++ {
				l := lines[i%100]
				if _, r := f.Judge(l); r != nil {
					out, _ = r.Append(out[:0], l, 16<<20)
				}
			}
		})
	}
}
