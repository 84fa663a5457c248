package k2hft

import (
	"os/exec"
	"regexp"
	"strings"
	"testing"
)

// apply is what a filter of ours makes of a line: "" and false where it does not match.
func apply(t *testing.T, r rewrite, line string) (string, bool) {
	t.Helper()
	if r.literal != "" {
		return line, strings.Contains(line, r.literal)
	}
	re, err := regexp.Compile(r.match)
	if err != nil {
		t.Fatal(err)
	}
	switch {
	case !re.MatchString(line):
		return "", false
	case r.replace == nil:
		return line, true
	}
	return re.ReplaceAllString(line, *r.replace), true
}

// An interval without bounds was taken for text, so that an ALLOW with it dropped the lines that it
// lets through with regcomp(3) of glibc.
func TestAnIntervalWithoutBoundsWasText(t *testing.T) {
	for posix, want := range map[string]string{"xa{,}y": "xa*y", "a{,3}": "a{0,3}", "a{2,}": "a{2,}", "a{": `a\{`, "a{}": `a\{}`} {
		if got, _, err := toRE2(posix); err != nil || got != want {
			t.Errorf("%q is %q (%v), want %q", posix, got, err, want)
		}
	}
}

// TestALineBecomesWhatK2HFTFUSEMadeOfIt: of a line that a regular expression matches, the
// replacement is all that is left, and without one, what was matched.
func TestALineBecomesWhatK2HFTFUSEMadeOfIt(t *testing.T) {
	for _, c := range []struct{ value, line, want string }{
		{`INFO`, "some INFO here", "some INFO here"},
		{`IN.O`, "some INFO here", "-"},
		{`"IN.O"`, "some INFO here", "INFO"},
		{`"(.*)([eE][rR][rR])(.*)", "$0"`, "an Err or", "an Err or"},
		{`"(.*)([eE][rR][rR])(.*)", "&"`, "an Err or", "an Err or"},
		{`"(.*)([eE][rR][rR])(.*)", "$1 = ERROR = $3"`, "an Err or", "an  = ERROR =  or"},
		{`"(.*)([eE][rR][rR])(.*)", "$1,$3"`, "an Err or", "an , or"},
		{`"id=([0-9]+)", "<$1>"`, "x id=42 y id=43", "<42>"},
		{`"id=([0-9]+)", "<$0>"`, "x id=42 y id=43", "<id=42>"},
		{`"id=[0-9]+", "[&] \& \$1 \\ \""`, "x id=42", `[id=42] & $1 \ "`},
		{`"(a)|(b)", "$1$2$3"`, "xbx", "b"},
		{`"^a$"`, "a", "a"},
		{`"^a"`, "ab", "a"},
		{`"[\d]"`, `a\b`, `\`},
		{`"[]x]+"`, "a]x]b", "]x]"},
		{`"a{2}"`, "baaa", "aa"},
		{`"a{,1}b"`, "aab", "ab"},
		{`"a{x"`, "ba{x", "a{x"},
		{`"\<in\>"`, "tin in bin", "in"},
		{`"[[:digit:]]{3}"`, "a1234", "123"},
		{`"price \$[0-9]+"`, "the price $12", "price $12"},
	} {
		r, err := rewriting(iniPattern(c.value))
		if err != nil {
			t.Errorf("%s: %v", c.value, err)
			continue
		}
		got, ok := apply(t, r, c.line)
		if !ok {
			got = "-"
		}
		if got != c.want {
			t.Errorf("%s makes %q of %q, want %q (match %q)", c.value, got, c.line, c.want, r.match)
		}
	}
}

// A \< was \b whatever followed: it matched at the end of a word, too, and \> at its beginning.
func TestTheBeginningOfAWordWasItsEndToo(t *testing.T) {
	r, err := rewriting(iniPattern(`"\< "`))
	if err == nil {
		got, ok := apply(t, r, "a b")
		t.Errorf(`"\<" before a space, which matches nothing, became %+v and makes %q of "a b" (%v)`, r, got, ok)
	}
}

// What POSIX expressions match is asked of grep -E, which compiles them as K2HFTFUSE does.
func TestAnExpressionMatchesWhatGrepMatches(t *testing.T) {
	grep, err := exec.LookPath("grep")
	if err != nil {
		t.Skip("no grep")
	}
	lines := []string{"", "a", "ab", "aab", "a b", `a\b`, "a.b", "a]b", "[a]", "x-1", "ERROR: 12", "user_9", "tin in bin", "a{2}", "{", "$5", "a|b", "^", "(x)"}
	for _, re := range []string{
		"a", "^a", "b$", "^$", "a.b", `a\.b`, `[\.]`, `[]]`, `[^]a]`, `[a\]`, "[[:alpha:]_]+[[:digit:]]", "a{2}", "a{1,2}b", "a{,2}b", "[a-c]{2,}",
		`\bin\b`, `\<in`, `in\>`, `\<(i|b)`, `\<[a-z]+\>`, `([[:digit:]]|n)\>`, `\<\w{2}\>`, `(\<a|^x)`, `\w+_\w`, `\W`, `(a|b)+`, "a|^x", `\$[0-9]`, `\^`, `\(x\)`, `a\|b`, `[|]`, `a{x}`, `(^|[^a])b`, `.*`,
	} {
		ours, _, err := toRE2(re)
		if err != nil {
			t.Errorf("%s: %v", re, err)
			continue
		}
		compiled := regexp.MustCompile(ours)
		for _, line := range lines {
			cmd := exec.Command(grep, "-E", "-q", "-e", re)
			cmd.Env = []string{"LC_ALL=C"}
			cmd.Stdin = strings.NewReader(line + "\n")
			want := cmd.Run() == nil
			if got := compiled.MatchString(line); got != want {
				t.Errorf("%s as %s: %q matches: %v, grep says %v", re, ours, line, got, want)
			}
		}
	}
}

func TestWhatRE2CannotDoIsRefused(t *testing.T) {
	for _, re := range []string{
		`(a)\1`, `[[.a.]]`, `[[=a=]]`, `[a`, `(a`, `a**`, `a+?`, `a{1001}`, `(?i)a`,
		`\<`, `\>`, `\<-`, `-\>`, `\<.`, `a*\>`, `\<(a|-)`, `(\<)a`, `\<*a`, `a|\<`, `[^a]\>`, `\<\>`,
	} {
		if got, _, err := toRE2(re); err == nil {
			t.Errorf("%s became %s", re, got)
		}
	}
}
