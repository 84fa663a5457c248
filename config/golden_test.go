package config

import (
	"flag"
	"fmt"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

var update = flag.Bool("update", false, "write the golden files")

// TestDefaults holds every default against a golden file, so that none changes
// unseen.
func TestDefaults(t *testing.T) {
	c := parse(t, "host = \"h\"\n[mount]\n[[mount.rule]]\n[[mount.forward]]\nprimary = [\"b:7401\"]\n[relay]\n[[relay.output]]\n[receive]\n")
	golden(t, "../testdata/config/defaults.golden", dump(c))
}

// TestFullExample holds what every key of the full example becomes.
func TestFullExample(t *testing.T) {
	c, err := Load("../testdata/config/full.toml")
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "../testdata/config/full.golden", dump(c))
}

func parse(t *testing.T, text string) *Config {
	t.Helper()
	c, err := Parse("test.toml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func golden(t *testing.T, file, got string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s differs (go test ./config -update writes it); got:\n%s", file, got)
	}
}

// dump writes one line per exported field, with its value as an operator writes it.
func dump(c *Config) string {
	var b strings.Builder
	dumpValue(&b, "", reflect.ValueOf(*c))
	return b.String()
}

func dumpValue(b *strings.Builder, path string, v reflect.Value) {
	switch x := v.Interface().(type) {
	case time.Duration, Size:
		fmt.Fprintf(b, "%s = %v\n", path, x)
		return
	case *regexp.Regexp:
		fmt.Fprintf(b, "%s = %q\n", path, x)
		return
	}
	switch v.Kind() {
	case reflect.Struct:
		for i := range v.NumField() {
			if f := v.Type().Field(i); f.IsExported() {
				dumpValue(b, strings.TrimPrefix(path+"."+f.Name, "."), v.Field(i))
			}
		}
	case reflect.Pointer:
		if v.IsNil() {
			fmt.Fprintf(b, "%s = nil\n", path)
			return
		}
		dumpValue(b, path, v.Elem())
	case reflect.Map:
		if v.Len() == 0 {
			fmt.Fprintf(b, "%s = {}\n", path)
		}
		keys := v.MapKeys()
		slices.SortFunc(keys, func(a, b reflect.Value) int { return strings.Compare(a.String(), b.String()) })
		for _, k := range keys {
			dumpValue(b, fmt.Sprintf("%s[%q]", path, k), v.MapIndex(k))
		}
	case reflect.Slice:
		if v.Len() == 0 {
			fmt.Fprintf(b, "%s = []\n", path)
		}
		for i := range v.Len() {
			dumpValue(b, fmt.Sprintf("%s[%d]", path, i), v.Index(i))
		}
	case reflect.String:
		fmt.Fprintf(b, "%s = %q\n", path, v.String())
	default:
		if path == "Mount.Umask" {
			fmt.Fprintf(b, "%s = %#o\n", path, v.Interface())
			return
		}
		fmt.Fprintf(b, "%s = %v\n", path, v.Interface())
	}
}
