package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"ftfuse/bench/rig"
)

// What K2HFTFUSE and K2HFTFUSESVR were configured to do, ftfuse does with what
// `ftfuse convert` makes of their files: rules, filters, replacements, local copies and plugins on a real mount,
// FORMAT and FILE_UNIFY at the receiver.
func TestAConvertedSiteDoesWhatItDid(t *testing.T) {
	p := newPair(t)
	_, port, _ := strings.Cut(p.Addr, ":")
	chmpx := fmt.Sprintf("[GLOBAL]\nGROUP = COLO\nDELIVERMODE = random\nPORT = %s\n[SVRNODE]\nNAME = 127.0.0.1\n", port)
	convertTo(t, p.MountConfig(), p.MountState, chmpx+`
[K2HFTFUSE]
K2HTYPE = mem
[K2HFTFUSE_RULE_DIR]
TARGET = log
TRUNS = on
DEFAULTALL = DENY
ALLOW = INFO
ALLOW = "(.*)([eE][rR][rR])(.*)", "$1 = ERROR = $3"
ALLOW = "user=([[:alnum:]]+)"
OUTPUTFILE = `+p.Dir+`/copy/
[K2HFTFUSE_RULE]
TARGET = log/access.log
TRUNS = on
DEFAULTALL = ALLOW
DENY = "health[-_]?check"
DENY = 127.0.0.1
[K2HFTFUSE_RULE]
TARGET = plugged.log
TRUNS = off
DEFAULTALL = ALLOW
PLUGIN = LC_ALL=C /usr/bin/tr a-z A-Z
OUTPUTFILE = `+p.Dir+`/plugged.out
`, "--point", p.Point())
	convertTo(t, p.ReceiveConfig(), p.ReceiveState, chmpx+`
[K2HFTFUSESVR]
TYPE = file
FILE_BASEDIR = `+p.OutDir()+`
FILE_UNIFY = all.log
FILE_TIMEFORM = "%Y"
FORMAT = "%f: %L"
`)
	var err error
	p.ReceiveRole, err = rig.Start(bin, "receive", p.ReceiveConfig(), p.Log)
	must(t, err)
	must(t, p.ReceiveRole.Ready(t.Context()))
	p.MountRole, err = rig.Start(bin, "mount", p.MountConfig(), p.Log)
	must(t, err)
	must(t, p.MountRole.Ready(t.Context()))

	must(t, os.MkdirAll(p.In("log/deeper"), 0o755))
	for name, text := range map[string]string{
		"log/app.log":       "an INFO line\ndebug\nan Err or\nsaid user=bob, and more\n",
		"log/access.log":    "GET /\nGET /health_check\nfrom 127.0.0.1\nfrom 127x0.0.1\n",
		"log/deeper/no.log": "INFO of no rule\n",
		"other.log":         "INFO of no rule\n",
		"plugged.log":       "for the plugin\n",
	} {
		must(t, os.WriteFile(p.In(name), []byte(text), 0o644))
	}
	must(t, p.Stop())
	for name, want := range map[string]string{
		"copy/app.log": "an INFO line\nan  = ERROR =  or\nuser=bob\n",
		"plugged.out":  "FOR THE PLUGIN\n",
	} {
		if got, err := os.ReadFile(filepath.Join(p.Dir, name)); err != nil || string(got) != want {
			t.Errorf("%s has %q, want %q (%v)", name, got, want, err)
		}
	}
	got, err := os.ReadFile(filepath.Join(p.OutDir(), "all.log"))
	must(t, err)
	want := map[string]string{
		"app.log":    "an INFO line\nan  = ERROR =  or\nuser=bob\n",
		"access.log": "GET /\nfrom 127x0.0.1\n",
	}
	have := map[string]string{}
	for line := range strings.Lines(string(got)) {
		file, text, _ := strings.Cut(line, ": ")
		have[file] += text
	}
	if fmt.Sprint(have) != fmt.Sprint(want) {
		t.Errorf("came out:\n%v\nwant:\n%v", have, want)
	}
}

// convertTo writes what `ftfuse convert` makes of text to file, with a state directory.
func convertTo(t *testing.T, file, state, text string, args ...string) {
	t.Helper()
	ini := file + ".ini"
	must(t, os.WriteFile(ini, []byte(text), 0o644))
	cmd := exec.Command(bin, append(append([]string{"convert"}, args...), ini)...)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	must(t, err)
	must(t, os.WriteFile(file, append([]byte(fmt.Sprintf("state_dir = %q\n", state)), out...), 0o644))
	if out, err := exec.Command(bin, "check", "-c", file).CombinedOutput(); err != nil {
		t.Fatalf("check: %v\n%s", err, out)
	}
}
