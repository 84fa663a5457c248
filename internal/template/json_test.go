package template

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"math/rand/v2"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

func jsonRenderer(t testing.TB) *Renderer {
	t.Helper()
	tmpl, err := Compile(Format, JSON, plainTime)
	if err != nil {
		t.Fatal(err)
	}
	if !tmpl.JSON() || tmpl.Exact() || tmpl.Fields()&(Line|Seq|Time) != Line|Seq|Time {
		t.Errorf("json %v exact %v fields %b", tmpl.JSON(), tmpl.Exact(), tmpl.Fields())
	}
	return tmpl.Bind(time.UTC)
}

// TestJSONHasAllAttributes in the documented order, known ones only.
func TestJSONHasAllAttributes(t *testing.T) {
	r, v := jsonRenderer(t), sample
	if got, want := string(r.Append(nil, &v, []byte("the \"line\""))), `{"time":"2023-11-14T22:13:20.000000042+0000","time_ns":1700000000000000042,"host":"web-01",`+
		`"path":"logs/app/error.log","file":"error.log","pid":4711,"uid":1000,"gid":100,"seq":"ab000000000000000000000000000001-3-000000000000feed-2-5-99-7","data":"the \"line\""}`; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	v.Exe, v.Cgroup, v.Flags = "/usr/bin/a b", "/x.slice", []string{"opener", "several"}
	if got := string(r.Append(nil, &v, nil)); !strings.Contains(got, `"gid":100,"exe":"/usr/bin/a b","cgroup":"/x.slice","seq":"`) || !strings.HasSuffix(got, `","flags":["opener","several"],"data":""}`) {
		t.Errorf("got %s", got)
	}
}

// decoded is what a reader of an object gets for a text.
func decoded(t testing.TB, object []byte, name string) (text []byte, encoded bool) {
	t.Helper()
	if bytes.ContainsAny(object, "\n\r") || bytes.Contains(object, []byte("\u2028")) || bytes.Contains(object, []byte("\u2029")) || !utf8.Valid(object) {
		t.Fatalf("the object holds a line end, or is not UTF-8: %q", object)
	}
	var fields map[string]any
	if err := json.Unmarshal(object, &fields); err != nil {
		t.Fatalf("%v: %q", err, object)
	}
	if s, ok := fields[name].(string); ok {
		return []byte(s), false
	}
	b, err := base64.StdEncoding.DecodeString(fields[name+"_base64"].(string))
	if err != nil {
		t.Fatal(err)
	}
	return b, true
}

func checkJSON(t testing.TB, r *Renderer, data []byte) {
	t.Helper()
	v := sample
	v.Path, v.Host, v.Exe, v.Cgroup = string(data), string(data), "/"+string(data), "/"+string(data)
	object := r.Append(nil, &v, data)
	for name, want := range map[string][]byte{"data": data, "path": data, "host": data, "exe": []byte(v.Exe), "cgroup": []byte(v.Cgroup)} {
		if got, encoded := decoded(t, object, name); !bytes.Equal(got, want) || encoded == utf8.Valid(want) {
			t.Errorf("%s: %q comes out as %q, base64 %v", name, want, got, encoded)
		}
	}
}

// TestJSONIsSafeForAnyBytes: each comes out as it went in, in names too.
func TestJSONIsSafeForAnyBytes(t *testing.T) {
	r := jsonRenderer(t)
	for _, s := range []string{"", "\x00\x01\x1f\x7f", "\"\\/\b\f\t", "caf\u00e9 \u2028\u2029\u2027\u202a \U0001F600", "\xff", "\xe2", "\xe2\x80", "a\xe2\x80\xa8", "\xed\xa0\x80", "\ufffd", "\u00e2", strings.Repeat("x\x02", 5000)} {
		checkJSON(t, r, []byte(s))
	}
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 1))
	parts := []string{"\xe2", "\x80", "\xa8", "\u2028", "\u20ac", "a", "\"", "\\", "\x00", "\xff"}
	for range 20000 {
		var b []byte
		for range rnd.IntN(8) {
			if rnd.IntN(3) == 0 {
				b = append(b, byte(rnd.Uint32()))
			} else {
				b = append(b, parts[rnd.IntN(len(parts))]...)
			}
		}
		checkJSON(t, r, b)
	}
}

func FuzzJSON(f *testing.F) {
	for _, s := range []string{"", "a\u2028", "\xe2\x80", "\"\\\n"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) { checkJSON(t, jsonRenderer(t), data) })
}

func TestProgramAndControlGroup(t *testing.T) {
	v := sample
	for want, line := range map[string]Values{"- -": v, "/usr/bin/app /x.slice": func() Values { v.Exe, v.Cgroup = "/usr/bin/app", "/x.slice"; return v }()} {
		tmpl, err := Compile(Format, "%E %C", plainTime)
		if err != nil {
			t.Fatal(err)
		}
		if got := string(tmpl.Bind(nil).Append(nil, &line, nil)); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

func BenchmarkAppendJSON(b *testing.B) {
	r, v := jsonRenderer(b), sample
	v.Flags = []string{"opener"}
	line := bytes.Repeat([]byte("0123456\t"), 16)
	head := r.AppendBefore(nil, &v)
	var dst []byte
	b.SetBytes(int64(len(line)))
	for b.Loop() {
		dst = r.AppendObject(append(dst[:0], head...), &v, line)
	}
}
