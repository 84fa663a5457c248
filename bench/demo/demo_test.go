package demo

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// The proof must be able to fail.
func TestCountFindsEachKindOfDamage(t *testing.T) {
	whole := make([]string, 50)
	for i := range whole {
		whole[i] = fmt.Sprintf("some text %d", i+1)
	}
	edit := func(f func([]string) []string) []string { return f(append([]string(nil), whole...)) }
	for name, tc := range map[string]struct {
		lines []string
		want  counted
	}{
		"whole":   {whole, counted{lines: 50}},
		"lost":    {edit(func(l []string) []string { return append(l[:7], l[8:]...) }), counted{lines: 49, lost: 1}},
		"doubled": {edit(func(l []string) []string { return append(l, l[3]) }), counted{lines: 51, doubled: 1}},
		"order":   {edit(func(l []string) []string { l[3], l[4] = l[4], l[3]; return l }), counted{lines: 50, disorder: 1}},
		"foreign": {edit(func(l []string) []string { return append(l, "hello") }), counted{lines: 51, disorder: 1}},
	} {
		path := filepath.Join(t.TempDir(), "f")
		if err := os.WriteFile(path, []byte(strings.Join(tc.lines, "\n")+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		if got, err := count(path, 50); err != nil || got != tc.want {
			t.Errorf("%s: got %+v, %v, want %+v", name, got, err, tc.want)
		}
	}
}

func TestOnlyLine(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	for text, want := range map[string]bool{"ab\nab\nab\n": true, "ab\nab\n": false, "ab\nab\nab\nab\n": false, "ab\nxx\nab\n": false} {
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if got, err := onlyLine(path, "ab\n", 3); err != nil || got != want {
			t.Errorf("%q: %v, %v, want %v", text, got, err, want)
		}
	}
}

func TestArguments(t *testing.T) {
	if err := Main(context.Background(), []string{"extra"}, io.Discard, io.Discard); !errors.Is(err, ErrUsage) {
		t.Errorf("an argument too many: %v", err)
	}
	if err := Main(context.Background(), []string{"-h"}, io.Discard, io.Discard); !errors.Is(err, flag.ErrHelp) {
		t.Errorf("-h: %v", err)
	}
}
