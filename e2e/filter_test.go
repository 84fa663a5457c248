package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"ftfuse/bench/rig"
)

// ruleCounts returns the mount's counters of one rule.
func ruleCounts(t *testing.T, p *rig.Pair, rule string) map[string]uint64 {
	t.Helper()
	out, complaints, code := ftfuse(t, "status", "-c", p.MountConfig(), "--json")
	if code != 0 {
		t.Fatalf("status: exit %d\n%s", code, complaints)
	}
	var doc struct {
		Roles []struct {
			Counters []struct {
				Name, Rule string
				Value      uint64
			}
		}
	}
	if err := json.Unmarshal([]byte(out), &doc); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	counts := map[string]uint64{}
	for _, r := range doc.Roles {
		for _, c := range r.Counters {
			if c.Rule == rule {
				counts[c.Name] = c.Value
			}
		}
	}
	return counts
}

const filterRules = `
[[mount.rule]]
path = "web/*.log"
deny = [ { literal = "GET /healthcheck" } ]
allow = [ { match = "token=([0-9a-f])[0-9a-f]*", replace = "token=$1***" }, { match = " (4|5)\\d\\d$" } ]
default = "deny"
%s
`

// TestFiltersOnTheMount: what real programs write goes through allow, deny and replace, line by
// line, also over a kill of everything; the rest never leaves, is counted by rule, and can be
// read back where it was written.
func TestFiltersOnTheMount(t *testing.T) {
	eachCapture(t, func(t *testing.T, c capture, p *rig.Pair) {
		p.Rules = fmt.Sprintf(filterRules, "attribution = \""+c.attribution+"\"")
		c.start(t, p)
		sh(t, `mkdir "$1/web" && cd "$1/web"
			printf 'GET /healthcheck 500\nGET /a 200\nGET /b 404\r\nGET /c 404\n' >> a.log
			(printf 'GET /d token='; /bin/echo 0123456789abcdef 200) >> a.log
			printf 'no rule\n' > ../other
			printf 'GET /e 503' >> a.log`, p.Point())
		want := "GET /b 404\r\nGET /c 404\nGET /d token=0*** 200\nGET /e 503"
		arrives(t, p.Out("web/a.log"), []byte(want))
		arrives(t, p.Out("other"), []byte("no rule\n"))
		counts := ruleCounts(t, p, "web/*.log")
		for name, n := range map[string]uint64{"denied_lines": 1, "denied_bytes": 21, "unmatched_lines": 1, "unmatched_bytes": 11, "replaced_lines": 1} {
			if counts[name] != n {
				t.Errorf("%s is %d, want %d: %v", name, counts[name], n, counts)
			}
		}
		if b := string(read(t, p.In("web/a.log"))); !strings.Contains(b, "healthcheck") || !strings.Contains(b, "0123456789abcdef") {
			t.Errorf("read back: %q", b)
		}
		f, err := os.OpenFile(p.In("web/a.log"), os.O_WRONLY|os.O_APPEND, 0)
		must(t, err)
		defer f.Close()
		for i := range 20_000 {
			line := fmt.Sprintf("GET /%d %d\n", i, 200+i%4*100)
			if i == 0 {
				line = "\n" // the line before has ended with its file
			}
			_, err := f.WriteString(line[:i%len(line)])
			must(t, err)
			_, err = f.WriteString(line[i%len(line):])
			must(t, err)
			if i%4 >= 2 {
				want += line
			}
			if i%6000 == 5999 {
				must(t, p.MountRole.KillWorker())
			}
		}
		arrives(t, p.Out("web/a.log"), []byte(want))
		stop(t, p)
	}, "open", "write")
}

// TestRecordsTellOfTheProgram: exe and cgroup of real programs, of short-lived ones too.
func TestRecordsTellOfTheProgram(t *testing.T) {
	eachCapture(t, func(t *testing.T, c capture, p *rig.Pair) {
		p.Rules = fmt.Sprintf("[[mount.rule]]\npath = \"tell/**\"\nattributes = [\"exe\", \"cgroup\"]\nattribution = %[1]q\n[[mount.rule]]\npath = \"exe\"\nattributes = [\"exe\"]\nattribution = %[1]q\n", c.attribution)
		c.startMount(t, p) // nobody takes the batches
		sh(t, `mkdir "$1/tell" && cd "$1/tell"
			(exec /bin/echo one >> echo)
			/bin/sh -c 'exec dd if=/dev/zero of=dd bs=10 count=1 2>/dev/null'
			(exec /bin/echo two > ../exe)
			/bin/echo three > ../none`, p.Point())
		real := func(name string) string {
			path, err := filepath.EvalSymlinks(name)
			if err != nil {
				t.Fatal(err)
			}
			return path
		}
		groups := string(read(t, "/proc/self/cgroup"))
		group := ""
		for _, line := range strings.Split(groups, "\n") {
			if s, ok := strings.CutPrefix(line, "0::"); ok {
				group = s
			}
		}
		var out string
		eventually(t, patience, func() error {
			var code int
			if out, _, code = ftfuse(t, "queue", "cat", "-c", p.MountConfig()); code != 0 || strings.Count(out, "\n== ") < 4 {
				return fmt.Errorf("exit %d: %s", code, out)
			}
			return nil
		})
		for _, want := range []string{
			`tell/echo pid \d+ uid 0 gid 0 \S+ exe ` + real("/bin/echo") + ` cgroup ` + group + ` `,
			`tell/dd pid \d+ uid 0 gid 0 \S+ exe ` + real("/bin/dd") + ` cgroup ` + group + ` `,
			`exe pid \d+ uid 0 gid 0 \S+ exe ` + real("/bin/echo") + ` cgroup "" `,
			`none pid \d+ uid 0 gid 0 \S+ (opener )?6 bytes`,
		} {
			if !regexp.MustCompile(want).MatchString(out) {
				t.Errorf("no record %s in\n%s", want, out)
			}
		}
	})
}
