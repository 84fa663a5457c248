package config

import (
	"os"
	"path/filepath"
	"testing"
)

func TestABadFileStillTellsWhereTheRolesAre(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f.toml")
	for text, want := range map[string]string{
		"":       "/var/lib/ftfuse",
		"broken": "/var/lib/ftfuse",
		"# x\nhost = \"a\"\n  state_dir='/a/b/'\n[": "/a/b",
		"state_dir = \"/a\" # x\nhots = 1\n":        "/a",
		"[mount]\nstate_dir = \"/a\"\n":             "/var/lib/ftfuse",
	} {
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if got := Locate(path).StateDir; got != want {
			t.Errorf("%q: %s, want %s", text, got, want)
		}
	}
	if got := Locate(path + "-none").StateDir; got != "/var/lib/ftfuse" {
		t.Errorf("without a file: %s", got)
	}
}
