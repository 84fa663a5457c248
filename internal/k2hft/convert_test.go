package k2hft

import (
	"errors"
	"flag"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"ftfuse/config"
)

var update = flag.Bool("update", false, "write the golden files")

// samples are configurations in each format; together they have every key.
var samples = []string{"mount.ini", "mount.yaml", "binary.json", "file.ini", "both.yaml", "trans.jsonstring"}

func convertFile(t *testing.T, name string) Result {
	t.Helper()
	t.Chdir("testdata")
	defer t.Chdir("..")
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	r, err := Convert(name, text, Options{Open: os.ReadFile})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// TestConverted holds what each sample becomes, and that it is a configuration that every
// role in it would start with.
func TestConverted(t *testing.T) {
	for _, name := range samples {
		t.Run(name, func(t *testing.T) {
			r := convertFile(t, name)
			golden := filepath.Join("testdata", name+".toml")
			if *update {
				if err := os.WriteFile(golden, r.TOML, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if string(r.TOML) != string(want) {
				t.Errorf("%s differs (go test ./internal/k2hft -update writes it); got:\n%s", golden, r.TOML)
			}
			if n := strings.Count(string(r.TOML), "# NOTE "); n != r.Notes {
				t.Errorf("%d notes are counted, %d are there", r.Notes, n)
			}
			checkRoles(t, golden, r.TOML)
		})
	}
}

func checkRoles(t *testing.T, name string, toml []byte) *config.Config {
	t.Helper()
	c, err := config.Parse(name, toml)
	if err != nil {
		t.Fatalf("%v\n%s", err, toml)
	}
	if len(c.Roles()) == 0 {
		t.Errorf("no role in:\n%s", toml)
	}
	for _, role := range c.Roles() {
		if err := c.CheckRole(role); err != nil {
			t.Errorf("%s would not start: %v", role, err)
		}
	}
	return c
}

var (
	comments = regexp.MustCompile(`(?m)^\s*#.*`)
	iniKey   = regexp.MustCompile(`(?m)^([A-Z][A-Z0-9_]+)\s*=`)
	flowKey  = regexp.MustCompile(`["']?\b([A-Z][A-Z0-9_]+)["']?:`)
)

// Every key of a sample is named in what it becomes: nothing goes in silence.
func TestNoKeyGoesInSilence(t *testing.T) {
	for _, name := range samples {
		text, err := os.ReadFile(filepath.Join("testdata", name))
		if err != nil {
			t.Fatal(err)
		}
		out := string(convertFile(t, name).TOML)
		re := flowKey
		if strings.HasSuffix(name, ".ini") {
			re = iniKey
		}
		n := 0
		for _, m := range re.FindAllStringSubmatch(comments.ReplaceAllString(string(text), ""), -1) {
			switch m[1] {
			case "GLOBAL", "SVRNODE", "SLVNODE", "K2HTPDTOR", "K2HFTFUSE", "K2HFTFUSE_RULE", "K2HFTFUSE_RULE_DIR", "K2HFTFUSESVR", "INCLUDE":
				continue
			case "SSL":
				if !strings.Contains(out, "SSL is off") {
					t.Errorf("%s: nothing is said of SSL", name)
				}
				continue
			}
			n++
			if !regexp.MustCompile(`#.*\b` + m[1] + `\b`).MatchString(out) {
				t.Errorf("%s: nothing is said of %s", name, m[1])
			}
		}
		if n < 8 {
			t.Errorf("%s: only %d keys were found", name, n)
		}
	}
}

// The keys that issue 5 names, and those that the manual pages and samples of the programs
// have, are all in the samples.
func TestTheSamplesHaveEveryKey(t *testing.T) {
	all := ""
	for _, name := range append(slices.Clone(samples), "rules.ini") {
		text, err := os.ReadFile(filepath.Join("testdata", name))
		if err != nil {
			t.Fatal(err)
		}
		all += string(text)
	}
	keys := "TARGET TRUNS OUTPUTFILE PLUGIN DEFAULTALL ALLOW DENY BINTRANS EXPIRE TRANSLINECNT TRANSTIMEUP BYTELIMIT " +
		"TYPE FILE_BASEDIR FILE_UNIFY FILE_TIMEFORM FORMAT TRANSCONF INCLUDE GROUP DELIVERMODE PORT K2HTPDTOR_BROADCAST"
	for _, r := range reasons {
		for _, key := range strings.Fields(r.keys) {
			switch key {
			case "K2HTPDTOR_CHMPXCONF", "SSL_VERIFY_PEER", "CAPATH", "SERVER_CERT", "SERVER_PRIKEY", "SLAVE_CERT", "SLAVE_PRIKEY":
				continue // tests of their own below
			}
			keys += " " + key
		}
	}
	for _, key := range strings.Fields(keys) {
		if !regexp.MustCompile(`\b` + key + `\b`).MatchString(all) {
			t.Errorf("no sample has %s", key)
		}
	}
}

func convert(t *testing.T, name, text string, o Options) (string, *config.Config) {
	t.Helper()
	if o.Open == nil {
		o.Open = func(string) ([]byte, error) { return nil, os.ErrNotExist }
	}
	r, err := Convert(name, []byte(text), o)
	if err != nil {
		t.Fatal(err)
	}
	return string(r.TOML), checkRoles(t, name, r.TOML)
}

// A rule of a file wins over one of its directory: it stands first, whatever the order.
func TestAFileRuleStandsBeforeThatOfItsDirectory(t *testing.T) {
	_, c := convert(t, "x.ini", `
[K2HFTFUSE_RULE_DIR]
TARGET = /log/
TRUNS = on
DEFAULTALL = ALLOW
[K2HFTFUSE_RULE]
TARGET = log/a[1].log
TRUNS = off
DEFAULTALL = ALLOW
[SVRNODE]
NAME = localhost
`, Options{})
	var paths []string
	for _, r := range c.Mount.Rules {
		paths = append(paths, r.Path)
	}
	if want := []string{`log/a\[1\].log`, "log/*", "**"}; !slices.Equal(paths, want) {
		t.Errorf("rules %q, want %q", paths, want)
	}
	if c.Mount.Rules[0].Transfer || !c.Mount.Rules[1].Transfer || c.Mount.Rules[2].Transfer {
		t.Error("transfer is not as TRUNS has it")
	}
}

// A FILE_UNIFY that names no file became file = "", which check refuses.
func TestAUnifiedFileWithoutAName(t *testing.T) {
	for _, name := range []string{"/", "//", "."} {
		toml, c := convert(t, "x.ini", "[K2HFTFUSESVR]\nTYPE = FILE\nFILE_BASEDIR = /data\nFILE_UNIFY = "+name+"\n", Options{})
		if f := c.Receive.Outputs[0].File; f != "%F" || !strings.Contains(toml, "no name of a file") {
			t.Errorf("file = %q of FILE_UNIFY = %s\n%s", f, name, toml)
		}
	}
}

// What K2HFTFUSE writes to one file, and ftfuse to two: the lines of a rule, and what a plugin prints.
func TestAFileOfLinesAndOfAPlugin(t *testing.T) {
	toml, c := convert(t, "x.ini", "[K2HFTFUSE]\n[K2HFTFUSE_RULE]\nTARGET=a\nTRUNS=on\nDEFAULTALL=ALLOW\nOUTPUTFILE=/out/x%\n"+
		"[K2HFTFUSE_RULE]\nTARGET=b\nTRUNS=on\nDEFAULTALL=ALLOW\nPLUGIN=/bin/cat\nOUTPUTFILE=/out/x%\n"+
		"[K2HFTFUSE_RULE]\nTARGET=c\nTRUNS=on\nDEFAULTALL=ALLOW\nPLUGIN=/bin/cat\nOUTPUTFILE=/out/x%\n[SVRNODE]\nNAME=agg\n", Options{Mount: Mountpoint{Point: "/mnt/x"}})
	r := c.Mount.Rules
	if r[0].Output != "/out/x%%" || r[1].PluginOutput != "/out/x%.2" || r[2].PluginOutput != "/out/x%.2" {
		t.Errorf("the files are %q, %q and %q\n%s", r[0].Output, r[1].PluginOutput, r[2].PluginOutput, toml)
	}
}

// A literal with a line feed matches no line, and check refuses it.
func TestALiteralOfTwoLinesIsSaidAndLosesNoLine(t *testing.T) {
	toml, c := convert(t, "x.json", `{"K2HFTFUSE":{},"K2HFTFUSE_RULE":[{"TARGET":"a","TRUNS":"on","DEFAULTALL":"DENY","ALLOW":"x\ny"},{"TARGET":"b","TRUNS":"on","DEFAULTALL":"ALLOW","DENY":"x\ny"}],"SVRNODE":{"NAME":"agg"}}`, Options{Mount: Mountpoint{Point: "/mnt/x"}})
	if r := c.Mount.Rules; r[0].Default != config.VerdictAllow || len(r[0].Allow)+len(r[1].Deny) != 0 || strings.Count(toml, "a line feed in it") != 2 {
		t.Errorf("%s", toml)
	}
}

// With SSL the configuration has tls, never plain TCP: files that are not there make
// `ftfuse check` fail.
func TestSSLNeverBecomesPlainTCP(t *testing.T) {
	const node = `
[GLOBAL]
PORT = 8020
SSL = yes
SSL_VERIFY_PEER = no
[SVRNODE]
NAME = a
CAPATH = /etc/own/ca.pem
SERVER_CERT = /etc/own/server.pem
SERVER_PRIKEY = /etc/own/server.key
SLAVE_CERT = /etc/own/slave.pem
SLAVE_PRIKEY = /etc/own/slave.key
[SLVNODE]
NAME = web
`
	_, c := convert(t, "x.ini", node+"[K2HFTFUSE]\n", Options{})
	if want := (config.TLS{Cert: "/etc/own/slave.pem", Key: "/etc/own/slave.key", CA: "/etc/own/ca.pem"}); c.TLS != want {
		t.Errorf("mount: tls %+v, want %+v", c.TLS, want)
	}
	_, c = convert(t, "x.ini", node+"[K2HFTFUSESVR]\nFILE_BASEDIR = /d\n", Options{})
	if want := (config.TLS{Cert: "/etc/own/server.pem", Key: "/etc/own/server.key", CA: "/etc/own/ca.pem"}); c.TLS != want {
		t.Errorf("receive: tls %+v, want %+v", c.TLS, want)
	}
	out, c := convert(t, "x.ini", "[GLOBAL]\nSSL = on\nCAPATH = null\n[SVRNODE]\nNAME = a\n[K2HFTFUSE]\n", Options{})
	if !c.TLS.Enabled() || !strings.Contains(out, "NOTE the path of a PEM file is needed") {
		t.Errorf("without certificates tls is %+v:\n%s", c.TLS, out)
	}
}

// What the transaction plugin's own configuration names is where the mount sends to.
func TestTheServersAreThoseOfTheTransactionPlugin(t *testing.T) {
	open := func(name string) ([]byte, error) {
		if name != "dtor.yaml" {
			return nil, os.ErrNotExist
		}
		return []byte("GLOBAL: { GROUP: OTHER, DELIVERMODE: hash, PORT: 99 }\nSVRNODE: [ { NAME: far } ]\n"), nil
	}
	_, c := convert(t, "x.ini", "[SVRNODE]\nNAME = near\n[K2HTPDTOR]\nK2HTPDTOR_CHMPXCONF = dtor.yaml\n[K2HFTFUSE]\n", Options{Open: open})
	f := c.Mount.Forwards[0]
	if f.Name != "other" || f.Mode != config.ForwardHash || !slices.Equal(f.Primary, []string{"far:99"}) {
		t.Errorf("forward %+v", f)
	}
}

// The mount point and its options come from the line of fstab that names the file.
func TestTheMountPointComesFromFstab(t *testing.T) {
	const fstab = `# k2hftfuse /no fuse conf=/etc/k2hft.conf 0 0
k2hftfuse /other fuse allow_other,conf=/etc/other.conf 0 0
k2hftfuse /mnt/k2h\040fs fuse allow_other,nodev,_netdev,umask=027,uid=7,gid=8,dbglevel=err,conf=/etc/k2hft.conf 0 0
`
	m, ok := FindMount("/etc/fstab", []byte(fstab), "/etc/./k2hft.conf")
	if !ok {
		t.Fatal("not found")
	}
	out, c := convert(t, "k2hft.conf", "[SVRNODE]\nNAME = a\n[K2HFTFUSE_RULE]\nTARGET = x\nOUTPUTFILE = /mnt/k2h fs/y\nDEFAULTALL = ALLOW\n[K2HFTFUSE]\n", Options{Mount: m})
	if mo := c.Mount; mo.Point != "/mnt/k2h fs" || !mo.AllowOther || mo.Umask != 0o27 || *mo.UID != 7 || *mo.GID != 8 {
		t.Errorf("mount %+v", mo)
	}
	for _, want := range []string{"nodev", "_netdev", "dbglevel=err", "/etc/fstab, line 3", "a file below the mount point"} {
		if !strings.Contains(out, want) {
			t.Errorf("nothing is said of %s:\n%s", want, out)
		}
	}
	if _, ok := FindMount("f", []byte(fstab), "/etc/none.conf"); ok {
		t.Error("a mount of no configuration was found")
	}
}

// YAML's anchors are followed, for sections, values and patterns.
func TestAnAliasIsWhatItStandsFor(t *testing.T) {
	out, c := convert(t, "x.yaml", `
X: { on: &on yes, node: &node { NAME: a, PORT: 1 }, re: &re [ "a(b)", "$1" ] }
SVRNODE: [ *node ]
K2HFTFUSE: { K2HFTFUSE_RULE: { TARGET: f, TRUNS: *on, ALLOW: [ *re ] } }
`, Options{})
	r := c.Mount.Rules[0]
	if !r.Transfer || len(r.Allow) != 1 || !slices.Equal(c.Mount.Forwards[0].Primary, []string{"a:1"}) {
		t.Errorf("became:\n%s", out)
	}
}

func TestNamesOfServersAreExpanded(t *testing.T) {
	for name, want := range map[string]string{
		"a":                     "a",
		"a, b":                  "a b",
		"s[1-3].x":              "s1.x s2.x s3.x",
		"s[08-10]":              "s08 s09 s10",
		"s[A-C][1,5].x":         "sA1.x sA5.x sB1.x sB5.x sC1.x sC5.x",
		"s[xx,yy].z,t":          "sxx.z syy.z t",
		"s[1-999]":              "s1-999",
		"s[1":                   "s[1",
		"2001:db8::1":           "2001:db8::1",
		"s[0-9][0-9][0-9][0-9]": "s[0-9][0-9][0-9][0-9]",
	} {
		if got := strings.Join(hosts(name), " "); got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
}

func TestWhatIsNoConfigurationIsRefused(t *testing.T) {
	for name, text := range map[string]string{
		"a.ini":  "KEY = before a section\n",
		"b.yaml": "K2HFTFUSE: [",
		"c.json": "{ \"K2HFTFUSE\": 7 }",
		"d.json": "[]",
		"e":      "{",
		"g.yaml": "K2HFTFUSE: &a [ *a, *a ]\n",
		"h.yaml": "K2HFTFUSE: &a { K2HFTFUSE_RULE: *a }\n",
		"f.ini":  "[K2HFTFUSE]\nINCLUDE = f.ini\n",
	} {
		o := Options{Open: func(string) ([]byte, error) { return []byte(text), nil }}
		if _, err := Convert(name, []byte(text), o); !errors.Is(err, ErrSyntax) || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, text := range []string{"", "# nothing\n", "[GLOBAL]\nPORT = 1\n", "{}", "GLOBAL: {}"} {
		if _, err := Convert("x", []byte(text), Options{}); !errors.Is(err, ErrSections) {
			t.Errorf("%q: %v", text, err)
		}
	}
}

// FuzzConvert: whatever comes in, what comes out is a configuration, or an error.
func FuzzConvert(f *testing.F) {
	for _, name := range samples {
		text, err := os.ReadFile(filepath.Join("testdata", name))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(name, string(text))
	}
	f.Add("x.ini", "[K2HFTFUSE_RULE]\nTARGET=\"a\nb\"\nALLOW=\"(\", \"$9\"\n")
	f.Fuzz(func(t *testing.T, name, text string) {
		r, err := Convert(name, []byte(text), Options{Open: func(string) ([]byte, error) { return nil, os.ErrNotExist }})
		if err != nil {
			return
		}
		if _, err := config.Parse("x", r.TOML); err != nil {
			for _, p := range err.(*config.Error).Problems {
				if errors.Is(p.Kind, config.ErrSyntax) {
					t.Fatalf("%v\n%s", err, r.TOML)
				}
			}
		}
	})
}
