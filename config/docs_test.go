package config

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/bmatcuk/doublestar/v4"
)

// exampleFiles returns the text of every TOML file of testdata.
func exampleFiles(t testing.TB) map[string]string {
	t.Helper()
	all := map[string]string{}
	for _, pattern := range []string{"../testdata/*.toml", "../testdata/config/*.toml"} {
		names, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range names {
			data, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			all[name] = string(data)
		}
	}
	if len(all) < 3 {
		t.Fatalf("only %d example files found", len(all))
	}
	return all
}

func TestExampleFilesAreGood(t *testing.T) {
	for name := range exampleFiles(t) {
		c, err := Load(name)
		if err != nil {
			t.Errorf("%v", err)
			continue
		}
		if filepath.Base(name) == "full.toml" {
			continue // some of its values are for a later version
		}
		for _, r := range c.Roles() {
			if err := c.CheckRole(r); err != nil {
				t.Errorf("%v", err)
			}
		}
	}
}

const docFile = "../docs/configuration.md"

// docExamples returns the TOML blocks of the document, by the line they begin at.
func docExamples(t *testing.T) (text string, blocks map[int]string) {
	t.Helper()
	data, err := os.ReadFile(docFile)
	if err != nil {
		t.Fatal(err)
	}
	text, blocks = string(data), map[int]string{}
	for _, m := range regexp.MustCompile("(?s)```toml\n(.*?)```").FindAllStringSubmatchIndex(text, -1) {
		blocks[1+strings.Count(text[:m[2]], "\n")] = text[m[2]:m[3]]
	}
	if len(blocks) < 3 {
		t.Fatalf("only %d TOML blocks found in %s", len(blocks), docFile)
	}
	return text, blocks
}

func TestEveryExampleInTheDocumentationIsGood(t *testing.T) {
	_, blocks := docExamples(t)
	plugins, err := os.ReadFile("../docs/plugins.md")
	if err != nil {
		t.Fatal(err)
	}
	examples := regexp.MustCompile("(?s)```toml\n(.*?)```").FindAllSubmatch(plugins, -1)
	if len(examples) < 2 {
		t.Fatalf("only %d TOML blocks found in docs/plugins.md", len(examples))
	}
	for _, m := range examples {
		if _, err := Parse("../docs/plugins.md", m[1]); err != nil {
			t.Errorf("%v\n%s", err, m[1])
		}
	}
	for line, block := range blocks {
		// Empty lines in front make the problem name the document's line.
		if _, err := Parse(docFile, []byte(strings.Repeat("\n", line-1)+block)); err != nil {
			t.Errorf("%v", err)
		}
	}
}

func TestTheDocumentationShowsTheFullExample(t *testing.T) {
	full, err := os.ReadFile("../testdata/config/full.toml")
	if err != nil {
		t.Fatal(err)
	}
	_, blocks := docExamples(t)
	_, want, _ := strings.Cut(string(full), "\n\n")
	for _, block := range blocks {
		if strings.Contains(string(full), block) && len(block) > 2000 {
			return
		}
	}
	t.Errorf("no block of %s is the text of testdata/config/full.toml; want\n%s", docFile, want)
}

func TestTheDocumentationNamesEveryKey(t *testing.T) {
	text, _ := docExamples(t)
	full, err := os.ReadFile("../testdata/config/full.toml")
	if err != nil {
		t.Fatal(err)
	}
	keys, _ := scan(string(full))
	for _, more := range []string{"mount.uid", "mount.gid", "mount.queue", "mount.http", "relay.output", "relay.forward"} {
		keys[more] = 1
	}
	for path := range keys {
		if strings.HasSuffix(path, "]") || path == "" || strings.Contains(path, ".allow.") {
			continue // names in allow are the operator's
		}
		name := lastName(path)
		if !strings.Contains(text, "`"+name+"`") && !strings.Contains(text, "["+plainKey(path)+"]") {
			t.Errorf("%s says nothing of `%s` (%s)", docFile, name, path)
		}
	}
}

// TestTheExampleRulesLeaveRotatedCopiesOut: what logrotate and the like make below
// the mount point was transferred once already.
func TestTheExampleRulesLeaveRotatedCopiesOut(t *testing.T) {
	c, err := Load("../testdata/mount.toml")
	if err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]bool{
		"app.log": true, "nginx/access.log": true, "web-01.log": true, "app-1.2.log": true, "a/b/c": true, "app-2026.log": true,
		"app.log.1": false, "nginx/access.log.12": false, "app.log.1.gz": false, "app.log.gz": false, "a/app.log.zst": false,
		"app.log-20261122": false, "app.log-20261122.gz": false, "nginx/app.log-20261122-1699999999": false,
		"app.log.2026-11-22": false, "a/app.log.2026-11-22_10": false,
	} {
		got := true
		for _, r := range c.Mount.Rules {
			if ok, err := doublestar.Match(r.Path, path); err != nil {
				t.Fatal(err)
			} else if ok {
				got = r.Transfer
				break
			}
		}
		if got != want {
			t.Errorf("%s: transferred %v, want %v", path, got, want)
		}
	}
}
