package template

import (
	"errors"
	"strings"
	"testing"
	"time"

	"ftfuse/internal/batch"
)

var sample = Values{
	Host: "web-01", Path: "logs/app/error.log", PID: 4711, UID: 1000, GID: 100,
	Time: 1_700_000_000_000_000_042, Number: 7,
	ID: batch.ID{Lane: batch.Lane{Origin: batch.Origin{0xab, 15: 1}, Epoch: batch.Epoch{Counter: 3, Random: 0xfeed}, Route: 2, Bucket: 5}, N: 99},
}

const plainTime = "%Y-%m-%dT%H:%M:%S.%-%z"

func render(t *testing.T, use Use, text, timeFormat string, line string) string {
	t.Helper()
	tmpl, err := Compile(use, text, timeFormat)
	if err != nil {
		t.Fatal(err)
	}
	return string(tmpl.Bind(time.UTC).Append(nil, &sample, []byte(line)))
}

func TestDirectives(t *testing.T) {
	for text, want := range map[string]string{
		"%L":                   "the line",
		"<%L>":                 "<the line>",
		"%H %P %U %G":          "web-01 4711 1000 100",
		"%F|%f":                "logs/app/error.log|error.log",
		"100%% %L":             "100% the line",
		"%T %L":                "2023-11-14T22:13:20.000000042+0000 the line",
		"%{%H:%M}T,%{%s.%-}T":  "22:13,1700000000.000000042",
		"%{%FT%T%:z}T":         "2023-11-14T22:13:20+00:00",
		"%N":                   "ab000000000000000000000000000001-3-000000000000feed-2-5-99-7",
		"no directive at all":  "no directive at all",
		"\xff%L\t":             "\xffthe line\t",
		"%{%Y/%m/%d}T/%f":      "2023/11/14/error.log",
		"%{%e|%j|%I%p|%y|%C}T": "14|318|10PM|23|20",
	} {
		if got := render(t, Format, text, plainTime, "the line"); got != want {
			t.Errorf("%q renders %q, want %q", text, got, want)
		}
	}
	if got := render(t, File, "%H/%F", plainTime, ""); got != "web-01/logs/app/error.log" {
		t.Errorf("default file name is %q", got)
	}
}

func TestErrorsNameThePlace(t *testing.T) {
	for _, c := range []struct {
		use              Use
		text, timeFormat string
		pos              int
		msg              string
	}{
		{Format, "", plainTime, 0, "empty"},
		{Format, "ab%Q", plainTime, 2, "unknown directive"},
		{Format, "ab%", plainTime, 2, "lone %"},
		{Format, "%L %L", plainTime, 3, "second %L"},
		{Format, "a\nb", plainTime, 1, "line feed"},
		{Format, "x%{%Y", plainTime, 1, "without }T"},
		{Format, "x%{%Y}H", plainTime, 1, "without }T"},
		{Format, "x%{%Y%E}T", plainTime, 5, "unknown time conversion"},
		{Format, "x%{}T", plainTime, 3, "empty time format"},
		{Format, "x%T", "%Y %", 1, `uses time "%Y %", byte 4: a lone %`},
		{Format, "json", "%Y %", 0, `uses time "%Y %", byte 4: a lone %`},
		{File, "%E", plainTime, 0, "cannot stand in a file name"},
		{File, "%H/%C", plainTime, 3, "cannot stand in a file name"},
		{File, "%H/%L", plainTime, 3, "cannot stand in a file name"},
		{File, "/var/log/%H", plainTime, 0, "absolute"},
		{File, "%H/../x", plainTime, 3, `element ".."`},
		{File, "%H//x", plainTime, 3, "empty element"},
		{File, "logs/", plainTime, 4, "slash"},
		{File, "a\x00b", plainTime, 1, "NUL"},
	} {
		_, err := Compile(c.use, c.text, c.timeFormat)
		var e *Error
		if !errors.As(err, &e) || !errors.Is(err, ErrSyntax) {
			t.Errorf("%s %q: error %v, want an *Error", c.use, c.text, err)
			continue
		}
		if e.Pos != c.pos || !strings.Contains(e.Error(), c.msg) {
			t.Errorf("%s %q: %v at %d, want %q at %d", c.use, c.text, err, e.Pos, c.msg, c.pos)
		}
	}
}

func TestKinds(t *testing.T) {
	for text, want := range map[string]struct {
		exact, literal bool
		fields         Fields
	}{
		"%L":     {true, false, Line},
		"%L ":    {false, false, Line},
		"a%%b":   {false, true, 0},
		"%H%f%F": {false, false, Host | Path},
		"%T%N%P": {false, false, Time | Seq | PID},
	} {
		tmpl, err := Compile(Format, text, plainTime)
		if err != nil {
			t.Fatal(err)
		}
		lit, isLit := tmpl.Literal()
		if tmpl.Exact() != want.exact || isLit != want.literal || tmpl.Fields() != want.fields {
			t.Errorf("%q: exact %v literal %v (%q) fields %b, want %+v", text, tmpl.Exact(), isLit, lit, tmpl.Fields(), want)
		}
		if isLit && lit != "a%b" {
			t.Errorf("literal is %q", lit)
		}
	}
}

func TestBeforeAndAfterMakeTheWhole(t *testing.T) {
	tmpl, err := Compile(Format, "[%T] %L (%P)", plainTime)
	if err != nil {
		t.Fatal(err)
	}
	r := tmpl.Bind(time.UTC)
	got := r.AppendBefore(nil, &sample)
	got = append(got, "x"...)
	got = r.AppendAfter(got, &sample)
	if want := string(r.Append(nil, &sample, []byte("x"))); string(got) != want {
		t.Errorf("before + line + after is %q, Append gives %q", got, want)
	}
}

func BenchmarkAppendTime(b *testing.B) {
	tmpl, err := Compile(Format, "%T %H %L", plainTime)
	if err != nil {
		b.Fatal(err)
	}
	r, v, line := tmpl.Bind(time.UTC), sample, []byte("a line of some forty bytes, as they come")
	var dst []byte
	b.ReportAllocs()
	for b.Loop() {
		v.Time += 1000
		dst = r.Append(dst[:0], &v, line)
	}
}

func FuzzCompile(f *testing.F) {
	f.Add("%H/%{%Y-%m}T/%f", plainTime)
	f.Add("%L%N%%", "%-%:z%c")
	f.Fuzz(func(t *testing.T, text, timeFormat string) {
		for _, use := range []Use{File, Format} {
			tmpl, err := Compile(use, text, timeFormat)
			if err != nil {
				var e *Error
				if !errors.As(err, &e) || e.Pos < 0 || e.Pos > len(text) {
					t.Fatalf("error %v", err)
				}
				continue
			}
			r := tmpl.Bind(time.UTC)
			a := string(r.Append(nil, &sample, []byte("x")))
			if b := string(tmpl.Bind(time.UTC).Append(nil, &sample, []byte("x"))); a != b {
				t.Fatalf("two renderers differ: %q, %q", a, b)
			}
		}
	})
}
