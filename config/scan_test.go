package config

import (
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/BurntSushi/toml"
)

func TestScanFindsLines(t *testing.T) {
	const doc = "\ufeff# comment with [table] and a = 1\n" + // 1
		"a = 1 # b = 2\n" + // 2
		"\n" + // 3
		"b = \"\"\"\n" + // 4
		"x = 1 \\\"\"\" \n" + // 5
		"\"\"\"\"\n" + // 6
		"c = '''\n[no]\n'''\n" + // 7-9
		"'d e' . \"f\\u0041\" = 'it''s' \n" // 10: not TOML behind the string, skipped over
	p, again := scan(doc)
	if len(again) > 0 {
		t.Errorf("taken for defined again: %v", again)
	}
	for path, line := range map[string]int{"a": 2, "b": 4, "c": 7, `"d e"`: 10, `"d e".fA`: 10} {
		if p[path] != line {
			t.Errorf("%s is at line %d, want %d", path, p[path], line)
		}
	}
	if _, ok := p["no"]; ok {
		t.Error("a header inside a string was taken for one")
	}
}

func TestScanFindsLinesOfTables(t *testing.T) {
	const doc = `[mount]
point = "/a"
  [ mount . http ]
listen="x"
[[mount.rule]]
path = "a"
allow = [ { match = "a" },
  { match = "b",
    replace = "]}" } , # ]
]
[[mount.rule]]
deny = [

  { match = '}' }
]
[mount.rule.sub]
x.y = { z = 1, q.r = [ [ 1, 2 ], [
 3 ] ] }
[queue]
`
	p, again := scan(doc)
	if len(again) > 0 {
		t.Errorf("taken for defined again: %v", again)
	}
	for path, line := range map[string]int{
		"mount": 1, "mount.point": 2, "mount.http": 3, "mount.http.listen": 4, "mount.rule": 5,
		"mount.rule[0]": 5, "mount.rule[0].path": 6, "mount.rule[0].allow": 7, "mount.rule[0].allow[0].match": 7,
		"mount.rule[0].allow[1].match": 8, "mount.rule[0].allow[1].replace": 9,
		"mount.rule[1]": 11, "mount.rule[1].deny": 12, "mount.rule[1].deny[0]": 14, "mount.rule[1].deny[0].match": 14,
		"mount.rule[1].sub": 16, "mount.rule[1].sub.x.y.z": 17, "mount.rule[1].sub.x.y.q.r[1][0]": 18, "queue": 19,
	} {
		if p[path] != line {
			t.Errorf("%s is at line %d, want %d", path, p[path], line)
		}
	}
	if got := p.line("mount.rule[1].deny[0].none"); got != 14 {
		t.Errorf("a key that is not there is at line %d, want its table's 14", got)
	}
}

// checkPositions fails unless every key of an accepted document has a line of its own
// account that holds the key's name.
func checkPositions(t *testing.T, doc string) {
	t.Helper()
	var root map[string]any
	if _, err := toml.Decode(doc, &root); err != nil {
		return
	}
	p, _ := scan(doc)
	lines := strings.Split(doc, "\n")
	var walk func(path, name string, v any)
	walk = func(path, name string, v any) {
		if len(path) > maxPath {
			return
		}
		n, ok := p[path]
		if !ok || n < 1 || n > len(lines) {
			t.Fatalf("%q is at line %d of %d (known %v); all: %v\n%s", path, n, len(lines), ok, slices.Sorted(maps.Keys(p)), doc)
		}
		if bareKey.MatchString(name) && !strings.Contains(lines[n-1], name) && !strings.Contains(lines[n-1], `\`) {
			t.Fatalf("%q is said to be at line %d, which is %q", path, n, lines[n-1])
		}
		switch v := v.(type) {
		case map[string]any:
			for k, e := range v {
				walk(join(path, k), k, e)
			}
		case []map[string]any:
			for i, e := range v {
				walk(element(path, i), "", e)
			}
		case []any:
			for i, e := range v {
				walk(element(path, i), "", e)
			}
		}
	}
	for k, v := range root {
		walk(join("", k), k, v)
	}
}

// FuzzParse looks for panics, for a refusal without a line, and for keys whose line is
// not found.
func FuzzParse(f *testing.F) {
	for _, tc := range badConfigs {
		f.Add(tc.toml)
	}
	for _, text := range exampleFiles(f) {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, doc string) {
		if len(doc) > 4<<10 {
			return
		}
		c, err := Parse("fuzz.toml", []byte(doc))
		checkPositions(t, doc)
		if err != nil {
			for _, p := range err.(*Error).Problems {
				if p.Line < 1 || p.Line > strings.Count(doc, "\n")+1 || p.What == "" || p.Fix == "" || p.Kind == nil {
					t.Fatalf("incomplete problem %+v for\n%s", p, doc)
				}
			}
			return
		}
		for _, r := range Roles() {
			_ = c.CheckRole(r)
			_ = c.Notes(r)
		}
	})
}

// A document that is nothing but depth or length takes time and memory in proportion.
func TestHostileDocuments(t *testing.T) {
	const n = 200_000
	for name, doc := range map[string]string{
		"deep array":      "a = " + strings.Repeat("[", 10_000) + strings.Repeat("]", 10_000),
		"dotted key":      "a" + strings.Repeat(".a", 1_000) + " = 1",
		"wide array":      "a = [" + strings.Repeat("1,", n) + "]",
		"wide deep array": "a = " + strings.Repeat("[", 300) + strings.Repeat("1,", n) + strings.Repeat("]", 300),
		"unclosed":        strings.Repeat("[", n),
		"quotes":          "a = " + strings.Repeat("\"", n),
		"long key":        strings.Repeat("a", n) + " = 1",
		"many keys":       "[queue]\n" + strings.Repeat("\n", n) + "x = 1",
	} {
		if _, err := Parse("hostile.toml", []byte(doc)); err == nil {
			t.Errorf("%s is accepted", name)
		} else if len(err.Error()) > 2*n {
			t.Errorf("%s makes a message of %d bytes", name, len(err.Error()))
		}
	}
}
