package k2hft

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/bmatcuk/doublestar/v4"

	"ftfuse/config"
)

// within fails the test where f does not end: what it tests for never would.
func within(t *testing.T, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() { defer close(done); f() }()
	select {
	case <-done:
	case <-time.After(10 * time.Second):
		t.Fatal("it does not end")
	}
}

// A span up to the largest byte, or number, had no end; one that runs backwards took its host
// away.
func TestEverySpanOfANameEnds(t *testing.T) {
	for name, want := range map[string]int{
		"h[a-\xff]": 0xff - 'a' + 1, "h[9223372036854775806-9223372036854775807]": 2, "h[5-3]": 1, "h[c-a]": 1,
	} {
		within(t, func() {
			if got := hosts(name); len(got) != want {
				t.Errorf("%q is %d hosts, want %d", name, len(got), want)
			}
		})
	}
}

// Lists of aliases of lists of aliases: 300 bytes were 10 million sections.
func TestAliasesDoNotMultiplyWithoutEnd(t *testing.T) {
	var b strings.Builder
	b.WriteString("A0: &a0 { K: v }\n")
	for i := 1; i <= 7; i++ {
		fmt.Fprintf(&b, "A%d: &a%d [%s]\n", i, i, strings.TrimSuffix(strings.Repeat(fmt.Sprintf("*a%d,", i-1), 20), ","))
	}
	b.WriteString("K2HFTFUSE: {}\n")
	within(t, func() {
		if _, err := Convert("a.yaml", []byte(b.String()), Options{}); !errors.Is(err, ErrSyntax) {
			t.Errorf("%v", err)
		}
	})
}

// What stood behind the second --- went in silence.
func TestEveryDocumentOfAFileIsRead(t *testing.T) {
	r, err := Convert("a.yaml", []byte("---\nK2HFTFUSE: {}\n---\nGLOBAL: { PORT: 8020 }\nSVRNODE: [ { NAME: agg } ]\n"), Options{})
	if err != nil || !strings.Contains(string(r.TOML), "agg:8020") {
		t.Errorf("%v\n%s", err, r.TOML)
	}
}

// fstab's uid=www-data became TOML that cannot be read.
func TestOptionsOfFstabThatAreNoNumbersAreNotes(t *testing.T) {
	at := Mountpoint{Point: "/mnt/x", From: "fstab, line 1", UID: "www-data", GID: "1]\n[x", Umask: "rwx"}
	convert(t, "a.ini", "[K2HFTFUSE]\n[SVRNODE]\nNAME=agg\n", Options{Mount: at})
}

// What is in EUC-JP became U+FFFD without a word: a filter and a rule that matched nothing.
func TestWhatIsNotUTF8IsSaidAndLosesNoLine(t *testing.T) {
	const kana = "\xa4\xa2" // HIRAGANA LETTER A in EUC-JP
	toml, c := convert(t, "a.ini", "[K2HFTFUSE]\n[K2HFTFUSE_RULE]\nTARGET=log/"+kana+"*.log\nTRUNS=on\nDEFAULTALL=DENY\nALLOW=\"err\"\nALLOW=\""+kana+"\"\n"+
		"[K2HFTFUSE_RULE_DIR]\nTARGET=app\nTRUNS=on\nDEFAULTALL=ALLOW\nDENY="+kana+"\nOUTPUTFILE=/var/"+kana+"\n[SVRNODE]\nNAME=agg\n", Options{Mount: Mountpoint{Point: "/mnt/x"}})
	rules := c.Mount.Rules
	if !doublestar.MatchUnvalidated(rules[0].Path, "log/"+kana+"*.log") || doublestar.MatchUnvalidated(rules[0].Path, "log/"+kana+"x.log") {
		t.Errorf("path = %q", rules[0].Path)
	}
	if rules[0].Default != config.VerdictAllow || len(rules[1].Deny) != 0 {
		t.Errorf("rules that drop what nobody can tell: %+v", rules)
	}
	if n := strings.Count(toml, "not UTF-8"); n != 4 || !utf8.ValidString(toml) {
		t.Errorf("it is said %d times, want 4:\n%s", n, toml)
	}
}
